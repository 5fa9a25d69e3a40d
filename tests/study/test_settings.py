import pytest

from study.settings import StudySettings, fraction, from_layers
from trainables.errors import InputError


def test_what_is_given_beats_what_is_stored_beats_the_defaults():
    defaults = {"trials": 3, "eps": 0.1, "depth": 8}
    settings = from_layers({"name": "a", "trials": 9}, {"trials": 5, "eps": 0.1, "depth": 8}, defaults)
    assert (settings.trials, settings.eps, settings.depth) == (9, 0.1, 8)


@pytest.mark.parametrize("field,value", [("eps", 0.2), ("depth", 14), ("seed", 3), ("dataset", "svhn")])
def test_a_study_is_not_continued_under_another_identity(field, value):
    stored = StudySettings(name="a", depth=8).model_dump(mode="json")
    with pytest.raises(InputError, match=f"{field} .*the study has"):
        from_layers({"name": "a", field: value}, stored, {})


def test_a_study_older_than_the_norm_of_its_attack_is_one_of_linf():
    stored = StudySettings(name="a", depth=8).model_dump(mode="json", exclude={"attack_norm"})
    assert from_layers({"name": "a", "attack_norm": "linf"}, stored, {}).attack_norm == "linf"
    with pytest.raises(InputError, match="attack_norm 'l2' .the study has 'linf'."):
        from_layers({"name": "a", "attack_norm": "l2"}, stored, {})


@pytest.mark.parametrize("field,value", [("trials", 99), ("sampler", "random"), ("concurrent", 7), ("timeout", 5.0)])
def test_how_a_study_is_run_may_change(field, value):
    stored = StudySettings(name="a").model_dump(mode="json")
    assert getattr(from_layers({"name": "a", field: value}, stored, {}), field) == value


@pytest.mark.parametrize(
    "given,message",
    [
        ({"name": "../up"}, "name: '../up' given; accepted: up to 100 letters"),
        ({"name": "x" * 101}, "name: 'xxx.* given; accepted: up to 100 letters"),
        ({"name": "mine\n"}, "name: 'mine.n' given; accepted: up to 100 letters"),
        ({"name": "a", "trials": 0}, "trials: 0 given"),
        ({"name": "a", "eps": 1.5}, "eps: 1.5 given; accepted: at most 1 with attack_norm 'linf'"),
        ({"name": "a", "attack_norm": "L2"}, "attack_norm: 'L2' .did you mean 'l2'"),
        ({"name": "a", "eps": float("nan")}, "eps: nan given"),
        ({"name": "a", "depth": 55}, "depth: 55 given; accepted: 6n\\+2, e.g. 50 or 56"),
        ({"name": "a", "dataset": "cifar"}, "did you mean 'cifar10'"),
        ({"name": "a", "sampler": "tpa"}, "did you mean 'tpe'"),
        ({"name": "a", "cpus_per_trial": 0}, "cpus_per_trial: 0 given"),
        ({"name": "a", "cpus_per_trial": 1e-5}, "cpus_per_trial: 1e-05 given"),
        ({"name": "a", "gpus_per_trial": 1e-5}, "gpus_per_trial: 1e-05 given; accepted: 0, or at least 0.01"),
        ({"name": "a", "epoch_timeout": 1e10}, "epoch_timeout: 10000000000.0 given"),
        ({"name": "a", "sampler": "TPE"}, "did you mean 'tpe'"),
    ],
)
def test_a_value_out_of_range_is_named_with_what_is_accepted(given, message):
    with pytest.raises(InputError, match=message) as error:
        from_layers(given, None, {})
    assert "\n" not in str(error.value)


def test_a_misspelt_default_of_a_space_is_named():
    with pytest.raises(InputError, match="DEFAULTS: 'trails' \\(did you mean 'trials'"):
        from_layers({"name": "a"}, None, {"trails": 3, 1: 2})
    with pytest.raises(InputError, match="DEFAULTS: 1; accepted: "):
        from_layers({"name": "a"}, None, {1: 2, "trails": 3})


def test_fractions_are_read_as_numbers():
    assert fraction("8/255") == 8 / 255
    assert fraction("0.1") == 0.1
    assert fraction("1.5/255") == 1.5 / 255
    for text in ("8/0", "x", "", "1/2/3", "8/", f"1{400 * '0'}/1"):
        with pytest.raises(ValueError):
            fraction(text)


@pytest.mark.parametrize("field,value", [("max_trial_seconds", 60.0), ("warm_start", "b"), ("until_gain", 0.01)])
def test_what_needs_seconds_known_beforehand_needs_the_sampler_that_knows_them(field, value):
    with pytest.raises(InputError, match=f"{field}: given with sampler 'tpe'; accepted: with sampler 'front'"):
        from_layers({"name": "a", "sampler": "tpe", field: value}, None, {})
    steered = from_layers({"name": "a", "sampler": "front", field: value}, None, {})
    assert getattr(steered, field) == value
    # Another sampler may take over later, which nothing steers.
    after = from_layers({"name": "a", "sampler": "tpe"}, steered.model_dump(mode="json"), {})
    assert after.sampler == "tpe" and getattr(after, field) is None
    assert getattr(from_layers({"name": "a", "sampler": "tpe"}, None, {field: value}), field) is None


def test_what_is_not_given_is_as_it_is_stored_and_not_as_the_space_has_it():
    assert from_layers({"name": "a"}, {"trials": 5}, {"trials": 3}).trials == 5


def test_accuracy_is_by_default_that_under_ten_steps_of_8_255():
    assert StudySettings(name="a").attack == {"attack_norm": "linf", "eps": 8 / 255, "attack_steps": 10}


def test_few_examples_and_parts_of_a_processor_are_one_at_the_least():
    settings = StudySettings(name="a", eval_examples=2, cpus_per_trial=0.5)
    assert settings.evaluation.curve_examples == 1 and settings.threads == 1


def test_a_space_of_the_users_own_may_move():
    stored = StudySettings(name="a", space="here/mine.py").model_dump(mode="json")
    assert from_layers({"name": "a", "space": "there/mine.py"}, stored, {}).space == "there/mine.py"
