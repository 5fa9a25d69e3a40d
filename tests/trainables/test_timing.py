import math
from functools import partial

import pytest

from trainables import timing

TABLE = {8: 1.0, 16: 2.0, 64: 5.0}


@pytest.mark.parametrize(
    "sizes,expected",
    [([128], [128]), ([8, 16, 32], [8, 16, 32]), ([10, 47, 100], [10, 16, 32, 64, 100]), ([1, 3], [1, 2, 3])],
)
def test_the_grid_has_both_ends_and_the_powers_of_two_between(sizes, expected):
    assert timing.grid(sizes, math.prod(sizes)) == expected


@pytest.mark.parametrize("sizes,expected", [([512], [176, 512]), ([64, 512], [48, 64, 128, 256, 512]), ([8], [8])])
def test_the_grid_has_the_smallest_last_batch(sizes, expected):
    assert timing.grid(sizes, 1200) == expected


def test_what_comes_before_the_first_step_is_no_step():
    assert timing.epoch_seconds({**TABLE, timing.BEFORE: 100.0}, 8, 40 + 2) == timing.epoch_seconds(TABLE, 8, 40 + 2)


def test_an_epoch_is_its_full_batches_and_the_smaller_last_one():
    assert timing.epoch_seconds(TABLE, 16, 40) == 2 * 2.0 + 1.0
    assert timing.epoch_seconds(TABLE, 8, 40) == 5 * 1.0
    assert timing.epoch_seconds(TABLE, 16, 32 + 12) == pytest.approx(2 * 2.0 + 1.5)


def test_sizes_between_are_interpolated_and_those_beyond_follow_the_work_or_the_launches():
    assert timing.epoch_seconds(TABLE, 40, 40) == pytest.approx(3.5)
    assert timing.epoch_seconds(TABLE, 128, 128) == pytest.approx(10.0)
    assert timing.epoch_seconds(TABLE, 2, 2) == pytest.approx(1.0)


def test_a_step_takes_the_median_of_chunks_that_the_runs_take_in_turn():
    calls = []
    chunks = {
        8: iter([9.0, 0.03, *[0.4, 0.2, 50.0, 0.12, 0.3, 0.31, 0.29, 0.1, 0.4]]),
        32: iter([9.0, 0.05, *9 * [0.06]]),
    }

    def run(size, n_steps):
        calls.append((size, n_steps))
        return next(chunks[size])

    seconds = timing.step_seconds({size: partial(run, size) for size in chunks})
    assert seconds == pytest.approx({8: 0.3 / 2, 32: 0.06})
    assert calls == [(8, 1), (8, 1), (32, 1), (32, 1)] + 9 * [(8, 2), (32, 1)]


def test_a_slow_step_is_timed_once():
    assert timing.step_seconds({8: lambda n_steps: 3.0, 32: lambda n_steps: 0.5 * n_steps}) == {8: 3.0, 32: 0.5}
