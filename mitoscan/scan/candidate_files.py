"""Somebody else's detections: what the files say, still in their own unit and frame.

=============================  ===============================  ==============================================
file                           unit, counted from               what counts
=============================  ===============================  ==============================================
``.csv``                       as the column names state:       a row each; not where ``is_mf`` is false or
                               ``x_l0``, ``x_um`` or ``x_mm``,  ``label`` or ``class`` denies a mitotic figure
                               from the slide's corner
``.geojson`` (``.gz``)         px, QuPath's corner              points, and the centroids of polygons that are
                                                                small enough to be a cell
``.json``, Grand Challenge     mm, the slide's corner           the points that are not named otherwise
``.json``, else                as ``.geojson``                  as ``.geojson``
=============================  ===============================  ==============================================
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import shapely
from shapely.geometry import shape

from mitoscan.errors import CandidatesError

SUFFIXES = (".csv", ".geojson", ".geojson.gz", ".json")

Unit = Literal["l0", "um", "mm"]

_UNITS: tuple[Unit, ...] = ("l0", "um", "mm")
_P_NAMES = ("p_mitosis", "p", "probability")
_DENIED = frozenset(
    {
        "non mitotic figure",
        "non mitotic",
        "non mitosis",
        "not mitotic figure",
        "not mitotic",
        "no mitosis",
        "hard negative",
        "imposter",
        "impostor",
        "ignore*",
        "hot spot",
        "tissue",
    }
)
"""Class names, in lower case with blanks, of what is no mitotic figure."""
_FALSE, _TRUE = frozenset({"false", "0", "no"}), frozenset({"true", "1", "yes", ""})
_UNREADABLE = (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError, RecursionError)
"""What parsers raise on contents that are not what the suffix promises."""
_GEOMETRIES = frozenset({"Point", "MultiPoint", "Polygon", "MultiPolygon"})


@dataclass
class Given:
    """The candidates of a file as it states them; one entry a candidate in each list."""

    unit: Unit
    from_qupath: bool = False
    """Counted from QuPath's corner of the slide, which is not always the slide's own."""
    x: list[float] = field(default_factory=list)
    y: list[float] = field(default_factory=list)
    p: list[float] = field(default_factory=list)
    """p_mitosis; 1 where the file states none."""
    side: list[float] = field(default_factory=list)
    """Longer side of the outline's bounding box, in ``unit``; 0 for points."""
    denied: int = 0
    """Entries that the file itself calls no mitotic figure: not in the lists."""

    def add(self, x: float, y: float, p: float, side: float = 0.0) -> None:
        """Append a candidate."""
        for values, value in ((self.x, x), (self.y, y), (self.p, p), (self.side, side)):
            values.append(value)


def read_candidates(path: Path) -> Given:
    """Read a file of candidates.

    Raises
    ------
    CandidatesError
        When it cannot be read, its format or unit is not known, or a value is no number; with the place.
    """
    suffix = path.suffix.lower()
    try:
        data = path.read_bytes()
        if suffix == ".gz":
            data = gzip.decompress(data)
    except FileNotFoundError as exc:
        raise CandidatesError("no such file", path=path, remedy="Check the path.") from exc
    except (OSError, EOFError, zlib.error) as exc:
        raise CandidatesError(f"cannot be read: {exc}", path=path) from exc
    if suffix == ".csv":
        return _read_csv(data, path)
    if path.name.lower().endswith(SUFFIXES):
        return _read_json(data, path)
    raise CandidatesError(
        f"not a known format of candidates: {path.suffix or 'no suffix'}",
        path=path,
        remedy=f"Give one of: {', '.join(SUFFIXES)}.",
    )


def _read_csv(data: bytes, path: Path) -> Given:
    try:
        text = data.decode("utf-8-sig")
        header = text.split("\n", 1)[0]
        rows = csv.reader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=header.count), strict=True)
        names = [name.strip().lower() for name in next(rows, [])]
        given = Given(_unit_of(names, path))
        for row in rows:
            if any(cell.strip() for cell in row):
                _add_row(given, names, row, f"line {rows.line_num}", path)
    except (UnicodeDecodeError, csv.Error) as exc:
        raise CandidatesError(f"not readable as CSV: {exc}", path=path, remedy="Save it as UTF-8.") from exc
    return given


def _unit_of(names: list[str], path: Path) -> Unit:
    for unit in _UNITS:
        if f"x_{unit}" in names and f"y_{unit}" in names:
            return unit
    found = ", ".join(names) or "nothing"
    raise CandidatesError(
        f"the columns do not state place and unit; found: {found:.200}",
        path=path,
        remedy="Name them x_l0, y_l0 (level-0 px) or x_um, y_um (µm from the slide's corner).",
    )


