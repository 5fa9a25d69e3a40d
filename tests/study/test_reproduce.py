"""Verdicts, claims and configurations of each paper, and one small reproduction through Ray."""

import dataclasses
import io
import json
import math
from typing import get_args

import numpy as np
import optuna
import pandas as pd
import pytest
from optuna.trial import TrialState
from scipy import stats

from study import reproduce, reproduction
from study.papers import accelat, adaptive_batch, lr_batch_ratio, robustnorm
from study.papers.claims import Claim, Measured, by_seed, interval, ratio_interval, slopes, text, verdict
from study.papers.paper import CLEAN, SECONDS, Column, trial_configs
from study.papers.settings import Scale
from trainables.batch_schedules import batch_sizes
from trainables.config import TrialConfig
from trainables.errors import InputError
from trainables.stores import Unreachable

SEEDS = (0, 1, 2)
NOISE = {0: -0.002, 1: 0.0, 2: 0.002}  # small beside every effect below

ABOVE, BELOW, FLAT, ABOUT_FOUR = (0, math.inf), (-math.inf, 0), (-0.01, 0.01), (3, 5)


@pytest.mark.parametrize(
    ("low", "high", "true_between", "expected"),
    [
        (0.01, 0.05, ABOVE, "reproduced"),
        (-0.05, -0.01, ABOVE, "contradicted"),
        (-0.01, 0.05, ABOVE, "inconclusive at this scale"),
        (-0.05, -0.01, BELOW, "reproduced"),
        (0.01, 0.05, BELOW, "contradicted"),
        (-0.05, 0.01, BELOW, "inconclusive at this scale"),
        (-0.009, 0.009, FLAT, "reproduced"),
        (0.011, 0.02, FLAT, "contradicted"),
        (-0.02, -0.011, FLAT, "contradicted"),
        (-0.02, 0.0, FLAT, "inconclusive at this scale"),
        (-0.02, 0.02, FLAT, "inconclusive at this scale"),
        (3.5, 4.5, ABOUT_FOUR, "reproduced"),
        (1.0, 2.0, ABOUT_FOUR, "contradicted"),
        (6.0, 8.0, ABOUT_FOUR, "contradicted"),
        (2.0, 4.0, ABOUT_FOUR, "inconclusive at this scale"),
        (0.0, 0.05, ABOVE, "inconclusive at this scale"),  # the bound itself decides nothing
        (-math.inf, math.inf, ABOVE, "inconclusive at this scale"),
    ],
)
def test_a_verdict_follows_from_where_the_interval_lies(low, high, true_between, expected):
    assert verdict(Measured((low + high) / 2, low, high, 3), true_between) == expected


def test_an_interval_is_students():
    values = [0.11, 0.14, 0.20]
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    measured = interval(values)
    assert (measured.estimate, measured.n) == (pytest.approx(0.15), 3)
    assert measured[1:3] == pytest.approx((expected.low, expected.high))


def test_few_or_equal_values_have_no_bounds():
    assert math.isnan(interval([]).estimate) and interval([]).n == 0
    for values in ([0.3], [0.3, 0.3, 0.3]):
        assert interval(values) == Measured(0.3, -math.inf, math.inf, len(values))
    assert interval([0.3 - 0.2, 0.4 - 0.3, 0.5 - 0.4])[1:3] == (-math.inf, math.inf)  # equal but for rounding


def test_a_ratio_of_two_and_its_inverse_have_inverse_intervals():
    one, other = ratio_interval([2.0, 2.5, 1.8]), ratio_interval([1 / 2.0, 1 / 2.5, 1 / 1.8])
    assert one.estimate == pytest.approx((2.0 * 2.5 * 1.8) ** (1 / 3))
    assert (one.low, one.high) == pytest.approx((1 / other.high, 1 / other.low))


def test_a_seed_that_lacks_a_label_takes_no_part():
    trials = pd.DataFrame({"label": ["a", "b", "a", "b", "a"], "seed": [0, 0, 1, 1, 2], "x": [1.0, 2, 3, np.nan, 5]})
    assert by_seed(trials, "x", ["a", "b"]).to_dict("index") == {0: {"a": 1.0, "b": 2.0}}
    assert by_seed(trials, "missing", ["a"]).empty


