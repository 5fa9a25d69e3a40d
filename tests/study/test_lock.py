import json
import multiprocessing
import os
import socket

import optuna
import pytest

from study import lock
from study.lock import Beat, driver_lock, require_no_driver
from trainables.errors import InputError


def hold_and_die(folder):
    with driver_lock(folder):
        os._exit(9)


def try_to_hold(folder, answers):
    try:
        with driver_lock(folder):
            answers.put("held")
    except InputError as error:
        answers.put(str(error))


def test_a_second_driver_is_refused_with_the_firsts_host_and_pid(tmp_path):
    spawn = multiprocessing.get_context("spawn")
    answers = spawn.Queue()
    with driver_lock(tmp_path):
        process = spawn.Process(target=try_to_hold, args=(tmp_path, answers))
        process.start()
        message = answers.get(timeout=60)
        process.join()
    assert f"host {socket.gethostname()}, pid {os.getpid()}" in message


def test_a_dead_drivers_lock_stops_nobody(tmp_path):
    process = multiprocessing.get_context("spawn").Process(target=hold_and_die, args=(tmp_path,))
    process.start()
    process.join()
    assert process.exitcode == 9
    with driver_lock(tmp_path):
        assert json.loads((tmp_path / ".driver.json").read_text())["pid"] == os.getpid()
    assert not (tmp_path / ".driver.json").exists()


def test_the_lock_is_released_when_the_study_raises(tmp_path):
    with pytest.raises(ZeroDivisionError), driver_lock(tmp_path):
        raise ZeroDivisionError
    with driver_lock(tmp_path):
        pass


@pytest.fixture
def study():
    return optuna.create_study(study_name="mine")


def beating(study, **changed):
    Beat(study)()
    study.set_user_attr("driver", study.user_attrs["driver"] | changed)


def test_a_study_without_a_driver_or_whose_driver_died_here_is_free_at_once(study, monkeypatch):
    monkeypatch.setattr(lock.time, "sleep", pytest.fail)
    require_no_driver(study)
    beating(study, pid=2**22 + 1)  # more than Linux hands out
    require_no_driver(study)
    beating(study)  # this process itself, as after a container was started again
    require_no_driver(study)
    Beat(study).end()
    require_no_driver(study)


def test_a_driver_elsewhere_that_is_silent_has_died(study, monkeypatch, capsys):
    monkeypatch.setattr(lock, "UNHEARD_SECONDS", 2.0)
    beating(study, host="elsewhere")
    require_no_driver(study)
    assert "was being run by host elsewhere, pid" in capsys.readouterr().err


@pytest.mark.parametrize("place", [{"host": "elsewhere"}, {"pid": 1}])
def test_a_driver_that_lives_is_left_its_study(study, place, monkeypatch):
    beating(study, **place)
    monkeypatch.setattr(lock.time, "sleep", lambda seconds: beating(study, **place, n=7))
    with pytest.raises(InputError, match="study 'mine' is being run by host .*; accepted: one driver"):
        require_no_driver(study)


def test_a_driver_is_heard_every_few_seconds(study, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(lock.time, "monotonic", lambda: now[0])
    beat, heard = Beat(study), []
    for now[0] in (0.0, 1.0, 4.9, 5.0, 9.9, 10.1):
        beat()
        heard.append(study.user_attrs["driver"]["n"])
    assert heard == [1, 1, 1, 2, 2, 3]
