"""CUDA's Multi-Process Service (MPS), with which kernels of several processes run on a GPU at the same time."""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping

CONTROL = "nvidia-cuda-mps-control"
BESIDE_DRIVER = "/usr/local/nvidia/bin"  # where containers often have the driver's programs, on the PATH or not
PROBE = "import torch; torch.zeros(1, device='cuda').item()"
SECONDS = 60.0  # that starting, asking and stopping may take


@contextlib.contextmanager
def mps() -> Iterator[str]:
    """A daemon for the processes that are started inside, which find it by their environment.

    One that this user runs already is used, and left alone. One of our own is stopped at the end, when those processes
    should have ended.

    Yields:
        Why there is none; empty where there is one.
    """
    if _told("get_server_list\n", os.environ) == 0:
        yield ""
        return
    with tempfile.TemporaryDirectory(prefix="mps-", ignore_cleanup_errors=True) as folder:
        places = {"CUDA_MPS_PIPE_DIRECTORY": folder, "CUDA_MPS_LOG_DIRECTORY": folder}
        refusal = _start(os.environ | places)
        if refusal:
            yield refusal
            return
        before = {name: os.environ.get(name) for name in places}
        os.environ.update(places)
        try:
            yield ""
        finally:
            for name, value in before.items():
                os.environ.pop(name) if value is None else os.environ.update({name: value})
            _told("quit\n", os.environ | places)


def _start(environment: Mapping[str, str]) -> str:
    """Starts a daemon that a process can use; returns why it can't be, or nothing."""
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}  # the daemon keeps what it is given
    try:
        subprocess.run([_control(), "-d"], env=environment, check=True, timeout=SECONDS, **silent)
    except (OSError, subprocess.SubprocessError) as error:
        return str(error)
    try:  # in a container, say, it may start and answer nobody
        subprocess.run(
            [sys.executable, "-c", PROBE], env=environment, check=True, timeout=SECONDS, capture_output=True, text=True
        )
    except subprocess.SubprocessError as error:
        _told("quit\n", environment)
        said = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
        return f"a process cannot use it: {said[-1]}"
    return ""


def _control() -> str:
    return shutil.which(CONTROL) or shutil.which(CONTROL, path=BESIDE_DRIVER) or CONTROL


def _told(words: str, environment: Mapping[str, str]) -> int | None:
    """The daemon's status after it was told something; None where there is no answer."""
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    try:
        return subprocess.run([_control()], env=environment, input=words.encode(), timeout=SECONDS, **silent).returncode
    except (OSError, subprocess.SubprocessError):
        return None
