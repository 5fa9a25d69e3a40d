"""Every way in which a trial, its node, its disk or its storage can fail."""

import random
import shutil
import socket
import sqlite3
import subprocess
import time
from contextlib import closing, suppress
from functools import partial

import optuna
import psutil
import pytest
from optuna.trial import TrialState

from tests.faults import campaign
from tests.faults.invariants import open_study

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(600)]

EPOCHS = 4
start = partial(campaign.start_driver, epochs=EPOCHS)


def test_a_driver_whose_last_node_is_killed_says_so_and_the_same_command_goes_on(tmp_path):
    driver = start(tmp_path, "alone", {})
    process = psutil.Process(driver.pid)
    campaign.wait_for_workers(process, driver)
    # Workers can outlive the raylet for a while and finish the study: they go with it, whose children they are.
    (raylet,) = campaign.raylet(process, random.Random(0))
    for part in [raylet, *raylet.children(recursive=True)]:
        with suppress(psutil.NoSuchProcess):
            part.kill()
    assert driver.wait(timeout=90) == 1
    assert "error: Ray has lost its last node" in (tmp_path / "alone.out").read_text()
    assert start(tmp_path, "alone", {}).wait(timeout=300) == 0
    campaign.check(tmp_path / "alone", campaign.N_TRIALS, EPOCHS, tmp_path / "alone.log")


def test_a_trial_that_fails_by_itself_fails_once_with_its_reason_and_the_others_go_on(tmp_path):
    faults = {"1": "raise", "2": "nan", "3": "inf", "4": "memory", "5": "die", "6": "gpu"}
    driver = start(tmp_path, "faulty", faults, "--retries", "1")
    assert driver.wait(timeout=480) == 0, (tmp_path / "faulty.out").read_text()
    trials = open_study(tmp_path / "faulty").trials
    assert [trial.state for trial in trials[1:7]] == [TrialState.FAIL] * 6
    assert [trial.state for trial in [trials[0], *trials[7:]]] == [TrialState.COMPLETE] * 2
    reasons = {trial.number: trial.user_attrs["reason"] for trial in trials}
    assert reasons[1] == "ZeroDivisionError: last line"
    assert "not finite" in reasons[2] and "not finite" in reasons[3]
    assert reasons[4].startswith("out of memory: ")
    assert reasons[5] == "machine: worker or node lost, 2 times"
    assert reasons[6] == "machine: AcceleratorError: CUDA error: an illegal memory access was encountered, 2 times"
    opened = [line.split()[0] for line in (tmp_path / "faulty.log").read_text().splitlines() if " open " in line]
    assert [opened.count(number) for number in "123456"] == [1, 1, 1, 1, 2, 2]  # only the machine's is retried
    campaign.check(tmp_path / "faulty", campaign.N_TRIALS, EPOCHS, tmp_path / "faulty.log")


def test_a_trial_that_hangs_is_ended_and_goes_on_until_its_retries_are_used_up(tmp_path):
    driver = start(tmp_path, "hung", {"1": "hang"}, "--retries", "1", "--epoch-timeout", "15")
    assert driver.wait(timeout=480) == 0, (tmp_path / "hung.out").read_text()
    trials = open_study(tmp_path / "hung").trials
    assert trials[1].user_attrs["reason"] == "machine: hung, no epoch ended within 15 s, 2 times"
    assert [trial.state for trial in trials].count(TrialState.COMPLETE) == campaign.N_TRIALS - 1
    campaign.check(tmp_path / "hung", campaign.N_TRIALS, EPOCHS, tmp_path / "hung.log")


@pytest.fixture
def small_disk(tmp_path):
    """A disk of its own, 160 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=160m", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"a disk cannot be mounted here: {mounted.stderr.decode().strip()}")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def wait_for_epochs(log, n):
    end = time.monotonic() + 120
    while time.monotonic() < end and (not log.exists() or log.read_text().count(" epoch ") < n):
        time.sleep(0.05)


def fill(disk):
    with open(disk / "filler", "wb") as file:
        while shutil.disk_usage(disk).free > 4096:
            file.write(b"x" * 4096)
            file.flush()


def test_a_full_disk_ends_the_study_with_one_line_and_it_goes_on_once_there_is_room(small_disk):
    driver = start(small_disk, "full", {})
    wait_for_epochs(small_disk / "full.log", 6)
    fill(small_disk)
    assert driver.wait(timeout=300) == 1
    (small_disk / "filler").unlink()
    said = (small_disk / "full.out").read_text()
    assert "Traceback" not in said
    assert start(small_disk, "full", {}).wait(timeout=480) == 0, (small_disk / "full.out").read_text()
    campaign.check(small_disk / "full", campaign.N_TRIALS, EPOCHS, small_disk / "full.log")


def test_a_storage_locked_for_longer_than_it_waits_loses_nothing(tmp_path):
    driver = start(tmp_path, "locked", {}, sqlite_timeout=0.5)
    log = tmp_path / "locked.log"
    for n in (4, 9, 14, 19):
        wait_for_epochs(log, n)
        with closing(sqlite3.connect(tmp_path / "locked" / "study.db", timeout=60)) as other:
            other.execute("BEGIN EXCLUSIVE")
            time.sleep(4)
    assert driver.wait(timeout=480) == 0, (tmp_path / "locked.out").read_text()
    account = campaign.check(tmp_path / "locked", campaign.N_TRIALS, EPOCHS, log)
    assert (account.complete, account.interruptions, account.epochs_redone) == (campaign.N_TRIALS, 0, 0)


def test_a_storage_that_cannot_be_written_is_one_line_and_changes_nothing(tmp_path):
    assert start(tmp_path, "kept", {}, "--trials", "2").wait(timeout=300) == 0
    database = tmp_path / "kept" / "study.db"
    before = database.read_bytes()
    url = f"sqlite:///file:{database}?mode=ro&uri=true"
    driver = start(tmp_path, "kept", {}, "--storage", url)
    assert driver.wait(timeout=60) == 1
    said = (tmp_path / "kept.out").read_text().splitlines()[-1]
    assert said.startswith("error: storage: ") and "readonly" in said
    assert database.read_bytes() == before


def test_a_second_driver_whose_results_lie_elsewhere_is_refused_and_no_trial_is_trained_twice(tmp_path):
    url, log = f"sqlite:///{tmp_path / 'both.db'}", tmp_path / "both.log"
    begin = partial(campaign.start_driver, tmp_path, "both", {}, "--storage", url, epochs=40)
    first = begin()
    wait_for_epochs(log, 2)
    second = begin("--results-dir", str(tmp_path / "elsewhere"))
    assert second.wait(timeout=120) == 2
    assert f"is being run by host {socket.gethostname()}, pid {first.pid}" in (tmp_path / "both.out").read_text()
    assert not (tmp_path / "elsewhere").exists()
    assert first.wait(timeout=300) == 0
    study = optuna.load_study(storage=url, study_name="both")
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * campaign.N_TRIALS
    assert log.read_text().count(" open ") == campaign.N_TRIALS
    assert not study.user_attrs["driver"]
