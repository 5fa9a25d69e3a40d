"""What a paper is to `python -m study.reproduce`: trainings, claims, a table and a figure."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogFormatter

from study.papers.claims import Claim, by_seed, interval
from study.papers.settings import Protocol, ReproductionSettings, Scale
from trainables.config import TrialConfig, trial_config

COLOURS = ("#0b6e4f", "#c8553d", "#3d5a80", "#9c6644", "#7b2d8b", "#9aa5b1", "#e0a100")

Trials = pd.DataFrame  # a row each: label, seed, clean_accuracy, adversarial_accuracy, train_seconds, curve, probes


class Column(NamedTuple):
    """One quantity in the table of configurations."""

    heading: str
    name: str  # in `Trials`
    factor: float = 1.0
    digits: int = 2
    least: float = 0.0  # that it can be, where an interval ends too
    counts: bool = False  # of seeds that did or didn't

    @property
    def most(self) -> float:
        return 1.0 if self.factor == 100 else math.inf


CLEAN = Column("clean %", "clean_accuracy", 100, 1)
ADVERSARIAL = Column("adversarial %", "adversarial_accuracy", 100, 1)
SECONDS = Column("seconds", "train_seconds", 1, 1)


@dataclass(frozen=True)
class Paper:
    """One paper, at every scale.

    Attributes:
        title: With authors and year.
        source: Where it can be read.
        defaults: Settings that a scale, data set and protocol start from, fields of `ReproductionSettings`.
        recipe: What is known of the published training, what is not, and what stands in for that.
        configurations: Label to fields of TrialConfig, `seed` apart.
        claims: What is judged.
        columns: Of the table of configurations.
        draw: Fills the figure.
        protocols: Those that differ here.
        derive: Adds columns that follow from several trials.
    """

    title: str
    source: str
    defaults: Callable[[Scale, str | None, Protocol], dict[str, object]]
    recipe: str
    configurations: Callable[[ReproductionSettings], dict[str, dict[str, object]]]
    claims: Callable[[ReproductionSettings], list[Claim]]
    columns: Sequence[Column]
    draw: Callable[[Figure, Trials, ReproductionSettings], None]
    protocols: tuple[Protocol, ...] = ("whitebox",)
    derive: Callable[[Trials], Trials] = lambda trials: trials


def trial_configs(paper: Paper, settings: ReproductionSettings) -> list[tuple[str, TrialConfig]]:
    """Every label with every seed; the first seed of all labels comes first.

    Raises:
        InputError: If the settings make a configuration that is not accepted.
    """
    configurations = paper.configurations(settings)
    return [
        (label, trial_config(fields | {"seed": settings.seed + i}))
        for i in range(settings.seeds)
        for label, fields in configurations.items()
    ]


def constant_batch(size: int) -> dict[str, object]:
    return {"kind": "constant", "size": size}


def name_axes(axes: Axes, x: str, y: str) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.25)


def plain_numbers(axis: Axis) -> None:
    """Numbers such as 30 on a logarithmic axis, also between powers of ten."""
    axis.set_major_formatter(FormatStrFormatter("%g"))
    axis.set_minor_formatter(LogFormatter(labelOnlyBase=False, minor_thresholds=(2, 0.5)))


def error_bars(
    axes: Axes,
    xs: Sequence[float],
    trials: Trials,
    labels: Sequence[str],
    name: str,
    connected: bool = False,
    **style: object,
) -> None:
    """Mean of `name` and its interval over seeds for each label; labels without a value are left out."""
    points = []
    for x, label in zip(xs, labels, strict=True):
        values = by_seed(trials, name, [label])[label]
        if len(values):
            points.append((x, *interval(values)[:3]))
    for i, (x, mean, low, high) in enumerate(points):
        spread = [[mean - low], [high - mean]] if math.isfinite(high) else None
        extra = style if i == 0 else style | {"label": None}
        axes.errorbar([x], [mean], yerr=spread, fmt="o", markersize=5, capsize=2, elinewidth=0.9, **extra)
    if connected:
        means = [point[1] for point in points]
        axes.plot([point[0] for point in points], means, linewidth=1, alpha=0.6, color=style["color"])
