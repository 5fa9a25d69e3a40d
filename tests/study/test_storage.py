from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import optuna
import pytest
from optuna.trial import TrialState, create_trial

from study import folders, storage
from study.settings import StudySettings, sqlite_url
from trainables.errors import InputError


def test_a_password_is_never_shown():
    for url in (
        "postgresql://me:secret@host/db",
        "postgresql://host/db?password=secret&sslpassword=secret",
        "mysql+pymysql://me@host/db?passwd=secret&charset=utf8",
        "mysql://me@host/db?PWD=secret",
        "mssql+pyodbc://host/db?odbc_connect=DRIVER%3Dx%3BPWD%3Dsecret",
    ):
        assert "secret" not in storage.redacted(url) and "host/db" in storage.redacted(url)
        assert storage.has_password(url)
    assert "charset=utf8" in storage.redacted("mysql://me@host/db?charset=utf8")
    with pytest.raises(InputError) as error:
        storage.from_url("postgresql://me:secret@127.0.0.1:1/db")
    assert "secret" not in str(error.value) and "127.0.0.1" in str(error.value)


@pytest.mark.parametrize(
    "url", ["nonsense", "sqlite:////no/folder/study.db", "nodb://x/y", "", "postgresql://u@host:port/db"]
)
def test_a_storage_that_does_not_answer_is_one_line(url):
    with pytest.raises(InputError, match="storage: ") as error:
        storage.from_url(url)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "url, waits",
    [
        ("postgresql://me@host/db", storage.POSTGRESQL),
        ("postgresql+psycopg://me@host/db?connect_timeout=5", {"tcp_user_timeout": 30_000, "connect_timeout": None}),
        ("postgresql+pg8000://me@host/db", {"tcp_user_timeout": None}),  # knows none of these
        ("mysql+pymysql://me@host/db", {"tcp_user_timeout": None}),
        ("sqlite:///study.db", {"timeout": storage.SQLITE_TIMEOUT, "tcp_user_timeout": None}),
    ],
)
def test_a_database_that_the_network_has_lost_is_not_waited_for_for_ever(url, waits, monkeypatch):
    monkeypatch.setattr(storage, "RDBStorage", lambda url, engine_kwargs: engine_kwargs["connect_args"])
    given = storage.from_url(url)
    assert {name: given.get(name) for name in waits} == waits


def test_a_file_that_is_no_database_is_one_line(tmp_path):
    (tmp_path / "study.db").write_text("not a database, but long enough to be read as one" * 50)
    with pytest.raises(InputError, match="storage: "):
        storage.from_url(f"sqlite:///{tmp_path / 'study.db'}")


@pytest.mark.parametrize("attempt", range(5))
def test_who_opens_it_while_another_makes_its_tables_waits(tmp_path, attempt):
    n, url = 4, f"sqlite:///{tmp_path / 'study.db'}"
    together = Barrier(n)

    def come(name):
        together.wait()
        return storage.open_study(storage.from_url(url), name).study_name

    with ThreadPoolExecutor(n) as pool:
        names = [str(i) for i in range(n)]
        assert list(pool.map(come, names)) == names


def test_looking_for_a_study_makes_no_file(tmp_path):
    assert storage.existing(f"sqlite:///{tmp_path / 'study.db'}", "a") is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("folder", ["plain", "a?b", "a%20b", "a#b ü [x]"])
def test_a_study_is_found_again(tmp_path, folder):
    (tmp_path / folder).mkdir()
    url = sqlite_url(tmp_path / folder / "study.db")
    study = storage.open_study(storage.from_url(url), "a")
    study.add_trial(storage.optuna.trial.create_trial(values=[0.5, 1.0]))
    assert storage.count_finished(url, "a") == 1
    assert storage.existing(url, "b") is None
    assert (tmp_path / folder / "study.db").exists()


def test_a_study_in_a_file_that_must_not_be_written_is_found(tmp_path):
    storage.open_study(storage.from_url(sqlite_url(tmp_path / "study.db")), "a")
    url = f"sqlite:///file:{tmp_path / 'study.db'}?mode=ro&uri=true"
    assert storage.existing(url, "a").study_name == "a"
    assert storage.existing(url.replace("study.db", "other.db"), "a") is None


