from __future__ import annotations

import gzip
import json

import pytest
import shapely
from slides import leica, with_marks

from mitoscan.errors import RoiError
from mitoscan.slide.reader import open_slide
from mitoscan.slide.roi import load_roi, qupath_origin
from mitoscan.slide.write import write_pyramid
from mitoscan.units import Box


@pytest.fixture(scope="module")
def info(tmp_path_factory):
    path = tmp_path_factory.mktemp("roi") / "plain.svs"
    write_pyramid(path, with_marks(1000, 800, []), 0.25)
    return open_slide(path).info


@pytest.fixture(scope="module")
def cropped(tmp_path_factory):
    path = tmp_path_factory.mktemp("roi") / "bounds.scn"
    return open_slide(leica(path, with_marks(1000, 704, []), canvas=(2000, 1504), offset=(300, 200))).info


def square(x, y, side=100):
    ring = [[x, y], [x + side, y], [x + side, y + side], [x, y + side], [x, y]]
    return {"type": "Polygon", "coordinates": [ring]}


def feature(geometry, **properties):
    return {"type": "Feature", "geometry": geometry, "properties": {"objectType": "annotation", **properties}}


@pytest.fixture
def write(tmp_path):
    def write(content):
        path = tmp_path / "roi.geojson"
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        return path

    return write


@pytest.mark.parametrize(
    "content",
    [
        square(10, 20),
        feature(square(10, 20)),
        [feature(square(10, 20))],
        {"type": "FeatureCollection", "features": [feature(square(10, 20))]},
        {"type": "MultiPolygon", "coordinates": [square(10, 20)["coordinates"]]},
        {"type": "GeometryCollection",
         "geometries": [square(10, 20), {"type": "Point", "coordinates": [1, 2]}]},
        {"type": "FeatureCollection", "features": [feature(square(10, 20)), feature(None),
         feature({"type": "LineString", "coordinates": [[0, 0], [5, 5]]})]},
    ],
    ids=["geometry", "feature", "list", "collection", "multi", "geometries", "others passed over"],
)  # fmt: skip
def test_all_shapes_of_geojson(write, info, content):
    area = load_roi(write(content), info, True)
    assert area.geom_type == "MultiPolygon"
    assert area.equals(shapely.box(10, 20, 110, 120))


def test_gzip(info, tmp_path):
    path = tmp_path / "roi.geojson.gz"
    path.write_bytes(gzip.compress(json.dumps(square(10, 20)).encode()))
    assert load_roi(path, info, True).area == 10_000


def test_overlaps_count_once_and_what_leaves_the_slide_is_cut_off(write, info):
    area = load_roi(write([square(0, 0), square(50, 0), square(950, 750)]), info, True)
    assert area.area == pytest.approx(150 * 100 + 50 * 50)
    assert area.is_valid


def test_holes_stay(write, info):
    polygon = square(0, 0, 200)
    polygon["coordinates"] += square(50, 50, 50)["coordinates"]
    assert load_roi(write(polygon), info, True).area == 200 * 200 - 50 * 50


def test_crossing_outlines_are_repaired(write, info):
    bow_tie = {"type": "Polygon", "coordinates": [[[0, 0], [100, 100], [100, 0], [0, 100], [0, 0]]]}
    area = load_roi(write(bow_tie), info, True)
    assert area.is_valid
    assert area.area == pytest.approx(5000)


def test_results_of_qupath_are_no_regions(write, info):
    cell = {"type": "Feature", "geometry": square(500, 500), "properties": {"objectType": "cell"}}
    area = load_roi(write([feature(square(10, 20)), cell]), info, True)
    assert area.equals(shapely.box(10, 20, 110, 120))


def test_qupath_counts_from_the_bounds(write, cropped):
    path = write(square(10, 20))
    assert qupath_origin(cropped) == (300, 200)
    assert load_roi(path, cropped, True).bounds == (310, 220, 410, 320)
    assert load_roi(path, cropped, False).bounds == (10, 20, 110, 120)


def test_qupath_crops_only_where_width_and_height_both_differ(info, cropped):
    import dataclasses

    assert qupath_origin(info) == (0, 0)
    for bounds in (Box(0, 200, 2000, 704), Box(300, 0, 1000, 1504), None):
        assert qupath_origin(dataclasses.replace(cropped, bounds=bounds)) == (0, 0)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "not GeoJSON"),
        ("not json", "not GeoJSON"),
        ("{}", "not GeoJSON"),
        ("3", "not GeoJSON"),
        ("[]", "no polygon"),
        ({"type": "FeatureCollection", "features": []}, "no polygon"),
        ({"type": "Point", "coordinates": [1, 2]}, "no polygon"),
        ({"type": "Polygon", "coordinates": []}, "no polygon"),
        ({"type": "Polygon"}, "bad coordinates"),
        ({"type": "Polygon", "coordinates": [[1, 2]]}, "bad coordinates"),
        ({"type": "Polygon", "coordinates": [[["a", "b"], [1, 2], [3, 4], ["a", "b"]]]}, "bad coordinates"),
        ('{"type":"Polygon","coordinates":[[[0,0],[NaN,5],[5,5],[0,0]]]}', "not numbers"),
        (square(5000, 5000), r"\(5000, 5000\) to \(5100, 5100\), lie outside plain"),
    ],
)
def test_faults_name_file_reason_and_remedy(write, info, content, reason):
    with pytest.raises(RoiError, match=rf"roi\.geojson: .*{reason}") as caught:
        load_roi(write(content), info, True)
    assert caught.value.remedy
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_a_broken_gzip(info, tmp_path):
    with pytest.raises(RoiError, match="no such file"):
        load_roi(tmp_path / "none.geojson", info, True)
    (tmp_path / "a.geojson.gz").write_bytes(b"no gzip")
    with pytest.raises(RoiError, match="cannot be read"):
        load_roi(tmp_path / "a.geojson.gz", info, True)
