"""A training's curve as a function of its configuration, fitted to the recorded trainings."""

import json
import lzma
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.base import RegressorMixin
from sklearn.ensemble import ExtraTreesRegressor
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel
from sklearn.model_selection import GroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from study.sampling import features
from trainables import timing
from trainables.batch_schedules import batch_sizes
from trainables.config import TrialConfig

RESULTS = Path(__file__).parents[1] / "results" / "replay"
FRACTIONS = np.linspace(0.1, 1.0, 10)  # of a schedule, where the curve is predicted


@dataclass(frozen=True)
class Clock:
    """Seconds per epoch from the measured seconds per step."""

    tables: Mapping[tuple[str, str, int], Mapping[int, float]]  # norm, recipe, attack steps -> batch size -> seconds
    n_examples: int

    def epoch_seconds(self, config: TrialConfig, sizes: Sequence[int]) -> np.ndarray:
        table = self._table(config)
        by_size = {
            size: timing.epoch_seconds(table, min(size, self.n_examples), self.n_examples) for size in set(sizes)
        }
        return np.array([by_size[size] for size in sizes])

    def _table(self, config: TrialConfig) -> Mapping[int, float]:
        """Between the least and the most attack steps measured, seconds grow in proportion to them."""
        training = {"static": "natural"}.get(config.training, config.training)
        n = {"pgd": config.pgd_steps, "trades": config.pgd_steps, "free": config.free_replays}.get(training)
        measured = sorted(k for norm, recipe, k in self.tables if (norm, recipe) == (config.norm, training))
        if n is None:
            return self.tables[config.norm, training, measured[0]]
        low, high = (self.tables[config.norm, training, k] for k in (measured[0], measured[-1]))
        weight = (n - measured[0]) / (measured[-1] - measured[0])
        return {size: low[size] + weight * (high[size] - low[size]) for size in low}


def clock(steps: pd.DataFrame, n_examples: int) -> Clock:
    tables = {
        key: dict(zip(part["batch_size"], part["seconds"], strict=True))
        for key, part in steps.groupby(["norm", "training", "n_attack_steps"])
    }
    return Clock(tables, n_examples)


def final_sizes(config: TrialConfig, plateau_rate: float) -> list[int]:
    """Batch sizes of the whole schedule; growth on a plateau comes every `patience` / `plateau_rate` epochs."""
    schedule = config.batch_size_schedule
    if schedule.kind != "plateau":
        return batch_sizes(schedule, config.epochs)
    wait = schedule.patience / plateau_rate
    return [min(schedule.last, schedule.first * schedule.factor ** int(epoch / wait)) for epoch in range(config.epochs)]


@dataclass(frozen=True)
class Recorded:
    """The recorded trainings."""

    numbers: np.ndarray  # (n,) of the configuration; the same for trainings that differ in their seed alone
    configs: list[TrialConfig]
    curves: list[np.ndarray]  # adversarial accuracy after each epoch; zeros from where a training diverged


def recorded(trials: Sequence[Mapping[str, object]]) -> Recorded:
    configs = [TrialConfig(**trial["config"]) for trial in trials]
    curves = [
        np.array([row[0] for row in trial["curve"]] + [0.0] * (config.epochs - len(trial["curve"])))
        for trial, config in zip(trials, configs, strict=True)
    ]
    return Recorded(np.array([trial["number"] for trial in trials]), configs, curves)


def at_fractions(curve: np.ndarray) -> np.ndarray:
    """(len(FRACTIONS),) accuracies, linear between epochs."""
    return np.interp(FRACTIONS * len(curve), np.arange(1, len(curve) + 1), curve)


