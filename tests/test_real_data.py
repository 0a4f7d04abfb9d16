"""The shipped models on real slides, and on the synthetic one; skipped where the data is not."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import shapely
from geojson_check import faults, load
from scipy.spatial import cKDTree

import mitoscan
from mitoscan import ScanConfig, scan_slide
from mitoscan.demo import write_demo_slide
from mitoscan.learn.metrics import MATCH_RADIUS_UM, match
from mitoscan.models.card import checked_weights
from mitoscan.models.runtime import TorchRuntime, load_network
from mitoscan.models.zoo import find_model
from mitoscan.report.writer import write_slide
from mitoscan.scan.classify import Classifier
from mitoscan.scan.detect import Detector, keep_inside
from mitoscan.scan.findings import read_findings
from mitoscan.scan.pipeline import load_models
from mitoscan.scan.readers import ReaderPool
from mitoscan.slide.reader import open_slide
from mitoscan.slide.tissue import polygons_of

CPU = ScanConfig(device="cpu", subtypes=True)


@pytest.fixture(scope="module")
def models():
    return load_models(CPU)


def f1_and_match(xy_um, p, truth_um):
    matched = match(xy_um, p, truth_um, MATCH_RADIUS_UM)
    return 2 * (matched >= 0).sum() / (len(p) + len(truth_um)), matched


@pytest.fixture(scope="module")
def h17(data_dir, models):
    """The assembled slide: result, truth (level-0 px)."""
    path = data_dir / "slides" / "mitos14_H17_assembled.svs"
    truth = json.loads(path.with_suffix(".truth.geojson").read_text())["features"]
    points = np.array([f["geometry"]["coordinates"] for f in truth])
    return scan_slide(path, CPU, models=models), points


def field_corners(data_dir, frame) -> dict[str, np.ndarray]:
    """Top-left corners of the 27 fields on the slide (level-0 px), from the points that both name."""
    slides = data_dir / "slides"
    truth = json.loads((slides / "mitos14_H17_assembled.truth.geojson").read_text())["features"]
    points = pd.read_csv(data_dir / "detection" / "points.csv")
    points = points[points["label"] == "mitotic figure"]
    corners = {}
    for feature in truth:
        name = feature["properties"]["name"]
        of_field = points[points["field"].str.endswith(f"{name}.webp")][["x", "y"]].to_numpy()
        if name not in corners:
            on_slide = np.stack(frame.to_l0(of_field[:, 0], of_field[:, 1]), axis=1)
            corners[name] = np.round(np.array(feature["geometry"]["coordinates"]) - on_slide[0])
    return corners


@pytest.mark.data
def test_the_slide_gives_what_its_fields_give(h17, models):
    """Each field, cut from the slide and run alone, against the same field in the middle of the slide.

    (The fields as they lie in the data folder were resampled and compressed otherwise: their scores differ.)
    """
    result, truth = h17
    mpp = result.info.known_mpp()
    frame = result.info.frame(0.25)
    scale = (mpp.x, mpp.y)
    candidates = result.findings[["x_l0", "y_l0", "p_mitosis"]].to_numpy()
    corners = field_corners(result.info.path.parents[1], frame)
    assert len(corners) == 27

    def alone(shift: int):
        """What the fields show, with the network's grid moved by ``shift`` px."""
        every = []
        for corner in corners.values():
            x, y = (c - shift for c in frame.from_l0(*corner))
            width, height = 1512 + shift, 1350 + shift
            image = slide.read(frame.box_to_l0(x, y, width, height), width, height)
            table = models.detector.detect(image, 0.25)
            x_l0, y_l0 = frame.to_l0(table["x"].to_numpy() + x, table["y"].to_numpy() + y)
            every.append(np.stack([x_l0, y_l0, table["p_mitosis"]], axis=1))
        return np.concatenate(every)

    with open_slide(result.info.path) as slide:
        clear, moved = alone(0), alone(8)
    threshold = result.summary.detector_threshold

    def mean_f1(found):
        """Over a range of thresholds: at a single one a few scores beside it decide."""
        above = [found[found[:, 2] >= share * threshold] for share in np.linspace(0.5, 2, 16)]
        return np.mean([f1_and_match(part[:, :2] * scale, part[:, 2], truth * scale)[0] for part in above])

    assert len(truth) == 34
    # Where the grid falls within the network's stride of 16 px moves F1 by some .04 itself: two places of it.
    expected = (mean_f1(clear) + mean_f1(moved)) / 2
    assert mean_f1(candidates) == pytest.approx(expected, abs=0.05)
    # What the fields alone show clearly is on the slide, in its place.
    clear = clear[clear[:, 2] >= threshold]
    distance, nearest = cKDTree(candidates[:, :2] * scale).query(clear[:, :2] * scale)
    assert len(clear) >= 15
    assert (distance < 2).mean() >= 0.9
    # Calibrated scores lie steeply about the threshold; where the tiles' grid falls moves them by a tenth.
    assert np.median(np.abs(candidates[nearest, 2] - clear[:, 2])) < 0.2


