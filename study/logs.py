"""What TensorBoard shows of a trial."""

import logging
import time
from contextlib import suppress
from pathlib import Path

from ray.tune.experiment import Trial as TuneTrial
from ray.tune.logger import TBXLoggerCallback
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.summary import hparams, scalar

from study.results import flatten
from study.search import CURVE

logger = logging.getLogger(__name__)


class CurvesAndHparams(TBXLoggerCallback):
    """Each trial's curve over epochs and, where it ends, its configuration as hyperparameters.

    Tune's own logger, which it would add if there were none of the kind, shows everything that workers are told and
    report, in which the hyperparameters drown. And it writes to a folder that Tune copies from time to time, but not
    once more when a study is stopped. Here an epoch is in its file at once, and a trial that goes on in another run
    begins there with the epochs that it had.
    """

    def __init__(self) -> None:
        self.writers: dict[str, EventsWriter] = {}  # by Tune's trial id
        self.last: dict[str, dict[str, float]] = {}  # the newest epoch's values

    def log_trial_start(self, trial: TuneTrial) -> None:
        """Nothing: a trial that reports nothing has nothing to show."""

    def log_trial_result(self, iteration: int, trial: TuneTrial, result: dict[str, object]) -> None:
        rows = [*result.get("earlier", []), result] if "epoch" in result else []
        written = []
        for row in {row["epoch"]: row for row in rows}.values():
            values = {f"ray/tune/{name}": row[name] for name in CURVE if name != "epoch" and row.get(name) is not None}
            written += [(row["epoch"], scalar(name, value)) for name, value in values.items()]
            self.last[trial.trial_id] = values
        self._write(trial, written)

    def log_trial_end(self, trial: TuneTrial, failed: bool = False) -> None:
        """With `failed` it goes on as another of Tune's trials, if at all."""
        last = self.last.pop(trial.trial_id, None)
        if last and not failed:
            config = {name.replace(".", "/"): value for name, value in flatten(trial.config["trial"]).items()}
            self._write(trial, [(0, summary) for summary in hparams(config, last)])
        if writer := self.writers.pop(trial.trial_id, None):
            close(writer)

    def on_experiment_end(self, trials: list[TuneTrial], **info: object) -> None:
        """After a stop: closes the files of trials that are to go on, and has Tune copy its own logs once more."""
        if not self.writers:
            return
        for writer in self.writers.values():
            close(writer)
        storage = trials[0].storage
        try:
            storage.syncer.wait()
            storage.syncer.sync_up(storage.experiment_driver_staging_path, storage.experiment_fs_path)
            storage.syncer.wait()
        except Exception as error:
            logger.warning("Tune's own logs miss their last lines: %s", error)

    def _write(self, trial: TuneTrial, summaries: list[tuple[int, Summary]]) -> None:
        """At once; tensorboardX's own thread dies of a full disk, and the study would wait for it for ever."""
        try:
            if trial.trial_id not in self.writers:
                folder = Path(trial.storage.trial_fs_path)
                folder.mkdir(parents=True, exist_ok=True)
                self.writers[trial.trial_id] = EventsWriter(str(folder / "events"))
            writer = self.writers[trial.trial_id]
            for epoch, summary in summaries:
                writer.write_event(Event(wall_time=time.time(), step=epoch, summary=summary))
            writer.flush()
        except OSError as error:
            logger.warning("TensorBoard misses some of trial %s: %s", trial.config["number"], error)


def close(writer: EventsWriter) -> None:
    with suppress(OSError):  # of a full disk, as was said when it was written
        writer.close()
