"""One slide through all stages, with models whose answer is known: places, counts and sameness."""

from __future__ import annotations

import json
from pathlib import Path

import fakes
import numpy as np
import pytest
import shapely
import slides
import tifffile
from scipy.spatial import cKDTree

from mitoscan.config import ScanConfig
from mitoscan.errors import NoTissueError, RoiError, SlideReadError
from mitoscan.scan.pipeline import read_thumbnail, scan_slide
from mitoscan.slide.array_reader import ArraySlide
from mitoscan.slide.reader import open_slide
from mitoscan.slide.tissue import coarse_view
from mitoscan.slide.write import write_pyramid
from mitoscan.units import Box

SIZE = (2600, 2100)
RNG = np.random.default_rng(3)


def grid_of_marks(width: int, height: int, step: int = 260) -> list[tuple[float, float]]:
    """Marks all over the picture, at fractional places, some close to tile borders."""
    xs, ys = np.meshgrid(np.arange(90, width - 90, step), np.arange(90, height - 90, step))
    jitter = RNG.uniform(-40, 40, (2, xs.size))
    return [(float(x), float(y)) for x, y in zip(xs.ravel() + jitter[0], ys.ravel() + jitter[1], strict=True)]


def assert_finds(result, marks, within_um: float = 1.0) -> None:
    """Every mark is found once, nothing else, and in its place."""
    mpp = result.info.known_mpp()
    figures = result.findings[result.findings["is_mf"]]
    found = figures[["x_l0", "y_l0"]].to_numpy() * (mpp.x, mpp.y)
    distance, index = cKDTree(found).query(np.array(marks) * (mpp.x, mpp.y))
    assert len(found) == len(marks)
    assert len(set(index)) == len(marks)
    assert distance.max() < within_um


def scan(path, models=None, **config):
    return scan_slide(path, ScanConfig(**config), models=models or fakes.models())


@pytest.fixture(scope="module")
def marked(tmp_path_factory):
    marks = grid_of_marks(*SIZE)
    path = tmp_path_factory.mktemp("slides") / "marked.svs"
    write_pyramid(path, slides.with_marks(*SIZE, marks), 0.25)
    return path, marks


@pytest.mark.parametrize("mpp", [0.2273, 0.25, 0.263, 0.499])
def test_any_pixel_size_gives_the_right_places(tmp_path, mpp):
    width, height = (round(side * 0.25 / mpp) for side in SIZE)
    marks = grid_of_marks(width, height, round(260 * 0.25 / mpp))
    picture = slides.with_marks(width, height, marks, mpp=(mpp, mpp))
    write_pyramid(tmp_path / "s.svs", picture, mpp)
    assert_finds(scan(tmp_path / "s.svs"), marks)


def test_pixels_that_are_not_square(tmp_path):
    mpp = (0.25, 0.4)
    width, height = 2000, 1200
    marks = grid_of_marks(width, height, 200)
    picture = slides.with_marks(width, height, marks, mpp=mpp)
    slides.generic_tiff(tmp_path / "s.tif", picture, mpp=mpp)
    result = scan(tmp_path / "s.tif")
    assert_finds(result, marks)
    assert result.summary.mpp_x != result.summary.mpp_y


def test_single_level(tmp_path):
    marks = grid_of_marks(1500, 1200)
    write_pyramid(tmp_path / "s.svs", slides.with_marks(1500, 1200, marks), 0.25, downsamples=[1])
    assert_finds(scan(tmp_path / "s.svs"), marks)


def test_bounds_do_not_move_the_findings(tmp_path):
    marks = grid_of_marks(1500, 1200)
    path = slides.leica(
        tmp_path / "s.scn", slides.with_marks(1500, 1200, marks), canvas=(4096, 3072), offset=(1024, 768)
    )
    result = scan(path)
    assert result.info.bounds is not None
    assert_finds(result, [(x + 1024, y + 768) for x, y in marks])


