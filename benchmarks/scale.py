"""What the service itself costs a trial, and how that grows: a study of trials that do nothing.

Command: python -m benchmarks.scale --trials 5000 --concurrent 64 --sampler front --out FILE
Measured: benchmarks/results/scale-front.json, and scale.json with TPE, whose version of this script did not write the
sampler yet; both hold hardware, versions and the seconds of each hundred trials. docs/cluster.md has the commands.
Hardware: one machine plays all nodes.
Baseline: none; `Tune` is what remains of the wall clock when all else is subtracted.

Everything is the real study's but the trial: Ray, Tune's loop and loggers, the searcher, Optuna's sampler, SQLite, the
tables of the results folder. A trial's only step returns at once, from a reused actor, without importing torch.

`wall` is seconds of the clock per trial. The parts are processor seconds per trial of the driver's only busy thread,
which other work on the machine does not inflate; they are counted exclusively: what the storage takes within a proposal
is the storage's. 1 / their sum is the trials per second at which the driver is saturated, with any number of workers.
"""

import json
import os
import platform
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

import click
import ray
from optuna.storages import RDBStorage
from ray import tune
from rich.console import Console

from study import cli, runner, search, spaces, storage
from study.progress import Progress
from study.results import PACKAGES
from study.sampling import FrontSampler
from study.settings import from_layers
from study.sole_writer import SoleWriter
from trainables.batch_schedules import batch_sizes
from trainables.config import TrialConfig
from trainables.errors import InputError
from trainables.files import write_whole

N_IMAGES = 50_000
BIN = 100  # trials between two rows of the result
STORAGE_METHODS = [name for name in vars(RDBStorage) if not name.startswith("__") and callable(vars(RDBStorage)[name])]


def seconds_of(config: TrialConfig) -> float:
    """What a trial pretends to have taken: a millisecond for each update of the weights and a microsecond an image."""
    return sum(N_IMAGES * (1e-3 / size + 1e-6) for size in batch_sizes(config.batch_size_schedule, config.epochs))


class NoTrial(tune.Trainable):
    """Ends at once, with a result that looks like a trained network's."""

    def setup(self, config: dict) -> None:
        pass

    def reset_config(self, new_config: dict) -> bool:
        return True

    def step(self) -> dict[str, object]:
        config = TrialConfig(**self.config["trial"])
        seconds = seconds_of(config)
        accuracy = random.Random(self.config["number"]).random() * config.epochs / (config.epochs + 10)
        return {
            "epoch": config.epochs,
            "train_seconds": seconds,
            "calibrated_seconds": seconds,
            "clean_accuracy": 0.9,
            "adversarial_accuracy": accuracy,
            "n_examples": 1000,
            "train_loss": 0.1,
            "batch_size": 128,
            "lr": 0.1,
            "done": True,
        }


class Ledger:
    """Processor seconds of this thread by what it did; inner work is not counted for the outer one."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self.inner = [0.0]  # seconds of the calls within each call under way

    def timed(self, part: str, function: Callable) -> Callable:
        def call(*args: object, **kwargs: object) -> object:
            start = time.thread_time()
            self.inner.append(0.0)
            try:
                return function(*args, **kwargs)
            finally:
                whole = time.thread_time() - start
                self.seconds[part] += whole - self.inner.pop()
                self.inner[-1] += whole

        return call

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Count storage, proposals, results, and what else the searcher does."""
        parts = [("storage", RDBStorage, name) for name in STORAGE_METHODS]
        parts += [("proposals", search.StudySearch, "suggest"), ("results", runner.Results, "told")]
        parts += [("searcher", search.StudySearch, name) for name in ("on_trial_result", "on_trial_complete", "flush")]
        parts += [("display", runner.Progress, "update")]
        with ExitStack() as stack:
            for part, owner, name in parts:
                function = vars(owner)[name]
                if not isinstance(function, staticmethod | classmethod):
                    stack.enter_context(patch.object(owner, name, self.timed(part, function)))
            yield


