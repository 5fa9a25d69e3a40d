"""Members, seeds, gates and tables of a confirmation on made-up trainings, and one small one through Ray."""

from functools import partial
from pathlib import Path

import numpy as np
import optuna
import pandas as pd
import pytest
from optuna.trial import TrialState, create_trial
from rich.console import Console
from scipy import stats

from study import confirm, confirmation, gates, members, pareto, storage
from study.front import probability_on_front
from study.lock import driver_lock
from study.results import wilson
from study.settings import StudySettings
from tests.study.confirmations import HONEST, SETTINGS, add, another_version, no_front, search, trained
from trainables.errors import InputError
from trainables.stores import Unreachable

# Who is confirmed


def test_members_are_the_front_and_published_configurations_fastest_first(tmp_path):
    chosen = members.default_members(search(tmp_path).trials)
    assert [(member.number, member.name) for member in chosen] == [
        (2, "batchnorm 32"),
        (1, "batchnorm 128"),
        (0, "BatchNorm 64"),
    ]


def test_configurations_that_differ_by_their_seed_alone_are_trained_once(tmp_path):
    study = search(tmp_path)
    add(study, 0.6, 30.0, batch=32)  # on the front as well; trial 2 stands for it
    assert [member.number for member in members.default_members(study.trials)] == [2, 1, 0]

    assert [member.number for member in members.members_numbered(study.trials, [4, 1, 2, 1])] == [4, 1]


@pytest.mark.parametrize("search_seed", [0, 7, 2**31 - 1_000_001])
def test_seeds_are_ones_that_no_trial_of_the_search_can_have(search_seed):
    fresh = members.fresh_seeds(search_seed, 1000)
    assert len(set(fresh)) == 1000
    assert all(0 <= seed < 2**31 and not search_seed <= seed < search_seed + 1_000_000 for seed in fresh)


def test_a_confirmation_is_judged_on_test_and_a_search_is_not(tmp_path):
    search(tmp_path)
    settings = confirm.resolve(storage.named("mine", str(tmp_path), None), {"results_dir": str(tmp_path)})
    assert settings.evaluation.split == "test"
    assert StudySettings(name="mine").evaluation.split == "validation"
    assert settings.folder == tmp_path / "mine" / "confirm"
    longest = storage.named(search(tmp_path, 100 * "x").study_name, str(tmp_path), None)
    assert confirm.resolve(longest, {"results_dir": str(tmp_path)}).name == 100 * "x" + "-confirm"
    assert (settings.eps, settings.attack_steps, settings.depth) == (0.1, 2, 8)
    few = settings.model_copy(update={"eval_examples": 40, "attack_examples": 20}).evaluation
    assert (few.examples, few.strong_examples, few.curve_examples) == (40, 20, 15)  # 60 // 4 of the search's
    assert {"strong", "batch_dependence"} <= set(few.probes) and few.attack_steps == 2
    assert settings.alone


def test_a_confirmation_with_other_settings_says_what_can_be_done(tmp_path):
    searched, given = search(tmp_path), {"results_dir": str(tmp_path)}
    settings = confirm.resolve(searched, given | {"attack_examples": 4})
    settings.folder.mkdir()
    confirmation.prepare(settings, [])
    with pytest.raises(
        InputError, match=r"attack_examples 6 \(the study has 4\); accepted: the same settings; for others"
    ) as error:
        confirm.resolve(searched, given | {"attack_examples": 6})
    assert str(error.value).endswith(f"move {settings.folder} elsewhere first")
    settings.folder.rename(tmp_path / "elsewhere")
    assert confirm.resolve(searched, given | {"attack_examples": 6}).attack_examples == 6


def test_a_confirmation_attacks_in_the_norm_of_its_search(tmp_path):
    searched = search(tmp_path)
    assert confirm.resolve(searched, {"results_dir": str(tmp_path)}).evaluation.attack_norm == "linf"
    searched.set_user_attr("settings", searched.user_attrs["settings"] | {"attack_norm": "l2"})
    assert confirm.resolve(searched, {"results_dir": str(tmp_path)}).evaluation.attack_norm == "l2"


