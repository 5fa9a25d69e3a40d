"""The front as a picture for a paper or a README: front.png and front.svg."""

import io
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter
from optuna.trial import FrozenTrial

from study.figures import FRONT, N_WITH_BARS, OTHER, PUBLISHED, SECONDS
from study.ladder import rungs
from study.results import describe, front_of, is_complete, wilson


def encode(figure: Figure, suffix: str) -> bytes:
    """The file's content; `suffix` is one of matplotlib's formats, e.g. `png` or `svg`."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format=suffix, dpi=160)
    return buffer.getvalue()


def front(trials: Sequence[FrozenTrial], title: str, objective: str, attack: str) -> Figure:
    """Adversarial accuracy with its 95 % interval over seconds (log), front and published configurations marked."""
    figure = Figure(figsize=(7.5, 4.8), layout="constrained")
    axes = figure.add_subplot()
    members = front_of(trials)
    numbers = {trial.number for trial in members}
    complete = [trial for trial in trials if is_complete(trial)]
    dominated = [trial for trial in complete if trial.number not in numbers]
    _scatter(axes, dominated, OTHER, "dominated", bars=len(dominated) <= N_WITH_BARS, alpha=0.5)
    _scatter(axes, members, FRONT, "Pareto front", bars=True)
    if members:
        accuracy, seconds = zip(*(trial.values for trial in members), strict=True)
        axes.step(seconds, accuracy, where="post", color=FRONT, linewidth=1.2, alpha=0.7)
    _name_published(axes, [trial for trial in complete if trial.user_attrs.get("label")], complete)
    if complete:
        axes.set_xscale("log")
        axes.margins(x=0.12)
        places = ticks(*axes.get_xlim())
        axes.set_xticks(places, [np.format_float_positional(place, 9, fractional=False, trim="-") for place in places])
        axes.xaxis.set_minor_formatter(NullFormatter())
        figure.legend(loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    axes.set_xlabel(f"{SECONDS[objective]} (log scale)")
    axes.set_ylabel(f"adversarial accuracy, {attack}")
    axes.set_title(title, fontsize=10, parse_math=False)
    axes.grid(alpha=0.25)
    return figure


def ticks(low: float, high: float) -> list[float]:
    """Round numbers between two positive limits, few enough to be written out below a logarithmic axis."""
    decades = np.log10(high / low)
    if decades < 1:
        found = MaxNLocator(5, steps=[1, 2, 5, 10]).tick_values(low, high)
    else:
        found = LogLocator(subs=(1, 2, 5) if decades < 3 else (1,), numticks=7).tick_values(low, high)
    return [place for place in found if low <= place <= high]


def _scatter(
    axes: Axes, trials: Sequence[FrozenTrial], colour: str, label: str, *, bars: bool, alpha: float = 1.0
) -> None:
    if not trials:
        return
    accuracy = [trial.values[0] for trial in trials]
    low, high = zip(*(wilson(trial.values[0], trial.user_attrs["n_examples"]) for trial in trials), strict=True)
    below = [max(0.0, a - b) for a, b in zip(accuracy, low, strict=True)]
    above = [max(0.0, b - a) for a, b in zip(accuracy, high, strict=True)]
    style = {"fmt": "o", "markersize": 5 if bars else 3, "elinewidth": 0.8, "color": colour, "alpha": alpha}
    seconds = [trial.values[1] for trial in trials]
    axes.errorbar(seconds, accuracy, yerr=[below, above] if bars else None, label=label, **style)
    axes.autoscale_view()


def _name_published(axes: Axes, trials: Sequence[FrozenTrial], among: Sequence[FrozenTrial]) -> None:
    if not trials:
        return
    accuracy, seconds = zip(*(trial.values for trial in trials), strict=True)
    ring = {"facecolors": "none", "edgecolors": PUBLISHED, "linewidths": 1.4, "zorder": 4}
    axes.scatter(seconds, accuracy, s=90, label="published configuration", **ring)
    lows, highs = zip(*(wilson(trial.values[0], trial.user_attrs["n_examples"]) for trial in among), strict=True)
    for trial, rung in zip(trials, rungs(seconds, min(lows), max(highs)), strict=True):
        style = {"fontsize": 8, "color": PUBLISHED, "ha": "left" if rung.to_the_right else "right", "va": "center"}
        style |= {"parse_math": False}  # a label is the user's: $ is a character
        line = {"arrowstyle": "-", "color": PUBLISHED, "linewidth": 0.8, "shrinkA": 0, "shrinkB": 6}
        place = (trial.values[1], rung.height)
        axes.annotate("", (trial.values[1], trial.values[0]), place, arrowprops=line)
        axes.update_datalim([place])  # arrows and texts do not count otherwise
        axes.annotate(describe(trial), place, (4 if rung.to_the_right else -4, 0), textcoords="offset points", **style)
    axes.autoscale_view()
