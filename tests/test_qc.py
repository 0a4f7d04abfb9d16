"""Quality flags: each slide made bad on purpose raises its flag and no other; good ones raise none."""

from __future__ import annotations

import numpy as np
import pytest
import shapely
import slides
from fakes import card
from PIL import Image
from results import info
from scipy import ndimage
from shapely import MultiPolygon

from mitoscan.config import ScanConfig
from mitoscan.demo import draw_field
from mitoscan.errors import DataError, ModelError
from mitoscan.learn.reference import cross_fitted, distances_by_slide, fit_likeness, focus_reference
from mitoscan.models import networks, runtime
from mitoscan.models.card import checked_weights, load_card, save_card
from mitoscan.models.likeness import REFERENCE_NAME, load_likeness
from mitoscan.models.zoo import find_model
from mitoscan.report.record import run_record
from mitoscan.scan.focus import blocks_of, sharpness
from mitoscan.scan.pipeline import load_models, scan_slide
from mitoscan.scan.qc import Quality, fold_mm2, folds, pen_mm2
from mitoscan.scan.score import SCORE_FLAGS
from mitoscan.slide.tissue import CoarseView
from mitoscan.slide.write import write_pyramid
from mitoscan.units import Mpp

CPU = ScanConfig(device="cpu")
RNG = np.random.default_rng(5)


@pytest.fixture(scope="module")
def models():
    return load_models(CPU)


@pytest.fixture(scope="module")
def field():
    return draw_field(21, 2400, 1800, 14).image


def blurred(picture):
    return ndimage.gaussian_filter(picture.astype(np.float32), (1.5, 1.5, 0)).round().astype(np.uint8)


def hue_turned(picture):
    hsv = np.array(Image.fromarray(picture).convert("HSV"))
    hsv[..., 0] += 40  # of 256: 56 degrees
    return np.asarray(Image.fromarray(hsv, "HSV").convert("RGB"))


def inked(picture):
    marked = picture.copy()
    marked[:, 1000:1520] = (30, 60, 170)
    return marked


def folded(picture):
    """A pleat lets the light through three layers."""
    pleat = picture.copy()
    part = pleat[:, 700:1000].astype(float)
    pleat[:, 700:1000] = (246 * (part / 246).clip(0, 1) ** 3).round()
    return pleat


@pytest.mark.parametrize(
    ("spoil", "number", "flag"),
    [
        (lambda p: p, None, None),
        (blurred, "out_of_focus_share", "of tissue out of focus"),
        (hue_turned, "unlike_distance", "image unlike the training data (distance"),
        (inked, "pen_mm2", "pen marks: 0."),
        (folded, "fold_mm2", "folds: 0."),
    ],
    ids=["good", "blurred", "hue turned", "inked", "folded"],
)
def test_a_spoilt_slide_raises_its_flag_and_only_it(tmp_path, field, models, spoil, number, flag):
    write_pyramid(tmp_path / "s.svs", spoil(field), 0.25)
    result = scan_slide(tmp_path / "s.svs", CPU, models=models)
    flags = [f for f in result.summary.qc_flags if f not in SCORE_FLAGS]
    assert result.quality.not_assessed == {}
    assert None not in result.quality.numbers().values()
    if flag is None:
        assert flags == []
        return
    assert len(flags) == 1
    assert flag in flags[0]
    assert getattr(result.summary, number) == result.quality.numbers()[number] > 0
    assert run_record(result)["quality"][number] == result.quality.numbers()[number]


@pytest.mark.data
@pytest.mark.parametrize("name", ["canine_region", "mitos14_H17_assembled"])
def test_real_slides_stay_clean(data_dir, models, name):
    summary = scan_slide(data_dir / "slides" / f"{name}.svs", CPU, models=models).summary
    found = [f for f in summary.qc_flags if f not in SCORE_FLAGS]
    if name == "canine_region":  # a species that the models never saw: to be called unlike is right
        found = [f for f in found if not f.startswith("image unlike")]
    assert found == []
    assert summary.out_of_focus_share is not None


def view_of(picture, mpp=8.0):
    """The picture as a slide's coarse view, with the slide and all of it as the area scanned."""
    height, width = picture.shape[:2]
    slide = info(width, height, Mpp(mpp, mpp))
    return CoarseView(picture, mpp), slide, MultiPolygon([shapely.box(0, 0, width, height)])


def piece_of_tissue(width=400, height=300):
    picture = np.full((height, width, 3), slides.GLASS, np.uint8)
    slides.paint_tissue(picture, 60, 50, width - 120, height - 100)
    return picture


@pytest.mark.parametrize(
    "ink", [(30, 60, 170), (20, 120, 60), (25, 25, 28), (190, 25, 35)], ids=["blue", "green", "black", "red"]
)
def test_ink_of_any_colour_is_measured_and_is_no_fold(ink):
    picture = piece_of_tissue()
    picture[100:130, 150:250] = ink
    view, slide, area = view_of(picture)
    assert pen_mm2(view, slide, area) == pytest.approx(30 * 100 * 64e-6, rel=0.15)
    assert fold_mm2(folds(view), view, slide, area) == 0


def test_ink_far_from_what_is_scanned_dust_and_padding_do_not_count():
    picture = piece_of_tissue()
    picture[10:30, 350:395] = (30, 60, 170)
    picture[200:230, 20:50] = (150, 148, 151)
    picture[:, :12] = 0
    view, slide, _ = view_of(picture)
    tissue = MultiPolygon([shapely.box(60, 50, 300, 250)])
    assert pen_mm2(view, slide, tissue) == 0


