"""Dominance, hypervolume and knee of (adversarial accuracy up, training seconds down)."""

from collections.abc import Sequence

import moocore
import numpy as np
from numpy.typing import ArrayLike

MAXIMISE = [True, False]
ABOVE = 1e-9  # of the scaled line: less is rounding
CHUNK = 100  # resamples at a time: 8 MB of weights for 10,000 examples


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
    array, (worst,) = _points(points), _points([reference])
    if not len(array):
        return 0.0
    return float(moocore.hypervolume(array, ref=worst, maximise=MAXIMISE))


def knee(points: ArrayLike) -> int:
    """Index of the front member that lies farthest above the line between the front's ends.

    Both axes are scaled to the front's own extent, seconds by their logarithm, since trials differ
    by factors. Where no member lies above that line, as of a front with one or two members or of one that bends
    inward, there is no knee: the most accurate member is returned.

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
    cost = (seconds - seconds.min()) / (np.ptp(seconds) or 1.0)
    above = gain - cost
    return int(members[np.argmax(above if above.max() > ABOVE else accuracy)])


def probability_on_front(
    robust: Sequence[ArrayLike], seconds: Sequence[ArrayLike], n_resamples: int = 2000, seed: int = 0
) -> np.ndarray:
    """How often each member is on the members' front, when seeds and examples are drawn anew from those there are.

    A resample draws examples with replacement, the same for all members, who were judged on the same images; and moves
    each member's mean by what other seeds would have made of it: multivariate Student's t with the covariance of its
    own seeds' accuracy and seconds, so that few seeds leave much open. A member of one seed has no spread of its own:
    it is taken to have that of all the others, pooled, in points of accuracy and in parts of its seconds.

    Args:
        robust: Of each member (seeds, examples) of bool: which examples each seed's network leaves right.
        seconds: Of each member (seeds,), training seconds.
        n_resamples: Of the bootstrap.
        seed: Of its draws.

    Returns:
        (members,), each a fraction of the resamples; NaN where no member has a second seed, so that nothing is known
        of what other seeds would change.

    Source: Efron 1979, "Bootstrap methods: another look at the jackknife", for the examples; the posterior of a normal
    mean under Jeffreys' prior for the seeds.
    """
    masks = [np.asarray(mask, dtype=float) for mask in robust]
    times = [np.asarray(values, dtype=float) for values in seconds]
    if not masks:
        return np.zeros(0)
    n_examples = masks[0].shape[1]
    for mask, values in zip(masks, times, strict=True):
        if mask.shape != (len(values), n_examples) or not mask.size:
            raise ValueError(f"robust: shape {mask.shape} given; accepted: ({len(values)}, {n_examples}), not empty")
    rng = np.random.default_rng(seed)
    mean_masks = np.stack([mask.mean(axis=0) for mask in masks])
    found = [np.stack([mask.mean(axis=1), values]) for mask, values in zip(masks, times, strict=True)]  # (2, seeds)
    deviations = [each - each.mean(axis=1, keepdims=True) for each in found]
    units = [np.array([[1.0], [each[1].mean()]]) for each in found]
    known = [each / unit for each, unit in zip(deviations, units, strict=True) if each.shape[1] > 1]
    if not known:
        return np.full(len(masks), np.nan)
    pooled = np.hstack(known)
    freedom = pooled.shape[1] - len(known)
    # Of each member its seeds, the deviations that its spread follows from, and their degrees of freedom.
    spreads = [
        (each.shape[1], each, each.shape[1] - 1) if each.shape[1] > 1 else (1, pooled * unit, freedom)
        for each, unit in zip(deviations, units, strict=True)
    ]
    counts = np.zeros(len(masks))
    for first in range(0, n_resamples, CHUNK):
        n = min(CHUNK, n_resamples - first)
        draws = [np.bincount(rng.integers(n_examples, size=n_examples), minlength=n_examples) for _ in range(n)]
        accuracies = mean_masks @ (np.stack(draws, axis=1) / n_examples)  # (members, n)
        points = np.stack([accuracies, np.broadcast_to([[each.mean()] for each in times], accuracies.shape)], axis=1)
        for means, (n_seeds, deviation, free) in zip(points, spreads, strict=True):
            scale = np.sqrt(rng.chisquare(free, size=n) * n_seeds)
            means += deviation @ rng.normal(size=(deviation.shape[1], n)) / scale
        counts += sum(non_dominated(each) for each in points.transpose(2, 0, 1))
    return counts / n_resamples


def probability_by_examples(points: ArrayLike, n_examples: ArrayLike, n_draws: int = 500, seed: int = 0) -> np.ndarray:
    """How often each of single runs is on the front, when accuracies are drawn as their numbers of examples leave open.

    What another seed would have changed is not in it, and the accuracies of the front, picked for being high, are high
    by luck too: members are more doubtful than this says.

    Args:
        points: (n, 2), adversarial accuracy and training seconds.
        n_examples: (n,) or one number, images that each accuracy was measured on.
        n_draws: Of each accuracy, from Jeffreys' posterior of a proportion.
        seed: Of the draws.

    Returns:
        (n,), each a fraction of the draws.

    Source: Brown, Cai, DasGupta 2001, "Interval estimation for a binomial proportion".
    """
    array = _points(points)
    counts, rng = np.zeros(len(array)), np.random.default_rng(seed)
    robust = array[:, 0] * n_examples
    for _ in range(n_draws):
        drawn = rng.beta(robust + 0.5, n_examples - robust + 0.5)
        counts += non_dominated(np.column_stack([drawn, array[:, 1]]))
    return counts / n_draws
