"""The slides of a study: slides.csv and failures.csv read back, row by row, and whether they go together."""

from __future__ import annotations

import math
import ntpath
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mitoscan.errors import DataError
from mitoscan.scan.score import Estimate
from mitoscan.study.tables import Table, read_table

COLUMNS = (
    "slide_id",
    "tissue_mm2",
    "mf_count",
    "amf_count",
    "nmf_count",
    "hotspot_count",
    "hotspot_mm2",
    "detector",
    "detector_threshold",
    "detector_sha256",
    "classifier",
    "classifier_threshold",
    "classifier_sha256",
    "mitoscan_version",
)
"""What a study needs of slides.csv."""

_MOST = 10**9
"""Counts above are faults of the file."""


@dataclass(frozen=True)
class Model:
    """Which model, at which operating point."""

    name: str
    sha256: str
    """First 12 digits."""
    threshold: float

    def __str__(self) -> str:
        """Name, checksum and threshold, as shown."""
        return f"{self.name} {self.sha256} at {self.threshold:g}"


@dataclass(frozen=True)
class SlideRow:
    """What a study uses of a row of slides.csv."""

    slide_id: str
    case_id: str
    """Empty when not known."""
    tissue_mm2: float
    mf: int
    amf: int
    hotspot_count: int
    """0 without mitotic figures."""
    hotspot_mm2: float | None
    detector: Model
    classifier: Model
    version: str
    qc_flags: tuple[str, ...]
    corrected: Estimate | None
    """The slide's own corrected AMF rate, where it is stated."""
    reviewed: bool = False
    """A reviewer gave labels."""


@dataclass(frozen=True)
class Unusable:
    """A row that cannot be used, and why."""

    slide_id: str
    reason: str
    detail: str = ""
    case_id: str = ""


def read_slides(path: Path) -> tuple[list[SlideRow], list[Unusable]]:
    """Read slides.csv; rows that cannot be used come back with the reason.

    Unusable are rows without an id, without tissue, with numbers that are none or contradict each other, and
    rows of one id that differ. Rows that are alike to the letter are taken once.

    Raises
    ------
    DataError
        When the file is missing or is not a slides.csv.
    """
    if not path.is_file():
        raise DataError("no such file", path=path, remedy="Give the output folder of `mitoscan run`.")
    table = read_table(path, ("slide_id",))
    table.require(COLUMNS, "Give the output folder of `mitoscan run`.")
    rows, unusable = [], []
    for cells, doubt in _once(table):
        try:
            if doubt:
                raise _UnusableError(*doubt)
            rows.append(_slide(table, cells))
        except _UnusableError as fault:
            reason, detail = fault.args
            unusable.append(Unusable(cells["slide_id"], reason, detail, cells.get("case_id", "")))
    return rows, unusable


def read_failures(path: Path) -> list[Unusable]:
    """Read failures.csv of a batch; no file means no failures. The id is the file's name without suffix.

    Raises
    ------
    DataError
        When the file is not such a table.
    """
    if not path.is_file():
        return []
    table = read_table(path, ("path",))
    return [
        Unusable(
            row.get("slide_id") or Path(ntpath.basename(row["path"])).stem,
            "failed in the scan",
            ": ".join(part for part in (row.get("error", ""), row.get("message", "")) if part),
            row.get("case_id", ""),
        )
        for row in table.rows
    ]


class _UnusableError(Exception):
    """Reason and detail."""


def _once(table: Table) -> Iterator[tuple[dict[str, str], tuple[str, str] | None]]:
    """Give each row with what is wrong about its id; copies after the first are named, too."""
    variants: dict[str, set[tuple[str, ...]]] = {}
    for row in table.rows:
        variants.setdefault(row["slide_id"], set()).add(tuple(row.values()))
    seen: set[str] = set()
    for row in table.rows:
        name = row["slide_id"]
        if not name:
            yield row, ("no slide id", "")
        elif len(variants[name]) > 1:
            yield row, ("slide id occurs twice with different numbers", "")
        elif name in seen:
            yield row, ("the same row again", "counted once")
        else:
            seen.add(name)
            yield row, None


