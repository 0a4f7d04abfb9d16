"""Regions of interest from GeoJSON, as QuPath exports it or any other program writes it."""

from __future__ import annotations

import gzip
import json
import reprlib
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from shapely import MultiPolygon, affinity
from shapely.geometry import shape

from mitoscan.errors import RoiError
from mitoscan.slide.base import SlideInfo
from mitoscan.slide.tissue import polygons_of

_NOT_REGIONS = frozenset({"detection", "cell", "tile"})
"""QuPath's object types that are results, not regions that somebody drew."""
_MAX_BYTES = 2**29
"""Unpacked; a larger file is no drawing of regions."""
_FARTHEST_PX = 1e9
_REMEDY = "Draw the regions as polygons in QuPath and export them as GeoJSON."


def qupath_origin(info: SlideInfo) -> tuple[float, float]:
    """Where QuPath's (0, 0) lies on the slide.

    QuPath crops a slide to ``openslide.bounds-*`` when all four are there and both width and height differ
    from those of level 0. Add this to coordinates that come from QuPath, subtract it from those that go
    there.

    Returns
    -------
    x, y in level-0 px; (0, 0) for a slide that QuPath does not crop.
    """
    bounds = info.bounds
    if bounds is None or bounds.width == info.width_l0 or bounds.height == info.height_l0:
        return 0.0, 0.0
    return bounds.x, bounds.y


def load_roi(path: Path, info: SlideInfo, qupath_crop: bool) -> MultiPolygon:
    """Read the regions of interest of a slide.

    Parameters
    ----------
    path
        GeoJSON, or gzipped GeoJSON (``.gz``): a FeatureCollection, a Feature, a geometry or a list of
        them. Points, lines and QuPath's detections, cells and tiles are passed over.
    info
        The slide that they were drawn on.
    qupath_crop
        Whether the coordinates are counted from QuPath's cropped origin (see `qupath_origin`); otherwise
        they are level-0 px.

    Returns
    -------
    Valid polygons in level-0 px, within the slide; overlaps joined, self-crossing outlines repaired.

    Raises
    ------
    RoiError
        When the file cannot be read, is not GeoJSON, has no polygon, or none that meets the slide.
    """
    shapes = [_shape(geometry, path) for geometry in _geometries(_load(path), path)]
    regions = polygons_of(shapely.union_all([polygons_of(s) for s in shapes]))
    if regions.is_empty:
        raise RoiError("there is no polygon in it", path=path, remedy=_REMEDY)
    if qupath_crop:
        regions = affinity.translate(regions, *qupath_origin(info))
    slide = shapely.box(0, 0, info.width_l0, info.height_l0)
    inside = polygons_of(shapely.intersection(regions, slide))
    if inside.is_empty:
        extent = " to ".join(f"({x:.0f}, {y:.0f})" for x, y in np.reshape(regions.bounds, (2, 2)))
        raise RoiError(
            f"the regions, {extent}, lie outside {info.slide_id} ({info.width_l0} x {info.height_l0} px)",
            path=path,
            remedy="Use regions of this slide, in level-0 px, or try --no-qupath-crop.",
        )
    return inside


def _load(path: Path) -> Any:
    try:
        with gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as stream:
            data = stream.read(_MAX_BYTES + 1)
        if len(data) > _MAX_BYTES:
            raise RoiError(f"is larger than {_MAX_BYTES >> 20} MB", path=path, remedy=_REMEDY)
        return json.loads(data)
    except FileNotFoundError as exc:
        raise RoiError("no such file", path=path, remedy="Check the path.") from exc
    except (OSError, EOFError, zlib.error) as exc:
        raise RoiError(f"cannot be read: {exc}", path=path) from exc
    except (ValueError, RecursionError) as exc:
        raise RoiError(f"not GeoJSON: {exc}", path=path, remedy=_REMEDY) from exc


def _geometries(document: Any, path: Path) -> Iterator[dict[str, Any]]:
    """Walk collections, features and lists down to the geometries, however deep they lie."""
    waiting = [document]
    while waiting:
        node = waiting.pop()
        kind = node.get("type") if isinstance(node, dict) else None
        if isinstance(node, list):
            waiting += reversed(node)
        elif kind == "FeatureCollection":
            waiting.append(node.get("features") or [])
        elif kind == "Feature":
            properties = node.get("properties")
            object_type = properties.get("objectType") if isinstance(properties, dict) else None
            if node.get("geometry") and str(object_type) not in _NOT_REGIONS:
                waiting.append(node["geometry"])
        elif kind == "GeometryCollection":
            waiting.append(node.get("geometries") or [])
        elif isinstance(kind, str):
            yield node
        else:
            raise RoiError(f"not GeoJSON: found {reprlib.repr(node):.60}", path=path, remedy=_REMEDY)


def _shape(geometry: dict[str, Any], path: Path) -> shapely.Geometry:
    if geometry.get("type") not in {"Polygon", "MultiPolygon"}:
        return MultiPolygon()
    try:
        with np.errstate(invalid="ignore"):
            made: shapely.Geometry = shape(geometry)
        corners = shapely.get_coordinates(made)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, shapely.errors.ShapelyError) as exc:
        raise RoiError(f"a {geometry['type']} has bad coordinates: {exc}", path=path, remedy=_REMEDY) from exc
    if not np.isfinite(corners).all():
        raise RoiError("a polygon has coordinates that are not numbers", path=path, remedy=_REMEDY)
    if np.abs(corners).max(initial=0) > _FARTHEST_PX:
        raise RoiError(f"a polygon reaches beyond {_FARTHEST_PX:.0e} px", path=path, remedy=_REMEDY)
    return made
