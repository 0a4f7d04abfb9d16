"""Somebody else's detections: every format lands in the same place, every fault has its reason."""

from __future__ import annotations

import gzip
import hashlib
import json

import fakes
import numpy as np
import pytest
import slides
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from results import info
from typer.testing import CliRunner

from mitoscan.cli import app
from mitoscan.cohort.job import Done, Job
from mitoscan.cohort.resume import Finished, Missing, look
from mitoscan.cohort.work import do_slide
from mitoscan.config import ScanConfig
from mitoscan.errors import CandidatesError, ConfigError
from mitoscan.report.writer import write_slide
from mitoscan.scan.candidate_files import SUFFIXES
from mitoscan.scan.candidates import CandidateFiles, check_place
from mitoscan.scan.pipeline import Models, load_first_stage, scan_slide
from mitoscan.slide.tissue import MultiPolygon
from mitoscan.slide.write import write_pyramid
from mitoscan.units import Box, Mpp

MARKS = [(300.0, 200.0), (700.5, 420.25), (1100.0, 900.0)]
NOWHERE = MultiPolygon()
BOUNDS = Box(500, 500, 7000, 5000)
LINE = {"type": "LineString", "coordinates": [[0, 0], [1, 1]]}


def feature(geometry, name=None, kind="annotation", **measurements):
    properties = {"objectType": kind, "measurements": measurements}
    if name:
        properties["classification"] = {"name": name, "color": [1, 2, 3]}
    return {"type": "Feature", "id": "a", "geometry": geometry, "properties": properties}


def point(x, y, **more):
    return feature({"type": "Point", "coordinates": [x, y]}, **more)


def circle(x, y, radius=40.0, **more):
    turns = np.linspace(0, 2 * np.pi, 25)
    ring = [[x + radius * np.cos(t), y + radius * np.sin(t)] for t in turns[:-1]]
    return feature({"type": "Polygon", "coordinates": [[*ring, ring[0]]]}, **more)


def write(path, content):
    text = content if isinstance(content, str) else json.dumps(content)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def collection(*features):
    return {"type": "FeatureCollection", "features": list(features)}


def points_mm(marks, mpp=(0.25, 0.25), **more):
    entries = [{"point": [x * mpp[0] / 1000, y * mpp[1] / 1000, 0.0], **more} for x, y in marks]
    return {
        "name": "Points of interest",
        "type": "Multiple points",
        "points": entries,
        "version": {"major": 1},
    }


def found(path, slide=None, **config):
    """Candidates (x, y) in level-0 px, their p, and the card."""
    (x, y, p), card = CandidateFiles().find(path, slide or info(), NOWHERE, ScanConfig(**config))
    order = np.argsort(x)
    return np.column_stack([x, y])[order], p[order], card


def table(rows, header="x_l0,y_l0"):
    return "\n".join([header, *(",".join(map(str, row)) for row in rows)]) + "\n"