def test_a_slope_is_that_of_least_squares():
    batches = {"s": 8, "m": 32, "l": 512}
    values = {"s": 1.0, "m": 2.5, "l": 3.0}
    trials = pd.DataFrame([{"label": label, "seed": 4, "x": value} for label, value in values.items()])
    expected = np.polyfit([3, 5, 9], list(values.values()), 1)[0]
    assert slopes(trials, "x", batches)[4] == pytest.approx(expected)
    expected = np.polyfit([3, 5, 9], np.log2(list(values.values())), 1)[0]
    negative = trials.assign(x=-trials["x"])
    assert slopes(negative, "x", batches, logarithmic=True)[4] == pytest.approx(expected)


def test_numbers_are_read_in_points_and_times():
    assert text(Measured(0.0573, 0.01, 0.1, 3), "points") == "+5.73 [+1.00, +10.00] points"
    assert text(Measured(4.0, 3.5, 4.6, 3), "times") == "4.00 [3.50, 4.60] times"
    assert text(Measured(math.nan, -math.inf, math.inf, 0), "points") == "? [-inf, +inf] points"


# Claims on made-up trials whose truth is known


def settings_of(paper, **given):
    return reproduce.resolve({"paper": paper, "results_dir": "no/such/folder"} | given)


def verdicts(paper, rows, **given):
    """Text of each claim to its verdict; `rows` maps (label, seed) to columns."""
    settings = settings_of(paper, **given)
    frame = pd.DataFrame([{"label": label, "seed": seed, **row} for (label, seed), row in rows.items()])
    module = reproduce.PAPERS[paper]
    frame = module.derive(frame)
    return {claim.text: verdict(claim.measure(frame), claim.true_between) for claim in module.claims(settings)}


def made_up(labels, row):
    """Columns of each (label, seed): those of `row(label)`, plus a little noise that differs from label to label."""
    return {
        (label, seed): {name: value * (1 + NOISE[seed] * (1 + i % 3)) for name, value in row(label).items()}
        for i, label in enumerate(labels)
        for seed in SEEDS
    }


def opposite(said):
    return {"reproduced": "contradicted", "contradicted": "reproduced"}.get(said, said)


ADAPTIVE_LABELS = [f"{norm} {batches}" for norm in adaptive_batch.NORMS for batches in adaptive_batch.SCHEDULES]


def adaptive_row(sign):
    accuracies = {"8": 0.5 + 0.1 * sign, "8→128": 0.5 + 0.05 * sign, "128": 0.5}

    def row(label):
        norm, batches = label.split()
        seconds = {"8": 10.0, "8→128": 4.0, "128": 1.0} if sign > 0 else {"8": 2.0, "8→128": 2.5, "128": 1.0}
        fixup = 0.2 * sign if norm == "Fixup" else 0
        return {"adversarial_accuracy": accuracies[batches] + fixup, "train_seconds": seconds[batches]}

    return row


@pytest.mark.parametrize(("sign", "expected"), [(1, "reproduced"), (-1, "contradicted")])
def test_claims_of_adaptive_batch_follow_the_truth(sign, expected):
    said = verdicts("adaptive-batch", made_up(ADAPTIVE_LABELS, adaptive_row(sign)))
    assert len(said) == 11 and set(said.values()) == {expected}


LR_LABELS = sorted({label for s in lr_batch_ratio.SERIES for m in (0.0, 0.9) for label in lr_batch_ratio.batches(s, m)})


def lr_row(sign):
    """Sign 1: (a) flat, (b) falls, eigenvalues grow, momentum helps (b); sign -1: (a) slopes, the rest turned round."""
    known = {}
    for momentum in (0.0, 0.9):
        for series in "ab":
            for label, size in lr_batch_ratio.batches(series, momentum).items():
                doublings = math.log2(size / lr_batch_ratio.MEETING_BATCH)
                rate = 0.0 if series == "a" and sign > 0 else -0.03 * sign
                helped = 0.1 * sign * (momentum > 0) * (series == "b") * (doublings != 0)
                eigenvalue = 5.0 * 2 ** (sign * 0.5 * doublings)
                known[label] = {"adversarial_accuracy": 0.5 + rate * doublings + helped, "hessian.1": eigenvalue}
    return known.__getitem__


@pytest.mark.parametrize(("sign", "expected"), [(1, "reproduced"), (-1, "contradicted")])
def test_claims_of_lr_batch_ratio_follow_the_truth(sign, expected):
    said = verdicts("lr-batch-ratio", made_up(LR_LABELS, lr_row(sign)))
    assert len(said) == 7 and set(said.values()) == {expected}


