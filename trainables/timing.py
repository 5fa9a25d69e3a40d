"""From seconds per step, measured with the device alone, to the seconds of a whole schedule."""

import math
from collections.abc import Callable, Iterable, Mapping

import numpy as np

CHUNK_SECONDS = 0.1  # steps are timed in chunks of about this length
N_CHUNKS = 3
SLOW_SECONDS = 2.0  # a single step of this length says enough


def grid(batch_sizes: Iterable[int]) -> list[int]:
    """The batch sizes to time: the smallest, the largest, and the powers of two between them."""
    sizes = set(batch_sizes)
    smallest, largest = min(sizes), max(sizes)
    powers = {2**k for k in range(largest.bit_length())}
    return sorted({smallest, largest} | {power for power in powers if smallest < power < largest})


def median_step(run: Callable[[int], float]) -> float:
    """Seconds per step, the median of several chunks of steps.

    Args:
        run: Trains that many steps and returns the seconds they took.
    """
    run(1)  # first-call costs
    once = run(1)
    if once > SLOW_SECONDS:
        return once
    n_steps = max(1, math.ceil(CHUNK_SECONDS / once))
    return float(np.median([run(n_steps) / n_steps for _ in range(N_CHUNKS)]))


def epoch_seconds(seconds_per_step: Mapping[int, float], batch_size: int, n_examples: int) -> float:
    """Seconds of one pass over `n_examples`.

    Args:
        seconds_per_step: By batch size, not empty. Sizes between are interpolated linearly; a step below the
            smallest takes as long as that one (bound by launches), one above the largest longer in proportion.
    """
    n_full, rest = divmod(n_examples, batch_size)
    measured = sorted(seconds_per_step)
    full, last = np.interp([batch_size, rest], measured, [seconds_per_step[size] for size in measured])
    full *= max(1.0, batch_size / measured[-1])
    return float(n_full * full + (last if rest else 0.0))
