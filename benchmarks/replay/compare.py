"""Runs searches on the replay; see docs/search.md.

python -m benchmarks.replay.compare run out.jsonl "random;front" --seeds 20 --budget 120 --overhead 0.1
python -m benchmarks.replay.compare show benchmarks/results/replay/runs.jsonl.xz
"""

import json
import lzma
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import click
import numpy as np
from scipy import stats

from benchmarks.replay import surrogate
from benchmarks.replay.methods import METHODS
from benchmarks.replay.simulate import World, simulate
from study import cli
from study.front import hypervolume, non_dominated
from trainables.errors import InputError, nearest

N_WORKERS = 4

Run = dict[str, object]  # a line of a file: what defines one search, and what came of it
DEFINES = ("method", "seed", "model", "overhead", "budget")


@click.group(name="compare", help=__doc__)
def command() -> None:
    pass


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run(command, argv, package="benchmarks.replay")


@command.command()
@click.argument("path", type=Path)
@click.argument("names")
@click.option("--seeds", default=20)
@click.option("--first-seed", default=0)
@click.option("--budget", default=370.0, help="Device-seconds.")
@click.option("--overhead", default=0.0, help="Seconds a trial holds its device before its first epoch.")
@click.option("--model", default="process", help="process or forest")
def run(path: Path, names: str, seeds: int, first_seed: int, budget: float, overhead: float, model: str) -> None:
    """Append one line per search and seed; those in PATH with the same model, overhead and budget are not run again."""
    for name in names.split(";"):
        if name not in METHODS:
            raise InputError(f"names: {nearest(name, list(METHODS))}")
    if model not in surrogate.MODELS:
        raise InputError(f"model: {nearest(model, list(surrogate.MODELS))}")
    world = World(surrogate.load(model))
    done = {tuple(each[field] for field in DEFINES) for each in (runs([path]) if path.exists() else [])}
    for seed in range(first_seed, first_seed + seeds):
        for name in names.split(";"):
            values = (name, seed, model, overhead, budget)
            if values in done:
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
            row = dict(zip(DEFINES, values, strict=True))
            row |= {"n_started": outcome.n_started, "n_stopped": outcome.n_stopped}
            row |= {"cpu_seconds": round(time.process_time() - start, 1)}
            row |= {"completed": [[round(value, 4) for value in point] for point in outcome.completed]}
            with path.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(name, seed, outcome.n_started, outcome.n_stopped, row["cpu_seconds"], flush=True)


SLOWEST = 13.5  # seconds of the slowest recorded training: the reference point, whose accuracy is 0
N_RESAMPLES = 2000
DRAWN = ["front", "GP", "TPE, stopping", "TPE", "ASHA", "NSGA-II", "random", "MOASHA"]  # in the figure, in this order
Curves = dict[str, np.ndarray]  # hypervolume by seed and budget


def runs(paths: Sequence[Path]) -> list[Run]:
    """What `run` wrote; may be packed by xz."""
    found: list[Run] = []
    for path in paths:
        with (lzma.open if path.suffix == ".xz" else open)(path) as file:
            found += map(json.loads, file)
    return found


def require_comparable(found: Sequence[Run]) -> None:
    """All searches on one surrogate with one overhead, each with one budget, which may be less than another's.

    Raises:
        InputError: If they are not, or a search is there twice with the same seed.
    """
    for field in ("model", "overhead"):
        values = sorted({str(run[field]) for run in found})
        if len(values) > 1:
            raise InputError(f"{field}: runs with {' and '.join(values)} given; accepted: files with one {field}")
    budgets: dict[str, float] = {}
    for run in found:
        method, budget = run["method"], run["budget"]
        if budgets.setdefault(method, budget) != budget:
            raise InputError(
                f"budget: runs of {method!r} with {budgets[method]:g} and {budget:g} given; accepted: files with one"
            )
    for (method, seed), n in Counter((run["method"], run["seed"]) for run in found).items():
        if n > 1:
            raise InputError(f"seed: {n} runs of {method!r} with seed {seed} given; accepted: one")


def curves(searches: Sequence[Run], budgets: np.ndarray, log: bool, chosen: bool = False) -> Curves:
    """Hypervolume of completed trials by true accuracy, of each search, (seeds, budgets); NaN beyond its budget.

    Args:
        chosen: Only of those that a user would choose: the front by observed accuracy.
    """
    found: dict[str, list[np.ndarray]] = {}
    for run in searches:
        points = np.array(run["completed"]).reshape(-1, 4)
        found.setdefault(run["method"], []).append(
            np.array([volume(points, budget, log, chosen) if budget <= run["budget"] else np.nan for budget in budgets])
        )
    return {method: np.stack(each) for method, each in found.items()}


def observed_front(points: np.ndarray) -> np.ndarray:
    """The rows on the front by observed accuracy, the mean of a configuration's trainings; one row of each."""
    _, first, group = np.unique(points[:, [1, 3]], axis=0, return_index=True, return_inverse=True)
    means = np.bincount(group, points[:, 2]) / np.bincount(group)
    return points[first][non_dominated(np.column_stack([means, points[first, 3]]))]


