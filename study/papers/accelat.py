"""How soon adversarial training reaches the best adversarial accuracy of the constant LR, under six LR schedules.

The accuracy to reach is the mean over the other seeds.

White-box protocol: PGD finds new adversarial images for every step, and evaluation attacks the current weights.
Published protocol, as in the authors' code (github.com/farzadnikfam/AccelAT, accelat.py): adversarial images of the
training and of the judged images are crafted once, before training, against the untrained network; training sees no
others, without augmentation, momentum or weight decay, and accuracy on the crafted images is the adversarial accuracy.
It says little of robustness: one direction per image is learnt by heart. FGSM on the final weights stands beside it.
"""

import math
from statistics import fmean

import pandas as pd
from matplotlib.figure import Figure

from study.papers.claims import Claim, Measure, Measured, by_seed, difference, ratio_interval, ratios
from study.papers.paper import (
    ADVERSARIAL,
    CLEAN,
    COLOURS,
    SECONDS,
    Column,
    Paper,
    Trials,
    constant_batch,
    name_axes,
)
from study.papers.settings import Protocol, ReproductionSettings, Scale, adversarial_eps
from trainables.errors import InputError

SOURCE = "arXiv:2210.06888"
ABSTRACT = f"abstract of {SOURCE}"

CONSTANT = "constant"
# Label to LR schedule and to the peak, as a multiple of the constant LR, that the authors' code gives it.
SCHEDULES = {
    CONSTANT: ("constant", 1),
    "piecewise": ("multistep", 1),
    "linear": ("linear", 1),
    "exponential": ("exponential", 1),
    "one-cycle": ("onecycle", 10),
    "AccelAT": ("accelat", 10),
}
COMPARABLE = 0.02  # final adversarial accuracy may be this much lower and still be comparable

DEFAULTS: dict[Scale, dict[str, object]] = {
    "minutes": {"dataset": "digits", "depth": 8, "epochs": 30, "eval_examples": 1000, "curve_examples": 300},
    "hours": {"dataset": "cifar10", "depth": 56, "epochs": 30, "eval_examples": 1000, "curve_examples": 1000},
    "paper": {"dataset": "cifar10", "depth": 56, "epochs": 50, "eval_examples": 10_000, "curve_examples": 10_000},
}

RECIPE = (
    "batches of 128, 50 epochs, plain SGD on ResNet-50 or MobileNet with ImageNet's weights, as in the authors' code. "
    "Here networks start from random weights, so learning rates are this project's (constant: 0.1/128 of the batch "
    "size), and so are the schedules' shapes: piecewise is cut by ten at a half and at three quarters, exponential "
    "falls to a hundredth (in the authors' code it rises), linear falls to 0 once (there it is cyclic)."
)


def defaults(scale: Scale, dataset: str | None, protocol: Protocol) -> dict[str, object]:
    chosen = DEFAULTS[scale] | ({"dataset": dataset} if dataset else {}) | {"probes": ("fgsm",)}
    if protocol == "whitebox":
        return chosen | {"eps": adversarial_eps(chosen["dataset"]), "attack_steps": 10}
    published = {"eps": adversarial_eps("digits") if chosen["dataset"] == "digits" else 0.01}
    return chosen | published | {"attack_steps": 40}


def configurations(settings: ReproductionSettings) -> dict[str, dict[str, object]]:
    shared = {"depth": settings.depth, "epochs": settings.epochs, "norm": "batchnorm", "eps": settings.eps}
    shared |= {"batch_size_schedule": constant_batch(64 if settings.scale == "minutes" else 128)}
    if settings.protocol == "whitebox":
        shared |= {"training": "pgd", "pgd_steps": 7, "momentum": 0.9}
    elif settings.eps == 0:
        raise InputError("eps: 0.0 given with protocol 'published', whose steps are eps/30; accepted: above 0")
    else:  # Foolbox's LinfPGD: 40 steps of eps/30
        shared |= {"training": "static", "pgd_steps": 40, "step_size": settings.eps / 30}
        shared |= {"momentum": 0.0, "weight_decay": 0.0}
    return {
        label: shared
        | {"lr_schedule": schedule}
        | {"lr_batch_ratio": 0.1 / 128 * (peak if settings.protocol == "published" else 1)}
        for label, (schedule, peak) in SCHEDULES.items()
    }


def epochs_to(target: float, accuracies: list[float]) -> int | None:
    """The first epoch (from 1) whose accuracy is at least `target`, but for rounding."""
    return next((epoch for epoch, accuracy in enumerate(accuracies, 1) if accuracy >= target - 1e-9), None)


