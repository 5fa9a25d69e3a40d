"""From seconds per step, measured with the device alone, to the seconds of a whole schedule."""

import math
from collections.abc import Callable, Iterable, Mapping

import numpy as np

CHUNK_SECONDS = 0.05  # steps are timed in chunks of about this length
N_CHUNKS = 5
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


def step_seconds(run: Callable[[int], float]) -> float:
    """Seconds per step, of the quickest of several chunks of steps: what else the machine does only adds to them.

    Args:
        run: Trains that many steps and returns the seconds they took.
    """
    run(1)  # first-call costs
    once = run(1)
    if once > SLOW_SECONDS:
        return once
    n_steps = max(1, math.ceil(CHUNK_SECONDS / once))
    return min(run(n_steps) / n_steps for _ in range(N_CHUNKS))


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
