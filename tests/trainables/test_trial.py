import math

import pytest
import torch
import torch.nn.functional as F

from trainables import data, timing
from trainables.config import (
    ConstantBatch,
    DataConfig,
    EvalConfig,
    GeometricBatch,
    LinearBatch,
    PlateauBatch,
    TrialConfig,
)
from trainables.data import to_float
from trainables.errors import InputError
from trainables.trial import Diverged, Trial, load_model

CPU = torch.device("cpu")
EVALUATION = EvalConfig(eps=0.1, attack_steps=3, examples=60, curve_examples=20)
CONFIG = TrialConfig(
    depth=8, norm="batchnorm", batch_size_schedule=GeometricBatch(first=64, last=256), lr_batch_ratio=1e-3, epochs=3
)


@pytest.fixture(scope="module")
def digits():
    return data.load("digits")


def timeless(curve):
    return [{name: value for name, value in row.items() if name != "train_seconds"} for row in curve]


def train(trial):
    while not trial.done:
        trial.train_epoch()
    return trial


CONFIGS = [
    CONFIG,
    CONFIG.model_copy(update={"norm": "fixup", "nesterov": True, "lr_schedule": "cosine"}),
    CONFIG.model_copy(update={"norm": "robustnorm", "eval_statistics": "batch"}),
    CONFIG.model_copy(update={"training": "free", "lr_schedule": "accelat", "eps": 0.1}),
    CONFIG.model_copy(update={"training": "trades", "pgd_steps": 2, "eps": 0.1}),
    CONFIG.model_copy(update={"training": "static", "pgd_steps": 3, "eps": 0.1}),
    CONFIG.model_copy(update={"training": "fgsm", "batch_size_schedule": PlateauBatch(first=64, last=256, patience=1)}),
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: f"{c.norm}-{c.training}")
def test_a_resumed_trial_equals_the_uninterrupted_one(digits, config, tmp_path):
    whole = train(Trial(config, digits, EVALUATION, CPU))
    first = Trial(config, digits, EVALUATION, CPU)
    first.train_epoch()
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second = Trial(config, digits, EVALUATION, CPU)
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    seconds_before = second.train_seconds
    train(second)
    assert timeless(second.curve) == timeless(whole.curve)
    for mine, theirs in zip(second.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    assert second.train_seconds > seconds_before == first.train_seconds


def test_the_same_seed_gives_the_same_numbers_and_another_seed_others(digits):
    runs = [train(Trial(CONFIG.model_copy(update={"seed": seed}), digits, EVALUATION, CPU)) for seed in (1, 1, 2)]
    assert timeless(runs[0].curve) == timeless(runs[1].curve)
    assert runs[0].curve[-1]["train_loss"] != runs[2].curve[-1]["train_loss"]


def test_warming_up_changes_nothing(digits):
    cold, warm = Trial(CONFIG, digits, EVALUATION, CPU), Trial(CONFIG, digits, EVALUATION, CPU)
    warm.warm_up()
    assert timeless([cold.train_epoch()]) == timeless([warm.train_epoch()])


def test_training_learns_and_follows_its_schedules(digits):
    trial = train(Trial(CONFIG, digits, EVALUATION, CPU))
    assert [row["batch_size"] for row in trial.curve] == [64, 128, 256]
    assert [row["lr"] for row in trial.curve] == pytest.approx([0.064, 0.128, 0.256])
    assert trial.curve[-1]["clean_accuracy"] > 0.5
    assert [row["n_examples"] for row in trial.curve] == [20, 20, 60]


def test_a_fixed_lr_stays_that_of_the_first_batch_size(digits):
    trial = train(Trial(CONFIG.model_copy(update={"lr_follows_batch": False}), digits, EVALUATION, CPU))
    assert [row["lr"] for row in trial.curve] == pytest.approx([0.064] * 3)


def test_divergence_ends_the_trial_at_the_end_of_its_epoch(digits):
    config = CONFIG.model_copy(update={"lr_batch_ratio": 1.0, "norm": "fixup", "epochs": 20})
    with pytest.raises(Diverged, match="epoch"):
        train(Trial(config, digits, EVALUATION, CPU))


def test_training_does_not_see_validation_or_test(digits):
    poisoned = data.Split(torch.zeros_like(digits.test.images), digits.test.labels)
    changed = type(digits)(**{**vars(digits), "test": poisoned})
    rows = [Trial(CONFIG, dataset, EVALUATION, CPU).train_epoch() for dataset in (digits, changed)]
    assert timeless(rows[:1]) == timeless(rows[1:])
    blind = type(digits)(**{**vars(digits), "validation": poisoned})
    assert Trial(CONFIG, blind, EVALUATION, CPU).train_epoch()["train_loss"] == rows[0]["train_loss"]


def test_test_images_judge_only_the_end_of_a_trial_that_asks_for_them(digits):
    evaluation = EVALUATION.model_copy(update={"split": "test", "examples": 297})
    on_test = train(Trial(CONFIG, digits, evaluation, CPU))
    on_validation = train(Trial(CONFIG, digits, EVALUATION, CPU))
    assert timeless(on_test.curve[:-1]) == timeless(on_validation.curve[:-1])
    assert on_test.curve[-1]["n_examples"] == len(digits.test)


def test_static_training_sees_the_same_crafted_images_in_every_epoch(digits):
    config = CONFIG.model_copy(update={"training": "static", "pgd_steps": 3, "eps": 0.1})
    trial = Trial(config, digits, EVALUATION, CPU)
    before, augmentation = trial.training_images
    trial.train_epoch()
    after, _ = trial.training_images
    clean = data.to_float(digits.train.images)
    assert augmentation == "none" and torch.equal(before.images, after.images)
    assert 0.05 < (before.images - clean).abs().max() <= 0.1 + 1e-6
    assert before.images.min() >= 0 and before.images.max() <= 1
    # Against the untrained network they raise the loss, which the images themselves define.
    untrained = Trial(config, digits, EVALUATION, CPU).model.eval()
    with torch.no_grad():
        losses = [F.cross_entropy(untrained(x), digits.train.labels) for x in (clean, before.images)]
    assert losses[1] > losses[0]


def test_attacking_the_initial_weights_judges_the_same_images_after_every_epoch(digits):
    evaluation = EVALUATION.model_copy(update={"attacked_weights": "initial", "examples": 20})
    trial = train(Trial(CONFIG, digits, evaluation, CPU))
    crafted = trial.attacked[True]
    assert torch.equal(crafted, trial.attacked[False])
    with torch.no_grad():
        right = (trial.model.eval()(crafted).argmax(1) == digits.validation.labels[:20]).float().mean().item()
    assert trial.curve[-1]["adversarial_accuracy"] == pytest.approx(right)


STATIC = CONFIG.model_copy(update={"training": "static", "pgd_steps": 3, "eps": 0.1})


def test_images_judged_against_the_initial_weights_are_crafted_with_the_trainings_step(digits):
    evaluation = EVALUATION.model_copy(update={"attacked_weights": "initial", "examples": 20, "eps": 0.1})
    crafted = []
    for step_size in (1e-9, None):
        trial = Trial(STATIC.model_copy(update={"step_size": step_size}), digits, evaluation, CPU)
        trial._evaluate(last=True)
        crafted.append(trial.attacked[True])
    assert (crafted[0] - crafted[1]).abs().max() > 0.05


def test_the_evaluations_norm_is_not_the_trainings(digits):
    config = CONFIG.model_copy(update={"training": "fgsm", "eps": 0.05, "epochs": 1})
    trials = [
        Trial(
            config.model_copy(update={"attack_norm": trained}),
            digits,
            EvalConfig(attack_norm=judged, eps=0.3, attack_steps=3, examples=100, probes=("fgsm",)),
            CPU,
        )
        for trained in ("linf", "l2")
        for judged in ("linf", "l2")
    ]
    rows = [trial.train_epoch() for trial in trials]
    losses = [row["train_loss"] for row in rows]
    assert losses[0] == losses[1] != losses[2] == losses[3]
    for linf, l2 in (rows[:2], rows[2:]):  # the ball of l-inf contains that of l2
        assert linf["adversarial_accuracy"] < l2["adversarial_accuracy"]
        assert linf["fgsm.accuracy"] == linf["fgsm_accuracy"] < l2["fgsm.accuracy"] == l2["fgsm_accuracy"]
    x, y = to_float(digits.validation.images[:100]), digits.validation.labels[:100]
    x = x.contiguous(memory_format=torch.channels_last)
    for trial, row in zip(trials, rows, strict=True):  # as it is judged on CUDA
        robust = trial.continuous_pgd.robust_mask(x, y, torch.Generator().manual_seed(config.seed))
        assert robust.float().mean().item() == pytest.approx(row["adversarial_accuracy"], abs=0.011)


def test_images_against_the_initial_weights_lie_in_the_ball_of_each_norm(digits):
    initial = {"attack_norm": "l2", "eps": 0.7, "attacked_weights": "initial", "examples": 20, "curve_examples": 20}
    config = CONFIG.model_copy(update={"training": "static", "attack_norm": "l2", "eps": 0.4, "epochs": 1})
    trial = train(Trial(config, digits, EvalConfig(**initial), CPU))
    for crafted, split, eps in [(trial.attacked[True], digits.validation, 0.7), (None, digits.train, 0.4)]:
        images = to_float(split.images)
        crafted = trial.training_images[0].images if crafted is None else crafted
        lengths = (crafted - images[: len(crafted)]).flatten(1).norm(dim=1)
        assert lengths.max() <= eps * (1 + 1e-5) and lengths.mean() > 0.5 * eps


def test_a_checkpoint_written_before_a_field_was_added_loads(digits):
    trial = Trial(CONFIG, digits, EVALUATION, CPU)
    state = trial.state_dict() | {"config": CONFIG.model_dump_json(exclude={"attack_norm"})}
    trial.load_state_dict(state)
    with pytest.raises(ValueError, match="another trial"):
        Trial(CONFIG.model_copy(update={"attack_norm": "l2"}), digits, EVALUATION, CPU).load_state_dict(state)


def test_probes_join_the_last_row_and_change_nothing_else(digits):
    probed = train(Trial(CONFIG, digits, EVALUATION.model_copy(update={"probes": ("fgsm", "noise")}), CPU))
    plain = train(Trial(CONFIG, digits, EVALUATION, CPU))
    found = {name: probed.curve[-1].pop(name) for name in ("fgsm.accuracy", "noise.accuracy")}
    assert timeless(probed.curve) == timeless(plain.curve)
    assert probed.curve[-1]["adversarial_accuracy"] <= found["fgsm.accuracy"] <= found["noise.accuracy"]


def test_fgsm_training_reports_accuracy_under_fgsm_and_warns_of_overfitting(digits):
    trial = Trial(CONFIG.model_copy(update={"training": "fgsm", "eps": 0.1}), digits, EVALUATION, CPU)
    trial.train_epoch()
    assert 0 <= trial.curve[0]["fgsm_accuracy"] <= 1 and "warning" not in trial.curve[0]
    trial.curve[0] |= {"fgsm_accuracy": 0.0, "adversarial_accuracy": 1.0}
    trial._evaluate = lambda last: {"clean_accuracy": 1.0, "adversarial_accuracy": 0.1, "fgsm_accuracy": 0.9}
    trial.train_epoch()
    assert trial.curve[1]["warning"].startswith("catastrophic overfitting in epoch 2: PGD accuracy 0.100")


def test_saved_weights_load_as_the_same_classifier(digits, tmp_path):
    for norm in ("batchnorm", "fixup", "robustnorm", "groupnorm"):
        config = CONFIG.model_copy(update={"norm": norm, "epochs": 1, "batch_size_schedule": ConstantBatch(size=128)})
        trial = train(Trial(config, digits, EVALUATION, CPU))
        trial.save_weights(tmp_path / "model.safetensors")
        model = load_model(tmp_path / "model.safetensors")
        x = data.to_float(digits.validation.images[:16])
        with torch.no_grad():
            torch.testing.assert_close(model(x), trial.model.eval()(x))


def test_a_checkpoint_of_another_configuration_is_refused(digits):
    state = Trial(CONFIG, digits, EVALUATION, CPU).state_dict()
    with pytest.raises(ValueError, match="another trial"):
        Trial(CONFIG.model_copy(update={"seed": 9}), digits, EVALUATION, CPU).load_state_dict(state)


def test_every_number_of_a_row_is_finite(digits):
    trial = Trial(CONFIG, digits, EVALUATION, CPU)
    trial.calibrate({})
    assert all(math.isfinite(value) for value in trial.train_epoch().values())


def test_calibrated_seconds_follow_from_the_seconds_per_step_and_survive_a_restart(digits):
    config = CONFIG.model_copy(
        update={"batch_size_schedule": GeometricBatch(first=64, last=128), "epochs": 2, "norm": "fixup"}
    )
    trial = Trial(config, digits, EVALUATION, CPU)
    assert trial.seconds_ahead is None
    table = {48: 0.4, 64: 0.5, 128: 0.75}  # 48 remain at either size
    assert trial.calibrate(table) == {}
    first, second = (timing.epoch_seconds(table, size, len(digits.train)) for size in (64, 128))
    assert trial.seconds_ahead == pytest.approx(first + second)
    trial.train_epoch()
    assert trial.curve[0]["calibrated_seconds"] == pytest.approx(first)
    again = Trial(config, digits, EVALUATION, CPU)
    again.load_state_dict(trial.state_dict())
    again.calibrate(table)
    assert again.seconds_ahead == pytest.approx(second)
    assert again.train_epoch()["calibrated_seconds"] == pytest.approx(first + second)


def test_an_epoch_without_calibration_leaves_the_sum_unknown(digits):
    trial = Trial(CONFIG, digits, EVALUATION, CPU)
    assert trial.train_epoch()["calibrated_seconds"] is None
    trial.calibrate({})
    assert trial.train_epoch()["calibrated_seconds"] is None


def test_calibrating_times_each_missing_size_and_changes_nothing(digits):
    trial, plain = (Trial(CONFIG, digits, EVALUATION, CPU) for _ in range(2))
    measured = trial.calibrate({128: 0.5})
    assert set(measured) == {48, 64, 256} and min(measured.values()) > 0
    assert trial.seconds_per_step == {128: 0.5, **measured}
    row, expected = trial.train_epoch(), plain.train_epoch()
    assert (row["train_loss"], row["adversarial_accuracy"]) == (
        expected["train_loss"],
        expected["adversarial_accuracy"],
    )


def test_crafting_is_timed_by_the_batch_and_counted_for_all_images(digits, monkeypatch):
    monkeypatch.setattr(timing, "step_seconds", lambda runs: dict.fromkeys(runs, 0.5))
    measured = Trial(STATIC, digits, EVALUATION, CPU).calibrate({})
    assert measured.pop(timing.BEFORE) == 0.5 * len(digits.train) / timing.CRAFTED_AT_ONCE
    assert set(measured.values()) == {0.5}


def test_equal_trainings_have_equal_calibrated_seconds_whatever_else_was_timed(digits):
    config = CONFIG.model_copy(update={"batch_size_schedule": LinearBatch(first=64, last=256)})  # 160 in between
    mine = {48: 0.1, 64: 0.2, 128: 0.3, 256: 0.5}
    trials = [Trial(config, digits, EVALUATION, CPU) for _ in range(2)]
    for trial, known in zip(trials, (mine, mine | {160: 9.0}), strict=True):
        assert trial.calibrate(known) == {}
    assert trials[0].seconds_ahead == trials[1].seconds_ahead


def test_crafting_counts_once_in_measured_and_in_calibrated_seconds(digits):
    trial = Trial(STATIC, digits, EVALUATION, CPU)
    measured = trial.calibrate(dict.fromkeys(timing.grid([64, 128, 256], len(digits.train)), 0.01))
    assert list(measured) == [timing.BEFORE] and measured[timing.BEFORE] > 0
    assert trial.calibrate({**trial.seconds_per_step, timing.BEFORE: 100.0}) == {}
    steps = sum(math.ceil(len(digits.train) / size) for size in (64, 128, 256)) * 0.01
    assert trial.seconds_ahead == pytest.approx(100 + steps)
    trial.trainer.train_epoch = lambda size, lrs: torch.tensor(1.0)
    trial._evaluate = lambda last: {"clean_accuracy": 0.5, "adversarial_accuracy": 0.5}
    trial.crafting_seconds = 1000.0
    train(trial)
    assert trial.calibrated_seconds == pytest.approx(100 + steps) and trial.seconds_ahead == 0
    assert 1000 < trial.train_seconds < 1001


def test_a_finished_trial_that_is_loaded_crafts_nothing(digits):
    state = train(Trial(STATIC, digits, EVALUATION, CPU)).state_dict()
    again = Trial(STATIC, digits, EVALUATION, CPU)
    again.load_state_dict(state)
    assert "training_images" not in vars(again)


def test_free_training_carries_its_perturbation_into_the_next_epoch(digits):
    config = CONFIG.model_copy(update={"training": "free", "eps": 0.1})
    trial = Trial(config, digits, EVALUATION, CPU)
    trial.warm_up()
    (carried,) = trial.trainer.carried
    assert carried.shape == (256, 1, 8, 8) and not carried.any()
    trial.train_epoch()
    met, step = [], trial.trainer.step
    trial.trainer.step = lambda *args: met.append(step.delta.clone()) or step(*args)
    after_one = carried.clone()
    trial.train_epoch()
    assert after_one.any() and torch.equal(met[0], after_one)


def test_what_cannot_be_trained_or_attacked_is_refused_at_once(digits):
    with pytest.raises(InputError, match="batch_size_schedule: 2048 images in a batch given; accepted: at most .*1200"):
        Trial(CONFIG.model_copy(update={"batch_size_schedule": ConstantBatch(size=2048)}), digits, EVALUATION, CPU)
    with pytest.raises(InputError, match="training: 'static' given with norm 'fixup'"):
        Trial(STATIC.model_copy(update={"norm": "fixup"}), digits, EVALUATION, CPU)
    initial = EVALUATION.model_copy(update={"attacked_weights": "initial"})
    with pytest.raises(InputError, match="attacked_weights: 'initial' given with norm 'fixup'"):
        Trial(CONFIG.model_copy(update={"norm": "fixup"}), digits, initial, CPU)


def test_a_running_statistic_that_is_not_finite_ends_the_trial(digits):
    trial = Trial(CONFIG, digits, EVALUATION, CPU)
    trial.trainer.prepare(64)
    next(buffer for name, buffer in trial.model.named_buffers() if "var" in name).fill_(math.inf)
    with pytest.raises(Diverged, match="^a weight or a running statistic that is not finite in epoch 1 of 3$"):
        trial.train_epoch()


def test_the_default_data_is_digits():
    assert DataConfig().name == "digits"


@pytest.mark.parametrize("training,column", [("natural", "clean_accuracy"), ("pgd", "adversarial_accuracy")])
def test_schedules_follow_accuracy_on_the_kind_of_images_trained_on(digits, training, column):
    trial = Trial(CONFIG.model_copy(update={"training": training}), digits, EVALUATION, CPU)
    trial.curve = [{"clean_accuracy": 0.75, "adversarial_accuracy": 0.25}]
    assert trial.accuracies == [trial.curve[0][column]]


def test_the_lr_falls_from_step_to_step(digits):
    update = {"lr_schedule": "linear", "epochs": 1, "batch_size_schedule": ConstantBatch(size=120)}
    row = Trial(CONFIG.model_copy(update=update), digits, EVALUATION, CPU).train_epoch()
    assert row["lr"] == pytest.approx(120e-3 * (1 - 9 / 10))
