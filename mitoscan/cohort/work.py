"""One slide from opening to its files: the function that every engine runs in its workers."""

from __future__ import annotations

import errno
import time
import traceback
from collections.abc import Callable
from dataclasses import replace

from mitoscan.cohort.job import Done, Failed, Job, Progressed, Report
from mitoscan.cohort.resume import described, inputs_of, stat_of
from mitoscan.config import ScanConfig
from mitoscan.errors import MitoscanError, OutputError, SlideReadError
from mitoscan.report.writer import ensure_writable, remove_leftovers, write_slide
from mitoscan.scan.candidates import file_of
from mitoscan.scan.pipeline import Models, load_models, scan_slide
from mitoscan.scan.result import SlideResult
from mitoscan.scan.score import SlideSummary
from mitoscan.slide.reader import open_slide

REPORT_EVERY_S = 0.2
UNFORESEEN_REMEDY = "Please report this."

_NO_ROOM = frozenset(
    code for name in ("ENOSPC", "EDQUOT", "EROFS") if (code := getattr(errno, name, None)) is not None
)
"""What the system says when no other slide can be written either."""
_STAGES = {"finding tissue": "tissue", "detecting": "detect", "classifying": "classify"}

_kept: dict[tuple[object, ...], Models] = {}
"""The models of this process; one pair, since a batch uses no other."""


def do_slide(job: Job, report: Report, load: Callable[[ScanConfig], Models] = load_models) -> Done | Failed:
    """Scan one slide and write its files; raises nothing.

    Parameters
    ----------
    job
        The slide, how to scan it, and where its folder goes.
    report
        Told how far the scan is, a few times a second at most.
    load
        Loads the models that the job's config names. They are loaded when the first slide that opens needs
        them, and kept for the next.
    """
    progress = _Reporter(job.slide_id, report)
    try:
        return Done(_scan_and_write(job, progress, load))
    except MitoscanError as error:
        return _foreseen(error, progress.stage)
    except Exception as error:  # a fault of ours or of a library must not cost the other slides
        return Failed(
            progress.stage,
            type(error).__name__,
            str(error) or type(error).__name__,
            "Use a machine with more memory, or fewer --workers." if _memory(error) else UNFORESEEN_REMEDY,
            1,
            transient=_memory(error) or isinstance(error, OSError),
            traceback=traceback.format_exc(),
        )


def _scan_and_write(job: Job, progress: _Reporter, load: Callable[[ScanConfig], Models]) -> SlideSummary:
    progress.stage = "write"
    folder = ensure_writable(job.out, job.slide_id, overwrite=True)
    remove_leftovers(folder)
    progress.stage = "open"
    models = _models(job, progress, load)
    before = stat_of(job.path)
    inputs = inputs_of(job, models.detector.card, models.classifier.card)
    result = _as_named(scan_slide(job.path, _own(job), models=models, progress=progress), job)
    if stat_of(job.path) != before:
        raise SlideReadError(
            "the file changed while it was read", path=job.path, remedy="Run again when it is copied."
        )
    progress.stage = "write"
    write_slide(result, job.out, overwrite=True, inputs=inputs)
    return result.summary


def _models(job: Job, progress: _Reporter, load: Callable[[ScanConfig], Models]) -> Models:
    """Give the kept models; a slide that does not even open is found out before they are loaded."""
    config = job.config
    key = (load, config.model_copy(update={"mpp": None, "roi": None}))
    if key not in _kept:
        open_slide(job.path, mpp=config.mpp).close()
        progress.stage = "models"
        _kept.clear()
        _kept[key] = load(config)
        progress.stage = "open"
    return _kept[key]


def _own(job: Job) -> ScanConfig:
    """Give the job's config with the file of its candidates: folders have it by the batch's slide id."""
    config = job.config
    if config.candidates is None:
        return config
    return config.model_copy(update={"candidates": file_of(config.candidates, job.slide_id)})


def _as_named(result: SlideResult, job: Job) -> SlideResult:
    """Put the batch's name for the slide, its case and notes into the result."""
    summary = result.summary.model_copy(update=described(job))
    return replace(result, info=replace(result.info, slide_id=job.slide_id), summary=summary)


def _foreseen(error: MitoscanError, stage: str) -> Failed:
    cause = error.__cause__
    full = isinstance(error, OutputError) and isinstance(cause, OSError) and cause.errno in _NO_ROOM
    fatal = full or stage == "models"
    where = "" if error.path is None else f"{error.path}: "
    return Failed(
        stage,
        type(error).__name__,
        where + error.message,
        error.remedy,
        error.exit_code,
        transient=isinstance(error, SlideReadError | OutputError) and not fatal,
        fatal=fatal,
    )


def _memory(error: Exception) -> bool:
    """Whether memory ran out: Python's own error, or torch's of the same sense."""
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"


class _Reporter:
    """Passes a scan's progress on, not more often than anyone can read."""

    def __init__(self, slide_id: str, report: Report) -> None:
        self.stage = "open"
        self._slide_id, self._report = slide_id, report
        self._name, self._done, self._total, self._mm2, self._last = "", 0, 0, 0.0, 0.0

    def start(self, stage: str, total: int, mm2: float) -> None:
        """See ``scan.progress``."""
        self.stage = _STAGES.get(stage, stage)
        self._name, self._done, self._total, self._mm2 = stage, 0, total, mm2
        self._tell()

    def advance(self, steps: int) -> None:
        """See ``scan.progress``."""
        self._done += steps
        if self._done >= self._total or time.monotonic() - self._last >= REPORT_EVERY_S:
            self._tell()

    def _tell(self) -> None:
        self._last = time.monotonic()
        self._report(Progressed(self._slide_id, self._name, self._done, self._total, self._mm2))
