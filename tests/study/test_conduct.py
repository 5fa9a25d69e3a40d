import hashlib
import io
import os
import sys
from contextlib import contextmanager, nullcontext
from itertools import count

import optuna
import pytest
from optuna.trial import TrialState
from rich.console import Console

from study import conduct, lock, runner, sampling, spaces, storage
from study.progress import Progress
from study.settings import StudySettings
from trainables.config import TrialConfig
from trainables.errors import InputError


@pytest.fixture
def settings(tmp_path):
    return StudySettings(space="quickstart", name="mine", results_dir=str(tmp_path))


def test_a_study_that_another_process_begins_while_ray_starts_is_left_to_it(settings, monkeypatch):
    @contextmanager
    def cluster_that_takes_its_time(settings):
        settings.folder.mkdir()
        yield {"CPU": 2.0}

    monkeypatch.setattr(runner, "cluster", cluster_that_takes_its_time)
    with pytest.raises(InputError, match="^name: 'mine' given, which another process has begun meanwhile; accepted: "):
        conduct.carry_out(settings, pytest.fail, pytest.fail, pytest.fail)
    assert list(settings.folder.iterdir()) == []


@pytest.mark.parametrize(
    "n, said", [(300, ""), (301, "eval_examples: 301 are more than the validation set has: all 300 count\n")]
)
def test_more_validation_images_than_there_are_is_said(n, said, settings, monkeypatch, capsys):
    monkeypatch.setattr(conduct, "carry_out", lambda settings, prepare, *rest: prepare())
    settings.folder.mkdir()
    conduct.conduct(settings.model_copy(update={"eval_examples": n}), spaces.load("quickstart"))
    assert capsys.readouterr().err == said


def test_a_file_is_no_terminal_whatever_force_color_says(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert not conduct.stdout().is_interactive


def test_a_reader_that_is_gone_does_not_end_the_process(monkeypatch):
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as gone:
        monkeypatch.setattr(sys, "stdout", gone)
        console = conduct.stdout()
        console.print("lost")
        console.print("lost")
        assert Progress(console, 1, 0).unread


def test_the_command_to_go_on_names_what_is_not_stored_with_the_study(settings):
    elsewhere = settings.model_copy(update={"address": "auto", "storage": "postgresql://me@host/db"})
    expected = (
        f"python -m study.pareto --address auto --results-dir {settings.results_dir} --storage postgresql://me@host/db"
    )
    assert conduct.command_line(elsewhere, "pareto") == expected
    assert "--address" not in conduct.command_line(elsewhere, "recommend", "mine")
    assert conduct.command_line(StudySettings(space="quickstart", name="mine"), "pareto") == "python -m study.pareto"


TEXT = "# {}\ndef space(trial):\n    return {{'epochs': 2}}\n"


@pytest.fixture
def go_on(settings):
    """Opens the study `mine`, of which one trial has ended, with a space's file that has this text; returns it."""
    settings.folder.mkdir()
    file = settings.folder.parent / "mine.py"

    def opened(text, trials=16):
        file.write_bytes(text)
        changed = settings.model_copy(update={"space": str(file), "trials": trials})
        study = conduct.open_study(changed, spaces.load(str(file)), 1000)
        if not study.trials:
            study.add_trial(optuna.trial.create_trial(values=[0.5, 1.0]))
        return study

    return opened


def spaces_in(folder):
    return {path.name: path.read_bytes() for path in folder.glob("space*")}


def test_every_text_of_the_space_stays_with_the_study_and_a_change_is_said_once(settings, go_on, capsys):
    first, second, third = (TEXT.format(word).encode() for word in ("one", "two", "three"))
    for _ in range(2):
        go_on(first)
        assert spaces_in(settings.folder) == {"space.py": first} and capsys.readouterr().err == ""
    for _ in range(2):
        study = go_on(second)
        assert spaces_in(settings.folder) == {"space.py": second, "space-1.py": first}
    assert study.user_attrs["space_file"]["text"] == second.decode()
    said = capsys.readouterr().err
    assert said.startswith(f"space: {settings.folder.parent / 'mine.py'} has changed since the study last ran: ")
    assert said.endswith(f"{settings.folder / 'space.py'} has the new one, space-1.py the earlier\n")
    assert said.count("\n") == 1
    go_on(third)
    assert spaces_in(settings.folder) == {"space.py": third, "space-1.py": first, "space-2.py": second}


def test_a_text_is_kept_byte_for_byte_also_where_the_folder_has_lost_it(settings, go_on):
    latin = b"# -*- coding: latin-1 -*-\r\n" + TEXT.format("ü").encode("latin-1")
    go_on(latin)
    (settings.folder / "space.py").unlink()
    go_on(TEXT.format("new").encode())
    assert spaces_in(settings.folder)["space-1.py"] == latin


def test_a_long_text_is_stored_by_its_digest_and_still_kept_in_the_folder(settings, go_on, capsys):
    first, second = (TEXT.format(word * 20_000).encode() for word in ("one", "two"))
    known = go_on(first).user_attrs["space_file"]
    assert known == {"sha256": hashlib.sha256(first).hexdigest(), "text": None}
    go_on(second)
    assert spaces_in(settings.folder) == {"space.py": second, "space-1.py": first}
    assert "has changed since" in capsys.readouterr().err


def test_a_space_py_that_somebody_edited_is_not_lost(settings, go_on):
    text = TEXT.format("one").encode()
    go_on(text)
    (settings.folder / "space.py").write_bytes(b"# mine")
    go_on(text)
    assert spaces_in(settings.folder) == {"space.py": text, "space-1.py": b"# mine"}


def test_a_study_of_an_earlier_version_takes_the_space_in_silence(settings, go_on, capsys):
    study = go_on(TEXT.format("one").encode())
    (settings.folder / "space.py").unlink()
    study._storage.set_study_user_attr(study._study_id, "space_file", None)
    go_on(TEXT.format("two").encode())
    assert list(spaces_in(settings.folder)) == ["space.py"] and capsys.readouterr().err == ""


def test_a_space_that_nothing_is_drawn_from_is_not_kept(settings, go_on, capsys):
    first = TEXT.format("one").encode()
    go_on(first)
    go_on(TEXT.format("two").encode(), trials=1)
    assert spaces_in(settings.folder) == {"space.py": first} and capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("reasons", "noun", "said"),
    [
        (
            ["diverged: loss nan in epoch 1"] * 3,
            "trials",
            ["No trial completed: 3 failed (diverged: loss nan in epoch 1)"],
        ),
        (
            ["out of memory", "b", *["diverged"] * 2, "d", "e"],
            "trainings",
            [
                "No training completed: 2 failed (diverged); 1 failed (out of memory); 1 failed (b); "
                "2 more reasons in trials.csv"
            ],
        ),
        (["diverged", "finished"], "trials", []),
        ([], "trials", []),
    ],
)
def test_a_study_without_a_complete_trial_says_why(reasons, noun, said, settings):
    study = optuna.create_study(directions=storage.DIRECTIONS)
    for reason in reasons:
        ended = {"values": [0.5, 1.0]} if reason == "finished" else {"state": TrialState.FAIL}
        study.add_trial(optuna.trial.create_trial(**ended, user_attrs={"reason": reason}))
    study.ask()
    out = io.StringIO()
    conduct.say_end(Console(file=out, width=120), study, settings, [], "finished", "again", "More.", noun)
    assert out.getvalue().splitlines() == [*said, f"All {len(reasons)} {noun} have ended. More."]


