"""Seconds per step measured with a device to itself, kept with the study, and the times that follow from them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from trainables import timing
from trainables.batch_schedules import batch_sizes
from trainables.config import TrialConfig

ATTRIBUTE = "seconds_per_step"
UNEQUAL = 1.5  # measured seconds for equal work, slow trials' over quick ones', that are worth a sentence

# Kind of device -> model key -> batch size (as text: it is JSON) -> seconds of one step.
Tables = dict[str, dict[str, dict[str, float]]]


def model_key(config: TrialConfig) -> str:
    """What, besides the batch size and the device, decides how long a step takes, e.g. `resnet56 fixup tf32 pgd 7`.

    Attacks in another norm than l-inf add it at the end.
    """
    n = n_attack_steps(config)
    attack = (f" {n}" if n else "") + (f" {config.attack_norm}" if n and config.attack_norm != "linf" else "")
    return f"resnet{config.depth} {config.norm} {config.precision} {config.training}{attack}"


def n_attack_steps(config: TrialConfig) -> int:
    """Gradients with respect to the images that one training step takes; `static`: that crafting takes, once."""
    pgd = dict.fromkeys(("pgd", "trades", "static"), config.pgd_steps)
    return (pgd | {"fgsm": 1, "free": config.free_replays}).get(config.training, 0)


def tables(study: Study) -> Tables:
    return study.user_attrs.get(ATTRIBUTE, {})


def known(study: Study, config: TrialConfig) -> dict[str, dict[str, float]]:
    """By kind of device, then batch size, the seconds per step of this configuration's network and training."""
    key = model_key(config)
    return {device: models[key] for device, models in tables(study).items() if key in models}


def keep(study: Study, config: TrialConfig, device: str, seconds_per_step: Mapping[int, float]) -> None:
    """Store what a worker measured; what was measured before stays, so that all trials are timed alike."""
    every = tables(study)
    entry = every.setdefault(device, {}).setdefault(model_key(config), {})
    for size, seconds in seconds_per_step.items():
        entry.setdefault(str(size), seconds)
    study.set_user_attr(ATTRIBUTE, every)


def expected_seconds(config: TrialConfig, n_examples: int, models: Mapping[str, Mapping[str, float]]) -> float | None:
    """Seconds of a whole training before it runs; None where nothing like it was measured.

    Args:
        config: Of the training. A schedule that follows accuracy counts at its first size: an upper bound.
        n_examples: Training images.
        models: What was measured on one kind of device, by model key; where the key itself is missing, the one of
            the nearest depth and then the nearest cost per step stands in, in proportion to layers and passes.
    """
    key = model_key(config)
    factor = 1.0
    if key not in models:
        if not models:
            return None
        ratios = {other: (_blocks(key) / _blocks(other), _passes(key) / _passes(other)) for other in models}
        key, factors = min(ratios.items(), key=lambda item: [abs(math.log(ratio)) for ratio in item[1]])
        factor = math.prod(factors)
    table = {int(size): seconds * factor for size, seconds in models[key].items()}
    sizes = batch_sizes(config.batch_size_schedule, config.epochs)
    epochs = math.fsum(timing.epoch_seconds(table, size, n_examples) for size in sizes)
    if config.training != "static":
        return epochs
    # Where crafting itself was not measured: a gradient per image takes about as long as natural training's step.
    crafting = config.pgd_steps * timing.epoch_seconds(table, timing.CRAFTED_AT_ONCE, n_examples)
    return epochs + models.get(model_key(config), {}).get(str(timing.BEFORE), crafting)


@dataclass(frozen=True)
class Timer:
    """Tells a configuration's expected seconds; equal to another that would tell the same."""

    n_examples: int
    models: Mapping[str, Mapping[str, float]]

    def __call__(self, config: TrialConfig) -> float | None:
        return expected_seconds(config, self.n_examples, self.models)


def timer(study: Study, n_examples: int) -> Timer:
    """From what was measured so far, on the best-known kind of device."""
    return Timer(n_examples, max(tables(study).values(), key=len, default={}))


def _blocks(key: str) -> int:
    """Residual blocks per stage of `resnet56 ...`: its layers, but for the first and the last."""
    return (int(key.split()[0].removeprefix("resnet")) - 2) // 6


def _passes(key: str) -> float:
    """Forward and backward passes of one training step; free training's replays serve weights and images at once.

    TRADES trains on two batches, and looks once more at the clean one, a forward pass alone: a third of both.
    """
    _, _, _, training, *steps = key.split()
    n = int(steps[0]) if steps and training != "static" else 0
    return n + {"free": 0, "trades": 7 / 3}.get(training, 1)


def timing_text(study: Study) -> str:
    """What is to be known of a study's seconds: `error_text`, and whether they are of several kinds of device."""
    kinds = sorted(tables(study))
    several = (
        f"Seconds are of {len(kinds)} kinds of device ({', '.join(kinds)}): they compare only within one."
        if len(kinds) > 1
        else ""
    )
    return " ".join(filter(None, (error_text(study.get_trials(deepcopy=False)), several)))


def relative_errors(trials: list[FrozenTrial]) -> np.ndarray:
    """(calibrated - measured) / measured seconds of each complete trial that has both."""
    both = [
        (trial.user_attrs["calibrated_seconds"], trial.user_attrs["measured_seconds"])
        for trial in trials
        if trial.state is TrialState.COMPLETE and trial.user_attrs.get("calibrated_seconds")
    ]
    return np.array([calibrated / measured - 1 for calibrated, measured in both])


def error_text(trials: list[FrozenTrial]) -> str:
    """How far calibrated seconds are off measured ones, and whether trials had equal shares of their device.

    One line; empty where no complete trial has both.
    """
    errors = relative_errors(trials)
    if not len(errors):
        return ""
    middle, least, most = (f"{100 * error:+.0f} %" for error in (np.median(errors), errors.min(), errors.max()))
    text = (
        f"Calibrated seconds are {middle} off measured ones in the median of {len(errors)} trials ({least} to {most})."
    )
    quickest, slowest = np.quantile(1 / (1 + errors), [0.1, 0.9])  # measured seconds for a calibrated one
    if slowest < UNEQUAL * quickest:
        return text
    times = slowest / quickest
    return (
        f"{text} The device was not equally free for all: equal work took {times:.1f} times as long for some as "
        "for others."
    )
