import pytest

from study.ladder import rungs


def test_no_two_names_share_a_height_and_all_are_above_what_is_drawn():
    places = rungs([10.0, 10.0, 10.1, 60.0, 59.0], 0.2, 0.6)
    heights = [rung.height for rung in places]
    assert min(heights) > 0.6
    assert min(abs(a - b) for i, a in enumerate(heights) for b in heights[:i]) > 0.02


@pytest.mark.parametrize("seconds", [[5.0, 6.0, 7.0, 50.0, 60.0], [60.0, 5.0, 50.0, 7.0, 6.0], [3.0], []])
def test_a_line_passes_beside_the_names_of_its_half(seconds):
    """A name begins at its line and goes right, or ends there: the lines on that side end below it."""
    places = list(zip(seconds, rungs(seconds, 0.0, 1.0), strict=True))
    for at, rung in places:
        for other, line in places:
            is_beside = other > at if rung.to_the_right else other < at
            if is_beside and line.to_the_right == rung.to_the_right:
                assert line.height < rung.height


def test_names_keep_off_the_nearer_edge():
    left, right = rungs([5.0, 50.0], 0.0, 1.0)
    assert left.to_the_right and not right.to_the_right
