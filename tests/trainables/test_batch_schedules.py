import pytest

from trainables.batch_schedules import BATCH_SCHEDULES, batch_sizes, steps_per_epoch
from trainables.config import (
    BATCH_KINDS,
    ConstantBatch,
    GeometricBatch,
    LinearBatch,
    MilestoneBatch,
    PlateauBatch,
)

ONE_OF_EACH = [
    ConstantBatch(size=32),
    GeometricBatch(first=8, last=100, factor=3),
    LinearBatch(first=8, last=100),
    MilestoneBatch(sizes=(16, 64, 32), milestones=(2, 5)),
    PlateauBatch(first=8, last=100, patience=1),
]


@pytest.mark.parametrize("schedule", ONE_OF_EACH, ids=lambda schedule: schedule.kind)
class TestEverySchedule:
    @pytest.mark.parametrize("epochs", [1, 2, 3, 7, 100])
    def test_gives_each_epoch_a_size_up_to_the_largest(self, schedule, epochs):
        for known in range(epochs + 1):
            sizes = batch_sizes(schedule, epochs, [0.5] * known)
            assert len(sizes) == epochs
            assert all(isinstance(size, int) and 1 <= size <= schedule.largest for size in sizes)

    def test_later_accuracies_leave_earlier_epochs_alone(self, schedule):
        accuracies = [0.1, 0.3, 0.3, 0.3, 0.5, 0.5, 0.5, 0.4]
        full = batch_sizes(schedule, 8, accuracies)
        for known in range(8):
            assert batch_sizes(schedule, 8, accuracies[:known])[: known + 1] == full[: known + 1]


def test_every_kind_is_in_the_table():
    assert set(BATCH_SCHEDULES) == set(BATCH_KINDS) == {schedule.kind for schedule in ONE_OF_EACH}


def test_constant_never_changes():
    assert batch_sizes(ConstantBatch(size=7), 3) == [7, 7, 7]


def test_geometric_grows_from_8_to_128_in_equal_stages():
    sizes = batch_sizes(GeometricBatch(first=8, last=128), 40)
    assert sizes == [8] * 8 + [16] * 8 + [32] * 8 + [64] * 8 + [128] * 8


def test_geometric_spreads_what_cannot_be_equal():
    assert batch_sizes(GeometricBatch(first=8, last=32), 8) == [8, 8, 8, 16, 16, 16, 32, 32]


def test_geometric_is_capped_at_the_last_size():
    assert batch_sizes(GeometricBatch(first=8, last=100, factor=4), 3) == [8, 32, 100]
    assert batch_sizes(GeometricBatch(first=8, last=8), 2) == [8, 8]


@pytest.mark.parametrize(("epochs", "expected"), [(1, [8]), (2, [8, 128]), (3, [8, 32, 128]), (4, [8, 16, 32, 128])])
def test_geometric_with_few_epochs_keeps_both_ends(epochs, expected):
    assert batch_sizes(GeometricBatch(first=8, last=128), epochs) == expected


def test_linear_grows_by_the_same_amount():
    assert batch_sizes(LinearBatch(first=10, last=50), 5) == [10, 20, 30, 40, 50]
    assert batch_sizes(LinearBatch(first=8, last=13), 4) == [8, 10, 11, 13]
    assert batch_sizes(LinearBatch(first=8, last=13), 1) == [8]


def test_milestones_start_the_next_size():
    schedule = MilestoneBatch(sizes=(16, 64, 32), milestones=(2, 5))
    assert batch_sizes(schedule, 7) == [16, 16, 64, 64, 64, 32, 32]
    assert batch_sizes(schedule, 2) == [16, 16]


def test_plateau_grows_after_patience_epochs_without_a_rise():
    schedule = PlateauBatch(first=8, last=40, patience=2, min_gain=0.01)
    # After epoch:   1    2    3     4      5    6     7    8    9
    accuracies = [0.1, 0.3, 0.305, 0.309, 0.35, 0.2, 0.35, 0.1, 0.1]
    # The best is 0.3 at epochs 3 and 4, 0.35 from epoch 5 on: growth after 4, 7 and 9.
    assert batch_sizes(schedule, 10, accuracies) == [8, 8, 8, 8, 16, 16, 16, 32, 32, 40]


def test_plateau_repeats_the_newest_size_for_epochs_to_come():
    schedule = PlateauBatch(first=8, last=64, patience=1)
    assert batch_sizes(schedule, 5) == [8] * 5
    assert batch_sizes(schedule, 5, [0.5, 0.5]) == [8, 8, 16, 16, 16]


@pytest.mark.parametrize(
    ("n_examples", "batch_size", "steps"), [(50000, 128, 391), (128, 128, 1), (1, 8, 1), (9, 8, 2)]
)
def test_an_epoch_keeps_its_last_partial_batch(n_examples, batch_size, steps):
    assert steps_per_epoch(n_examples, batch_size) == steps


def test_plateau_counts_epochs_without_a_rise_anew_after_each_rise():
    schedule = PlateauBatch(first=8, last=64, patience=2)
    assert batch_sizes(schedule, 6, [0.1, 0.1, 0.3, 0.3, 0.5]) == [8] * 6


def test_plateau_takes_equal_accuracy_for_no_rise():
    schedule = PlateauBatch(first=8, last=64, patience=1, min_gain=0)
    assert batch_sizes(schedule, 3, [0.5, 0.5]) == [8, 8, 16]
