import optuna
import pytest

from study import spaces
from study.settings import StudySettings
from trainables.errors import InputError

SETTINGS = StudySettings(name="a", depth=8)

GOOD = """
BASELINES = {"published": {"norm": "fixup"}}
def space(trial):
    trial.suggest_categorical("norm", ["batchnorm", "fixup"])
    return {"epochs": 2}
"""


def load(tmp_path, text):
    path = tmp_path / "mine.py"
    path.write_text(text)
    return spaces.load(str(path))


def refused(tmp_path, text, n_train=1000):
    with pytest.raises(InputError) as error:
        spaces.try_out(load(tmp_path, text), SETTINGS, n_train)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_users_file_is_a_space(tmp_path):
    space = load(tmp_path, GOOD)
    spaces.try_out(space, SETTINGS, 1000)
    trial = optuna.create_study().ask({})
    config = spaces.configure(space, SETTINGS, trial)
    assert (config.depth, config.epochs, config.seed, config.eps) == (8, 2, SETTINGS.seed + trial.number, SETTINGS.eps)


def test_training_attacks_in_the_norm_and_within_the_radius_of_the_study(tmp_path):
    l2 = SETTINGS.model_copy(update={"attack_norm": "l2", "eps": 0.5})
    config = spaces.configure(load(tmp_path, GOOD), l2, optuna.create_study().ask())
    assert (config.attack_norm, config.eps) == ("l2", 0.5)


def test_a_users_file_may_hold_what_looks_for_its_module(tmp_path):
    made = (
        "from __future__ import annotations\nfrom dataclasses import dataclass\n@dataclass\nclass A:\n    n: int = 2\n"
    )
    spaces.try_out(load(tmp_path, made + GOOD.replace('"epochs": 2', '"epochs": A().n')), SETTINGS, 1000)


def test_a_published_parameter_is_named_by_a_text(tmp_path):
    assert "'published': parameter 1 given" in refused(tmp_path, GOOD.replace('"norm": "fixup"', "1: 2"))


def test_an_unknown_space_is_answered_with_the_nearest():
    with pytest.raises(InputError, match="'quickstrat' \\(did you mean 'quickstart'"):
        spaces.load("quickstrat")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        spaces.load(str(tmp_path / "none.py"))


def test_a_space_that_raises_shows_the_users_own_line(tmp_path):
    message = refused(tmp_path, "def space(trial):\n    ratio = 1 / 0\n    return {}\n")
    assert "mine.py:2: ZeroDivisionError" in message and "ratio = 1 / 0" in message


def test_a_file_that_does_not_parse_shows_the_users_own_line(tmp_path):
    with pytest.raises(InputError, match="mine.py:1: SyntaxError"):
        load(tmp_path, "def space(trial:\n")


def test_a_misspelt_field_is_answered_with_the_nearest(tmp_path):
    message = refused(tmp_path, "def space(trial):\n    trial.suggest_int('epoch', 1, 3)\n")
    assert "unknown field 'epoch' (did you mean 'epochs'?)" in message


def test_a_value_that_only_some_draws_reach_is_found_before_the_study_starts(tmp_path):
    message = refused(tmp_path, "def space(trial):\n    trial.suggest_int('depth', 55, 56)\n")
    assert message.startswith("depth:")


@pytest.mark.parametrize(
    "baseline,message",
    [
        ({}, "norm missing"),
        ({"norm": "fixup", "momentum": 0.9}, "momentum never suggested"),
        ({"momentum": 0.9, "nesterov": True}, "norm missing; momentum never suggested; nesterov never suggested in"),
        ({"norm": "fixup", "epochs": 3}, "epochs 3 where 2 is returned in"),
        ({"norm": "none"}, "'none' not in ('batchnorm', 'fixup'). in `"),
        ({"norm": "none"}, "`, under 'published' of BASELINES"),
    ],
)
def test_a_published_configuration_gives_exactly_what_is_suggested(tmp_path, baseline, message):
    text = GOOD.replace('{"norm": "fixup"}', repr(baseline))
    assert message in refused(tmp_path, text)


def test_a_published_configuration_may_name_what_is_constant_under_it(tmp_path):
    text = GOOD.replace('"norm": "fixup"', '"norm": "fixup", "epochs": 2')
    assert spaces.try_out(load(tmp_path, text), SETTINGS, 1000).baselines == {"published": {"norm": "fixup"}}


