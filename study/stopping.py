"""Whether a running trial can still reach the front, from its curve and the curves of finished trials."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from optuna.trial import FrozenTrial, TrialState

from trainables.config import TrialConfig

Curve = Sequence[float]  # adversarial accuracy after each epoch; the last is the final one


@dataclass(frozen=True)
class RunningTrial:
    """A trial after an epoch, as a stop rule sees it.

    Args:
        config: Its configuration.
        label: Of a published configuration, else empty.
        curve: A row for each epoch so far.
        seconds: The objective's so far.
        seconds_ahead: Those that the rest of the schedule will take.
    """

    config: TrialConfig
    label: str
    curve: Sequence[dict[str, object]]
    seconds: float
    seconds_ahead: float

    @property
    def accuracies(self) -> list[float]:
        return [row["adversarial_accuracy"] for row in self.curve]

    @property
    def fraction(self) -> float:
        """Of the schedule that is over."""
        return len(self.curve) / self.config.epochs

    @property
    def final_seconds(self) -> float:
        return self.seconds + self.seconds_ahead


@dataclass(frozen=True)
class Stopping:
    """Stops a trial that, as far as finished curves rose, will end no more accurate than a quicker front member.

    A trial at fraction f of its schedule may still rise as far as `quantile` of the finished trials rose from f on.
    It is stopped if even then the front has a more accurate member that took no more seconds than this trial
    will have taken. One that is as accurate already goes on, and a published configuration runs to its end.

    Args:
        quantile: Of the rises. 1: no finished trial rose further.
        n_needed: Finished trials without which nothing is stopped.
    """

    quantile: float = 1.0  # at 0.9 the search loses more than it saves: docs/search.md
    n_needed: int = 10

    def __call__(self, running: RunningTrial, trials: Sequence[FrozenTrial]) -> str | None:
        """Why the trial should end now, in one line; None: it goes on.

        Args:
            running: Whether it may go on.
            trials: Of the study; those that completed, with their curves, are learned from.
        """
        if running.label:
            return None
        finished = [trial for trial in trials if trial.state is TrialState.COMPLETE]
        if len(finished) < self.n_needed:
            return None
        quicker = [trial.values[0] for trial in finished if trial.values[1] <= running.final_seconds]
        best = max(quicker, default=-math.inf)
        accuracy = running.accuracies[-1]
        if accuracy >= best:
            return None
        most = accuracy + float(np.quantile(rises(map(accuracies, finished), running.fraction), self.quantile))
        if most >= best:
            return None
        return (
            f"accuracy {accuracy:.3f} after {len(running.curve)} of {running.config.epochs} epochs, "
            f"{most:.3f} expected at most, and the front has {best:.3f} in less time"
        )


def accuracies(trial: FrozenTrial) -> list[float]:
    return [row["adversarial_accuracy"] for row in trial.user_attrs.get("curve", ())]


def rises(curves: Iterable[Curve], fraction: float) -> np.ndarray:
    """How far each finished curve rose from `fraction` of its own schedule to its end; negative where it fell.

    Args:
        curves: Whole ones; empty ones are passed over.
        fraction: In (0, 1]; between two epochs the earlier one counts.
    """
    return np.array(
        [curve[-1] - curve[max(math.floor(fraction * len(curve) + 1e-9), 1) - 1] for curve in curves if curve]
    )


def final_accuracy(trial: FrozenTrial) -> float | None:
    """What the trial reached; where it was stopped early, its last accuracy; 0 where it diverged.

    Expecting a stopped trial to have risen on made the search propose its neighbours again and again.

    Returns:
        None where the trial's end says nothing about its configuration.
    """
    if trial.state is TrialState.COMPLETE:
        return trial.values[0]
    if trial.state is TrialState.FAIL and str(trial.user_attrs.get("reason", "")).startswith("diverged"):
        return 0.0
    curve = accuracies(trial)
    return curve[-1] if trial.state is TrialState.PRUNED and curve else None
