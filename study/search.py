"""Optuna proposals for Ray Tune, and what a trial's end means.

Optuna's storage is the one truth. A trial there is
RUNNING while a worker trains it, COMPLETE when its whole schedule ran, FAIL with a `reason` when it
did not, PRUNED when the study stopped it early, and WAITING when it was interrupted: the next `ask` hands
it out again under its number, with its parameters, and the worker goes on from the checkpoint of that number.
"""

import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import get_args

import optuna
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState
from ray.tune.search import Searcher
from sqlalchemy.exc import SQLAlchemyError

from study import calibration, storage
from study.results import GAIN, GAIN_PER_HOUR, describe, promised
from study.sampling import FrontSampler
from study.settings import Objective, StudySettings
from study.spaces import Space
from study.stopping import RunningTrial, Stopping
from study.storage import OBJECTIVES, n_finished
from trainables.config import Probe, TrialConfig
from trainables.errors import InputError

logger = logging.getLogger(__name__)

CURVE = (
    "epoch",
    "train_seconds",
    "calibrated_seconds",
    "clean_accuracy",
    "adversarial_accuracy",
    "n_examples",
    "train_loss",
    "batch_size",
    "lr",
)


def n_startup(n_trials: int) -> int:
    """Trials before a model is asked; no more than half of a short study, which would otherwise be all random."""
    return max(1, min(10, n_trials // 2))


SAMPLERS: dict[str, Callable[[int, int], BaseSampler]] = {
    "tpe": lambda seed, n_trials: TPESampler(seed=seed, n_startup_trials=n_startup(n_trials), constant_liar=True),
    "nsga2": lambda seed, n_trials: NSGAIISampler(seed=seed, population_size=max(4, min(50, n_trials // 4))),
    "gp": lambda seed, n_trials: GPSampler(seed=seed, n_startup_trials=n_startup(n_trials)),
    "random": lambda seed, n_trials: RandomSampler(seed=seed),
}


def make_sampler(
    settings: StudySettings,
    n_existing: int,
    configure: Callable[[optuna.Trial], TrialConfig],
    n_examples: int,
) -> BaseSampler:
    """The sampler, seeded by the study and how far it has come, so that a restart does not repeat proposals.

    Args:
        settings: Of the study.
        n_existing: Its trials so far.
        configure: The configuration of a trial; `front` knows from it the seconds before a trial runs.
        n_examples: Training images, on which the seconds depend too.

    Raises:
        InputError: If the study to start from does not exist.
    """
    seed = (settings.seed * 1_000_003 + n_existing) % 2**32
    if settings.sampler != "front":
        return SAMPLERS[settings.sampler](seed, settings.trials)
    earlier = []
    if settings.warm_start:
        study = storage.named(settings.warm_start, settings.results_dir, settings.storage, field="warm_start")
        earlier = study.get_trials(deepcopy=False)
    return FrontSampler(
        configure,
        partial(calibration.timer, n_examples=n_examples),
        seed,
        n_startup=n_startup(settings.trials),
        max_seconds=settings.max_trial_seconds,
        earlier=earlier,
    )


def enqueue_baselines(study: Study, space: Space) -> None:
    """The published configurations first, once, however often the study is started."""
    known = {trial.user_attrs.get("label") for trial in study.get_trials(deepcopy=False)}
    for label, params in space.baselines.items():
        if label not in known:
            study.enqueue_trial(params, user_attrs={"label": label})


def requeue_interrupted(study: Study, besides: Collection[int] = ()) -> int:
    """RUNNING to WAITING, of trials that no worker has; returns how many that were.

    Args:
        besides: Numbers of those that one has.
    """
    running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    interrupted = [trial for trial in running if trial.number not in besides]
    for trial in interrupted:
        requeue(study, trial._trial_id)
    return len(interrupted)


def requeue(study: Study, trial_id: int) -> None:
    study._storage.set_trial_state_values(trial_id, TrialState.WAITING)


STORAGE_PATIENCE = 300.0  # seconds that a storage may stay locked or unreachable before the run ends
RETRY_SECONDS = 0.5
FIXED = "fixed_params"  # Optuna's attribute of a trial that was enqueued: its parameters
NO_ROOM = ("disk is full", "No space left", "disk full")

# A running trial and all trials of the study; returns why it should end now, or None.
StopRule = Callable[[RunningTrial, Sequence[FrozenTrial]], str | None]


def stop_rule(settings: StudySettings, sampler: BaseSampler) -> StopRule | None:
    """What ends trials early: `front` knows what a new trial promises, with the others the front decides."""
    if not settings.stop_early:
        return None
    return sampler.stop if isinstance(sampler, FrontSampler) else Stopping()


def outcome(
    result: dict[str, object], epochs: int, objective: Objective
) -> tuple[TrialState | None, list[float] | None, str]:
    """What a trial's last report means: its state, objective values and reason.

    State None is for a trial that was cut off without an end of its own: it can be resumed.
    """
    if "failure" in result:
        return TrialState.FAIL, None, str(result["failure"])
    if result.get("epoch", 0) < epochs:
        return None, None, "interrupted"
    values = [result.get("adversarial_accuracy"), seconds(result, objective)]
    if not all(isinstance(value, int | float) and math.isfinite(value) for value in values):
        return TrialState.FAIL, None, f"objective is not finite: {dict(zip(OBJECTIVES, values, strict=True))}"
    return TrialState.COMPLETE, [float(value) for value in values], "finished"


def seconds(row: dict[str, object], objective: Objective) -> float | None:
    """A row's training seconds so far, as the study counts them."""
    return row.get("train_seconds" if objective == "measured" else "calibrated_seconds")


def probe_values(result: dict[str, object]) -> dict[str, object]:
    """What the probes found, under dotted names such as `hessian.1`."""
    prefixes = tuple(f"{name}." for name in get_args(Probe))
    return {name: value for name, value in result.items() if name.startswith(prefixes)}


class StudySearch(Searcher):
    """A Ray Tune Searcher that asks and tells an Optuna study.

    Args:
        study: With its sampler; the caller holds the study's lock.
        configure: The configuration of a new trial, from what its space suggests. A trial that has
            its configuration already (it was interrupted, or enqueued with one) keeps it.
        n_trials: Trials that shall have finished in all.
        n_concurrent: Trials that may run at once.
        retries: How often a trial that the machine failed (killed worker, lost node) is handed out
            again. Tune's own retries are not used: it gives up a trial whose reused actor dies
            before it has begun, and can start two actors for one trial.
        worker_config: What each trial's worker is told besides its number and configuration.
        objective: Which seconds are the objective.
        stop_rule: Ends trials early.
        until_gain: Share of the hypervolume; the search ends once a device-hour is expected to add less.
        on_told: Called with the trial's number after its end is in the storage.

    An exception after a trial's end would make Tune retry the finished trial, so those hooks keep it
    in `problem`, to be raised where Tune lets it through. What the storage did not take (locked, restarted)
    waits: an end in a queue that `flush` empties, a proposal in `asked`. After `STORAGE_PATIENCE` seconds
    without an answer, or when the disk is full, the run ends.
    """

    def __init__(
        self,
        study: Study,
        configure: Callable[[optuna.Trial], TrialConfig],
        n_trials: int,
        n_concurrent: int,
        retries: int,
        worker_config: Callable[[int], dict[str, object]],
        on_told: Callable[[int], None],
        objective: Objective = "measured",
        stop_rule: StopRule | None = None,
        until_gain: float | None = None,
    ) -> None:
        super().__init__()
        self.study, self.configure = study, configure
        known = study.get_trials(deepcopy=False)
        waits = any(trial.state is TrialState.WAITING for trial in known)  # what was begun is to end
        self.until_gain, self.gain_per_hour = until_gain, None if waits else promised(known, GAIN_PER_HOUR)
        self.n_trials, self.n_concurrent, self.retries = n_trials, n_concurrent, retries
        self.worker_config, self.on_told = worker_config, on_told
        self.objective, self.stop_rule = objective, stop_rule
        self.n_ended = n_finished(study)
        self.running: dict[str, optuna.Trial] = {}  # by Tune's trial id
        self.configs: dict[str, TrialConfig] = {}
        self.curves: dict[str, list[dict[str, object]]] = {}
        self.stopped: dict[str, str] = {}  # why the rule ended a trial that Tune has not ended yet
        self.asked: optuna.Trial | None = None  # proposed, and not yet handed to Tune
        self.asking = False  # also after a failure, which may have left a trial RUNNING that nobody has
        self.silent_since: float | None = None  # when the storage was last heard of, if it does not answer
        self.untold: list[tuple[optuna.Trial, TrialState, list[float] | None, dict[str, object]]] = []
        self.problem: Exception | None = None

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict, **spec: object) -> bool:
        return True

    def suggest(self, trial_id: str) -> dict[str, object] | str | None:
        """Raises:
        Exception: What is wrong with the study; here, unlike in the other hooks, Tune lets it through.
        """
        if self.problem:
            raise self.problem
        if self.n_ended >= self.n_trials:
            return Searcher.FINISHED
        if any(state is TrialState.WAITING for _, state, _, _ in self.untold):
            return None  # what is to run again comes before what is new
        if len(self.running) >= min(self.n_concurrent, self.n_trials - self.n_ended):
            return None
        try:
            if self.gains_too_little() and not self._any_waits():
                return None if self.running else Searcher.FINISHED  # one that runs may yet have to run again
            return self._propose(trial_id)
        except (SQLAlchemyError, StorageInternalError) as error:
            self.storage_failed(error)
            if self.problem:
                raise self.problem from None
            return None

    @property
    def ending(self) -> str:
        """Why there is nothing more to hand out, as `runner.run` says it."""
        return "finished" if self.n_ended >= self.n_trials else storage.TOO_LITTLE_GAIN

    def gains_too_little(self) -> bool:
        """Whether the newest proposal was expected to add less to the hypervolume than the study goes on for."""
        return self.until_gain is not None and self.gain_per_hour is not None and self.gain_per_hour < self.until_gain

    def _propose(self, trial_id: str) -> dict[str, object] | None:
        self.asked = trial = self.asked or self._ask()
        stored = trial.user_attrs.get("config")
        try:
            config = TrialConfig(**stored) if stored else self.configure(trial)
        except InputError as error:
            was_enqueued = FIXED in self.study._storage.get_trial(trial._trial_id).system_attrs
            if not was_enqueued or "label" in trial.user_attrs:
                raise  # the space is at fault, or its BASELINES
            self.asked = None
            self.n_ended += 1
            self.untold.append((trial, TrialState.FAIL, None, {"reason": f"enqueued, but not accepted: {error}"}))
            self.flush()
            return None
        self.gain_per_hour = getattr(self.study.sampler, "gain_per_hour", None)
        if self.gain_per_hour is not None and not stored:  # one that is handed out again keeps its own
            trial.set_user_attr(GAIN, self.study.sampler.gain)
            trial.set_user_attr(GAIN_PER_HOUR, self.gain_per_hour)
        trial.set_user_attr("config", config.model_dump(mode="json"))
        trial.set_user_attr("tune_trial_id", trial_id)
        known = calibration.known(self.study, config)
        self.asked = self.silent_since = None
        self.running[trial_id], self.configs[trial_id] = trial, config
        self.curves[trial_id] = list(trial.user_attrs.get("curve", []))
        return {
            "number": trial.number,
            "label": trial.user_attrs.get("label", ""),
            "name": f"{trial.number:04d} {describe(trial)}",
            "trial": config.model_dump(mode="json"),
            "timing_key": calibration.model_key(config),
            "seconds_per_step": known,
            **self.worker_config(trial.number),
        }

    def _ask(self) -> optuna.Trial:
        if self.asking:
            ours = [*self.running.values(), *(trial for trial, *_ in self.untold)]
            requeue_interrupted(self.study, besides={trial.number for trial in ours})
        self.asking = True
        trial = self.study.ask()
        self.asking = False
        return trial

    def _any_waits(self) -> bool:
        return any(trial.state is TrialState.WAITING for trial in self.study.get_trials(deepcopy=False))

    def storage_failed(self, error: Exception) -> None:
        """The storage refused something that is tried again; too long a silence, or a full disk, ends the run."""
        said = storage.cause(error)
        now = time.monotonic()
        self.silent_since = self.silent_since or now
        if any(text in said for text in NO_ROOM):
            self.problem = OSError(f"no room on disk for the storage ({said})")
        elif now - self.silent_since > STORAGE_PATIENCE:
            self.problem = OSError(f"the storage has not answered for {STORAGE_PATIENCE:g} s ({said})")
        else:
            logger.warning("the storage is tried again: %s", said)

    def on_trial_result(self, trial_id: str, result: dict[str, object]) -> None:
        try:
            self._record(trial_id, result)
        except (SQLAlchemyError, StorageInternalError) as error:
            self.storage_failed(error)  # the trial's end brings the curve again
        except Exception as error:
            self.problem = error

    def _record(self, trial_id: str, result: dict[str, object]) -> None:
        trial = self.running[trial_id]
        self._extend_curve(trial_id, result)
        self._keep_calibration(trial_id, result)
        trial.set_user_attr("node", result.get("hostname", ""))
        trial.set_user_attr("curve", self.curves[trial_id])
        self.silent_since = None

    def _keep_calibration(self, trial_id: str, result: dict[str, object]) -> None:
        prefix = "calibration/seconds_per_step/"  # Tune flattens nested results
        measured = {int(name.removeprefix(prefix)): value for name, value in result.items() if name.startswith(prefix)}
        if measured:
            calibration.keep(self.study, self.configs[trial_id], result["calibration/device"], measured)

    def stops(self, trial_id: str, result: dict[str, object]) -> bool:
        """Whether the rule ends this trial after the epoch that it reports."""
        if self.stop_rule is None or trial_id not in self.running:
            return False
        so_far, ahead = seconds(result, self.objective), result.get("seconds_ahead")
        if so_far is None or ahead is None:
            return False  # its final time is not known
        try:
            trials = self.study.get_trials(deepcopy=False)
        except (SQLAlchemyError, StorageInternalError) as error:
            self.storage_failed(error)
            return False
        self._extend_curve(trial_id, result)
        label = self.running[trial_id].user_attrs.get("label", "")
        running = RunningTrial(self.configs[trial_id], label, self.curves[trial_id], so_far, ahead)
        reason = self.stop_rule(running, trials)
        if reason:
            self.stopped[trial_id] = f"stopped early: {reason}"
        return bool(reason)

    def _extend_curve(self, trial_id: str, result: dict[str, object]) -> None:
        """Add the epoch reported, and those before it that a resumed trial's worker knows of; the newest row counts."""
        if "epoch" in result:
            rows = {row["epoch"]: row for row in self.curves[trial_id] if row["epoch"] < result["epoch"]}
            for row in [*result.get("earlier", []), result]:
                rows[row["epoch"]] = {name: row[name] for name in CURVE}
            self.curves[trial_id] = [rows[epoch] for epoch in sorted(rows)]

    def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
        if error or trial_id not in self.running:
            return  # the runner calls `fail` with the reason, which Tune does not pass here
        state, values, reason = outcome(result or {}, self.configs[trial_id].epochs, self.objective)
        if state is None and trial_id in self.stopped:
            state, reason = TrialState.PRUNED, self.stopped.pop(trial_id)
        if problem := (result or {}).get("study_problem"):
            self.problem = OSError(f"{problem}: trial {self.running[trial_id].number}: {reason}")
            state = None
        try:
            self._keep_calibration(trial_id, result or {})
        except (SQLAlchemyError, StorageInternalError) as error:
            self.storage_failed(error)
        self._end(trial_id, state, values, reason, result or {})

    def fail(self, trial_id: str, reason: str) -> None:
        """The machine failed this trial: hand it out again, or give it up after `retries` times."""
        trial = self.running[trial_id]
        reasons = [*trial.user_attrs.get("machine_reasons", []), reason]
        if len(reasons) > self.retries:
            counted = [f"{reason}, {n} times" if n > 1 else reason for reason, n in Counter(reasons).items()]
            self._end(trial_id, TrialState.FAIL, None, f"machine: {'; '.join(counted)}", {})
            return
        logger.warning("trial %s goes on from its checkpoint: %s", trial.number, reason)
        self._end(trial_id, None, None, reason, {})
        attrs = {"machine_reasons": reasons, "reason": f"machine: {reason}"}
        self.untold.append((trial, TrialState.WAITING, None, attrs))
        self.flush()

    def _end(
        self,
        trial_id: str,
        state: TrialState | None,
        values: list[float] | None,
        reason: str,
        result: dict[str, object],
    ) -> None:
        trial = self.running.pop(trial_id)
        self._extend_curve(trial_id, result)
        curve = self.curves.pop(trial_id)
        del self.configs[trial_id]
        if state is None:
            return  # RUNNING until it is requeued
        attrs: dict[str, object] = {"reason": reason, "curve": curve, "node": result.get("hostname", "")}
        if curve:
            attrs["measured_seconds"] = curve[-1]["train_seconds"]
            attrs["calibrated_seconds"] = curve[-1].get("calibrated_seconds")
        if state is TrialState.COMPLETE:
            attrs |= {name: result[name] for name in ("clean_accuracy", "n_examples")}
            attrs["probes"] = probe_values(result)
        if "warning" in result:
            attrs["reason"] = f"{reason}; {result['warning']}"
        self.n_ended += 1
        self.untold.append((trial, state, values, attrs))
        self.flush()

    def flush(self) -> None:
        """Tell Optuna the ends that it does not know yet, in order; what the storage refuses is kept for later."""
        try:
            while self.untold:
                trial = self.untold[0][0]
                try:
                    self._tell(*self.untold[0])
                except UpdateFinishedTrialError:
                    logger.info("trial %s was told before, only the answer was lost", trial.number)
                self.untold.pop(0)
                self.silent_since = None
                self.on_told(trial.number)
        except (SQLAlchemyError, StorageInternalError) as error:
            self.storage_failed(error)
        except Exception as error:
            self.problem = error

    def settle(self, check: Callable[[], None]) -> None:
        """Wait until the storage has taken every end, or there is a `problem`; `check` may raise to end the wait."""
        self.flush()
        while self.untold and not self.problem:
            check()
            time.sleep(RETRY_SECONDS)
            self.flush()

    def _tell(
        self, trial: optuna.Trial, state: TrialState, values: list[float] | None, attrs: dict[str, object]
    ) -> None:
        for name, value in attrs.items():
            trial.set_user_attr(name, value)
        if state is TrialState.WAITING:
            requeue(self.study, trial._trial_id)
        else:
            self.study.tell(trial, values, state=state)

    # Tune pickles its searcher into snapshots. The storage is the truth, so there is nothing to keep.
    def save(self, checkpoint_path: str) -> None:
        pass

    def restore(self, checkpoint_path: str) -> None:
        raise NotImplementedError("a study continues from its storage, not from Tune's snapshot")

    def __getstate__(self) -> dict[str, object]:
        return {}
