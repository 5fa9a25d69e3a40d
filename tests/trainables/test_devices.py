import multiprocessing
import threading
import time

import pytest
import torch

from trainables import devices

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def own_locks(tmp_path, monkeypatch):
    monkeypatch.setattr(devices.tempfile, "gettempdir", lambda: str(tmp_path))


def shared(cores="a"):
    return devices.shared(CPU, cores)


def alone(cores="a", patience=30):
    return devices.alone(CPU, cores, patience)


def enter(lock, entered):
    with lock():
        entered.set()


def entering(lock):
    entered = threading.Event()
    threading.Thread(target=enter, args=(lock, entered), daemon=True).start()
    return entered


def test_many_share_a_device():
    with shared():
        assert entering(shared).wait(5)


@pytest.mark.parametrize("holder,comer", [(shared, alone), (alone, shared), (alone, alone)])
def test_who_needs_it_alone_waits_for_the_others_and_they_for_him(holder, comer):
    with holder():
        entered = entering(comer)
        assert not entered.wait(0.2)
    assert entered.wait(5)


def test_those_who_come_later_do_not_overtake_one_who_waits_to_be_alone():
    with shared():
        first = entering(alone)
        assert not first.wait(0.2)
        later = entering(shared)
        assert not later.wait(0.2)
    assert first.wait(5) and later.wait(5)


def test_who_has_measured_lets_one_who_waits_to_measure_go_first():
    order, threads = [], []

    def measure():
        with alone():
            order.append("measures")

    with alone():
        threads.append(threading.Thread(target=measure, daemon=True))
        threads[0].start()
        time.sleep(0.1)
    with shared():
        order.append("trains")
    threads[0].join(5)
    assert order == ["measures", "trains"]


def test_one_at_a_time_does_a_thing_and_another_thing_meanwhile():
    def turn(what, patience=30):
        return devices.turn(CPU, "a", what, patience)

    with turn("x"), shared():
        second = entering(lambda: turn("x"))
        assert entering(lambda: turn("y")).wait(5) and not second.wait(0.2)
        with pytest.raises(TimeoutError, match="in use"), turn("x", patience=0.1):
            pass
    assert second.wait(5)


def test_patience_ends_and_lets_the_others_on():
    with shared():
        with pytest.raises(TimeoutError, match="in use"), alone(patience=0.1):
            pass
        assert entering(shared).wait(5)


def test_studies_do_not_wait_for_each_others_processors():
    with alone("a"):
        assert entering(lambda: shared("b")).wait(5)


def test_nobody_waits_for_cores_that_are_his_own():
    with alone(None):
        assert entering(lambda: shared(None)).wait(5)


def hold(folder, held):
    devices.tempfile.gettempdir = lambda: folder
    with alone():
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
    assert entering(shared).wait(5)


def test_a_device_is_named_with_the_threads_that_it_is_used_with():
    assert devices.name(CPU).endswith(f"{torch.get_num_threads()} thread{'s' if torch.get_num_threads() > 1 else ''}")


def test_threads_are_given_back_even_after_an_error():
    before = torch.get_num_threads()
    with pytest.raises(RuntimeError), devices.computing_on(before + 1):
        assert torch.get_num_threads() == before + 1
        raise RuntimeError
    assert torch.get_num_threads() == before
