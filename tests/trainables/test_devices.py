import multiprocessing
import threading

import pytest
import torch

from trainables import devices

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def own_locks(tmp_path, monkeypatch):
    monkeypatch.setattr(devices.tempfile, "gettempdir", lambda: str(tmp_path))


def enter(lock, entered):
    with lock(CPU):
        entered.set()


def entering(lock):
    entered = threading.Event()
    threading.Thread(target=enter, args=(lock, entered), daemon=True).start()
    return entered


def test_many_share_a_device():
    with devices.shared(CPU):
        assert entering(devices.shared).wait(5)


@pytest.mark.parametrize("holder,comer", [("shared", "alone"), ("alone", "shared"), ("alone", "alone")])
def test_who_needs_it_alone_waits_for_the_others_and_they_for_him(holder, comer):
    with getattr(devices, holder)(CPU):
        entered = entering(getattr(devices, comer))
        assert not entered.wait(0.2)
    assert entered.wait(5)


def test_those_who_come_later_do_not_overtake_one_who_waits_to_be_alone():
    with devices.shared(CPU):
        alone = entering(devices.alone)
        assert not alone.wait(0.2)
        later = entering(devices.shared)
        assert not later.wait(0.2)
    assert alone.wait(5) and later.wait(5)


def hold(folder, held):
    devices.tempfile.gettempdir = lambda: folder
    with devices.alone(CPU):
        held.set()
        threading.Event().wait()


def test_a_killed_process_leaves_no_lock(tmp_path):
    context = multiprocessing.get_context("fork")
    held = context.Event()
    process = context.Process(target=hold, args=(str(tmp_path), held), daemon=True)
    process.start()
    assert held.wait(10)
    process.kill()
    process.join()
    assert entering(devices.shared).wait(5)


def test_a_device_is_named_with_the_threads_that_it_is_used_with():
    assert devices.name(CPU).endswith(f"{torch.get_num_threads()} thread{'s' if torch.get_num_threads() > 1 else ''}")