def targets(trials: Trials) -> dict[int, float]:
    """For each seed, the mean over the other seeds of the constant LR's best validation accuracy.

    A seed's own best is left out, since the constant LR reaches that by definition: where two schedules are equal it
    would seem the quicker one. Only while no other seed has finished is it the target, and nothing is judged then.
    The last epoch is judged on test and takes no part. Without any finished constant LR there is no target.
    """
    constant = trials[trials["label"] == CONSTANT]
    bests = {
        seed: max(row["adversarial_accuracy"] for row in curve[:-1])
        for seed, curve in zip(constant["seed"], constant["curve"], strict=True)
        if len(curve) > 1
    }
    if not bests:
        return {}
    others = {seed: [best for other, best in bests.items() if other != seed] for seed in trials["seed"].unique()}
    return {seed: fmean(others[seed] or bests.values()) for seed in others}


def time_to_target(trials: Trials) -> Trials:
    """Adds `epochs_to_target`, `seconds_to_target` and `reached`, for seeds that have a target.

    A training that never reaches the target counts as if its last epoch did: the least it can have taken, so that
    the schedule looks no slower than it is, and `reached` is 0.
    """
    columns = {name: pd.Series(math.nan, trials.index) for name in ("epochs_to_target", "seconds_to_target", "reached")}
    target = targets(trials)
    for index, seed, curve in zip(trials.index, trials["seed"], trials["curve"], strict=True):
        if seed in target:
            epoch = epochs_to(target[seed], [row["adversarial_accuracy"] for row in curve[:-1]])
            row = curve[-1] if epoch is None else curve[epoch - 1]
            columns["epochs_to_target"][index] = row["epoch"]
            columns["seconds_to_target"][index] = row["train_seconds"]
            columns["reached"][index] = float(epoch is not None)
    return trials.assign(**columns)


def sooner(quantity: str, other: str) -> Measure:
    """How many times longer `other` takes to the target than AccelAT; seeds in which neither reaches it say nothing.

    Where only one of the two reaches it, that one counts as no slower, whatever the seconds of an epoch.
    """

    def measure(trials: Trials) -> Measured:
        times = ratios(trials, quantity, other, "AccelAT")
        reached = by_seed(trials, "reached", [other, "AccelAT"]).loc[times.index] > 0
        times = times.where(reached["AccelAT"], times.clip(upper=1)).where(reached[other], times.clip(lower=1))
        return ratio_interval(times[reached.any(axis=1)])

    return measure


def claims(settings: ReproductionSettings) -> list[Claim]:
    faster = f"up to 2 times faster than existing techniques; {ABSTRACT}"
    found = [
        Claim(
            f"AccelAT reaches the constant LR's best adversarial accuracy (mean of the other seeds) in fewer {name} "
            f"than {other}",
            faster,
            "times",
            (1, math.inf),
            sooner(f"{name}_to_target", other),
        )
        for other in SCHEDULES
        if other != "AccelAT"
        for name in ("epochs", "seconds")
    ]
    comparable = Claim(
        f"AccelAT ends as robust as the constant LR (less than {COMPARABLE * 100:g} points below it)",
        f"comparable results, no figure; {ABSTRACT}",
        "points",
        (-COMPARABLE, math.inf),
        difference("adversarial_accuracy", ["AccelAT"], [CONSTANT]),
    )
    return [*found, comparable]


def draw(figure: Figure, trials: Trials, settings: ReproductionSettings) -> None:
    """Validation accuracy under attack, mean over seeds, and the learning rate of the first seed."""
    accuracies, rates = figure.subplots(1, 2)
    for label, colour in zip(SCHEDULES, COLOURS, strict=False):
        curves = list(trials.loc[trials["label"] == label, "curve"])
        if not curves:
            continue
        width = 2.4 if label == CONSTANT else 1.2  # until AccelAT's first cut the two are the same
        table = pd.DataFrame([{row["epoch"]: row["adversarial_accuracy"] for row in curve[:-1]} for curve in curves])
        accuracies.plot(table.columns, table.mean(), color=colour, label=label, linewidth=width)
        rates.plot([row["epoch"] for row in curves[0]], [row["lr"] for row in curves[0]], color=colour, linewidth=width)
    rates.set_yscale("log")
    name_axes(accuracies, "epoch", "adversarial accuracy (validation)")
    name_axes(rates, "epoch", "learning rate at the epoch's end")


PAPER = Paper(
    title="Nikfam, Marchisio, Martina, Shafique 2022, AccelAT",
    source=SOURCE,
    defaults=defaults,
    recipe=RECIPE,
    configurations=configurations,
    claims=claims,
    columns=(
        Column("epochs to target", "epochs_to_target", 1, 1),
        Column("seconds to target", "seconds_to_target", 1, 1),
        Column("reached it", "reached", counts=True),
        ADVERSARIAL,
        Column("white-box FGSM %", "fgsm.accuracy", 100, 1),
        CLEAN,
        SECONDS,
    ),
    draw=draw,
    protocols=("whitebox", "published"),
    derive=time_to_target,
)