@pytest.mark.parametrize(("asked", "stored"), [(2, 3), (3, 3), (5, 5)])
def test_fewer_trials_than_have_ended_are_not_stored_as_the_studys(asked, stored, settings, go_on):
    text = TEXT.format("one").encode()
    study = go_on(text, trials=10)
    for _ in range(2):
        study.add_trial(optuna.trial.create_trial(values=[0.5, 1.0]))
    assert storage.is_unfinished(study)
    study = go_on(text, trials=asked)
    assert study.user_attrs["settings"]["trials"] == stored and storage.is_unfinished(study) is (asked > 3)


def test_where_nothing_completed_the_status_says_so(settings, monkeypatch):
    study = optuna.create_study(directions=storage.DIRECTIONS)
    carried = settings.model_copy(update={"trials": 1})
    monkeypatch.setattr(conduct.storage, "count_finished", lambda *names: 1)
    for state, status in [(TrialState.FAIL, 1), (TrialState.COMPLETE, 0)]:
        values = [0.5, 1.0] if state is TrialState.COMPLETE else None
        study.add_trial(optuna.trial.create_trial(state=state, values=values))
        assert conduct.carry_out(carried, lambda: study, pytest.fail, lambda *what: None) == status


@pytest.mark.parametrize(
    "url,seen",
    [
        ("postgresql://me:secret@host/db", True),
        ("postgresql://me@host/db?password=secret", True),
        ("postgresql://me@host/db", False),
        ("sqlite:///x.db", False),
    ],
)
def test_a_password_on_the_command_line_is_warned_of_once_and_not_repeated(url, seen, settings, monkeypatch, capsys):
    monkeypatch.setattr(conduct.storage, "count_finished", lambda *names: pytest.fail("far enough"))
    with pytest.raises(pytest.fail.Exception, match="far enough"):
        conduct.carry_out(settings.model_copy(update={"storage": url}), pytest.fail, pytest.fail, pytest.fail)
    err = capsys.readouterr().err
    assert (
        err.startswith("storage: the URL holds a password") == seen and "secret" not in err and err.count("\n") == seen
    )