FILES = {
    "l0.csv": table(MARKS),
    "um.csv": "\ufeff" + table([(x * 0.25, y * 0.5) for x, y in MARKS], "x_um,y_um"),
    "semicolons.csv": "y_l0;x_l0;note\r\n" + "".join(f"{y};{x};a,b\r\n" for x, y in MARKS),
    "points.json": points_mm(MARKS, (0.25, 0.5)),
    "points.geojson": collection(*(point(x, y) for x, y in MARKS)),
    "outlines.geojson.gz": collection(*(circle(x, y, kind="detection", name="Tumor") for x, y in MARKS)),
    "geo.json": [feature({"type": "MultiPoint", "coordinates": [list(m) for m in MARKS]})],
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_every_format_gives_the_same_level0_px(tmp_path, name):
    places, p, card = found(write(tmp_path / name, FILES[name]), info(mpp=Mpp(0.25, 0.5)))
    np.testing.assert_allclose(places, MARKS, atol=1e-6)
    assert (p == 1).all()
    assert card.sha256 == hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()


def test_a_stated_p_is_kept_and_a_missing_one_is_1(tmp_path):
    stated = points_mm(MARKS)
    stated["points"][0]["probability"], stated["points"][2]["probability"] = 0.9, 0.25
    rows = [(*MARKS[0], 0.9), (*MARKS[1], ""), (*MARKS[2], 0.25)]
    features = point(*MARKS[0], p_mitosis=0.9), point(*MARKS[1]), point(*MARKS[2], Probability=0.25)
    for name, content in (
        ("a.csv", table(rows, "x_l0,y_l0,P_mitosis")),
        ("a.json", stated),
        ("a.geojson", collection(*features)),
    ):
        assert found(write(tmp_path / name, content))[1].tolist() == [0.9, 1.0, 0.25]


def test_what_the_file_calls_something_else_is_left_out(tmp_path):
    geojson = collection(
        point(300, 200, name="Mitotic figure"),
        point(700, 400, name="Non-mitotic figure"),
        circle(700, 400, radius=1500, name="Tumor"),
        circle(900, 700, radius=500, name="Hot spot"),
    )
    places, _, card = found(write(tmp_path / "a.geojson", geojson))
    assert places.tolist() == [[300, 200]]
    assert (card.given, card.denied, card.regions) == (2, 2, 1)
    points = points_mm(MARKS[:1], name="mitotic figure")
    points["points"] += points_mm(MARKS[1:], name="non-mitotic figure")["points"]
    assert len(found(write(tmp_path / "a.json", points))[0]) == 1
    rows = table([(300, 200, "True"), (700, 400, "False")], "x_l0,y_l0,is_mf")
    assert len(found(write(tmp_path / "a.csv", rows))[0]) == 1


def test_duplicates_are_merged_and_the_best_stays(tmp_path):
    rows = [(300, 200, 0.5), (310, 200, 0.8), (300, 200, 0.5), (345, 200, 0.6)]  # 2.5 µm and 8.75 µm away
    places, p, card = found(write(tmp_path / "a.csv", table(rows, "x_l0,y_l0,p")))
    assert places.tolist() == [[310, 200], [345, 200]]
    assert p.tolist() == [0.8, 0.6]
    assert card.merged == 2


def test_geojson_counts_from_qupaths_corner_and_nothing_else_does(tmp_path):
    cropped = info(bounds=Box(1024, 768, 2000, 1500))
    geojson = write(tmp_path / "a.geojson", FILES["points.geojson"])
    np.testing.assert_allclose(found(geojson, cropped)[0], np.add(MARKS, (1024, 768)))
    np.testing.assert_allclose(found(geojson, cropped, qupath_crop=False)[0], MARKS)
    np.testing.assert_allclose(found(write(tmp_path / "a.csv", table(MARKS)), cropped)[0], MARKS)


@pytest.mark.parametrize(
    ("name", "content", "slide", "hint"),
    [
        ("a.csv", table([(7000, 5000)], "x_um,y_um"), {}, "fit if the numbers are level-0 px, not µm"),
        ("a.json", {"points": [{"point": [700, 500, 0]}]}, {}, "fit if the numbers are level-0 px, not mm"),
        ("a.csv", table([(100, 7000), (10, 10)]), {}, "x and y exchanged"),
        ("a.csv", table([(1e6, 7000)]), {}, "belongs to this slide"),
        ("a.geojson", collection(point(7900, 5900)), {"bounds": BOUNDS}, "--no-qupath-crop"),
        ("a.csv", table([(-1, 5)]), {}, "1 of 1 candidates lie outside example"),
    ],
)  # fmt: skip
def test_candidates_outside_the_slide_name_the_likely_mistake(tmp_path, name, content, slide, hint):
    with pytest.raises(CandidatesError, match=hint):
        found(write(tmp_path / name, content), info(**slide))


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.csv", "x,y\n1,2\n", "x_l0, y_l0"),
        ("a.csv", "", "found: nothing"),
        ("a.csv", "x_l0,y_l0\n1,2\n1,oops\n", "line 3: y is 'oops'"),
        ("a.csv", "x_l0,y_l0\n1\n", "line 2 has 1 cells"),
        ("a.csv", "x_l0,y_l0,p\n1,2,1.5\n", "p is 1.5"),
        ("a.csv", "x_l0,y_l0,is_mf\n1,2,maybe\n", "maybe"),
        ("a.txt", "x_l0,y_l0\n", "known format"),
        ("a.json", "{", "JSON"),
        ("a.json", '{"points": 3}', "no list"),
        ("a.json", '{"points": [{"point": [1]}]}', "point 1"),
        ("a.json", '{"points": [{"point": [1, true, 0]}]}', "point 1: y is True"),
        ("a.geojson", "[1, 2]", "not GeoJSON"),
        ("a.geojson", collection(feature(LINE)), "LineString"),
        ("a.geojson", collection(feature({"type": "Point", "coordinates": []})), "empty"),
        ("a.geojson", collection(point(1, 2, p=float("nan"))), "object 1: p is nan"),
    ],
)  # fmt: skip
def test_faulty_files_are_refused_with_the_reason(tmp_path, name, content, reason):
    with pytest.raises(CandidatesError, match=reason) as caught:
        found(write(tmp_path / name, content))
    assert caught.value.path == tmp_path / name


