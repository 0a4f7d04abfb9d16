from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path

import numpy as np
import openslide
import pytest

from mitoscan.demo import GLASS, PlantedFigure, draw_field, write_demo_slide
from mitoscan.errors import ConfigError
from mitoscan.models.card import SUBTYPES


@pytest.fixture(scope="module")
def field():
    return draw_field(3, 2400, 1600, 12)


def od(pixels: np.ndarray) -> np.ndarray:
    return -np.log10(np.maximum(pixels, 1) / GLASS)


def test_same_seed_draws_the_same_picture_and_another_seed_another():
    first, again, other = (draw_field(seed, 400, 300, 1) for seed in (1, 1, 2))
    assert np.array_equal(first.image, again.image)
    assert first.figures == again.figures
    assert not np.array_equal(first.image, other.image)


def test_picture_has_the_size_asked_for(field):
    assert field.image.shape == (1600, 2400, 3)
    assert field.image.dtype == np.uint8
    assert field.tissue.shape == (1600, 2400)


def test_glass_is_near_white_and_tissue_stained(field):
    glass = field.image[~field.tissue]
    assert 0.25 < field.tissue.mean() < 0.75
    assert np.abs(glass.mean(0) - GLASS).max() < 3
    red, green, blue = od(field.image[field.tissue]).mean(0)
    assert 0.05 < red < 0.4
    assert 0.2 < green < 0.8
    assert red < blue < green


def test_figures_have_the_count_asked_for_and_a_third_is_atypical(field):
    assert len(field.figures) == 12
    assert sum(f.label == "AMF" for f in field.figures) == 4
    assert all((f.label == "NMF") == (SUBTYPES.index(f.subtype) < 4) for f in field.figures)


def test_figures_lie_on_tissue_and_apart_from_each_other(field):
    for figure in field.figures:
        near = field.tissue[int(figure.y) - 40 : int(figure.y) + 41, int(figure.x) - 40 : int(figure.x) + 41]
        assert near.shape == (81, 81)
        assert near.all()
    assert min(np.hypot(a.x - b.x, a.y - b.y) for a, b in combinations(field.figures, 2)) * 0.25 >= 40


@pytest.mark.parametrize("mpp", [0.25, 0.2273, 0.4])
def test_figures_are_dark_and_centred_on_their_truth_whatever_the_pixel_size(mpp):
    scaled = draw_field(7, round(500 / mpp), round(350 / mpp), 9, mpp=mpp)
    dark = od(scaled.image)[..., 0] > 0.6
    reach = round(8 / mpp)
    for figure in scaled.figures:
        left, top = int(figure.x) - reach, int(figure.y) - reach
        rows, columns = np.nonzero(dark[top : top + 2 * reach + 1, left : left + 2 * reach + 1])
        assert 8 < rows.size * mpp**2 < 60
        centre = columns.mean() + left, rows.mean() + top
        # The truth is the middle of the figure's extent; lopsided figures weigh more on one side.
        tolerance_um = 3.5 if figure.label == "AMF" else 2
        assert np.hypot(centre[0] - figure.x, centre[1] - figure.y) * mpp < tolerance_um
    assert dark.mean() < 0.01


def test_given_figures_are_planted_where_they_were_asked_for_even_at_the_picture_border():
    wanted = [PlantedFigure(20.5, 300.5, "metaphase"), PlantedFigure(300.5, 200.5, "multipolar")]
    field = draw_field(5, 600, 400, wanted)
    assert field.figures == tuple(wanted)
    for figure in wanted:
        x, y = int(figure.x), int(figure.y)
        near = od(field.image[y - 15 : y + 16, max(x - 15, 0) : x + 16])[..., 0]
        assert (near > 0.6).sum() > 60


def test_field_without_figures_or_glass():
    field = draw_field(0, 300, 200, 0, glass=False)
    assert field.figures == ()
    assert field.tissue.all()


def test_another_pixel_size_shows_the_same_field():
    fine, coarse = draw_field(4, 1200, 900, 4), draw_field(4, 600, 450, 4, mpp=0.5)
    assert coarse.figures == tuple(PlantedFigure(f.x / 2, f.y / 2, f.subtype) for f in fine.figures)
    shrunk = fine.image.reshape(450, 2, 600, 2, 3).mean((1, 3))
    assert np.abs(shrunk - coarse.image).mean() < 4


def test_too_many_figures_and_unknown_subtypes_are_refused():
    with pytest.raises(ConfigError, match="do not fit"):
        draw_field(0, 300, 300, 50)
    with pytest.raises(ConfigError, match="telophase-ish"):
        draw_field(0, 300, 300, [PlantedFigure(150, 150, "telophase-ish")])


def test_demo_slide_opens_with_its_pixel_size_and_its_truth_lies_beside_it(tmp_path: Path):
    path = tmp_path / "synthetic.svs"
    truth = write_demo_slide(path, seed=2, mpp=0.5, width_mm=0.6, height_mm=0.5, figures=5)
    with openslide.OpenSlide(path) as slide:
        assert slide.dimensions == (1200, 1000)
        assert slide.level_count > 1
        assert float(slide.properties["openslide.mpp-x"]) == pytest.approx(0.5)
    features = json.loads((tmp_path / "synthetic.truth.geojson").read_text())["features"]
    assert len(features) == len(truth) == 5
    for feature, figure in zip(features, truth, strict=True):
        assert feature["geometry"] == {"type": "Point", "coordinates": [figure.x, figure.y]}
        assert feature["properties"]["classification"]["name"] == figure.label
        assert "synthetic" in feature["properties"]["name"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["synthetic.svs", "synthetic.truth.geojson"]