@pytest.mark.data
def test_places_are_right_to_2_um_without_drift(h17):
    result, truth = h17
    mpp = result.info.known_mpp()
    scale = np.array([mpp.x, mpp.y])
    found = result.findings  # also what lies below the operating point: places, not scores, are tested
    xy = found[["x_l0", "y_l0"]].to_numpy()
    matched = match(xy * scale, found["p_mitosis"].to_numpy(), truth * scale, MATCH_RADIUS_UM)
    hit = matched >= 0
    offset = (xy[hit] - truth[matched[hit]]) * scale
    assert hit.sum() >= 12
    assert (np.abs(np.median(offset, axis=0)) < 2).all()
    assert np.median(np.hypot(*offset.T)) < 2
    for axis in (0, 1):  # a wrong pixel size would move findings by µm across the slide
        half = np.median(xy[hit, axis])
        low, high = offset[xy[hit, axis] < half, axis], offset[xy[hit, axis] >= half, axis]
        assert abs(np.median(low) - np.median(high)) < 2


@pytest.mark.data
def test_files_of_a_real_slide_agree(h17, tmp_path):
    result, _ = h17
    folder = write_slide(result, tmp_path)
    table = read_findings(folder / "findings.csv")
    summary = json.loads((folder / "summary.json").read_text())
    collection = load(folder / "findings.geojson")
    assert faults(collection) == []
    names = [
        f["properties"]["classification"]["name"]
        for f in collection["features"]
        if f["properties"]["objectType"] == "detection"
    ]
    assert names.count("AMF") == summary["amf_count"] == (table["label"] == "AMF").sum()
    assert names.count("NMF") == summary["nmf_count"] == (table["label"] == "NMF").sum()
    assert summary["mf_count"] == table["is_mf"].sum()
    assert summary["hotspot_count"] == (table["is_mf"] & table["in_hotspot"]).sum()


@pytest.mark.data
@pytest.mark.parametrize("change", [{"grid_shift_px": 448}, {"batch_size": 4}, {"readers": 4}], ids=str)
def test_real_findings_do_not_depend_on_how_they_are_computed(h17, models, change):
    usual = h17[0]
    other = scan_slide(usual.info.path, CPU.model_copy(update=change), models=models)
    a, b = (r.findings[r.findings["is_mf"]].reset_index(drop=True) for r in (usual, other))
    assert len(a) == len(b)
    np.testing.assert_allclose(a[["x_l0", "y_l0"]], b[["x_l0", "y_l0"]], atol=1.0)
    np.testing.assert_allclose(a[["p_mitosis", "p_atypical"]], b[["p_mitosis", "p_atypical"]], atol=0.01)


