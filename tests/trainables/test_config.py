import re

import pytest
from pydantic import ValidationError

from trainables.config import (
    ConstantBatch,
    EvalConfig,
    GeometricBatch,
    LinearBatch,
    MilestoneBatch,
    PlateauBatch,
    TrialConfig,
    nest,
    six_n_plus_two,
    trial_config,
)
from trainables.errors import InputError, nearest


def test_defaults_are_valid():
    assert trial_config({}) == TrialConfig()


def test_a_config_survives_json():
    config = TrialConfig(depth=20, batch_size_schedule=PlateauBatch(first=8, last=64), step_size=0.01)
    assert TrialConfig.model_validate_json(config.model_dump_json()) == config


def test_a_config_cannot_change():
    with pytest.raises(ValidationError, match="frozen"):
        TrialConfig().depth = 20


@pytest.mark.parametrize("depth", [8, 14, 20, 56, 110, 1202])
def test_depths_are_6n_plus_2(depth):
    assert six_n_plus_two(depth) == depth
    assert trial_config({"depth": depth}).depth == depth


@pytest.mark.parametrize(("depth", "nearest_depths"), [(9, "8 or 14"), (2, "8 or 14"), (55, "50 or 56")])
def test_other_depths_are_refused_with_their_neighbours(depth, nearest_depths):
    with pytest.raises(InputError, match=rf"^depth: {depth} given; accepted: 6n\+2, e\.g\. {nearest_depths}$"):
        trial_config({"depth": depth})


@pytest.mark.parametrize(
    ("schedule", "largest"),
    [
        (ConstantBatch(size=16), 16),
        (GeometricBatch(first=8, last=100, factor=4), 100),
        (LinearBatch(first=8, last=128), 128),
        (MilestoneBatch(sizes=(8, 64, 16), milestones=(3, 5)), 64),
        (PlateauBatch(first=8, last=32, patience=3), 32),
    ],
)
def test_dotted_names_choose_a_batch_schedule(schedule, largest):
    params = {f"batch_size_schedule.{name}": value for name, value in schedule.model_dump().items()}
    assert trial_config(params).batch_size_schedule == schedule
    assert schedule.largest == largest


def test_what_is_nested_stays_the_callers():
    mine = {"kind": "geometric", "last": 128}
    for first in (8, 16):
        nested = nest({"batch_size_schedule": mine, "batch_size_schedule.first": first})
        assert nested == {"batch_size_schedule": {"kind": "geometric", "first": first, "last": 128}}
    assert mine == {"kind": "geometric", "last": 128}


@pytest.mark.parametrize(
    "params,line",
    [
        ({"epochs": True}, "epochs: True given; accepted: a number"),
        ({"eps": "0.1"}, "eps: '0.1' given; accepted: a number"),
        ({"step_size": True}, "step_size: True given; accepted: a number"),
        ({"batch_size_schedule.size": True}, "batch_size_schedule.size: True given; accepted: a number"),
        ({"nesterov": "yes"}, "nesterov: 'yes' given; accepted: a valid boolean"),
        ({"training": "static", "norm": "fixup"}, "training: 'static' given with norm 'fixup', .*"),
    ],
)
def test_a_truth_or_a_text_is_no_number(params, line):
    schedule = {} if "batch_size_schedule.size" in params else {"batch_size_schedule.size": 8}
    with pytest.raises(InputError) as refused:
        trial_config({"batch_size_schedule.kind": "constant"} | schedule | params)
    assert re.fullmatch(line, str(refused.value))


