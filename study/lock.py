"""One driver per study."""

import json
import math
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import optuna
import psutil
from filelock import FileLock, Timeout

from trainables.errors import InputError
from trainables.files import write_whole

LOCK, HOLDER = ".lock", ".driver.json"  # in the study's folder
BEAT = "driver"  # an attribute of the study
BEAT_SECONDS = 5.0
UNHEARD_SECONDS = 30.0  # after which a driver that is not heard has died


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


class Beat:
    """What a driver leaves in its study every few seconds, for drivers whose results lie elsewhere.

    Only a driver that has died leaves one behind that does not change.
    """

    def __init__(self, study: optuna.Study) -> None:
        self.study, self.n, self.last = study, 0, -math.inf

    def __call__(self) -> None:
        now = time.monotonic()
        if now - self.last >= BEAT_SECONDS:
            self.last, self.n = now, self.n + 1
            self.study.set_user_attr(BEAT, {"host": socket.gethostname(), "pid": os.getpid(), "n": self.n})

    def end(self) -> None:
        self.study.set_user_attr(BEAT, {})


def require_no_driver(study: optuna.Study) -> None:
    """Waits, where one may have died, until that is certain; one that ran here and is gone needs no waiting.

    Raises:
        InputError: If another process drives the study, whose results may lie elsewhere.
    """
    known, end = study.user_attrs.get(BEAT), time.monotonic() + UNHEARD_SECONDS
    if not known or (known["host"] == socket.gethostname() and not lives(known["pid"])):
        return
    who = f"host {known['host']}, pid {known['pid']}"
    print(f"name: {study.study_name!r} was being run by {who}; waiting for a sign of life", file=sys.stderr)
    while time.monotonic() < end:
        time.sleep(1)
        now = study.user_attrs.get(BEAT)
        if not now:
            return
        if now != known:
            raise InputError(f"name: study {study.study_name!r} is being run by {who}; accepted: one driver")


def lives(pid: int) -> bool:
    """Whether a process other than this one has that number here."""
    return pid != os.getpid() and psutil.pid_exists(pid)


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