class Surrogate:
    """Accuracy curve and epochs' seconds of any configuration; `draw` adds the noise of a training.

    The curve is a Gaussian process's mean over the configuration, one for all fractions of the schedule. The noise is
    a recorded one: how a training differed from the mean of those with the same configuration and other seeds, as a
    whole curve, of one of the repeated configurations whose accuracy is nearest.
    """

    def __init__(self, data: Recorded, time: Clock, plateau_rate: float, model: Callable[[], RegressorMixin]) -> None:
        self.time, self.plateau_rate = time, plateau_rate
        self.x = np.stack([self.inputs(config) for config in data.configs])
        self.y = np.stack([at_fractions(curve) for curve in data.curves])
        self.model = model().fit(self.x, self.y)
        self.levels, self.residuals = residuals(data)

    def inputs(self, config: TrialConfig) -> np.ndarray:
        return features(config, self.epoch_seconds(config).sum())

    def epoch_seconds(self, config: TrialConfig) -> np.ndarray:
        return self.time.epoch_seconds(config, final_sizes(config, self.plateau_rate))

    def mean_curve(self, config: TrialConfig) -> np.ndarray:
        """(epochs,) adversarial accuracy without noise."""
        points = np.clip(self.model.predict(self.inputs(config)[None])[0], 0, 1)
        return np.interp(np.arange(1, config.epochs + 1) / config.epochs, FRACTIONS, points)

    def draw(self, mean_curve: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """One training's (epochs,) accuracies."""
        nearest = np.argsort(np.abs(self.levels - mean_curve[-1]))[:8]
        noise = self.residuals[generator.choice(nearest)]
        at = np.arange(1, len(mean_curve) + 1) / len(mean_curve)
        return np.clip(mean_curve + np.interp(at, FRACTIONS, noise), 0, 1)


def residuals(data: Recorded) -> tuple[np.ndarray, np.ndarray]:
    """Final accuracy of each repeated training's configuration, and its deviation from the mean over seeds."""
    levels, deviations = [], []
    for number in np.unique(data.numbers):
        same = np.stack(
            [at_fractions(curve) for curve, n in zip(data.curves, data.numbers, strict=True) if n == number]
        )
        if len(same) > 1:
            scale = np.sqrt(len(same) / (len(same) - 1))  # the mean is of few
            deviations.extend((same - same.mean(0)) * scale)
            levels.extend([same.mean(0)[-1]] * len(same))
    return np.array(levels), np.array(deviations)


def process() -> RegressorMixin:
    """A Gaussian process whose length scale and noise were chosen by the error on held-out configurations."""
    kernel = ConstantKernel(1.0) * Matern(8.0, nu=1.5) + WhiteKernel(0.2)
    return make_pipeline(StandardScaler(), GaussianProcessRegressor(kernel, optimizer=None, normalize_y=True))


def forest() -> RegressorMixin:
    return ExtraTreesRegressor(100, max_features=0.5, random_state=0)


MODELS: dict[str, Callable[[], RegressorMixin]] = {"process": process, "forest": forest}


def load(model: str = "process") -> Surrogate:
    """The surrogate of the recorded trainings."""
    trials, steps, n_examples = read()
    return Surrogate(recorded(trials), clock(steps, n_examples), plateau_rate(trials), MODELS[model])


def read() -> tuple[list[dict[str, object]], pd.DataFrame, int]:
    """Recorded trials, seconds per step, and the number of training images."""
    content = json.loads(lzma.decompress((RESULTS / "trials.json.xz").read_bytes()))
    return content["trials"], pd.read_csv(RESULTS / "steps.csv"), content["n_examples"]


def plateau_rate(trials: Sequence[Mapping[str, object]]) -> float:
    """Of the epochs in which batches on a plateau could still grow, the share that ended a wait of `patience`."""
    grown = waited = 0
    for trial in trials:
        schedule = trial["config"]["batch_size_schedule"]
        sizes = [row[3] for row in trial["curve"]]
        if schedule["kind"] == "plateau" and sizes[0] < schedule["last"]:
            grown += schedule["patience"] * (len(set(sizes)) - 1)
            waited += sum(size < schedule["last"] for size in sizes)
    return grown / waited


def held_out_errors(model: str, n_folds: int = 5) -> dict[str, float]:
    """Errors on configurations that the surrogate was not fitted to, at a half of the schedule and at its end."""
    trials, steps, n_examples = read()
    data = recorded(trials)
    whole = Surrogate(data, clock(steps, n_examples), plateau_rate(trials), MODELS[model])
    predicted = np.zeros_like(whole.y)
    for fit, test in GroupKFold(n_folds).split(whole.x, whole.y, data.numbers):
        predicted[test] = MODELS[model]().fit(whole.x[fit], whole.y[fit]).predict(whole.x[test])
    error, spread = predicted - whole.y, whole.y - whole.y.mean(0)
    return {
        "mae_half": float(np.abs(error[:, 4]).mean()),
        "mae_end": float(np.abs(error[:, -1]).mean()),
        "r2_end": float(1 - (error[:, -1] ** 2).sum() / (spread[:, -1] ** 2).sum()),
        "deviation_end": float(whole.y[:, -1].std()),
        "deviation_of_seeds": float(np.std(whole.residuals[:, -1])),
    }


if __name__ == "__main__":
    print(pd.DataFrame({model: held_out_errors(model) for model in MODELS}).T.round(3).to_string())
