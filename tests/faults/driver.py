"""The search, with a trial that keeps a log of its epochs and can be made to fail: `python -m tests.faults.driver ...`.

`FAULTS` in the environment is JSON: `log`, the file that each attempt and each epoch begun appends to, and
`trials`, which fault a trial (by its number) has; `sqlite_timeout`, how long a locked storage is waited for.
"""

import json
import math
import os
import sys
import time

import torch

from study import pareto, runner, storage
from trainables.ray_trainable import RayTrial


def hang() -> None:
    time.sleep(3600)


def exhaust_memory() -> None:
    raise MemoryError("DefaultCPUAllocator: can't allocate memory")


def raise_an_error() -> None:
    raise ZeroDivisionError("on purpose\nlast line")


def kill_itself() -> None:
    os.kill(os.getpid(), 9)


def break_the_gpu() -> None:
    raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")


BEFORE_EPOCH_2 = {
    "hang": hang,
    "memory": exhaust_memory,
    "raise": raise_an_error,
    "die": kill_itself,
    "gpu": break_the_gpu,
}
AT_THE_END = {"nan": math.nan, "inf": math.inf}


class FaultyTrial(RayTrial):
    """RayTrial that writes down what it does, and fails as it is told."""

    def _open(self) -> None:
        super()._open()
        self._write("open", len(self.trial.curve))

    def _train_epoch(self) -> dict[str, float]:
        epoch = len(self.trial.curve) + 1
        self._write("epoch", epoch)
        fault = self._faults()["trials"].get(str(self.config["number"]))
        if fault in BEFORE_EPOCH_2 and epoch == 2:
            BEFORE_EPOCH_2[fault]()
        row = super()._train_epoch()
        if fault in AT_THE_END and self.trial.done:
            row = {**row, "adversarial_accuracy": AT_THE_END[fault]}
        return row

    def _write(self, event: str, epoch: int) -> None:
        line = f"{self.config['number']} {event} {epoch}\n"
        with open(self._faults()["log"], "a") as log:
            log.write(line)

    def _faults(self) -> dict[str, object]:
        return json.loads(os.environ["FAULTS"])


if __name__ == "__main__":
    runner.RayTrial = FaultyTrial
    storage.SQLITE_TIMEOUT = json.loads(os.environ["FAULTS"])["sqlite_timeout"]
    sys.exit(pareto.main())
