import math
import pickle
from functools import partial

import optuna
import pytest
from optuna.exceptions import StorageInternalError
from optuna.trial import TrialState, create_trial
from sqlalchemy.exc import OperationalError

from study import search, spaces, storage
from study.settings import StudySettings
from study.sole_writer import SoleWriter
from study.stopping import Stopping
from study.storage import DIRECTIONS, n_finished
from trainables.errors import InputError

SETTINGS = StudySettings(name="a", depth=8, trials=8, sampler="tpe")
EPOCHS = 2


@pytest.fixture
def space(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "BASELINES = {'published': {'norm': 'fixup', 'momentum': 0.9}, 'other': {'norm': 'batchnorm', 'momentum': 0}}\n"
        "def space(trial):\n"
        "    trial.suggest_categorical('norm', ['batchnorm', 'fixup'])\n"
        "    trial.suggest_float('momentum', 0, 0.95)\n"
        f"    return {{'epochs': {EPOCHS}}}\n"
    )
    return spaces.load(str(path))


def unused(trial):
    raise AssertionError("only `front` asks for configurations")


def new_study(storage=None, n_existing=0):
    study = optuna.create_study(directions=DIRECTIONS, storage=storage, study_name="a", load_if_exists=True)
    study.sampler = search.make_sampler(SETTINGS, n_existing, unused, 1000)
    return study


def new_search(study, space, n_concurrent=2):
    told = []
    search.enqueue_baselines(study, space)
    configure = partial(spaces.configure, space, SETTINGS)
    worker_config = lambda number: {"folder": "f"}  # noqa: E731
    searcher = search.StudySearch(study, configure, 8, n_concurrent, 2, worker_config, told.append)
    return searcher, told


def report(epoch, adversarial=0.4, seconds=2.0, **more):
    row = dict.fromkeys(search.CURVE, 0.5) | {"epoch": epoch, "train_seconds": seconds, "n_examples": 10}
    return row | {"adversarial_accuracy": adversarial, "hostname": "node1", "done": epoch == EPOCHS} | more


def test_published_configurations_are_proposed_first_and_labelled(space):
    study = new_study()
    searcher, _ = new_search(study, space)
    configs = [searcher.suggest("t0"), searcher.suggest("t1")]
    assert [config["label"] for config in configs] == ["published", "other"]
    assert [config["trial"]["norm"] for config in configs] == ["fixup", "batchnorm"]


def test_no_more_trials_than_fit_are_proposed(space):
    searcher, _ = new_search(new_study(), space, n_concurrent=1)
    assert searcher.suggest("t0") is not None
    assert searcher.suggest("t1") is None


def test_what_probes_found_and_a_warning_are_kept_with_the_trial(space):
    study = new_study()
    searcher, _ = new_search(study, space)
    searcher.suggest("t0")
    found = {"hessian.1": 3.5, "batch_dependence.changed.1": 2.0}
    searcher.on_trial_complete("t0", report(2, **found, warning="overfitting in epoch 2", time_total_s=1.0))
    assert study.trials[0].user_attrs["probes"] == found
    assert study.trials[0].user_attrs["reason"] == "finished; overfitting in epoch 2"


def test_a_trial_that_ran_its_schedule_is_complete_with_both_objectives(space):
    study = new_study()
    searcher, told = new_search(study, space)
    searcher.suggest("t0")
    searcher.on_trial_result("t0", report(1, 0.2, 1.0))
    searcher.on_trial_complete("t0", report(2, 0.4, 2.0))
    trial = study.trials[0]
    assert trial.state is TrialState.COMPLETE and trial.values == [0.4, 2.0] and told == [0]
    attrs = trial.user_attrs
    assert [(row["epoch"], row["train_seconds"]) for row in attrs["curve"]] == [(1, 1.0), (2, 2.0)]
    assert (attrs["label"], attrs["node"], attrs["tune_trial_id"]) == ("published", "node1", "t0")
    assert (attrs["reason"], attrs["measured_seconds"], attrs["n_examples"]) == ("finished", 2.0, 10)