@pytest.mark.data
def test_the_quick_way_finds_what_the_plain_way_finds(h17, models):
    """Against small tiles of one size in eager PyTorch, one after the other, and crops read after merging."""
    info = h17[0].info
    area = polygons_of(
        shapely.intersection(h17[0].tissue, shapely.box(0, 0, info.width_l0 / 3, info.height_l0 / 2))
    )
    plain = []
    for task, card in (("detector", models.detector.card), ("classifier", models.classifier.card)):
        folder, _ = find_model(card.name, task)
        plain.append(TorchRuntime(load_network(checked_weights(folder, card), card), "cpu"))
    detector = Detector(models.detector.card.model_copy(update={"input_px": 1024}), plain[0], any_size=False)
    frame = info.frame(0.25)
    tiles = detector.plan(frame, info.width_l0, info.height_l0, area)
    assert {tile.size for tile in tiles} == {1024}
    with ReaderPool(lambda: open_slide(info.path), 1) as pool:
        found = keep_inside(area, detector.run(tiles, frame, pool))
        called = found.p >= detector.threshold
        x, y, p = found.x[called], found.y[called], found.p[called]
        p_atypical = Classifier(models.classifier.card, plain[1]).run(x, y, frame, pool)[:, 0]
    quick = h17[0].findings
    quick = quick[quick["is_mf"] & shapely.contains_xy(area, quick["x_l0"], quick["y_l0"])]
    assert len(quick) == len(p) > 0
    distance, same = cKDTree(np.stack([x, y], axis=1)).query(quick[["x_l0", "y_l0"]])
    assert distance.max() < 1
    np.testing.assert_allclose(quick["p_mitosis"], p[same], atol=0.01)
    np.testing.assert_allclose(quick["p_atypical"], p_atypical[same], atol=0.01)


@pytest.mark.data
def test_a_coarse_slide_runs_and_says_that_it_was_enlarged(data_dir, models):
    result = scan_slide(data_dir / "slides" / "cmu-1-small-region.svs", CPU, models=models)
    assert result.summary.mpp_x == pytest.approx(0.499)
    assert any("coarse" in flag for flag in result.summary.qc_flags)


def command(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "mitoscan.cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.data
def test_a_slide_without_pixel_size_needs_it_given(data_dir, tmp_path):
    slide = data_dir / "slides" / "tcga-cr-7395-01a-01-ts1.svs"
    refused = command("run", slide, "-o", tmp_path / "out")
    assert refused.returncode == 12
    assert "--mpp" in refused.stderr
    assert not list((tmp_path / "out").glob("*/*"))
    done = command("run", slide, "--mpp", "0.25", "-o", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert pd.read_csv(tmp_path / "out" / "slides.csv")["mpp_source"].tolist() == ["--mpp"]


@pytest.mark.data
def test_a_broken_slide_is_one_line(data_dir, tmp_path):
    refused = command("run", data_dir / "slides" / "broken.svs", "-o", tmp_path / "out")
    assert refused.returncode == 11
    assert "broken.svs" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert not list((tmp_path / "out").glob("*/*"))


def test_the_synthetic_figures_are_found_and_told_apart(tmp_path, models):
    """Proves the machinery, not the accuracy: the drawing was made to please detectors of real figures."""
    truth = write_demo_slide(tmp_path / "s.svs", seed=21)
    result = scan_slide(tmp_path / "s.svs", CPU, models=models)
    mf = result.findings[result.findings["is_mf"]]
    xy, points = mf[["x_l0", "y_l0"]].to_numpy() * 0.25, np.array([(f.x, f.y) for f in truth]) * 0.25
    _, matched = f1_and_match(xy, mf["p_mitosis"].to_numpy(), points)
    assert (matched >= 0).sum() >= 0.85 * len(truth)
    assert (matched < 0).sum() <= 0.3 * len(truth)
    labels = np.array([f.label for f in truth])[matched[matched >= 0]]
    called = mf["label"].to_numpy()[matched >= 0]
    assert (called[labels == "AMF"] == "AMF").mean() > (called[labels == "NMF"] == "AMF").mean() + 0.4


def test_the_demo_runs_and_says_where_to_look(tmp_path):
    done = command("demo", "-o", tmp_path / "demo", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    for name in ("report.html", "findings.csv", "summary.json", "findings.geojson"):
        assert (tmp_path / "demo" / "results" / "synthetic" / name).is_file()
        assert name in done.stdout
    assert "synthetic" in done.stdout


def test_the_python_interface_finds_and_classifies_on_arrays():
    from mitoscan.demo import draw_field

    field = draw_field(4, 1200, 1000, 8, glass=False)
    detector = mitoscan.load_detector(device="cpu")
    found = detector.detect(field.image, 0.25)
    assert list(found.columns) == ["x", "y", "p_mitosis", "is_mf"]
    assert found["is_mf"].sum() >= 4
    crops = np.stack([field.image[:128, :128], field.image[200:328, 300:428]])
    p = mitoscan.load_classifier(device="cpu").predict(crops)
    assert p.shape == (2,)
    assert ((p >= 0) & (p <= 1)).all()
