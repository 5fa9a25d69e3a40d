"""Where a trial's files lie: a folder on disk, or a prefix in an object store that every host reaches.

A place is a path, or a URI such as `s3://bucket/folder`; credentials come from the environment or the machine's role,
never from the URI. Both kinds have the same four methods.
"""

import errno
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from trainables.files import write_whole

# What a folder answers whose disk or file server is at fault.
AWAY = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.EREMOTEIO)


class Unreachable(OSError):
    """The object store did not answer, or refused; or the folder's disk or file server is at fault."""


@contextmanager
def reaching(path: str) -> Iterator[None]:
    """Tells the store's failures from a file's absence."""
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        raise Unreachable(f"{path}: {error}") from error


@contextmanager
def on_disk() -> Iterator[None]:
    """Tells the machine's failures from the user's, such as a folder that may not be written."""
    try:
        yield
    except OSError as error:
        if error.errno in AWAY:
            raise Unreachable(str(error)) from error
        raise


def is_uri(place: str) -> bool:
    return "://" in place


def has_key(place: str) -> bool:
    """Whether a URI holds credentials: they would be written down with the study."""
    return is_uri(place) and "@" in urlsplit(place).netloc


def join(place: str, *names: str) -> str:
    """The place `names` below `place`; a URI's query (`?region=...`) stays at its end."""
    if not is_uri(place):
        return str(Path(place, *names))
    parts = urlsplit(place)
    return urlunsplit(parts._replace(path="/".join([parts.path.rstrip("/"), *names])))


class DiskStore:
    """Files of one folder, which is made when the first is written.

    Its methods raise `Unreachable` where the disk or the file server is at fault.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def read(self, name: str) -> bytes | None:
        try:
            with on_disk():
                return (self.folder / name).read_bytes()
        except FileNotFoundError:
            return None

    def write(self, name: str, data: bytes) -> None:
        """Whole or not at all.

        Raises:
            OSError: If the place cannot be written.
        """
        with on_disk():
            self.folder.mkdir(parents=True, exist_ok=True)
            write_whole(self.folder / name, data)

    def remove(self, name: str = "") -> None:
        """A file or folder below this place, or all of it; no error where there is none."""
        path = self.folder / name
        with on_disk():
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)

    def names(self) -> list[str]:
        """What lies directly in this place."""
        with on_disk():
            return [path.name for path in self.folder.iterdir()] if self.folder.is_dir() else []


class ObjectStore:
    """Objects below one prefix; an object appears when it is complete.

    Its methods raise `Unreachable` where the store does not answer or refuses.
    """

    def __init__(self, uri: str) -> None:
        """Raises:
        OSError, ValueError: If the URI is none that pyarrow knows.
        """
        from pyarrow import fs  # comes with Ray Tune; a machine that only trains has no need of it

        self.system, self.prefix = fs.FileSystem.from_uri(uri)

    def read(self, name: str) -> bytes | None:
        path = f"{self.prefix}/{name}"
        try:
            with reaching(path), self.system.open_input_stream(path) as stream:
                return stream.read()
        except FileNotFoundError:
            return None

    def write(self, name: str, data: bytes) -> None:
        path = f"{self.prefix}/{name}"
        with reaching(path), self.system.open_output_stream(path) as stream:
            stream.write(data)

    def remove(self, name: str = "") -> None:
        from pyarrow import fs

        path = f"{self.prefix}/{name}".rstrip("/")
        with reaching(path):
            kind = self.system.get_file_info(path).type
            if kind is fs.FileType.Directory:
                self.system.delete_dir(path)
            elif kind is fs.FileType.File:
                self.system.delete_file(path)

    def names(self) -> list[str]:
        from pyarrow import fs

        with reaching(self.prefix):
            found = self.system.get_file_info(fs.FileSelector(self.prefix, allow_not_found=True))
        return [info.base_name for info in found]


Store = DiskStore | ObjectStore


def store(place: str | Path) -> Store:
    """Raises:
    OSError, ValueError: If `place` is a URI of no known kind.
    """
    return ObjectStore(str(place)) if is_uri(str(place)) else DiskStore(Path(place))


def require_writable(place: str) -> None:
    """Writes a file and removes it again; for a folder that does not exist yet, where it would be made.

    Raises:
        OSError, ValueError: If the place cannot be written.
    """
    if not is_uri(place):
        place = str(next(path for path in [Path(place), *Path(place).absolute().parents] if path.exists()))
        if not os.path.isdir(place):
            raise NotADirectoryError(errno.ENOTDIR, "not a folder", place)
    there, name = store(place), f".probe-{uuid.uuid4().hex}"
    there.write(name, b"")
    there.remove(name)
