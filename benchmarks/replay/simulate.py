"""Asynchronous workers on the surrogate, with a clock that is only a number."""

import heapq
import json
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Protocol

import numpy as np
import optuna
from optuna.samplers import BaseSampler
from optuna.trial import TrialState
from ray.tune.schedulers.async_hyperband import _Bracket

from benchmarks.replay.record import SETTINGS, shortened
from benchmarks.replay.surrogate import Surrogate
from study import spaces
from study.front import non_dominated
from study.search import StopRule
from study.stopping import RunningTrial
from study.storage import DIRECTIONS
from trainables.config import TrialConfig

SPACE = spaces.load("full")


def configure(trial: object) -> TrialConfig:
    return shortened(spaces.configure(SPACE, SETTINGS, trial))


class Search(Protocol):
    """What is compared: proposes, is told of epochs and ends."""

    def suggest(self, number: int) -> TrialConfig: ...

    def stops(self, number: int, curve: Sequence[float], seconds: float) -> bool:
        """After each epoch but the last: whether the trial ends now."""

    def end(self, number: int, curve: Sequence[float], seconds: float, complete: bool) -> None: ...


@dataclass
class World:
    """Real configurations, surrogate's curves, measured seconds."""

    surrogate: Surrogate

    def known_seconds(self, config: TrialConfig) -> float:
        """What the project knows before a training: growth on a plateau counts at its first size."""
        return float(self.surrogate.time.epoch_seconds(config, _sizes(config)).sum())


def _sizes(config: TrialConfig) -> list[int]:
    from trainables.batch_schedules import batch_sizes

    return batch_sizes(config.batch_size_schedule, config.epochs)


@dataclass
class Running:
    config: TrialConfig
    seconds: np.ndarray  # (epochs,) of each
    truth: float  # final accuracy without noise
    curve: np.ndarray  # (epochs,) as this training shows it
    n_epochs: int = 0


@dataclass
class Outcome:
    """One simulated search."""

    # Device-seconds spent when the trial ended, its true and observed final accuracy, its seconds; completed ones.
    completed: list[tuple[float, float, float, float]] = field(default_factory=list)
    n_started: int = 0
    n_stopped: int = 0


def simulate(
    search: Search, surrogate: Surrogate, *, n_workers: int, budget: float, seed: int, overhead: float = 0.0
) -> Outcome:
    """Run trials on `n_workers` devices until all of them together have spent `budget` seconds.

    Args:
        overhead: Seconds that each trial holds its device before its first epoch.
    """
    generator, outcome = np.random.default_rng(seed), Outcome()
    running: dict[int, Running] = {}
    events: list[tuple[float, int]] = []

    def start(now: float) -> None:
        number = outcome.n_started
        config = search.suggest(number)
        mean = surrogate.mean_curve(config)
        running[number] = Running(
            config, surrogate.epoch_seconds(config), float(mean[-1]), surrogate.draw(mean, generator)
        )
        outcome.n_started += 1
        heapq.heappush(events, (now + overhead + running[number].seconds[0], number))

    for _ in range(n_workers):
        start(0.0)
    while events:
        now, number = heapq.heappop(events)
        if now * n_workers > budget:
            break
        trial = running[number]
        trial.n_epochs += 1
        curve, spent = trial.curve[: trial.n_epochs], float(trial.seconds[: trial.n_epochs].sum())
        if trial.n_epochs == trial.config.epochs:
            outcome.completed.append((now * n_workers, trial.truth, float(curve[-1]), spent))
        elif search.stops(number, curve, spent):
            outcome.n_stopped += 1
        else:
            heapq.heappush(events, (now + trial.seconds[trial.n_epochs], number))
            continue
        search.end(number, curve, spent, trial.n_epochs == trial.config.epochs)
        del running[number]
        start(now)
    return outcome


