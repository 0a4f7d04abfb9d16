"""One writer at a time: a lock file that names its holder, and is recognised when its holder is gone.

A holder on this machine is asked for by process id and start. Of one on another machine only the lock file
is seen: it touches it, and when it has not been touched for ``STALE_S`` it counts as gone. That age is taken
from the times that the file system itself gives to both files, so that no machine's clock matters.
"""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import platform
import shlex
import sys
import time
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from mitoscan.cohort import system
from mitoscan.errors import OutputError
from mitoscan.report.atomic import REMEDY, temporary_beside
from mitoscan.scan.score import printable

STALE_S = 300.0
TOUCH_S = 30.0


class HeldError(OutputError):
    """Another run holds the lock."""


@dataclass(frozen=True)
class Holder:
    """Who holds a lock."""

    token: str
    host: str
    pid: int
    user: str
    command: str
    machine: str
    """See ``system.machine``."""
    start: str
    """See ``system.process_start``."""

    def __str__(self) -> str:
        """Say it to a user."""
        return f"{self.user} on {self.host}, process {self.pid} ({self.command})"


class Lock:
    """A lock that is held; made by `take`.

    Parameters
    ----------
    path
        The lock file.
    holder
        What is in it.
    """

    def __init__(self, path: Path, holder: Holder) -> None:
        self.path, self._holder = path, holder
        self._touched = time.monotonic()

    @classmethod
    def take(cls, path: Path) -> Self:
        """Take the lock, also over from a holder that is gone.

        Raises
        ------
        HeldError
            When somebody holds it.
        OutputError
            When the file cannot be written.
        """
        mine = _this_process()
        for _ in range(10):  # each time round another run was quicker with a stale lock
            if _create(path, mine):
                return cls(path, mine)
            if not _remove_stale(path):
                raise HeldError(
                    f"in use by {_read(path) or 'another run'}",
                    path=path.parent,
                    remedy="Wait for it, or add --join to share its work.",
                )
        raise HeldError("in use: several runs are starting here", path=path.parent, remedy="Try again.")

    def touch(self) -> None:
        """Show that the holder lives; cheap to call often."""
        if time.monotonic() - self._touched >= TOUCH_S:
            self._touched = time.monotonic()
            with contextlib.suppress(OSError):
                os.utime(self.path)

    def release(self) -> None:
        """Give it back, unless somebody has taken it over."""
        if _read(self.path) == self._holder:
            with contextlib.suppress(OSError):
                self.path.unlink()


def holder_of(path: Path) -> Holder | None:
    """Give who holds a lock; None when nobody does, or nobody who lives."""
    holder = _read(path)
    return None if holder is None or _is_stale(path, holder) else holder


def _this_process() -> Holder:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        user = str(os.getuid()) if hasattr(os, "getuid") else "unknown"
    pid = os.getpid()
    return Holder(
        token=uuid.uuid4().hex,
        host=platform.node(),
        pid=pid,
        user=user,
        command=printable(shlex.join(sys.argv)),
        machine=system.machine(),
        start=system.process_start(pid),
    )


def _create(path: Path, holder: Holder) -> bool:
    """Make the lock file with its content at once; False when there is one."""
    temporary = temporary_beside(path)
    data = json.dumps(asdict(holder)).encode()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(data)
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
        except OSError:  # a file system without links: the content comes a moment after the name
            with path.open("xb") as file:
                file.write(data)
    except FileExistsError:
        return False
    except OSError as exc:
        raise OutputError(
            f"cannot be written: {exc.strerror or exc}", path=path.parent, remedy=REMEDY
        ) from exc
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    return True


def _read(path: Path) -> Holder | None:
    try:
        return Holder(**json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError):
        return None


def _remove_stale(path: Path) -> bool:
    """Remove a lock whose holder is gone; True when the lock may be tried again."""
    seen = _read(path)
    if not path.exists():
        return True
    if not _is_stale(path, seen):
        return False
    # Two runs may see the same stale lock. Who is second would remove the first one's new lock: so move it
    # aside, look, and put it back.
    aside = temporary_beside(path)
    try:
        path.rename(aside)
        if _read(aside) != seen:
            with contextlib.suppress(OSError):
                os.link(aside, path)
        aside.unlink()
    except FileNotFoundError:
        pass
    except OSError as exc:
        raise OutputError(
            f"cannot be written: {exc.strerror or exc}", path=path.parent, remedy=REMEDY
        ) from exc
    return True


def _is_stale(path: Path, holder: Holder | None) -> bool:
    if holder is not None and holder.machine == system.machine():
        return system.process_start(holder.pid) != holder.start
    probe = temporary_beside(path)
    try:
        probe.touch()
        return probe.stat().st_mtime - path.stat().st_mtime > STALE_S
    except OSError:
        return False
    finally:
        with contextlib.suppress(OSError):
            probe.unlink(missing_ok=True)
