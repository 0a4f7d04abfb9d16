from __future__ import annotations

import math

import numpy as np
import pytest
import shapely
from PIL import Image
from slides import GLASS, TISSUE, paint_tissue, with_missing_tiles

from mitoscan.errors import MppError, NoTissueError
from mitoscan.slide import base
from mitoscan.slide.reader import open_slide
from mitoscan.slide.tissue import area_mm2, find_tissue, outline
from mitoscan.slide.write import TILE_PX, write_mosaic, write_pyramid
from mitoscan.units import Box, Mpp

MPP = 2.0
PIECE = (600, 400, 800, 500)
PIECE_MM2 = math.pi / 4 * 800 * 500 * MPP * MPP * 1e-6


def glass(width=2000, height=1500, colour=GLASS):
    """Empty glass with a little noise."""
    noise = np.random.default_rng(1).integers(-3, 4, (height, width, 3), dtype=np.int16)
    return np.clip(noise + np.array(colour, np.int16), 0, 255).astype(np.uint8)


@pytest.fixture
def tissue_of(tmp_path):
    def find(picture, mpp=MPP):
        Image.fromarray(picture).save(tmp_path / "a.bmp")
        with open_slide(tmp_path / "a.bmp", mpp=mpp) as slide:
            return find_tissue(slide)

    return find


def true_piece():
    x, y, width, height = PIECE
    ellipse = shapely.Point(0, 0).buffer(1, quad_segs=64)
    scaled = shapely.affinity.scale(ellipse, width / 2, height / 2, origin=(0, 0))
    return shapely.affinity.translate(scaled, x + width / 2, y + height / 2)


def assert_is_the_piece(area):
    """All of the piece, a rim of at most 40 µm, and nothing else."""
    assert area.is_valid
    assert area.buffer(2).contains(true_piece())
    assert true_piece().buffer(40 / MPP).contains(area)


@pytest.mark.parametrize(
    "colour",
    [
        (255, 255, 255),
        GLASS,
        (200, 200, 202),
        (170, 168, 171),
        (246, 240, 228),
        (245, 232, 240),
        (226, 232, 240),
    ],
    ids=["white", "usual", "grey", "dark grey", "yellowish", "pinkish", "bluish"],
)
def test_tissue_on_glass_of_any_tint(tissue_of, colour):
    picture = glass(colour=colour)
    paint_tissue(picture, *PIECE)
    assert_is_the_piece(tissue_of(picture))


@pytest.mark.parametrize(
    "ink",
    [(30, 60, 170), (15, 25, 110), (20, 120, 60), (0, 90, 90), (25, 25, 28), (190, 25, 35), (120, 190, 140)],
    ids=["blue", "navy", "green", "teal", "black", "red", "pale green"],
)
def test_pen_is_not_tissue(tissue_of, ink):
    picture = glass()
    paint_tissue(picture, *PIECE)
    picture[100:200, 100:1900] = ink
    picture[200:1400, 1700:1800] = ink
    fading = np.linspace(1, 0, 20)[:, None, None]
    picture[200:220, 100:1700] = fading * ink + (1 - fading) * np.array(GLASS)
    assert_is_the_piece(tissue_of(picture))


@pytest.mark.parametrize("colour", [(0, 0, 0), (40, 40, 40), (255, 255, 255)])
def test_borders_and_dust_are_not_tissue(tissue_of, colour):
    picture = glass()
    paint_tissue(picture, *PIECE)
    picture[:150] = colour
    picture[:, 1850:] = colour
    picture[1200:1300, 300:400] = (120, 118, 121)
    assert_is_the_piece(tissue_of(picture))


def test_a_tiny_core_survives_and_a_speck_does_not(tissue_of):
    picture = glass()
    paint_tissue(picture, 1000, 700, 150, 150)
    paint_tissue(picture, 300, 300, 20, 20)
    area = tissue_of(picture)
    assert len(area.geoms) == 1
    assert area.contains(shapely.Point(1075, 775))
    assert 0.07 <= area_mm2(area, Mpp(MPP, MPP)) < 0.12


def test_a_slide_that_is_all_tissue_is_all_found(tissue_of):
    picture = np.empty((1500, 2000, 3), np.uint8)
    picture[:] = (225, 150, 195)
    picture[:, :1000] = (236, 205, 226)
    picture[np.random.default_rng(0).random((1500, 2000)) < 0.15] = (110, 60, 140)
    picture[600:606, 700:706] = 245
    assert tissue_of(picture).equals(shapely.box(0, 0, 2000, 1500))


def test_faint_stroma_is_tissue(tissue_of):
    picture = glass()
    picture[400:900, 600:1400] = (236, 216, 231)
    assert tissue_of(picture).buffer(8).contains(shapely.box(600, 400, 1400, 900))  # a quarter of a mask px


def test_figures_at_the_very_border_of_the_tissue_are_inside(tissue_of):
    picture = glass()
    paint_tissue(picture, *PIECE)
    edge = true_piece().buffer(10 / MPP)
    assert tissue_of(picture).contains(edge)