STATED = ("x_l0", "y_l0", "x_um", "y_um")
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
    | st.sampled_from(["Feature", "FeatureCollection", "Point", "Polygon", "GeometryCollection"]),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(
        st.sampled_from(["type", "features", "geometry", "geometries", "coordinates", "properties", "points",
                         "point", "name", "probability", "classification", "measurements", "value", "label"]),
        inner, max_size=5,
    ),
    max_leaves=12,
)  # fmt: skip
GEOMETRY = st.fixed_dictionaries(
    {
        "type": st.sampled_from(["Point", "MultiPoint", "Polygon", "MultiPolygon", "LineString", ""]),
        "coordinates": st.recursive(
            st.floats(-10, 9000) | st.integers() | st.none(), lambda i: st.lists(i, max_size=5), max_leaves=12
        ),
    }
)
FEATURE = st.fixed_dictionaries({"type": st.just("Feature"), "geometry": GEOMETRY, "properties": JSON})
CELLS = st.sampled_from([*STATED, "p", "is_mf", ",", ";", "1", "-3", "1e999", "nan", "é", "\n", "\x00", '"'])
CONTENTS = (
    st.binary(max_size=40)
    | (JSON | st.lists(FEATURE, max_size=3)).map(lambda value: json.dumps(value).encode())
    | st.lists(CELLS, max_size=20).map(lambda cells: "".join(cells).encode())
    | st.lists(CELLS, max_size=20).map(lambda cells: ("x_l0,y_l0,p\n" + ",".join(cells)).encode())
)  # fmt: skip


