"""What a run shows: a progress bar on a terminal, plain log lines elsewhere, and the closing table."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.progress import BarColumn, TaskID, TextColumn
from rich.progress import Progress as Bars
from rich.table import Table
from rich.text import Text

from mitoscan.cohort.job import Done, Dropped, Failed, Progressed

if TYPE_CHECKING:
    from mitoscan.cohort.batch import Batch
    from mitoscan.scan.score import SlideSummary

log = logging.getLogger("mitoscan")

LINE_EVERY_S = 10.0
SHOWN_SLIDES = 20
"""Rows of the closing table: a screenful."""
_SHOWN_RUNNING = 8


class Display:
    """Shows a batch: a bar for all and one for each running slide; plain lines where there is no terminal.

    A ``cohort.batch.Watcher``; use as a context manager around the batch.
    """

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._bars: Bars | None = None
        self._overall: TaskID | None = None
        self._running: dict[str, _Running] = {}
        self._pace = _Pace()
        self._selected = self._resumed = self._done = self._failed = 0

    def __enter__(self) -> Display:
        if self._console.is_terminal:
            self._bars = Bars(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                TextColumn("{task.fields[note]}", markup=False),
                console=self._console,
            )
            self._bars.start()
            _log_to(sys.stderr)  # which the bars have replaced, so that lines go above them
        return self

    def __exit__(self, *_: object) -> None:
        if self._bars is not None:
            self._bars.stop()
            _log_to(sys.stderr)

    def begin(self, selected: int, resumed: int) -> None:
        """See ``cohort.batch.Watcher``."""
        if selected != self._selected:
            log.info("%d slide%s, %d finished before", selected, "" if selected == 1 else "s", resumed)
        self._selected, self._resumed = selected, resumed
        if self._bars is not None and self._overall is None and selected > resumed:
            self._overall = self._bars.add_task("", total=selected, note="")
        self._show()

    def started(self, slide_id: str) -> None:
        """See ``cohort.batch.Watcher``."""
        task = None
        if self._bars is not None and len(self._running) < _SHOWN_RUNNING:
            task = self._bars.add_task(f"  {slide_id:.40}", total=None, note="starting")
        self._running[slide_id] = _Running(task)

    def progressed(self, event: Progressed) -> None:
        """See ``cohort.batch.Watcher``."""
        running = self._running.get(event.slide_id)
        if running is None:
            return
        new = running.take(event)
        if self._bars is None:
            self._line(event, running, new)
        elif running.task is not None:
            note = " ".join(part for part in (event.stage, running.speed()) if part)
            self._bars.update(running.task, total=event.total or None, completed=event.done, note=note)
        self._show()

    def ended(self, slide_id: str, outcome: Done | Failed | Dropped, *, again: bool) -> None:
        """See ``cohort.batch.Watcher``."""
        running = self._running.pop(slide_id, None)
        if self._bars is not None and running is not None and running.task is not None:
            self._bars.remove_task(running.task)
        if isinstance(outcome, Done):
            self._done += 1
            self._pace.finish(outcome.summary.tissue_mm2)
            self._say_done(outcome.summary)
        elif isinstance(outcome, Failed):
            self._failed += not again
            self._say_failed(slide_id, outcome, again=again)
        self._show()

    def _say_done(self, summary: SlideSummary) -> None:
        if self._bars is None and self._selected > 1:
            text = f"{summary.mf_count} MF, {summary.tissue_mm2:.2f} mm², {summary.seconds:.0f} s"
            log.info("[%s] %s: %s", self._counts(), summary.slide_id, text)

    def _say_failed(self, slide_id: str, failed: Failed, *, again: bool) -> None:
        if failed.traceback:
            log.debug("%s", failed.traceback)
        said = f"{slide_id}: {failed.message.rstrip('.')}. " + ("Trying again." if again else failed.remedy)
        log.log(logging.WARNING if again else logging.ERROR, "%s", " ".join(said.split()))

    def _counts(self) -> str:
        parts = [f"{self._resumed + self._done + self._failed}/{self._selected}"]
        if self._failed:
            parts.append(f"{self._failed} failed")
        pending = self._selected - self._resumed - self._done - self._failed - len(self._running)
        if left := self._pace.left(self._running.values(), pending):
            parts.append(f"{left} left")
        return ", ".join(parts)

    def _line(self, event: Progressed, running: _Running, new: bool) -> None:
        if new and event.total:
            unit = f"tiles, {event.mm2:.2f} mm²" if event.mm2 else "crops"
            log.info("%s: %s %d %s", event.slide_id, event.stage, event.total, unit)
        elif not new and running.due():
            parts = [f"{event.slide_id}: {event.stage} {event.done}/{event.total}", running.speed()]
            log.info("%s [%s]", " ".join(part for part in parts if part), self._counts())

    def _show(self) -> None:
        if self._bars is None or self._overall is None:
            return
        partly = sum(running.share for running in self._running.values())
        self._bars.update(
            self._overall,
            completed=self._resumed + self._done + self._failed + partly,
            description=f"{self._selected} slide{'' if self._selected == 1 else 's'}",
            note=self._counts(),
        )


class _Running:
    """What is known of a running slide."""

    def __init__(self, task: TaskID | None) -> None:
        self.task = task
        self.mm2 = self.share = 0.0
        self._stage, self._since, self._told, self._mm2_now = "", 0.0, time.monotonic(), 0.0

    def take(self, event: Progressed) -> bool:
        """Note progress; whether a stage begins."""
        new = event.stage != self._stage
        if new:
            self._stage, self._since = event.stage, time.monotonic()
        self.mm2 = event.mm2 or self.mm2
        if event.mm2 and event.total:
            self.share, self._mm2_now = event.done / event.total, event.mm2 * event.done / event.total
        return new

    def due(self) -> bool:
        """Whether it is time for another line."""
        if time.monotonic() - self._told < LINE_EVERY_S:
            return False
        self._told = time.monotonic()
        return True

    def speed(self) -> str:
        """mm² per second of the stage."""
        seconds = time.monotonic() - self._since
        return f"{self._mm2_now / seconds:.2f} mm²/s" if self._mm2_now and seconds > 0 else ""


class _Pace:
    """Time left, from the mm² done so far and those still to do."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._mm2 = 0.0
        self._slides = 0

    def finish(self, mm2: float) -> None:
        """Count a finished slide."""
        self._mm2 += mm2
        self._slides += 1

    def left(self, running: Iterable[_Running], pending: int) -> str:
        """Say how long it will last; slides not yet opened are taken to be as large as the others."""
        known = [slide for slide in running if slide.mm2]
        done = self._mm2 + sum(slide.mm2 * slide.share for slide in known)
        seen = self._slides + len(known)
        if not done or not seen:
            return ""
        mean = (self._mm2 + sum(slide.mm2 for slide in known)) / seen
        to_do = sum(slide.mm2 * (1 - slide.share) for slide in known) + max(0, pending) * mean
        seconds = int((time.monotonic() - self._began) * to_do / done)
        hours, minutes = seconds // 3600, seconds // 60 % 60
        return f"{hours}:{minutes:02d}:{seconds % 60:02d}" if hours else f"{minutes}:{seconds % 60:02d}"


