"""Tables and numbers as files: findings.csv, summary.json and slides.csv."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from pydantic import ValidationError

from mitoscan.config import faults
from mitoscan.errors import DataError
from mitoscan.models.card import SUBTYPES
from mitoscan.report.atomic import write_atomically
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


def write_slides_csv(summaries: Sequence[SlideSummary], path: Path) -> None:
    """Write one row a slide; what is not defined for a slide is an empty cell.

    The columns are the fields of ``SlideSummary``, with ``qc_flags`` joined by ``; `` and the subtype counts
    spread over ``n_<subtype>``.

    Raises
    ------
    OutputError
        When the file cannot be written.
    """
    names = [name for name in SlideSummary.model_fields if name != "subtype_counts"]
    at = list(SlideSummary.model_fields).index("subtype_counts")
    names[at:at] = [f"n_{subtype}" for subtype in SUBTYPES]
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(_row(summary) for summary in summaries)
    write_atomically(path, text.getvalue().encode())


def _row(summary: SlideSummary) -> dict[str, object]:
    row = summary.model_dump()
    counts = row.pop("subtype_counts") or {}
    row["qc_flags"] = "; ".join(summary.qc_flags)
    return row | {f"n_{subtype}": counts.get(subtype) for subtype in SUBTYPES}
