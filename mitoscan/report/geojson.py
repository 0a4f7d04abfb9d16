"""QuPath GeoJSON: one detection a mitotic figure, annotations for the hot spot and the area scanned.

A figure is drawn as a circle of 12.5 µm radius around it rather than as a point: QuPath colours and fills
outlines by class at every zoom and measures inside them, while points are dots that hide what they mark.
Figures come last in the file and are not locked, so a reviewer can reclassify or delete them; the two
annotations are locked, so that a slipped drag does not move the denominator of a density.
"""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import numpy.typing as npt
import shapely
from shapely import Polygon
from shapely.geometry.base import BaseGeometry
from shapely.geometry.polygon import orient

from mitoscan.report.colours import COLOURS, Colour
from mitoscan.scan.findings import SUBTYPE_COLUMNS, Identity
from mitoscan.scan.result import SlideResult
from mitoscan.scan.score import Hotspot
from mitoscan.slide.roi import qupath_origin
from mitoscan.units import Mpp

FIGURE_RADIUS_UM = 12.5
GRID_PX = 0.01
"""Coordinates are rounded to this, in level-0 px."""
_ANGLES = np.linspace(0, 2 * math.pi, 16, endpoint=False)

Feature = dict[str, Any]


def feature_collection(result: SlideResult) -> Feature:
    """Describe a result as a GeoJSON FeatureCollection in QuPath's frame of the slide.

    Coordinates are level-0 px; where QuPath crops the slide to its bounds, and unless
    ``config.qupath_crop`` is off, they count from the corner of the crop.
    """
    origin = qupath_origin(result.info) if result.config.qupath_crop else (0.0, 0.0)
    features = [_tissue(result, origin)]
    if result.hotspot is not None:
        features.append(_hotspot(result.hotspot, result.identity, origin))
    features += _figures(result, origin)
    return {"type": "FeatureCollection", "features": [feature for feature in features if feature]}


def geojson_bytes(result: SlideResult) -> bytes:
    """Give the file's contents; a number that is not finite would be a fault and raises ValueError."""
    text = json.dumps(feature_collection(result), allow_nan=False, separators=(",", ":"), ensure_ascii=False)
    return text.encode()


def _figures(result: SlideResult, origin: tuple[float, float]) -> list[Feature]:
    figures = result.findings[result.findings["is_mf"]]
    outlines = _circles(
        figures["x_l0"].to_numpy() - origin[0],
        figures["y_l0"].to_numpy() - origin[1],
        result.info.known_mpp(),
    )
    measured = [name for name in ("p_mitosis", "p_atypical", *SUBTYPE_COLUMNS) if name in figures]
    features = []
    for row, outline in zip(figures.to_dict("records"), outlines, strict=True):
        metadata = {"finding": row["id"]} | ({"subtype": row["subtype"]} if row["subtype"] else {})
        features.append(
            _feature(
                row["id"],
                {"type": "Polygon", "coordinates": [outline]},
                kind="detection",
                name=row["subtype"] or row["label"],
                classification=row["label"],
                measurements={name: row[name] for name in measured if math.isfinite(row[name])},
                metadata=metadata,
            )
        )
    return features


def _circles(x: npt.NDArray[np.float64], y: npt.NDArray[np.float64], mpp: Mpp) -> list[list[list[float]]]:
    """Outline circles of ``FIGURE_RADIUS_UM``: closed rings, counter-clockwise as numbers."""
    rings = np.empty((len(x), len(_ANGLES) + 1, 2))
    rings[:, :-1, 0] = x[:, None] + np.cos(_ANGLES) * FIGURE_RADIUS_UM / mpp.x
    rings[:, :-1, 1] = y[:, None] + np.sin(_ANGLES) * FIGURE_RADIUS_UM / mpp.y
    rings[:, -1] = rings[:, 0]
    outlines: list[list[list[float]]] = rings.round(2).tolist()
    return outlines


def _hotspot(hotspot: Hotspot, identity: Identity, origin: tuple[float, float]) -> Feature:
    box = hotspot.box
    outline = shapely.box(box.x, box.y, box.right, box.bottom)
    return _feature(
        identity.uuid_of("hotspot"),
        _geometry(outline, origin),
        kind="annotation",
        name=f"Hot spot: {hotspot.count} MF in {hotspot.area_mm2:.3g} mm²",
        classification="Hot spot",
        measurements={"mf_count": hotspot.count, "area_mm2": round(hotspot.area_mm2, 4)},
    )


def _tissue(result: SlideResult, origin: tuple[float, float]) -> Feature | None:
    geometry = _geometry(result.tissue, origin)
    if not geometry["coordinates"]:
        return None
    summary = result.summary
    return _feature(
        result.identity.uuid_of("tissue"),
        geometry,
        kind="annotation",
        name=f"Area scanned: {summary.tissue_mm2:.3g} mm²",
        classification="Tissue",
        measurements={
            "area_mm2": round(summary.tissue_mm2, 4),
            "mf_count": summary.mf_count,
            "mf_per_mm2": round(summary.mf_per_mm2, 4),
        },
    )


def _feature(
    uuid: str,
    geometry: Feature,
    *,
    kind: str,
    name: str,
    classification: str,
    measurements: dict[str, float],
    metadata: dict[str, str] | None = None,
) -> Feature:
    """Put everything where QuPath looks for it; an annotation is locked, a detection is not."""
    colour: Colour = COLOURS[classification]
    return {
        "type": "Feature",
        "id": uuid,
        "geometry": geometry,
        "properties": {
            "objectType": kind,
            "name": name,
            "classification": {"name": classification, "color": list(colour)},
            "isLocked": kind == "annotation",
            "measurements": measurements,
            "metadata": metadata or {},
        },
    }


def _geometry(area: BaseGeometry, origin: tuple[float, float]) -> Feature:
    """Shift an area to ``origin`` and round it so that it stays valid.

    Outer rings are counter-clockwise and holes clockwise by their numbers (RFC 7946).
    """
    # Rounded first, because the grid's arithmetic divides by differences that may be next to nothing.
    shifted = shapely.transform(area, lambda points: np.round(points - np.asarray(origin), 6))
    # Normalised, so that an area read back from the file is written as the same bytes.
    rounded = shapely.normalize(shapely.set_precision(shapely.make_valid(shifted), GRID_PX))
    polygons = [
        part
        for part in shapely.get_parts(shapely.get_parts(rounded))
        if isinstance(part, Polygon) and not part.is_empty
    ]
    rings = [_rings(orient(polygon, 1.0)) for polygon in polygons]
    if len(rings) == 1:
        return {"type": "Polygon", "coordinates": rings[0]}
    return {"type": "MultiPolygon", "coordinates": rings}


def _rings(polygon: Polygon) -> list[list[list[float]]]:
    rings = (polygon.exterior, *polygon.interiors)
    return [[[round(x, 2), round(y, 2)] for x, y in ring.coords] for ring in rings]