@pytest.mark.parametrize(
    "result,reason",
    [
        ({"done": True, "failure": "diverged: loss nan"}, "diverged: loss nan"),
        (report(2, math.nan), "not finite"),
        (report(2, 0.4, math.inf), "not finite"),
        (report(2, None), "not finite"),
    ],
)
def test_a_trial_without_finite_objectives_fails_with_its_reason(space, result, reason):
    study = new_study()
    searcher, _ = new_search(study, space)
    searcher.suggest("t0")
    searcher.on_trial_complete("t0", result)
    assert study.trials[0].state is TrialState.FAIL and study.trials[0].values is None
    assert reason in study.trials[0].user_attrs["reason"]


def test_a_trial_cut_off_is_handed_out_again_under_its_number_with_its_parameters(space):
    study = new_study()
    searcher, _ = new_search(study, space)
    first = searcher.suggest("t0")
    searcher.on_trial_complete("t0", report(1))
    assert study.trials[0].state is TrialState.RUNNING
    assert search.requeue_interrupted(study) == 1
    again, _ = new_search(study, space)
    second = again.suggest("t9")
    assert second == first
    assert study.trials[0].user_attrs["tune_trial_id"] == "t9"


def test_after_a_killed_driver_nothing_is_lost_doubled_or_enqueued_twice(space, tmp_path):
    url = f"sqlite:///{tmp_path / 'study.db'}"
    numbers = []
    for run in range(5):
        study = new_study(url, run)
        search.requeue_interrupted(study)
        searcher, _ = new_search(study, space)
        for i in range(2):
            config = searcher.suggest(f"r{run}t{i}")
            if i == 0:
                searcher.on_trial_complete(f"r{run}t0", report(2, 0.1 * run))
                numbers.append(config["number"])
        # The driver dies here with one trial running.
    study = new_study(url)
    assert numbers == [0, 1, 2, 3, 4]
    assert n_finished(study) == 5
    labels = [trial.user_attrs.get("label") for trial in study.trials]
    assert labels.count("published") == labels.count("other") == 1


def test_a_trial_interrupted_before_it_had_parameters_is_not_lost(space, tmp_path):
    study = new_study(f"sqlite:///{tmp_path / 'study.db'}")
    study.ask()
    search.requeue_interrupted(study)
    searcher, _ = new_search(study, space)
    assert searcher.suggest("t0")["number"] == 0


def test_a_trial_enqueued_with_its_configuration_keeps_it(space):
    study = new_study()
    study.enqueue_trial({}, user_attrs={"label": "mine", "config": {"depth": 14, "epochs": EPOCHS, "seed": 7}})
    searcher, _ = new_search(study, space)
    config = searcher.suggest("t0")
    assert (config["label"], config["trial"]["depth"], config["trial"]["seed"]) == ("mine", 14, 7)


def test_an_end_that_the_storage_does_not_take_is_told_later(space, monkeypatch):
    study = new_study()
    searcher, told = new_search(study, space)
    searcher.suggest("t0")
    tell = study.tell
    monkeypatch.setattr(study, "tell", lambda *args, **kwargs: (_ for _ in ()).throw(OperationalError("", {}, None)))
    searcher.on_trial_complete("t0", report(2))
    assert study.trials[0].state is TrialState.RUNNING and told == []
    monkeypatch.setattr(study, "tell", tell)
    searcher.flush()
    assert study.trials[0].state is TrialState.COMPLETE and told == [0]


def test_an_end_that_was_stored_though_the_answer_was_lost_is_told_once(space, monkeypatch, tmp_path):
    study = new_study(f"sqlite:///{tmp_path / 'study.db'}")
    searcher, told = new_search(study, space)
    searcher.suggest("t0")
    tell = study.tell

    def stores_and_loses_the_answer(*args, **kwargs):
        tell(*args, **kwargs)
        raise OperationalError("", {}, None)

    monkeypatch.setattr(study, "tell", stores_and_loses_the_answer)
    searcher.on_trial_complete("t0", report(2))
    monkeypatch.setattr(study, "tell", tell)
    searcher.flush()
    assert searcher.problem is None and told == [0]
    assert study.trials[0].state is TrialState.COMPLETE