def test_transparent_corners_are_glass(tmp_path):
    corners = {(0, 0), (7, 0), (0, 7), (7, 7)}
    path = slides.with_missing_tiles(tmp_path / "s.svs", 8, 8, corners)
    result = scan(path)
    assert len(result.findings) == 0  # black corners would be dark spots
    tissue = (64 - len(corners)) * (256 * 0.25e-3) ** 2
    assert result.summary.tissue_mm2 == pytest.approx(tissue, rel=0.1)


@pytest.mark.parametrize(
    "change",
    [{"grid_shift_px": 16}, {"grid_shift_px": 203}, {"batch_size": 5}, {"readers": 1}, {"readers": 4}],
    ids=str,
)
def test_findings_do_not_depend_on_how_they_are_computed(marked, change):
    path, marks = marked
    usual, other = scan(path), scan(path, **change)
    assert_finds(other, marks)
    a, b = (r.findings[r.findings["is_mf"]] for r in (usual, other))
    if "grid_shift_px" in change:  # cells lie elsewhere: the same figures, places within a pixel
        np.testing.assert_allclose(a[["x_l0", "y_l0"]], b[["x_l0", "y_l0"]], atol=1.5)
    else:
        assert a.equals(b)


def test_no_tile_is_read_twice(marked, monkeypatch):
    from mitoscan.slide.base import Slide

    path, _ = marked
    read = []
    original = Slide.read
    monkeypatch.setattr(
        Slide, "read", lambda self, box, w, h: read.append((box, w)) or original(self, box, w, h)
    )
    scan(path)
    tiles = [box for box, width in read if width == 512]
    assert len(tiles) == len(set(tiles)) > 20


def test_roi_limits_what_is_counted(marked, tmp_path):
    path, marks = marked
    polygon = [[0, 0], [1300, 0], [1300, 1050], [0, 1050], [0, 0]]
    roi = tmp_path / "roi.geojson"
    roi.write_text(json.dumps({"type": "Polygon", "coordinates": [polygon]}))
    result = scan(path, roi=roi)
    assert_finds(result, [(x, y) for x, y in marks if x < 1300 and y < 1050])
    assert result.summary.tissue_mm2 == pytest.approx(1300 * 1050 * 0.25e-3**2, rel=0.03)


def test_roi_off_the_tissue_is_an_error(tmp_path):
    picture = np.full((1200, 3000, 3), slides.GLASS, np.uint8)
    slides.paint_tissue(picture, 100, 100, 1000, 1000)
    write_pyramid(tmp_path / "s.svs", picture, 0.25)
    roi = tmp_path / "roi.geojson"
    ring = [[2500, 100], [2900, 100], [2900, 500], [2500, 500], [2500, 100]]
    roi.write_text(json.dumps({"type": "Polygon", "coordinates": [ring]}))
    with pytest.raises(RoiError, match="no tissue"):
        scan(tmp_path / "s.svs", roi=roi)


def test_no_tissue_is_an_error_unless_told_to_scan_everything(tmp_path):
    write_pyramid(tmp_path / "glass.svs", np.full((1000, 1000, 3), slides.GLASS, np.uint8), 0.25)
    with pytest.raises(NoTissueError, match="--no-tissue-mask"):
        scan(tmp_path / "glass.svs")
    result = scan(tmp_path / "glass.svs", tissue_mask=False)
    assert result.summary.mf_count == 0
    assert result.summary.amf_rate is None
    assert result.summary.tissue_mm2 == pytest.approx(0.0625)


def test_threshold_moves_the_count_but_keeps_the_findings(marked):
    path, marks = marked
    low, high = scan(path), scan_slide(path, ScanConfig(threshold=0.99), models=fakes.models(0.99))
    assert low.summary.mf_count == len(marks)
    assert high.summary.mf_count == 0
    assert len(high.findings) == len(marks)
    assert high.findings["label"].eq("").all()


def test_candidates_far_below_are_kept_but_not_classified(marked):
    path, _ = marked
    result = scan(path, models=fakes.models(0.99), threshold=0.99)
    weak = result.findings["p_mitosis"] < 0.99 * 0.5
    assert (result.findings["p_atypical"].isna() == weak).all()