@given(data=CONTENTS, suffix=st.sampled_from(SUFFIXES))
@example(data=b"[" * 100_000, suffix=".json")
@example(data=b'{"points": [{"point": [1' + b"0" * 400 + b", 1, 0]}]}", suffix=".json")
@settings(max_examples=600, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_contents_end_in_a_traceback(tmp_path, data, suffix):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(gzip.compress(data) if suffix.endswith(".gz") and data[:1] != b"\x1f" else data)
    try:
        places, p, _ = found(path)
    except CandidatesError:
        return
    assert np.isfinite(places).all()
    assert ((places >= 0) & (places <= (8000, 6000))).all()
    assert ((p >= 0) & (p <= 1)).all()


# The whole way


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    path = tmp_path_factory.mktemp("slides") / "s.svs"
    write_pyramid(path, slides.with_marks(1500, 1200, MARKS), 0.25)
    return path


def scan(slide, place, **config):
    settings = ScanConfig(candidates=place, **config)
    models = Models(load_first_stage(settings), fakes.models().classifier)
    return scan_slide(slide, settings, models=models)


def test_only_the_second_stage_and_the_reports_run(tmp_path, slide):
    place = write(
        tmp_path / "mine.csv", table([(*MARKS[0], 0.9), (*MARKS[1], ""), (*MARKS[2], 0.2)], "x_l0,y_l0,p")
    )
    result = scan(slide, place)
    detected = scan_slide(slide, ScanConfig(), models=fakes.models())
    assert result.summary.mf_count == 3
    assert sorted(result.findings["p_mitosis"]) == [0.2, 0.9, 1.0]
    assert result.findings["p_atypical"].notna().all()
    assert result.summary.tissue_mm2 == detected.summary.tissue_mm2
    record = json.loads((write_slide(result, tmp_path / "out") / "record.json").read_text())
    assert "detector" not in record
    assert record["candidates"]["sha256"] == hashlib.sha256(place.read_bytes()).hexdigest()
    assert record["candidates"]["path"] == str(place)
    assert (result.summary.detector, result.summary.detector_sha256) == ("candidates", "")
    above = scan(slide, place, threshold=0.5)
    assert above.summary.mf_count == 2
    assert len(above.findings) == 3


def test_its_own_geojson_comes_back_as_it_was(tmp_path, slide):
    before = scan_slide(slide, ScanConfig(), models=fakes.models())
    folder = write_slide(before, tmp_path / "out")
    for name in ("findings.geojson", "findings.csv"):
        after = scan(slide, folder / name)
        columns = ["x_l0", "y_l0", "p_mitosis", "p_atypical"]
        figures = before.findings[before.findings["is_mf"]].reset_index(drop=True)
        np.testing.assert_allclose(after.findings[columns], figures[columns], atol=0.02)


def test_the_roi_drops_candidates_and_the_tissue_mask_does_not(tmp_path, slide):
    place = write(tmp_path / "a.csv", table(MARKS))
    roi = write(tmp_path / "roi.geojson", collection(circle(300, 200, radius=100)))
    assert scan(slide, place, roi=roi).summary.mf_count == 1
    glass = slides.GLASS
    picture = np.full((1200, 3000, 3), glass, np.uint8)
    picture[:, :1500] = slides.with_marks(1500, 1200, MARKS)
    write_pyramid(tmp_path / "half.svs", picture, 0.25)
    half = scan(tmp_path / "half.svs", write(tmp_path / "b.csv", table([*MARKS, (2500, 600)])))
    assert half.summary.mf_count == 4
    assert "candidates outside the area scanned" in half.summary.qc_flags
    assert half.summary.tissue_mm2 == pytest.approx(1500 * 1200 * 0.25**2 * 1e-6, rel=0.1)


def test_a_folder_has_a_file_for_each_slide(tmp_path):
    files = CandidateFiles()
    with pytest.raises(CandidatesError, match=r"no candidates for slide example"):
        files.find(tmp_path, info(), NOWHERE, ScanConfig())
    write(tmp_path / "example.csv", "x_l0,y_l0\n")
    (x, _, _), card = files.find(tmp_path, info(), NOWHERE, ScanConfig())
    assert len(x) == card.given == 0
    write(tmp_path / "example.json", points_mm(MARKS))
    with pytest.raises(CandidatesError, match="several files"):
        files.find(tmp_path, info(), NOWHERE, ScanConfig())


def test_a_detector_beside_candidates_is_a_contradiction(tmp_path):
    place = write(tmp_path / "a.csv", table(MARKS))
    with pytest.raises(ConfigError, match="no detector"):
        load_first_stage(ScanConfig(candidates=place, detector="detector-lite0"))
    with pytest.raises(CandidatesError, match="no such file"):
        check_place(tmp_path / "absent.csv", [tmp_path / "s.svs"])


def test_the_command_line(tmp_path, slide):
    place = write(tmp_path / "a.csv", table(MARKS))
    done = CliRunner().invoke(
        app, ["run", str(slide), "-o", str(tmp_path / "out"), "--candidates", str(place), "--device", "cpu"]
    )
    assert done.exit_code == 0, done.output
    assert json.loads((tmp_path / "out" / "s" / "summary.json").read_text())["mf_count"] == 3
    (tmp_path / "t.svs").write_bytes(slide.read_bytes())
    twice = CliRunner().invoke(
        app,
        ["run", str(slide), str(tmp_path / "t.svs"), "-o", str(tmp_path / "o"), "--candidates", str(place)],
    )
    assert isinstance(twice.exception, ConfigError)
    assert "one file of candidates for 2 slides" in str(twice.exception)


def test_a_changed_file_makes_the_slide_due_again(tmp_path, slide):
    """The file is found by the batch's name for the slide, which need not be that of its file."""
    folder, out = tmp_path / "detections", tmp_path / "out"
    folder.mkdir()
    place = write(folder / "case 7.csv", table(MARKS))
    job = Job("case 7", slide, ScanConfig(candidates=folder), out)
    cards = None, fakes.card("classifier")
    assert look(job, *cards) == Missing("")
    done = do_slide(job, lambda _: None, lambda c: Models(load_first_stage(c), fakes.models().classifier))
    assert isinstance(done, Done), done
    assert done.summary.mf_count == 3
    assert isinstance(look(job, *cards), Finished)
    write(place, table(MARKS[:2]))
    again = look(job, *cards)
    assert isinstance(again, Missing)
    assert again.reason.startswith("candidates")


def test_a_result_of_candidates_is_scored_again(tmp_path, slide):
    place = write(tmp_path / "a.csv", table([(*MARKS[0], 0.9), (*MARKS[1], 0.2)], "x_l0,y_l0,p"))
    folder = write_slide(scan(slide, place), tmp_path / "out")
    again = CliRunner().invoke(app, ["rescore", str(folder), "--threshold", "0.5"])
    assert again.exit_code == 0, again.output
    record = json.loads((folder / "record.json").read_text())
    assert json.loads((folder / "summary.json").read_text())["mf_count"] == 1
    assert record["candidates"]["threshold"] == 0.5
    assert "detector" not in record
