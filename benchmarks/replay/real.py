"""The check on real trainings: same wall-clock budget, `front` with early stopping against plain OptunaSearch (TPE).

    python -m benchmarks.replay.real results-folder --seconds 150 --seeds 3 --out benchmarks/results/replay/real.json

Needs a machine to itself. Each study searches `quickstart`'s space at depth 8 until the time is up, in turn; what
the published configurations reach counts for neither. For each seed it prints both fronts' hypervolume from the same
reference point, by the logarithm of (calibrated) seconds and by plain seconds.
"""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import click
import numpy as np

from study import cli, storage
from study.front import hypervolume
from study.results import PACKAGES, is_complete
from study.sampling import log_hypervolume
from trainables.files import write_whole

SEARCHES = {"front": ["--sampler", "front", "--stop-early"], "tpe": ["--sampler", "tpe"]}


@click.command(name="real", help=__doc__)
@click.argument("folder", type=Path)
@click.option("--seconds", default=150.0, help="Of each study.")
@click.option("--seeds", default=3)
@click.option("--out", type=click.Path(path_type=Path), help="JSON file to write.")
def command(folder: Path, seconds: float, seeds: int, out: Path | None) -> None:
    rounds = []
    for seed in range(seeds):
        points, load = {}, os.getloadavg()[0]
        for search in SEARCHES:
            name = f"{search}-{seed}"
            run(folder, name, SEARCHES[search], seed, seconds)
            trials = storage.named(name, str(folder), None).get_trials(deepcopy=False)
            own = [trial.values for trial in trials if is_complete(trial) and not trial.user_attrs.get("label")]
            points[search] = np.array(own).reshape(-1, 2)
        rounds.append({"seed": seed, "load_before": load, "of": compared(points)})
        click.echo(json.dumps(rounds[-1]["of"]))
    if out:
        content = {
            "seconds": seconds,
            "hardware": {"machine": platform.machine(), "cpus": os.cpu_count()},
            "versions": {"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
            "rounds": rounds,
        }
        write_whole(out, (json.dumps(content, indent=1) + "\n").encode())


def compared(points: dict[str, np.ndarray]) -> dict[str, dict[str, float]]:
    """Of each search's (n, 2) complete trials, accuracy and seconds: how many, and their hypervolumes."""
    slowest = 1.1 * max(each[:, 1].max(initial=0.0) for each in points.values())
    return {
        search: {
            "complete": len(each),
            "device_seconds": float(each[:, 1].sum()),
            "best_accuracy": float(each[:, 0].max(initial=0.0)),
            "log_hypervolume": log_hypervolume(each, slowest),
            "hypervolume": hypervolume(each, (0.0, slowest)),
        }
        for search, each in points.items()
    }


def run(folder: Path, name: str, options: list[str], seed: int, seconds: float) -> None:
    words = [sys.executable, "-m", "study.pareto", "quickstart", "--name", name, "--results-dir", str(folder)]
    words += ["--depth", "8", *options, "--seed", str(seed), "--objective", "calibrated"]
    words += ["--trials", "100000", "--timeout", str(seconds)]
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run(command, argv, package="benchmarks.replay")


if __name__ == "__main__":
    sys.exit(main())
