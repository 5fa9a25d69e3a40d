from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from study.front import hypervolume, knee, non_dominated, probability_by_examples, probability_on_front

POINTS = st.lists(st.tuples(st.integers(0, 8), st.integers(1, 8)), max_size=12).map(
    lambda p: [(a / 8, s) for a, s in p]
)


def beats(a, b):
    return a[0] >= b[0] and a[1] <= b[1] and a != b


@given(POINTS)
def test_non_dominated_equals_brute_force(points):
    assert list(non_dominated(points)) == [not any(beats(other, point) for other in points) for point in points]


@given(POINTS)
def test_hypervolume_equals_counting_grid_cells(points):
    cells = [
        (a, s) for a in range(8) for s in range(1, 9) if any(p[0] * 8 > a and p[1] <= s for p in points)
    ]  # cell: accuracy from a/8 to (a+1)/8, seconds from s to s+1
    assert hypervolume(points, (0.0, 9.0)) == pytest.approx(len(cells) / 8)


def test_equal_points_both_stay_on_the_front():
    assert list(non_dominated([(0.5, 1.0), (0.5, 1.0), (0.4, 1.0)])) == [True, True, False]


def test_points_beyond_the_reference_add_nothing():
    assert hypervolume([(0.5, 20.0)], (0.0, 10.0)) == 0.0


def test_knee_is_the_member_farthest_from_the_line_between_the_ends():
    points = [(0.1, 1.0), (0.5, 2.0), (0.55, 100.0), (0.2, 50.0)]
    assert knee(points) == 1


def test_knee_of_one_or_two_members_is_the_most_accurate():
    assert knee([(0.1, 1.0)]) == 0
    assert knee([(0.1, 1.0), (0.4, 3.0)]) == 1


@pytest.mark.parametrize(
    "points",
    [
        [(0.1, 1.0), (0.2, 10.0), (0.9, 20.0)],  # bends inward
        [(0.1, 1.0), (0.3, 2.0), (0.5, 4.0), (0.7, 8.0)],  # the line itself, but for rounding
        [(0.9, 20.0), (0.1, 1.0), (0.12, 19.0), (0.9, 30.0)],  # the last is dominated
    ],
)
def test_where_no_member_lies_above_the_line_the_most_accurate_stands_for_the_knee(points):
    assert points[knee(points)][0] == max(accuracy for accuracy, _ in points)
    assert non_dominated(points)[knee(points)]


def test_knee_of_members_that_are_equally_quick_is_the_most_accurate():
    with np.errstate(all="raise"):
        assert knee([(0.1, 1e-12), (0.4, 2e-12), (0.6, 3e-12)]) == 2


def test_a_reference_that_is_not_finite_is_refused():
    with pytest.raises(ValueError, match="not finite"):
        hypervolume([(0.5, 1.0)], (float("nan"), 2.0))


def test_knee_survives_a_front_of_equal_points():
    assert knee([(0.5, 1.0)] * 4) in range(4)


@pytest.mark.parametrize("points", [[(0.5, float("nan"))], [(0.5, float("inf"))], [(1.0, 2.0, 3.0)]])
def test_points_that_are_not_finite_pairs_are_refused(points):
    with pytest.raises(ValueError, match="points"):
        non_dominated(np.array(points))


def test_no_points_have_no_front_and_no_knee():
    assert len(non_dominated([])) == 0
    assert hypervolume([], (0.0, 1.0)) == 0.0
    with pytest.raises(ValueError, match="at least one"):
        knee([])


def enumerated(robust, seconds):
    """Probability of being on the front by its definition, of seeds that agree: every draw of examples."""
    n_examples, count, total = len(robust[0][0]), np.zeros(len(robust)), 0
    for examples in product(range(n_examples), repeat=n_examples):
        points = [
            (np.mean([mask[e] for e in examples]), time) for (mask, _), (time, _) in zip(robust, seconds, strict=True)
        ]
        count, total = count + [not any(beats(other, point) for other in points) for point in points], total + 1
    return count / total


@pytest.mark.parametrize(
    ("robust", "seconds"),
    [
        ([[[1, 0, 0]] * 2, [[1, 1, 0]] * 2], [[1.0] * 2, [1.0] * 2]),
        ([[[1, 0, 1]] * 2, [[0, 1, 0]] * 2, [[1, 1, 0]] * 2], [[1.0] * 2, [1.5] * 2, [2.0] * 2]),
    ],
)
def test_probability_on_the_front_equals_enumerating_every_draw(robust, seconds):
    found = probability_on_front(robust, seconds, n_resamples=4000)
    assert found == pytest.approx(enumerated(robust, seconds), abs=0.04)  # five standard errors


@pytest.mark.parametrize("times", [[1.0, 3.0], [1.0, 2.0, 3.0], [1.0, 1.5, 2.0, 2.5, 3.0]])
def test_what_other_seeds_would_have_taken_follows_students_t(times):
    robust = [np.ones((len(times), 4)), np.ones((2, 4))]
    slower = stats.ttest_1samp(times, 2.4, alternative="less").pvalue  # that their mean is above 2.4
    found = probability_on_front(robust, [times, [2.4] * 2], n_resamples=4000)
    assert found == pytest.approx([1 - slower, slower], abs=0.04)