# Gates


@pytest.mark.parametrize(
    ("spoilt", "failed", "figure"),
    [
        ({}, [], None),
        ({"strong.autoattack": 0.40}, ["autoattack"], 0.1),
        ({"strong.square_alone": 0.1}, ["square"], 0.1),
        ({"strong.eps.0.2": 0.6}, ["eps_falls"], 0.1),
        ({"strong.eps.0.2": 0.24, "strong.eps.0.5": 0.25}, ["eps_large"], 0.11),
        ({"strong.eps.0.2": 0.16, "strong.eps.0.5": 0.17}, [], None),  # hardly more than there are of one class
        ({"strong.converged": 0.4}, ["more_steps"], 0.1),
        ({"batch_dependence.changed.any": 64.0}, ["batch"], 0.25),
        ({"overfitted": True}, ["overfitting"], 1.0),
        ({"strong.autoattack": 0.45, "strong.converged": 0.48}, [], None),  # just as much as is allowed
    ],
)
def test_each_gate_fails_on_what_it_watches_alone(spoilt, failed, figure):
    judged = gates.judge([HONEST | spoilt] * 2, gates.Attack(0.1, 10))
    assert [gate.gate for gate in judged] == [gate.name for gate in gates.GATES]
    assert [gate.gate for gate in judged if not gate.passed] == failed
    for gate, made in zip(judged, gates.GATES, strict=True):
        assert gate.text.endswith(made.failure) is not gate.passed
        if gate.gate in failed:
            assert gate.figure == pytest.approx(figure)


@pytest.mark.parametrize(
    ("gate", "spoilt", "chance"),
    [
        ("square", {"strong.square_alone": 0.04}, True),  # 2 of 50 images; 1 would be 2 %
        ("square", {"strong.square_alone": 0.1}, False),
        ("eps_falls", {"strong.eps.0.2": 0.54}, True),
        ("eps_falls", {"strong.eps.0.2": 0.60}, False),
        ("eps_large", {"strong.eps.0.5": 0.2}, False),  # what one image of twenty is, is allowed already
        ("more_steps", {"strong.converged": 0.46}, False),  # takes no figure away
    ],
)
def test_an_image_or_two_do_not_make_masked_gradients(gate, spoilt, chance):
    (judged,) = [one for one in gates.judge([HONEST | spoilt], gates.Attack(0.1, 10)) if one.gate == gate]
    assert judged.figure > judged.threshold and judged.passed is chance
    assert ("may be chance" in judged.text) is chance


def test_more_images_make_the_same_share_certain():
    found = HONEST | {"strong.square_alone": 0.04, "strong.n": 1000.0}
    (judged,) = [one for one in gates.judge([found], gates.Attack(0.1, 10)) if one.gate == "square"]
    assert not judged.passed


def test_more_seeds_do_not_count_the_same_images_again():
    found = [HONEST | {"strong.square_alone": 0.04}] * 20
    (judged,) = [one for one in gates.judge(found, gates.Attack(0.1, 10)) if one.gate == "square"]
    assert judged.passed and "may be chance" in judged.text


def test_gates_pool_the_seeds():
    one_bad = [HONEST, HONEST, HONEST | {"strong.autoattack": 0.38, "overfitted": True}]
    judged = {gate.gate: gate for gate in gates.judge(one_bad, gates.Attack(0.1, 10))}
    assert judged["autoattack"].figure == pytest.approx((0.03 + 0.03 + 0.12) / 3) and not judged["autoattack"].passed
    assert judged["overfitting"].figure == pytest.approx(1 / 3) and "1 of 3 trainings" in judged["overfitting"].text


