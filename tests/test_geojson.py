from __future__ import annotations

import json

import geojson_check
import numpy as np
import pytest
import shapely
from hypothesis import example, given, settings
from hypothesis import strategies as st
from results import MPP, findings, info, result
from shapely import MultiPolygon, Polygon
from shapely.geometry import shape

from mitoscan.report.geojson import feature_collection, geojson_bytes
from mitoscan.units import Box, Mpp

HOLED = MultiPolygon(
    [
        Polygon(
            [(100, 100), (4000, 100), (4000, 3000), (100, 3000)],
            [[(1000, 1000), (1500, 1000), (1500, 1500), (1000, 1500)]],
        ),
        Polygon([(5000, 4000), (5000, 5000), (6000, 5000)]),
    ]
)
BOUNDS = Box(1000, 500, 5000, 4000)


@pytest.mark.parametrize("subtypes", [False, True])
@pytest.mark.parametrize("n", [0, 1, 400])
@pytest.mark.parametrize("mpp", [MPP, Mpp(0.2273, 0.4601)])
def test_every_rule_is_kept(tmp_path, n, subtypes, mpp):
    whole = result(findings(n, subtypes=subtypes, mpp=mpp), info(mpp=mpp), HOLED)
    path = tmp_path / "findings.geojson"
    path.write_bytes(geojson_bytes(whole))
    assert geojson_check.faults(geojson_check.load(path)) == []


def test_one_detection_a_figure_around_its_place_with_its_numbers():
    table = findings(300, subtypes=True)
    mf = table[table["is_mf"]].set_index("id")
    features = geojson_check.of_class(feature_collection(result(table)), "AMF", "NMF")
    assert [feature["id"] for feature in features] == list(mf.index)
    for feature in features:
        row, properties = mf.loc[feature["id"]], feature["properties"]
        outline = shape(feature["geometry"])
        assert (outline.centroid.x, outline.centroid.y) == pytest.approx((row.x_l0, row.y_l0), abs=0.02)
        assert outline.bounds[2] - outline.bounds[0] == pytest.approx(25 / 0.25, abs=0.02)
        assert properties["objectType"] == "detection"
        assert properties["isLocked"] is False
        assert properties["classification"]["name"] == row.label
        assert properties["metadata"] == {"finding": feature["id"], "subtype": row.subtype}
        assert properties["measurements"]["p_atypical"] == row.p_atypical
        assert properties["measurements"]["p_multipolar"] == row.p_multipolar


def test_figures_are_round_in_micrometres_where_pixels_are_not_square():
    mpp = Mpp(0.25, 0.5)
    features = feature_collection(result(findings(1, p_mitosis=0.9, mpp=mpp), info(mpp=mpp)))
    left, top, right, bottom = shape(geojson_check.of_class(features, "AMF", "NMF")[0]["geometry"]).bounds
    assert ((right - left) * 0.25, (bottom - top) * 0.5) == pytest.approx((25, 25), abs=0.02)


def test_missing_probabilities_are_left_out():
    table = findings(5, p_mitosis=0.9, subtypes=True)
    table["p_ring"] = np.nan
    text = geojson_bytes(result(table)).decode()
    assert "NaN" not in text
    assert "p_ring" not in text


def test_annotations_are_locked_and_give_area_and_count():
    whole = result(findings(100), tissue=HOLED)
    features = feature_collection(whole)
    tissue, hotspot = (geojson_check.of_class(features, name)[0] for name in ("Tissue", "Hot spot"))
    for feature in (tissue, hotspot):
        assert feature["properties"]["objectType"] == "annotation"
        assert feature["properties"]["isLocked"] is True
    assert shape(tissue["geometry"]).equals(HOLED)
    box = whole.hotspot.box
    assert shape(hotspot["geometry"]).bounds == pytest.approx((box.x, box.y, box.right, box.bottom), abs=0.01)
    assert hotspot["properties"]["measurements"] == {"mf_count": whole.hotspot.count, "area_mm2": 2.0}
    assert hotspot["properties"]["name"] == f"Hot spot: {whole.hotspot.count} MF in 2 mm²"


def test_tissue_without_area_is_left_out_not_written_broken():
    features = feature_collection(result(findings(5), tissue=MultiPolygon([shapely.box(0, 0, 0.004, 9)])))
    assert geojson_check.faults(features) == []
    assert geojson_check.of_class(features, "Tissue") == []


@pytest.mark.parametrize(
    ("bounds", "crop", "shift"),
    [
        (BOUNDS, True, (1000, 500)),
        (BOUNDS, False, (0, 0)),
        (None, True, (0, 0)),
        (Box(1000, 0, 5000, 6000), True, (0, 0)),
    ],
    ids=["cropped", "switched off", "no bounds", "height not cropped"],
)
def test_coordinates_count_from_qupaths_corner(bounds, crop, shift):
    table = findings(60)
    plain = feature_collection(result(table))
    moved = feature_collection(result(table, info(bounds=bounds), qupath_crop=crop))
    for before, after in zip(plain["features"], moved["features"], strict=True):
        expected = np.subtract(shapely.get_coordinates(shape(before["geometry"])), shift)
        assert shapely.get_coordinates(shape(after["geometry"])) == pytest.approx(expected, abs=0.011)
        assert before["id"] == after["id"]


def test_the_same_result_gives_the_same_bytes():
    assert geojson_bytes(result()) == geojson_bytes(result())


@given(st.lists(st.tuples(st.floats(0, 2000), st.floats(0, 2000)), min_size=3, max_size=12))
@example([(0.0, 0.0), (0.0, 1.0), (5.5e-292, 0.0)])
@settings(max_examples=60, deadline=None)
def test_any_outline_becomes_a_valid_one(points):
    collection = feature_collection(result(findings(1), tissue=_area(points)))
    assert geojson_check.faults(json.loads(json.dumps(collection))) == []


def _area(points) -> MultiPolygon:
    """A self-crossing outline made valid, with the slivers and touching rings that this leaves."""
    valid = shapely.make_valid(Polygon(points))
    parts = [part for part in shapely.get_parts(valid) if part.geom_type in {"Polygon", "MultiPolygon"}]
    return MultiPolygon([p for part in parts for p in shapely.get_parts(part)] or [shapely.box(0, 0, 9, 9)])


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("geometry", "coordinates", 0, 0), [0, 0]),
        (("geometry", "type"), "Point"),
        (("properties", "measurements", "p_mitosis"), float("nan")),
        (("properties", "measurements", "p_mitosis"), "0.9"),
        (("properties", "metadata", "finding"), 3),
        (("properties", "classification", "color"), [0, 0, 256]),
        (("properties", "objectType"), "cell line"),
        (("properties", "extra"), 1),
        (("id",), "1"),
        (("objectType",), "detection"),
    ],
)
def test_the_checker_sees_faults(path, value):
    collection = json.loads(geojson_bytes(result(findings(3, p_mitosis=0.9))))
    place = collection["features"][-1]
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    assert geojson_check.faults(collection) != []


def test_the_checker_sees_twins_and_wrong_winding():
    collection = json.loads(geojson_bytes(result(findings(3, p_mitosis=0.9))))
    collection["features"][-1]["geometry"]["coordinates"][0].reverse()
    collection["features"][-2]["id"] = collection["features"][-1]["id"]
    assert len(geojson_check.faults(collection)) == 2
