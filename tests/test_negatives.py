"""Training on what is no figure: unlabelled fields, some of them held out, and places mined by a detector."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from fakes import dark_spots
from PIL import Image
from test_learn import COMMON
from typer.testing import CliRunner

from mitoscan.cli import app
from mitoscan.errors import ConfigError, DataError
from mitoscan.learn.config import DetectorTraining
from mitoscan.learn.data import CropSet
from mitoscan.learn.detector import MINED, blend, mine, start
from mitoscan.learn.fields import Field, Picture, load_negatives, load_unlabelled
from mitoscan.learn.run import train_from_config
from mitoscan.learn.sampling import CropSampler, Place

NONE = np.empty((0, 2))


@pytest.fixture
def data(tmp_path):
    """Two labelled and four unlabelled slides with a dark spot at (200, 100): a figure where labelled."""
    folder = tmp_path / "detection"
    folder.mkdir()
    slides = {"S1": "lab", "S2": "lab"} | {f"T{i}": "tiles_unlabelled" for i in range(4)}
    for slide in slides:
        picture = np.full((300, 400, 3), 220, np.uint8)
        picture[88:112, 188:212] = 30
        Image.fromarray(picture).save(folder / f"{slide}.png")
    rows = [(f"{s}.png", dataset, s, 400, 300, 0.25) for s, dataset in slides.items()]
    columns = ["field", "dataset", "slide", "width", "height", "mpp"]
    pd.DataFrame(rows, columns=columns).to_csv(folder / "fields.csv", index=False)
    points = [(f"{s}.png", 200.0, 100.0, "mitotic figure", None) for s in ("S1", "S2")]
    columns = ["field", "x", "y", "label", "confidence"]
    pd.DataFrame(points, columns=columns).to_csv(folder / "points.csv", index=False)
    return tmp_path


def recipe(**more):
    return DetectorTraining(task="detector", validation_slides=("S2",), crop_px=64, **COMMON, **more)


def field(shade: int, *figures: tuple[float, float]) -> Field:
    picture = np.full((400, 400, 3), shade, np.uint8)
    return Field(
        "f", "lab", f"s{shade}", 0.25, Picture(picture), np.array(figures).reshape(-1, 2), NONE, NONE
    )


def crop_set(images: np.ndarray) -> CropSet:
    n = len(images)
    none, names = np.zeros(n, np.int64), np.arange(n).astype(str)
    return CropSet(
        images, none == 1, np.zeros((n, 0), bool), none, none, slide=names, domain=names, xy=np.zeros((n, 2))
    )


def test_unlabelled_fields_are_split_and_doubtful_places_kept(data):
    negatives = {"hold_out": ("T1", "T3"), "doubtful": ({"slide": "T2", "x": 5, "y": 6},)}
    train, held_out = load_negatives(recipe(negatives=negatives), data)
    assert [f.slide for f in train] == ["T0", "T2"]
    assert [f.slide for f in held_out] == ["T1", "T3"]
    assert [f.doubtful.tolist() for f in train] == [[], [[5.0, 6.0]]]
    assert load_negatives(recipe(), data) == ([], [])
    for wrong in ({"hold_out": ("T9",)}, {"hold_out": (), "doubtful": ({"slide": "T9", "x": 0, "y": 0},)}):
        with pytest.raises(DataError, match="T9"):
            load_negatives(recipe(negatives=wrong), data)


def test_a_patient_in_the_held_out_tiles_and_in_the_training_fields_is_refused(data):
    table = pd.read_csv(data / "detection" / "fields.csv")
    table.loc[table["slide"] == "T1", "slide"] = "S1"
    table.to_csv(data / "detection" / "fields.csv", index=False)
    with pytest.raises(DataError, match="s1"):
        train_from_config("detector", config(data, "  negatives: {hold_out: [S1]}\n"), data, data / "out")


def test_batches_have_the_shares_that_the_config_states():
    config = recipe(on_mosaics=0.2, on_negatives=0.3, on_mined=0.1, on_figures=1.0, on_hard_negatives=0.0)
    crops = crop_set(np.full((3, 128, 128, 3), 10, np.uint8))
    mined = [Place(field(180), np.array([200.0, 200.0])), Place(field(181), np.array([200.0, 200.0]))]
    sampler = CropSampler([field(60, (200, 200))], config, crops, [field(120)], (mined, np.array([0.6, 0.2])))
    rng = np.random.default_rng(0)
    drawn = [sampler.draw(rng) for _ in range(3000)]
    shades, counts = np.unique([np.median(region) for region, _, _ in drawn], return_counts=True)
    share = dict(zip(shades.tolist(), counts / 3000, strict=True))
    assert share[10] == pytest.approx(0.2, abs=0.03)
    assert share[120] + share.get(255, 0) == pytest.approx(0.3, abs=0.04)
    assert share[60] == pytest.approx(0.4, abs=0.04)
    assert share[180] / share[181] == pytest.approx(3, rel=0.3)  # by score
    assert all(not len(figures) for region, figures, _ in drawn if np.median(region) in (120, 180, 181))


def test_mosaics_with_look_alikes_know_which_of_their_crops_show_figures():
    images = np.full((2, 128, 128, 3), 250, np.uint8)
    images[:, 60:68, 60:68] = 0
    crops = crop_set(images)
    spot = np.full((400, 400, 3), 250, np.uint8)
    spot[196:204, 196:204] = 120
    hard = Field("h", "lab", "S1", 0.25, Picture(spot), NONE, np.array([[200.0, 200.0]]), NONE)
    config = recipe(on_mosaics=1.0, look_alikes=0.5)
    sampler = CropSampler([hard], config.model_copy(update={"crop_px": 256}), crops)
    rng = np.random.default_rng(0)
    dark = grey = 0
    for _ in range(20):
        region, targets, _ = sampler.draw(rng)
        figures = targets[:, :2]
        inside = figures[(np.abs(figures) < sampler.side / 2 - 5).all(axis=1)] + sampler.side / 2
        for x, y in np.round(inside).astype(int):
            assert region[y, x].max() == 0
        dark, grey = dark + len(inside), grey + int((region[..., 0] == 120).sum()) // 64
    assert dark == pytest.approx(grey, rel=0.25)


def test_what_is_mined_is_no_figure_and_nothing_doubtful():
    spots = [(100, 100), (300, 100), (100, 300), (300, 300)]
    picture = np.full((400, 400, 3), 220, np.uint8)
    for x, y in spots:
        picture[y - 12 : y + 12, x - 12 : x + 12] = 40
    at = Field(
        "f", "lab", "S1", 0.25, Picture(picture), np.array([[101.0, 99.0]]), NONE, np.array([[302.0, 100.0]])
    )
    places, scores = mine(dark_spots, [at], 0.1)
    assert sorted(tuple(np.round(p.xy, -1)) for p in places) == [(100, 300), (300, 300)]
    assert (scores >= 0.1).all()


def test_blending_moves_weights_and_statistics_a_share_of_the_way():
    one, other = (torch.nn.BatchNorm1d(2) for _ in range(2))
    for values in (other.weight.data, other.running_mean):
        values.fill_(3.0)
    blend(one, other, 0.25)
    assert one.weight.tolist() == [1.5, 1.5]
    assert one.running_mean.tolist() == [0.75, 0.75]


def config(folder, more: str = "") -> str:
    values = "".join(f"  {k}: {v}\n" for k, v in COMMON.items())
    path = folder / "tiny.yaml"
    path.write_text(f"train:\n  task: detector\n{values}  validation_slides: [S2]\n  crop_px: 64\n{more}")
    return str(path)


def test_a_second_round_starts_from_a_model_and_learns_what_it_wrongly_calls(data):
    tiles = "  negatives: {hold_out: [T1]}\n  on_negatives: 0.3\n"
    train_from_config("detector", config(data, tiles), data, data / "first")
    first = data / "first"
    rounds = f"{tiles}  start_from: {first}\n  mine_with: {first}\n  mine_on: negatives\n  start_share: 0.4\n"
    rounds += "  on_mined: 0.3\n  mined_from: 0.001\n"
    train_from_config("detector", config(data, rounds), data, data / "second")
    mined = pd.read_csv(data / "second" / MINED)
    assert len(mined)
    assert set(mined["slide"]) <= {"T0", "T2", "T3"}  # the held-out one is not searched
    assert mined["p_mitosis"].is_monotonic_decreasing
    assert [f.slide for f in load_unlabelled(data, config(data, tiles))] == ["T1"]
    with pytest.raises(ConfigError, match="tf_efficientnet_lite1"):
        start(recipe(start_from=str(data / "first"), backbone="tf_efficientnet_lite1"))
    arguments = ["evaluate", "detector", "--data", str(data), "--model", str(data / "first")]
    arguments += ["--slide", "S2", "--held-out-of", config(data, tiles), "-o", str(data / "out")]
    result = CliRunner().invoke(app, [*arguments, "--device", "cpu"])
    assert result.exit_code == 0, result.output
    assert "in 0.01 mm²" in result.output  # one tile


def test_a_config_that_holds_nothing_out_is_refused(data):
    with pytest.raises(ConfigError, match="holds no unlabelled"):
        load_unlabelled(data, config(data))