def _slide(table: Table, cells: dict[str, str]) -> SlideRow:
    mf, amf, nmf = (_count(table, cells, name) for name in ("mf_count", "amf_count", "nmf_count"))
    if amf + nmf != mf:
        raise _UnusableError("numbers contradict each other", f"{amf} AMF + {nmf} NMF are not {mf} MF")
    tissue = _number(table, cells, "tissue_mm2")
    if tissue <= 0:
        raise _UnusableError("no tissue", f"tissue_mm2 is {tissue:g}")
    return SlideRow(
        slide_id=cells["slide_id"],
        case_id=cells.get("case_id", ""),
        tissue_mm2=tissue,
        mf=mf,
        amf=amf,
        hotspot_count=_count(table, cells, "hotspot_count") if cells["hotspot_count"] else 0,
        hotspot_mm2=_number(table, cells, "hotspot_mm2") if cells["hotspot_mm2"] else None,
        detector=_model(table, cells, "detector"),
        classifier=_model(table, cells, "classifier"),
        version=cells["mitoscan_version"],
        qc_flags=tuple(flag for flag in cells.get("qc_flags", "").split("; ") if flag),
        corrected=_corrected(table, cells),
        reviewed=(table.number(cells.get("reviewed_count", "")) or 0) > 0,
    )


def _number(table: Table, cells: dict[str, str], name: str) -> float:
    value = table.number(cells[name])
    if value is None or abs(value) > _MOST:
        raise _UnusableError("a number is missing or is none", f"{name} is {cells[name]!r:.40}")
    return value


def _count(table: Table, cells: dict[str, str], name: str) -> int:
    value = _number(table, cells, name)
    if value < 0 or value != math.floor(value):
        raise _UnusableError("a number is missing or is none", f"{name} is {cells[name]!r:.40}, not a count")
    return int(value)


def _model(table: Table, cells: dict[str, str], task: str) -> Model:
    threshold = _number(table, cells, f"{task}_threshold")
    return Model(cells[task], cells[f"{task}_sha256"], threshold)


def _corrected(table: Table, cells: dict[str, str]) -> Estimate | None:
    found = [table.number(cells.get(f"amf_rate_corrected{end}", "")) for end in ("", "_low", "_high")]
    value, low, high = found
    return None if value is None or low is None or high is None else Estimate(value, low, high)


def check_alike(slides: Sequence[SlideRow]) -> list[str]:
    """Refuse slides of different detectors; give a warning for everything else that differs between slides.

    Raises
    ------
    DataError
        When the mitotic figures come from different detectors: their numbers cannot be compared.
    """
    detectors = Counter(f"{slide.detector.name} {slide.detector.sha256}" for slide in slides)
    if len(detectors) > 1:
        raise DataError(
            f"the slides were scanned with different detectors: {_counted(detectors)}",
            remedy="Scan all slides with one detector, or make a study of each part.",
        )
    warnings = []
    for what, consequence, key in _DIFFERENCES:
        found = Counter(key(slide) for slide in slides)
        found.pop("", None)
        if len(found) > 1:
            warnings.append(f"{what} differ between slides ({_counted(found)}): {consequence}")
    return warnings


def _window(slide: SlideRow) -> str:
    return "" if slide.hotspot_mm2 is None else f"{slide.hotspot_mm2:.3g} mm²"


_DIFFERENCES: tuple[tuple[str, str, Callable[[SlideRow], str]], ...] = (
    (
        "Thresholds of the detector",
        "counts and densities of these slides are not strictly comparable.",
        lambda slide: f"{slide.detector.threshold:g}",
    ),
    (
        "Classifiers",
        "AMF counts and raw rates carry different errors. A case whose slides differ has no corrected rate.",
        lambda slide: f"{slide.classifier.name} {slide.classifier.sha256}",
    ),
    (
        "Thresholds of the classifier",
        "AMF counts and raw rates carry different errors.",
        lambda slide: f"{slide.classifier.threshold:g}",
    ),
    ("Versions of mitoscan", "look into the changelog for what changed.", lambda slide: slide.version),
    ("Hot-spot areas", "hot-spot counts of these slides are not strictly comparable.", _window),
)


def _counted(found: Counter[str]) -> str:
    shown = [f"{name}: {n}" for name, n in found.most_common(6)]
    return ", ".join(shown) + (", …" if len(found) > 6 else "")
