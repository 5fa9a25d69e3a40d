import json

import numpy as np
import optuna
import pandas as pd
import pytest
from optuna.trial import TrialState, create_trial
from safetensors.numpy import load_file, save

from study import results
from study.settings import StudySettings
from study.storage import DIRECTIONS
from tests.study.trials import CONFIG, add, weights
from trainables.config import TrialConfig


@pytest.fixture
def study():
    study = optuna.create_study(directions=DIRECTIONS)
    add(study, 0.5, 10.0, label="published")
    add(study, 0.3, 5.0)
    add(study, 0.4, 12.0)
    add(study, state=TrialState.FAIL)
    add(study, state=TrialState.RUNNING)
    return study


def test_tables_without_rows_have_a_header(tmp_path):
    results.write_tables(optuna.create_study(directions=DIRECTIONS), tmp_path)
    for name in ("trials.csv", "front.csv"):
        assert "adversarial_accuracy" in pd.read_csv(tmp_path / name).columns


def test_a_study_of_which_nothing_completed_has_the_columns_of_one_that_has(study, tmp_path):
    results.write_tables(study, tmp_path)
    trials, front = (list(pd.read_csv(tmp_path / f"{name}.csv")) for name in ("trials", "front"))
    nothing = optuna.create_study(directions=DIRECTIONS)
    add(nothing, state=TrialState.FAIL)
    results.write_tables(nothing, tmp_path)
    failed = pd.read_csv(tmp_path / "trials.csv")
    assert list(failed) == trials and failed.adversarial_accuracy.isna().all()
    assert set(pd.read_csv(tmp_path / "front.csv")) >= set(front)


def test_wilson_interval_equals_the_closed_form():
    p, n, z = 0.3, 100, 1.959963984540054
    centre, half = (p + z**2 / (2 * n)), z * (p * (1 - p) / n + z**2 / (4 * n**2)) ** 0.5
    expected = [(centre + sign * half) / (1 + z**2 / n) for sign in (-1, 1)]
    assert results.wilson(p, n) == pytest.approx(expected)


def test_the_front_holds_complete_trials_only_fastest_first(study):
    assert [trial.number for trial in results.front_of(study.trials)] == [1, 0]


def test_an_infinite_objective_is_never_on_the_front(study):
    add(study, 0.9, float("inf"))
    assert [trial.number for trial in results.front_of(study.trials)] == [1, 0]


def test_the_hypervolume_history_ends_at_the_fronts(study):
    history = results.front_hypervolumes(study.trials)
    assert history == sorted(history) and history[-1] == results.front_hypervolume(study.trials)
    assert history[-1] == pytest.approx(0.5 * (12 - 10) + 0.3 * (10 - 5))


def test_tables_are_written_from_the_storage(study, tmp_path):
    results.write_tables(study, tmp_path)
    trials, front = pd.read_csv(tmp_path / "trials.csv"), pd.read_csv(tmp_path / "front.csv")
    assert list(trials.state) == ["COMPLETE", "COMPLETE", "COMPLETE", "FAIL", "RUNNING"]
    assert list(front.number) == [1, 0] and list(front.weights) == [
        "models/0001.safetensors",
        "models/0000.safetensors",
    ]
    low, high = results.wilson(0.3, 100)
    assert front.adversarial_low[0] == pytest.approx(low) and front.adversarial_high[0] == pytest.approx(high)
    assert front["batch_size_schedule.size"][0] == 8 and front.label[1] == "published"


def test_whole_numbers_stay_whole_in_a_table_where_some_trials_have_none(study, tmp_path):
    growing = CONFIG | {"batch_size_schedule": {"kind": "geometric", "first": 16, "last": 128}}
    add(study, 0.6, 13.0, config=growing)
    results.write_tables(study, tmp_path)
    for name in ("trials.csv", "front.csv"):
        texts = pd.read_csv(tmp_path / name, dtype=str)
        assert set(texts["batch_size_schedule.first"].dropna()) == {"16"}
        assert set(texts["batch_size_schedule.size"].dropna()) == {"8"}
    assert pd.read_csv(tmp_path / "trials.csv").adversarial_accuracy.dtype == float


