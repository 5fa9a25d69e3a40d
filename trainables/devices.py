"""Who has the device: trials that share it, or one that measures and needs it alone."""

import fcntl
import os
import platform
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch


def name(device: torch.device) -> str:
    """The kind of device, e.g. `NVIDIA H200` or `AMD EPYC, 1 thread`: seconds measured on one hold on its likes."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    n = torch.get_num_threads()
    return f"{_processor()}, {n} thread{'s' if n > 1 else ''}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


@contextmanager
def shared(device: torch.device) -> Iterator[None]:
    """Use the device beside others; waits while somebody has it alone, or waits to."""
    with ExitStack() as stack:
        with _lock(device, "gate", fcntl.LOCK_EX):
            stack.enter_context(_lock(device, "room", fcntl.LOCK_SH))
        yield


@contextmanager
def alone(device: torch.device) -> Iterator[None]:
    """Have the device without anybody that uses `shared`, in any process of this user on this machine.

    Those who have it finish what they do, those who come wait. A process that dies leaves no lock.
    """
    with _lock(device, "gate", fcntl.LOCK_EX), _lock(device, "room", fcntl.LOCK_EX):
        yield


@contextmanager
def _lock(device: torch.device, door: str, kind: int) -> Iterator[None]:
    folder = Path(tempfile.gettempdir()) / f"trial-devices-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    with open(folder / f"{_identity(device)}.{door}", "w") as file:
        fcntl.flock(file, kind)
        yield  # closing the file gives the lock back


def _identity(device: torch.device) -> str:
    """One GPU, or all processors together: they share caches and memory."""
    return str(torch.cuda.get_device_properties(device).uuid) if device.type == "cuda" else device.type