def test_nest_splits_at_dots():
    assert nest({"a.b": 1, "a.c.d": 2, "e": 3}) == {"a": {"b": 1, "c": {"d": 2}}, "e": 3}


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"nrom": "fixup"}, r"^nrom: unknown field 'nrom' \(did you mean 'norm'\?\); accepted: .*weight_decay"),
        ({"norm": "batchnrm"}, r"^norm: 'batchnrm' \(did you mean 'batchnorm'\?\); accepted: batchnorm, fixup, "),
        ({"momentum": 1.0}, r"^momentum: 1\.0 given; accepted: less than 1$"),
        ({"eps": -0.1}, r"^eps: -0\.1 given; accepted: greater than or equal to 0$"),
        ({"eps": float("nan")}, r"^eps: nan given; accepted: "),
        ({"eps": 1.5}, r"^eps: 1\.5 given; accepted: at most 1 with attack_norm 'linf'$"),
        ({"eps": 128, "attack_norm": "l2"}, r"^eps: 128\.0 given; accepted: at most 100 with attack_norm 'l2'$"),
        ({"step_size": 2.0}, r"^step_size: 2\.0 given; accepted: at most 1 with attack_norm 'linf'$"),
        ({"attack_norm": "l3"}, r"^attack_norm: 'l3'; accepted: l2, linf$"),
        ({"epochs": 0}, r"^epochs: 0 given; accepted: "),
        ({"epochs": 2.5}, r"^epochs: 2\.5 given; accepted: "),
        ({"lr_batch_ratio": 0.0}, r"^lr_batch_ratio: 0\.0 given; accepted: greater than 0$"),
        ({"nesterov": True, "momentum": 0.0}, r"^nesterov: True given with momentum 0; accepted: "),
        ({"eval_statistics": "batch", "norm": "fixup"}, r"^eval_statistics: 'batch' given with norm 'fixup'; accepted"),
        ({"batch_size_schedule.kind": "geometrical"}, r"^batch_size_schedule\.kind: 'geometrical' .*'geometric'"),
        (
            {"batch_size_schedule.kind": "constant", "batch_size_schedule.size": 0},
            r"^batch_size_schedule\.size: 0 given; accepted: greater than or equal to 1$",
        ),
        (
            {"batch_size_schedule.kind": "linear", "batch_size_schedule.first": 8},
            r"^batch_size_schedule\.last: nothing given; accepted: a value$",
        ),
        (
            {"batch_size_schedule.kind": "linear", "batch_size_schedule.first": 8, "batch_size_schedule.last": 4},
            r"last: 4 given; accepted: at least first \(8\)$",
        ),
        (
            {
                "batch_size_schedule.kind": "milestones",
                "batch_size_schedule.sizes": [8, 16],
                "batch_size_schedule.milestones": [],
            },
            r"milestones: 0 given; accepted: one fewer than sizes \(1\)$",
        ),
        (
            {
                "batch_size_schedule.kind": "milestones",
                "batch_size_schedule.sizes": [8, 16, 32],
                "batch_size_schedule.milestones": [5, 5],
            },
            r"milestones: \[5, 5\] given; accepted: strictly increasing epochs$",
        ),
    ],
)
def test_a_mistake_is_one_line_with_field_value_and_what_is_accepted(params, message):
    with pytest.raises(InputError, match=message) as error:
        trial_config(params)
    assert "\n" not in str(error.value)


def test_a_radius_of_l2_may_be_longer_than_a_pixel():
    assert trial_config({"eps": 3.0, "step_size": 1.5, "attack_norm": "l2"}).eps == 3.0
    assert EvalConfig(eps=3.0, attack_norm="l2").eps == 3.0
    with pytest.raises(ValueError, match="eps: 3.0 given"):
        EvalConfig(eps=3.0)


def test_further_mistakes_are_counted():
    with pytest.raises(InputError, match=r"\(and 1 more\)$"):
        trial_config({"epochs": 0, "depth": 9})


def test_batch_statistics_go_with_the_norms_that_have_them():
    for norm in ("batchnorm", "robustnorm"):
        assert trial_config({"norm": norm, "eval_statistics": "batch"}).eval_statistics == "batch"


def test_nearest_names_the_likeliest():
    assert nearest("cosin", ["cosine", "constant"]) == "'cosin' (did you mean 'cosine'?); accepted: constant, cosine"
    assert nearest("zzz", ["cosine"]) == "'zzz'; accepted: cosine"