@pytest.mark.parametrize(
    ("n_seeds", "n_images", "of_seeds", "of_images"), [(5, 50, 0.2, 3), (5, 300, 0.5, 1), (2, 50, 0.3, 2)]
)
def test_the_interval_of_an_accuracy_covers_other_seeds_and_other_images(n_seeds, n_images, of_seeds, of_images):
    rng, covered = np.random.default_rng(0), []
    true = stats.norm.cdf(0.5 / np.sqrt(1 + of_seeds**2 + of_images**2))  # of all seeds and images there may be
    for _ in range(400):
        seeds = rng.normal(0, of_seeds, (n_seeds, 1))
        right = 0.5 + seeds + rng.normal(0, of_images, n_images) + rng.normal(size=(n_seeds, n_images)) > 0
        low, high = confirmation.accuracy_interval(right.mean(1).tolist(), n_images)
        covered.append(low <= true <= high)
    assert np.mean(covered) > 0.93


def test_of_one_seed_the_interval_is_that_of_the_images():
    assert confirmation.accuracy_interval([0.4], 50) == pytest.approx(wilson(0.4, 50))
    assert confirmation.accuracy_interval([1.0, 1.0], 50) == pytest.approx(wilson(1.0, 50))


def test_distances_over_seeds_and_over_images_are_squared_and_added():
    accuracies, n = [0.4, 0.45, 0.6], 100
    bounds, (least, most) = stats.ttest_1samp(accuracies, 0).confidence_interval(0.95), wilson(0.48, n)
    mean = np.mean(accuracies)
    low, high = confirmation.accuracy_interval(accuracies, n)
    assert mean - low == pytest.approx(np.hypot(mean - bounds.low, 0.48 - least))
    assert high - mean == pytest.approx(np.hypot(bounds.high - mean, most - 0.48))


def test_an_interval_is_by_the_images_of_its_own_accuracy():
    probes = {"strong.n": 20.0, "strong.autoattack": 0.5}
    run = create_trial(values=[0.5, 1.0], user_attrs={"clean_accuracy": 0.5, "n_examples": 200, "probes": probes})
    for name, n in [("clean", 200), ("adversarial", 200), ("autoattack", 20)]:
        found = confirmation.spread(name, [run])
        assert (found[f"{name}_low"], found[f"{name}_high"]) == pytest.approx(wilson(0.5, n))


def test_what_is_printed_reaches_as_far_as_the_interval():
    row = {"seconds_mean": 5.0, "seconds_low": 0.0, "seconds_high": 14.0}
    assert confirmation.cell(row, "seconds", 1) == "5.0 ± 9.0"
    row = {"clean_mean": 0.1, "clean_low": 0.0, "clean_high": 0.418}
    assert confirmation.cell(row, "clean", 3) == "0.100 ± 0.318"


def test_failing_by_design_is_explained():
    (gate,) = [
        gate
        for gate in gates.judge([HONEST | {"batch_dependence.changed.any": 100.0}], gates.Attack(0.1, 10))
        if gate.gate == "batch"
    ]
    assert "statistics of the inference batch" in gate.text


# Tables


def test_the_table_has_means_deviations_and_intervals_over_seeds(made):
    searched, study, settings, masks = made
    judged = confirmation.judge(study.trials, settings)
    table = confirmation.confirmed_frame(study.trials, searched.trials, judged).set_index("number")
    assert list(table.index) == [2, 1]  # fastest first
    assert table.loc[1, ["n_seeds", "n_failed", "n_examples", "n_attack_examples"]].tolist() == [2, 0, 9, 4]
    assert table.loc[2, ["n_seeds", "n_failed"]].tolist() == [1, 1]
    accuracies = [np.mean(masks[1, 0]), np.mean(masks[1, 1])]
    bounds = stats.ttest_1samp([12.0, 14.0], 0).confidence_interval(0.95)
    assert table.loc[1, "adversarial_mean"] == pytest.approx(np.mean(accuracies))
    assert table.loc[1, "adversarial_std"] == pytest.approx(np.std(accuracies, ddof=1))
    assert table.loc[1, "adversarial_low"] == 0 and table.loc[1, "adversarial_high"] == 1  # of two seeds: anything
    assert table.loc[1, "seconds_mean"] == 13.0 and table.loc[1, "seconds_high"] == pytest.approx(bounds.high)
    assert table.loc[2, ["seconds_std", "seconds_low", "seconds_high"]].isna().all()
    assert table.loc[1, ["searched_adversarial", "searched_seconds"]].tolist() == [0.5, 10.0]
    assert table["gates_failed"].to_dict() == {1: "", 2: "overfitting"}
    assert table["role"].to_dict() == {1: "front", 2: "front"}
    assert table.loc[1, ["autoattack_mean", "autoattack_pgd", "clean_mean"]].tolist() == [0.47, 0.5, 0.9]


