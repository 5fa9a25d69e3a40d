"""Proposes the trial whose expected gain in hypervolume per second is largest; its seconds are known before it runs.

A model predicts the adversarial accuracy of every candidate from the trials that have ended, running trials count
as if they had ended as predicted, and a candidate's seconds follow from its schedule. So one of the two objectives is
certain, and the expected gain has a closed form. The same gain tells when a running trial should make way for another.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, get_args

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState
from scipy.special import ndtr

from study.accuracy_models import AccuracyModel
from study.calibration import n_attack_steps
from study.forecast import Forecast
from study.front import hypervolume, non_dominated
from study.stopping import RunningTrial, accuracies, final_accuracy
from trainables.batch_schedules import batch_sizes
from trainables.config import BATCH_KINDS, AttackNorm, LrSchedule, Norm, Precision, Training, TrialConfig
from trainables.errors import InputError

N_POOL = 256  # random candidates kept from proposal to proposal
N_FRESH = 16  # of those, replaced each time
N_NEAR = 64  # candidates that differ a little from a front member
CHANGE = 0.3  # share of parameters in which they differ
REFIT = 1.03  # the models are fitted anew once so many times as many of the study's own trials have ended
BEYOND = 1.1  # where seconds stop to count, in those of the slowest candidate: it has to count itself
PATIENCE = 0.5  # of the candidates' median seconds, added to each one's: a long trial may open what quick ones cannot
PLAIN_WEIGHT = 0.75  # of the hypervolume by plain seconds; that by log seconds has the rest
STOP_BELOW = 0.1  # of what decided for the newest proposal; that is the best of many, and so too hopeful

Seconds = Callable[[TrialConfig], float | None]
Distribution = TypeVar("Distribution", bound=BaseDistribution)


class Draw:
    """Stands in for a trial while a space is drawn from: no storage, microseconds a parameter.

    A name that is suggested again has the value that it got first, as in Optuna.

    Args:
        generator: Draws the values.
        near: Parameters to stay close to; each is changed with probability `CHANGE`.
    """

    number = 0

    def __init__(self, generator: np.random.Generator, near: Mapping[str, object] | None = None) -> None:
        self.generator, self.near = generator, near or {}
        self.params: dict[str, Any] = {}
        self.distributions: dict[str, BaseDistribution] = {}
        self.user_attrs: dict[str, object] = {}

    def set_user_attr(self, key: str, value: object) -> None:
        self.user_attrs[key] = value

    def suggest_categorical(self, name: str, choices: Iterable[Any]) -> Any:
        if name in self.params:
            return self.params[name]
        choices = self._of(name, CategoricalDistribution(tuple(choices))).choices
        kept = name in self.near and self.near[name] in choices and self.generator.random() > CHANGE
        return self._keep(name, self.near[name] if kept else choices[self.generator.integers(len(choices))])

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        if name in self.params:
            return self.params[name]
        high = self._of(name, FloatDistribution(low, high, log, step)).high  # on the grid of the steps
        value = self._number(name, low, high, log)
        if step is not None:
            value = min(low + round((value - low) / step) * step, high)
        return self._keep(name, value)

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int:
        if name in self.params:
            return self.params[name]
        high = self._of(name, IntDistribution(low, high, log, step)).high
        value = self._number(name, low - 0.5 * (not log), high + 0.5 * (not log), log)
        return self._keep(name, int(min(max(low + round((value - low) / step) * step, low), high)))

    def _number(self, name: str, low: float, high: float, log: bool) -> float:
        scale, back = (math.log, math.exp) if log else (float, float)
        u = self.generator.random()
        if name in self.near:
            if self.generator.random() > CHANGE:
                return min(max(float(self.near[name]), low), high)
            centre = (scale(self.near[name]) - scale(low)) / max(scale(high) - scale(low), 1e-12)
            u = min(max(centre + 0.2 * self.generator.standard_normal(), 0.0), 1.0)
        return min(max(back(scale(low) + u * (scale(high) - scale(low))), low), high)

    def _of(self, name: str, distribution: Distribution) -> Distribution:
        return self.distributions.setdefault(name, distribution)

    def _keep(self, name: str, value: Any) -> Any:
        self.params[name] = value
        return value


# What few spaces vary, as numbers: a column that is the same for all would only keep trees from those that are not.
SELDOM: dict[str, Callable[[TrialConfig], float]] = {
    "eps": lambda config: config.eps,
    "step_size": lambda config: config.step_size or 0.0,
    "attack_norm": lambda config: get_args(AttackNorm).index(config.attack_norm),
    "precision": lambda config: get_args(Precision).index(config.precision),
}


def features(config: TrialConfig, seconds: float, also: Iterable[str] = ()) -> np.ndarray:
    """A configuration as the numbers that the models see; sizes, rates and seconds by their logarithm.

    Args:
        config: The configuration.
        seconds: That its training takes.
        also: Those of `SELDOM` that the space varies.
    """
    schedule = config.batch_size_schedule
    sizes = batch_sizes(schedule, config.epochs)
    numbers = [
        math.log(max(seconds, 1e-9)),
        math.log(config.epochs),
        math.log(config.depth),
        math.log(sizes[0]),
        math.log(sizes[-1]),
        math.log(schedule.largest),
        math.log(sum(1 / size for size in sizes)),  # updates of the weights, but for the number of images
        math.log(config.lr_batch_ratio),
        math.log(config.lr_batch_ratio * sizes[0]),
        math.log(max(config.weight_decay, 1e-7)),
        -math.log(1 - config.momentum),
        config.lr_follows_batch,
        config.nesterov,
        config.eval_statistics == "batch",
        n_attack_steps(config),
        config.trades_beta * (config.training == "trades"),
        *(SELDOM[field](config) for field in also),
    ]
    chosen = [
        (config.norm, get_args(Norm)),
        (config.training, get_args(Training)),
        (config.lr_schedule, get_args(LrSchedule)),
        (schedule.kind, BATCH_KINDS),
    ]
    return np.array(numbers + [value == name for value, names in chosen for name in names], dtype=np.float32)


def expected_gain(
    mean: np.ndarray,
    deviation: np.ndarray,
    seconds: np.ndarray,
    front: np.ndarray,
    slowest: float,
    scale: Callable[[np.ndarray], np.ndarray] = np.log,
) -> np.ndarray:
    """Expected growth of the front's hypervolume by each candidate.

    Args:
        mean: (n,) predicted accuracy.
        deviation: (n,) standard deviation of the prediction, a normal distribution.
        seconds: (n,), known.
        front: (k, 2) accuracy and seconds; dominated points change nothing.
        slowest: Seconds of the reference point, whose accuracy is 0.
        scale: Of seconds: `np.log`, or `np.asarray` for plain ones.

    Returns:
        (n,). With one objective certain it is a sum over the front's steps: how much of the step lies at or beyond
        the candidate's seconds, times the expected improvement over the step's accuracy.
    """
    ordered = front[np.argsort(front[:, 1])]
    levels = np.concatenate([[0.0], np.maximum.accumulate(ordered[:, 0])])
    edges = scale(np.concatenate([[1e-9], np.minimum(ordered[:, 1], slowest), [slowest]]))
    overlap = np.maximum(edges[1:] - np.maximum(edges[:-1], scale(seconds)[:, None]), 0.0)
    z = (mean[:, None] - levels) / deviation[:, None]
    density = np.exp(-0.5 * z**2) / math.sqrt(2 * math.pi)
    return (overlap * deviation[:, None] * (z * ndtr(z) + density)).sum(1)


@dataclass
class Candidate:
    """A configuration that may be proposed."""

    params: Mapping[str, object]
    config: TrialConfig
    seconds: float | None = None
    x: np.ndarray | None = None  # features, once its seconds are known


def log_hypervolume(front: np.ndarray, slowest: float) -> float:
    """Area that (k, 2) points of accuracy and seconds dominate, in accuracy x log seconds, from (0, `slowest`)."""
    within = front[front[:, 1] < slowest]
    points = np.column_stack([within[:, 0], np.log(np.maximum(within[:, 1], 1e-9))])
    return hypervolume(points, (0.0, math.log(slowest)))


def expected_share(
    mean: np.ndarray, deviation: np.ndarray, seconds: np.ndarray, front: np.ndarray, slowest: float
) -> np.ndarray:
    """Expected growth by each candidate as a share of the front's hypervolume, (n,); arguments as of `expected_gain`.

    The weighted mean of two shares, by log seconds and by plain ones: the first counts a factor in time alike
    anywhere, the second is the hypervolume that a study reports.
    """
    by_log = expected_gain(mean, deviation, seconds, front, slowest) / max(log_hypervolume(front, slowest), 1e-9)
    plain = expected_gain(mean, deviation, seconds, front, slowest, np.asarray)
    plain /= max(hypervolume(front, (0.0, slowest)), 1e-9)
    return PLAIN_WEIGHT * plain + (1 - PLAIN_WEIGHT) * by_log


class FrontSampler(BaseSampler):
    """Optuna's sampler that knows each candidate's seconds.

    Args:
        configure: The configuration of a trial, from what its space suggests.
        timer: What tells the seconds of a whole training before it runs, asked once a proposal.
        seed: Of all draws.
        n_startup: Trials that end before the model is trusted; until then candidates are drawn at random, a
            quick one more likely: by one over the root of its seconds.
        max_seconds: Candidates that would take longer are not proposed.
        earlier: Trials of an earlier study: the model learns from them, the front does not.

    After a proposal, `gain` is the share that it is expected to add to the hypervolume (see `expected_share`),
    `gain_per_hour` the same for each device-hour that it takes, and `stop` says which running trials are worth less
    than a new one.
    """

    def __init__(
        self,
        configure: Callable[[Draw], TrialConfig],
        timer: Callable[[Study], Seconds],
        seed: int,
        n_startup: int = 10,
        max_seconds: float | None = None,
        earlier: Sequence[FrozenTrial] = (),
    ) -> None:
        self.configure, self.timer = configure, timer
        self.n_startup, self.max_seconds, self.earlier = n_startup, max_seconds, earlier
        self.generator = np.random.default_rng(seed)
        self.fallback = RandomSampler(seed)
        self.expected_seconds: Seconds = lambda config: None
        self.pool: list[Candidate] = []
        self.also: list[str] | None = None  # of `SELDOM`, what the space varies; None before it was drawn from
        self.model: AccuracyModel | None = None
        self.n_fitted = -1  # own trials that had ended when it was fitted; -1: it is to be fitted anyhow
        self.seen: dict[tuple[bool, int], np.ndarray] = {}  # features by whether it is an earlier study's, and number
        self.tried: set[frozenset[tuple[str, object]]] = set()  # parameters of trials
        self.counted: set[int] = set()  # numbers of trials that are among them
        self.proposed: dict[int, Mapping[str, object]] = {}  # parameters by the trial's number
        self.gain: float | None = None  # None: not known yet
        self.gain_per_hour: float | None = None
        self.rate: float | None = None  # what decided for the newest proposal: share per second, with `PATIENCE`
        self.slowest = 0.0  # seconds of the reference point at the newest proposal
        self.forecast: Forecast | None = None
        self.n_forecast = -1  # as `n_fitted`, of own trials that have a curve

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return {}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return {}

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        if "fixed_params" not in trial.system_attrs and not trial.params:  # an interrupted one has its own
            self.tell_seconds(self.timer(study))
            self.proposed = {trial.number: self.propose(study.get_trials(deepcopy=False))}

    def rehearse(self, study: Study) -> None:
        """Raises:
        InputError: As `propose` would, were a trial proposed now.
        """
        self.tell_seconds(self.timer(study))
        self.propose(study.get_trials(deepcopy=False))

    def tell_seconds(self, expected_seconds: Seconds) -> None:
        """What was derived from other seconds is derived anew."""
        if expected_seconds == self.expected_seconds:
            return
        self.expected_seconds = expected_seconds
        self.seen, self.n_fitted, self.n_forecast = {}, -1, -1
        for candidate in self.pool:
            candidate.seconds = candidate.x = None

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        chosen = self.proposed.get(trial.number, {})
        if param_name in chosen:
            return chosen[param_name]
        return self.fallback.sample_independent(study, trial, param_name, param_distribution)

    def propose(self, trials: Sequence[FrozenTrial]) -> Mapping[str, object]:
        """Parameters of the next trial, given all of the study's.

        Raises:
            InputError: If every configuration drawn would take longer than `max_seconds`.
        """
        complete = [trial for trial in trials if trial.state is TrialState.COMPLETE]
        candidates = self._untried(self._candidates(complete), trials)
        timed = [candidate for candidate in candidates if candidate.seconds is not None]
        if not timed:
            return self._taken(candidates[-1])
        pace = self._pace(complete)
        quickest = pace * min(candidate.seconds for candidate in timed)
        if self.max_seconds is not None and quickest > self.max_seconds:
            raise InputError(
                f"max_trial_seconds: {self.max_seconds:g} given; accepted: at least {quickest:.3g}, "
                f"the quickest of {len(timed)} configurations drawn"
            )
        timed = [candidate for candidate in timed if pace * candidate.seconds <= (self.max_seconds or math.inf)]
        seconds = pace * np.array([candidate.seconds for candidate in timed])
        n_ended = sum(trial.state.is_finished() for trial in trials)
        if n_ended > REFIT * self.n_fitted:
            x, accuracies = self._learnt(trials)
            if len(x) >= self.n_startup:
                self.model, self.n_fitted = AccuracyModel(x, accuracies, int(self.generator.integers(2**31))), n_ended
        if self.model is None:
            quick = 1 / np.sqrt(seconds)
            return self._taken(timed[self.generator.choice(len(timed), p=quick / quick.sum())])
        mean, deviation = self.model.predict(np.stack([candidate.x for candidate in timed]))
        believed = self._believed(trials, self.model) * (1.0, pace)
        front = np.concatenate([np.array([trial.values for trial in complete]).reshape(-1, 2), believed])
        front = front[non_dominated(front)]  # the others change nothing but the time this takes
        self.slowest = BEYOND * float(seconds.max())
        share = expected_share(mean, deviation, seconds, front, self.slowest)
        rates = share / (seconds + PATIENCE * np.median(seconds))
        best = int(np.argmax(rates))
        has_front = any(trial.values[0] > 0 and trial.values[1] < self.slowest for trial in complete)
        self.rate = self.gain = self.gain_per_hour = None
        if has_front:
            self.rate, self.gain = float(rates[best]), float(share[best])
            self.gain_per_hour = 3600 * self.gain / float(seconds[best])
        return self._taken(timed[best])

    def stop(self, running: RunningTrial, trials: Sequence[FrozenTrial]) -> str | None:
        """A stop rule as `study.stopping.Stopping`: ends a trial whose remaining seconds are better spent on a new one.

        What the trial is expected to add to the front by its end, per second that it still takes, is held against what
        decided for the newest proposal.
        """
        config, curve, expected = running.config, running.accuracies, self.expected_seconds(running.config)
        if running.label or self.rate is None or expected is None or not self._can_forecast(trials):
            return None
        mean, deviation = self.forecast.final(features(config, expected, self.also), curve, running.fraction)
        front = np.array([trial.values for trial in trials if trial.state is TrialState.COMPLETE])
        front = front[non_dominated(front)]
        slowest = max(self.slowest, BEYOND * running.final_seconds)
        at_end = [np.array([value]) for value in (mean, deviation, running.final_seconds)]
        if expected_share(*at_end, front, slowest)[0] >= STOP_BELOW * self.rate * running.seconds_ahead:
            return None
        return (
            f"accuracy {curve[-1]:.3f} after {len(curve)} of {config.epochs} epochs, {mean:.3f} ± {deviation:.3f} "
            "expected at the end: a new trial promises to add more to the front in the seconds left"
        )

    def _can_forecast(self, trials: Sequence[FrozenTrial]) -> bool:
        """Whether enough trials have finished; fits the forecast anew where many more have."""
        finished = [
            (trial, is_earlier)
            for is_earlier, part in ((True, self.earlier), (False, trials))
            for trial in part
            if trial.state is TrialState.COMPLETE and len(trial.user_attrs.get("curve", ())) > 1
        ]
        n_own = sum(not is_earlier for _, is_earlier in finished)
        if len(finished) >= self.n_startup and n_own > REFIT * self.n_forecast:
            x = np.stack([self._features(trial, is_earlier) for trial, is_earlier in finished])
            self.forecast = Forecast(x, [accuracies(trial) for trial, _ in finished], seed=0)
            self.n_forecast = n_own
        return self.forecast is not None

    def _candidates(self, complete: Sequence[FrozenTrial]) -> list[Candidate]:
        """The pool, partly renewed, and neighbours of front members."""
        self.pool = self.pool[N_FRESH:]
        self.pool += [self._draw() for _ in range(N_POOL - len(self.pool))]
        if self.also is None:
            values = {field: {number(candidate.config) for candidate in self.pool} for field, number in SELDOM.items()}
            self.also = [field for field in SELDOM if len(values[field]) > 1]
        on_front = non_dominated([trial.values for trial in complete])
        members = [trial.params for trial, keep in zip(complete, on_front, strict=True) if keep]
        near = [self._draw(members[i]) for i in self.generator.integers(len(members), size=N_NEAR)] if members else []
        candidates = near + self.pool
        for candidate in candidates:
            if candidate.seconds is None:
                candidate.seconds = self.expected_seconds(candidate.config)
                if candidate.seconds is not None:
                    candidate.x = features(candidate.config, candidate.seconds, self.also)
        return candidates

    def _untried(self, candidates: list[Candidate], trials: Sequence[FrozenTrial]) -> list[Candidate]:
        """Those that no trial has had: another seed would tell little. All of them, where there are no others."""
        for trial in trials:
            has_its_parameters = trial.state.is_finished() or "config" in trial.user_attrs
            if has_its_parameters and trial.number not in self.counted:
                self.counted.add(trial.number)
                self.tried.add(frozenset(trial.params.items()))
        untried = [candidate for candidate in candidates if frozenset(candidate.params.items()) not in self.tried]
        return untried or candidates

    def _taken(self, candidate: Candidate) -> Mapping[str, object]:
        self.tried.add(frozenset(candidate.params.items()))
        return candidate.params

    def _draw(self, near: Mapping[str, object] | None = None) -> Candidate:
        draw = Draw(self.generator, near)
        return Candidate(draw.params, self.configure(draw))

    def _learnt(self, trials: Sequence[FrozenTrial]) -> tuple[np.ndarray, np.ndarray]:
        """Features and final accuracies of the trials whose ends say something about their configurations."""
        rows = []
        for is_earlier, part in ((True, self.earlier), (False, trials)):
            for trial in part:
                accuracy = final_accuracy(trial)
                if accuracy is not None:
                    rows.append((self._features(trial, is_earlier), accuracy))
        x = np.stack([row[0] for row in rows]) if rows else np.zeros((0, 0), np.float32)
        return x, np.array([row[1] for row in rows])

    def _features(self, trial: FrozenTrial, is_earlier: bool = False) -> np.ndarray:
        key = (is_earlier, trial.number)
        if key not in self.seen:
            config = TrialConfig(**trial.user_attrs["config"])
            seconds = self.expected_seconds(config)
            if seconds is None:
                return features(config, trial.values[1] if trial.values else 1.0, self.also)
            self.seen[key] = features(config, seconds, self.also)
        return self.seen[key]

    def _pace(self, complete: Sequence[FrozenTrial]) -> float:
        """How many of the objective's seconds an expected second takes: above one where trials share a device."""
        ratios = [trial.values[1] / math.exp(self._features(trial)[0]) for trial in complete]
        return float(np.median(ratios)) if ratios else 1.0

    def _believed(self, trials: Sequence[FrozenTrial], model: AccuracyModel) -> np.ndarray:
        """(k, 2) accuracy and seconds at which running trials are expected to end: the next is not to be a double."""
        running = [trial for trial in trials if trial.state is TrialState.RUNNING and "config" in trial.user_attrs]
        if not running:
            return np.zeros((0, 2))
        x = np.stack([self._features(trial) for trial in running])
        return np.column_stack([model.predict(x)[0], np.exp(x[:, 0])])