def test_the_last_end_is_waited_for_until_the_storage_takes_it(space, monkeypatch):
    study = new_study()
    searcher, told = new_search(study, space)
    searcher.suggest("t0")
    tell, checks = study.tell, []
    monkeypatch.setattr(search, "RETRY_SECONDS", 0.0)
    monkeypatch.setattr(study, "tell", failing(OperationalError("", {}, None)))
    searcher.on_trial_complete("t0", report(2))

    def check():
        checks.append(told.copy())
        if len(checks) == 3:
            monkeypatch.setattr(study, "tell", tell)

    searcher.settle(check)
    assert checks == [[]] * 3 and told == [0] and study.trials[0].state is TrialState.COMPLETE


def test_the_wait_for_the_last_end_is_over_with_the_patience(space, monkeypatch):
    study = new_study()
    searcher, told = new_search(study, space)
    searcher.suggest("t0")
    monkeypatch.setattr(search, "RETRY_SECONDS", 0.0)
    monkeypatch.setattr(search, "STORAGE_PATIENCE", 0.01)
    monkeypatch.setattr(study, "tell", failing(OperationalError("", {}, "database is locked")))
    searcher.on_trial_complete("t0", report(2))
    searcher.settle(lambda: None)
    assert isinstance(searcher.problem, OSError) and told == []


def test_a_full_disk_leaves_the_trial_to_be_resumed_and_stops_the_study(space):
    study = new_study()
    searcher, _ = new_search(study, space)
    searcher.suggest("t0")
    searcher.on_trial_complete("t0", {"done": True, "failure": "OSError: no space", "study_problem": "no room on disk"})
    assert isinstance(searcher.problem, OSError)
    assert study.trials[0].state is TrialState.RUNNING
    with pytest.raises(OSError, match="no room"):
        searcher.suggest("t1")


def failing(error):
    def fail(*args, **kwargs):
        raise error

    return fail


def test_a_proposal_that_the_storage_did_not_take_is_made_again_and_no_trial_is_lost(space, monkeypatch):
    study = new_study()
    searcher, _ = new_search(study, space)
    with monkeypatch.context() as patch:
        patch.setattr(optuna.Trial, "set_user_attr", failing(OperationalError("", {}, None)))
        assert searcher.suggest("t0") is None
    assert searcher.suggest("t1")["number"] == 0
    assert [trial.state.name for trial in study.trials].count("RUNNING") == 1


def test_a_storage_that_stays_silent_ends_the_run(space, monkeypatch):
    searcher, _ = new_search(new_study(), space)
    monkeypatch.setattr(searcher.study, "ask", failing(OperationalError("", {}, "database is locked")))
    assert searcher.suggest("t0") is None
    monkeypatch.setattr(search, "STORAGE_PATIENCE", -1.0)
    with pytest.raises(OSError, match="not answered .* locked"):
        searcher.suggest("t0")


def test_a_storage_without_room_ends_the_run_at_once(space, monkeypatch):
    searcher, _ = new_search(new_study(), space)
    monkeypatch.setattr(searcher.study, "ask", failing(OperationalError("", {}, "database or disk is full")))
    with pytest.raises(OSError, match="no room on disk"):
        searcher.suggest("t0")