def test_small_holes_are_filled_and_large_ones_kept(tissue_of):
    picture = glass()
    picture[200:1300, 200:1800] = TISSUE
    picture[400:450, 400:450] = GLASS
    picture[600:1000, 900:1300] = GLASS
    area = tissue_of(picture)
    assert area.contains(shapely.Point(425, 425))
    assert not area.contains(shapely.Point(1100, 800))
    assert area_mm2(area, Mpp(MPP, MPP)) == pytest.approx((1600 * 1100 - 400 * 400) * 4e-6, rel=0.06)


@pytest.mark.parametrize("colour", [(255, 255, 255), GLASS, (128, 128, 128), (0, 0, 0)])
def test_no_tissue_is_an_error_with_the_remedy(tissue_of, colour):
    with pytest.raises(NoTissueError, match=r"a\.bmp: .*--no-tissue-mask.*--roi"):
        tissue_of(glass(colour=colour))


def test_transparent_corners_are_no_tissue(tmp_path):
    corners = {(x, y) for x in (0, 1, 2, 9, 10, 11) for y in (0, 1, 2, 9, 10, 11)}
    path = with_missing_tiles(tmp_path / "a.svs", 12, 12, corners)
    with open_slide(path) as slide:
        area = find_tissue(slide)
    missing = [shapely.box(x, y, x + 572, y + 572) for x in (0, 2500) for y in (0, 2500)]
    assert not any(area.intersects(m) for m in missing)
    assert area.contains(shapely.box(780, 10, 2290, 3060))


def test_pixels_that_are_not_square(tmp_path):
    picture = glass(1000, 1500)
    picture[500:1000, 300:600] = TISSUE
    Image.fromarray(picture).save(tmp_path / "a.bmp")
    with open_slide(tmp_path / "a.bmp", mpp=4.0) as slide:
        object.__setattr__(slide.info, "mpp", Mpp(4.0, 2.0))
        area = find_tissue(slide)
        assert area.bounds == pytest.approx((295, 490, 605, 1010), abs=12)


def test_a_slide_without_pixel_size_is_refused(tmp_path):
    write_pyramid(tmp_path / "a.svs", np.full((40, 40, 3), TISSUE, np.uint8), None, downsamples=(1,))
    with open_slide(tmp_path / "a.svs", require_mpp=False) as slide, pytest.raises(MppError, match="--mpp"):
        find_tissue(slide)


def test_only_a_bounded_part_of_the_slide_is_ever_in_memory(tmp_path):
    tile = np.full((TILE_PX, TILE_PX, 3), TISSUE, np.uint8)
    write_mosaic(tmp_path / "a.svs", [tile], 30, 24, 0.25)
    with open_slide(tmp_path / "a.svs") as slide:
        object.__setattr__(slide.info, "levels", slide.info.levels[:1])
        largest, region = [], slide._region
        slide._region = lambda level, x, y, w, h: largest.append(w * h) or region(level, x, y, w, h)
        area = find_tissue(slide)
    assert area.equals(shapely.box(0, 0, 30 * 256, 24 * 256))
    assert max(largest) < 1.5 * base._MAX_SOURCE_PX


def test_outlines_enclose_the_mask_and_reach_its_edge():
    mask = np.zeros((20, 30), bool)
    mask[5:15, 8:20] = True
    mask[9:11, 12:15] = False
    area = outline(mask)
    assert area.bounds == (8, 5, 20, 15)
    assert len(area.geoms[0].interiors) == 1
    assert outline(np.ones((20, 30), bool)).bounds == (0, 0, 30, 20)


def test_area():
    box = Box(0, 0, 4000, 2000)
    area = shapely.MultiPolygon([shapely.box(0, 0, 4000, 2000)])
    assert area_mm2(area, Mpp(0.25, 0.5)) == pytest.approx(1.0) == box.area_mm2(Mpp(0.25, 0.5))


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "mpp", "low", "high"),
    [
        ("canine_region", None, 0.65, 0.9),
        ("mitos14_H17_assembled", None, 3.9, 4.6),
        ("cmu-1-small-region", None, 0.6, 0.85),
        ("tcga-cr-7395-01a-01-ts1", 0.25, 0.6, 0.75),
    ],
)
def test_real_slides_have_the_tissue_that_the_eye_sees(data_dir, name, mpp, low, high):
    with open_slide(data_dir / "slides" / f"{name}.svs", mpp=mpp) as slide:
        area = find_tissue(slide)
        assert area.is_valid
        assert low < area_mm2(area, slide.info.mpp) < high


@pytest.mark.data
def test_single_fields_are_all_tissue(data_dir):
    fields = sorted((data_dir / "detection" / "fields").rglob("*.webp"))[::45]
    for field in fields:
        with open_slide(field, mpp=0.25) as slide:
            whole = slide.info.width_l0 * slide.info.height_l0
            assert find_tissue(slide).area > 0.98 * whole


@pytest.mark.data
def test_all_labelled_figures_of_a_slide_lie_in_its_tissue(data_dir):
    import json

    slides = data_dir / "slides"
    truth = json.loads((slides / "mitos14_H17_assembled.truth.geojson").read_text())
    points = [shapely.Point(f["geometry"]["coordinates"]) for f in truth["features"]]
    with open_slide(slides / "mitos14_H17_assembled.svs") as slide:
        area = find_tissue(slide)
    assert len(points) == 34
    assert all(area.contains(p) for p in points)
