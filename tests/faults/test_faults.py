"""A short campaign of kills, and every way in which a trial can fail by itself."""

import random

import psutil
import pytest
from optuna.trial import TrialState

from tests.faults import campaign
from tests.faults.invariants import open_study

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(500)]

N_KILLS = 5


def test_after_kills_at_random_moments_no_trial_is_lost_doubled_or_faked(tmp_path):
    report = campaign.run(0, N_KILLS, tmp_path)  # the invariants are asserted after each study
    assert sum(report.kills.values()) == N_KILLS
    assert report.total("complete") == report.total("trials") == len(report.accounts) * campaign.N_TRIALS
    assert report.total("epochs_redone") <= report.total("interruptions")


def test_a_driver_whose_last_node_is_killed_says_so_and_the_same_command_goes_on(tmp_path):
    driver = campaign.start_driver(tmp_path, "alone", {})
    process = psutil.Process(driver.pid)
    campaign.wait_for_workers(process, driver)
    # Workers can outlive the raylet for a while and finish the study: they go with it.
    assert campaign.strike("raylet", process, random.Random(0))
    campaign.strike("workers", process, random.Random(0))
    assert driver.wait(timeout=90) == 1
    assert "error: Ray has lost its last node" in (tmp_path / "alone.out").read_text()
    assert campaign.start_driver(tmp_path, "alone", {}).wait(timeout=120) == 0
    campaign.check(tmp_path / "alone", campaign.N_TRIALS, campaign.EPOCHS, tmp_path / "alone.log")


def test_a_trial_that_fails_by_itself_fails_once_with_its_reason_and_the_others_go_on(tmp_path):
    faults = {"1": "raise", "2": "nan", "3": "inf", "4": "memory", "5": "die"}
    driver = campaign.start_driver(tmp_path, "faulty", faults, "--retries", "1")
    assert driver.wait(timeout=240) == 0, (tmp_path / "faulty.out").read_text()
    trials = open_study(tmp_path / "faulty").trials
    assert [trial.state for trial in trials[1:6]] == [TrialState.FAIL] * 5
    assert [trial.state for trial in [trials[0], *trials[6:]]] == [TrialState.COMPLETE] * 3
    reasons = {trial.number: trial.user_attrs["reason"] for trial in trials}
    assert reasons[1] == "ZeroDivisionError: last line"
    assert "not finite" in reasons[2] and "not finite" in reasons[3]
    assert reasons[4].startswith("out of memory: ")
    assert reasons[5] == "machine: worker or node lost, 2 times"
    opened = [line.split()[0] for line in (tmp_path / "faulty.log").read_text().splitlines() if " open " in line]
    assert [opened.count(number) for number in "12345"] == [1, 1, 1, 1, 2]  # only the machine's failure is retried
    campaign.check(tmp_path / "faulty", campaign.N_TRIALS, campaign.EPOCHS, tmp_path / "faulty.log")
