import optuna
import pytest

from study import calibration
from study.storage import DIRECTIONS
from trainables.config import ConstantBatch, GeometricBatch, TrialConfig

CONFIG = TrialConfig(depth=8, norm="fixup", batch_size_schedule=ConstantBatch(size=32), epochs=3)
GPU = {"resnet8 fixup tf32 natural": {"16": 1.0, "32": 1.5}}


@pytest.mark.parametrize(
    "changes,key",
    [
        ({}, "resnet8 fixup tf32 natural"),
        ({"training": "pgd", "pgd_steps": 7}, "resnet8 fixup tf32 pgd 7"),
        ({"training": "trades", "pgd_steps": 5}, "resnet8 fixup tf32 trades 5"),
        ({"training": "free", "free_replays": 4}, "resnet8 fixup tf32 free 4"),
        ({"training": "fgsm"}, "resnet8 fixup tf32 fgsm 1"),
        ({"training": "static", "pgd_steps": 3, "norm": "batchnorm"}, "resnet8 batchnorm tf32 static 3"),
        ({"precision": "bf16"}, "resnet8 fixup bf16 natural"),
        ({"training": "pgd", "pgd_steps": 7, "attack_norm": "l2"}, "resnet8 fixup tf32 pgd 7 l2"),
        ({"attack_norm": "l2"}, "resnet8 fixup tf32 natural"),
    ],
)
def test_a_key_names_what_a_steps_seconds_depend_on(changes, key):
    assert calibration.model_key(CONFIG.model_copy(update=changes)) == key


def test_what_was_measured_first_is_kept_with_the_study():
    study = optuna.create_study(directions=DIRECTIONS)
    calibration.keep(study, CONFIG, "gpu", {16: 1.0})
    calibration.keep(study, CONFIG, "gpu", {16: 9.0, 32: 1.5})
    calibration.keep(study, CONFIG, "cpu", {16: 7.0})
    assert calibration.known(study, CONFIG) == {"gpu": {"16": 1.0, "32": 1.5}, "cpu": {"16": 7.0}}
    assert calibration.known(study, CONFIG.model_copy(update={"norm": "batchnorm"})) == {}


def test_an_attack_in_another_norm_is_timed_by_itself_and_expected_alike_before():
    pgd = CONFIG.model_copy(update={"training": "pgd", "pgd_steps": 2})
    l2 = pgd.model_copy(update={"attack_norm": "l2"})
    known = {"resnet8 fixup tf32 pgd 2": {"32": 1.0}}
    assert calibration.expected_seconds(l2, 96, known) == calibration.expected_seconds(pgd, 96, known) == 9.0
    assert calibration.expected_seconds(l2, 96, known | {"resnet8 fixup tf32 pgd 2 l2": {"32": 2.0}}) == 18.0


def test_a_schedules_seconds_are_its_steps_times_their_seconds():
    growing = CONFIG.model_copy(update={"batch_size_schedule": GeometricBatch(first=16, last=32), "epochs": 2})
    assert calibration.expected_seconds(CONFIG, 96, GPU) == 3 * 3 * 1.5
    assert calibration.expected_seconds(growing, 96, GPU) == 6 * 1.0 + 3 * 1.5


def test_what_was_never_measured_takes_as_long_as_its_passes_over_the_network_suggest():
    pgd = CONFIG.model_copy(update={"training": "pgd", "pgd_steps": 7})
    free = CONFIG.model_copy(update={"training": "free", "free_replays": 4})
    natural = calibration.expected_seconds(CONFIG, 96, GPU)
    assert calibration.expected_seconds(pgd, 96, GPU) == 8 * natural
    assert calibration.expected_seconds(free, 96, GPU) == 4 * natural
    trades = pgd.model_copy(update={"training": "trades"})
    assert calibration.expected_seconds(trades, 96, GPU) == pytest.approx((7 + 2 + 1 / 3) * natural)
    nearer = GPU | {"resnet8 fixup tf32 pgd 3": {"32": 5.0}}
    assert calibration.expected_seconds(pgd, 96, nearer) == 3 * 3 * 5.0 * 8 / 4
    deeper = CONFIG.model_copy(update={"depth": 14})  # twice the blocks
    assert calibration.expected_seconds(deeper, 96, GPU) == 2 * natural
    assert calibration.expected_seconds(deeper, 96, {}) is None