class Rows:
    """One row for every `BIN` trials: the seconds since the row before, by part, per trial."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger, self.rows = ledger, []
        self.clock, self.thread, self.before, self.n = time.perf_counter(), time.thread_time(), Counter(), 0

    def ended(self) -> None:
        self.n += 1
        if self.n % BIN == 0:
            clock, thread, spent = time.perf_counter(), time.thread_time(), Counter(self.ledger.seconds)
            parts = {part: (spent[part] - self.before[part]) / BIN for part in sorted(spent)}
            parts["tune"] = (thread - self.thread) / BIN - sum(parts.values())
            self.rows.append({"trials": self.n, "wall": (clock - self.clock) / BIN} | parts)
            self.clock, self.thread, self.before = clock, thread, spent


def measure(
    trials: int, concurrent: int, sampler: str, timeout: float | None, folder: Path
) -> tuple[str, list[dict[str, float]]]:
    """How the run ended, and rows of seconds per trial."""
    space = spaces.load("full")
    given = {"name": "scale", "trials": trials, "concurrent": concurrent, "results_dir": str(folder)}
    settings = from_layers(given | {"timeout": timeout, "sampler": sampler}, None, space.defaults)
    configure = partial(spaces.configure, space, settings)
    settings.folder.mkdir(parents=True)
    study = storage.open_study(SoleWriter(storage.from_url(settings.storage_url)), settings.name)
    if sampler == "front":
        study.sampler = FrontSampler(configure, lambda study: seconds_of, seed=0)
    else:
        study.sampler = search.make_sampler(settings, 0, configure, N_IMAGES)
    ledger = Ledger()
    rows = Rows(ledger)
    told = runner.Results.told

    def told_and_counted(self: runner.Results, number: int) -> None:
        told(self, number)
        rows.ended()

    with (
        patch.object(runner, "RayTrial", NoTrial),
        patch.object(runner.Results, "told", told_and_counted),
        ledger.watching(),
        Progress(Console(file=sys.stderr, width=120), trials, 0) as progress,
    ):
        ending = runner.run(study, configure, settings, ray.cluster_resources(), progress, "measured")
    return ending, rows.rows


@click.command(name="scale", help=__doc__)
@click.option("--trials", default=5000, show_default=True, type=click.IntRange(BIN))
@click.option("--concurrent", default=64, show_default=True, type=click.IntRange(1))
@click.option("--sampler", default="tpe", show_default=True, type=click.Choice(["front", *search.SAMPLERS]))
@click.option("--timeout", type=float, metavar="SECONDS", help="Stop after this long, with fewer trials.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="JSON file to write.")
def command(trials: int, concurrent: int, sampler: str, timeout: float | None, out: Path) -> int:
    if out.exists():
        raise InputError(f"out: {out} exists; accepted: a new file")
    os.environ.update(runner.QUIET)
    load = os.getloadavg()[0]
    options = {"include_dashboard": False, "log_to_driver": False, "logging_level": "ERROR"}
    with (
        TemporaryDirectory() as folder,
        ray.init(num_cpus=concurrent, object_store_memory=runner.OBJECT_STORE_BYTES, **options),
    ):
        start = time.perf_counter()
        ending, rows = measure(trials, concurrent, sampler, timeout, Path(folder))
        seconds = time.perf_counter() - start
    content = {
        "trials_asked": trials,
        "concurrent": concurrent,
        "sampler": sampler,
        "ending": ending,
        "seconds": seconds,
        "load_average": {"before": load, "after": os.getloadavg()[0]},
        "hardware": {"machine": platform.machine(), "cpus": os.cpu_count()},
        "versions": {"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
        "seconds_per_trial": rows,
    }
    write_whole(out, (json.dumps(content, indent=1) + "\n").encode())
    print(f"{ending}: {json.dumps(rows[-1:])}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run(command, argv, package="benchmarks")


if __name__ == "__main__":
    sys.exit(main())