def test_a_trial_that_the_rule_ends_is_stopped_early_and_not_complete(space):
    study = new_study()
    searcher, told = new_search(study, space)
    asked = []

    def rule(running, trials):
        asked.append((running.label, [row["epoch"] for row in running.curve], running.seconds, running.seconds_ahead))
        return "cannot reach the front" if running.label == "other" else None

    searcher.stop_rule = rule
    for trial_id in ("t0", "t1"):
        searcher.suggest(trial_id)
        assert searcher.stops(trial_id, report(1, 0.2, 1.5, seconds_ahead=2.0)) == (trial_id == "t1")
    assert asked == [("published", [1], 1.5, 2.0), ("other", [1], 1.5, 2.0)]
    searcher.on_trial_complete("t1", report(1, 0.2, 1.5, done=True))
    trial = study.trials[1]
    assert (trial.state, trial.values, told) == (TrialState.PRUNED, None, [1])
    assert trial.user_attrs["reason"] == "stopped early: cannot reach the front"
    assert (trial.user_attrs["measured_seconds"], len(trial.user_attrs["curve"])) == (1.5, 1)
    assert n_finished(study) == 1


def test_a_trial_that_the_rule_ends_after_its_last_epoch_is_complete(space):
    study = new_study()
    searcher, _ = new_search(study, space)
    searcher.stop_rule = lambda running, trials: "cannot reach the front"
    searcher.suggest("t0")
    assert searcher.stops("t0", report(EPOCHS, 0.4, 2.0, seconds_ahead=0.0))
    searcher.on_trial_complete("t0", report(EPOCHS, 0.4, 2.0))
    assert (study.trials[0].state, study.trials[0].values) == (TrialState.COMPLETE, [0.4, 2.0])


def test_a_trial_whose_seconds_are_not_known_is_not_stopped(space):
    searcher, _ = new_search(new_study(), space)
    searcher.stop_rule = lambda running, trials: "cannot reach the front"
    searcher.suggest("t0")
    assert not searcher.stops("t0", report(1))
    assert not searcher.stops("gone", report(1, seconds_ahead=1.0))
    searcher.objective = "calibrated"
    assert not searcher.stops("t0", report(1, seconds_ahead=1.0, calibrated_seconds=None))
    assert searcher.stops("t0", report(1, seconds_ahead=1.0, calibrated_seconds=1.0))


def test_calibrated_seconds_are_the_objective_where_the_study_counts_them(space):
    study = new_study()
    searcher, _ = new_search(study, space)
    searcher.objective = "calibrated"
    searcher.suggest("t0")
    searcher.on_trial_complete("t0", report(2, 0.4, 2.0, calibrated_seconds=1.6))
    assert study.trials[0].values == [0.4, 1.6]
    attrs = study.trials[0].user_attrs
    assert (attrs["measured_seconds"], attrs["calibrated_seconds"]) == (2.0, 1.6)
    searcher.suggest("t1")
    searcher.on_trial_complete("t1", report(2, 0.4, 2.0, calibrated_seconds=None))
    assert study.trials[1].state is TrialState.FAIL


def test_what_a_worker_calibrated_is_told_to_the_next_one_of_the_same_network(space):
    study = new_study()
    searcher, _ = new_search(study, space)
    norm = searcher.suggest("t0")["trial"]["norm"]
    measured = {"calibration/device": "gpu", "calibration/seconds_per_step/128": 0.25}
    searcher.on_trial_complete("t0", report(2, **measured))
    for i in range(1, 7):
        config = searcher.suggest(f"t{i}")
        expected = {"gpu": {"128": 0.25}} if config["trial"]["norm"] == norm else {}
        assert config["seconds_per_step"] == expected
        searcher.on_trial_complete(f"t{i}", report(2))


def test_what_a_worker_calibrated_is_known_before_its_trial_ends(space):
    study = new_study()
    searcher, _ = new_search(study, space)
    proposal = searcher.suggest("t0")
    measured = {"calibration/device": "gpu", "calibration/seconds_per_step/128": 0.25}
    searcher.on_trial_result("t0", report(1, **measured))
    config = search.TrialConfig(**proposal["trial"])
    assert search.calibration.known(study, config) == {"gpu": {"128": 0.25}}


