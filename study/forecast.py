"""What a running trial will reach, from its configuration and its curve so far."""

from collections.abc import Sequence

import numpy as np
from sklearn.ensemble import ExtraTreesRegressor

from study.stopping import Curve

N_TREES = 24
LEAF = 3  # points in a leaf of a tree
MAX_CURVES = 250  # the newest; with more, a fit would take longer than a trial should wait for an answer
MAX_POINTS = 12  # epochs of one curve that are learned from
LEAST_DEVIATION = 0.1  # of a final accuracy: trees that agree still err, and no two seeds end alike


class Forecast:
    """How far accuracy rises from a fraction of the schedule to its end, learned from finished trials.

    Randomised trees see the configuration, the fraction of the schedule, the accuracy there and the best so far.

    Args:
        x: (n, d), features of the finished trials' configurations.
        curves: Adversarial accuracy after each epoch of each; those of a single epoch say nothing.
        seed: Of the trees.
    """

    def __init__(self, x: np.ndarray, curves: Sequence[Curve], seed: int) -> None:
        points, rises = [], []
        for features, curve in list(zip(x, curves, strict=True))[-MAX_CURVES:]:
            epochs = np.unique(np.linspace(1, len(curve) - 1, min(len(curve) - 1, MAX_POINTS)).astype(int))
            points += [point(features, curve[:epoch], epoch / len(curve)) for epoch in epochs]
            rises += [curve[-1] - curve[epoch - 1] for epoch in epochs]
        self.trees = ExtraTreesRegressor(N_TREES, min_samples_leaf=LEAF, max_features=0.5, random_state=seed)
        self.trees.fit(np.stack(points), rises)

    def final(self, features: np.ndarray, curve: Curve, fraction: float) -> tuple[float, float]:
        """Mean and deviation over trees of the accuracy at the end.

        Args:
            features: (d,), of the configuration.
            curve: Adversarial accuracy after each epoch so far.
            fraction: Of the schedule that is over.
        """
        row = point(features, curve, fraction)[None]
        each = np.array([tree.tree_.predict(row)[0, 0] for tree in self.trees.estimators_])
        return float(curve[-1] + each.mean()), max(float(each.std()), LEAST_DEVIATION)


def point(features: np.ndarray, curve: Curve, fraction: float) -> np.ndarray:
    return np.concatenate([features, [fraction, curve[-1], max(curve)]]).astype(np.float32)
