"""Evaluation of detectors on fields with known truth; COCO data; training that stops and goes on."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from fakes import card, dark_spots
from PIL import Image
from torch import nn

from mitoscan.errors import DataError, ModelError, OutputError
from mitoscan.learn.config import CocoFile, DetectorTraining
from mitoscan.learn.detector import calibrate
from mitoscan.learn.detector_metrics import SHIFTS, finder, match_field, pooled, recall_at, table
from mitoscan.learn.evaluate_detector import evaluate_detector, markdown
from mitoscan.learn.fields import Field, Picture, load_coco, load_datasets, refuse_leak
from mitoscan.learn.metrics import Detections
from mitoscan.learn.train import CHECKPOINT, LOG, STATE, fit
from mitoscan.models.networks import HeatmapNet
from mitoscan.scan.detect import Detector

RNG = np.random.default_rng(0)
COMMON = {"name": "t", "description": "t", "steps": 6, "batch": 2, "learning_rate": 1e-2, "weight_decay": 0.0}
COMMON |= {"validate_every": 2, "trained_on": "my slides", "validated_on": "my others"}


def field(name: str, slide: str, dataset: str, figures: list[tuple[float, float]], **more) -> Field:
    """A light field of 0.01 mm² with a dark spot on each figure."""
    picture = np.full((400, 400, 3), 220, np.uint8)
    for x, y in figures:
        picture[int(y) - 12 : int(y) + 12, int(x) - 12 : int(x) + 12] = 40
    none = np.empty((0, 2))
    values = {"hard_negatives": none, "doubtful": none} | more
    return Field(name, dataset, slide, 0.25, Picture(picture), np.array(figures).reshape(-1, 2), **values)


def scored(at: Field, *found: tuple[float, float, float]):
    rows = np.array(found).reshape(-1, 3)
    return match_field(at, rows[:, :2], rows[:, 2])


def test_one_figure_counts_once_and_doubtful_look_alikes_neither_way():
    at = field("a", "S1", "lab", [(100, 100), (300, 300)], doubtful=np.array([[200.0, 50.0]]))
    m = scored(at, (104, 100, 0.9), (96, 100, 0.8), (200, 52, 0.7), (300, 340, 0.6))
    assert m.figure.tolist() == [0, -1, -1, -1]
    assert m.ignored.tolist() == [False, False, True, False]
    assert m.missed.tolist() == [1]
    assert m.detections().hit.tolist() == [True, False, False]


def test_a_shrunken_slide_shows_in_the_threshold_of_the_others():
    """Slide B's scores are half of A's: A's threshold finds nothing there, though B's own is perfect."""
    a = scored(
        field("a", "A", "lab", [(100, 100), (300, 300)]), (100, 100, 0.9), (300, 300, 0.8), (50, 300, 0.5)
    )
    b = scored(
        field("b", "B", "lab", [(100, 100), (300, 300)]), (100, 100, 0.4), (300, 300, 0.4), (50, 300, 0.1)
    )
    rows = {r.part: r for r in table([a, b], 0.6, resamples=50)}
    assert rows["lab/A"].f1 == 1
    assert rows["lab/B"].f1 == 0
    assert rows["lab/B"].best_f1 == 1
    assert rows["lab/B"].f1_of_others == 0
    assert 0.5 < rows["lab/B"].threshold_of_others < 0.8
    assert rows["all"].tp, rows["all"].fn == (2, 2)
    assert rows["all"].f1 == pytest.approx(2 / 3)
    assert rows["all"].low.f1 <= rows["all"].f1 <= rows["all"].high.f1
    assert rows["lab"].threshold_of_others is None  # one data set only


def test_the_operating_point_is_at_the_low_end_of_the_flat_top():
    """F1 after each detection: .18, .33, …; the top is at ten hits, two more false calls cost little."""
    found = Detections(
        np.array([0.9] * 10 + [0.5, 0.4, 0.1, 0.09, 0.08]), np.array([True] * 10 + [False] * 5), 10, 1.0
    )
    assert found.best_threshold() == pytest.approx(0.7)
    assert found.low_threshold(0.0) == pytest.approx(0.7)
    assert found.low_threshold(0.1) == pytest.approx(0.25)  # 20 / 22 is within .1 of 1, 20 / 23 is not
    assert Detections(np.empty(0), np.empty(0, bool), 3, 1.0).low_threshold(0.02) == 0.5


def test_recall_is_read_at_a_rate_of_false_positives():
    found = Detections(np.array([0.9, 0.8, 0.7, 0.6]), np.array([True, False, True, False]), 4, area_mm2=1.0)
    assert recall_at(found, 0.5) == 0.25
    assert recall_at(found, 1.0) == 0.5
    assert found.threshold_at_recall(0.5) == 0.7
    assert found.threshold_at_recall(0.9) == 0.6  # never reached: the lowest score


def test_the_evaluation_goes_the_way_of_a_scan_and_leaves_its_files(tmp_path):
    detector = Detector(card("detector"), dark_spots, 0.3)
    fields = [field(f"{s}{i}", s, "lab", [(120, 130), (300, 250)]) for s in "ABC" for i in range(2)]
    empty = [field("u", "U", "blank", []), field("v", "V", "blank", [(200, 200)])]
    result = evaluate_detector(detector, fields, tmp_path, negatives=empty, resamples=20)
    whole = result.rows[-1]
    assert (whole.figures, whole.tp, whole.fp) == (12, 12, 0)
    alarms = result.false_alarms[0]
    assert (alarms.name, alarms.count, alarms.mm2) == ("blank", 1, pytest.approx(0.02))
    assert (alarms.low, alarms.per_mm2, alarms.high) == (0, pytest.approx(50), pytest.approx(100))
    assert set(result.shifts) == set(SHIFTS)
    assert result.shifts["JPEG quality 50"] == 1
    stored = json.loads((tmp_path / "evaluation.json").read_text())
    assert stored["rows"][-1]["f1"] == 1
    assert stored["rows"][-1]["recall_high"] == 1
    assert stored["false_alarms"][0]["per_mm2"] == pytest.approx(50)
    for name in ("precision_recall.png", "froc.png", "reliability.png", "false_positives.png", "misses.png"):
        with Image.open(tmp_path / name) as picture:
            assert picture.size[0] > 100
    assert "| all | 12 |" in markdown(result, "m")


def test_shifts_change_the_picture_or_what_is_said_of_it_but_not_the_labels():
    at = field("a", "A", "lab", [(120, 130)])
    for name, shift in SHIFTS.items():
        moved = shift(at)
        assert np.array_equal(moved.figures, at.figures)
        assert (moved.mpp != at.mpp) == ("mpp" in name)


def test_deep_detections_reach_below_the_operating_point():
    find = finder(Detector(card("detector"), dark_spots, 0.9))
    xy, p = find(field("a", "A", "lab", [(120, 130)]))
    assert len(p) == 1
    assert p[0] < 0.9
    assert np.abs(xy[0] - (120, 130)).max() < 8


def coco(folder, **changes):
    Image.fromarray(np.full((300, 400, 3), 220, np.uint8)).save(folder / "001.tiff")
    values = {
        "images": [{"id": 1, "file_name": "001.tiff", "width": 400, "height": 300}],
        "annotations": [
            {"image_id": 1, "category_id": 1, "bbox": [75, 75, 125, 125], "id": 1},
            {"image_id": 1, "category_id": 2, "bbox": [175, 75, 225, 125], "id": 2},
        ],
        "categories": [{"id": 1, "name": "mitotic figure"}, {"id": 2, "name": "hard negative"}],
    }
    (folder / "MIDOG.json").write_text(json.dumps(values | changes))


def test_midog_boxes_are_corners_and_come_at_the_wanted_mpp(tmp_path):
    coco(tmp_path)
    (loaded,) = load_coco(CocoFile(file="MIDOG.json", images=".", mpp=0.5), tmp_path, 0.25)
    assert loaded.slide == "001"
    assert loaded.figures.tolist() == [[200, 200]]  # (100, 100) at 0.5 µm
    assert loaded.hard_negatives.tolist() == [[400, 200]]
    assert loaded.image.shape == (600, 800, 3)
    assert loaded.pixels.cut(np.array([0.0, 0.0]), 64)[:30, :30].min() == 255  # white outside
    assert loaded.area_mm2 == pytest.approx(0.03)


@pytest.mark.parametrize(
    "changes", [{"images": []}, {"annotations": [{"image_id": 1, "category_id": 1, "bbox": [1, 2]}]}]
)
def test_faulty_coco_is_refused_with_its_path(tmp_path, changes):
    coco(tmp_path, **changes)
    with pytest.raises(DataError, match=r"MIDOG\.json"):
        load_coco(CocoFile(file="MIDOG.json", images="."), tmp_path, 0.25)


def test_missing_pictures_are_counted(tmp_path):
    coco(tmp_path)
    (tmp_path / "001.tiff").unlink()
    with pytest.raises(DataError, match=r"1 of 1 pictures are missing, 001\.tiff"):
        load_coco(CocoFile(file="MIDOG.json", images="."), tmp_path, 0.25)


def test_a_validation_slide_without_fields_and_a_leak_are_refused_by_name(tmp_path):
    coco(tmp_path)
    values = {
        "task": "detector",
        "fields": None,
        "coco": ({"file": "MIDOG.json", "images": ".", "mpp": 0.25},),
    }
    with pytest.raises(DataError, match="H05"):
        load_datasets(DetectorTraining(**COMMON, **values, validation_slides=("H05",)), tmp_path)
    train, validation = load_datasets(
        DetectorTraining(**COMMON, **values, validation_slides=("001",)), tmp_path
    )
    assert (len(train), len(validation)) == (0, 1)
    with pytest.raises(DataError, match="001"):
        refuse_leak(["MIDOG21/001.tiff"], ["001"])
    refuse_leak(["MIDOG21/002.tiff"], ["001"])


def test_slides_left_out_are_neither_trained_on_nor_mistyped(tmp_path):
    coco(tmp_path)
    values = {"fields": None, "coco": ({"file": "MIDOG.json", "images": ".", "mpp": 0.25},)}
    config = DetectorTraining(task="detector", **COMMON, **values, validation_slides=())

    def trained_on(*left_out):
        return load_datasets(config.model_copy(update={"leave_out_slides": left_out}), tmp_path)[0]

    assert [f.slide for f in trained_on()] == ["001"]
    assert trained_on("001") == []
    with pytest.raises(DataError, match="H40"):
        trained_on("H40")


class Line(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 1)

    def forward(self, x):
        return self.layer(x)


def train(folder, config, *, until=None, **more):
    """Fit a line; ``until``: be killed after so many steps."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)

    def loss(net):
        x = torch.from_numpy(rng.normal(size=(8, 2))).float()
        return ((net(x)[:, 0] - x[:, 0]) ** 2).mean()

    def killed(step):
        if step == until:
            raise KeyboardInterrupt

    return fit(Line(), config, rng, loss, lambda _: {"ap": 0.5}, folder, on_step=killed, **more)


