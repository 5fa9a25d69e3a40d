"""Runs a study's trials through Ray Tune until enough have finished, the time is up or the user stops it."""

import logging
import math
import os
import secrets
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from datetime import datetime
from pathlib import Path

import optuna
import ray
import yaml
from optuna.exceptions import StorageInternalError
from ray import tune
from ray._private import ray_constants
from ray._private import worker as ray_worker
from ray.exceptions import RayTaskError
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import FIFOScheduler
from sqlalchemy.exc import SQLAlchemyError

from study import calibration, metrics
from study.lock import Beat
from study.logs import CurvesAndHparams
from study.metrics import StudyMetrics
from study.progress import Progress
from study.results import checkpoint_name, sync_models, write_tables
from study.search import StudySearch, requeue_interrupted, stop_rule
from study.settings import Objective, StudySettings
from trainables.config import TrialConfig
from trainables.errors import InputError
from trainables.mps import mps
from trainables.ray_trainable import RayTrial
from trainables.stores import Unreachable, join, store

logger = logging.getLogger(__name__)

ANSWER_SECONDS = 10  # for a cluster to accept a connection
AUTOSCALER_FILE = Path("~/ray_bootstrap_config.yaml")  # `ray up` leaves it on the head
NODES_SECONDS = 5  # between two looks at the cluster's nodes
DRIVER_FILE = "driver"  # beside the checkpoints
TIMINGS = "timings"  # beside them too: what workers have measured, until the study has it
SOCKET_PATH = 107  # the most bytes that Linux takes
OBJECT_STORE_BYTES = 200_000_000  # trials share no objects; Ray's default takes 30 % of the memory

QUIET = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # `signals_as_stop` decides what Ctrl-C does
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}


class Stop(Exception):
    """The run ends before its trials have; says why."""


@contextmanager
def cluster(settings: StudySettings) -> Iterator[dict[str, float]]:
    """Ray on this machine or at `settings.address`; yields its resources.

    On this machine, trials that share a GPU have MPS where it can be started; a cluster's nodes start their own.

    Raises:
        InputError: If nothing answers at the address, or one trial needs more than the cluster has.
        OSError: If Ray does not start on this machine.
    """
    os.environ.update({name: value for name, value in QUIET.items() if name not in os.environ})
    require_reachable(settings.address)
    local = {} if settings.address else {"object_store_memory": OBJECT_STORE_BYTES, "include_dashboard": True}
    if local:
        require_short_temporary_folder()
        # It lives and dies with this process: no use in waiting a minute for it to come back.
        os.environ.setdefault("RAY_gcs_rpc_server_reconnect_timeout_s", "10")
        if not can_keep_a_token():
            os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # the searcher and the display say what happened
    shares_gpu = local and 0 < (settings.gpus_per_trial or 0) < 1
    with mps() if shares_gpu else nullcontext("") as refusal:
        if refusal:
            logger.warning("trials share a GPU without MPS: %s", refusal)
        with on_loopback() if local else nullcontext(), started_ray(settings, local):
            yield sufficient_resources(settings)


def require_short_temporary_folder() -> None:
    """Raises:
    InputError: If the paths of Ray's sockets there would be longer than Linux takes.
    """
    name = next((name for name in ("RAY_TMPDIR", "TMPDIR") if name in os.environ), None)
    place = os.environ[name] if name else ""
    session = f"session_2026-01-01_00-00-00_000000_{os.getpid()}"  # Ray's own has the time
    socket_path = os.path.join(place, "ray", session, "sockets", "plasma_store")
    longest = len(place) + SOCKET_PATH - len(socket_path)
    if len(place) > longest or not place.isascii():
        accepted = f"up to {longest} ASCII characters, for Ray's sockets; for Ray alone: RAY_TMPDIR"
        raise InputError(f"{name}: {place!r} given, {len(place)} characters; accepted: {accepted}")


def can_keep_a_token() -> bool:
    """Whether Ray finds the token that its processes know each other by, or can keep one in the home folder."""
    if "RAY_AUTH_TOKEN" in os.environ or "RAY_AUTH_TOKEN_PATH" in os.environ:
        return True
    folder = Path(os.path.expanduser("~/.ray"))
    return (folder / "auth_token").exists() or os.access(folder if folder.exists() else folder.parent, os.W_OK)


