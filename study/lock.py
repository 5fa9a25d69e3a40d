"""One driver per study."""

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from trainables.errors import InputError
from trainables.files import write_whole


@contextmanager
def driver_lock(folder: Path) -> Iterator[None]:
    """Hold the study in `folder`; the operating system lets go when the process ends, however it ends.

    Raises:
        InputError: If another process holds it; names that process's host and pid.
    """
    lock, holder = FileLock(folder / ".lock"), folder / ".driver.json"
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise InputError(f"name: the study in {folder} is being run by {_who(holder)}; accepted: one driver") from None
    try:
        write_whole(holder, json.dumps({"host": socket.gethostname(), "pid": os.getpid()}).encode())
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()


def _who(holder: Path) -> str:
    try:
        driver = json.loads(holder.read_bytes())
        return f"host {driver['host']}, pid {driver['pid']}"
    except (OSError, ValueError, KeyError):
        return "another process"