def test_models_hold_front_members_only_and_finished_trials_leave_no_checkpoint(study, tmp_path):
    for number in range(5):
        folder = tmp_path / "tune" / "checkpoints" / results.checkpoint_name(number)
        folder.mkdir(parents=True)
        (folder / "weights.safetensors").write_bytes(weights(number))
    results.sync_models(study.trials, tmp_path, str(tmp_path / "tune" / "checkpoints"))
    results.sync_models(study.trials, tmp_path, str(tmp_path / "tune" / "checkpoints"))
    assert sorted(path.name for path in (tmp_path / "models").iterdir()) == ["0000.safetensors", "0001.safetensors"]
    assert load_file(tmp_path / "models" / "0001.safetensors")["number"] == 1
    assert [path.name for path in (tmp_path / "tune" / "checkpoints").iterdir()] == ["0004"]


def test_weights_of_a_member_that_became_dominated_are_removed(study, tmp_path):
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "0001.safetensors").write_bytes(weights(1))
    add(study, 0.35, 4.0)
    results.sync_models(study.trials, tmp_path, str(tmp_path / "tune" / "checkpoints"))
    assert list((tmp_path / "models").iterdir()) == []


@pytest.mark.parametrize("found", [weights(7, CONFIG | {"epochs": 9}), b"half a file"])
def test_weights_that_are_not_the_members_are_replaced_by_its_own(study, tmp_path, found):
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "0001.safetensors").write_bytes(found)
    own = tmp_path / "tune" / "checkpoints" / results.checkpoint_name(1)
    own.mkdir(parents=True)
    (own / "weights.safetensors").write_bytes(weights(1))
    results.sync_models(study.trials, tmp_path, str(tmp_path / "tune" / "checkpoints"))
    assert load_file(tmp_path / "models" / "0001.safetensors")["number"] == 1


def test_a_file_without_a_configuration_holds_no_weights(study, tmp_path):
    for metadata in (None, {"format": "pt"}, {"config": "{"}):
        (tmp_path / "x").write_bytes(save({"number": np.array([1])}, metadata))
        assert not results.holds_weights(tmp_path / "x", study.trials[1])


def test_weights_written_before_a_field_was_added_are_still_those_of_their_trial(study, tmp_path):
    trial = study.trials[1]
    config = TrialConfig(**trial.user_attrs["config"])
    for left_out, held in [({"attack_norm"}, True), ({"attack_norm", "norm"}, config.norm == "batchnorm")]:
        metadata = {"config": config.model_dump_json(exclude=left_out)}
        (tmp_path / "x").write_bytes(save({"number": np.array([1])}, metadata))
        assert results.holds_weights(tmp_path / "x", trial) == held


@pytest.mark.parametrize(
    "settings,text",
    [
        ({"eps": 0.1, "attack_steps": 10}, "PGD-10, l-inf, eps 0.1 (25.5/255)"),
        ({"eps": 128 / 255, "attack_steps": 20, "attack_norm": "l2"}, "PGD-20, l2, eps 0.502 (128/255)"),
    ],
)
def test_an_attack_is_told_with_its_norm(settings, text):
    assert results.attack_text(settings) == text


def test_a_front_without_members_is_a_table_that_reads_as_one(tmp_path):
    results.write_tables(optuna.create_study(directions=DIRECTIONS), tmp_path)
    front = pd.read_csv(tmp_path / "front.csv")
    assert len(front) == 0 and {"number", "adversarial_accuracy", "train_seconds", "weights"} <= set(front)


