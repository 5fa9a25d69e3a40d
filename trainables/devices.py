"""Who has the device, and how much of it: trials that share it, or one that measures and needs it alone."""

import fcntl
import hashlib
import math
import os
import platform
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TextIO

import torch

POLL_SECONDS = 0.02


def name(device: torch.device) -> str:
    """The kind of device, e.g. `NVIDIA H200` or `AMD EPYC, 1 thread`: seconds measured on one hold on its likes."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    n = torch.get_num_threads()
    return f"{processor()}, {n} thread{'s' if n > 1 else ''}"


def processor() -> str:
    """This machine's, as the system names it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


@contextmanager
def computing_on(n_threads: int) -> Iterator[None]:
    """Torch computes on CPUs with so many threads. More than there are idle cores wait for each other at every
    operation: beside a running study, two take many times as long as one."""
    before = torch.get_num_threads()
    torch.set_num_threads(n_threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def shared(device: torch.device, cores: str | None) -> Iterator[None]:
    """Use the device beside others; waits while somebody has it alone, or waits to.

    Args:
        device: A GPU is shared by all that this user runs on the machine.
        cores: Names the processors, where it is one: who gives the same name shares them. None: nobody else has them.
    """
    with ExitStack() as stack:
        with _lock(device, cores, "gate", fcntl.LOCK_EX):
            stack.enter_context(_lock(device, cores, "room", fcntl.LOCK_SH))
        yield


@contextmanager
def alone(device: torch.device, cores: str | None, patience: float) -> Iterator[None]:
    """Have the device without anybody that uses `shared`; those who have it finish, those who come wait.

    A process that dies leaves no lock.

    Raises:
        TimeoutError: If the device is not free within `patience` seconds.
    """
    end = time.monotonic() + patience
    try:
        with (
            _lock(device, cores, "gate", fcntl.LOCK_EX, end),
            _lock(device, cores, "room", fcntl.LOCK_EX, end),
        ):
            yield
    finally:
        time.sleep(2 * POLL_SECONDS)  # one who waits comes before an epoch of ours, that may take long


@contextmanager
def turn(device: torch.device, cores: str | None, what: str, patience: float) -> Iterator[None]:
    """Be the only one on the device that does `what`; the device itself stays everybody's.

    Raises:
        TimeoutError: If others have not done with it within `patience` seconds.
    """
    door = f"turn-{hashlib.sha256(what.encode()).hexdigest()[:16]}"
    with _lock(device, cores, door, fcntl.LOCK_EX, time.monotonic() + patience):
        yield


@contextmanager
def _lock(device: torch.device, cores: str | None, door: str, kind: int, end: float = math.inf) -> Iterator[None]:
    if device.type == "cpu" and cores is None:
        yield
        return
    folder = Path(tempfile.gettempdir()) / f"trial-devices-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    with open(folder / f"{_identity(device, cores)}.{door}", "w") as file:
        while not _taken(file, kind):
            if time.monotonic() > end:
                raise TimeoutError(f"{name(device)} is in use by others")
            time.sleep(POLL_SECONDS)
        yield  # closing the file gives the lock back


def _taken(file: TextIO, kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _identity(device: torch.device, cores: str) -> str:
    if device.type == "cuda":
        return str(torch.cuda.get_device_properties(device).uuid)
    return f"{device.type}-{hashlib.sha256(cores.encode()).hexdigest()[:16]}"