def _log_to(stream: TextIO) -> None:
    for handler in log.handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setStream(stream)


def set_up_logging(verbose: bool) -> None:
    """Send mitoscan's log to standard error, one plain line a message."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S"))
    log.handlers[:] = [handler]
    log.setLevel(logging.DEBUG if verbose else logging.INFO)
    log.propagate = False


def closing_table(summaries: Sequence[SlideSummary], more: int = 0) -> Group:
    """Give the table that ends a run: a row a slide, intervals under the values, then the QC flags.

    ``more``: finished slides that it does not show.
    """
    table = Table(
        title="Mitotic figures (MF), atypical (AMF); 95 % intervals below the values",
        title_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    table.add_column("slide", overflow="fold")
    for name in ("tissue", "MF", "MF/mm²", "AMF", "AMF rate", "corrected", "hot spot", "s"):
        table.add_column(name, justify="right", no_wrap=True)
    for s in summaries:
        table.add_row(
            Text(s.slide_id),
            f"{s.tissue_mm2:.2f}\nmm²",
            str(s.mf_count),
            f"{s.mf_per_mm2:.2f}\n{s.mf_per_mm2_low:.2f}–{s.mf_per_mm2_high:.2f}",
            str(s.amf_count),
            _percent(s.amf_rate, s.amf_rate_low, s.amf_rate_high),
            _percent(s.amf_rate_corrected, s.amf_rate_corrected_low, s.amf_rate_corrected_high),
            "–" if s.hotspot_count is None else f"{s.hotspot_count} MF\n{s.hotspot_mm2:.2f} mm²",
            f"{s.seconds:.0f}",
        )
    notes = [f"{s.slide_id}: {flag}" for s in summaries for flag in s.qc_flags]
    lines = [Text(f"⚠ {note}", "yellow") for note in notes]
    if more:
        lines.append(Text(f"… and {more} more: see slides.csv"))
    return Group(table, *lines)


def closing_lines(batch: Batch, out: Path, home: Path) -> list[str]:
    """Say in words how a batch ended and what to do next."""
    lines = []
    if batch.done or batch.resumed:
        lines.append(f"Results: {out}")
    if batch.resumed:
        again = " (--overwrite does them again)" if not batch.done and not batch.failures else ""
        lines.append(f"{batch.resumed} of {batch.selected} slides were finished before{again}.")
    if batch.failures:
        lines.append(f"{len(batch.failures)} of {batch.selected} slides failed: {home / 'failures.csv'}")
    if batch.left:
        lines.append(
            f"{batch.left} of {batch.selected} slides are left: run the same command again to go on."
        )
    return lines


def _percent(value: float | None, low: float | None, high: float | None) -> str:
    if value is None or low is None or high is None:
        return "–"
    return f"{value:.1%}\n{low:.0%}–{high:.0%}"