def test_crafting_comes_before_the_steps_of_static_training():
    static = CONFIG.model_copy(update={"training": "static", "pgd_steps": 10, "norm": "batchnorm"})
    measured = {"resnet8 batchnorm tf32 static 10": {"16": 1.0, "32": 1.5, "0": 40.0}}
    assert calibration.expected_seconds(static, 96, measured) == 40 + 3 * 3 * 1.5
    assert calibration.expected_seconds(static.model_copy(update={"pgd_steps": 2}), 512, measured) == pytest.approx(
        2 * 2 * 1.5 * 256 / 32 + 3 * 16 * 1.5
    )
    natural = static.model_copy(update={"training": "natural"})
    assert calibration.expected_seconds(natural, 96, measured) == 3 * 3 * 1.5


def test_the_error_is_relative_to_the_measured_seconds_of_complete_trials():
    study = optuna.create_study(directions=DIRECTIONS)
    for state, values, calibrated in [
        ("COMPLETE", [0.5, 2.0], 2.2),
        ("COMPLETE", [0.5, 2.0], None),
        ("FAIL", None, 9.0),
    ]:
        attrs = {"measured_seconds": 2.0, "calibrated_seconds": calibrated}
        state = optuna.trial.TrialState[state]
        study.add_trial(optuna.trial.create_trial(state=state, values=values, user_attrs=attrs))
    assert calibration.relative_errors(study.trials) == pytest.approx([0.1])


@pytest.mark.parametrize(
    "measured, said, times",
    [
        ([], "", None),
        ([1.0, 1.1, 1.2, 1.25], "-13 % off measured ones in the median of 4 trials (-20 % to +0 %).", None),
        ([1.0, 1.0, 2.5, 2.5], "-30 % off measured ones in the median of 4 trials (-60 % to +0 %).", "2.5"),
    ],
)
def test_a_device_that_was_not_equally_free_is_told(measured, said, times):
    study = optuna.create_study(directions=DIRECTIONS)
    for seconds in measured:
        attrs = {"measured_seconds": seconds, "calibrated_seconds": 1.0}
        study.add_trial(optuna.trial.create_trial(values=[0.5, seconds], user_attrs=attrs))
    unequal = f" The device was not equally free for all: equal work took {times} times as long for some as for others."
    assert (
        calibration.error_text(study.trials)
        == f"{'Calibrated seconds are ' if said else ''}{said}{unequal if times else ''}"
    )


def test_seconds_of_several_kinds_of_device_are_told():
    study = optuna.create_study(directions=DIRECTIONS)
    calibration.keep(study, CONFIG, "H100", {8: 1.0})
    assert calibration.timing_text(study) == ""
    calibration.keep(study, CONFIG, "T4", {8: 9.0})
    assert (
        calibration.timing_text(study) == "Seconds are of 2 kinds of device (H100, T4): they compare only within one."
    )


def test_the_nearest_depth_stands_in_before_the_nearest_cost():
    pgd = CONFIG.model_copy(update={"training": "pgd", "pgd_steps": 7})
    known = {"resnet8 fixup tf32 natural": {"32": 1.0}, "resnet56 fixup tf32 pgd 7": {"32": 100.0}}
    assert calibration.expected_seconds(pgd, 96, known) == 3 * 3 * 1.0 * 8


def test_of_deeper_networks_the_nearest_stands_in():
    known = {"resnet110 fixup tf32 natural": {"32": 900.0}, "resnet14 fixup tf32 natural": {"32": 2.0}}
    assert calibration.expected_seconds(CONFIG, 96, known) == 3 * 3 * 1.0