def test_a_complete_trial_of_another_program_is_one_line_and_takes_no_weights(tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    study = storage.open_study(storage.from_url(f"sqlite:///{folder}/study.db"), "mine")
    study.set_user_attr("settings", StudySettings(name="mine").model_dump(mode="json"))
    assert storage.named("mine", str(tmp_path), None).study_name == "mine"
    study.add_trial(create_trial(values=[0.7, 0.05]))
    for look in (
        lambda: storage.named("mine", str(tmp_path), None),
        lambda: folders.stored_settings(StudySettings(name="mine", results_dir=str(tmp_path))),
    ):
        with pytest.raises(InputError, match="name: 'mine' has a complete trial, #0, of another program"):
            look()


def test_a_study_that_ended_for_too_little_gain_is_not_unfinished():
    study = optuna.create_study(directions=storage.DIRECTIONS)
    study.set_user_attr("settings", {"trials": 2})
    study.add_trial(create_trial(values=[0.5, 1.0]))
    assert storage.is_unfinished(study)
    study.set_user_attr("ending", storage.TOO_LITTLE_GAIN)
    assert not storage.is_unfinished(study)


def test_a_study_whose_trials_have_all_ended_is_not_unfinished():
    study = optuna.create_study(directions=storage.DIRECTIONS)
    study.set_user_attr("settings", {"trials": 1})
    study.add_trial(create_trial(values=[0.5, 1.0]))
    assert not storage.is_unfinished(study)


def test_trials_have_ended_however_they_did():
    study = optuna.create_study(directions=storage.DIRECTIONS)
    for state in TrialState:
        values = [0.5, 1.0] if state is TrialState.COMPLETE else None
        study.add_trial(create_trial(state=state, values=values))
    assert storage.n_finished(study) == sum(state.is_finished() for state in TrialState) == 3


def test_a_writer_waits_a_minute_for_a_locked_file(tmp_path):
    database = storage.from_url(f"sqlite:///{tmp_path / 'study.db'}")
    with database.engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA busy_timeout").scalar() == 60_000


def test_images_known_by_their_fingerprints_may_lie_elsewhere():
    study = optuna.create_study(directions=storage.DIRECTIONS)
    study.set_user_attr("settings", {"data_dir": "/here", "eps": 0.1})
    assert storage.settings_of(study, {"data_dir": "/there"}) == {"data_dir": "/here", "eps": 0.1}
    study.set_user_attr("images", {"train": "abc"})
    assert storage.settings_of(study, {"data_dir": "/there"}) == {"data_dir": "/there", "eps": 0.1}
    assert storage.settings_of(study, {}) == {"data_dir": "/here", "eps": 0.1}


def test_the_objective_that_a_study_began_with_is_its_own_where_one_is_named():
    study = optuna.create_study(directions=storage.DIRECTIONS)
    study.set_user_attr("settings", {"objective": None})
    study.set_user_attr("objective", "calibrated")
    assert storage.settings_of(study, {"objective": "measured"}) == {"objective": "calibrated"}
    assert storage.settings_of(study, {}) == {"objective": None}


def test_a_study_was_made_here_where_it_has_our_objectives_and_settings_or_only_begins():
    begun = optuna.create_study(directions=storage.DIRECTIONS)
    assert storage.made_here(begun)
    begun.add_trial(create_trial(values=[0.5, 1.0]))
    assert not storage.made_here(begun)
    begun.set_user_attr("settings", {})
    assert storage.made_here(begun)
    assert not storage.made_here(optuna.create_study(directions=storage.DIRECTIONS[::-1]))


def test_a_new_file_needs_a_folder_and_a_study_in_memory_is_refused(tmp_path):
    storage.require_folder(f"sqlite:///{tmp_path / 'new.db'}")
    storage.require_folder("postgresql://user@host/name")
    for url, said in [
        (f"sqlite:///{tmp_path / 'none' / 'new.db'}", "no such folder"),
        ("sqlite://", "gone when the study ends"),
        ("sqlite:///:memory:", "gone when the study ends"),
    ]:
        with pytest.raises(InputError, match=said):
            storage.require_folder(url)


def test_objectives_have_their_names_in_the_storage(tmp_path):
    study = storage.open_study(storage.from_url(sqlite_url(tmp_path / "study.db")), "a")
    assert study.metric_names == ["adversarial_accuracy", "train_seconds"]
    assert [direction.name for direction in study.directions] == ["MAXIMIZE", "MINIMIZE"]


def test_the_storage_that_is_named_counts_and_not_the_file_in_the_results(tmp_path):
    (tmp_path / "mine").mkdir()
    urls = [sqlite_url(tmp_path / "mine" / "study.db"), sqlite_url(tmp_path / "elsewhere.db")]
    for url in urls:
        study = storage.open_study(storage.from_url(url), "mine")
        study.set_user_attr("settings", {"place": url})
    assert storage.named("mine", str(tmp_path), None).user_attrs["settings"]["place"] == urls[0]
    assert storage.named("mine", str(tmp_path), urls[1]).user_attrs["settings"]["place"] == urls[1]


def test_a_command_is_led_to_both_the_results_and_the_storage():
    assert storage.location("my results", "sqlite:///a.db") == " --results-dir 'my results' --storage sqlite:///a.db"


def test_asking_for_the_names_of_studies_makes_no_file(tmp_path):
    url = sqlite_url(tmp_path / "study.db")
    assert storage.names(url) == [] and list(tmp_path.iterdir()) == []
    storage.open_study(storage.from_url(url), "a")
    assert storage.names(url) == ["a"]
