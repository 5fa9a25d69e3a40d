"""What accuracy a configuration will reach, learned from the trials that have ended: two models of different kinds."""

import math

import numpy as np
from sklearn.ensemble import ExtraTreesRegressor
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import Matern

N_TREES = 32
LEAF = 2  # trials in a leaf of a tree
FOREST_TRIALS, PROCESS_TRIALS = 1000, 300  # at most; see `most_telling`
CHOICE_TRIALS = 100  # of the process's, those by which length and noise are chosen: sixteen fits
LENGTHS = (0.5, 1.0, 2.0, 4.0)  # in standard deviations of the features, times the root of their number
NOISES = (0.01, 0.05, 0.2, 0.6)  # shares of the accuracies' variance
LEAST_DEVIATION = 0.02  # of a predicted accuracy: two trainings that differ in their seed alone differ as much


class AccuracyModel:
    """The mean of a forest and a Gaussian process.

    The forest finds which choices matter and extrapolates by constants; the process is smooth and sure near what it
    has seen. On recorded trainings the two together led to better fronts than either alone (docs/search.md).

    Args:
        x: (n, d), features of configurations; the newest last.
        accuracies: (n,).
        seed: Of the forest.
    """

    def __init__(self, x: np.ndarray, accuracies: np.ndarray, seed: int) -> None:
        self.models = [Forest(x, accuracies, seed), Process(x, accuracies)]

    def predict(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of the accuracy of (n, d) configurations: one model or the other is right."""
        means, deviations = zip(*(model.predict(x) for model in self.models), strict=True)
        return np.mean(means, 0), np.sqrt(np.mean(np.square(deviations), 0) + np.var(means, 0))


class Forest:
    """Mean and deviation over trees that split at random.

    Source: Geurts, Ernst, Wehenkel 2006, Extremely randomized trees; the deviation over trees as uncertainty is that
    of Hutter, Hoos, Leyton-Brown 2011, Sequential model-based optimization for general algorithm configuration.
    """

    def __init__(self, x: np.ndarray, accuracies: np.ndarray, seed: int) -> None:
        kept = most_telling(accuracies, FOREST_TRIALS)
        self.trees = ExtraTreesRegressor(N_TREES, min_samples_leaf=LEAF, max_features=0.5, random_state=seed)
        self.trees.fit(x[kept], accuracies[kept])

    def predict(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        x = np.ascontiguousarray(x, dtype=np.float32)
        each = np.stack([tree.tree_.predict(x)[:, 0] for tree in self.trees.estimators_])
        return each.mean(0), np.maximum(each.std(0), LEAST_DEVIATION)


class Process:
    """A Gaussian process with one length for all standardised features, the likeliest of a few, as is the noise."""

    def __init__(self, x: np.ndarray, accuracies: np.ndarray) -> None:
        kept = most_telling(accuracies, PROCESS_TRIALS)
        x = x[kept].astype(float)
        self.mean, deviation = x.mean(0), x.std(0)
        self.scale = np.where(deviation > 0, deviation, 1.0) * np.sqrt(max(np.count_nonzero(deviation), 1))
        fits = [
            GaussianProcessRegressor(Matern(length, nu=2.5), alpha=noise, optimizer=None, normalize_y=True)
            for length in LENGTHS
            for noise in NOISES
        ]
        x, y = self._scaled(x), accuracies[kept]
        some = slice(None, None, math.ceil(len(x) / CHOICE_TRIALS))
        for fit in fits:
            fit.fit(x[some], y[some])
        self.process = max(fits, key=lambda fit: fit.log_marginal_likelihood_value_).fit(x, y)

    def _scaled(self, x: np.ndarray) -> np.ndarray:
        return (x - self.mean) / self.scale

    def predict(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        mean, deviation = self.process.predict(self._scaled(x), return_std=True)
        return mean, np.maximum(deviation, LEAST_DEVIATION)


def most_telling(accuracies: np.ndarray, n: int) -> np.ndarray:
    """Which trials a model is fitted to: all, or the most accurate half of `n` and the newest of the others.

    A fit to all 5,000 of a long study would take longer than a proposal may.
    """
    if len(accuracies) <= n:
        return np.arange(len(accuracies))
    best = np.argsort(-accuracies, kind="stable")[: n // 2]
    return np.concatenate([best, np.setdiff1d(np.arange(len(accuracies)), best)[-(n - len(best)) :]])
