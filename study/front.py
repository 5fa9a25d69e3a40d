"""Dominance, hypervolume and knee of (adversarial accuracy up, training seconds down)."""

import moocore
import numpy as np
from numpy.typing import ArrayLike

MAXIMISE = [True, False]


def _points(points: ArrayLike) -> np.ndarray:
    array = np.asarray(points, dtype=float)
    if array.size == 0:
        return array.reshape(0, 2)
    if array.ndim != 2 or array.shape[1] != 2:
        raise ValueError(f"points: shape {array.shape} given; accepted: (n, 2)")
    if not np.isfinite(array).all():
        raise ValueError("points: a value that is not finite given; accepted: finite numbers")
    return array


def non_dominated(points: ArrayLike) -> np.ndarray:
    """Which points no other point beats.

    Args:
        points: (n, 2), adversarial accuracy and training seconds.

    Returns:
        (n,) of bool. Equal points do not dominate each other: both stay.
    """
    array = _points(points)
    if not len(array):
        return np.zeros(0, dtype=bool)
    return moocore.is_nondominated(array, maximise=MAXIMISE, keep_weakly=True)


def hypervolume(points: ArrayLike, reference: tuple[float, float]) -> float:
    """Area that the points dominate, in accuracy x seconds.

    Args:
        points: (n, 2), adversarial accuracy and training seconds.
        reference: The worst accuracy and seconds that count; points beyond add nothing.
    """
    array = _points(points)
    if not len(array):
        return 0.0
    return float(moocore.hypervolume(array, ref=list(reference), maximise=MAXIMISE))


def knee(points: ArrayLike) -> int:
    """Index of the front member that lies farthest above the line between the front's ends.

    Both axes are scaled to the front's own extent, seconds by their logarithm, since trials differ
    by factors. Of a front with one or two members, the most accurate one.

    Raises:
        ValueError: If there is no point.

    Source: Das 1999, "On characterizing the knee of the Pareto curve".
    """
    array = _points(points)
    if not len(array):
        raise ValueError("points: none given; accepted: at least one")
    members = np.flatnonzero(non_dominated(array))
    accuracy, seconds = array[members, 0], np.log(np.maximum(array[members, 1], 1e-9))
    if len(np.unique(array[members], axis=0)) < 3:
        return int(members[np.argmax(accuracy)])
    gain = (accuracy - accuracy.min()) / np.ptp(accuracy)
    cost = (seconds - seconds.min()) / np.ptp(seconds)
    return int(members[np.argmax(gain - cost)])
