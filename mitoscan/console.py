"""What a run shows: a progress bar on a terminal, plain log lines elsewhere, and the closing table."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from mitoscan.scan.progress import Progress
    from mitoscan.scan.score import SlideSummary

log = logging.getLogger("mitoscan")

LINE_EVERY_S = 10.0


class Display:
    """Shows the progress of slides; use as a context manager around the batch."""

    def __init__(self, slides: int) -> None:
        self._slides = slides
        self._console = Console(stderr=True)
        self._bars: Bars | None = None

    def __enter__(self) -> Display:
        if self._console.is_terminal:
            self._bars = Bars(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[speed]}"),
                TimeRemainingColumn(),
                console=self._console,
            )
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bars is not None:
            self._bars.stop()

    def progress_of(self, path: Path, number: int) -> Progress:
        """Give the display of one slide."""
        title = f"{path.name}" if self._slides == 1 else f"[{number + 1}/{self._slides}] {path.name}"
        if self._bars is None:
            return _Lines(title)
        return _Bar(self._bars, title)


class _Rate:
    """mm² per second of the current stage."""

    stage, total, mm2, done, began = "", 1, 0.0, 0, 0.0

    def start(self, stage: str, total: int, mm2: float) -> None:
        self.stage, self.total, self.mm2, self.done = stage, total, mm2, 0
        self.began = time.monotonic()

    def advance(self, steps: int) -> None:
        self.done += steps

    def speed(self) -> str:
        seconds = time.monotonic() - self.began
        if not (self.mm2 and self.done and seconds):
            return ""
        return f"{self.mm2 * self.done / self.total / seconds:.2f} mm²/s"

    def left(self) -> str:
        seconds = time.monotonic() - self.began
        left = seconds * (self.total - self.done) / max(self.done, 1)
        return f"{int(left // 60)}:{int(left % 60):02d} left"


class _Bar(_Rate):
    def __init__(self, bars: Bars, title: str) -> None:
        self._bars, self._title = bars, title
        self._task: TaskID | None = None

    def start(self, stage: str, total: int, mm2: float) -> None:
        super().start(stage, total, mm2)
        if self._task is not None:
            self._bars.remove_task(self._task)
        self._task = self._bars.add_task(f"{self._title} · {stage}", total=total, speed="")

    def advance(self, steps: int) -> None:
        super().advance(steps)
        if self._task is not None:
            self._bars.update(self._task, advance=steps, speed=self.speed())


class _Lines(_Rate):
    def __init__(self, title: str) -> None:
        self._title, self._last = title, 0.0

    def start(self, stage: str, total: int, mm2: float) -> None:
        super().start(stage, total, mm2)
        unit = "tiles" if mm2 else "crops"
        log.info("%s: %s %d %s%s", self._title, stage, total, unit, f", {mm2:.2f} mm²" if mm2 else "")
        self._last = time.monotonic()

    def advance(self, steps: int) -> None:
        super().advance(steps)
        if self.done == self.total or time.monotonic() - self._last >= LINE_EVERY_S:
            self._last = time.monotonic()
            parts = [f"{self._title}: {self.stage} {self.done}/{self.total}", self.speed(), self.left()]
            log.info(" ".join(part for part in parts if part))


def set_up_logging(verbose: bool) -> None:
    """Send mitoscan's log to standard error, one plain line a message."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S"))
    log.handlers[:] = [handler]
    log.setLevel(logging.DEBUG if verbose else logging.INFO)
    log.propagate = False


def closing_table(summaries: Sequence[SlideSummary]) -> Group:
    """Give the table that ends a run: a row a slide, intervals under the values, then the QC flags."""
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
            s.slide_id,
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
    return Group(table, *(Text(f"⚠ {note}", "yellow") for note in notes))


def _percent(value: float | None, low: float | None, high: float | None) -> str:
    if value is None or low is None or high is None:
        return "–"
    return f"{value:.1%}\n{low:.0%}–{high:.0%}"