def test_an_interrupted_training_goes_on_to_the_same_weights(tmp_path):
    config = DetectorTraining(task="detector", validation_slides=("a",), **COMMON)
    whole = train(tmp_path / "whole", config)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", config, until=5)
    went_on = train(tmp_path / "cut", config)
    for a, b in zip(whole.parameters(), went_on.parameters(), strict=True):
        assert torch.equal(a, b)
    logged = (tmp_path / "cut" / LOG).read_text().splitlines()
    assert [line.split(",")[0] for line in logged] == ["step", "2", "4", "6"]
    with pytest.raises(OutputError, match="another config"):
        train(tmp_path / "cut", config.model_copy(update={"seed": 1}))
    assert (tmp_path / "cut" / STATE).is_file()


def test_the_best_of_the_validated_weights_is_given(tmp_path):
    config = DetectorTraining(task="detector", validation_slides=("a",), **COMMON)
    scores = iter([0.3, 0.9, 0.5])
    seen = []

    def validate(average):
        seen.append([p.clone() for p in average.parameters()])
        return {"ap": next(scores)}

    rng = np.random.default_rng(0)
    best = fit(
        Line(), config, rng, lambda net: (net(torch.ones(1, 2)) ** 2).sum(), validate, tmp_path, best_by="ap"
    )
    for a, b in zip(best.parameters(), seen[1], strict=True):
        assert torch.equal(a, b)
    assert (tmp_path / CHECKPOINT).is_file()


