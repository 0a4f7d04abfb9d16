"""A reviewer's work read from a file: review.csv of the report page, or GeoJSON as QuPath exports it.

**review.csv** has a row a figure, with the columns ``id,x_l0,y_l0,label,subtype,flag,reviewer,reviewed_utc``;
label is ``AMF``, ``NMF``, ``not MF``, or empty (only flagged: no judgement). A row without an id is a figure
that the reviewer added.

**GeoJSON** is findings.geojson after work in QuPath. A figure whose class is now another one was judged.
Points, and outlines drawn by hand up to ``MAX_DRAWN_UM`` across, are added figures when their class says what
they are. A figure that is no longer in the file was deleted, which alone says nothing: the export may be of a
selection, and deleting is how one hides things. Only with ``complete``, when the reviewer has looked at every
figure, are unchanged figures confirmed and missing ones rejected. The report page writes GeoJSON too;
there the figures that were judged say so (``metadata.reviewed``), the confirmed ones among them.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import shapely
from shapely.geometry import shape

from mitoscan.errors import ConfigError, DataError
from mitoscan.models.card import SUBTYPES
from mitoscan.scan.findings import AMF, ATYPICAL_SUBTYPES, NMF, NOT_MF
from mitoscan.scan.result import SlideResult
from mitoscan.scan.review import Judgement
from mitoscan.slide.roi import qupath_origin

REVIEW_CSV_COLUMNS = ("id", "x_l0", "y_l0", "label", "subtype", "flag", "reviewer", "reviewed_utc")
NOT_MF_NAME = "not MF"
MAX_DRAWN_UM = 60.0
"""A larger outline is a region that somebody drew, not a figure."""

_LABELS = {AMF.lower(): AMF, NMF.lower(): NMF, NOT_MF_NAME.lower(): NOT_MF}
_CLASSES = f"{AMF}, {NMF}, {NOT_MF_NAME} or a subtype ({', '.join(SUBTYPES)})"
_OWN = frozenset({"Tissue", "Hot spot"})
_MAX_BYTES = 2**30


@dataclass(frozen=True)
class Review:
    """What a review file says of one slide."""

    judgements: tuple[Judgement, ...]
    comparable: bool
    """Whether it also names the figures at which the reviewer agreed with the models."""
    notes: tuple[str, ...]
    """What was passed over, in words."""
    reviewers: tuple[str, ...]
    sha256: str
    """Of the file."""


def read_review(path: Path, result: SlideResult, *, complete: bool = False) -> Review:
    """Read a review of ``result``.

    Parameters
    ----------
    path
        ``.csv``, ``.geojson``, ``.json``, or the latter two gzipped (``.gz``).
    result
        The result that was reviewed: its ids, size, area scanned and frame.
    complete
        GeoJSON only: the reviewer looked at every figure.

    Raises
    ------
    DataError
        When the file cannot be read, is of another slide or other models, or says what cannot be; every fault
        is named.
    ConfigError
        When ``complete`` is asked of a CSV file, which says itself what was judged.
    """
    data = _bytes(path)
    digest = hashlib.sha256(data).hexdigest()
    if path.suffix.lower() == ".csv":
        if complete:
            raise ConfigError(
                "--complete is for GeoJSON; a CSV file has a row for each figure that was judged",
                remedy="Leave --complete away.",
            )
        return _csv(path, data, result, digest)
    return _geojson(path, data, result, digest, complete)


def _bytes(path: Path) -> bytes:
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise DataError("too large for a review", path=path)
        data = path.read_bytes()
        return gzip.decompress(data) if path.suffix.lower() == ".gz" else data
    except (OSError, EOFError) as exc:
        raise DataError(f"cannot be read: {exc}", path=path, remedy="Check the path.") from exc


def _csv(path: Path, data: bytes, result: SlideResult, digest: str) -> Review:
    try:
        table = pd.read_csv(io.BytesIO(data), dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except (ValueError, pd.errors.ParserError) as exc:
        raise DataError(f"not readable as CSV: {exc}", path=path) from exc
    missing = [name for name in ("id", "label") if name not in table]
    if missing:
        raise DataError(
            f"columns missing: {', '.join(missing)}",
            path=path,
            remedy=f"The columns of a review are {','.join(REVIEW_CSV_COLUMNS)}.",
        )
    rows = table.reindex(columns=REVIEW_CSV_COLUMNS, fill_value="").apply(lambda column: column.str.strip())
    judgements, faults, outside = [], [], 0
    known = set(result.findings["id"])
    for number, row in enumerate(rows.to_dict("records"), start=2):
        try:
            judgement = _row(row, known)
            if judgement is None:
                continue
            if judgement.finding or _is_inside(judgement, result):
                judgements.append(judgement)
            else:
                outside += 1
        except ValueError as exc:
            faults.append(f"line {number}: {exc}")
    faults += _twice(judgements)
    if faults:
        raise DataError(_listed(faults), path=path, remedy="Correct the lines named.")
    reviewers = tuple(sorted(set(rows["reviewer"]) - {""}))
    return Review(tuple(judgements), True, _notes(outside=outside), reviewers, digest)


def _row(row: Mapping[Any, str], known: set[str]) -> Judgement | None:
    """Read a row; None when it only flags."""
    if not row["label"] and not row["subtype"]:
        return None
    label, subtype = _class_of(row["label"], row["subtype"])
    if row["id"] in known:
        return Judgement(label, subtype, row["id"])
    if row["id"]:
        raise ValueError(f"no finding {row['id']!r} here: the file is of another slide or of other models")
    return Judgement(label, subtype, "", _number(row["x_l0"], "x_l0"), _number(row["y_l0"], "y_l0"))


def _number(text: str, name: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{name} is {text!r}, which is no place; a figure without an id needs one")
    return value


def _class_of(name: str, subtype: str = "") -> tuple[str, str]:
    """Give label and subtype of class names as people write them.

    Raises
    ------
    ValueError
        When a name is unknown, or label and subtype contradict each other.
    """
    for separator in (" ", "-"):
        subtype = subtype.replace(separator, "_")
    subtype = subtype.lower()
    plain = name.strip().lower()
    if plain in _LABELS:
        label = _LABELS[plain]
    else:
        said = plain.replace(" ", "_").replace("-", "_")
        if subtype and said and said != subtype:
            raise ValueError(f"label is {name!r}, not {AMF}, {NMF} or {NOT_MF_NAME}")
        label, subtype = "", subtype or said
        if subtype not in SUBTYPES:
            raise ValueError(f"class is {name or subtype!r}, not {_CLASSES}")
        label = AMF if subtype in ATYPICAL_SUBTYPES else NMF
    if subtype and subtype not in SUBTYPES:
        raise ValueError(f"subtype is {subtype!r}, not one of {', '.join(SUBTYPES)}")
    if subtype and (label == NOT_MF or (label == AMF) != (subtype in ATYPICAL_SUBTYPES)):
        raise ValueError(f"subtype {subtype!r} does not go with label {label or NOT_MF_NAME!r}")
    return label, subtype


def _says_what(name: str) -> bool:
    """Whether a class name is one of ours; slides have other annotations too."""
    plain = name.lower()
    return plain in _LABELS or plain.replace(" ", "_").replace("-", "_") in SUBTYPES


def _geojson(path: Path, data: bytes, result: SlideResult, digest: str, complete: bool) -> Review:
    try:
        features = list(_features(json.loads(data)))
    except (ValueError, RecursionError) as exc:
        raise DataError(f"not GeoJSON: {exc}", path=path, remedy="Export as GeoJSON in QuPath.") from exc
    reader = _QuPath(result, complete)
    faults: list[str] = []
    for number, feature in enumerate(features):
        try:
            reader.read(feature)
        except (
            ValueError,
            TypeError,
            KeyError,
            AttributeError,
            IndexError,
            shapely.errors.ShapelyError,
        ) as exc:
            faults.append(f"object {number + 1}: {exc}")
    faults += _twice(reader.judgements)
    if faults:
        raise DataError(_listed(faults), path=path, remedy="Correct the objects named and export again.")
    comparable = complete or (bool(reader.judgements) and reader.marked == len(reader.judgements))
    if complete:
        gone = [i for i in reader.figures if i not in reader.seen]
        reader.judgements += [Judgement(NOT_MF, "", name) for name in gone]
    notes = _notes(outside=reader.outside, unclassified=reader.unclassified, regions=reader.regions)
    return Review(tuple(reader.judgements), comparable, notes, tuple(sorted(reader.reviewers)), digest)


class _QuPath:
    """Takes QuPath's objects one by one and gathers what they say."""

    def __init__(self, result: SlideResult, complete: bool) -> None:
        table = result.findings
        self._result, self._complete = result, complete
        self._labels = dict(zip(table["id"], table["label"], strict=True))
        self._subtypes = dict(zip(table["id"], table["subtype"], strict=True))
        self.figures = list(table["id"][table["is_mf"]])
        self.judgements: list[Judgement] = []
        self.seen: set[str] = set()
        self.reviewers: set[str] = set()
        self.marked = 0
        """Judgements that the report page marked as such: with them, agreeing shows too."""
        self.outside = self.unclassified = self.regions = 0
        mpp = result.info.known_mpp()
        self._um = np.array([mpp.x, mpp.y])
        self._origin = qupath_origin(result.info) if result.config.qupath_crop else (0.0, 0.0)

    def read(self, feature: dict[str, Any]) -> None:
        """Take one object."""
        properties = feature.get("properties") or {}
        metadata = properties.get("metadata") or {}
        names = _class_names(properties.get("classification"))
        finding = str(feature.get("id", ""))
        if finding in self._labels:
            self._known(finding, names, metadata)
        elif marked := metadata.get("finding"):
            raise ValueError(f"no finding {marked!r} here: the file is of another slide or of other models")
        elif names[:1] and names[0] in _OWN:
            return
        else:
            self._drawn(feature, names)

    def _known(self, finding: str, names: list[str], metadata: Mapping[str, Any]) -> None:
        self.seen.add(finding)
        if not names:
            self.unclassified += 1
            return
        label, subtype = _class_of(names[0], names[1] if len(names) > 1 else "")
        same = label == self._labels[finding] and subtype in {"", self._subtypes[finding]}
        marked = metadata.get("reviewed") == "yes"
        self.marked += marked
        self.reviewers |= {str(metadata["reviewer"])} if marked and metadata.get("reviewer") else set()
        if not same or self._complete or marked:
            self.judgements.append(Judgement(label, subtype, finding))

    def _drawn(self, feature: dict[str, Any], names: list[str]) -> None:
        geometry = shape(feature["geometry"])
        corners = shapely.get_coordinates(geometry)
        if geometry.is_empty or not np.isfinite(corners).all():
            raise ValueError("has no place")
        is_points = geometry.geom_type in {"Point", "MultiPoint"}
        extent = np.ptp(corners, axis=0) * self._um
        if not is_points and (geometry.area == 0 or extent.max() > MAX_DRAWN_UM):
            self.regions += 1
            return
        places = shapely.get_parts(geometry) if is_points else [geometry.centroid]
        if not names or not _says_what(names[0]):
            self.unclassified += len(places)
            return
        label, subtype = _class_of(names[0], names[1] if len(names) > 1 else "")
        for place in places:
            x, y = place.x + self._origin[0], place.y + self._origin[1]
            judgement = Judgement(label, subtype, "", float(x), float(y))
            if _is_inside(judgement, self._result):
                self.judgements.append(judgement)
            else:
                self.outside += 1