def robust_row(sign):
    robustness = {robustnorm.BATCHNORM: 0, robustnorm.BATCHNORM_BATCH: 1, robustnorm.ROBUSTNORM: 2}
    robustness |= {robustnorm.ROBUSTNORM_BATCH: 3, "Fixup": 4, "GroupNorm": 0}

    def row(label):
        accuracy = 0.5 + 0.1 * sign * robustness[label]
        clean = 0.9 - 0.1 * (sign < 0) * (label == robustnorm.ROBUSTNORM)
        return {"adversarial_accuracy": accuracy, "fgsm.accuracy": accuracy, "clean_accuracy": clean}

    return row


@pytest.mark.parametrize(("sign", "expected"), [(1, "reproduced"), (-1, "contradicted")])
def test_claims_of_robustnorm_follow_the_truth(sign, expected):
    said = verdicts("robustnorm", made_up(robustnorm.NORMS, robust_row(sign)))
    assert len(said) == 9 and set(said.values()) == {expected}


def curve(accuracies, seconds_per_epoch=1.0):
    """Epochs judged on validation, and a last one judged on test."""
    return [
        {"epoch": epoch, "train_seconds": epoch * seconds_per_epoch, "adversarial_accuracy": accuracy, "lr": 0.1}
        for epoch, accuracy in enumerate([*accuracies, 0.99], 1)
    ]


def accelat_rows(sign):
    """Reaches 0.4 in epoch 10 (AccelAT) or later (the others), or the other way round; a little unlike by seed."""
    rows = {}
    for label in accelat.SCHEDULES:
        first = (label == "AccelAT") == (sign > 0)
        for seed in SEEDS:
            epoch = 10 + seed if first else 30 - 2 * seed
            accuracies = [0.1] * (epoch - 1) + [0.4] + [0.3] * (39 - epoch)
            final = 0.4 + (0.1 * sign if label == "AccelAT" else 0) + NOISE[seed] * len(label)
            rows[label, seed] = {"curve": curve(accuracies), "adversarial_accuracy": final}
    return rows


@pytest.mark.parametrize(("sign", "expected"), [(1, "reproduced"), (-1, "contradicted")])
def test_claims_of_accelat_follow_the_truth(sign, expected):
    said = verdicts("accelat", accelat_rows(sign))
    assert len(said) == 11 and set(said.values()) == {expected}


@pytest.mark.parametrize("paper", sorted(reproduce.PAPERS))
def test_without_trials_every_claim_is_inconclusive(paper):
    settings, module = settings_of(paper), reproduce.PAPERS[paper]
    empty = module.derive(pd.DataFrame(columns=["label", "seed", "curve", "adversarial_accuracy", "train_seconds"]))
    for claim in module.claims(settings):
        measured = claim.measure(empty)
        assert measured.n == 0 and verdict(measured, claim.true_between) == "inconclusive at this scale"


@pytest.mark.parametrize(
    ("target", "accuracies", "epoch"),
    [
        (0.4, [0.1, 0.3, 0.4, 0.5], 3),
        (0.4, [0.4, 0.1], 1),
        (0.45, [0.1, 0.5, 0.2], 2),
        (0.6, [0.1, 0.5], None),
        (0.1, [], None),
    ],
)
def test_epochs_to_a_target_end_at_the_first_that_reaches_it(target, accuracies, epoch):
    assert accelat.epochs_to(target, accuracies) == epoch


def test_the_target_is_the_constant_lrs_best_on_validation_in_the_other_seeds():
    trials = pd.DataFrame(
        [
            {"label": "constant", "seed": 0, "curve": curve([0.1, 0.6, 0.2], 2.0)},
            {"label": "constant", "seed": 1, "curve": curve([0.1, 0.3, 0.1])},
            {"label": "constant", "seed": 2, "curve": curve([0.5, 0.1, 0.5])},
            {"label": "AccelAT", "seed": 0, "curve": curve([0.4, 0.1, 0.1], 3.0)},
            {"label": "linear", "seed": 0, "curve": curve([0.1, 0.2, 0.39], 1.0)},
            {"label": "AccelAT", "seed": 3, "curve": curve([0.4, 0.46, 0.47])},  # its constant LR has not finished
        ]
    )
    assert accelat.targets(trials) == pytest.approx({0: 0.4, 1: 0.55, 2: 0.45, 3: 1.4 / 3})
    derived = accelat.time_to_target(trials)
    assert derived["epochs_to_target"].tolist() == [2, 4, 1, 1, 4, 3]
    assert derived["seconds_to_target"].tolist() == [4.0, 4.0, 1.0, 3.0, 4.0, 3.0]
    assert derived["reached"].tolist() == [1, 0, 1, 1, 0, 1]


