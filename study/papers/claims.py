"""A paper's claims, what is measured of each over seeds, and the verdict that follows from the interval."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

CONFIDENCE = 0.95

Verdict = Literal["reproduced", "contradicted", "inconclusive at this scale"]
Unit = Literal["points", "points per doubling", "doublings per doubling", "times"]


class Measured(NamedTuple):
    """An estimate with its 95 % interval over `n` seeds."""

    estimate: float
    low: float
    high: float
    n: int


# Finished trials, a row each: label, seed, what was measured -> the claim's quantity
Measure = Callable[[pd.DataFrame], Measured]


@dataclass(frozen=True)
class Claim:
    """What a paper says: that a quantity lies strictly between two bounds.

    "A above B" is a difference in (0, ∞); "flat" a slope in (-margin, margin), which makes the verdict two
    one-sided tests, each at 2.5 %; "about 4 times" a ratio in a stated range around 4.
    """

    text: str
    published: str  # the figure, where there is one, and its source
    unit: Unit
    true_between: tuple[float, float]
    measure: Measure


def verdict(measured: Measured, true_between: tuple[float, float]) -> Verdict:
    """`reproduced` if the interval lies wholly between the bounds, `contradicted` if wholly outside."""
    lower, upper = true_between
    if lower < measured.low and measured.high < upper:
        return "reproduced"
    if measured.high < lower or upper < measured.low:
        return "contradicted"
    return "inconclusive at this scale"


def interval(values: Sequence[float]) -> Measured:
    """Mean and Student's t interval; without bounds for fewer than two values.

    Nor has it bounds where all values are equal but for rounding: that says nothing of their spread. It happens where
    few values are possible, such as counts of epochs, or where two networks have no adversarial accuracy at all.

    Source: Student 1908, The probable error of a mean; a seed gives one value.
    """
    values = np.asarray(values, dtype=float)
    n = len(values)
    if n == 0 or np.allclose(values, values[0], rtol=1e-9, atol=1e-12):
        return Measured(float(values[0]) if n else math.nan, -math.inf, math.inf, n)
    mean, error = float(values.mean()), float(stats.sem(values))
    half = error * float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1))
    return Measured(mean, mean - half, mean + half, n)


def ratio_interval(ratios: Sequence[float]) -> Measured:
    """Geometric mean and interval of ratios: those of their logarithms, taken back."""
    logarithms = interval(np.log(np.asarray(ratios, dtype=float)))
    estimate, low, high = (float(np.exp(value)) for value in logarithms[:3])
    return Measured(estimate, low, high, logarithms.n)


def by_seed(trials: pd.DataFrame, column: str, labels: Sequence[str]) -> pd.DataFrame:
    """(seeds, labels) of `column`, for the seeds that have a finite value for every label."""
    if column not in trials:
        return pd.DataFrame(columns=list(labels), dtype=float)
    wanted = trials[trials["label"].isin(labels)]
    table = wanted.pivot_table(index="seed", columns="label", values=column, aggfunc="last")
    return table.reindex(columns=list(labels)).replace([np.inf, -np.inf], np.nan).dropna()


def differences(trials: pd.DataFrame, column: str, above: Sequence[str], below: Sequence[str]) -> pd.Series:
    """Mean over labels `above` minus mean over labels `below`, for each seed that has all."""
    table = by_seed(trials, column, [*above, *below])
    return table[list(above)].mean(axis=1) - table[list(below)].mean(axis=1)


def slopes(trials: pd.DataFrame, column: str, batches: Mapping[str, int], logarithmic: bool = False) -> pd.Series:
    """Least-squares slope of `column`, or of log2 of its modulus, against log2 of the batch size, for each seed.

    Args:
        trials: Finished trials.
        column: What is fitted.
        batches: Batch size of each label.
        logarithmic: Fit the logarithm of the modulus; a Hessian's dominant eigenvalue may be negative.
    """
    table = by_seed(trials, column, list(batches))
    values = table.to_numpy(dtype=float)
    if logarithmic:
        values = np.log2(np.abs(values))
    x = np.log2(list(batches.values()))
    x = x - x.mean()
    return pd.Series((values - values.mean(axis=1, keepdims=True)) @ x / (x @ x), index=table.index)


def ratios(trials: pd.DataFrame, column: str, numerator: str, denominator: str) -> pd.Series:
    """Label `numerator`'s value over label `denominator`'s, for each seed that has both."""
    table = by_seed(trials, column, [numerator, denominator])
    return table[numerator] / table[denominator]


def difference(column: str, above: Sequence[str], below: Sequence[str]) -> Measure:
    """Paired by seed: seeds share initialisation and order of images where batch sizes agree."""
    return lambda trials: interval(differences(trials, column, above, below))


def ratio(column: str, numerator: str, denominator: str) -> Measure:
    """Of two labels' values, paired by seed."""
    return lambda trials: ratio_interval(ratios(trials, column, numerator, denominator))


def slope(column: str, batches: Mapping[str, int], logarithmic: bool = False) -> Measure:
    """Over the batch sizes of the labels; see `slopes`."""
    return lambda trials: interval(slopes(trials, column, batches, logarithmic))


# Numbers as people read them


def text(measured: Measured, unit: Unit) -> str:
    """e.g. `+2.31 [+0.40, +4.22] points`."""
    factor, form = (100, "+.2f") if unit.startswith("points") else (1, "+.2f" if unit != "times" else ".2f")
    values = ["?" if math.isnan(value) else format(value * factor, form) for value in measured[:3]]
    return f"{values[0]} [{values[1]}, {values[2]}] {unit}"