@contextmanager
def on_loopback() -> Iterator[None]:
    """Ray's processes that are started inside listen on the loopback alone, as they do anyway on macOS and Windows.

    Ray reads the variable when it is imported, its processes when they start. One that the user has set holds.
    """
    variable, before = ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR, ray_constants.ENABLE_RAY_CLUSTER
    if variable in os.environ:
        yield
        return
    os.environ[variable], ray_constants.ENABLE_RAY_CLUSTER = "0", False
    try:
        yield
    finally:
        del os.environ[variable]
        ray_constants.ENABLE_RAY_CLUSTER = before


@contextmanager
def started_ray(settings: StudySettings, local: dict[str, object]) -> Iterator[None]:
    """Raises: as `cluster`."""
    try:
        with ignored_by_children(signal.SIGTERM) if local else nullcontext():
            ray.init(address=settings.address or "local", logging_level=logging.ERROR, log_to_driver=False, **local)
    except Exception as error:  # Ray raises a bare one where its own processes are too slow to start
        cause = in_one_line(str(error).strip() or type(error).__name__)
        if not settings.address:
            raise OSError(f"Ray does not start on this machine: {cause}") from None
        refused = "InvalidAuthToken" in str(error.__cause__)  # a host and port get no token unless Ray is told so
        token = "; this one asks for its token: RAY_AUTH_MODE=token and ~/.ray/auth_token" if refused else ""
        raise InputError(
            f"address: {settings.address!r} given ({cause}); accepted: the address of a running Ray cluster{token}"
        ) from None
    try:
        yield
    finally:
        if local and (node := ray_worker._global_node):
            kill = node.kill_all_processes
            # SIGTERM does not reach them: Ray would give each a second to follow one.
            node.kill_all_processes = lambda **given: kill(**given | {"allow_graceful": False})
        ray.shutdown()


@contextmanager
def ignored_by_children(number: signal.Signals) -> Iterator[None]:
    """Processes that are started inside do not receive this signal; this one does, but not before the end.

    `timeout`, systemd and Slurm send SIGTERM to all processes of a study: without Ray's it could not stop in order.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {number})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def in_one_line(said: str) -> str:
    """What Ray said: the first line, with the last where that announces it, or all where they name versions."""
    if "ersion mismatch" in said:
        return " ".join(said.split())
    first, *rest = said.splitlines()
    return f"{first} {rest[-1].strip()}" if first.endswith(":") and rest else first


def sufficient_resources(settings: StudySettings) -> dict[str, float]:
    """What Ray has, or can have once its autoscaler has started all nodes that it may.

    Raises:
        InputError: If no node of it has what one trial needs.
    """
    resources = ray.cluster_resources()
    nodes = alive()
    if settings.address:
        more = startable()
        total: Counter[str] = Counter()
        for node in more:
            total.update(node)
        resources |= {kind: max(resources.get(kind, 0.0), float(amount)) for kind, amount in total.items()}
        nodes += more
    require_fit(settings, gpus_per_trial(settings, resources), nodes)
    return resources


def require_fit(settings: StudySettings, gpus: float, nodes: list[dict[str, float]]) -> None:
    """A trial that fits no node would wait for ever.

    Raises:
        InputError: If none of `nodes` has what one trial needs.
    """
    anywhere = "one node" if settings.address else "this machine"
    with_gpus = "one node with enough GPUs" if settings.address and gpus else anywhere
    for field, kind, needed, place in [
        ("gpus_per_trial", "GPU", gpus, anywhere),
        ("cpus_per_trial", "CPU", settings.cpus_per_trial, with_gpus),
    ]:
        most = max((node.get(kind, 0) for node in nodes), default=0)
        if needed > most:
            raise InputError(f"{field}: {needed} given; accepted: at most {most:g}, all that {place} has")
        nodes = [node for node in nodes if node.get(kind, 0) >= needed]


def alive() -> list[dict[str, float]]:
    """Resources of each node that there is."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def startable() -> list[dict[str, float]]:
    """Resources of each node that the autoscaler may start, where this is the head of a cluster made by `ray up`.

    Ray itself has no answer: what its autoscaler may start stands in this file alone.
    """
    try:
        config = yaml.safe_load(AUTOSCALER_FILE.expanduser().read_text())
    except FileNotFoundError:
        return []
    types = config["available_node_types"].values()
    nodes = [kind.get("resources", {}) for kind in types for _ in range(kind.get("max_workers", 0))]
    return nodes[: config.get("max_workers")]  # of all kinds together


