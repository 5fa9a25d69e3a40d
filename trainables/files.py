"""Files that are written whole or not at all."""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

PARTIAL = ".partial"


def write_whole(path: Path, data: bytes) -> None:
    """Replace `path` by `data`; a reader, or a crash at any moment, finds the old file or the new one.

    Raises:
        OSError: If the folder cannot be written or the disk is full; `path` is then unchanged.
    """
    with replacing(path) as file:
        file.write(data)


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write, which becomes `path` once the body has ended well; as `write_whole`."""
    temporary = path.with_name(f".{path.name}-{uuid.uuid4().hex[:8]}{PARTIAL}")
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def remove_partial(folder: Path) -> None:
    """Remove what a killed process had not finished writing; for when no other process writes in `folder`."""
    for path in folder.rglob(f".*{PARTIAL}"):
        path.unlink(missing_ok=True)