def test_the_probability_is_that_of_the_trainings_own_masks(made):
    searched, study, settings, masks = made
    table = confirmation.confirmed_frame(study.trials, searched.trials, {}).set_index("number")
    robust = [[masks[1, 0], masks[1, 1]], [masks[2, 0]]]
    expected = probability_on_front(robust, [[12.0, 14.0], [6.0]])
    assert table.loc[[1, 2], "front_probability"].tolist() == pytest.approx(expected.tolist())


def test_a_member_that_only_failed_has_a_row_without_figures(tmp_path):
    searched = search(tmp_path)
    settings = confirm.resolve(searched, {"results_dir": str(tmp_path), "seeds": 1})
    settings.folder.mkdir()
    study = confirmation.prepare(settings, members.members_numbered(searched.trials, [1]))
    study.tell(study.ask(), state=TrialState.FAIL)
    table = confirmation.confirmed_frame(study.trials, searched.trials, confirmation.judge(study.trials, settings))
    assert table.loc[0, ["n_seeds", "n_failed"]].tolist() == [0, 1] and pd.isna(table.loc[0, "seconds_mean"])
    assert confirmation.gates_frame(study.trials, table, {}).empty
    assert confirmation.printed(table).row_count == 1


def test_a_training_that_runs_has_not_failed(made):
    searched, study, settings, _ = made
    more = confirm.resolve(searched, {"results_dir": settings.results_dir, "seeds": 3})
    running = confirmation.prepare(more, members.members_numbered(searched.trials, [1]))
    running.ask()
    table = confirmation.confirmed_frame(running.trials, searched.trials, {}).set_index("number")
    assert table.loc[1, ["n_seeds", "n_failed"]].tolist() == [2, 0]


def test_it_is_said_who_was_on_the_front_and_who_was_published(tmp_path):
    searched = search(tmp_path)
    add(searched, 0.2, 3.0, "Fixup 8", batch=8)
    add(searched, 0.1, 50.0, batch=16)
    roles = [members.role(trial, {2, 1, 4}) for trial in searched.trials if trial.number != 3]
    assert roles == ["published", "front", "front", "front, published", "other"]
    settings = confirm.resolve(searched, {"results_dir": str(tmp_path), "seeds": 1})
    settings.folder.mkdir()
    study = confirmation.prepare(settings, members.members_numbered(searched.trials, [0, 1, 4, 5]))
    table = confirmation.confirmed_frame(study.trials, searched.trials, {}).set_index("number")
    assert table["role"].to_dict() == {0: "published", 1: "front", 4: "front, published", 5: "other"}


def test_it_is_said_how_far_off_the_search_was(made):
    searched, study, settings, _ = made
    searched.set_user_attr("objective", "calibrated")
    chosen = members.members_numbered(searched.trials, [1, 2, 0])
    failing = confirmation.prepare(settings, chosen)
    for _ in range(2):
        failing.tell(failing.ask(), state=TrialState.FAIL)
    table = confirmation.confirmed_frame(failing.trials, searched.trials, {})
    said = "\n".join(confirmation.notes(table, settings, searched, searched.trials))
    assert "#0 BatchNorm 64: 2 of 2 trainings failed.\n" in said
    assert "9 test images" in said and "the first 4 of them" in said and "one training at a time" in said
    # 0.5 and 0.3 against 5/9 and 3/9; 10 and 5 s against 13 and 6 s
    assert "said 4.4 points of adversarial accuracy less on average" in said
    assert "trainings took 1.25 times the search's calibrated seconds" in said
    several = confirmation.notes(table, settings.model_copy(update={"concurrent": 3}), searched, searched.trials)
    assert "up to 3 trainings at a time" in "\n".join(several)