def test_damaged_pixels_are_an_error_with_the_path(tmp_path):
    path = tmp_path / "s.svs"
    write_pyramid(path, slides.with_marks(2000, 2000, grid_of_marks(2000, 2000)), 0.25)
    content = bytearray(path.read_bytes())
    start = len(content) // 4
    content[start : start + 20_000] = bytes(20_000)
    path.write_bytes(content)
    with pytest.raises(SlideReadError, match=r"s\.svs"):
        scan(path)


def test_detect_on_an_array_gives_its_own_pixels():
    marks = grid_of_marks(1500, 1100)
    for mpp in (0.25, 0.5):
        scale = 0.25 / mpp
        width, height = round(1500 * scale), round(1100 * scale)
        spots = [(x * scale, y * scale) for x, y in marks]
        image = slides.with_marks(width, height, spots, mpp=(mpp, mpp))
        found = fakes.models().detector.detect(image, mpp)
        found = found[found["is_mf"]]
        distance, _ = cKDTree(found[["x", "y"]]).query(spots)
        assert len(found) == len(spots)
        assert distance.max() * mpp < 1.0


def test_crops_cut_from_tiles_are_those_that_would_be_read(marked):
    path, marks = marked
    wide = fakes.models(margin_px=96)
    near = fakes.models(margin_px=64)
    reach = wide.classifier.reach_px
    assert near.detector.card.margin_px < reach < wide.detector.card.margin_px
    cut, read = scan(path, wide), scan(path, near)
    assert cut.seconds["classify"] < read.seconds["classify"]
    columns = ["x_l0", "y_l0", "p_atypical", "label"]
    by_place = [r.findings[r.findings["is_mf"]].sort_values(["y_l0", "x_l0"])[columns] for r in (cut, read)]
    assert len(by_place[0]) == len(marks)
    np.testing.assert_allclose(by_place[0][columns[:3]], by_place[1][columns[:3]], atol=1e-9)
    assert list(by_place[0]["label"]) == list(by_place[1]["label"])


def bytes_read() -> int:
    """What this process has asked of files so far (Linux)."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(dict(line.split(": ") for line in lines)["rchar"])


def read_once(path: Path, area) -> int:
    """Bytes that reading each stored tile of ``area`` once takes."""
    with tifffile.TiffFile(path) as tiff:
        side = tiff.pages[0].tilewidth
    shapely.prepare(area)
    with open_slide(path) as slide:
        before = bytes_read()
        for y in range(0, slide.info.height_l0 - side, side):
            for x in range(0, slide.info.width_l0 - side, side):
                if shapely.intersects(area, shapely.box(x, y, x + side, y + side)):
                    slide.read(Box(x, y, side, side), side, side)
        return bytes_read() - before


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="only Linux counts a process's reads")
def test_the_tissue_is_decoded_once(tmp_path):
    picture = np.full((4000, 7500, 3), 240, np.uint8)
    slides.paint_tissue(picture, 400, 300, 6500, 3400)
    path = tmp_path / "s.svs"
    write_pyramid(path, picture, 0.25)
    models = fakes.models(threshold=0.9, input_px=2048, margin_px=96)
    scan(path, models)  # whatever is imported late
    before = bytes_read()
    result = scan(path, models, readers=2)
    read = bytes_read() - before
    tissue = read_once(path, result.tissue)
    assert tissue < read < 1.25 * tissue


def test_the_thumbnail_comes_from_the_mask_picture_where_that_is_fine_enough(monkeypatch):
    picture = RNG.integers(0, 255, (200, 3200, 3), dtype=np.uint8)
    slide = ArraySlide(np.repeat(picture, 2, axis=0), 8.0)
    read = read_thumbnail(slide)
    view = coarse_view(slide)
    monkeypatch.setattr(ArraySlide, "read", lambda *_: pytest.fail("read again"))
    shrunk = read_thumbnail(slide, view)
    assert shrunk.shape == read.shape == (200, 1600, 3)
    inside = np.s_[2:-2, 2:-2]  # beyond the border a read sees white
    np.testing.assert_allclose(shrunk.astype(int)[inside], read[inside], atol=2)
