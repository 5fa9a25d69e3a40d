"""Whose statistics a normalisation uses at inference: the training population's or the inference batch's.

Population and batch statistics of one norm are two trainings of the same seed, whose weights agree: the statistics
matter to evaluation alone. With batch statistics an image's prediction depends on its neighbours, so the accuracy
holds for batches of 256, of which the last may be smaller, and the probe counts predictions that smaller batches
change. The attack moves all images of a batch at once and each gradient is that of the whole batch's loss.
"""

import math

import numpy as np
from matplotlib.figure import Figure

from study.papers.claims import Claim, by_seed, difference
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
)
from study.papers.settings import Protocol, ReproductionSettings, Scale, natural_eps

SOURCE = "arXiv:2006.11007"
ABSTRACT = f"no figure; abstract of {SOURCE}"

BATCHNORM, BATCHNORM_BATCH = "BatchNorm, population", "BatchNorm, batch"
ROBUSTNORM, ROBUSTNORM_BATCH = "RobustNorm, population", "RobustNorm, batch"
NORMS = {
    BATCHNORM: {"norm": "batchnorm", "eval_statistics": "population"},
    BATCHNORM_BATCH: {"norm": "batchnorm", "eval_statistics": "batch"},
    ROBUSTNORM: {"norm": "robustnorm", "eval_statistics": "population"},
    ROBUSTNORM_BATCH: {"norm": "robustnorm", "eval_statistics": "batch"},
    "Fixup": {"norm": "fixup"},
    "GroupNorm": {"norm": "groupnorm"},
}
ATTACKS = {"PGD": "adversarial_accuracy", "FGSM": "fgsm.accuracy"}
BATCHES = (128, 32, 1)  # compared with 256
CLEAN_MARGIN = 0.01  # a loss of clean accuracy that still counts as "retained"

DEFAULTS: dict[Scale, dict[str, object]] = {
    "minutes": {"dataset": "digits", "depth": 20, "epochs": 40, "eval_examples": 1000},
    "hours": {"dataset": "cifar10", "depth": 56, "epochs": 40, "eval_examples": 1024},
    "paper": {"dataset": "cifar10", "depth": 20, "epochs": 164, "eval_examples": 10_000},
}

RECIPE = (
    "ResNet-20 on CIFAR-10, batches of 128, LR 0.1 cut twice by ten, weight decay 1e-4, 164 epochs, as in the authors' "
    "code (github.com/awaisrauf/RobustNorm); the radii of the published tables are not known here, and noise there is "
    "normal with deviation 0.1, here uniform within eps."
)


def defaults(scale: Scale, dataset: str | None, protocol: Protocol) -> dict[str, object]:
    chosen = DEFAULTS[scale] | ({"dataset": dataset} if dataset else {})
    measured = {"eps": natural_eps(chosen["dataset"]), "attack_steps": 20, "curve_examples": 20}
    return chosen | measured | {"probes": ("fgsm", "noise", "batch_dependence")}


def configurations(settings: ReproductionSettings) -> dict[str, dict[str, object]]:
    shared = {
        "depth": settings.depth,
        "epochs": settings.epochs,
        "eps": settings.eps,
        "batch_size_schedule": constant_batch(128),
        "lr_batch_ratio": 0.1 / 128,
        "lr_schedule": "multistep",
        "weight_decay": 1e-4,
    }
    return {label: shared | norm for label, norm in NORMS.items()}


def claims(settings: ReproductionSettings) -> list[Claim]:
    found = []
    for attack, column in ATTACKS.items():
        found += [
            Claim(
                f"{attack}: BatchNorm is more robust with the inference batch's statistics than with the population's",
                ABSTRACT,
                "points",
                (0, math.inf),
                difference(column, [BATCHNORM_BATCH], [BATCHNORM]),
            ),
            Claim(
                f"{attack}: RobustNorm is more robust than BatchNorm, both with the inference batch's statistics",
                ABSTRACT,
                "points",
                (0, math.inf),
                difference(column, [ROBUSTNORM_BATCH], [BATCHNORM_BATCH]),
            ),
            Claim(
                f"{attack}: RobustNorm is more robust than BatchNorm, both with the population's statistics",
                ABSTRACT,
                "points",
                (0, math.inf),
                difference(column, [ROBUSTNORM], [BATCHNORM]),
            ),
            Claim(
                f"{attack}: a network without BatchNorm (Fixup) is more robust than with it (population statistics)",
                ABSTRACT,
                "points",
                (0, math.inf),
                difference(column, ["Fixup"], [BATCHNORM]),
            ),
        ]
    retained = Claim(
        f"RobustNorm retains BatchNorm's clean accuracy (population statistics; loses less than {CLEAN_MARGIN * 100:g} "
        "point)",
        ABSTRACT,
        "points",
        (-CLEAN_MARGIN, math.inf),
        difference("clean_accuracy", [ROBUSTNORM], [BATCHNORM]),
    )
    return [*found, retained]


def draw(figure: Figure, trials: Trials, settings: ReproductionSettings) -> None:
    """Accuracy under each attack, and the share of predictions that smaller evaluation batches change."""
    accuracies, neighbours = figure.subplots(1, 2, width_ratios=(3, 2))
    columns = {"clean": "clean_accuracy", "noise": "noise.accuracy", **{f"{a}": c for a, c in ATTACKS.items()}}
    xs = np.arange(len(columns))
    for i, (label, colour) in enumerate(zip(NORMS, COLOURS, strict=False)):
        text = label
        for x, name in zip(xs, columns.values(), strict=True):
            error_bars(accuracies, [x + (i - 2.5) * 0.12], trials, [label], name, color=colour, label=text)
            text = None
        shares = [
            (by_seed(trials, f"batch_dependence.changed.{size}", [label])[label] / n_neighbours(trials)).mean()
            for size in BATCHES
        ]
        neighbours.plot(range(len(BATCHES)), shares, marker="o", markersize=5, linewidth=1, color=colour)
    accuracies.set_xticks(xs, list(columns))
    name_axes(accuracies, "", "accuracy")
    neighbours.set_xticks(range(len(BATCHES)), [str(size) for size in BATCHES])
    name_axes(neighbours, "evaluation batch size", "predictions unlike those at 256, share")


def n_neighbours(trials: Trials) -> float:
    """Images that the neighbour count is made on; the same in all trials."""
    return trials["batch_dependence.n"].max() if "batch_dependence.n" in trials else math.nan


PAPER = Paper(
    title="Awais, Shamshad, Bae 2020, Towards an Adversarially Robust Normalization Approach",
    source=SOURCE,
    defaults=defaults,
    recipe=RECIPE,
    configurations=configurations,
    claims=claims,
    columns=(
        ADVERSARIAL,
        Column("FGSM %", "fgsm.accuracy", 100, 1),
        Column("noise %", "noise.accuracy", 100, 1),
        CLEAN,
        *(Column(f"% at {size}", f"batch_dependence.accuracy.{size}", 100, 1) for size in (256, *BATCHES)),
        *(Column(f"changed at {size}", f"batch_dependence.changed.{size}", 1, 1) for size in BATCHES),
        Column("changed at any", "batch_dependence.changed.any", 1, 1),
        Column("of images", "batch_dependence.n", 1, 0),
        SECONDS,
    ),
    draw=draw,
)