def test_what_is_printed_stands_under_its_own_heading(made):
    searched, study, settings, _ = made
    judged = confirmation.judge(study.trials, settings)
    table = confirmation.confirmed_frame(study.trials, searched.trials, judged)
    cells = [list(column.cells) for column in confirmation.printed(table).columns]
    assert cells[1] == ["1 of 2", "2"] and cells[4] == ["0.470 | 0.500"] * 2 and cells[5] == ["0.900"] * 2
    assert cells[7] == ["1 failed", "passed"]
    assert [line.split(":")[0] for line in confirmation.gate_lines(table, judged)] == [
        "Gates that failed",
        "  overfitting, #2 batchnorm 32",
    ]


def test_no_front_and_no_weights_that_were_chosen_on_test_are_left(made):
    searched, study, settings, _ = made
    study.set_user_attr("objective", "calibrated")
    (settings.folder / "models").mkdir()
    for left in ("front.csv", "models/0000.safetensors"):
        (settings.folder / left).write_text("left by the runner")
    confirmation.finish(searched, study, settings, Console(width=300), "finished")
    assert not (settings.folder / "front.csv").exists() and not (settings.folder / "models").exists()
    table = pd.read_csv(settings.search_folder / "confirmed.csv")
    assert set(table["objective"]) == {"calibrated"}
    assert pd.read_csv(settings.search_folder / "gates.csv").passed.sum() == 2 * len(gates.GATES) - 1


def test_each_member_and_seed_is_enqueued_once_and_more_seeds_are_added(made):
    searched, study, settings, _ = made
    chosen = members.members_numbered(searched.trials, [1, 2])
    assert len(confirmation.prepare(settings, chosen).trials) == 4
    more = confirm.resolve(searched, {"results_dir": settings.results_dir, "seeds": 3})
    assert confirmation.n_trials(more, chosen) == 6
    assert confirmation.n_trials(settings, members.members_numbered(searched.trials, [0])) == 4 + 2
    trials = confirmation.prepare(more, chosen).trials
    assert len({(trial.user_attrs["member"], trial.user_attrs["config"]["seed"]) for trial in trials}) == 6


def test_an_interrupted_training_is_handed_out_again_and_the_timeout_forgotten(made):
    searched, study, settings, _ = made
    chosen = members.members_numbered(searched.trials, [1, 2])
    more = confirm.resolve(searched, {"results_dir": settings.results_dir, "seeds": 3, "timeout": 5.0})
    running = confirmation.prepare(more, chosen).ask()
    again = confirm.resolve(searched, {"results_dir": settings.results_dir})
    assert (again.seeds, again.timeout) == (3, None)
    assert confirmation.prepare(again, chosen).trials[running.number].state is TrialState.WAITING


def test_an_interrupted_confirmation_says_how_to_go_on_with_the_same_members(made, tmp_path, capsys):
    searched, study, settings, _ = made
    confirmation.finish(searched, study, settings, Console(width=300), "interrupted")
    assert f"To go on: python -m study.confirm mine --members 1,2 --results-dir {tmp_path}\n" in capsys.readouterr().out
    study = confirmation.prepare(settings, members.default_members(searched.trials))
    confirmation.finish(searched, study, settings, Console(width=300), "interrupted")
    assert f"To go on: python -m study.confirm mine --results-dir {tmp_path}\n" in capsys.readouterr().out


