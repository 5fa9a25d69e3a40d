"""Batch sizes 8 to 512 with the LR in proportion (series a) and with a fixed LR (series b), momentum 0 and 0.9.

At batch size 128 both series are the same training, which is run once.
"""

import math

from matplotlib.figure import Figure

from study.papers.claims import Claim, Measured, differences, interval, slope
from study.papers.paper import (
    ADVERSARIAL,
    CLEAN,
    COLOURS,
    SECONDS,
    Column,
    Paper,
    Trials,
    constant_batch,
    error_bars,
    name_axes,
    plain_numbers,
)
from study.papers.settings import Protocol, ReproductionSettings, Scale, natural_eps

SOURCE = "arXiv:2006.11604"
ABSTRACT = f"no figure; abstract of {SOURCE}"
YAO = "no figure; Yao et al. 2018, arXiv:1802.08241, cited in the abstract of " + SOURCE

BATCH_SIZES = (8, 16, 32, 64, 128, 256, 512)
MOMENTA = (0.0, 0.9)
LR, MEETING_BATCH = 0.1, 128
SERIES = {"a": "LR = batch · 0.1/128", "b": "LR = 0.1"}
FLAT = 0.01  # accuracy per doubling of the batch: six points from 8 to 512

DEFAULTS: dict[Scale, dict[str, object]] = {
    "minutes": {"dataset": "digits", "depth": 8, "epochs": 40, "eval_examples": 1000},
    "hours": {"dataset": "cifar10", "depth": 56, "epochs": 10, "eval_examples": 1000},
    "paper": {"dataset": "cifar10", "depth": 56, "epochs": 200, "eval_examples": 10_000},
}

RECIPE = (
    "batch sizes, both series and both momenta; the abstract, which is all that was at hand, gives neither networks "
    "and data sets (ResNet-56, CIFAR-10 at paper scale), nor learning rates, epochs (200 there) or the attack (PGD-20)."
)


def defaults(scale: Scale, dataset: str | None, protocol: Protocol) -> dict[str, object]:
    chosen = DEFAULTS[scale] | ({"dataset": dataset} if dataset else {})
    measured = {"eps": natural_eps(chosen["dataset"]), "attack_steps": 20, "curve_examples": 20}
    return chosen | measured | {"probes": ("hessian",)}


def lr(series: str, batch_size: int) -> float:
    return LR * batch_size / MEETING_BATCH if series == "a" else LR


def label(series: str, batch_size: int, momentum: float) -> str:
    return f"batch {batch_size}, LR {lr(series, batch_size):g}, momentum {momentum:g}"


def batches(series: str, momentum: float) -> dict[str, int]:
    """Label to batch size."""
    return {label(series, size, momentum): size for size in BATCH_SIZES}


def configurations(settings: ReproductionSettings) -> dict[str, dict[str, object]]:
    shared = {"depth": settings.depth, "epochs": settings.epochs, "norm": "batchnorm", "eps": settings.eps}
    return {
        label(series, size, momentum): shared
        | {"batch_size_schedule": constant_batch(size), "momentum": momentum}
        | {"lr_batch_ratio": lr(series, size) / size}
        for series in SERIES
        for momentum in MOMENTA
        for size in BATCH_SIZES
    }


def momentum_helps_b_more(trials: Trials) -> Measured:
    """Mean gain by momentum over the batch sizes, in (b) minus in (a)."""
    gains = {
        series: differences(trials, "adversarial_accuracy", list(batches(series, 0.9)), list(batches(series, 0.0)))
        for series in SERIES
    }
    return interval((gains["b"] - gains["a"]).dropna())


def claims(settings: ReproductionSettings) -> list[Claim]:
    found = []
    for momentum in MOMENTA:
        which = f"momentum {momentum:g}"
        found += [
            Claim(
                f"(a) LR in proportion to the batch, {which}: adversarial accuracy is flat "
                f"(slope within ±{FLAT * 100:g} points per doubling)",
                f"almost constant; abstract of {SOURCE}",
                "points per doubling",
                (-FLAT, FLAT),
                slope("adversarial_accuracy", batches("a", momentum)),
            ),
            Claim(
                f"(b) fixed LR, {which}: adversarial accuracy falls as the batch grows",
                YAO,
                "points per doubling",
                (-math.inf, 0),
                slope("adversarial_accuracy", batches("b", momentum)),
            ),
            Claim(
                f"(b) fixed LR, {which}: the dominant Hessian eigenvalue grows with the batch",
                YAO,
                "doublings per doubling",
                (0, math.inf),
                slope("hessian.1", batches("b", momentum), logarithmic=True),
            ),
        ]
    helps = Claim(
        "momentum adds more adversarial accuracy in (b) than in (a)",
        ABSTRACT,
        "points",
        (0, math.inf),
        momentum_helps_b_more,
    )
    return [*found, helps]


def draw(figure: Figure, trials: Trials, settings: ReproductionSettings) -> None:
    """Adversarial and clean accuracy and the dominant eigenvalue over the batch size."""
    panels = figure.subplots(1, 3)
    quantities = [
        ("adversarial_accuracy", "adversarial accuracy"),
        ("clean_accuracy", "clean accuracy"),
        ("hessian.1", "dominant Hessian eigenvalue"),
    ]
    series = [(name, momentum) for name in SERIES for momentum in MOMENTA]
    for axes, (name, title) in zip(panels, quantities, strict=True):
        for (which, momentum), colour in zip(series, COLOURS, strict=False):
            text = f"({which}) {SERIES[which]}, momentum {momentum:g}" if axes is panels[0] else None
            error_bars(axes, BATCH_SIZES, trials, list(batches(which, momentum)), name, True, color=colour, label=text)
        axes.set_xscale("log", base=2)
        axes.set_xticks(BATCH_SIZES, [str(size) for size in BATCH_SIZES])
        name_axes(axes, "batch size", title)
    if "hessian.1" in trials and (trials["hessian.1"].dropna() > 0).any():
        panels[2].set_yscale("log", nonpositive="mask")
        plain_numbers(panels[2].yaxis)


PAPER = Paper(
    title="Kamath, Deshpande, Subrahmanyam 2020, How do SGD hyperparameters in natural training affect adversarial "
    "robustness?",
    source=SOURCE,
    defaults=defaults,
    recipe=RECIPE,
    configurations=configurations,
    claims=claims,
    columns=(
        ADVERSARIAL,
        CLEAN,
        Column("eigenvalue 1", "hessian.1", 1, 2, least=-math.inf),
        Column("eigenvalue 2", "hessian.2", 1, 2, least=-math.inf),
        SECONDS,
    ),
    draw=draw,
)