def _features(node: Any) -> Iterator[dict[str, Any]]:
    """Walk collections and lists down to the features."""
    if isinstance(node, list):
        for item in node:
            yield from _features(item)
    elif isinstance(node, dict) and node.get("type") == "FeatureCollection":
        yield from _features(node.get("features") or [])
    elif isinstance(node, dict) and node.get("type") == "Feature":
        yield node
    else:
        raise ValueError(f"found {node!r:.60}")


def _class_names(classification: Any) -> list[str]:
    """Give the parts of a QuPath class: ``AMF: multipolar`` has two; older versions write one name."""
    if isinstance(classification, str):
        names = [classification]
    else:
        found = classification or {}
        names = list(found.get("names") or [found.get("name") or ""])
    if len(names) == 1:
        names = str(names[0]).split(":")
    return [name for name in (str(name).strip() for name in names) if name]


def _is_inside(judgement: Judgement, result: SlideResult) -> bool:
    """Whether a drawn figure lies in the area scanned: one outside would count without its area counting.

    Raises
    ------
    ValueError
        When it is not even on the slide: its numbers are of another slide or frame.
    """
    info = result.info
    if not (0 <= judgement.x_l0 <= info.width_l0 and 0 <= judgement.y_l0 <= info.height_l0):
        raise ValueError(
            f"({judgement.x_l0:.0f}, {judgement.y_l0:.0f}) is not on the slide of {info.width_l0} x "
            f"{info.height_l0} px"
        )
    return bool(shapely.contains_xy(result.tissue, judgement.x_l0, judgement.y_l0))


def _twice(judgements: list[Judgement]) -> list[str]:
    times = Counter(j.finding for j in judgements if j.finding)
    return [f"finding {name} is judged twice" for name, n in times.items() if n > 1]


def _listed(faults: list[str]) -> str:
    more = f"; and {len(faults) - 5} more" if len(faults) > 5 else ""
    return "; ".join(faults[:5]) + more


def _notes(*, outside: int = 0, unclassified: int = 0, regions: int = 0) -> tuple[str, ...]:
    said = {
        "drawn outside the area scanned: not counted": outside,
        f"without a class ({AMF}, {NMF}, {NOT_MF_NAME} or a subtype): passed over": unclassified,
        f"outlines that are no figures (over {MAX_DRAWN_UM:g} µm, or lines): passed over": regions,
    }
    return tuple(f"{count} {what}" for what, count in said.items() if count)
