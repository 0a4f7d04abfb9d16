"""The page of many slides: what needs a look first, how the slides are distributed, and a table of them all.

Made from the files in the output folder alone, so it can be written at any time: after each run, after a
rescoring, and when shards of a cohort come together.
"""

from __future__ import annotations

import csv
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from urllib.parse import quote

from mitoscan.errors import DataError
from mitoscan.report import words
from mitoscan.report.atomic import write_atomically
from mitoscan.report.html import render
from mitoscan.report.page import PAGE_NAME
from mitoscan.report.tables import read_summary
from mitoscan.scan.score import SlideSummary

log = logging.getLogger(__name__)

_RECORD_NAME = "record.json"
_WIDTH, _HEIGHT = 120.0, 16.0
"""Of the small graphics in the table, px."""
_BINS = 20


@dataclass(frozen=True)
class Whisker:
    """A value with its interval in a cell, px from the left."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Row:
    """A slide in the table."""

    summary: SlideSummary
    link: str
    """Relative URL of its page; empty when there is none."""
    flags: tuple[str, ...]
    """In words."""
    density: Whisker
    rate: Whisker | None


@dataclass(frozen=True)
class Bar:
    """A bar of a histogram, in px of its picture, and what it says."""

    x: float
    height: float
    title: str


@dataclass(frozen=True)
class Histogram:
    """The distribution of a number over the slides."""

    title: str
    bars: tuple[Bar, ...]
    low: str
    high: str
    note: str


def write_cohort_page(out: Path) -> None:
    """Write ``OUT/report.html`` from the finished slides in ``out`` and its failures.csv.

    A slide whose summary cannot be read is listed among the failures instead of stopping the page.

    Raises
    ------
    OutputError
        When the file cannot be written.
    """
    slides, failures = [], _read_failures(out / "failures.csv")
    for record in sorted(out.glob(f"*/{_RECORD_NAME}")):
        folder = record.parent
        try:
            summary = read_summary(folder / "summary.json")
        except DataError as error:
            failures.append({"path": folder.name, "message": error.message, "remedy": error.remedy})
            continue
        has_page = (folder / PAGE_NAME).is_file()
        slides.append((summary, f"./{quote(folder.name)}/{PAGE_NAME}" if has_page else ""))
    write_atomically(out / PAGE_NAME, cohort_page_bytes(slides, failures))


def cohort_page_bytes(
    slides: Sequence[tuple[SlideSummary, str]], failures: Sequence[Mapping[str, str]] = ()
) -> bytes:
    """Give the page.

    Parameters
    ----------
    slides
        Summaries, each with the URL of the slide's page relative to this one; empty: it has none.
    failures
        Rows of failures.csv: ``path``, ``message`` and ``remedy`` are shown.
    """
    summaries = [summary for summary, _ in slides]
    rows = _rows(slides)
    context = {
        "title": "Slides",
        "rows": rows,
        "failures": failures,
        "look": sorted((row for row in rows if row.flags), key=lambda row: -len(row.flags)),
        "lead": _lead(summaries, failures),
        "histograms": _histograms(summaries),
        "width": _WIDTH,
        "height": _HEIGHT,
        "words": words,
        "has_cases": any(summary.case_id for summary in summaries),
        "models": sorted(
            {f"{s.detector} {s.detector_sha256}, {s.classifier} {s.classifier_sha256}" for s in summaries}
        ),
        "versions": sorted({s.mitoscan_version for s in summaries}),
    }
    return render(
        "cohort.html.j2",
        scripts=("js/cohort.js",),
        styles=("page.css", "cohort.css"),
        data={},
        context=context,
    )


def _read_failures(path: Path) -> list[dict[str, str]]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return [
                {k: v or "" for k, v in row.items() if isinstance(k, str)} for row in csv.DictReader(file)
            ]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, csv.Error) as exc:
        log.warning("%s cannot be read: %s", path, exc)
        return [{"path": path.name, "message": f"cannot be read: {exc}"}]


def _rows(slides: Sequence[tuple[SlideSummary, str]]) -> list[Row]:
    """Scale the graphics: densities to the highest value of all, so that no single interval rules them."""
    top = max((s.mf_per_mm2 for s, _ in slides), default=0.0) * 1.25 or 1.0
    return [
        Row(
            summary=summary,
            link=link,
            flags=tuple(words.flag_in_words(flag) for flag in summary.qc_flags),
            density=_whisker(summary.mf_per_mm2, summary.mf_per_mm2_low, summary.mf_per_mm2_high, top),
            rate=None
            if summary.amf_rate is None
            else _whisker(summary.amf_rate, summary.amf_rate_low, summary.amf_rate_high, 1.0),
        )
        for summary, link in slides
    ]


def _whisker(value: float, low: float | None, high: float | None, top: float) -> Whisker:
    def px(number: float) -> float:
        return round(min(number / top, 1.0) * (_WIDTH - 6) + 3, 1)

    return Whisker(px(value), px(low or 0.0), px(high or 0.0))


def _lead(summaries: Sequence[SlideSummary], failures: Sequence[object]) -> str:
    """Say in a sentence or two what there is."""
    n = len(summaries)
    figures = sum(s.mf_count for s in summaries)
    said = f"{_slides(n)} done, {len(failures):,} failed; {figures:,} mitotic figures in "
    said += f"{words.number(sum(s.tissue_mm2 for s in summaries))} mm² scanned."
    rates = [s.amf_rate for s in summaries if s.amf_rate is not None]
    if rates:
        said += f" The AMF rate of the median slide is {words.percent(median(rates))}."
    return said


def _slides(count: int) -> str:
    return f"{count:,} slide{'' if count == 1 else 's'}"


def _histograms(summaries: Sequence[SlideSummary]) -> list[Histogram]:
    rates = [s.amf_rate for s in summaries if s.amf_rate is not None]
    without = len(summaries) - len(rates)
    note = f"{without} without figures, so without a rate" if without else ""
    densities = [s.mf_per_mm2 for s in summaries]
    top = max(densities, default=0.0) or 1.0
    return [
        _histogram("AMF rate, as called", [100 * rate for rate in rates], 100.0, "%", note),
        _histogram("Mitotic figures per mm²", densities, top, "per mm²", ""),
    ]


def _histogram(title: str, values: Sequence[float], top: float, unit: str, note: str) -> Histogram:
    counts = [0] * _BINS
    for value in values:
        counts[min(_BINS - 1, int(value / top * _BINS))] += 1
    highest = max(counts) or 1
    step = top / _BINS
    bars = tuple(
        Bar(
            i * 20.0,
            round(count / highest * 100, 2),
            f"{words.span(i * step, (i + 1) * step)} {unit}: {_slides(count)}",
        )
        for i, count in enumerate(counts)
    )
    said = _slides(len(values))
    if values:
        said += f", median {words.number(median(values))} {unit}"
    return Histogram(title, bars, "0", f"{words.number(top)} {unit}", "; ".join(filter(None, (said, note))))