def require_reachable(address: str | None) -> None:
    """Ray itself keeps trying for minutes where nothing answers.

    Raises:
        InputError: If `address` names a host and port, and nothing listens there; or is a URL, such as Ray Client's,
            through which Tune's loop would run in another process than this.
    """
    place, source = address or "", ""
    if address == "auto" and "RAY_ADDRESS" in os.environ:  # Ray looks there first
        place, source = os.environ["RAY_ADDRESS"], " by RAY_ADDRESS"
    accepted = "`auto`, or host:port of a running Ray cluster"
    if "://" in place:
        raise InputError(f"address: {place!r} given{source}, a URL; accepted: {accepted}")
    host, _, port = place.rpartition(":")
    if not host:
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_SECONDS).close()
    except (OSError, ValueError, OverflowError) as error:
        raise InputError(f"address: {place!r} given{source} ({error}); accepted: {accepted}") from None


def gpus_per_trial(settings: StudySettings, resources: dict[str, float]) -> float:
    if settings.gpus_per_trial is not None:
        return settings.gpus_per_trial
    return 1.0 if resources.get("GPU") else 0.0


def resolve_objective(study: optuna.Study, settings: StudySettings, resources: dict[str, float]) -> Objective:
    """Which seconds the study counts: decided when it is made, and kept.

    Measured ones hold only where a trial has its device to itself, and all devices are of one kind.
    """
    objective = study.user_attrs.get("objective") or settings.objective
    if objective is None:
        gpus = gpus_per_trial(settings, resources)
        kinds = [name for name in resources if name.startswith("accelerator_type:")]
        shared = 0 < gpus < 1 or (not gpus and settings.cpus_per_trial < 1 and n_concurrent(settings, resources) > 1)
        objective = "calibrated" if shared or (gpus and len(kinds) > 1) else "measured"
    study.set_user_attr("objective", objective)
    return objective


def n_concurrent(settings: StudySettings, resources: dict[str, float]) -> int:
    """How many trials fit at once, each on one node."""
    gpus = gpus_per_trial(settings, resources)
    groups = [alive(), startable() if settings.address else []]  # those there are, and all that there may be in the end
    fit = max(sum(n_on(node, settings.cpus_per_trial, gpus) for node in nodes) for nodes in groups)
    most = settings.concurrent or (1 if settings.alone and not gpus else fit)
    return max(1, min(fit, most))


def n_on(node: dict[str, float], cpus: float, gpus: float) -> int:
    """How many trials of so many CPUs and GPUs fit on a node; Ray hands out a part of one GPU, or whole ones."""
    fit = math.floor(node.get("CPU", 0) / cpus + 1e-9)
    if not gpus:
        return fit
    there = node.get("GPU", 0)
    return min(fit, math.floor(there / gpus) if gpus >= 1 else math.floor(there) * math.floor(1 / gpus + 1e-9))


@contextmanager
def signals_as_stop(stop: "StopRequest") -> Iterator[None]:
    """Ctrl-C and SIGTERM end the run between two of Tune's steps; a second Ctrl-C at once."""

    def handle(number: int, frame: object) -> None:
        if stop.reason:
            raise KeyboardInterrupt
        stop.reason = "interrupted"

    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


class StopRequest:
    """Whether the run should end now, and why."""

    def __init__(self, timeout: float | None) -> None:
        self.deadline = time.monotonic() + timeout if timeout else None
        self.reason = ""

    def check(self) -> None:
        """Raises:
        Stop: If it should.
        """
        if not self.reason and self.deadline and time.monotonic() > self.deadline:
            self.reason = "timeout"
        if self.reason:
            raise Stop(self.reason)


