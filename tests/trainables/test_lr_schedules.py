import math
from typing import get_args

import pytest
import torch

from trainables.config import LrSchedule
from trainables.lr_schedules import SCHEDULES, schedule


@pytest.mark.parametrize("name", sorted(SCHEDULES))
class TestEverySchedule:
    def test_stays_between_zero_and_the_peak(self, name):
        accuracies = [0.5] * 20
        lrs = [schedule(name)(i / 1000, accuracies, 0.3) for i in range(1000)]
        assert all(0 < lr <= 0.3 for lr in lrs)

    def test_scales_with_the_peak(self, name):
        for progress in (0.0, 0.2, 0.6, 0.9):
            small, large = (schedule(name)(progress, [0.5] * 8, peak) for peak in (0.1, 0.4))
            assert large == pytest.approx(4 * small)


def test_the_table_has_every_name_of_the_configuration():
    assert set(SCHEDULES) == set(get_args(LrSchedule))


def test_constant_is_the_peak():
    assert schedule("constant")(0.7, [], 0.1) == 0.1


def test_multistep_cuts_at_half_and_three_quarters():
    lrs = [schedule("multistep")(progress, [], 1.0) for progress in (0.0, 0.499, 0.5, 0.749, 0.75, 0.999)]
    assert lrs == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])


def test_linear_falls_to_zero_on_a_straight_line():
    lrs = [schedule("linear")(progress, [], 2.0) for progress in (0, 0.25, 0.5, 1 - 1e-9)]
    assert lrs == pytest.approx([2, 1.5, 1, 0], abs=1e-8)


def test_cosine_falls_to_zero():
    lrs = [schedule("cosine")(progress, [], 2.0) for progress in (0, 1 / 3, 0.5, 2 / 3, 1 - 1e-9)]
    assert lrs == pytest.approx([2, 1.5, 1, 0.5, 0], abs=1e-9)


def test_exponential_falls_by_the_same_factor_to_a_hundredth():
    lrs = [schedule("exponential")(progress, [], 1.0) for progress in (0, 0.25, 0.5, 0.75, 1 - 1e-12)]
    assert lrs == pytest.approx([1, 10**-0.5, 0.1, 10**-1.5, 0.01])


def test_onecycle_equals_torchs_with_its_defaults():
    n_steps = 5000
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], momentum=0.9)
    reference = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.4, total_steps=n_steps)
    theirs = []
    for _ in range(n_steps - 1):
        theirs.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        reference.step()
    ours = [schedule("onecycle")(i / n_steps, [], 0.4) for i in range(n_steps - 1)]
    assert ours == pytest.approx(theirs, abs=2e-3 * 0.4)  # theirs peaks a step earlier
    assert ours[0] == theirs[0] == pytest.approx(0.4 / 25)
    assert schedule("onecycle")(1 - 1e-12, [], 0.4) == pytest.approx(0.4 / 25e4)


def test_accelat_cuts_where_a_hand_worked_trace_does():
    # Gain of the 5-epoch mean after epoch e is (a[e] - a[e-5]) / 5, so it is small where a[e] - a[e-5] < 0.025.
    accuracies = [0.10, 0.20, 0.30, 0.40, 0.50, 0.10, 0.20]  # 7: 0.20 - 0.20: first chance, first cut
    accuracies += [0.30, 0.40, 0.50, 0.10]  # 8 to 11: no gain, but fewer than 5 epochs since the cut
    accuracies += [0.50]  # 12: five epochs since, but 0.50 - 0.20 gains
    accuracies += [0.31]  # 13: 0.31 - 0.30: second cut
    accuracies += [0.40, 0.40, 0.10, 0.50]  # 14 to 17: quiet
    accuracies += [0.33]  # 18: 0.33 - 0.31 = 0.02: third cut
    expected = [1.0] * 7 + [0.8] * 6 + [0.64] * 5 + [0.512]
    lrs = [schedule("accelat")(0.0, accuracies[:epoch], 1.0) for epoch in range(len(accuracies) + 1)]
    assert lrs == pytest.approx(expected)


def test_accelat_keeps_the_rate_while_accuracy_rises_fast_enough():
    rising = [0.006 * epoch for epoch in range(100)]
    assert schedule("accelat")(0.5, rising, 0.1) == 0.1
    slower = [0.004 * epoch for epoch in range(12)]
    assert schedule("accelat")(0.5, slower, 0.1) == pytest.approx(0.1 * 0.8**2)  # after epochs 7 and 12


def test_accelat_stops_at_its_floor():
    flat = [0.5] * 1000
    assert schedule("accelat")(0.5, flat, 0.1) == 1e-6
    assert schedule("accelat")(0.5, flat[:7], 1.1e-6) == 1e-6
    assert math.isclose(schedule("accelat")(0.5, flat[:7], 2e-6), 1.6e-6)


def test_an_unknown_schedule_is_refused_with_the_accepted_ones():
    with pytest.raises(ValueError, match=r"'cosin'.*accelat.*constant.*cosine"):
        schedule("cosin")
