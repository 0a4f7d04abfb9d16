"""Write a file so that it exists only when it is whole."""

from __future__ import annotations

import contextlib
import os
import uuid
from pathlib import Path

from mitoscan.errors import OutputError

REMEDY = "Free some space or choose another folder with -o."


def write_atomically(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path`` under a temporary name beside it, then rename.

    A reader sees the old file or the new one, never a part, also after a crash or a power cut.

    Raises
    ------
    OutputError
        When the system refuses; the temporary file is gone then and an old ``path`` unchanged.
    """
    temporary = temporary_beside(path)
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as exc:
        raise OutputError(f"cannot be written: {exc.strerror or exc}", path=path, remedy=REMEDY) from exc
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def temporary_beside(path: Path) -> Path:
    """Give a name in the same folder that nobody else uses, hidden and known to `is_temporary`."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")


def is_temporary(path: Path) -> bool:
    """Whether a file has a name that ``write_atomically`` gives to what is not whole yet."""
    return path.name.startswith(".") and path.name.endswith(".tmp")


def _sync_folder(folder: Path) -> None:
    """Make the rename itself durable, where the system can."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some network file systems refuse to sync folders
            os.fsync(handle)
    finally:
        os.close(handle)
