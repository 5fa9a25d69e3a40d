"""Whether a member's figures can be believed: a figure, a threshold, and what a failure means.

Thresholds are ours: above what some hundred examples and honest attacks scatter, below what masked gradients show.
What is checked follows Carlini et al. 2019, arXiv:1902.06705, section 5, and Athalye, Carlini, Wagner 2018,
arXiv:1802.00420, section 3.1.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal, NamedTuple

from scipy.stats import binomtest

CHANCE = 0.05
Seeds = Sequence[dict[str, object]]  # what the probes found of each seed's network; `overfitted` beside them


class Attack(NamedTuple):
    """How the search attacks, for sentences."""

    eps: float
    steps: int


@dataclass(frozen=True)
class Gate:
    """Passes where the figure is at most the threshold, or with `beyond_chance` not surely above it.

    Attributes:
        name: In tables.
        unit: `points` are differences of accuracy, `share` is of images, `seeds` of seeds; all between 0 and 1.
        threshold: The largest figure that passes.
        figure: From all seeds of a member.
        found: What was found, from the seeds and the search's attack.
        failure: What it means that the gate failed.
        beyond_chance: Of a failure that takes all figures away and that one unlucky image can cause: as many as were
            found, or more, must then be rarer than `CHANCE` were the threshold's share the true one.
    """

    name: str
    unit: Literal["points", "share", "seeds"]
    threshold: float
    figure: Callable[[Seeds], float]
    found: Callable[[Seeds, Attack], str]
    failure: str
    beyond_chance: bool = False


class Judged(NamedTuple):
    """One gate of one member."""

    gate: str
    passed: bool
    figure: float
    threshold: float
    unit: str
    text: str


def mean(seeds: Seeds, name: str) -> float:
    return fmean(seed[name] for seed in seeds)


def by_eps(seeds: Seeds) -> dict[float, float]:
    """Radius to mean accuracy, smallest radius first."""
    radii = sorted(float(name.removeprefix(EPS)) for name in seeds[0] if name.startswith(EPS))
    return {eps: mean(seeds, f"{EPS}{eps:.4g}") for eps in radii}


def at_grey(seeds: Seeds) -> tuple[float, float]:
    """The radius at which all images can be made the same, and mean accuracy there."""
    return list(by_eps(seeds).items())[-1]


def commonest(seeds: Seeds) -> float:
    """Share of the commonest class; 0 of what was measured before it was counted."""
    return fmean(seed.get("strong.commonest", 0.0) for seed in seeds)


EPS = "strong.eps."


def largest_rise(accuracies: Sequence[float]) -> float:
    """From one to the next; 0 where none rises."""
    return max((after - before for before, after in zip(accuracies, accuracies[1:], strict=False)), default=0.0)


def may_be_chance(figure: float, threshold: float, seeds: Seeds) -> bool:
    """Whether that share of the strongly attacked images, or more, is likely enough at the threshold's.

    Each image counts once, whatever the number of seeds: what fools one seed's network fools the next one's, mostly.
    """
    n = round(seeds[0]["strong.n"])
    return binomtest(round(figure * n), n, threshold, alternative="greater").pvalue >= CHANCE


def changed(seeds: Seeds) -> float:
    return fmean(seed["batch_dependence.changed.any"] / seed["batch_dependence.n"] for seed in seeds)


def percent(value: float) -> str:
    return f"{value * 100:.1f} %"


def accuracies(seeds: Seeds, attack: Attack) -> str:
    return ", ".join(f"{percent(accuracy)} at {eps:.3g}" for eps, accuracy in by_eps(seeds).items())


GATES = (
    Gate(
        "autoattack",
        "points",
        0.05,
        lambda seeds: mean(seeds, "strong.pgd") - mean(seeds, "strong.autoattack"),
        lambda seeds, attack: (
            f"accuracy is {percent(mean(seeds, 'strong.autoattack'))} under AutoAttack and "
            f"{percent(mean(seeds, 'strong.pgd'))} under PGD-{attack.steps}, on the same images"
        ),
        "the search's PGD is too weak for this network: take AutoAttack's accuracy",
    ),
    Gate(
        "square",
        "share",
        0.02,
        lambda seeds: mean(seeds, "strong.square_alone"),
        lambda seeds, attack: (
            f"Square, which sees only logits, fools {percent(mean(seeds, 'strong.square_alone'))} of the images, where "
            f"PGD with more steps and restarts doesn't; that leaves {percent(mean(seeds, 'strong.converged'))} right"
        ),
        "gradients mislead PGD (masking): no accuracy that was found by gradients holds",
        beyond_chance=True,
    ),
    Gate(
        "eps_falls",
        "points",
        0.03,
        lambda seeds: largest_rise(list(by_eps(seeds).values())),
        lambda seeds, attack: f"PGD-{attack.steps} leaves {accuracies(seeds, attack)}",
        "a larger radius contains the smaller one, so PGD misses examples that are there",
        beyond_chance=True,
    ),
    Gate(
        "eps_large",
        "points",
        0.05,
        lambda seeds: at_grey(seeds)[1] - commonest(seeds),
        lambda seeds, attack: (
            f"PGD-{attack.steps} leaves {percent(at_grey(seeds)[1])} at {at_grey(seeds)[0]:.3g}, where every image can "
            f"be made grey, and grey be called one class, of which there are {percent(commonest(seeds))} at most"
        ),
        "no attack that works leaves more: gradients mislead it",
    ),
    Gate(
        "more_steps",
        "points",
        0.02,
        lambda seeds: mean(seeds, "strong.pgd") - mean(seeds, "strong.converged"),
        lambda seeds, attack: (
            f"five times the steps from five starts lower accuracy from {percent(mean(seeds, 'strong.pgd'))} to "
            f"{percent(mean(seeds, 'strong.converged'))}"
        ),
        "the search's PGD stops too early: give the study more --attack-steps",
    ),
    Gate(
        "batch",
        "share",
        0.01,
        changed,
        lambda seeds, attack: (
            f"{percent(changed(seeds))} of predictions change when images are judged in batches of 256, 128, 32 or 1"
        ),
        "an image's class depends on its neighbours, as it must with statistics of the inference batch: accuracies "
        "hold for batches of 256 drawn like the test set, and not for single images",
    ),
    Gate(
        "overfitting",
        "seeds",
        0.0,
        lambda seeds: mean(seeds, "overfitted"),
        lambda seeds, attack: (
            f"in {sum(bool(seed['overfitted']) for seed in seeds)} of {len(seeds)} trainings accuracy under PGD "
            "collapsed while that under FGSM rose"
        ),
        "catastrophic overfitting to one-step attacks: this recipe is a matter of luck",
    ),
)


def judge(seeds: Seeds, attack: Attack) -> list[Judged]:
    """Every gate of one member, from all its seeds."""
    judged = []
    for gate in GATES:
        figure, text = gate.figure(seeds), gate.found(seeds, attack)
        passed = figure <= gate.threshold + 1e-9
        if not passed and gate.beyond_chance and may_be_chance(figure, gate.threshold, seeds):
            passed = True
            text += f": above {percent(gate.threshold)}, but on so few images it may be chance"
        elif not passed:
            text += f": {gate.failure}"
        judged.append(Judged(gate.name, passed, figure, gate.threshold, gate.unit, text))
    return judged
