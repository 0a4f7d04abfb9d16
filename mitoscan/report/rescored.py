"""Write a result that was scored again, with a record that names the one it came from.

In place, the record it came from stays beside the new one as ``record-<its sha256>.json``: the chain can be
followed and checked, and a rescoring that was cut short loses nothing.
"""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mitoscan import __version__
from mitoscan.config import ScanConfig, build
from mitoscan.errors import DataError
from mitoscan.report.atomic import write_atomically
from mitoscan.report.pictures import PICTURES_NAME
from mitoscan.report.review import Review, read_review
from mitoscan.report.stored import SUPERSEDED, Stored, first_stage_of
from mitoscan.report.writer import RECORD_NAME, ensure_writable, folder_name, write_slide
from mitoscan.scan.rescore import Rescoring, rescore
from mitoscan.scan.result import SlideResult
from mitoscan.scan.review import Agreement
from mitoscan.scan.score import printable


@dataclass(frozen=True)
class Wanted:
    """What is to be other than in the stored result; None: as it is."""

    threshold: float | None = None
    amf_threshold: float | None = None
    hotspot_mm2: float | None = None
    review: Path | None = None
    complete: bool = False
    """The review covers every figure; see ``report.review``."""
    forget_review: bool = False


@dataclass(frozen=True)
class Rescored:
    """A result scored again, not written yet."""

    stored: Stored
    result: SlideResult
    agreement: Agreement | None
    notes: tuple[str, ...]
    """What of the review was passed over."""
    record: dict[str, Any]


def rescore_stored(stored: Stored, wanted: Wanted) -> Rescored:
    """Score a stored result again.

    Raises
    ------
    ConfigError
        For a threshold that is absurd or below what the findings hold.
    DataError
        For a review that cannot be read or is of another slide.
    """
    result = stored.result
    values = {
        name: value
        for name in ("threshold", "amf_threshold", "hotspot_mm2")
        if (value := getattr(wanted, name)) is not None
    }
    config = build(ScanConfig, result.config.model_dump() | values)
    review = None
    if wanted.review is not None:
        review = read_review(wanted.review, result, complete=wanted.complete)
    reviews = [] if wanted.forget_review else list(stored.record.get("reviews", []))
    if review is not None:
        reviews.append(_review_entry(review, wanted))
    how = Rescoring(
        config,
        review.judgements if review else (),
        wanted.forget_review,
        comparable=wanted.complete or all(entry["comparable"] for entry in reviews),
    )
    changed, agreed = rescore(result, how, stored.scanned_at)
    record = _record(stored, changed, reviews, agreed)
    return Rescored(stored, changed, agreed, review.notes if review else (), record)


def write_rescored(rescored: Rescored, out: Path | None = None, *, overwrite: bool = False) -> Path:
    """Write a rescored result, in its place or into another output folder; give the slide's folder.

    Raises
    ------
    OutputError
        When ``out`` holds a result of this slide already and ``overwrite`` is off, or cannot be written.
    DataError
        When the slide's folder was renamed.
    """
    stored, result = rescored.stored, rescored.result
    in_place = out is None or out.resolve() == stored.folder.resolve().parent
    if out is None or in_place:
        out = stored.folder.resolve().parent
        if (out / folder_name(result.info.slide_id)) != stored.folder.resolve():
            raise DataError(
                f"the folder was renamed: it holds {result.info.slide_id}",
                path=stored.folder,
                remedy="Give it its old name, or write to another place with -o.",
            )
    folder = ensure_writable(out, result.info.slide_id, overwrite or in_place)
    if in_place:
        aside = SUPERSEDED.format(stored.record_sha256[:12])
        write_atomically(folder / aside, stored.record_bytes)
    kept = {
        PICTURES_NAME: (stored.folder / PICTURES_NAME).read_bytes(),
        RECORD_NAME: (json.dumps(rescored.record, indent=2, ensure_ascii=False) + "\n").encode(),
    }
    return write_slide(result, out, overwrite=overwrite or in_place, instead=kept)


def _record(
    stored: Stored, result: SlideResult, reviews: list[dict[str, Any]], agreed: Agreement | None
) -> dict[str, Any]:
    """Give the stored record with what is other now; how the slide was scanned stays as it was."""
    old, summary = stored.record, result.summary
    first = first_stage_of(old)
    link = {
        "record_sha256": stored.record_sha256,
        "folder": printable(str(stored.folder)),
        "utc": old.get("rescored", {}).get("utc") or old["finished_utc"],
        first: {"threshold": old[first]["threshold"]},
        "classifier": {"threshold": old["classifier"]["threshold"]},
        "hotspot_mm2": old["config"]["hotspot_mm2"],
        "reviews": len(old.get("reviews", [])),
    }
    return {
        **old,
        first: {**old[first], "threshold": summary.detector_threshold},
        "classifier": {**old["classifier"], "threshold": summary.classifier_threshold},
        "config": result.config.model_dump(mode="json"),
        "qc_flags": list(summary.qc_flags),
        "rescored_from": [*old.get("rescored_from", []), link],
        "rescored": {
            "utc": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": printable(shlex.join(sys.argv)),
            "mitoscan_version": __version__,
        },
        "reviews": reviews,
        "agreement": None if agreed is None else agreed.model_dump(),
    }


def _review_entry(review: Review, wanted: Wanted) -> dict[str, Any]:
    return {
        "file": printable(str(wanted.review)),
        "sha256": review.sha256,
        "judgements": len(review.judgements),
        "reviewers": list(review.reviewers),
        "complete": wanted.complete,
        "comparable": review.comparable,
        "passed_over": list(review.notes),
    }