def require_a_node() -> None:
    """Where no node is left, Tune waits for ever for its trials' resources.

    Raises:
        ConnectionError: If there is none.
    """
    if not any(node["Alive"] for node in ray.nodes()):
        raise ConnectionError("Ray has lost its last node; finished trials are kept, the same command goes on")


class StopEarly(FIFOScheduler):
    """Ends the trials that the searcher's rule ends."""

    def __init__(self, search: StudySearch) -> None:
        super().__init__()
        self.search = search

    def on_trial_result(self, controller: object, trial: TuneTrial, result: dict[str, object]) -> str:
        return self.STOP if self.search.stops(trial.trial_id, result) else self.CONTINUE

    def __getstate__(self) -> dict[str, object]:
        return {}  # Tune snapshots its scheduler; nothing here outlives the run


class Watch(tune.Callback):
    """Carries Tune's events to the searcher and the display, and ends the run where that is safe."""

    def __init__(
        self, search: StudySearch, stop: StopRequest, progress: Progress, epoch_timeout: float, beat: Beat | None
    ) -> None:
        self.search, self.stop, self.progress, self.epoch_timeout = search, stop, progress, epoch_timeout
        self.beat = beat
        self.metrics = StudyMetrics(search.study.study_name)
        self.shown = self.looked = 0.0
        self.heard: dict[str, float] = {}  # when each trial last began or reported

    def __getstate__(self) -> dict[str, object]:
        return {}  # Tune snapshots its callbacks; nothing here outlives the run

    def on_step_begin(self, **info: object) -> None:
        if self.progress.unread:
            self.stop.reason = self.stop.reason or "interrupted"
        try:
            self.stop.check()
        except Stop as reason:
            self.progress.say(f"Stopping ({reason}): the results are written next. Ctrl-C ends at once, without them.")
            raise
        if self.search.problem:
            raise self.search.problem
        self.search.flush()
        now = time.monotonic()
        if now - self.looked > NODES_SECONDS:
            self.looked = now
            require_a_node()
        if now - self.shown > 1:
            self.shown = now
            try:
                if self.beat:
                    self.beat()
                trials = self.search.study.get_trials(deepcopy=False)
                self.progress.update(trials)
                self.metrics.update(trials)
            except (SQLAlchemyError, StorageInternalError) as error:
                self.search.storage_failed(error)

    def on_trial_start(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: object) -> None:
        self.heard[trial.trial_id] = time.monotonic()

    def on_trial_result(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: object) -> None:
        self.heard[trial.trial_id] = time.monotonic()

    def on_trial_error(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: object) -> None:
        silent = time.monotonic() - self.heard.pop(trial.trial_id, math.inf)
        hung = self.epoch_timeout <= silent < math.inf  # its worker's watchdog ended it
        reason = f"hung, no epoch ended within {self.epoch_timeout:g} s" if hung else what_failed(trial)
        self.search.fail(trial.trial_id, reason)


def what_failed(trial: TuneTrial) -> str:
    """The first line of what its worker raised, if the worker lives."""
    file = trial.pickled_error_file  # Tune's own getter looks for it where it is copied to later
    error = ray.cloudpickle.loads(Path(file).read_bytes()) if file else None
    if not isinstance(error, RayTaskError):
        return "worker or node lost"
    cause = error.cause or error
    return f"{type(cause).__name__}: {str(cause).partition(chr(10))[0]}"


class Results:
    """Keeps the results folder in step with the storage, the tables at no more than `SHARE` of the time."""

    SHARE = 0.05

    def __init__(self, study: optuna.Study, folder: Path, checkpoints: str, progress: Progress) -> None:
        self.study, self.folder, self.checkpoints, self.progress = study, folder, checkpoints, progress
        self.next_tables = 0.0

    def told(self, number: int) -> None:
        """A trial's end is in the storage."""
        trials = self.study.get_trials(deepcopy=False)
        # Their numbers have gaps where others have enqueued trials since.
        ended = next(trial for trial in trials if trial.number == number)
        try:
            sync_models(trials, self.folder, self.checkpoints, ended)
        except Unreachable as error:
            logger.warning("weights are fetched later: %s", error)
        start = time.monotonic()
        if start >= self.next_tables:
            write_tables(self.study, self.folder)
            self.next_tables = start + (time.monotonic() - start) / self.SHARE
        self.progress.update(trials, ended=ended)