def test_an_exception_after_a_trials_end_does_not_reach_tune(space):
    study = new_study()
    searcher, _ = new_search(study, space)
    searcher.on_told = lambda number: 1 / 0
    searcher.suggest("t0")
    searcher.on_trial_complete("t0", report(2))
    assert isinstance(searcher.problem, ZeroDivisionError)
    assert study.trials[0].state is TrialState.COMPLETE


def test_a_trial_whose_worker_is_lost_is_handed_out_again_until_its_retries_are_used_up(space):
    study = new_study()
    searcher, _ = new_search(study, space)
    for attempt in range(3):
        assert searcher.suggest(f"t{attempt}")["number"] == 0
        searcher.on_trial_complete(f"t{attempt}", error=True)
        searcher.fail(f"t{attempt}", "node lost")
    assert study.trials[0].state is TrialState.FAIL
    assert study.trials[0].user_attrs["reason"] == "machine: node lost, 3 times"
    assert searcher.suggest("t3")["number"] == 1


def test_each_reason_for_which_the_machine_failed_a_trial_is_kept(space):
    study = new_study()
    searcher, _ = new_search(study, space)
    for attempt, reason in enumerate(["node lost", "hung", "node lost"]):
        searcher.suggest(f"t{attempt}")
        searcher.on_trial_complete(f"t{attempt}", error=True)
        searcher.fail(f"t{attempt}", reason)
        if attempt < 2:
            waiting = study.trials[0]
            assert waiting.state is TrialState.WAITING and waiting.user_attrs["reason"] == f"machine: {reason}"
    assert study.trials[0].user_attrs["reason"] == "machine: node lost, 2 times; hung"


def test_the_search_ends_when_enough_trials_have_ended_and_not_before(space):
    study = new_study()
    searcher, _ = new_search(study, space, n_concurrent=3)
    for i in range(6):
        searcher.suggest(f"t{i}")
        searcher.on_trial_complete(f"t{i}", report(2))
    assert [searcher.suggest(f"s{i}") is None for i in range(3)] == [False, False, True]
    searcher.on_trial_complete("s0", report(2))
    assert searcher.suggest("s3") is None  # the last one may still have to be handed out again
    searcher.on_trial_complete("s1", report(2))
    assert searcher.suggest("s4") == "FINISHED"


def test_a_resumed_trial_keeps_one_row_per_epoch(space):
    study = new_study()
    searcher, _ = new_search(study, space)
    searcher.suggest("t0")
    for epoch, seconds in [(1, 1.0), (1, 1.1)]:
        searcher.on_trial_result("t0", report(epoch, seconds=seconds))
    assert [row["train_seconds"] for row in study.trials[0].user_attrs["curve"]] == [1.1]


def test_epochs_that_are_trained_again_are_not_in_the_curve_until_they_end_again(space):
    study = new_study()
    searcher, _ = new_search(study, space)
    searcher.suggest("t0")
    for epoch, seconds in [(1, 1.0), (2, 2.0), (1, 1.1)]:
        searcher.on_trial_result("t0", report(epoch, seconds=seconds))
    assert [(row["epoch"], row["train_seconds"]) for row in study.trials[0].user_attrs["curve"]] == [(1, 1.1)]


def test_a_trial_that_another_driver_began_keeps_the_epochs_of_its_curve(space, tmp_path):
    url = f"sqlite:///{tmp_path / 'study.db'}"
    searcher, _ = new_search(new_study(url), space)
    searcher.suggest("t0")
    searcher.on_trial_result("t0", report(1, seconds=1.0))
    study = new_study(url)
    search.requeue_interrupted(study)
    again, _ = new_search(study, space)
    again.suggest("t1")
    again.on_trial_complete("t1", report(2, seconds=2.0))
    assert [row["train_seconds"] for row in study.trials[0].user_attrs["curve"]] == [1.0, 2.0]


