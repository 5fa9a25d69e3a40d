"""The check on real trainings: same wall-clock budget, sampler `front` against plain OptunaSearch (`tpe`), on digits.

    python -m benchmarks.replay.real results-folder --seconds 600 --seeds 3

Needs a machine to itself. Each study searches `quickstart`'s space at depth 8 until the time is up, without its
published configurations counted for either. Prints, for each seed, both fronts' hypervolume (accuracy x log seconds,
seconds calibrated) from the same reference point.
"""

import subprocess
import sys
from pathlib import Path

import click
import numpy as np

from study import storage
from study.results import front_of
from study.sampling import log_hypervolume


@click.command()
@click.argument("folder", type=Path)
@click.option("--seconds", default=600.0)
@click.option("--seeds", default=3)
def main(folder: Path, seconds: float, seeds: int) -> None:
    for seed in range(seeds):
        fronts = {}
        for sampler in ("front", "tpe"):
            name = f"{sampler}-{seed}"
            run(folder, name, sampler, seed, seconds)
            study = storage.named(name, str(folder), None)
            trials = [trial for trial in study.get_trials(deepcopy=False) if not trial.user_attrs.get("label")]
            fronts[sampler] = np.array([trial.values for trial in front_of(trials)]).reshape(-1, 2)
        slowest = 1.1 * max(front[:, 1].max(initial=0.0) for front in fronts.values())
        volumes = {sampler: log_hypervolume(front, slowest) for sampler, front in fronts.items()}
        click.echo(f"seed {seed}: " + ", ".join(f"{sampler} {volume:.3f}" for sampler, volume in volumes.items()))


def run(folder: Path, name: str, sampler: str, seed: int, seconds: float) -> None:
    command = [sys.executable, "-m", "study.pareto", "quickstart", "--name", name, "--results-dir", str(folder)]
    command += ["--depth", "8", "--sampler", sampler, "--seed", str(seed), "--objective", "calibrated"]
    command += ["--trials", "100000", "--timeout", str(seconds)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