def _add_row(given: Given, names: list[str], row: list[str], where: str, path: Path) -> None:
    if len(row) != len(names):
        raise CandidatesError(f"{where} has {len(row)} cells, the header {len(names)}", path=path)
    cells = {name: cell.strip() for name, cell in zip(names, row, strict=True)}
    called = cells.get("is_mf", "").lower()
    if called not in _FALSE | _TRUE:
        raise CandidatesError(f"{where}: is_mf is {called!r:.40}, not true or false", path=path)
    if called in _FALSE or any(_denies(cells.get(name)) for name in ("label", "class")):
        given.denied += 1
        return
    p = next((cells[name] for name in _P_NAMES if cells.get(name)), None)
    given.add(
        _number(cells[f"x_{given.unit}"], f"{where}: x", path),
        _number(cells[f"y_{given.unit}"], f"{where}: y", path),
        _probability(p, where, path),
    )


def _read_json(data: bytes, path: Path) -> Given:
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as exc:
        raise CandidatesError(f"not readable as JSON: {exc}", path=path) from exc
    if isinstance(content, dict) and "points" in content:
        return _read_points(content["points"], path)
    given = Given("l0", from_qupath=True)
    try:
        for number, (geometry, properties) in enumerate(_features(content, {}), 1):
            _add_feature(given, geometry, properties, f"object {number}", path)
    except _UNREADABLE as exc:
        raise CandidatesError(
            f"not GeoJSON, nor points of a Grand Challenge: {exc}",
            path=path,
            remedy="Export the objects from QuPath as GeoJSON (a FeatureCollection).",
        ) from exc
    return given


def _read_points(points: Any, path: Path) -> Given:
    given = Given("mm")
    if not isinstance(points, list):
        raise CandidatesError(f"points is no list: {points!r:.60}", path=path)
    for number, entry in enumerate(points, 1):
        where = f"point {number}"
        place = entry.get("point") if isinstance(entry, dict) else None
        if not isinstance(place, list) or len(place) < 2:
            raise CandidatesError(f"{where} has no place [x, y, z] in mm: {entry!r:.60}", path=path)
        if _denies(entry.get("name")):
            given.denied += 1
            continue
        x, y = (_number(value, f"{where}: {axis}", path) for axis, value in zip("xy", place, strict=False))
        given.add(x, y, _probability(entry.get("probability"), where, path))
    return given


def _features(node: Any, properties: dict[str, Any]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Walk collections, features and lists down to geometries, each with its feature's properties."""
    if isinstance(node, list):
        for item in node:
            yield from _features(item, properties)
    elif node["type"] == "FeatureCollection":
        yield from _features(list(node["features"]), {})
    elif node["type"] == "Feature":
        if node["geometry"] is not None:
            yield from _features(node["geometry"], node.get("properties") or {})
    elif node["type"] == "GeometryCollection":
        yield from _features(list(node["geometries"]), properties)
    else:
        yield node, properties


def _add_feature(
    given: Given, geometry: dict[str, Any], properties: dict[str, Any], where: str, path: Path
) -> None:
    """Add the candidates of a geometry: a multi-point has several, a polygon of many parts is one."""
    if _denies(_class_of(properties)):
        given.denied += 1
        return
    if geometry["type"] not in _GEOMETRIES:
        raise CandidatesError(
            f"{where} is a {geometry['type']!r:.40}",
            path=path,
            remedy="Mark figures with points or polygons.",
        )
    with np.errstate(invalid="ignore"):
        made = shape(geometry)
    if shapely.is_empty(made):
        raise CandidatesError(f"{where} is an empty {geometry['type']}", path=path)
    points, side = made, 0.0
    if "Polygon" in geometry["type"]:
        left, top, right, bottom = shapely.bounds(made)
        points, side = shapely.make_valid(made).centroid, max(right - left, bottom - top)
    p = _probability(_measured(properties), where, path)
    for x, y in shapely.get_coordinates(points):
        given.add(_number(x, f"{where}: x", path), _number(y, f"{where}: y", path), p, side)


def _class_of(properties: dict[str, Any]) -> Any:
    """Give the class as QuPath writes it, or as others do: a plain name."""
    stated = properties.get("classification")
    if isinstance(stated, dict):
        stated = stated.get("name")
    return stated or properties.get("label") or properties.get("class")


def _measured(properties: dict[str, Any]) -> Any:
    """Find p among QuPath's measurements (an object, or a list of names and values) or the properties."""
    measurements = properties.get("measurements") or {}
    if isinstance(measurements, list):
        measurements = {entry["name"]: entry["value"] for entry in measurements}
    both = {str(k).lower(): v for k, v in (properties | measurements).items()}
    return next((both[name] for name in _P_NAMES if both.get(name) is not None), None)


def _denies(name: Any) -> bool:
    words = str(name or "").lower().replace("-", " ").replace("_", " ").split()
    return " ".join(words) in _DENIED


def _probability(value: Any, where: str, path: Path) -> float:
    if value is None:
        return 1.0
    p = _number(value, f"{where}: p", path)
    if not 0 <= p <= 1:
        raise CandidatesError(f"{where}: p is {p:g}, not between 0 and 1", path=path)
    return p


def _number(value: Any, what: str, path: Path) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise CandidatesError(f"{what} is {value!r:.40}, not a number", path=path)
    return number
