"""Which slides are finished already, and why others are not.

A result counts as finished when its record says that it was made from the same inputs:

- the slide: its size in bytes and time of change (a slide of several files: of all of them);
- the weights of both models, by checksum, and what their cards say of how to use them; or the file of
  candidates that takes the detector's place;
- every setting of ``ScanConfig`` but those in ``_NO_MATTER``; regions of interest by the file's content, the
  operating point by the threshold in force.

Not the version of mitoscan, but ``GENERATION``, which is raised when a change of the code changes findings.
Slide id, case and notes describe a slide and need no new scan.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mitoscan.cohort.job import Job
from mitoscan.config import ScanConfig
from mitoscan.errors import CandidatesError, DataError
from mitoscan.models.card import ModelCard
from mitoscan.models.zoo import find_model
from mitoscan.report.atomic import write_atomically
from mitoscan.report.tables import read_summary, summary_bytes
from mitoscan.report.writer import RECORD_NAME, folder_name
from mitoscan.scan.candidates import file_of
from mitoscan.scan.score import SlideSummary, printable

Inputs = dict[str, object]
"""What a result was made from: part of record.json."""

GENERATION = 1
SUMMARY_NAME = "summary.json"
_NO_MATTER = frozenset({"device", "batch_size", "readers", "grid_shift_px"})
"""Findings do not depend on them; devices agree within rounding, once the detector is chosen."""
_BY_CONTENT = frozenset({"detector", "candidates", "classifier", "threshold", "operating_point", "roi"})
"""Settings that stand here not as they were given but for what they came to."""
_CARD_TEXTS = frozenset(
    {"name", "description", "metrics", "training", "licence", "intended_use", "operating_point", "sensitive"}
)
"""What a card says to people, and the thresholds, which stand here by themselves."""
_NAMES = {
    "generation": "how mitoscan computes",
    "slide_bytes": "slide replaced: bytes",
    "slide_mtime_ns": "slide replaced: time of change",
    "detector_sha256": "detector",
    "classifier_sha256": "classifier",
    "candidates_sha256": "candidates",
    "detector_card_sha256": "detector's card",
    "classifier_card_sha256": "classifier's card",
    "roi_sha256": "regions of interest",
}
_CHECKSUM_DIGITS = 12


@dataclass(frozen=True)
class Finished:
    """The slide has a result of these inputs."""

    summary: SlideSummary


@dataclass(frozen=True)
class Missing:
    """The slide is to be done."""

    reason: str
    """Why an older result does not count; empty when there is none."""


def load_cards(config: ScanConfig) -> tuple[ModelCard | None, ModelCard]:
    """Read the cards of the detector and the classifier that ``config`` names; no weights are loaded.

    The detector is None where files of candidates take its place.

    Raises
    ------
    ModelError
        When there is no such model, or its card is faulty.
    """
    detector = None if config.candidates else find_model(config.detector, "detector", config.device)[1]
    return detector, find_model(config.classifier, "classifier")[1]


def inputs_of(job: Job, detector: ModelCard | None, classifier: ModelCard) -> Inputs:
    """Gather everything that decides the result of a slide; opens no slide."""
    config, (size, mtime_ns) = job.config, stat_of(job.path)
    return {
        "generation": GENERATION,
        "slide_bytes": size,
        "slide_mtime_ns": mtime_ns,
        "detector_sha256": None if detector is None else detector.sha256,
        "detector_card_sha256": None if detector is None else _card_sha256(detector),
        "candidates_sha256": _candidates_sha256(config.candidates, job.slide_id),
        "threshold": _threshold(config, detector),
        "classifier_sha256": classifier.sha256,
        "classifier_card_sha256": _card_sha256(classifier),
        "atypical_threshold": classifier.operating_point.threshold,
        "roi_sha256": _sha256(config.roi),
        **config.model_dump(mode="json", exclude={*_NO_MATTER, *_BY_CONTENT}),
    }


def stat_of(path: Path) -> tuple[int, int]:
    """Give bytes and newest time of change (ns) of a slide with all its files; zeros when it is not there.

    Beside the file itself these are the files of an NGFF folder, and of the folder that belongs to a MIRAX
    slide.
    """
    size = newest = 0
    for file in _files(path):
        with contextlib.suppress(OSError):
            stat = os.stat(file)
            size, newest = size + stat.st_size, max(newest, stat.st_mtime_ns)
    return size, newest


def _files(path: Path) -> Iterator[str | Path]:
    yield path
    folder = path.with_suffix("") if path.suffix.lower() == ".mrxs" else path
    if folder.is_dir():
        for root, _, names in os.walk(folder):
            yield from (os.path.join(root, name) for name in names)


def described(job: Job) -> dict[str, object]:
    """Give the fields of the summary that come from the job and not from the scan."""
    return {
        "slide_id": printable(job.slide_id),
        "case_id": job.case_id,
        "path": printable(str(job.path)),
        "notes": dict(job.notes),
    }


def refresh(summary: SlideSummary, job: Job) -> SlideSummary:
    """Bring path, case and notes of a finished slide up to date, in its folder too.

    Raises
    ------
    OutputError
        When the folder cannot be written.
    """
    changes = described(job)
    if not job.case_id and not job.notes:  # no manifest this time: what an earlier one said stays
        changes |= {"case_id": summary.case_id, "notes": summary.notes}
    new = summary.model_copy(update=changes)
    if new != summary:
        write_atomically(job.out / folder_name(job.slide_id) / SUMMARY_NAME, summary_bytes(new))
    return new


def look(job: Job, detector: ModelCard | None, classifier: ModelCard) -> Finished | Missing:
    """Say whether the slide's folder holds a result of the job's inputs, from a stat and two small files."""
    folder = job.out / folder_name(job.slide_id)
    try:
        record = json.loads((folder / RECORD_NAME).read_bytes())
        summary = read_summary(folder / SUMMARY_NAME)
    except FileNotFoundError:
        return Missing("")
    except (OSError, ValueError, DataError) as error:
        return Missing(f"its result cannot be read: {error}")
    made_from = record.get("inputs") if isinstance(record, dict) else None
    if not isinstance(made_from, dict):
        return Missing("its record does not say what it was made from")
    wanted = inputs_of(job, detector, classifier)
    # A setting that is younger than the record had, when that was made, the value that is now its default.
    defaults = ScanConfig().model_dump(mode="json")
    reasons = [_change(k, made_from.get(k, defaults.get(k)), new) for k, new in wanted.items()]
    differing = [reason for reason in reasons if reason]
    return Missing("; ".join(differing)) if differing else Finished(summary)


def _change(name: str, old: object, new: object) -> str:
    if old == new:
        return ""
    said = _NAMES.get(name, name.replace("_", " "))
    return f"{said} {_short(name, old)} → {_short(name, new)}"


def _short(name: str, value: object) -> str:
    if value is None:
        return "none"
    return str(value)[:_CHECKSUM_DIGITS] if name.endswith("sha256") else str(value)


def _threshold(config: ScanConfig, detector: ModelCard | None) -> float:
    if config.threshold is not None:
        return config.threshold
    return 0.0 if detector is None else detector.point(config.operating_point).threshold


def _candidates_sha256(place: Path | None, slide_id: str) -> str | None:
    try:
        return _sha256(None if place is None else file_of(place, slide_id))
    except CandidatesError:
        return "unreadable"


def _card_sha256(card: ModelCard) -> str:
    text = card.model_dump_json(exclude=set(_CARD_TEXTS), exclude_defaults=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _sha256(path: Path | None) -> str | None:
    """Give the checksum of a small file; one that cannot be read is found out when the slide is scanned."""
    if path is None:
        return None
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return "unreadable"