def test_a_device_that_something_else_used_meanwhile_is_told(made, capsys):
    searched, study, settings, masks = made
    finish = partial(confirmation.finish, searched, study, settings, Console(width=300), "finished")
    for n, taken in enumerate([9.0, 0.9]):  # of equal work, 0.8 s
        study.enqueue_trial({}, user_attrs=study.trials[0].user_attrs)
        seed = study.trials[0].user_attrs["config"]["seed"]
        trained(study, settings, 1, seed, masks[1, 0], taken, measured_seconds=taken, calibrated_seconds=0.8)
        finish()
        told = "The device was not equally free for all: equal work took" in capsys.readouterr().out
        assert told == (n == 1)


def test_checkpoints_that_a_crash_left_of_ended_trainings_are_removed(made, monkeypatch, capsys):
    searched, study, settings, _ = made
    kept, left = (Path(settings.checkpoints) / name for name in ("0099", "0000"))
    for folder in (kept, left):
        folder.mkdir(parents=True)
    assert study.trials[0].state.is_finished()
    confirmation.finish(searched, study, settings, Console(width=300), "finished")
    assert kept.exists() and not left.exists()

    def unreachable(*args):
        raise Unreachable("s3://bucket: no answer")

    monkeypatch.setattr(confirmation, "remove_finished", unreachable)
    confirmation.finish(searched, study, settings, Console(width=300), "finished")
    assert "stay where they are: s3://bucket" in capsys.readouterr().out


def test_other_settings_than_the_confirmations_are_refused(made):
    searched, _, settings, _ = made
    with pytest.raises(InputError, match=r"attack_examples 7 \(the study has 50\)"):
        confirm.resolve(searched, {"results_dir": settings.results_dir, "attack_examples": 7})
    for field, value in [("concurrent", 2), ("cpus_per_trial", 2.0), ("gpus_per_trial", 1.0)]:
        with pytest.raises(InputError, match=f"{field} {value}"):
            confirm.resolve(searched, {"results_dir": settings.results_dir, field: value})


def test_what_a_confirmation_inherits_stays_when_the_search_goes_on_otherwise(made):
    searched, _, settings, _ = made
    searched.set_user_attr("settings", searched.user_attrs["settings"] | {"cpus_per_trial": 2.0})
    again = confirm.resolve(searched, {"results_dir": settings.results_dir})
    assert (again.cpus_per_trial, again.gpus_per_trial) == (1.0, None)


def test_a_confirmation_of_an_earlier_search_of_that_name_is_refused_before_anything_is_trained(made, tmp_path, capsys):
    searched, study, settings, _ = made
    confirmation.require_same_search(settings, searched)
    url = f"sqlite:///{tmp_path / 'mine' / 'study.db'}"
    for again in (lambda new: None, lambda new: [add(new, 0.1 * i, i, batch=16) for i in (1, 2, 3)]):
        optuna.delete_study(storage=url, study_name="mine")
        new = storage.open_study(storage.from_url(url), "mine")
        new.set_user_attr("settings", SETTINGS)
        add(new, 0.4, 20.0)
        again(new)
        assert confirm.main(["mine", "--results-dir", str(tmp_path)]) == 2
        err = capsys.readouterr().err
        assert err.startswith("error: name: the confirmation in ") and "its #1 has another" in err
    assert len(study.get_trials()) == 4


# Mistakes


