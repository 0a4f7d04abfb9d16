"""Tables and numbers as files: findings.csv, summary.json and slides.csv."""

from __future__ import annotations

import csv
import errno
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pandas as pd
from pydantic import ValidationError

from mitoscan.config import faults
from mitoscan.errors import DataError, OutputError
from mitoscan.models.card import SUBTYPES
from mitoscan.report.atomic import REMEDY, write_atomically
from mitoscan.scan.score import SlideSummary


def findings_bytes(findings: pd.DataFrame) -> bytes:
    """Give findings.csv; ``scan.findings.read_findings`` reads the same table back."""
    return findings.to_csv(index=False, lineterminator="\n").encode()


def summary_bytes(summary: SlideSummary) -> bytes:
    """Give summary.json."""
    return (summary.model_dump_json(indent=2) + "\n").encode()


def read_summary(path: Path) -> SlideSummary:
    """Read summary.json back.

    Raises
    ------
    DataError
        When the file is missing or is not such a summary.
    """
    try:
        return SlideSummary.model_validate_json(path.read_bytes())
    except OSError as exc:
        raise DataError(f"not readable: {exc.strerror or exc}", path=path) from exc
    except ValidationError as exc:
        raise DataError(
            f"not a slide summary: {faults(exc)}", path=path, remedy="Run mitoscan again to rewrite it."
        ) from exc


class GrowingTable:
    """A CSV file that grows by whole rows, safe against crashes: what a reader sees is never part of a row.

    Parameters
    ----------
    path
        Replaced when it is there.
    columns
        Its header.
    data
        What it begins with, header and all; None: the header.

    Raises
    ------
    OutputError
        When the file cannot be written.
    """

    def __init__(self, path: Path, columns: Sequence[str], data: bytes | None = None) -> None:
        self.path, self.columns = path, list(columns)
        write_atomically(path, csv_bytes(self.columns, []) if data is None else data)

    def append(self, row: Mapping[str, object]) -> None:
        """Add a row by a single write; one that the system cuts short (disk full) is taken back.

        Raises
        ------
        OutputError
            When the system refuses; the table is as it was then.
        """
        data = csv_bytes(self.columns, [row], header=False)
        try:
            with self.path.open("ab", buffering=0) as file:
                before = file.seek(0, os.SEEK_END)
                try:
                    if file.write(data) != len(data):
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                    os.fsync(file.fileno())
                except OSError:
                    file.truncate(before)
                    raise
        except OSError as exc:
            raise OutputError(
                f"cannot be written: {exc.strerror or exc}", path=self.path, remedy=REMEDY
            ) from exc


def csv_bytes(columns: Sequence[str], rows: Iterable[Mapping[str, object]], *, header: bool = True) -> bytes:
    """Give rows as CSV; what a row has not is an empty cell, what is no column is left out."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, restval="", extrasaction="ignore", lineterminator="\n")
    if header:
        writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode("utf-8", "backslashreplace")


def write_slides_csv(summaries: Sequence[SlideSummary], path: Path) -> None:
    """Write one row a slide; what is not defined for a slide is an empty cell.

    Raises
    ------
    OutputError
        When the file cannot be written.
    """
    rows = [slide_row(summary) for summary in summaries]
    write_atomically(path, csv_bytes(slide_columns(note for s in summaries for note in s.notes), rows))


def slide_columns(notes: Iterable[str] = ()) -> list[str]:
    """Give the columns of slides.csv.

    They are the fields of ``SlideSummary``, with the subtype counts spread over ``n_<subtype>``, and behind
    them the columns carried over from a manifest, ``notes``, each once in the order given.
    """
    names = [name for name in SlideSummary.model_fields if name not in ("subtype_counts", "notes")]
    at = list(SlideSummary.model_fields).index("subtype_counts")
    names[at:at] = [f"n_{subtype}" for subtype in SUBTYPES]
    return [*names, *dict.fromkeys(notes)]


def slide_row(summary: SlideSummary) -> dict[str, object]:
    """Give the row of a slide: ``qc_flags`` joined by ``; ``, subtype counts and notes spread."""
    row: dict[str, object] = summary.model_dump(exclude={"subtype_counts", "notes"})
    row["qc_flags"] = "; ".join(summary.qc_flags)
    counts = summary.subtype_counts or {}
    return row | {f"n_{subtype}": counts.get(subtype) for subtype in SUBTYPES} | summary.notes