def test_epochs_whose_report_died_with_the_driver_are_in_the_curve(space):
    study = new_study()
    searcher, _ = new_search(study, space)
    searcher.suggest("t0")
    searcher.on_trial_complete("t0", report(2, earlier=[report(1, seconds=0.7)]))
    assert [(row["epoch"], row["train_seconds"]) for row in study.trials[0].user_attrs["curve"]] == [(1, 0.7), (2, 2.0)]


@pytest.mark.parametrize("name", sorted(search.SAMPLERS))
def test_every_sampler_proposes_after_finished_trials(space, name):
    study = new_study()
    study.sampler = search.make_sampler(StudySettings(name="a", sampler=name, trials=8, depth=8), 0, unused, 1000)
    searcher, _ = new_search(study, space, n_concurrent=1)
    for i in range(7):
        assert searcher.suggest(f"t{i}") is not None
        searcher.on_trial_complete(f"t{i}", report(2, 0.1 * i, 10.0 - i))
    assert n_finished(study) == 7


def test_a_restart_does_not_repeat_the_samplers_first_proposals():
    def draw(n_existing):
        study = new_study(n_existing=n_existing)
        return study.ask().suggest_float("x", 0, 1)

    assert draw(3) == draw(3) != draw(4)


def test_studies_of_different_seeds_begin_differently():
    def draw(seed):
        study = optuna.create_study(directions=DIRECTIONS)
        study.sampler = search.make_sampler(SETTINGS.model_copy(update={"seed": seed}), 0, unused, 1000)
        return study.ask().suggest_float("x", 0, 1)

    assert draw(1) == draw(1) != draw(2)


def test_the_sampler_that_knows_seconds_knows_what_the_study_was_asked_for(tmp_path):
    (tmp_path / "b").mkdir()
    earlier = storage.open_study(storage.from_url(f"sqlite:///{tmp_path / 'b' / 'study.db'}"), "b")
    earlier.set_user_attr("settings", {"trials": 1})
    earlier.add_trial(create_trial(values=[0.5, 7.0], user_attrs={"config": {}}))
    given = {"warm_start": "b", "results_dir": str(tmp_path), "max_trial_seconds": 60.0}
    sampler = search.make_sampler(StudySettings(name="a", depth=8, **given), 0, unused, 321)
    assert sampler.max_seconds == 60.0 and [trial.values for trial in sampler.earlier] == [[0.5, 7.0]]
    assert sampler.timer(earlier).n_examples == 321


def test_tunes_snapshot_of_the_searcher_holds_no_storage(space):
    searcher, _ = new_search(new_study(), space)
    assert pickle.loads(pickle.dumps(searcher)).__dict__ == {}


def front_study(space, **options):
    study = new_study()
    settings = StudySettings(name="a", sampler="front", trials=8, depth=8, **options)
    study.sampler = search.make_sampler(settings, 0, partial(spaces.configure, space, settings), 1000)
    return study


def run_trials(searcher, n):
    """Run trials that all reach the same, the first of which also brings seconds per step; returns how many ran."""
    for i in range(n):
        proposal = searcher.suggest(f"t{i}")
        if proposal == search.Searcher.FINISHED:
            return i
        size = proposal["trial"]["batch_size_schedule"]["size"]
        measured = {"calibration/device": "cpu", f"calibration/seconds_per_step/{size}": 0.1}
        searcher.on_trial_complete(f"t{i}", report(2, 0.5, 1.6, **measured))
    return n


def test_the_sampler_that_knows_seconds_takes_them_from_what_the_study_measured(space):
    study = front_study(space)
    searcher, _ = new_search(study, space, n_concurrent=1)
    assert run_trials(searcher, 7) == 7
    assert study.sampler.expected_seconds(search.TrialConfig(depth=8, norm="fixup", epochs=2)) == pytest.approx(1.6)
    assert study.trials[6].user_attrs["expected_gain_per_hour"] > study.trials[6].user_attrs["expected_gain"] > 0


