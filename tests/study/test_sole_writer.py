import random

import optuna
import pytest
from optuna.storages import RDBStorage
from optuna.trial import TrialState

from study.sole_writer import SoleWriter
from study.storage import DIRECTIONS, from_url, open_study


@pytest.fixture
def url(tmp_path):
    return f"sqlite:///{tmp_path / 'study.db'}"


def in_database(url):
    return optuna.load_study(study_name="mine", storage=RDBStorage(url)).get_trials()


def drive(study, seed, n=30):
    """Everything that a driver does to trials, in a random order."""
    rng, running = random.Random(seed), []
    study.enqueue_trial({"x": 0.5}, user_attrs={"label": "published"})
    for _ in range(n):
        if len(running) < 4:
            trial = study.ask()
            trial.suggest_categorical("kind", ["a", "b"])
            trial.suggest_float("x", 0, 1)
            trial.set_user_attr("config", {"sizes": (8, 16), "deep": {1: [None]}})
            running.append(trial)
        trial = rng.choice(running)
        trial.set_user_attr("curve", [{"epoch": 1, "seconds": rng.random()}])
        match rng.randrange(6):
            case 0:
                study.tell(trial, [rng.random(), 1.0])
            case 1:
                study.tell(trial, state=TrialState.FAIL)
            case 2:
                study._storage.set_trial_state_values(trial._trial_id, TrialState.WAITING)
            case _:
                continue
        running.remove(trial)


@pytest.mark.parametrize("seed", range(3))
def test_its_trials_are_those_in_the_database(url, seed):
    study = open_study(SoleWriter(from_url(url)), "mine")
    drive(study, seed)
    assert study.get_trials() == in_database(url)
    assert {trial.state for trial in study.get_trials()} >= {TrialState.RUNNING, TrialState.COMPLETE}
    for trial in study.get_trials():
        assert study._storage.get_trial(trial._trial_id) == trial
    later = open_study(SoleWriter(from_url(url)), "mine")
    drive(later, seed + 10)
    assert later.get_trials() == in_database(url)


def test_reads_do_not_ask_the_database(url, monkeypatch):
    study = open_study(SoleWriter(from_url(url)), "mine", optuna.samplers.TPESampler(seed=0, constant_liar=True))
    drive(study, 0)
    asked = []
    for name in ("_get_trials", "get_all_trials"):
        monkeypatch.setattr(RDBStorage, name, lambda *given, name=name, **named: asked.append(name))
    trial = study.ask()
    trial.suggest_float("x", 0, 1)
    trial.suggest_categorical("kind", ["a", "b"])
    study.get_trials()
    assert asked == []


class AnswersGetLost(RDBStorage):
    """Takes the state, and the connection breaks before it says so."""

    lost = False

    def set_trial_state_values(self, *given, **named):
        super().set_trial_state_values(*given, **named)
        if self.lost:
            raise ConnectionError("lost")
        return True


def test_what_was_written_without_an_answer_is_read_again(url):
    database = AnswersGetLost(url)
    study = open_study(SoleWriter(database), "mine")
    trial = study.ask()
    database.lost = True
    with pytest.raises(ConnectionError):
        study.tell(trial, [0.5, 1.0])
    assert study.trials[0].state is TrialState.COMPLETE
    assert study.get_trials() == in_database(url)


def test_a_trial_in_hand_does_not_change(url):
    study = open_study(SoleWriter(from_url(url)), "mine")
    trial = study.ask()
    (before,) = study.get_trials(deepcopy=False)
    trial.set_user_attr("node", "here")
    study.tell(trial, [0.5, 1.0])
    assert before.user_attrs == {} and before.state is TrialState.RUNNING
    assert study.trials[0].user_attrs == {"node": "here"}


def test_studies_of_one_database_stay_apart(url):
    storage = SoleWriter(from_url(url))
    one, other = open_study(storage, "mine"), open_study(storage, "other")
    trial = one.ask()
    other.tell(other.ask(), [0.1, 1.0])
    one.tell(trial, [0.2, 2.0])
    assert [[trial.values for trial in study.trials] for study in (one, other)] == [[[0.2, 2.0]], [[0.1, 1.0]]]
    assert one.directions == DIRECTIONS and {s.study_name for s in storage.get_all_studies()} == {"mine", "other"}
    optuna.delete_study(study_name="other", storage=storage)
    assert storage.get_study_id_from_name("mine") == one._study_id
    with pytest.raises(KeyError):
        storage.get_study_id_from_name("other")