def called_certain(n_seeds):
    """How often one of two equal members is called certain to be on the front, or not to be, wrongly.

    The second is slower, so it is on the front where it is more accurate: at evens, whatever the seeds show.
    """
    rng, certain = np.random.default_rng(0), 0
    for _ in range(200):
        images = rng.normal(0, 1.6, 300)
        robust = [images + rng.normal(0, 0.3, (n, 1)) + rng.normal(0, 0.8, (n, 300)) > 0 for n in n_seeds]
        found = probability_on_front(robust, [[1.0] * n_seeds[0], [2.0] * n_seeds[1]], n_resamples=200)
        certain += not 0.05 < found[1] < 0.95
    return certain / 200


@pytest.mark.parametrize("n_seeds", [2, 3, 5])
def test_of_two_equal_members_neither_is_called_certain_more_often_than_it_may(n_seeds):
    assert called_certain((n_seeds, n_seeds)) < 0.1


@pytest.mark.parametrize("n_seeds", [(1, 5), (5, 1)])
def test_a_member_of_one_seed_is_not_called_certain_more_often_than_it_may_either(n_seeds):
    assert called_certain(n_seeds) < 0.16  # one in ten, and three standard errors


def test_certain_members_have_probability_one_and_dominated_ones_none():
    robust = [np.ones((3, 10)), np.zeros((2, 10)), np.zeros((2, 10))]
    assert list(probability_on_front(robust, [[5.0] * 3, [1.0] * 2, [2.0] * 2], 100)) == [1.0, 1.0, 0.0]


def test_examples_are_drawn_for_all_members_together():
    """The second member is right wherever the first is, so no draw of examples puts the first above it."""
    robust = [[[1, 0, 0, 0, 0, 1]] * 2, [[1, 1, 0, 0, 0, 1]] * 2]
    assert probability_on_front(robust, [[1.0] * 2, [1.0] * 2], 500)[1] == 1.0


def test_the_probability_is_the_same_at_each_call_and_empty_without_members():
    robust, seconds = [[[1, 0, 1]] * 2, [[0, 1, 1]]], [[1.0, 1.1], [1.0]]
    assert list(probability_on_front(robust, seconds, 50)) == list(probability_on_front(robust, seconds, 50))
    assert len(probability_on_front([], [])) == 0


def test_members_judged_on_unlike_numbers_of_examples_are_refused():
    with pytest.raises(ValueError, match="robust"):
        probability_on_front([[[1, 0]], [[1, 0, 1]]], [[1.0], [1.0]])


def test_what_few_examples_leave_open_is_a_probability():
    sure = probability_by_examples([[0.9, 2.0], [0.1, 1.0], [0.5, 3.0]], 10_000)
    assert list(sure) == [1.0, 1.0, 0.0]
    equal = probability_by_examples([[0.5, 1.0], [0.5, 1.0]], np.array([100, 100]), n_draws=2000)
    assert equal.sum() == 1.0 and equal == pytest.approx([0.5, 0.5], abs=0.06)  # five standard errors
    faster = probability_by_examples([[0.5, 1.0], [0.5, 2.0]], 100, n_draws=2000)
    assert faster[0] == 1.0 and faster[1] == pytest.approx(0.5, abs=0.06)
    assert len(probability_by_examples([], 100)) == 0


def test_members_of_a_noisy_front_are_doubtful():
    """200 runs judged on 5,000 images: noise of 0.7 points, as many of one accuracy as of another."""
    rng = np.random.default_rng(0)
    seconds = rng.uniform(1, 100, 200)
    accuracy = rng.binomial(5000, 0.4 + 0.02 * np.log(seconds)) / 5000
    points = np.column_stack([accuracy, seconds])
    members = non_dominated(points)
    probability = probability_by_examples(points, 5000)
    assert 0.3 < probability[members].mean() < 0.8 and probability[~members].mean() < 0.1


def test_an_accuracy_of_few_examples_is_more_doubtful_than_one_of_many():
    points = [[0.5, 1.0], [0.6, 2.0], [0.6, 3.0]]
    few, many = (probability_by_examples(points[:2], np.array([1000, n]))[1] for n in (20, 1000))
    assert few < 0.95 < many


def test_the_probability_is_students_of_the_members_own_seeds():
    all_right = np.ones((3, 4), dtype=bool)
    found = probability_on_front([all_right] * 2, [[8.0, 10.0, 12.0], [11.0] * 3], n_resamples=20_000)
    quicker = stats.t.cdf((11 - 10) / (2 / np.sqrt(3)), 2)
    assert found == pytest.approx([quicker, 1 - quicker], abs=0.015)  # five standard errors


def test_a_member_of_one_seed_is_taken_to_spread_like_those_of_several():
    """Two of one seed, 10 and 11 s; two that are always beaten spread by a fifth of their seconds, in one of two."""
    robust = [np.ones((1, 4))] * 2 + [np.zeros((3, 4))] * 2
    seconds = [[10.0], [11.0], [800.0, 1000.0, 1200.0], [9e6] * 3]
    found = probability_on_front(robust, seconds, n_resamples=20_000)
    moved = 1 + stats.t.rvs(4, size=(100_000, 2), random_state=0) * 0.2 / np.sqrt(2)  # four degrees of freedom
    quicker = np.mean(10 * moved[:, 0] < 11 * moved[:, 1])
    assert found[:2] == pytest.approx([quicker, 1 - quicker], abs=0.02)  # five standard errors


def test_where_no_member_has_a_second_seed_no_probability_is_known():
    assert np.isnan(probability_on_front([[[1, 0, 1]], [[0, 1, 0]]], [[1.0], [2.0]])).all()
