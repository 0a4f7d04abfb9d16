"""What a worker is given and what it gives back: the seam between the batch and whatever runs its slides."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from mitoscan.config import ScanConfig

if TYPE_CHECKING:  # a worker that has nothing to do yet should start without the scientific libraries
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
    """Where it happened: models, open, tissue, detect, classify, write, or worker (the process ended)."""
    error: str
    """Class of the error."""
    message: str
    remedy: str
    exit_code: int
    transient: bool = False
    """Whether another attempt may succeed: a killed worker or a read that failed, not a broken file."""
    fatal: bool = False
    """No other slide would fare better (disk full, no such model): the batch ends."""
    traceback: str = ""
    """Of an error that nobody foresaw."""


@dataclass(frozen=True)
class Dropped:
    """The engine was stopped before the slide was finished; no other file of it is there than before."""


Outcome = Done | Failed | Dropped


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
    """The engine is through with a slide."""

    slide_id: str
    outcome: Outcome


Event = Started | Progressed | Ended
Report = Callable[[Progressed], None]
SlideFunction = Callable[[Job, Report], Done | Failed]
"""Does one slide in the process it is called in, and raises nothing: ``work.do_slide``, or a test's own.
Importable by name, since it goes to other processes."""


class Engine(Protocol):
    """Runs jobs, each kept apart from the others; knows nothing of retries, resume or tables.

    Every job submitted gets exactly one ``Ended``, also after ``stop``.
    """

    slots: int
    """Jobs that it wants to hold at once, running or waiting; the batch submits no more."""

    def submit(self, job: Job) -> None:
        """Queue a job and return at once."""

    def poll(self, timeout_s: float) -> Sequence[Event]:
        """Give what has happened since the last call; wait up to ``timeout_s`` for something to happen."""

    def stop(self, *, now: bool) -> None:
        """Drop the jobs that wait. ``now``: end the running ones too, leaving nothing half-written."""

    def close(self) -> None:
        """Free workers and connections; called once, at the end, also after an error."""