class OptunaStudy:
    """An Optuna study in memory, told as `study.search` tells it.

    Args:
        sampler: Proposes.
        stop_rule: Of `study.stopping`; None: all run to their ends.
        known_seconds: Of a whole training.
        tell: How a stopped trial is told: `pruned`, `failed`, `values` (its accuracy when it was stopped and the
            seconds it would have taken) or `constraint` (the same, and infeasible).
    """

    def __init__(
        self,
        sampler: BaseSampler,
        known_seconds: Callable[[TrialConfig], float],
        stop_rule: StopRule | None = None,
        tell: str = "pruned",
    ) -> None:
        self.study = optuna.create_study(directions=DIRECTIONS, sampler=sampler)
        self.known_seconds, self.stop_rule, self.tell = known_seconds, stop_rule, tell
        self.trials: dict[int, tuple[optuna.Trial, TrialConfig]] = {}

    def suggest(self, number: int) -> TrialConfig:
        trial = self.study.ask()
        config = configure(trial)
        trial.set_user_attr("config", config.model_dump(mode="json"))
        self.trials[number] = trial, config
        return config

    def stops(self, number: int, curve: Sequence[float], seconds: float) -> bool:
        if self.stop_rule is None:
            return False
        config = self.trials[number][1]
        trials = self.study.get_trials(deepcopy=False)
        ahead = max(self.known_seconds(config) - seconds, 0.0)
        return bool(self.stop_rule(RunningTrial(config, "", rows(curve), seconds, ahead), trials))

    def end(self, number: int, curve: Sequence[float], seconds: float, complete: bool) -> None:
        trial, config = self.trials.pop(number)
        trial.set_user_attr("curve", rows(curve))
        if complete:
            if self.tell == "constraint":
                trial.set_constraint("stopped", 0.0)
            self.study.tell(trial, [float(curve[-1]), seconds])
        elif self.tell in ("values", "constraint"):
            if self.tell == "constraint":
                trial.set_constraint("stopped", 1.0)
            self.study.tell(trial, [float(curve[-1]), self.known_seconds(config)])
        else:
            self.study.tell(trial, state=TrialState.PRUNED if self.tell == "pruned" else TrialState.FAIL)


class Repeating(OptunaStudy):
    """Spends a share of its trials on trainings of likely front members with other seeds.

    Args:
        share: Probability that a trial is such a one. The member with the fewest trainings is taken; the front is that
            of each configuration's mean accuracy.
    """

    def __init__(
        self, sampler: BaseSampler, known_seconds: Callable[[TrialConfig], float], share: float, seed: int
    ) -> None:
        super().__init__(sampler, known_seconds)
        self.share, self.generator = share, np.random.default_rng(seed)

    def suggest(self, number: int) -> TrialConfig:
        complete = self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        if complete and self.generator.random() < self.share:
            by_config: dict[str, list[optuna.trial.FrozenTrial]] = {}
            for trial in complete:
                by_config.setdefault(json.dumps(trial.user_attrs["config"]), []).append(trial)
            trainings = list(by_config.values())
            on_front = non_dominated([np.mean([trial.values for trial in same], axis=0) for same in trainings])
            members = [same for same, keep in zip(trainings, on_front, strict=True) if keep]
            fewest = min(map(len, members))
            chosen = self.generator.choice([i for i, same in enumerate(members) if len(same) == fewest])
            self.study.enqueue_trial(members[chosen][0].params)
        return super().suggest(number)


def rows(curve: Sequence[float]) -> list[dict[str, object]]:
    return [{"adversarial_accuracy": float(accuracy)} for accuracy in curve]


class Asha(OptunaStudy):
    """Ray Tune's ASHA on adversarial accuracy alone, rungs in epochs, on random proposals."""

    def __init__(self, sampler: BaseSampler, known_seconds: Callable, reduction_factor: float) -> None:
        super().__init__(sampler, known_seconds)
        self.bracket = _Bracket(min_t=1, max_t=30, reduction_factor=reduction_factor, s=0)

    def stops(self, number: int, curve: Sequence[float], seconds: float) -> bool:
        return self.bracket.on_result(SimpleNamespace(trial_id=number), len(curve), float(curve[-1])) == "STOP"


class Moasha:
    """Syne Tune's MOASHA object, in a process of its own environment; see `moasha_server.py`."""

    def __init__(
        self, python: str, known_seconds: Callable[[TrialConfig], float], seed: int, **options: object
    ) -> None:
        server = Path(__file__).with_name("moasha_server.py")
        self.seconds = options.pop("seconds")
        self.process = subprocess.Popen(
            [python, str(server), json.dumps({"seed": seed, **options})],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.known_seconds, self.configs = known_seconds, {}

    def _ask(self, *message: object) -> object:
        self.process.stdin.write(json.dumps(message) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def suggest(self, number: int) -> TrialConfig:
        trial = optuna.trial.FixedTrial(self._ask("suggest", number), number=number)
        self.configs[number] = configure(trial)
        return self.configs[number]

    def _result(self, number: int, curve: Sequence[float], seconds: float) -> dict[str, float]:
        """`known`: the whole training's seconds at every epoch; `elapsed`: those so far, what a user would report."""
        seconds = max(self.known_seconds(self.configs[number]), seconds) if self.seconds == "known" else seconds
        return {"epoch": len(curve), "error": 1 - float(curve[-1]), "seconds": seconds}

    def stops(self, number: int, curve: Sequence[float], seconds: float) -> bool:
        return self._ask("result", number, self._result(number, curve, seconds)) == "STOP"

    def end(self, number: int, curve: Sequence[float], seconds: float, complete: bool) -> None:
        self._ask("complete" if complete else "remove", number, self._result(number, curve, seconds))
