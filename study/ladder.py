"""Where names go above a plot, so that no two overlap however close their points lie."""

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Rung:
    """A name beside the upper end of a vertical line from its point."""

    height: float  # in the plot's units
    to_the_right: bool  # of the line; else to its left


def rungs(seconds: Sequence[float], lowest: float, highest: float) -> list[Rung]:
    """One for each point, in the order given, at heights above `highest` that differ.

    Names of the quicker half stand to the right of their lines, the quickest at the top; those of the slower half stand
    lower and to the left, the slowest at the top. So no line crosses a name of its own half.

    Args:
        seconds: Of the points, on a logarithmic axis.
        lowest: Of what else is drawn.
        highest: Of what else is drawn.
    """
    if not seconds:
        return []
    middle = (math.log(min(seconds)) + math.log(max(seconds))) / 2
    quick = [i for i in sorted(range(len(seconds)), key=lambda i: seconds[i]) if math.log(seconds[i]) <= middle]
    slow = [i for i in sorted(range(len(seconds)), key=lambda i: -seconds[i]) if i not in quick]
    step = 0.07 * max(highest - lowest, 0.1)
    from_the_top = quick + slow
    heights = {i: highest + step * (len(seconds) - row) for row, i in enumerate(from_the_top)}
    return [Rung(heights[i], i in quick) for i in range(len(seconds))]