CHOICES = "def space(trial):\n    return {{'batch_size_schedule.kind': 'constant', {}}}\n"


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        (
            "'nesterov': False, 'epochs': trial.suggest_categorical('depth', [8, 14]) and 1",
            "'nesterov': False, 'epochs': trial.suggest_categorical('depth', [8, 14, 20]) and 1",
            r"depth: choices 8, 14, 20 suggested by .*, where the study's trials have choices 8, 14; accepted: the",
        ),
        (
            "'epochs': 1, 'momentum': 0.5 * (trial.suggest_int('pgd_steps', 1, 3) > 0)",
            "'epochs': 1, 'momentum': 0.5 * (trial.suggest_int('pgd_steps', 1, 9, log=True) > 0)",
            "pgd_steps: int, log=True suggested by .*, where the study's trials have int; accepted: the same, or a new",
        ),
        (
            "'epochs': 1, 'momentum': 0.5 * (trial.suggest_int('pgd_steps', 1, 3) > 0)",
            "'epochs': 1, 'momentum': 0.5 * (trial.suggest_int('pgd_steps', 1, 9) > 0)",
            None,
        ),
    ],
)
def test_what_optuna_lets_no_study_change_is_refused_before_anything_is_written(settings, before, after, message):
    file = settings.folder.parent / "mine.py"
    settings.folder.mkdir()
    settings = settings.model_copy(update={"space": str(file), "sampler": "random", "depth": None})
    file.write_text(CHOICES.format(before + ", 'batch_size_schedule.size': 8"))
    study = conduct.open_study(settings, spaces.load(str(file)), 1000)
    spaces.configure(spaces.load(str(file)), settings, study.ask())
    file.write_text(CHOICES.format(after + ", 'batch_size_schedule.size': 8"))
    changed = spaces.load(str(file))
    if message is None:
        spaces.try_out(changed, settings, 1000, conduct.drawn(settings))
        return
    with pytest.raises(InputError, match=message):
        spaces.try_out(changed, settings, 1000, conduct.drawn(settings))


def test_a_limit_that_no_configuration_keeps_is_refused_before_it_is_stored(settings, monkeypatch):
    settings.folder.mkdir()
    space = spaces.load("quickstart")
    conduct.open_study(settings, space, 1000)
    limited = settings.model_copy(update={"max_trial_seconds": 0.001})

    def none_is_quick_enough(sampler, trials):
        raise InputError(f"max_trial_seconds: {sampler.max_seconds} given; accepted: at least 4")

    monkeypatch.setattr(sampling.FrontSampler, "propose", none_is_quick_enough)
    with pytest.raises(InputError, match="max_trial_seconds: 0.001 given; accepted: at least 4"):
        conduct.open_study(limited, space, 1000)
    study = storage.named("mine", settings.results_dir, None)
    assert study.user_attrs["settings"]["max_trial_seconds"] is None


def test_a_study_of_a_storage_has_one_driver_wherever_its_results_lie(settings, monkeypatch):
    elsewhere = settings.model_copy(update={"storage": f"sqlite:///{settings.folder.parent / 'other.db'}"})
    study = storage.open_study(storage.from_url(elsewhere.storage), "mine")
    beats = count()

    def beat(seconds=0.0):
        study.set_user_attr("driver", {"host": "elsewhere", "pid": 7, "n": next(beats)})

    beat()
    monkeypatch.setattr(lock.time, "sleep", beat)
    monkeypatch.setattr(runner, "cluster", lambda settings: nullcontext({"CPU": 2.0}))
    with pytest.raises(
        InputError, match="^name: study 'mine' is being run by host elsewhere, pid 7; accepted: one driver"
    ):
        conduct.carry_out(elsewhere, pytest.fail, pytest.fail, pytest.fail)
    assert not settings.folder.exists()


def test_weights_that_lie_with_other_results_are_named(settings):
    settings.folder.mkdir()
    study = conduct.open_study(settings, spaces.load("quickstart"), 1000)
    attrs = {"config": TrialConfig().model_dump(mode="json"), "clean_accuracy": 0.9, "n_examples": 60, "curve": []}
    for seconds in (5.0, 6.0):
        study.add_trial(optuna.trial.create_trial(values=[0.5, seconds], user_attrs=attrs | {"reason": "finished"}))
    out = io.StringIO()
    conduct.finish(study, settings, Console(file=out, width=300), "finished")
    number = study.best_trials[0].number
    assert (
        f"Weights of #{number} are not in {settings.folder / 'models'}; study.train makes them anew" in out.getvalue()
    )
