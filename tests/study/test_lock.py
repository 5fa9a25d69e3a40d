import json
import multiprocessing
import os
import socket

import pytest

from study.lock import driver_lock
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