def test_calibrated_scores_mean_what_they_say_and_keep_their_order():
    true = RNG.random(4000)
    hit = RNG.random(4000) < true
    crowded = 1 / (1 + np.exp(-(np.log(true / (1 - true)) * 0.3 - 2)))  # too low and too close together
    network = HeatmapNet("tf_efficientnet_lite0", (0.5,) * 3, (0.5,) * 3)
    nn.init.constant_(network.out.weight, 0.1)
    before = network.out.weight.detach().clone(), network.out.bias.detach().clone()
    calibrate(network, Detections(crowded, hit, int(hit.sum()), 1.0))
    gain = (network.out.weight.detach() / before[0]).mean().item()
    shift = (network.out.bias.detach() - before[1] * gain).item()
    assert gain == pytest.approx(1 / 0.3, rel=0.1)
    assert shift == pytest.approx(2 / 0.3, rel=0.1)


def test_the_sensitive_operating_point_is_the_cards_or_an_error():
    point = {"threshold": 0.1, "criterion": "recall 0.85", "dataset": "mine"}
    with_two = card("detector", sensitive=point)
    assert with_two.point("balanced").threshold == 0.15
    assert with_two.point("sensitive").threshold == 0.1
    with pytest.raises(ModelError, match="no sensitive"):
        card("detector").point("sensitive")


def test_pooling_nothing_found_is_zero_not_an_error():
    m = scored(field("a", "A", "lab", [(100, 100)]))
    found = pooled([m, replace(m)])
    assert found.at(0.5) == (0, 0, 0)
    assert found.average_precision() == 0
