"""The search's own time per proposal against the number of finished trials.

python -m benchmarks.replay.cost
"""

import sys
import time
from collections.abc import Sequence

import click
import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState, create_trial

from benchmarks.replay import surrogate
from benchmarks.replay.simulate import World, configure, rows
from study import cli
from study.sampling import Draw, FrontSampler
from study.stopping import RunningTrial, Stopping
from study.storage import DIRECTIONS


def finished(world: World, n: int) -> list[FrozenTrial]:
    generator, trials = np.random.default_rng(0), []
    for number in range(n):
        draw = Draw(generator)
        config = configure(draw)
        curve = world.surrogate.mean_curve(config)
        trial = create_trial(
            state=TrialState.COMPLETE,
            values=[float(curve[-1]), world.known_seconds(config)],
            user_attrs={"config": config.model_dump(mode="json"), "curve": rows(curve)},
        )
        trial.number = number
        trial._params = draw.params
        trials.append(trial)
    return trials


@click.command(name="cost", help=__doc__)
@click.option("--proposals", default=30)
def command(proposals: int) -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    world = World(surrogate.load())
    trials = finished(world, 5000)
    for n in (100, 1000, 5000):
        study = optuna.create_study(directions=DIRECTIONS)
        sampler = FrontSampler(configure, lambda study: world.known_seconds, seed=0)
        sampler.expected_seconds = sampler.timer(study)
        sampler.propose(trials[: n // 2])  # trials are encoded once, as they end, and not all at once
        sampler.propose(trials[:n])
        taken = []
        for _ in range(proposals):
            start = time.process_time()
            sampler.propose(trials[:n])
            taken.append(time.process_time() - start)
        sampler.n_fitted = 0
        start = time.process_time()
        sampler.propose(trials[:n])
        fit = time.process_time() - start
        decided, running = [], RunningTrial(configure(Draw(np.random.default_rng(1))), "", rows([0.0]), 1.0, 9.0)
        for rule in (Stopping(), sampler.stop, sampler.stop):  # the last with a forecast at hand
            start = time.process_time()
            rule(running, trials[:n])
            decided.append(time.process_time() - start)
        click.echo(
            f"{n} finished: {1000 * np.median(taken):.0f} ms a proposal, {1000 * fit:.0f} ms with new models; "
            f"a stopping decision {1000 * decided[0]:.1f} ms, of `front` {1000 * decided[2]:.1f} ms, "
            f"{1000 * decided[1]:.0f} ms with a new forecast (CPU time)"
        )


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run(command, argv, package="benchmarks.replay")


if __name__ == "__main__":
    sys.exit(main())
