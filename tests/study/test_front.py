import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from study.front import hypervolume, knee, non_dominated

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