def test_a_trial_is_described_by_its_label_or_by_what_it_is(study):
    assert results.describe(study.trials[0]) == "published"
    assert results.describe(study.trials[1]) == "fixup 8"
    growing = CONFIG | {"training": "pgd", "batch_size_schedule": {"kind": "geometric", "first": 8, "last": 128}}
    assert results.short_name(growing) == "fixup 8→128 pgd"


def test_a_published_configuration_promises_nothing_and_hides_no_promise():
    trials = [
        create_trial(values=[0.5, 1.0], user_attrs={results.GAIN: 0.25}),
        create_trial(values=[0.5, 1.0], user_attrs={"label": "Fixup 8→128"}),
    ]
    assert results.promised(trials, results.GAIN) == 0.25


def test_the_hypervolume_history_begins_with_the_first_trial():
    trials = [create_trial(values=values) for values in ([0.5, 10.0], [0.3, 5.0], [0.1, 20.0])]
    assert results.front_hypervolumes(trials) == pytest.approx([5.0, 6.5, 6.5])


def test_the_newest_promise_counts():
    trials = [create_trial(values=[0.5, 1.0], user_attrs={results.GAIN: gain}) for gain in (0.25, 0.125)]
    assert results.promised(trials, results.GAIN) == 0.125


def test_a_share_is_told_with_three_digits():
    assert [results.percent(share) for share in (0.012345, 12.3456, 0.0)] == ["1.23 %", "1,230 %", "0 %"]


def test_each_accuracy_stands_beside_its_own_interval_and_both_kinds_of_seconds_are_told():
    attrs = {"clean_accuracy": 0.9, "n_examples": 100, "measured_seconds": 7.0, "calibrated_seconds": 6.0}
    row = results.row(create_trial(values=[0.4, 6.0], user_attrs=attrs | {"probes": {"hessian.1": 3.5}}))
    assert (row["adversarial_accuracy"], row["clean_accuracy"], row["n_examples"]) == (0.4, 0.9, 100)
    assert (row["adversarial_low"], row["adversarial_high"]) == results.wilson(0.4, 100)
    assert (row["clean_low"], row["clean_high"]) == results.wilson(0.9, 100)
    assert (row["train_seconds"], row["measured_seconds"], row["calibrated_seconds"]) == (6.0, 7.0, 6.0)
    assert row["hessian.1"] == 3.5


def test_an_interval_is_of_the_nearest_whole_number_of_examples():
    assert results.wilson(0.29, 100) == results.wilson(0.2901, 100)  # 0.29 * 100 is less than 29


def test_a_trials_end_removes_its_own_checkpoint(study, tmp_path):
    place = tmp_path / "checkpoints"
    for number in range(5):
        (place / results.checkpoint_name(number)).mkdir(parents=True)
    results.sync_models(study.trials, tmp_path, str(place), ended=study.trials[2])
    assert sorted(path.name for path in place.iterdir()) == ["0000", "0001", "0003", "0004"]
    results.sync_models(study.trials, tmp_path, str(place), ended=study.trials[4])  # which runs
    assert (place / "0004").exists()


def test_a_schedule_of_milestones_is_described_by_its_first_and_last_size():
    schedule = {"kind": "milestones", "sizes": [8, 32, 64], "milestones": [3, 6]}
    assert results.short_name(CONFIG | {"batch_size_schedule": schedule}) == "fixup 8→64"


def test_what_a_study_was_made_with_is_written_without_its_password(tmp_path):
    settings = StudySettings(name="a", storage="postgresql://me:secret@host/db", eps=0.1)
    results.write_study_json(settings, tmp_path, {"CPU": 2.0}, "calibrated", {"train": "abc"})
    text = (tmp_path / "study.json").read_text()
    written = json.loads(text)
    assert "secret" not in text and "me:***@host/db" in written["settings"]["storage"]
    assert (written["objective"], written["images"], written["settings"]["eps"]) == (
        "calibrated",
        {"train": "abc"},
        0.1,
    )
    assert written["hardware"]["ray_resources"] == {"CPU": 2.0} and "torch" in written["versions"]
