"""What a worker is given and what it gives back: the seam between the batch and whatever runs its slides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from mitoscan.config import ScanConfig
from mitoscan.scan.score import SlideSummary


@dataclass(frozen=True)
class Job:
    """One slide to do: picklable, and all that a worker needs to know."""

    slide_id: str
    path: Path
    config: ScanConfig
    """With the slide's own mpp and ROI where a manifest gives them."""
    out: Path
    case_id: str = ""
    notes: tuple[tuple[str, str], ...] = ()
    """Further columns of the manifest and their values: carried into the results."""


@dataclass(frozen=True)
class Done:
    """The slide is finished and its files are written."""

    summary: SlideSummary


@dataclass(frozen=True)
class Failed:
    """The slide could not be done; the worker is free for the next one."""

    stage: str
    """Where it happened: open, tissue, detect, classify, write, or worker (the process itself ended)."""
    error: str
    """Class of the error."""
    message: str
    remedy: str
    exit_code: int
    transient: bool
    """Whether another attempt may succeed: a killed worker or a read that failed, not a broken file."""


@dataclass(frozen=True)
class Started:
    """A worker has taken a slide."""

    slide_id: str


@dataclass(frozen=True)
class Progressed:
    """A slide is so far."""

    slide_id: str
    stage: str
    done: int
    total: int
    mm2: float
    """Tissue that the stage's ``total`` steps cover; 0 where steps are no matter of area."""


@dataclass(frozen=True)
class Ended:
    """A worker is through with a slide."""

    slide_id: str
    outcome: Done | Failed


Event = Started | Progressed | Ended


class Engine(Protocol):
    """Runs jobs, each kept apart from the others; knows nothing of retries, resume or tables."""

    slots: int
    """Slides done at once; the batch keeps no more than twice as many submitted."""

    def submit(self, job: Job) -> None:
        """Queue a job and return at once."""

    def poll(self, timeout_s: float) -> Sequence[Event]:
        """Give what has happened since the last call; wait up to ``timeout_s`` for something to happen."""

    def stop(self, *, now: bool) -> None:
        """Start no further job. ``now``: end the running ones too, leaving nothing half-written."""

    def close(self) -> None:
        """Free workers and connections; called once, at the end, also after an error."""
