"""Files that are written whole or not at all."""

import os
import tempfile
from pathlib import Path

PARTIAL = ".partial"


def write_whole(path: Path, data: bytes) -> None:
    """Replace `path` by `data`; a reader, or a crash at any moment, finds the old file or the new one.

    Raises:
        OSError: If the folder cannot be written or the disk is full; `path` is then unchanged.
    """
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-", suffix=PARTIAL)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def remove_partial(folder: Path) -> None:
    """Remove what a killed process had not finished writing; for when no other process writes in `folder`."""
    for path in folder.rglob(f".*{PARTIAL}"):
        path.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
