"""Kills parts of running studies at seeded random moments, starts them again, and checks what is left."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.faults.invariants import Account, check

ROOT = Path(__file__).parents[2]
EPOCHS = 8
N_TRIALS = 8
STUDY_SECONDS = 1800  # no study of this size takes as long, however often it is killed, and however busy the machine

SPACE = """
BASELINES = {"published": {"batch_size_schedule.size": 16, "lr_batch_ratio": 1e-3}}
DEFAULTS = {"dataset": "digits", "eps": 0.1, "depth": 8, "attack_steps": 2, "eval_examples": 64}

def space(trial):
    trial.suggest_categorical("batch_size_schedule.size", [16, 32])
    trial.suggest_float("lr_batch_ratio", 1e-4, 1e-3, log=True)
    return {"batch_size_schedule.kind": "constant", "epochs": EPOCHS}
"""


def space_file(epochs: int = EPOCHS) -> str:
    return SPACE.replace("EPOCHS", str(epochs))


def trial_workers(driver: psutil.Process) -> list[psutil.Process]:
    return [
        process for process in descendants(driver) if re.match(r"ray::(\d{4} |.*(Trial|Trainable))", title(process))
    ]


def descendants(driver: psutil.Process) -> list[psutil.Process]:
    try:
        return driver.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def one_worker(driver: psutil.Process, rng: random.Random) -> list[psutil.Process]:
    workers = trial_workers(driver)
    return [rng.choice(workers)] if workers else []


def all_workers(driver: psutil.Process, rng: random.Random) -> list[psutil.Process]:
    return trial_workers(driver)


def raylet(driver: psutil.Process, rng: random.Random) -> list[psutil.Process]:
    return [process for process in descendants(driver) if "/raylet/raylet" in title(process)]


def driver_alone(driver: psutil.Process, rng: random.Random) -> list[psutil.Process]:
    return [driver]


def all_of_ray(driver: psutil.Process, rng: random.Random) -> list[psutil.Process]:
    return descendants(driver)


IN_TRAINING = 0.75  # share of the kills that strike while an epoch runs, or just after

# How often each is drawn: what is cheap to come back from, and most frequent in life, more often.
WEIGHTS = {"worker": 6, "workers": 2, "driver": 2, "raylet": 1, "ray": 1}

KILLS: dict[str, Callable[[psutil.Process, random.Random], list[psutil.Process]]] = {
    "worker": one_worker,
    "workers": all_workers,
    "raylet": raylet,
    "driver": driver_alone,
    "ray": all_of_ray,
}


def strike(kind: str, driver: psutil.Process, rng: random.Random) -> bool:
    """SIGKILL to what `kind` names; whether there was such a process."""
    victims = KILLS[kind](driver, rng)
    for process in victims:
        try:
            process.send_signal(signal.SIGKILL)
        except psutil.NoSuchProcess:
            continue
    return bool(victims)


@dataclass
class Report:
    """What a campaign did and found."""

    kills: Counter = field(default_factory=Counter)
    starts: int = 0
    accounts: list[Account] = field(default_factory=list)

    def total(self, name: str) -> int:
        return sum(getattr(account, name) for account in self.accounts)

    def line(self) -> str:
        return (
            f"{sum(self.kills.values())} kills {dict(self.kills)}, "
            f"{self.starts} drivers, {len(self.accounts)} studies; "
            f"{self.total('trials')} trials, {self.total('complete')} complete, {self.total('failed')} failed, "
            f"none lost or doubled; {self.total('interruptions')} interruptions, "
            f"{self.total('epochs_redone')} epochs redone, at most "
            f"{max(account.most_redone_per_interruption for account in self.accounts):.2g} per interruption"
        )


def start_driver(
    folder: Path, name: str, faults: dict[str, str], *options: str, epochs: int = EPOCHS, sqlite_timeout: float = 60
) -> subprocess.Popen:
    space = folder / "space.py"
    space.write_text(space_file(epochs))
    log = str(folder / f"{name}.log")
    faulty = {"log": log, "trials": faults, "sqlite_timeout": sqlite_timeout}
    environment = os.environ | {"FAULTS": json.dumps(faulty)}
    command = [sys.executable, "-m", "tests.faults.driver", str(space), "--name", name, "--results-dir", str(folder)]
    command += ["--trials", str(N_TRIALS), "--retries", "100", *options]
    with open(folder / f"{name}.out", "a") as out:
        return subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=out, env=environment)


def run(seed: int, n_kills: int, folder: Path, say: Callable[[str], None] = lambda line: None) -> Report:
    """Studies one after the other until `n_kills` have struck; each is then left to finish and checked."""
    rng, report = random.Random(seed), Report()
    while sum(report.kills.values()) < n_kills:
        name = f"study{len(report.accounts)}"
        deadline = time.monotonic() + STUDY_SECONDS
        while not one_driver(folder, name, rng, report, n_kills, deadline):
            assert time.monotonic() < deadline, f"{name} does not end: see {folder / name}.out"
        report.accounts.append(check(folder / name, N_TRIALS, EPOCHS, folder / f"{name}.log"))
        say(report.line())
    return report


def one_driver(folder: Path, name: str, rng: random.Random, report: Report, n_kills: int, deadline: float) -> bool:
    """Start the study's driver and strike at it until it ends; whether the study has finished."""
    driver = start_driver(folder, name, {})
    report.starts += 1
    process = psutil.Process(driver.pid)
    try:
        while driver.poll() is None and time.monotonic() < deadline:
            if rng.random() < IN_TRAINING:  # the others strike whatever is under way, mostly a start
                wait_for_an_epoch(folder / f"{name}.log", driver)
            wait_until(rng.uniform(0.0, 2.0), driver)
            if driver.poll() is not None or sum(report.kills.values()) >= n_kills:
                continue
            if not trial_workers(process):
                continue  # nothing runs yet
            (kind,) = rng.choices(list(WEIGHTS), weights=list(WEIGHTS.values()))
            if strike(kind, process, rng):
                report.kills[kind] += 1
        return driver.wait(timeout=max(1.0, deadline - time.monotonic())) == 0
    finally:
        driver.kill()


def wait_for_workers(process: psutil.Process, driver: subprocess.Popen, seconds: float = 60) -> None:
    """Sleep until a trial has a worker, a moment longer, and at most `seconds`."""
    end = time.monotonic() + seconds
    while not trial_workers(process) and time.monotonic() < end:
        wait_until(0.2, driver)
    wait_until(3.0, driver)


def wait_for_an_epoch(log: Path, driver: subprocess.Popen, seconds: float = 60) -> None:
    """Sleep until a trial begins another epoch, and at most `seconds`."""
    size = log.stat().st_size if log.exists() else 0
    end = time.monotonic() + seconds
    while driver.poll() is None and time.monotonic() < end and (not log.exists() or log.stat().st_size == size):
        time.sleep(0.01)


def wait_until(seconds: float, driver: subprocess.Popen) -> None:
    """Sleep, but not beyond the driver's end."""
    end = time.monotonic() + seconds
    while driver.poll() is None and time.monotonic() < end:
        time.sleep(0.05)
