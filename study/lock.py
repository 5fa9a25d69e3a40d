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

LOCK, HOLDER = ".lock", ".driver.json"  # in the study's folder


@contextmanager
def driver_lock(folder: Path) -> Iterator[None]:
    """Hold the study in `folder`; the operating system lets go when the process ends, however it ends.

    Raises:
        InputError: If another process holds it; names that process's host and pid.
    """
    lock, holder = FileLock(folder / LOCK), folder / HOLDER
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


def may_run(folder: Path) -> bool:
    """Whether a driver may run the study in `folder`: it holds the lock, or is another host's.

    Locks need not reach from host to host, and where results lie elsewhere there is nothing to tell from.
    """
    if not folder.exists():
        return True
    try:
        if json.loads((folder / HOLDER).read_bytes())["host"] != socket.gethostname():
            return True
        with FileLock(folder / LOCK, timeout=0):
            return False
    except FileNotFoundError:
        return False
    except (OSError, ValueError, KeyError):  # among them that the lock is held
        return True


def _who(holder: Path) -> str:
    try:
        driver = json.loads(holder.read_bytes())
        return f"host {driver['host']}, pid {driver['pid']}"
    except (OSError, ValueError, KeyError):
        return "another process"
