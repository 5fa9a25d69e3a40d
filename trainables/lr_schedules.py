"""Learning rate through the training."""

import math
from collections.abc import Callable, Sequence

# progress in [0, 1), validation accuracy after each finished epoch, peak_lr -> lr
Schedule = Callable[[float, Sequence[float], float], float]


def constant(progress: float, accuracies: Sequence[float], peak_lr: float) -> float:
    return peak_lr


def multistep(progress: float, accuracies: Sequence[float], peak_lr: float) -> float:
    """A tenth from half-way, a hundredth from three quarters.

    Source: He et al. 2016, arXiv:1512.03385, section 4.2: cuts at 32k and 48k of 64k steps.
    """
    return peak_lr * 0.1 ** ((progress >= 0.5) + (progress >= 0.75))


def linear(progress: float, accuracies: Sequence[float], peak_lr: float) -> float:
    """A straight line down to 0. Source: Li, Yumer, Ramanan 2020, Budgeted Training, arXiv:1905.04753."""
    return peak_lr * (1 - progress)


def cosine(progress: float, accuracies: Sequence[float], peak_lr: float) -> float:
    """Half a cosine down to 0. Source: Loshchilov and Hutter 2017, arXiv:1608.03983, without restarts."""
    return anneal(peak_lr, 0.0, progress)


def onecycle(progress: float, accuracies: Sequence[float], peak_lr: float) -> float:
    """From peak/25 up over the first 30 %, then down to peak/250000, each along half a cosine.

    Source: Smith 2018, arXiv:1803.09820, in the form of torch's OneCycleLR with its defaults (two
    phases, cosine instead of Smith's straight lines), but for momentum, which stays as it is.
    """
    first_lr = peak_lr / 25
    if progress < 0.3:
        return anneal(first_lr, peak_lr, progress / 0.3)
    return anneal(peak_lr, first_lr / 1e4, (progress - 0.3) / 0.7)


def exponential(progress: float, accuracies: Sequence[float], peak_lr: float) -> float:
    """The same factor at each step, to a hundredth at the end."""
    return peak_lr * 0.01**progress


def accelat(progress: float, accuracies: Sequence[float], peak_lr: float) -> float:
    """A fifth less whenever the mean of the last 5 accuracies gained less than 0.005 over one epoch.

    No cut comes before the 7th epoch has finished, nor sooner than 5 epochs after another, nor
    below 1e-6. All follows from the accuracies, so a resumed trial needs no other state.

    Source: Nikfam, Marchisio, Martina, Shafique 2022, AccelAT; what counts as 7th is from the authors' code.
    """
    lr, last_cut = peak_lr, 0
    for epoch in range(7, len(accuracies) + 1):
        gain = mean(accuracies[epoch - 5 : epoch]) - mean(accuracies[epoch - 6 : epoch - 1])
        if gain < 0.005 and epoch - last_cut >= 5:
            lr, last_cut = max(0.8 * lr, 1e-6), epoch
    return lr


def anneal(start: float, end: float, progress: float) -> float:
    """From `start` to `end` along half a cosine."""
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2


def mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


SCHEDULES: dict[str, Schedule] = {
    "constant": constant,
    "multistep": multistep,
    "linear": linear,
    "cosine": cosine,
    "onecycle": onecycle,
    "exponential": exponential,
    "accelat": accelat,
}


def schedule(name: str) -> Schedule:
    """The schedule called `name`.

    Raises:
        ValueError: If there is none of that name.
    """
    if name not in SCHEDULES:
        raise ValueError(f"unknown lr_schedule {name!r}; choose from {sorted(SCHEDULES)}")
    return SCHEDULES[name]