def test_the_first_constant_lr_to_finish_is_its_own_target_and_without_any_there_is_none():
    first = pd.DataFrame([{"label": "constant", "seed": 0, "curve": curve([0.1, 0.5])}])
    assert accelat.targets(first) == {0: 0.5}
    unfinished = pd.DataFrame([{"label": "AccelAT", "seed": 0, "curve": curve([0.1, 0.5])}])
    assert accelat.time_to_target(unfinished)["epochs_to_target"].isna().all()


def test_schedules_that_are_equal_are_seldom_told_apart():
    epochs, n_seeds, n_studies = np.arange(1, 30), 12, 150
    generator = np.random.default_rng(0)
    found = []
    for _ in range(n_studies):
        rows = []
        for label in ("constant", "AccelAT"):
            for seed in range(n_seeds):
                accuracies = 0.6 * (1 - np.exp(-epochs / 6)) + generator.normal(0, 0.02, len(epochs))
                rows.append({"label": label, "seed": seed, "curve": curve(accuracies)})
        measured = accelat.sooner("epochs_to_target", "constant")(accelat.time_to_target(pd.DataFrame(rows)))
        found.append(verdict(measured, (1, math.inf)))
    # 2.5 % each by the interval's own error; a seed's own best as its target makes 20 % of them "contradicted"
    assert found.count("contradicted") <= 0.06 * n_studies and found.count("reproduced") <= 0.06 * n_studies


def test_a_seed_in_which_neither_schedule_reaches_the_target_says_nothing():
    trials = pd.DataFrame(
        [
            {"label": label, "seed": seed, "curve": curve([0.1, 0.1, accuracy], seconds)}
            for seed in SEEDS
            for label, accuracy, seconds in [("constant", 0.5, 1.0), ("linear", 0.4, 2.0 + seed), ("AccelAT", 0.4, 1.0)]
        ]
    )
    derived = accelat.time_to_target(trials)
    assert accelat.sooner("seconds_to_target", "linear")(derived).n == 0
    assert accelat.sooner("seconds_to_target", "constant")(derived).n == 3


@pytest.mark.parametrize("first", ["linear", "AccelAT"])
def test_who_alone_reaches_the_target_is_no_slower_though_its_epochs_take_twice_as_long(first):
    reaching, missing = [0.1] * 28 + [0.5], [0.1] * 28 + [0.4]
    rows = [{"label": "constant", "seed": 9, "curve": curve(reaching)}]
    for seed in SEEDS:
        for label in ("linear", "AccelAT"):
            of_label = curve(reaching, 2.0 + 0.1 * seed) if label == first else curve(missing)
            rows.append({"label": label, "seed": seed, "curve": of_label})
    measured = accelat.sooner("seconds_to_target", "linear")(accelat.time_to_target(pd.DataFrame(rows)))
    assert measured == Measured(1, 0, math.inf, 3)


# Configurations


@pytest.mark.parametrize("scale", get_args(Scale))
@pytest.mark.parametrize("paper", sorted(reproduce.PAPERS))
def test_configurations_are_valid_and_unique(paper, scale):
    for protocol in reproduce.PAPERS[paper].protocols:
        settings = settings_of(paper, scale=scale, protocol=protocol)
        configs = trial_configs(reproduce.PAPERS[paper], settings)
        assert settings.trials == len(configs)
        assert {config.seed for _, config in configs} == {0, 1, 2}
        assert len({config.model_dump_json() for _, config in configs}) == len(configs)
        assert len({(label, config.seed) for label, config in configs}) == len(configs)
        assert all(config.depth == settings.depth and config.epochs == settings.epochs for _, config in configs)
        assert settings.evaluation.split == "test"
        if scale != "minutes":
            assert (settings.dataset, 255 * settings.eps < 8.01) == ("cifar10", True)