def test_a_trial_that_is_handed_out_again_keeps_what_was_expected_when_it_was_proposed(space, tmp_path):
    study = new_study(f"sqlite:///{tmp_path / 'study.db'}")
    study.sampler = front_study(space).sampler
    searcher, _ = new_search(study, space)
    run_trials(searcher, 6)
    lost = searcher.suggest("lost")["number"]
    expected = study.trials[lost].user_attrs["expected_gain"]
    searcher.suggest("another")
    assert study.sampler.gain != expected
    searcher.fail("lost", "node lost")
    assert searcher.suggest("again")["number"] == lost
    assert study.trials[lost].user_attrs["expected_gain"] == expected


def test_a_study_ends_once_an_hour_is_expected_to_add_less_than_it_goes_on_for(space):
    study = front_study(space, until_gain=1e9)
    searcher, _ = new_search(study, space, n_concurrent=1)
    searcher.until_gain = 1e9
    assert 4 < run_trials(searcher, 8) < 8  # the gain is known after half of the trials
    assert searcher.ending == "too little gain"
    n_ended = searcher.n_ended
    again, _ = new_search(study, space, n_concurrent=1)
    again.until_gain = 1e9
    assert run_trials(again, 8) == 0 and again.n_ended == n_ended, "the same command runs nothing more"
    searcher.until_gain = 0.0
    run_trials(searcher, 8)
    assert searcher.ending == "finished"


def test_only_a_storage_that_stays_silent_ends_the_study(space, monkeypatch):
    study = new_study()
    searcher, _ = new_search(study, space)
    searcher.suggest("t0")
    now = [0.0]
    monkeypatch.setattr(search.time, "monotonic", lambda: now[0])
    keep = optuna.Trial.set_user_attr

    def refuse(*args):
        raise StorageInternalError("no answer")

    for epoch in range(1, 4):
        now[0] += search.STORAGE_PATIENCE * 0.9
        monkeypatch.setattr(optuna.Trial, "set_user_attr", refuse)
        searcher.on_trial_result("t0", report(epoch))
        assert searcher.problem is None
        monkeypatch.setattr(optuna.Trial, "set_user_attr", keep)
        searcher.on_trial_result("t0", report(epoch))
    monkeypatch.setattr(optuna.Trial, "set_user_attr", refuse)
    searcher.on_trial_result("t0", report(3))
    now[0] += search.STORAGE_PATIENCE * 1.1
    searcher.on_trial_result("t0", report(3))
    assert "has not answered" in str(searcher.problem)


def test_a_storage_that_took_an_end_was_not_silent(space, monkeypatch):
    study = new_study()
    searcher, told = new_search(study, space)
    searcher.suggest("t0"), searcher.suggest("t1")
    now, tell = [1.0], study.tell
    monkeypatch.setattr(search.time, "monotonic", lambda: now[0])
    for trial_id in ("t0", "t1"):
        monkeypatch.setattr(study, "tell", failing(OperationalError("", {}, "database is locked")))
        searcher.on_trial_complete(trial_id, report(EPOCHS))
        now[0] += search.STORAGE_PATIENCE * 0.6
        monkeypatch.setattr(study, "tell", tell)
        searcher.flush()
        now[0] += search.STORAGE_PATIENCE * 0.6
    assert searcher.problem is None and told == [0, 1]


def test_a_study_to_start_from_that_does_not_exist_is_one_line(space, tmp_path):
    settings = StudySettings(name="a", sampler="front", warm_start="b", results_dir=str(tmp_path), depth=8)
    with pytest.raises(InputError, match="warm_start: 'b'; accepted: none yet in"):
        search.make_sampler(settings, 0, unused, 1000)


@pytest.mark.parametrize("sampler,rule", [("front", "stop"), ("tpe", "Stopping"), ("random", "Stopping")])
def test_the_sampler_that_knows_what_new_trials_promise_decides_which_make_way(sampler, rule):
    settings = StudySettings(name="a", space="full", sampler=sampler, stop_early=True)
    made = search.make_sampler(settings, 0, unused, 1000)
    chosen = search.stop_rule(settings, made)
    assert chosen == made.stop if rule == "stop" else isinstance(chosen, Stopping)
    assert search.stop_rule(settings.model_copy(update={"stop_early": False}), made) is None


