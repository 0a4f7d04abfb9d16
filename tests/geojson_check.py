"""A strict reader of QuPath GeoJSON: everything that QuPath, or RFC 7946, would trip over is a fault."""

from __future__ import annotations

import itertools
import json
import math
import uuid
from pathlib import Path

from shapely.geometry import shape

PROPERTIES = {"objectType", "name", "classification", "isLocked", "measurements", "metadata"}


def load(path: Path) -> dict:
    """Parse a file, refusing NaN and Infinity, which JSON does not have, and keys that occur twice."""
    return json.loads(path.read_bytes(), parse_constant=_no_constant, object_pairs_hook=_no_twins)


def faults(collection: dict) -> list[str]:
    """Everything wrong with a FeatureCollection; empty when it is right."""
    found = []
    if set(collection) != {"type", "features"} or collection["type"] != "FeatureCollection":
        return [f"not a FeatureCollection: {sorted(collection)}"]
    ids = [feature.get("id") for feature in collection["features"]]
    if len(set(ids)) != len(ids):
        found.append("ids occur twice")
    for number, feature in enumerate(collection["features"]):
        found += [f"feature {number}: {fault}" for fault in _feature(feature)]
    return found


def of_class(collection: dict, *names: str) -> list[dict]:
    """The features of these QuPath classes."""
    return [f for f in collection["features"] if f["properties"]["classification"]["name"] in names]


def _feature(feature: dict) -> list[str]:
    if set(feature) != {"type", "id", "geometry", "properties"} or feature["type"] != "Feature":
        return [f"not a Feature: {sorted(feature)}"]
    found = []
    try:
        if str(uuid.UUID(feature["id"])) != feature["id"] or uuid.UUID(feature["id"]).version != 5:
            found.append(f"id is no plain version 5 uuid: {feature['id']}")
    except ValueError:
        found.append(f"id is no uuid: {feature['id']!r}")
    return found + _properties(feature["properties"]) + _geometry(feature["geometry"])


def _properties(properties: dict) -> list[str]:
    if set(properties) != PROPERTIES:
        return [f"properties are {sorted(properties)}"]
    classification = properties["classification"]
    right = {
        "objectType": properties["objectType"] in {"detection", "annotation"},
        "name": isinstance(properties["name"], str) and properties["name"] != "",
        "isLocked": isinstance(properties["isLocked"], bool),
        "classification": set(classification) == {"name", "color"}
        and isinstance(classification["name"], str)
        and len(classification["color"]) == 3
        and all(_is_byte(value) for value in classification["color"]),
        "measurements": all(_is_finite(value) for value in properties["measurements"].values()),
        "metadata": all(isinstance(value, str) for value in properties["metadata"].values()),
    }
    return [f"{name} is {properties[name]!r}" for name, fine in right.items() if not fine]


def _geometry(geometry: dict) -> list[str]:
    if set(geometry) != {"type", "coordinates"} or geometry["type"] not in {"Polygon", "MultiPolygon"}:
        return [f"geometry is {geometry.get('type')} with {sorted(geometry)}"]
    polygons = [geometry["coordinates"]] if geometry["type"] == "Polygon" else geometry["coordinates"]
    found = [] if polygons else ["no polygon"]
    for rings in polygons:
        found += [fault for number, ring in enumerate(rings) for fault in _ring(ring, hole=number > 0)]
    if not found and (not shape(geometry).is_valid or shape(geometry).area <= 0):
        found.append("geometry is not valid")
    return found


def _ring(ring: list, *, hole: bool) -> list[str]:
    if len(ring) < 4 or ring[0] != ring[-1]:
        return ["ring is not closed"]
    if any(len(p) != 2 or not all(map(_is_finite, p)) for p in ring):
        return ["position is not two finite numbers"]
    twice_area = sum(a[0] * b[1] - b[0] * a[1] for a, b in itertools.pairwise(ring))
    return ["ring winds the wrong way"] if (twice_area > 0) == hole else []


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_byte(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 255


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def _no_twins(pairs: list[tuple[str, object]]) -> dict:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError(f"a key occurs twice: {[key for key, _ in pairs]}")
    return values
