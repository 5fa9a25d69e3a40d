"""A study on a cluster of three hosts, and what is left of it when a part of the cluster is lost."""

import json
import re
import sys
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import pandas as pd
import pytest
from optuna.trial import FrozenTrial, TrialState

from tests.cluster.hosts import wait_until
from tests.cluster.rayup import TOKEN, Cluster
from tests.faults import campaign
from tests.faults.invariants import Account, check, open_study, read_log
from trainables.trial import load_model

pytestmark = [pytest.mark.cluster, pytest.mark.long, pytest.mark.hosts, pytest.mark.timeout(2000)]

N_TRIALS = 4
EPOCHS = 20  # long enough for both workers to be met in the middle of a trial
SPACE = campaign.space_file(EPOCHS)


def wait_until_ended(cluster: Cluster, job: str) -> None:
    wait_until(lambda: cluster.state(job) in ("SUCCEEDED", "FAILED", "STOPPED"), 400, "the end of the study")


@dataclass
class Submitted:
    """A study with results on the shared disk, whose trials write down what they do."""

    cluster: Cluster
    name: str
    job: str = ""

    @property
    def folder(self) -> Path:
        return self.cluster.shared / self.name

    @property
    def log(self) -> Path:
        return self.cluster.shared / f"{self.name}.log"

    def submit(self, *options: str) -> "Submitted":
        space = self.cluster.shared / "space.py"
        space.write_text(SPACE)
        self.job = self.cluster.submit(
            f".venv/bin/python -m tests.faults.driver {space} --name {self.name} --results-dir {self.cluster.shared} "
            f"--trials {N_TRIALS} --address auto {' '.join(options)}",
            FAULTS=json.dumps({"log": str(self.log), "trials": {}, "sqlite_timeout": 60}),
        )
        return self

    def wait_until_both_workers_train(self) -> None:
        """Two trials past their first epoch, neither near its end: one on each worker."""

        def both() -> bool:
            if not self.log.exists():
                return False
            last = {number: epoch for number, event, epoch in read_log(self.log) if event == "epoch"}
            return sum(2 <= epoch <= EPOCHS - 3 for epoch in last.values()) == 2

        wait_until(both, 240, "a trial on each worker")

    def wait_until_finished(self) -> Account:
        wait_until_ended(self.cluster, self.job)
        assert self.cluster.state(self.job) == "SUCCEEDED", self.cluster.log(self.job)
        account = check(self.folder, N_TRIALS, EPOCHS, self.log)
        assert account.complete == N_TRIALS
        return account


def test_a_study_submitted_from_outside_runs_on_both_workers_and_its_front_is_fetched(whole_cluster):
    cluster = whole_cluster
    space = cluster.shared / "space.py"
    space.write_text(SPACE)
    command = f".venv/bin/python -m study.pareto {space} --name first --trials {N_TRIALS} --address auto"
    # Each host's home is its own disk: what a worker writes to the results folder, the head does not see.
    job = cluster.submit(command)
    wait_until_ended(cluster, job)
    assert re.search("error: storage_path is needed: .* worker. does not see .*/results/first", cluster.log(job))
    job = cluster.submit(f"{command} --storage-path {cluster.shared / 'trials'}")
    wait_until_ended(cluster, job)
    assert cluster.state(job) == "SUCCEEDED", cluster.log(job)
    assert list((cluster.shared / "trials" / "first").iterdir()) == []
    cluster.fetch("~/adversarial-pareto/results/first/", "results")
    results = cluster.laptop.home / "results"
    trials = pd.read_csv(results / "trials.csv")
    assert list(trials.state) == ["COMPLETE"] * N_TRIALS
    assert set(trials.node) == {"worker1", "worker2"}
    front = pd.read_csv(results / "front.csv")
    assert len(front) >= 1
    for path in front.weights:
        load_model(results / path)


