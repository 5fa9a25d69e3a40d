"""A tune.Trainable around trial.py: one `step` is one epoch."""

import errno
import faulthandler
import functools
import json
import logging
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from urllib.parse import quote

import ray
import torch
from ray import tune

from trainables import data, devices
from trainables.checkpoints import CheckpointFolder
from trainables.config import DataConfig, EvalConfig, TrialConfig
from trainables.errors import InputError
from trainables.fingerprints import Fingerprints, fingerprints
from trainables.stores import AWAY, Unreachable, store
from trainables.trial import Diverged, Trial

logger = logging.getLogger(__name__)

CALIBRATION_PATIENCE = 300.0  # seconds that a trial waits for its device to be free of others' epochs
LOADING_PATIENCE = 3600.0  # seconds that images and a checkpoint may take to be read, if an epoch may not take longer


class RayTrial(tune.Trainable):
    """Runs one trial; an actor runs many, one after the other.

    Its config has `number` (Optuna's), `name` (what a person reads, e.g. `0007 fixup 8→128`), `trial`, `data` and
    `evaluation` (fields of TrialConfig, DataConfig, EvalConfig), `images` (the fingerprints that the study knows them
    by; of a study of an earlier version none), `folder` (the place of the trial's checkpoint, a path or URI), `shared`
    (a place and a file that the driver wrote there; None where trials run on the driver's host), `threads`, `gpu`
    (whether it was given one: Ray hides no GPU from those that asked for none), `shares_gpu` (whether others train on
    its GPU), `epoch_timeout` (seconds after which an epoch counts as hung), `objective` (which seconds count,
    `measured` or `calibrated`), `timings` (a place that the study's workers share), `timing_key` (names what a step's
    seconds depend on, e.g. network, norm and training) and `seconds_per_step`: by kind of device, then batch size,
    those that the driver knows for this key. What was measured since goes along with the first report as
    `calibration`.

    The trial's own failures (diverged, out of memory, an exception) end it with a last result that
    says `failure`, so that Tune does not retry them. What the machine does (a killed process, a lost
    node, a GPU's error) reaches Tune as an error; the retried trial goes on from its checkpoint.
    """

    def setup(self, config: dict) -> None:
        # Recovery may start two actors for one trial, so nothing is touched before the first step.
        self.trial = None

    def reset_config(self, new_config: dict) -> bool:
        self.setup(new_config)
        return True

    def __repr__(self) -> str:
        """Ray asks once, when an actor starts, and lists the actor under this name: later trials are its too."""
        return f"from {self.config['name']}"

    def step(self) -> dict[str, object]:
        if ray.is_initialized():
            ray._raylet.setproctitle(f"ray::{self.config['name']}")  # in Ray's cluster view, ps and nvidia-smi
        try:
            if self.trial is None:
                self._open()
            row = self.trial.curve[-1] if self.trial.done else self._watched_epoch()
        except Exception as error:
            self.trial = None
            # Not the trial's failure, but the network's or the store's; or the GPU's, after which nothing runs in this
            # process any more, so that another trial must not get it.
            if isinstance(error, Unreachable | torch.AcceleratorError):
                raise
            reason = failure(error)
            logger.exception("trial %s failed: %s", self.config["number"], reason)
            return {"done": True, "failure": reason, "study_problem": study_problem(error)}
        # Epochs whose report may have died with an earlier driver go along with the first one.
        news, self.news = self.news, {}
        return {**row, "done": self.trial.done, "seconds_ahead": self.trial.seconds_ahead, **news}

    def _open(self) -> None:
        config, timeout = self.config, self.config["epoch_timeout"]
        torch.set_num_threads(config["threads"])
        device = torch.device("cuda" if config["gpu"] and torch.cuda.is_available() else "cpu")
        with watchdog(max(timeout, LOADING_PATIENCE)):
            require_shared(config["shared"])
            folder = CheckpointFolder(config["folder"])
            trial = Trial(
                TrialConfig(**config["trial"]),
                images(DataConfig(**config["data"]), str(device), config["images"]),
                EvalConfig(**config["evaluation"]),
                device,
                config["shares_gpu"],
            )
            state = folder.load(device)
            if state is not None:
                trial.load_state_dict(state)
        self.news = {"earlier": list(trial.curve)}
        if not trial.done:
            with devices.shared(device, self._cores), watchdog(timeout):  # not while another measures
                trial.warm_up()
            self._calibrate(trial)
        self.trial, self.folder = trial, folder

    def _calibrate(self, trial: Trial) -> None:
        kind = devices.name(trial.device)
        told = by_size(self.config["seconds_per_step"].get(kind, {}))
        if not trial.untimed(told):
            trial.calibrate(told)
            return
        # What one worker measures all use, also those that were sent out before the driver knew: who needs the same
        # waits for that alone, not for the device.
        place, name = store(self.config["timings"]), quote(f"{kind} {self.config['timing_key']}.json", safe=" ,")
        timeout = self.config["epoch_timeout"]
        try:
            with devices.turn(trial.device, self.config["timings"], name, CALIBRATION_PATIENCE):
                with watchdog(timeout):
                    known = by_size(json.loads(place.read(name) or "{}")) | told
                if trial.untimed(known):
                    with devices.alone(trial.device, self._cores, CALIBRATION_PATIENCE), watchdog(timeout):
                        known |= trial.calibrate(known)
                        place.write(name, json.dumps(known).encode())
        except TimeoutError as error:  # a hung neighbour must not hold up the others
            logger.warning("trial %s runs without calibrated seconds: %s", self.config["number"], error)
            return
        trial.calibrate(known)
        news = {str(size): seconds for size, seconds in known.items() if size not in told}
        self.news["calibration"] = {"device": kind, "seconds_per_step": news}

    @property
    def _cores(self) -> str | None:
        """Who else uses its processors: where measured seconds count, nobody, and none waits while it calibrates.

        Where calibrated ones do, the study's workers may share them. What names these is a place that they alone have.
        """
        return self.config["timings"] if self.config["objective"] == "calibrated" else None

    def _watched_epoch(self) -> dict[str, float]:
        with devices.shared(self.trial.device, self._cores), watchdog(self.config["epoch_timeout"]):
            return self._train_epoch()

    def _train_epoch(self) -> dict[str, float]:
        row = self.trial.train_epoch()
        if self.trial.done:
            self.folder.save_weights(self.trial.weights())
        self.folder.save(self.trial.state_dict())
        return row