def run(
    study: optuna.Study,
    configure: Callable[[optuna.Trial], TrialConfig],
    settings: StudySettings,
    resources: dict[str, float],
    progress: Progress,
    objective: Objective,
) -> str:
    """Run trials until `settings.trials` have finished.

    Args:
        study: With its sampler, trials to hand out first already WAITING in it.
        configure: The configuration of a trial that has none yet.
        settings: Of the study.
        resources: Of the cluster.
        progress: Shown while it runs.
        objective: Which seconds are the objective.

    Returns:
        "finished", `storage.TOO_LITTLE_GAIN`, "interrupted" or "timeout".

    Raises:
        InputError: If the space turned out to yield a configuration that is not accepted.
        OSError: If the disk is full; the study can be continued after space was made.
    """
    folder = settings.folder.absolute()
    gpus = gpus_per_trial(settings, resources)
    known_images = study.user_attrs.get("images", {})

    def worker_config(number: int) -> dict[str, object]:
        return {
            "data": settings.data.model_dump(),
            "images": known_images,
            "evaluation": settings.evaluation.model_dump(),
            "folder": join(settings.checkpoints, checkpoint_name(number)),
            "timings": join(settings.checkpoints, TIMINGS),
            "shared": shared,
            "threads": settings.threads,
            "gpu": gpus > 0,
            "shares_gpu": 0 < gpus < 1,
            "epoch_timeout": settings.epoch_timeout,
            "objective": objective,
        }

    kept = store(settings.checkpoints)
    if not calibration.tables(study):
        store(join(settings.checkpoints, TIMINGS)).remove()  # an earlier study's
    shared = None
    if settings.address:  # each worker looks for this file: a disk that is not shared would swallow checkpoints
        kept.write(DRIVER_FILE, f"{socket.gethostname()} {os.getpid()}\n".encode())
        shared = (settings.checkpoints, DRIVER_FILE)
    at_once = n_concurrent(settings, resources)
    # Tune asks for one node after the other, each after the one before has come, unless told to ask for all.
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(at_once)
    study.set_user_attr("ray", metrics.addresses())
    beat = Beat(study) if settings.storage else None  # in a folder of our own its lock says so
    if beat:
        beat()
    stop = StopRequest(settings.timeout)
    search = StudySearch(
        study,
        configure,
        settings.trials,
        at_once,
        settings.retries,
        worker_config,
        Results(study, folder, settings.checkpoints, progress).told,
        objective,
        stop_rule(settings, study.sampler),
        settings.until_gain,
    )
    tuner = tune.Tuner(
        tune.with_resources(RayTrial, {"cpu": settings.cpus_per_trial, "gpu": gpus}),
        tune_config=tune.TuneConfig(
            search_alg=search,
            scheduler=StopEarly(search),
            num_samples=-1,  # the searcher says when it is done
            reuse_actors=True,
            trial_name_creator=trial_name,
            trial_dirname_creator=trial_name,
        ),
        run_config=tune.RunConfig(
            name=datetime.now().strftime("run-%Y%m%d-%H%M%S"),
            storage_path=str(folder / "tune"),
            # The trainable keeps its own checkpoint: Tune's restore loses and doubles trials.
            checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=0, checkpoint_at_end=False),
            callbacks=[Watch(search, stop, progress, settings.epoch_timeout, beat), CurvesAndHparams()],
            verbose=0,
        ),
    )
    try:
        with signals_as_stop(stop):
            tuner.fit()
            search.settle(stop.check)
        if search.problem:
            raise search.problem
    except Stop as reason:
        return str(reason)
    finally:
        search.flush()
        requeue_interrupted(study)
        if beat:
            beat.end()
        with suppress(Unreachable):
            kept.remove(TIMINGS)  # the study has it by now
            if shared:
                kept.remove(DRIVER_FILE)
    return search.ending


def trial_name(trial: TuneTrial) -> str:
    """`0007_fixup_8-128`: the trial's name as a folder's."""
    return trial.config["name"].replace("→", "-").replace(" ", "_").replace("/", "-")