def test_two_studies_at_once_share_the_workers_and_both_are_whole(whole_cluster):
    studies = [Submitted(whole_cluster, name).submit("--concurrent", "1") for name in ("one", "other")]
    for study in studies:
        account = study.wait_until_finished()
        assert account.interruptions == 0
    began, ended = (
        [pick(t for trial in open_study(study.folder).trials for t in moments(trial)) for study in studies]
        for pick in (min, max)
    )
    assert max(began) < min(ended), "one study waited for the other's end"


def moments(trial: FrozenTrial) -> tuple[datetime, datetime]:
    return trial.datetime_start, trial.datetime_complete


def test_the_head_answers_nobody_without_the_token(whole_cluster):
    (whole_cluster.laptop.home / "wrong").write_text("0" * 64)
    with pytest.raises(PermissionError):
        whole_cluster.get("api/jobs/", token="~/wrong")
    assert isinstance(whole_cluster.get("api/jobs/"), list)
    assert whole_cluster.workers[0].run("bash", "-c", f"</dev/tcp/{whole_cluster.head.address}/8265").returncode != 0


OLD_RAY = """
import sys, ray
ray.__version__ = "2.59.0"
from study import pareto
sys.exit(pareto.main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    "python, options, line",
    [
        (["-m", "study.pareto"], ["--gpus-per-trial", "1"], r"gpus_per_trial: 1.0 given; accepted: at most 0, "),
        (["-c", OLD_RAY], [], r"address: 'auto' given \(.*2\.60\.0.*2\.59\.0.*\)"),
    ],
    ids=["GPUs where there are none", "another version of Ray"],
)
def test_what_does_not_fit_the_cluster_is_one_line(whole_cluster, python, options, line):
    head = whole_cluster.head
    command = [sys.executable, *python, "--address", "auto", "--name", "unfit", *options]
    answer = head.run(*command, cwd=whole_cluster.network.home / "adversarial-pareto", **TOKEN)
    assert answer.returncode == 2 and re.fullmatch(f"error: {line}.*\n", answer.stderr), answer.stderr
    assert not (head.home / "adversarial-pareto" / "results" / "unfit").exists()


def test_a_worker_cut_off_mid_trial_costs_one_epoch_and_no_trial(whole_cluster):
    study = Submitted(whole_cluster, "cut").submit()
    study.wait_until_both_workers_train()
    whole_cluster.workers[0].link("down")
    try:
        account = study.wait_until_finished()
        whole_cluster.wait_for_workers(1)  # a cable that is back before the head has noticed would be cut off later
    finally:
        whole_cluster.workers[0].link("up")
    assert account.interruptions == 1


def test_a_worker_that_loses_power_is_replaced_and_joins_again_when_it_is_back(whole_cluster):
    study = Submitted(whole_cluster, "power").submit()
    study.wait_until_both_workers_train()
    whole_cluster.workers[1].power_off()
    whole_cluster.workers[1].power_on()
    account = study.wait_until_finished()
    assert account.interruptions == 1
    whole_cluster.wait_for_workers(2)


def test_a_job_that_was_stopped_goes_on_when_it_is_submitted_again(whole_cluster):
    study = Submitted(whole_cluster, "stopped").submit()
    study.wait_until_both_workers_train()
    stopped = whole_cluster.jobs("stop", study.job)
    assert stopped.returncode == 0, stopped.stdout + stopped.stderr
    assert whole_cluster.state(study.job) == "STOPPED"
    states = [trial.state for trial in open_study(study.folder).trials]
    assert TrialState.RUNNING not in states and states.count(TrialState.WAITING) >= 2
    account = study.submit().wait_until_finished()
    assert account.interruptions == 2


def test_after_the_head_was_lost_ray_up_and_the_same_job_go_on(whole_cluster):
    study = Submitted(whole_cluster, "headless").submit()
    study.wait_until_both_workers_train()
    whole_cluster.head.power_off()
    whole_cluster.head.power_on()
    whole_cluster.up()
    whole_cluster.wait_for_workers(2)
    account = study.submit().wait_until_finished()
    assert account.interruptions == 2