@pytest.mark.parametrize(
    ("make", "arguments", "message"),
    [
        (search, ["mien"], "name: 'mien' (did you mean 'mine'?)"),
        (lambda folder: None, ["mine"], "name: 'mine'; accepted: none yet"),
        (no_front, ["mine"], "a study without a front given (1 trials, 1 ended, none complete)"),
        (another_version, ["mine"], "storage: sqlite:///"),
        (search, ["mine", "--seeds", "0"], "seeds: 0 given"),
        (search, ["mine", "--members", "1,x"], "'1,x' is not a list of trial numbers"),
        (search, ["mine", "--members", "3"], "members: 3 given; accepted: complete trials, such as those of the front"),
        (search, ["mine", "--gpus-per-trial", "0.5"], "gpus_per_trial: 0.5 given; accepted: 0, or whole GPUs"),
        (search, ["mine", "--gpus-per-trial", "1.5"], "gpus_per_trial: 1.5 given; accepted: 0, or whole GPUs"),
        (search, ["mine", "--attack-examples", "0"], "attack_examples: 0 given"),
        (search, ["mine", "--address", "localhost:1"], "address: 'localhost:1' given"),
    ],
)
def test_a_mistake_gets_one_line_and_status_2_and_writes_nothing(make, arguments, message, tmp_path, capsys):
    make(tmp_path)
    before = {path: path.stat().st_size for path in tmp_path.rglob("*") if not path.name.startswith(".")}
    assert confirm.main([*arguments, "--results-dir", str(tmp_path)]) == 2
    out, err = capsys.readouterr()
    assert err.startswith("error: ") and err.count("\n") == 1 and message in err and out == ""
    assert before == {path: path.stat().st_size for path in tmp_path.rglob("*") if not path.name.startswith(".")}


def test_a_search_that_runs_is_not_confirmed_beside_it(tmp_path, capsys):
    search(tmp_path)
    with driver_lock(tmp_path / "mine"):
        assert confirm.main(["mine", "--results-dir", str(tmp_path)]) == 2
    assert "is being run by" in capsys.readouterr().err


# A real one, small


@pytest.mark.cluster
@pytest.mark.slow
def test_a_confirmation_runs_goes_on_and_leaves_the_search_as_it_was(tmp_path, capsys):
    searched = search(tmp_path)
    folder, given = tmp_path / "mine", ["mine", "--results-dir", str(tmp_path)]
    first = [*given, "--seeds", "1", "--members", "1,2", "--attack-examples", "4", "--eval-examples", "40"]
    assert confirm.main(first) == 0
    out = capsys.readouterr().out
    assert "All 2 trainings have ended" in out and "one training at a time" in out and "\x1b" not in out
    study = optuna.load_study(storage=f"sqlite:///{folder / 'confirm' / 'study.db'}", study_name="mine-confirm")
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 2
    assert {trial.user_attrs["config"]["seed"] for trial in study.trials} == {1_000_003}
    for trial in study.trials:
        assert trial.user_attrs["n_examples"] == 40
        assert confirmation.unpack(trial).mean() == pytest.approx(trial.values[0])  # the masks are PGD's own
    table = pd.read_csv(folder / "confirmed.csv")
    assert set(table["number"]) == {1, 2} and set(table["n_attack_examples"]) == {4}
    assert len(pd.read_csv(folder / "gates.csv")) == 2 * len(gates.GATES)
    assert not (folder / "confirm" / "front.csv").exists() and not (folder / "confirm" / "models").exists()

    before = (folder / "confirmed.csv").read_bytes()
    assert confirm.main([*given, "--seeds", "1", "--members", "1,2"]) == 0  # nothing is missing
    assert len(study.get_trials()) == 2 and (folder / "confirmed.csv").read_bytes() == before

    assert len(searched.get_trials()) == 4
    capsys.readouterr()
    assert pareto.main(["--name", "mine", "--eval-examples", "60", "--attack-steps", "2", *given[1:]]) == 0
    assert "All 4 trials have ended" in capsys.readouterr().out


def test_an_interval_of_seconds_ends_at_zero():
    found = confirmation.spread("seconds", [create_trial(values=[0.5, seconds]) for seconds in (5.0, 15.0)])
    assert (found["seconds_mean"], found["seconds_low"]) == (10.0, 0.0) and found["seconds_high"] > 70


def test_a_recipe_that_overfitted_with_one_seed_of_three_fails():
    seeds = [HONEST | {"overfitted": overfitted} for overfitted in (True, False, False)]
    failed = [gate.gate for gate in gates.judge(seeds, gates.Attack(0.1, 10)) if not gate.passed]
    assert failed == ["overfitting"]
