"""Batch size of each epoch."""

import bisect
import math
from collections.abc import Callable, Sequence

from trainables.config import (
    BatchSizeSchedule,
    ConstantBatch,
    GeometricBatch,
    LinearBatch,
    MilestoneBatch,
    PlateauBatch,
)


def constant(schedule: ConstantBatch, epochs: int, accuracies: Sequence[float] = ()) -> list[int]:
    """The same size throughout."""
    return [schedule.size] * epochs


def geometric(schedule: GeometricBatch, epochs: int, accuracies: Sequence[float] = ()) -> list[int]:
    """first, first·factor, ... up to last, in equal stages.

    Stages that cannot be equal differ by one epoch. With fewer epochs than stages, some sizes are
    left out, but never the first, nor from two epochs on the last.

    Source: Sasongko, Krisnadhi, Fanany 2021, Reducing Adversarial Vulnerability through Adaptive Training Batch Size.
    """
    sizes = [schedule.first]
    while sizes[-1] < schedule.last:
        sizes.append(min(sizes[-1] * schedule.factor, schedule.last))
    if epochs >= len(sizes):
        return [sizes[epoch * len(sizes) // epochs] for epoch in range(epochs)]
    return [sizes[epoch * (len(sizes) - 1) // max(epochs - 1, 1)] for epoch in range(epochs)]


def linear(schedule: LinearBatch, epochs: int, accuracies: Sequence[float] = ()) -> list[int]:
    """Equal growth each epoch, rounded; a single epoch has the first size."""
    growth = (schedule.last - schedule.first) / max(epochs - 1, 1)
    return [round(schedule.first + growth * epoch) for epoch in range(epochs)]


def milestones(schedule: MilestoneBatch, epochs: int, accuracies: Sequence[float] = ()) -> list[int]:
    """The next size from each milestone epoch (0-based) on."""
    return [schedule.sizes[bisect.bisect_right(schedule.milestones, epoch)] for epoch in range(epochs)]


def plateau(schedule: PlateauBatch, epochs: int, accuracies: Sequence[float] = ()) -> list[int]:
    """Growth by `factor` after each `patience` epochs without a rise of more than `min_gain` above the best so far.

    Epochs after the one that follows the last known accuracy repeat its size.
    """
    sizes, best, waited = [schedule.first], -math.inf, 0
    for accuracy in accuracies:
        if accuracy > best + schedule.min_gain:
            best, waited = accuracy, 0
        else:
            waited += 1
        grows = waited == schedule.patience
        sizes.append(min(sizes[-1] * schedule.factor, schedule.last) if grows else sizes[-1])
        waited = 0 if grows else waited
    return (sizes + sizes[-1:] * epochs)[:epochs]


BATCH_SCHEDULES: dict[str, Callable[..., list[int]]] = {
    "constant": constant,
    "geometric": geometric,
    "linear": linear,
    "milestones": milestones,
    "plateau": plateau,
}


def batch_sizes(schedule: BatchSizeSchedule, epochs: int, accuracies: Sequence[float] = ()) -> list[int]:
    """Batch size of every epoch.

    Args:
        schedule: One of the kinds in `trainables.config`.
        epochs: Length of the training.
        accuracies: Validation accuracy after each finished epoch; only `plateau` looks at them.

    Returns:
        `epochs` sizes; those that depend on accuracies to come are the newest known.
    """
    return BATCH_SCHEDULES[schedule.kind](schedule, epochs, accuracies)


def steps_per_epoch(n_examples: int, batch_size: int) -> int:
    """Batches that cover `n_examples` once, the last perhaps smaller."""
    return math.ceil(n_examples / batch_size)
