"""Runs searches on the replay; see docs/search.md.

python -m benchmarks.replay.compare run out.jsonl "random,front" --seeds 20 --budget 370
"""

import json
import time
from pathlib import Path

import click
import optuna

from benchmarks.replay import surrogate
from benchmarks.replay.methods import METHODS
from benchmarks.replay.simulate import World, simulate

N_WORKERS = 4


@click.group()
def main() -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)


@main.command()
@click.argument("path", type=Path)
@click.argument("names")
@click.option("--seeds", default=20)
@click.option("--first-seed", default=0)
@click.option("--budget", default=370.0, help="Device-seconds.")
@click.option("--overhead", default=0.0, help="Seconds a trial holds its device before its first epoch.")
@click.option("--model", default="process", help="process or forest")
def run(path: Path, names: str, seeds: int, first_seed: int, budget: float, overhead: float, model: str) -> None:
    """Append one line per search and seed; those already there are not run again."""
    world = World(surrogate.load(model))
    done = set()
    if path.exists():
        done = {
            (r["method"], r["seed"], r["model"], r["overhead"]) for r in map(json.loads, path.read_text().splitlines())
        }
    for seed in range(first_seed, first_seed + seeds):
        for name in names.split(";"):
            if (name, seed, model, overhead) in done:
                continue
            start = time.process_time()
            outcome = simulate(
                METHODS[name](world, seed),
                world.surrogate,
                n_workers=N_WORKERS,
                budget=budget,
                seed=seed,
                overhead=overhead,
            )
            row = {"method": name, "seed": seed, "model": model, "overhead": overhead, "budget": budget}
            row |= {"n_started": outcome.n_started, "n_stopped": outcome.n_stopped}
            row |= {"cpu_seconds": round(time.process_time() - start, 1)}
            row |= {"completed": [[round(value, 4) for value in point] for point in outcome.completed]}
            with path.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(name, seed, outcome.n_started, outcome.n_stopped, row["cpu_seconds"], flush=True)


if __name__ == "__main__":
    main()