def by_size(table: Mapping[str, float]) -> dict[int, float]:
    """A table of seconds as it was before it became JSON."""
    return {int(size): seconds for size, seconds in table.items()}


@contextmanager
def watchdog(seconds: float) -> Iterator[None]:
    """Ends this process, its stack in the log, where the body takes longer; works even while Python itself is stuck."""
    faulthandler.dump_traceback_later(seconds, exit=True, file=sys.__stderr__)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


class NotShared(RuntimeError):
    """This host does not see what the driver wrote."""


def require_shared(shared: tuple[str, str] | None) -> None:
    """Raises:
    NotShared: If the place lies on another host's disk.
    """
    if shared is not None and store(shared[0]).read(shared[1]) is None:
        raise NotShared(f"{socket.gethostname()} does not see {shared[0]} of the driver's host")


class NotTheImages(RuntimeError):
    """This host has not the images that the driver's host has."""


def images(config: DataConfig, device: str, known: Fingerprints) -> data.Dataset:
    """Raises:
    NotTheImages: If this host has none, or others than the study's.
    Unreachable: If its disk or file server is at fault.
    """
    host = socket.gethostname()
    try:
        dataset = load_dataset(config, device)
    except InputError as error:
        lacks = Unreachable if getattr(error.__context__, "errno", None) in AWAY else NotTheImages
        raise lacks(f"{host}: {error}") from None
    if not known:
        return dataset
    found = seen(config, device, "test" if "test" in known else "validation")
    for part, fingerprint in known.items():
        if found[part] != fingerprint:
            place = config.data_dir or config.name
            raise NotTheImages(f"{host}: data_dir: the {part} images of {place!r} are not the study's")
    return dataset


def study_problem(error: Exception) -> str:
    """What will fail every other trial too, at least on this host; empty for what is this trial's own."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "no room on disk"
    if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"{socket.gethostname()} may not read or write"
    if isinstance(error, NotTheImages):
        return "the same images are needed on every host"
    return "storage_path is needed" if isinstance(error, NotShared) else ""


def failure(error: Exception) -> str:
    """Why the trial ended, in one line."""
    message = (str(error).strip() or type(error).__name__).splitlines()[-1]
    if isinstance(error, Diverged):
        return f"diverged: {message}"
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error):
        return f"out of memory: {message}"
    return f"{type(error).__name__}: {message}"


# The data set on the device, kept from trial to trial.
load_dataset = functools.lru_cache(maxsize=1)(data.configured)


@functools.lru_cache(maxsize=1)
def seen(config: DataConfig, device: str, split: str) -> Fingerprints:
    """Of this host's images, as the study keeps those of the driver's."""
    return fingerprints(load_dataset(config, device), split)
