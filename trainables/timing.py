"""From seconds per step, measured with the device alone, to the seconds of a whole schedule."""

import math
from collections.abc import Callable, Iterable, Mapping
from statistics import median

import numpy as np

CHUNK_SECONDS = 0.05  # steps are timed in chunks of about this length
N_CHUNKS = 9
SLOW_SECONDS = 2.0  # a single step of this length says enough

# The entry for no batch size, in a table by batch size: seconds before the first step, of a training that crafts its
# images then.
BEFORE = 0

CRAFTED_AT_ONCE = 256  # images in a batch that is crafted


def grid(batch_sizes: Iterable[int], n_examples: int) -> list[int]:
    """The batch sizes to time: the smallest, the largest, the powers of two between, and the smallest last batch."""
    sizes = set(batch_sizes)
    smallest, largest = min(sizes), max(sizes)
    powers = {2**k for k in range(largest.bit_length())}
    rests = sorted({n_examples % size for size in sizes} - {0})
    return sorted({smallest, largest, *rests[:1]} | {power for power in powers if smallest < power < largest})


def step_seconds(runs: Mapping[int, Callable[[int], float]]) -> dict[int, float]:
    """Seconds per step of each run: the median of several chunks of steps.

    The runs take turns, chunk by chunk, so that what else the machine does meanwhile falls on all of them.

    Args:
        runs: Each makes so many steps and returns the seconds they took.
    """
    chunks: dict[int, list[float]] = {}
    n_steps = {}
    for key, run in runs.items():
        run(1)  # first-call costs
        once = run(1)
        if once > SLOW_SECONDS:
            chunks[key] = [once]
        else:
            chunks[key], n_steps[key] = [], max(1, math.ceil(CHUNK_SECONDS / once))
    for _ in range(N_CHUNKS):
        for key, n in n_steps.items():
            chunks[key].append(runs[key](n) / n)
    return {key: median(seconds) for key, seconds in chunks.items()}


def epoch_seconds(seconds_per_step: Mapping[int, float], batch_size: int, n_examples: int) -> float:
    """Seconds of one pass over `n_examples`.

    Args:
        seconds_per_step: By batch size, at least one; `BEFORE` is left out. Sizes between are interpolated linearly; a
            step below the smallest takes as long as that one (bound by launches), one above the largest longer in
            proportion.
    """
    n_full, rest = divmod(n_examples, batch_size)
    measured = sorted(seconds_per_step.keys() - {BEFORE})
    full, last = np.interp([batch_size, rest], measured, [seconds_per_step[size] for size in measured])
    full *= max(1.0, batch_size / measured[-1])
    return float(n_full * full + (last if rest else 0.0))