def dominated_share(searches: Sequence[Run], method: str, budget: float) -> float:
    """Of the observed front, the share that another completed trial beats by true accuracy; the mean over seeds."""
    shares = []
    for run in searches:
        points = np.array(run["completed"]).reshape(-1, 4)
        done = points[points[:, 0] <= budget]
        if run["method"] == method and len(done):
            on_true_front = {tuple(row) for row in done[non_dominated(done[:, [1, 3]])][:, [1, 3]]}
            shares.append(np.mean([tuple(row) not in on_true_front for row in observed_front(done)[:, [1, 3]]]))
    return float(np.mean(shares))


def volume(points: np.ndarray, budget: float, log: bool, chosen: bool = False) -> float:
    """Of (n, 4) device-seconds when a trial ended, its true and observed accuracy, its seconds."""
    done = points[(points[:, 0] <= budget) & (points[:, 3] < SLOWEST)]
    if chosen and len(done):
        done = observed_front(done)
    scale = np.log if log else np.asarray
    return hypervolume(np.column_stack([done[:, 1], scale(done[:, 3])]), (0.0, float(scale(SLOWEST))))


def speed_up(ours: np.ndarray, peer: np.ndarray, budgets: np.ndarray, budget: float) -> np.ndarray:
    """Estimate, low and high end of the 95 % interval over seeds: `budget` over what ours needs for the peer's mean.

    Where ours did not get there within its own budget, which is no proof of any gain, the ratio counts as 1.
    """
    generator, at = np.random.default_rng(0), int(np.searchsorted(budgets, budget))

    def ratio(ours: np.ndarray, peer: np.ndarray) -> float:
        reached = np.flatnonzero(ours.mean(0) >= peer[:, at].mean())
        return budget / budgets[reached[0]] if len(reached) else 1.0

    def resampled(rows: np.ndarray) -> np.ndarray:
        return rows[generator.integers(len(rows), size=len(rows))]

    ratios = [ratio(resampled(ours), resampled(peer)) for _ in range(N_RESAMPLES)]
    return np.array([ratio(ours, peer), *np.quantile(ratios, [0.025, 0.975])])


@command.command()
@click.argument("paths", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--budgets", default="30,60,120")
@click.option("--linear", is_flag=True, help="Accuracy x seconds instead of accuracy x log seconds.")
@click.option("--chosen", is_flag=True, help="Count only what is on the front by observed accuracy.")
@click.option("--ours", default="front", show_default=True, help="The search that the others are held against.")
@click.option("--figure", type=Path)
def show(paths: tuple[Path, ...], budgets: str, linear: bool, chosen: bool, ours: str, figure: Path | None) -> None:
    """Mean hypervolumes, and how much less budget one search needs for those of the others."""
    grid, at = np.arange(1.0, 371.0), [float(text) for text in budgets.split(",")]
    searches = runs(paths)
    require_comparable(searches)
    found = curves(searches, grid, not linear, chosen)
    if ours not in found:
        raise InputError(f"ours: {nearest(ours, list(found))}")
    for method, rows in found.items():
        cells = [f"{len(rows)} seeds"]
        for budget in at:
            column = rows[:, int(np.searchsorted(grid, budget))]
            if np.isfinite(column).all():
                spread = half_interval(column) if len(column) > 1 else np.nan
                cells.append(f"{budget:g} s: {column.mean():.2f} ± {spread:.2f}")
                if chosen:
                    cells[-1] += f", {dominated_share(searches, method, budget):.0%} of it truly dominated"
                if method != ours:
                    estimate, low, high = speed_up(found[ours], rows, grid, budget)
                    cells[-1] += f", {ours} needs 1/{estimate:.1f} ({low:.1f} to {high:.1f})"
        click.echo(f"{method}: " + "; ".join(cells))
    if figure:
        draw(searches, grid, figure)


def half_interval(rows: np.ndarray) -> np.ndarray:
    """Half of Student's 95 % interval of the mean over the first axis."""
    n = len(rows)
    return stats.t.ppf(0.975, n - 1) * rows.std(0, ddof=1) / np.sqrt(n)


def draw(searches: Sequence[Run], grid: np.ndarray, path: Path) -> None:
    """Mean and 95 % interval over seeds against device-seconds, by log seconds and by plain ones.

    A dashed line is what all runs reached together: the space allows that much at least.
    """
    from matplotlib.figure import Figure

    picture = Figure(figsize=(9, 8.5), layout="constrained")
    ended = np.concatenate([np.array(run["completed"]).reshape(-1, 4) for run in searches])
    for axes, log in zip(picture.subplots(2, sharex=True), (True, False), strict=True):
        found = curves(searches, grid, log)
        for method in [name for name in DRAWN if name in found]:
            rows = found[method]
            mean, error = rows.mean(0), half_interval(rows)
            axes.plot(grid, mean, label=f"{method} ({len(rows)} seeds)" if log else None)
            axes.fill_between(grid, mean - error, mean + error, alpha=0.15)
        together = volume(ended, np.inf, log)
        axes.axhline(together, color="gray", linestyle="dashed", label="all runs together" if log else None)
        axes.set(
            xscale="log",
            xlim=(5, 120),
            ylim=(0, None),
            ylabel=f"hypervolume, accuracy x {'log ' if log else ''}seconds",
        )
        axes.grid(alpha=0.3)
    axes.set_xlabel("device-seconds")
    picture.legend(loc="outside right upper")
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.savefig(path, dpi=120)


if __name__ == "__main__":
    sys.exit(main())