def test_the_growing_schedule_has_equal_stages_at_every_scale():
    for scale in get_args(Scale):
        settings = settings_of("adaptive-batch", scale=scale)
        config = TrialConfig(**adaptive_batch.configurations(settings)["Fixup 8→128"])
        sizes = batch_sizes(config.batch_size_schedule, config.epochs)
        assert {size: sizes.count(size) for size in sizes} == dict.fromkeys((8, 16, 32, 64, 128), config.epochs // 5)


def test_the_two_series_keep_the_ratio_and_the_lr():
    configurations = lr_batch_ratio.configurations(settings_of("lr-batch-ratio"))
    assert len(configurations) == 26  # 28, of which two are in both series
    for momentum in lr_batch_ratio.MOMENTA:
        for label in lr_batch_ratio.batches("a", momentum):
            assert configurations[label]["lr_batch_ratio"] == pytest.approx(0.1 / 128)
            assert configurations[label]["momentum"] == momentum
        for label, size in lr_batch_ratio.batches("b", momentum).items():
            assert configurations[label]["lr_batch_ratio"] * size == pytest.approx(0.1)


def test_the_published_protocol_trains_on_and_judges_images_crafted_once():
    settings = settings_of("accelat", protocol="published", scale="paper")
    assert settings.evaluation.attacked_weights == "initial" and settings.eps == 0.01
    configs = [TrialConfig(**fields) for fields in accelat.configurations(settings).values()]
    assert {(config.training, config.pgd_steps) for config in configs} == {("static", 40)}
    assert settings_of("accelat").evaluation.attacked_weights == "current"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["adaptive-bach"], "paper: 'adaptive-bach' (did you mean 'adaptive-batch'?)"),
        ([], "Missing argument 'PAPER'"),
        (["accelat", "--scale", "minuts"], "scale: 'minuts' (did you mean 'minutes'?)"),
        (["accelat", "--seeds", "2"], "seeds: 2 given; accepted: greater than or equal to 3"),
        (["accelat", "--seeds", "few"], "'few' is not a valid integer"),
        (["accelat", "--protocol", "publisched"], "protocol: 'publisched' (did you mean 'published'?)"),
        (["robustnorm", "--protocol", "published"], "protocol: 'published' given for robustnorm; accepted: whitebox"),
        (["robustnorm", "--dataset", "digts"], "dataset: 'digts' (did you mean 'digits'?)"),
        (["robustnorm", "--depth", "9"], "depth: 9 given; accepted: 6n+2"),
        (["accelat", "--depth", "1208"], "depth: 1208 given; accepted: less than or equal to 1202"),
        (["accelat", "--protocol", "published", "--eps", "0"], "eps: 0.0 given with protocol 'published'"),
        (["robustnorm", "--epochs", "0"], "epochs: 0 given"),
        (["robustnorm", "--eps", "8/0"], "'8/0' is not a number"),
        (["robustnorm", "--epoch-timeout", "0"], "epoch_timeout: 0.0 given; accepted: greater than 0"),
        (["robustnorm", "--storage-path", "/proc/x"], "storage_path: '/proc/x' given"),
        (["robustnorm", "--data-dir", "no/such/folder", "--dataset", "imagefolder"], "no/such/folder"),
    ],
)
def test_a_mistake_gets_one_line_and_status_2_and_writes_nothing(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert reproduce.main(arguments) == 2
    out, err = capsys.readouterr()
    assert err.startswith("error: ") and err.count("\n") == 1 and message in err and out == ""
    assert list(tmp_path.iterdir()) == []


# A real one, small


def few(paper, labels):
    """The paper with those configurations only."""
    every = paper.configurations
    return dataclasses.replace(
        paper, configurations=lambda settings: {label: every(settings)[label] for label in labels}
    )


@pytest.mark.cluster
@pytest.mark.slow
def test_a_reproduction_runs_once_and_writes_its_tables(tmp_path, monkeypatch, capsys):
    labels = [robustnorm.BATCHNORM, robustnorm.BATCHNORM_BATCH]
    monkeypatch.setitem(reproduce.PAPERS, "robustnorm", few(robustnorm.PAPER, labels))
    command = ["robustnorm", "--depth", "8", "--epochs", "1", "--results-dir", str(tmp_path)]
    assert reproduce.main(command) == 0
    first = capsys.readouterr().out
    folder = tmp_path / "reproduce-robustnorm"
    study = optuna.load_study(storage=f"sqlite:///{folder / 'study.db'}", study_name="reproduce-robustnorm")
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 6
    assert [trial.user_attrs["label"] for trial in study.trials] == labels * 3
    assert [trial.user_attrs["config"]["seed"] for trial in study.trials] == [0, 0, 1, 1, 2, 2]
    assert {trial.user_attrs["n_examples"] for trial in study.trials} == {297}

    table = pd.read_csv(folder / "table.csv")
    claims = table[table["kind"] == "claim"].set_index("name")
    name = "PGD: BatchNorm is more robust with the inference batch's statistics than with the population's"
    accuracy = {(t.user_attrs["label"], t.user_attrs["config"]["seed"]): t.values[0] for t in study.trials}
    pairs = [[accuracy[label, seed] for seed in SEEDS] for label in reversed(labels)]
    expected = stats.ttest_rel(*pairs).confidence_interval(0.95)
    assert claims.loc[name, ["low", "high"]].tolist() == pytest.approx([expected.low, expected.high])
    assert claims.loc[name, "n"] == 3
    changed = table[table["quantity"] == "batch_dependence.changed.1"].set_index("name")["estimate"]
    assert changed[robustnorm.BATCHNORM] == 0 < changed[robustnorm.BATCHNORM_BATCH]

    markdown = (folder / "table.md").read_text()
    assert "eps 0.1 (25.5/255) in pixel units" in markdown and "6 of 6 trials complete" in markdown
    assert "ResNet-8, 1 epochs" in markdown and claims.loc[name, "verdict"] in markdown
    assert (folder / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((folder / "study.json").read_text())["settings"]["paper"] == "robustnorm"
    assert "All 6 trials have ended" in first and "verdict" in first and "\x1b" not in first

    before = (folder / "table.csv").read_bytes()
    assert reproduce.main(["robustnorm", "--results-dir", str(tmp_path)]) == 0
    assert len(study.get_trials()) == 6 and (folder / "table.csv").read_bytes() == before

    assert reproduce.main([*command[:-3], "2", *command[-2:]]) == 2
    assert "epochs 2 (the study has 1)" in capsys.readouterr().err


def test_the_table_says_what_its_intervals_leave_out():
    settings = settings_of("robustnorm")
    trials = pd.DataFrame(columns=["label", "seed"])
    written = reproduction.markdown(robustnorm.PAPER, settings, [], [], trials, [])
    assert "what others would change is in no interval" in written and "of twenty such intervals one" in written


def partial_study(settings, n_trials, seconds=3.0):
    """With that many trials complete, an epoch in 1 measured second or 10 calibrated ones; `seconds` in all."""
    from study.reproduction import prepare

    settings.folder.mkdir(parents=True)
    study = prepare(settings, trial_configs(accelat.PAPER, settings))
    for _ in range(n_trials):
        trial = study.ask()
        attrs = {"clean_accuracy": 0.9, "n_examples": 297, "measured_seconds": 3.0, "reason": "finished"}
        rows = [row | {"calibrated_seconds": 10 * row["train_seconds"]} for row in curve([0.1, 0.3])]
        for name, value in (attrs | {"curve": rows}).items():
            trial.set_user_attr(name, value)
        study.tell(trial, [0.4, seconds])
    return study


def told(study, settings):
    """What is printed as the results are written."""
    from rich.console import Console

    from study.reproduction import finish

    out = io.StringIO()
    finish(accelat.PAPER, study, settings, Console(file=out, width=120, markup=False), "interrupted")
    return out.getvalue()


def test_a_partial_reproduction_is_told_with_the_seeds_it_has(tmp_path):
    from study.reproduction import prepare

    settings = settings_of("accelat", results_dir=str(tmp_path))
    study = partial_study(settings, len(accelat.SCHEDULES) + 1)  # the first seed and one more
    configs = trial_configs(accelat.PAPER, settings)
    assert len(prepare(settings, configs).trials) == len(configs)  # enqueued once
    said = told(study, settings)
    assert "Stopped (interrupted) after 7 of 18 trials" in said and "7 of 18 trials complete" in said
    assert "[0.00, inf]" in said and "\\" not in said
    table = pd.read_csv(settings.folder / "table.csv")
    assert set(table.loc[table["kind"] == "claim", "n"]) == {1}
    assert set(table.loc[table["kind"] == "claim", "verdict"]) == {"inconclusive at this scale"}


def test_tables_are_written_where_the_weights_cannot_be_fetched(tmp_path, monkeypatch):
    from study import reproduction

    def unreachable(*args):
        raise Unreachable("s3://bucket: no answer")

    monkeypatch.setattr(reproduction, "sync_models", unreachable)
    settings = settings_of("accelat", results_dir=str(tmp_path))
    assert "stay where they are: s3://bucket" in told(partial_study(settings, 1), settings)
    assert (settings.folder / "table.csv").exists()


@pytest.mark.parametrize(("objective", "total", "target"), [("measured", 3.0, 2.0), ("calibrated", 30.0, 20.0)])
def test_all_seconds_are_of_the_kind_that_the_study_counts(objective, total, target, tmp_path):
    settings = settings_of("accelat", results_dir=str(tmp_path))
    study = partial_study(settings, len(accelat.SCHEDULES), total)
    study.set_user_attr("objective", objective)
    assert f"seconds are {objective} training seconds" in " ".join(told(study, settings).split())
    table = pd.read_csv(settings.folder / "table.csv").set_index(["name", "quantity"])["estimate"]
    assert (table["AccelAT", "train_seconds"], table["AccelAT", "seconds_to_target"]) == (total, target)


def test_weights_come_from_the_storage_path_that_a_cluster_needs(tmp_path):
    settings = settings_of("accelat", results_dir=str(tmp_path / "results"), storage_path=str(tmp_path / "shared"))
    study = partial_study(settings, 1)
    checkpoint = tmp_path / "shared" / settings.name / "0000"
    checkpoint.mkdir(parents=True)
    (checkpoint / "weights.safetensors").write_bytes(b"weights")
    told(study, settings)
    assert (settings.folder / "models" / "0000.safetensors").read_bytes() == b"weights" and not checkpoint.exists()


def test_more_seeds_are_added_and_other_settings_refused(tmp_path):
    from study.reproduction import prepare

    given = {"results_dir": str(tmp_path)}
    settings = settings_of("robustnorm", **given)
    settings.folder.mkdir(parents=True)
    prepare(settings, trial_configs(robustnorm.PAPER, settings))
    more = settings_of("robustnorm", seeds=4, **given)
    study = prepare(more, trial_configs(robustnorm.PAPER, more))
    assert (settings.trials, more.trials, len(study.trials)) == (18, 24, 24)
    assert settings_of("robustnorm", **given).seeds == 4
    with pytest.raises(InputError, match="seeds: 3 given; accepted: at least 4"):
        settings_of("robustnorm", seeds=3, **given)
    with pytest.raises(InputError, match=r"scale 'hours' \(the study has 'minutes'\)"):
        settings_of("robustnorm", scale="hours", **given)


@pytest.mark.parametrize(
    ("column", "measured", "shown"),
    [
        (CLEAN, Measured(0.985, 0.966, 1.005, 3), "98.5 [96.6, 100.0]"),
        (SECONDS, Measured(30.4, -19.7, 80.4, 3), "30.4 [0.0, 80.4]"),
        (Column("eigenvalue", "hessian.1", least=-math.inf), Measured(0.5, -1.0, 2.0, 3), "0.50 [-1.00, 2.00]"),
        (Column("reached it", "reached", counts=True), Measured(1 / 3, -1.1, 1.77, 3), "1 of 3"),
    ],
)
def test_intervals_end_where_a_quantity_does(column, measured, shown):
    assert reproduction.cell(column, measured, short=False) == shown


def test_clean_accuracy_of_the_table_is_not_the_adversarial_one(tmp_path):
    settings = settings_of("accelat", results_dir=str(tmp_path))
    told(partial_study(settings, len(accelat.SCHEDULES)), settings)
    table = pd.read_csv(settings.folder / "table.csv").set_index(["name", "quantity"])["estimate"]
    assert (table["AccelAT", "clean_accuracy"], table["AccelAT", "adversarial_accuracy"]) == (0.9, 0.4)


def test_a_claim_is_judged_by_the_bounds_it_gives():
    claim = Claim("A above B", "", "points", (0.0, math.inf), lambda trials: Measured(0.2, 0.1, 0.3, 3))
    assert [said for _, _, said in reproduction.judged([claim], pd.DataFrame())] == ["reproduced"]
