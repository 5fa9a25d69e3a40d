"""Batches that grow during training, with BatchNorm and with Fixup.

Time is that of training alone; the ratios hold for the device they were measured on.
"""

import math

from matplotlib.figure import Figure

from study.papers.claims import Claim, by_seed, difference, ratio
from study.papers.paper import (
    ADVERSARIAL,
    CLEAN,
    COLOURS,
    SECONDS,
    Paper,
    Trials,
    constant_batch,
    error_bars,
    name_axes,
    plain_numbers,
)
from study.papers.settings import Protocol, ReproductionSettings, Scale, natural_eps

SOURCE = "doi:10.21609/jiki.v14i1.907"
ABSTRACT = f"abstract of {SOURCE}"

NORMS = {"BatchNorm": "batchnorm", "Fixup": "fixup"}
SCHEDULES = {
    "8": constant_batch(8),
    "128": constant_batch(128),
    "8→128": {"kind": "geometric", "first": 8, "last": 128, "factor": 2},
}
RATIO_TOLERANCE = 0.25  # a published ratio counts as met within a quarter of it

DEFAULTS: dict[Scale, dict[str, object]] = {
    "minutes": {"dataset": "digits", "depth": 20, "epochs": 40, "eval_examples": 1000},
    "hours": {"dataset": "cifar10", "depth": 56, "epochs": 20, "eval_examples": 1000},
    "paper": {"dataset": "cifar10", "depth": 56, "epochs": 200, "eval_examples": 10_000},
}

RECIPE = (
    "ResNet-56, batches of 8, of 128 and growing from 8 to 128 in equal stages, BatchNorm and Fixup; the abstract "
    "gives neither the data set (CIFAR-10 at paper scale), nor the epochs (200 there), the learning rate (0.1/128 of "
    "the batch size) or the attack (PGD-20)."
)


def defaults(scale: Scale, dataset: str | None, protocol: Protocol) -> dict[str, object]:
    chosen = DEFAULTS[scale] | ({"dataset": dataset} if dataset else {})
    return chosen | {"eps": natural_eps(chosen["dataset"]), "attack_steps": 20, "curve_examples": 20, "probes": ()}


def configurations(settings: ReproductionSettings) -> dict[str, dict[str, object]]:
    shared = {"depth": settings.depth, "epochs": settings.epochs, "lr_batch_ratio": 0.1 / 128, "eps": settings.eps}
    return {
        f"{norm} {batches}": shared | {"norm": field, "batch_size_schedule": schedule}
        for norm, field in NORMS.items()
        for batches, schedule in SCHEDULES.items()
    }


def labels(norm: str) -> list[str]:
    return [f"{norm} {batches}" for batches in SCHEDULES]


def about(figure: float) -> tuple[float, float]:
    return figure * (1 - RATIO_TOLERANCE), figure * (1 + RATIO_TOLERANCE)


def claims(settings: ReproductionSettings) -> list[Claim]:
    found = [
        Claim(
            "Fixup is more robust than BatchNorm (mean over the three batch schedules)",
            f"no figure; {ABSTRACT}",
            "points",
            (0, math.inf),
            difference("adversarial_accuracy", labels("Fixup"), labels("BatchNorm")),
        )
    ]
    for norm, figure in [("Fixup", f"no figure; {ABSTRACT}"), ("BatchNorm", "not claimed in the abstract")]:
        small, large, growing = labels(norm)
        improvement = f"up to +5.73 points; {ABSTRACT}" if norm == "Fixup" else figure
        found += [
            Claim(
                f"{norm}: batches of 8 give a more robust network than batches of 128",
                figure,
                "points",
                (0, math.inf),
                difference("adversarial_accuracy", [small], [large]),
            ),
            Claim(
                f"{norm}: growing batches give a more robust network than batches of 128",
                improvement,
                "points",
                (0, math.inf),
                difference("adversarial_accuracy", [growing], [large]),
            ),
        ]
    for norm in NORMS:
        small, large, growing = labels(norm)
        found += [
            Claim(
                f"{norm}: growing batches take about 4 times as long as 128 (within a quarter: 3 to 5)",
                f"4 times; {ABSTRACT}" if norm == "Fixup" else "not claimed in the abstract",
                "times",
                about(4),
                ratio("train_seconds", growing, large),
            ),
            Claim(
                f"{norm}: batches of 8 take about 10 times as long as 128 (within a quarter: 7.5 to 12.5)",
                f"10 times; {ABSTRACT}" if norm == "Fixup" else "not claimed in the abstract",
                "times",
                about(10),
                ratio("train_seconds", small, large),
            ),
            Claim(
                f"{norm}: growing batches take less time than batches of 8",
                f"4 against 10 times; {ABSTRACT}" if norm == "Fixup" else "not claimed in the abstract",
                "times",
                (0, 1),
                ratio("train_seconds", growing, small),
            ),
        ]
    return found


def draw(figure: Figure, trials: Trials, settings: ReproductionSettings) -> None:
    """Adversarial accuracy over training seconds."""
    axes = figure.add_subplot()
    for norm, colour in zip(NORMS, COLOURS, strict=False):
        seconds = {label: by_seed(trials, "train_seconds", [label])[label].mean() for label in labels(norm)}
        known = [label for label, value in seconds.items() if value == value]
        error_bars(axes, [seconds[label] for label in known], trials, known, ADVERSARIAL.name, color=colour, label=norm)
        for label in known:
            place = seconds[label], by_seed(trials, ADVERSARIAL.name, [label])[label].mean()
            axes.annotate(label.split()[1], place, xytext=(6, 6), textcoords="offset points", fontsize=8)
    axes.set_xscale("log")
    plain_numbers(axes.xaxis)
    axes.margins(x=0.12)
    name_axes(axes, "training seconds (log scale)", "adversarial accuracy")


PAPER = Paper(
    title="Sasongko, Krisnadhi, Fanany 2021, Reducing Adversarial Vulnerability through Adaptive Training Batch Size",
    source=SOURCE,
    defaults=defaults,
    recipe=RECIPE,
    configurations=configurations,
    claims=claims,
    columns=(ADVERSARIAL, CLEAN, SECONDS),
    draw=draw,
)
