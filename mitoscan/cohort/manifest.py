"""The list of slides with their names, cases and settings: a CSV file, read and checked as a whole."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from mitoscan.cohort.job import Job
from mitoscan.config import ScanConfig
from mitoscan.errors import ConfigError
from mitoscan.report.tables import slide_columns
from mitoscan.report.writer import folder_name

OWN_COLUMNS = ("path", "slide_id", "case_id", "mpp", "roi")
_SHOWN = 20
_MAX_BYTES = 2**28
_REMEDY = "Correct the rows named; see Manifest in docs/cohorts.md."


def jobs_of(paths: Sequence[Path], config: ScanConfig, out: Path) -> list[Job]:
    """Make the jobs of slides named one by one; their names without suffix are the slide ids.

    Raises
    ------
    ConfigError
        When two slides have the same id.
    """
    jobs = [Job(path.stem, path, config, out) for path in paths]
    if clashes := list(_clashes(jobs)):
        raise ConfigError(
            "; ".join(clashes[:_SHOWN]), remedy="Rename one, or give each a slide_id with --manifest."
        )
    return jobs


def read_manifest(path: Path, config: ScanConfig, out: Path) -> list[Job]:
    """Read a manifest.

    Parameters
    ----------
    path
        CSV in UTF-8 with a header. Column ``path`` is needed (relative to the manifest); ``slide_id``,
        ``case_id``, ``mpp`` and ``roi`` may be there; others are carried into the results. Empty cells count
        as absent.
    config
        For all slides; a row's mpp and roi override it.
    out
        Where the results go.

    Raises
    ------
    ConfigError
        With all faults of the file, each with its row as a spreadsheet counts them.
    """
    header, rows = _table(path)
    faults = list(_header_faults(header))
    jobs: list[Job] = []
    numbers: list[int] = []
    if not faults:
        notes = [name for name in header if name not in OWN_COLUMNS]
        for number, row in rows:
            wrong = list(_row_faults(row, header))
            faults += [f"row {number}: {fault}" for fault in wrong]
            if not wrong:
                jobs.append(_job(dict(zip(header, row, strict=True)), notes, path.parent, config, out))
                numbers.append(number)
        faults += _clashes(jobs, numbers)
    if not faults and not jobs:
        faults.append("there is no slide in it")
    if faults:
        more = f"; and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
        raise ConfigError("; ".join(faults[:_SHOWN]) + more, path=path, remedy=_REMEDY)
    return jobs


def _table(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Give the header and the rows that are not empty, with the number of each row's last line."""
    try:
        if path.is_file() and path.stat().st_size > _MAX_BYTES:
            raise ConfigError(f"larger than {_MAX_BYTES >> 20} MB: not a manifest", path=path)
        text = path.read_bytes().decode("utf-8-sig")
        reader = csv.reader(io.StringIO(text, newline=""), strict=True)
        lines = [(reader.line_num, [cell.strip() for cell in row]) for row in reader]
    except OSError as exc:
        raise ConfigError(
            f"cannot be read: {exc.strerror or exc}", path=path, remedy="Check the path."
        ) from exc
    except UnicodeDecodeError as exc:
        raise ConfigError(f"not UTF-8: {exc}", path=path, remedy="Save it as CSV UTF-8.") from exc
    except csv.Error as exc:
        raise ConfigError(f"line {reader.line_num}: not CSV: {exc}", path=path, remedy=_REMEDY) from exc
    filled = [(number, row) for number, row in lines if any(row)]
    if not filled:
        raise ConfigError("the file is empty", path=path, remedy=_REMEDY)
    return filled[0][1], filled[1:]


def _header_faults(header: Sequence[str]) -> Iterable[str]:
    if "path" not in header:
        found = ", ".join(repr(name) for name in header[:_SHOWN])
        yield f"there is no column 'path', only {found:.300}"
    for name in dict.fromkeys(header):
        if not name:
            yield "a column has no name"
        elif header.count(name) > 1:
            yield f"column {name!r} is there twice"
        elif name not in OWN_COLUMNS and name in _taken():
            yield f"column {name!r} is one of mitoscan's own: rename it"


def _taken() -> set[str]:
    return {*slide_columns(), "notes", "subtype_counts"}


def _row_faults(row: Sequence[str], header: Sequence[str]) -> Iterable[str]:
    if len(row) != len(header):
        yield f"{len(row)} cells, the header has {len(header)}"
        return
    cells = dict(zip(header, row, strict=True))
    if not cells["path"]:
        yield "no path"
    for name in ("path", "roi"):
        if "\0" in cells.get(name, ""):
            yield f"{name} has a zero byte in it"
    if (mpp := cells.get("mpp")) and not _is_positive(mpp):
        yield f"mpp {mpp!r:.40} is not a number above 0"


def _is_positive(text: str) -> bool:
    try:
        return 0 < float(text) < math.inf
    except ValueError:
        return False


def _job(row: Mapping[str, str], notes: Iterable[str], base: Path, config: ScanConfig, out: Path) -> Job:
    changes: dict[str, object] = {}
    if row.get("mpp"):
        changes["mpp"] = float(row["mpp"])
    if row.get("roi"):
        changes["roi"] = base / row["roi"]
    slide = base / row["path"]
    return Job(
        slide_id=row.get("slide_id") or slide.stem,
        path=slide,
        config=config.model_copy(update=changes) if changes else config,
        out=out,
        case_id=row.get("case_id", ""),
        notes=tuple((name, row[name]) for name in notes),
    )


def _clashes(jobs: Sequence[Job], rows: Sequence[int] | None = None) -> Iterable[str]:
    """Name the slides that would share a folder; the same on file systems that ignore case."""
    seen: dict[str, int] = {}
    for number, job in enumerate(jobs):
        first = seen.setdefault(folder_name(job.slide_id).casefold(), number)
        if first != number:
            where = f"rows {rows[first]} and {rows[number]}: " if rows else ""
            other = jobs[first]
            names = repr(job.slide_id)
            if other.slide_id != job.slide_id:
                names = f"{other.slide_id!r} and {job.slide_id!r}, which some systems take for the same"
            yield f"{where}two slides have the id {names}: {other.path} and {job.path}"