def refusing(call, times):
    """The call, which the storage refuses so many times before it answers."""
    left = [times]

    def answer(*args, **kwargs):
        if left[0]:
            left[0] -= 1
            raise OperationalError("", {}, "server closed the connection unexpectedly")
        return call(*args, **kwargs)

    return answer


def test_a_trial_that_was_begun_before_the_connection_broke_is_handed_out(space, monkeypatch, tmp_path):
    database = SoleWriter(storage.from_url(f"sqlite:///{tmp_path}/study.db"))
    searcher, _ = new_search(new_study(database), space)
    searcher.suggest("t0")
    monkeypatch.setattr(database.database, "get_trial", refusing(database.database.get_trial, 1))
    assert searcher.suggest("t1") is None
    assert searcher.suggest("t1")["label"] == "other"
    assert sorted(trial.number for trial in searcher.running.values()) == [0, 1]
    assert [trial.state.name for trial in searcher.study.trials] == ["RUNNING"] * 2


def test_nothing_new_is_proposed_while_a_trial_waits_to_run_again(space, monkeypatch):
    study = new_study()
    searcher, _ = new_search(study, space)
    searcher.suggest("t0")
    monkeypatch.setattr(optuna.Trial, "set_user_attr", refusing(optuna.Trial.set_user_attr, 1))
    searcher.fail("t0", "worker lost")
    assert searcher.suggest("t1") is None
    searcher.flush()
    assert searcher.suggest("t1")["number"] == 0


def test_a_trial_lost_after_too_little_was_to_be_gained_runs_again(space, tmp_path):
    searcher, _ = new_search(new_study(f"sqlite:///{tmp_path}/study.db"), space)
    searcher.study.sampler.gain = searcher.study.sampler.gain_per_hour = 0.0
    searcher.until_gain = 1.0
    assert [searcher.suggest(trial_id)["number"] for trial_id in ("t0", "t1")] == [0, 1]
    searcher.on_trial_complete("t1", report(EPOCHS))
    assert searcher.suggest("t2") is None
    searcher.fail("t0", "worker lost")
    assert searcher.suggest("t3")["number"] == 0
    searcher.on_trial_complete("t3", report(EPOCHS))
    assert searcher.suggest("t4") == search.Searcher.FINISHED and searcher.ending == "too little gain"


@pytest.mark.filterwarnings("ignore:Fixed parameter")
@pytest.mark.parametrize(
    ("params", "said"), [({"norm": "layernorm"}, "'layernorm' not in"), ({"momentum": 7.0}, "momentum: 7.0 given")]
)
def test_a_trial_that_others_enqueued_with_what_is_not_accepted_fails_alone(space, params, said):
    study = new_study()
    searcher, told = new_search(study, space)
    study.enqueue_trial(params)
    assert [searcher.suggest(f"t{i}")["number"] for i in range(2)] == [0, 1]
    for i in range(2):
        searcher.on_trial_complete(f"t{i}", report(EPOCHS))
    assert searcher.suggest("t2") is None
    refused = study.trials[2]
    assert refused.state is TrialState.FAIL and told == [0, 1, 2] and searcher.n_ended == 3
    reason = refused.user_attrs["reason"]
    assert reason.startswith("enqueued, but not accepted: ") and said in reason
    assert searcher.suggest("t3")["number"] == 3


@pytest.mark.filterwarnings("ignore:Fixed parameter")
def test_a_published_configuration_that_is_not_accepted_is_a_mistake_of_its_space(space):
    study = new_study()
    study.enqueue_trial({"momentum": 7.0}, user_attrs={"label": "published"})
    searcher, _ = new_search(study, space)
    with pytest.raises(InputError, match="momentum: 7.0 given"):
        searcher.suggest("t0")
