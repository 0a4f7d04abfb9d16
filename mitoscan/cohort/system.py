"""What the operating system knows of processes: who lives, who dies first, and how large they are."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import signal
import sys
import uuid
from collections.abc import Iterable
from pathlib import Path

import psutil

_PR_SET_PDEATHSIG = 1
_OOM_SCORE = 800
"""Of 1000: the kernel takes a worker before the parent, and before most else of the user's."""


def machine() -> str:
    """Name this machine and process space: two processes that agree see each other's process ids.

    Host names do not tell: containers share them, and so do cloned machines.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return f"{platform.node()}/{uuid.getnode()}"


def process_start(pid: int) -> str:
    """Give when a process began, in ticks that no change of the clock moves; empty when it does not run.

    A process id is used again some day; together with its start it is not.
    """
    try:
        if sys.platform == "linux":
            # The command, in parentheses, may hold spaces: count the fields from its end.
            fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
            return "" if fields[0] == "Z" else fields[19]
        return str(psutil.Process(pid).create_time())
    except (OSError, psutil.Error):
        return ""


def memory_bytes(pid: int) -> int:
    """Give the resident memory of a process; 0 when it does not run."""
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return 0


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when its parent ends, however that happens (Linux only)."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before the kernel was asked
        os._exit(1)


def be_killed_first() -> None:
    """Offer this process when memory runs out (Linux only)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(str(_OOM_SCORE), encoding="ascii")


def keep_to_share(number: int, of: int) -> None:
    """Keep this process, with all threads of its libraries, to its share of the cores (Linux only)."""
    if of > 1 and hasattr(os, "sched_setaffinity"):
        cores: Iterable[int] = sorted(os.sched_getaffinity(0))
        share = list(cores)[number % of :: of]
        if share:
            os.sched_setaffinity(0, share)
