"""The searches that are compared, by name."""

import os
from collections.abc import Callable
from functools import partial

from optuna.samplers import GPSampler, NSGAIISampler, RandomSampler, TPESampler

from benchmarks.replay.simulate import Asha, Moasha, OptunaStudy, Repeating, Search, World, configure
from study.sampling import FrontSampler
from study.stopping import Stopping

MOASHA_PYTHON = os.environ.get("MOASHA_PYTHON", "python")

Method = Callable[[World, int], Search]  # and a seed


def optuna_search(sampler: Callable, world: World, seed: int) -> Search:
    """Plain OptunaSearch: told when complete."""
    return OptunaStudy(sampler(seed=seed), world.known_seconds)


def asha(world: World, seed: int, reduction_factor: float = 3) -> Search:
    return Asha(RandomSampler(seed=seed), world.known_seconds, reduction_factor)


def moasha(world: World, seed: int, **options: object) -> Search:
    return Moasha(MOASHA_PYTHON, world.known_seconds, seed, **options)


def stopped(sampler: Callable, world: World, seed: int, tell: str = "pruned", quantile: float = 0.9) -> Search:
    return OptunaStudy(sampler(seed=seed), world.known_seconds, Stopping(quantile), tell)


def front(world: World, seed: int, stop: bool) -> Search:
    sampler = FrontSampler(configure, lambda study: world.known_seconds, seed)
    return OptunaStudy(sampler, world.known_seconds, sampler.stop if stop else None)


def repeating(world: World, seed: int, share: float) -> Search:
    sampler = FrontSampler(configure, lambda study: world.known_seconds, seed)
    return Repeating(sampler, world.known_seconds, share, seed)


tpe = partial(TPESampler, constant_liar=True)
tpe_multivariate = partial(TPESampler, constant_liar=True, multivariate=True, group=True)

METHODS: dict[str, Method] = {
    "random": partial(optuna_search, RandomSampler),
    "TPE": partial(optuna_search, tpe),
    "TPE, multivariate": partial(optuna_search, tpe_multivariate),
    "NSGA-II": partial(optuna_search, partial(NSGAIISampler, population_size=20)),
    "GP": partial(optuna_search, GPSampler),
    "ASHA": asha,
    "MOASHA": partial(moasha, seconds="elapsed", grace_period=1, reduction_factor=3),
    "MOASHA, known seconds": partial(moasha, seconds="known", grace_period=1, reduction_factor=3),
    "random, stopping": partial(stopped, RandomSampler),
    "random, stopping at 1": partial(stopped, RandomSampler, quantile=1.0),
    "TPE, stopping": partial(stopped, tpe),
    "TPE, stopping, values": partial(stopped, tpe, tell="values"),
    "TPE, stopping, constraint": partial(stopped, tpe, tell="constraint"),
    "TPE, stopping, failed": partial(stopped, tpe, tell="failed"),
    "front": partial(front, stop=False),
    "front, repeats 0.1": partial(repeating, share=0.1),
    "front, repeats 0.25": partial(repeating, share=0.25),
    "front, repeats 0.5": partial(repeating, share=0.5),
    "front, stopping": partial(front, stop=True),
}