@pytest.mark.parametrize(
    "suggested,accepted",
    [
        ("suggest_int('epochs', 1, 9)", "1 to 9"),
        ("suggest_int('epochs', 1, 9, step=2)", "1 to 9 in steps of 2"),
        ("suggest_float('lr_batch_ratio', 1e-4, 1e-2, log=True)", "0.0001 to 0.01"),
        ("suggest_float('momentum', 0.0, 0.5, step=0.1)", "0.0 to 0.5 in steps of 0.1"),
    ],
)
def test_a_published_number_out_of_range_is_refused_in_words(tmp_path, suggested, accepted):
    field = suggested.split("'")[1]
    text = f"BASELINES = {{'far': {{'{field}': 99}}}}\ndef space(trial):\n    trial.{suggested}\n"
    assert refused(tmp_path, text) == f"BASELINES: 'far': {field}: 99 given; accepted: {accepted}"


@pytest.mark.parametrize(
    "text,message",
    [
        ("import numpy\nBASELINES = {'a': {'epochs': numpy.int64(1)}}\ndef space(trial): pass\n", "np.int64(1) given"),
        ("BASELINES = {'a' * 300: {}}\ndef space(trial): pass\n", "accepted: 1 to 80 characters"),
        ("BASELINES = {'🐍' * 21: {}}\ndef space(trial): pass\n", "accepted: 1 to 80 characters (bytes in UTF-8)"),
        ("BASELINES = {'a\\0b': {}}\ndef space(trial): pass\n", "all of them printable"),
        ("BASELINES = {'\\ud800': {}}\ndef space(trial): pass\n", "all of them printable"),
        ("BASELINES = {' ': {}}\ndef space(trial): pass\n", "accepted: 1 to 80 characters"),
        ("BASELINES = {1: {}}\ndef space(trial): pass\n", "accepted: 1 to 80 characters"),
        (
            "def space(trial):\n"
            "    trial.suggest_categorical('batch_size_schedule.sizes', [(8, 16), (8, 32)])\n"
            "    return {'batch_size_schedule.kind': 'milestones', 'batch_size_schedule.milestones': (1,)}\n",
            "batch_size_schedule.sizes: choice (8, 16) suggested",
        ),
        (
            "import numpy as np\ndef space(trial):\n    trial.suggest_categorical('epochs', list(np.arange(1, 4)))\n",
            "epochs: choice np.int64(1) suggested",
        ),
        ("def space(trial):\n    return {1: 2}\n", "a field 1"),
        ("import sys\nsys.exit(0)\n", "mine.py:2: SystemExit: 0 in `sys.exit(0)`"),
        ("def space(trial):\n    raise SystemExit('bye')\n", "mine.py:2: SystemExit: bye"),
    ],
)
def test_what_a_study_could_not_go_on_with_is_refused_before_it_starts(tmp_path, text, message):
    assert message in refused(tmp_path, text)


def test_a_batch_larger_than_the_training_set_is_refused(tmp_path):
    text = "def space(trial):\n    return {'batch_size_schedule.kind': 'constant', 'batch_size_schedule.size': 128}\n"
    assert "at most the training set (100)" in refused(tmp_path, text, n_train=100)


@pytest.mark.parametrize("text", ["SPACE = 1\n", "space = 3\n", "BASELINES = [1]\ndef space(trial): pass\n"])
def test_a_file_of_another_shape_is_refused(tmp_path, text):
    with pytest.raises(InputError, match="accepted"):
        load(tmp_path, text)


SIZED = GOOD.replace('"epochs": 2', '"epochs": 2, "training": "pgd", {}') + "DEFAULTS = {}\n"


@pytest.mark.parametrize("field", ["eps", "step_size"])
def test_sizes_of_one_norm_are_not_taken_for_those_of_another(field, tmp_path):
    l2 = SETTINGS.model_copy(update={"attack_norm": "l2", "eps": 0.5})
    sized = SIZED.replace("{}", f'"{field}": 0.1', 1)
    line = f"attack_norm: 'l2' given, but .*mine.py sets {field} for 'linf'; accepted: that norm, or a space that sets"
    spaces.try_out(load(tmp_path, sized), SETTINGS, 1000)
    with pytest.raises(InputError, match=line):
        spaces.try_out(load(tmp_path, sized), l2, 1000)
    suggested = GOOD.replace("return", f'trial.suggest_float("{field}", 0.01, 0.1)\n    return').replace(
        '{"norm": "fixup"}', f'{{"norm": "fixup", "{field}": 0.05}}'
    )
    with pytest.raises(InputError, match=line):
        spaces.try_out(load(tmp_path, suggested), l2, 1000)
    spaces.try_out(load(tmp_path, sized.replace("DEFAULTS = {}", 'DEFAULTS = {"attack_norm": "l2"}')), l2, 1000)
    both = load(tmp_path, SIZED.replace("{}", f'"{field}": 0.1, "attack_norm": "linf"', 1))
    spaces.try_out(both, l2, 1000)
    assert spaces.configure(both, l2, optuna.create_study().ask()).attack_norm == "linf"
    spaces.try_out(load(tmp_path, GOOD), l2, 1000)