def test_sharpness_falls_with_blur_and_does_not_depend_on_the_stain(field):
    block = field[800:928, 1100:1228]
    values = [sharpness(ndimage.gaussian_filter(block, (s, s, 0))) for s in (0, 1, 2)]
    assert values[0] > values[1] > values[2] > 0.25
    pale = (255 * (block / 255) ** 0.5).round().astype(np.uint8)
    assert sharpness(pale) == pytest.approx(values[0], rel=0.03)
    assert np.isnan(sharpness(np.full_like(block, 244)))
    assert np.isnan(sharpness(np.full_like(block, (205, 130, 185))))


def test_blocks_lie_inside_the_margin():
    image = np.zeros((1024, 1024, 3), np.uint8)
    image[96:-96, 96:-96] = 1
    blocks = blocks_of(image, 96)
    assert len(blocks) == 9
    assert all(block.shape == (128, 128, 3) and block.all() for block in blocks)
    assert blocks_of(image[:100, :100]) == []


def test_the_embedding_leaves_the_probabilities_as_they_are(tmp_path, monkeypatch):
    folder, its_card = find_model(None, "classifier")
    weights = checked_weights(folder, its_card)
    crops = RNG.integers(0, 255, (3, 128, 128, 3), dtype=np.uint8)

    def both():
        made = runtime.load_network(weights, its_card)
        return runtime.TorchRuntime(made, "cpu"), runtime.OpenVinoRuntime(weights, its_card)

    monkeypatch.setenv("MITOSCAN_CACHE", str(tmp_path / "with"))
    embedding = both()
    monkeypatch.setenv("MITOSCAN_CACHE", str(tmp_path / "without"))
    monkeypatch.setattr(networks, "runnable", lambda network: networks.Probabilities(network).eval())
    plain = both()
    found = [r.with_embedding(crops) for r in embedding]
    for (p, _), other in zip(found, plain, strict=True):
        np.testing.assert_array_equal(p, other(crops))
        assert other.with_embedding(crops)[1] is None
    np.testing.assert_allclose(found[0][1], found[1][1], atol=1e-4)
    assert found[0][1].shape == (3, 32)


def test_an_old_card_loads_and_only_the_record_says_that_nothing_was_assessed(tmp_path, field, models):
    old = card("detector").model_dump(exclude={"reference"})
    assert type(models.detector.card).model_validate(old).reference is None
    quality = Quality(not_assessed={"unlike_distance": "no reference"})
    assert quality.flags(card("detector"), card("classifier"), 1.0) == ()
    write_pyramid(tmp_path / "s.svs", field[:600, 600:1400], 0.25)
    from fakes import models as fakes

    result = scan_slide(tmp_path / "s.svs", CPU.model_copy(update={"tissue_mask": False}), models=fakes())
    assert set(result.quality.numbers().values()) == {None}
    assert set(run_record(result)["quality"]["not_assessed"]) == set(result.quality.numbers())
    assert not any("assessed" in flag for flag in result.summary.qc_flags)


def drawn(slides_count, crops, rng, shift=0.0):
    """Embeddings of slides that differ, and of crops that differ within them."""
    centres = rng.normal(0, 1, (slides_count, 6)) + shift
    names = np.repeat([f"s{i:03}" for i in range(slides_count)], crops)
    return np.repeat(centres, crops, axis=0) + rng.normal(0, 2, (len(names), 6)), names


def test_the_distance_is_about_one_however_many_crops_and_grows_with_the_difference():
    rng = np.random.default_rng(1)
    reference = fit_likeness(*drawn(200, 8, rng))
    for crops in (5, 50):
        assert np.mean(distances_by_slide(reference, *drawn(100, crops, rng))) == pytest.approx(1, abs=0.15)
    assert np.min(distances_by_slide(reference, *drawn(30, 20, rng, shift=5.0))) > 2


def test_the_stated_false_alarms_hold_on_slides_that_made_nothing():
    rng = np.random.default_rng(2)
    embeddings, names = drawn(200, 8, rng)
    limit, tested, alarms = cross_fitted(embeddings, names)
    assert tested == 200
    assert 1 <= alarms <= 15
    fresh = distances_by_slide(fit_likeness(embeddings, names), *drawn(400, 8, rng))
    assert 0.005 <= (fresh > limit).mean() <= 0.06


def test_the_limit_of_focus_leaves_slides_in_focus_alone():
    rng = np.random.default_rng(3)
    names = np.repeat([f"s{i}" for i in range(30)], 40)
    values = rng.normal(0.33, 0.015, len(names))
    values[::7] = np.nan
    reference = focus_reference(values, names)
    assert 0.28 < reference.limit < 0.31
    assert (reference.slides, reference.tested, reference.false_alarms) == (30, 30, 0)
    with pytest.raises(DataError, match="slides"):
        focus_reference(values[:80], names[:80])


def test_a_damaged_reference_is_refused(tmp_path, models):
    shipped = find_model(None, "classifier")[0]
    save_card(load_card(shipped), tmp_path)
    with pytest.raises(ModelError, match="missing"):
        load_likeness(tmp_path, models.classifier.card)
    (tmp_path / REFERENCE_NAME).write_bytes(b"x" + (shipped / REFERENCE_NAME).read_bytes())
    with pytest.raises(ModelError, match="sha256"):
        load_likeness(tmp_path, models.classifier.card)
