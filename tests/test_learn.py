"""Training parts: targets, losses, augmentation, matching, splits, and one tiny run end to end."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from mitoscan.errors import ConfigError, DataError, ModelError, OutputError
from mitoscan.learn.augment import (
    colour_mixing,
    random_affine,
    random_focus,
    random_jpeg,
    stain_jitter,
    to_uint8,
)
from mitoscan.learn.classifier import calibrate, split_by_slide
from mitoscan.learn.config import ClassifierTraining, DetectorTraining
from mitoscan.learn.data import AMIBR_SUBTYPES, load_amibr
from mitoscan.learn.fields import Picture, load_fields
from mitoscan.learn.imagenet import load_trunk
from mitoscan.learn.losses import amf_and_subtype, gaussian_targets, heatmap_focal
from mitoscan.learn.metrics import Detections, balanced_threshold, binary_metrics, match
from mitoscan.learn.run import train_from_config
from mitoscan.learn.sampling import CropSampler, class_balanced, neighbours
from mitoscan.models.card import checked_weights, load_card
from mitoscan.models.networks import CropNet
from mitoscan.models.zoo import find_model

RNG = np.random.default_rng(0)
COMMON = {"name": "t", "description": "t", "steps": 2, "batch": 4, "learning_rate": 1e-3, "weight_decay": 0.0}
COMMON |= {"validate_every": 2, "trained_on": "my slides", "validated_on": "my others"}


@pytest.fixture
def amibr(tmp_path):
    """The published layout with 60 crops of 12 slides; AMF are dark."""
    rows = []
    for i in range(60):
        atypical = i % 4 == 0
        folder = tmp_path / "amf" / "AMi-Br" / ("Atypical" if atypical else "Normal")
        folder.mkdir(parents=True, exist_ok=True)
        shade = 60 if atypical else 200
        noise = RNG.integers(-20, 20, (128, 128, 3))
        Image.fromarray((shade + noise).astype(np.uint8)).save(folder / f"MIDOG21_{i}.png")
        label = "AMF multipolar" if atypical else "NMF metaphase"
        rows.append({"slide": f"{i // 5:03}.tiff", "dataset": "MIDOG21", "uid": i, "expert1_label": label})
        rows[-1] |= {"majority_atypical": atypical, "x": 100 * (i % 5), "y": 50}
    table = pd.DataFrame(rows)
    table.to_csv(tmp_path / "amf" / "AMI-BR.csv")
    table[table["uid"] < 50].to_csv(tmp_path / "amf" / "amibr_train_split.csv")
    return tmp_path


@pytest.fixture
def fields(tmp_path):
    """Two labelled fields of two slides and an unlabelled one."""
    folder = tmp_path / "detection"
    folder.mkdir()
    names = {"a": "S1", "b": "S2", "u": "S3"}
    for name in names:
        picture = np.full((300, 400, 3), 220, np.uint8)
        picture[95:105, 195:205] = 30
        Image.fromarray(picture).save(folder / f"{name}.png")
    pd.DataFrame(
        {
            "field": [f"{n}.png" for n in names],
            "dataset": ["lab", "lab", "lab_unlabelled"],
            "slide": list(names.values()),
            "width": 400,
            "height": 300,
            "mpp": 0.25,
        }
    ).to_csv(folder / "fields.csv", index=False)
    points = []
    for name in ("a", "b"):
        points += [
            (f"{name}.png", 200.0, 100.0, "mitotic figure", None),
            (f"{name}.png", 50.0, 250.0, "hard negative", 0.1),
            (f"{name}.png", 350.0, 250.0, "hard negative", 0.7),
        ]
    columns = ["field", "x", "y", "label", "confidence"]
    pd.DataFrame(points, columns=columns).to_csv(folder / "points.csv", index=False)
    return tmp_path


def test_affine_moves_points_with_the_picture():
    side, out = 220, 128
    offset = np.array([31.0, -17.0])
    images = np.full((6, side, side, 3), 255, np.uint8)
    x, y = (side / 2 + offset).astype(int)
    images[:, y - 3 : y + 4, x - 3 : x + 4] = 0
    moved, matrices = random_affine(torch.from_numpy(images), out, (0.85, 1.2), RNG)
    where = torch.tensor(np.array([x + 0.5, y + 0.5]) - side / 2).float()
    for picture, matrix in zip(moved, matrices, strict=True):
        dark = (255 - picture[0]).clamp(min=0)
        ys, xs = torch.meshgrid(torch.arange(out) + 0.5, torch.arange(out) + 0.5, indexing="ij")
        centre = torch.stack([(xs * dark).sum(), (ys * dark).sum()]) / dark.sum()
        expected = matrix @ where + out / 2
        assert torch.allclose(centre, expected, atol=0.5)


def test_affine_fills_with_white_and_stays_in_range():
    images = torch.zeros(4, 64, 64, 3, dtype=torch.uint8)
    moved, _ = random_affine(images, 128, (1.0, 1.0), RNG)
    assert moved.max() == pytest.approx(255)
    assert moved.min() == pytest.approx(0, abs=1e-3)


def test_colour_augmentation_changes_stain_not_glass_and_leaves_a_valid_picture():
    white = torch.full((8, 3, 16, 16), 255.0)
    assert torch.allclose(stain_jitter(white, 0.2, 0.0, 0.2, RNG), white, atol=1.5)
    tissue = torch.rand(8, 3, 16, 16) * 255
    for changed in (stain_jitter(tissue, 0.2, 0.05, 0.2, RNG), random_focus(tissue, 1.0, RNG)):
        assert changed.min() >= 0
        assert changed.max() <= 255
        assert not torch.allclose(changed, tissue, atol=1)
    assert torch.equal(random_focus(tissue, 0.0, RNG), tissue)
    assert torch.equal(colour_mixing(tissue, 0.0, RNG), tissue)
    grey = torch.full((8, 3, 16, 16), 130.0)
    assert torch.allclose(colour_mixing(grey, 0.1, RNG), grey, atol=1e-2)
    assert not torch.allclose(colour_mixing(tissue, 0.1, RNG), tissue, atol=1)
    small = to_uint8(tissue)
    squeezed = random_jpeg(small, 1.0, RNG)
    assert squeezed.shape == small.shape
    assert not torch.equal(squeezed, small)
    assert torch.equal(random_jpeg(small, 0.0, RNG), small)
    assert to_uint8(tissue).shape == (8, 16, 16, 3)


def test_targets_are_one_in_the_cell_of_the_point_and_fall_off():
    target = gaussian_targets([torch.tensor([[4.2, 7.9]]), torch.empty(0, 2)], 16, 16, 1.25)
    assert target[0, 7, 4] == 1
    assert (target[0] == 1).sum() == 1
    assert target[0, 7, 6] < target[0, 7, 5] < 1
    assert target[1].sum() == 0


def test_focal_loss_prefers_the_right_map_and_ignores_what_has_no_weight():
    target = gaussian_targets([torch.tensor([[4.5, 4.5]])], 9, 9, 1.0)
    weight = torch.ones_like(target)
    right, wrong = torch.logit(target.clamp(1e-3, 1 - 1e-3)), torch.full_like(target, 2.0)
    assert heatmap_focal(right, target, weight) < heatmap_focal(wrong, target, weight)
    weight[0, 0, 0] = 0
    spoiled = right.clone()
    spoiled[0, 0, 0] = 9.0
    assert heatmap_focal(spoiled, target, weight) == pytest.approx(
        float(heatmap_focal(right, target, weight))
    )


def test_classifier_loss_handles_unknown_subtypes():
    logits = torch.zeros(4, 9, requires_grad=True)
    atypical = torch.tensor([0.0, 1.0, 0.0, 1.0])
    unknown = torch.zeros(4, 8)
    assert torch.isfinite(amf_and_subtype(logits, atypical, unknown, 0.05, 0.3))
    known = torch.eye(9)[[0, 5, -1, 7], :-1]
    assert amf_and_subtype(logits, atypical, known, 0.05, 0.3) > amf_and_subtype(
        logits, atypical, unknown, 0.05, 0.3
    )


def test_matching_is_one_to_one_and_greedy_by_score():
    truth = np.array([[0.0, 0.0], [100.0, 0.0]])
    found = np.array([[1.0, 0.0], [0.5, 0.0], [100.0, 29.0], [100.0, 31.0]])
    matched = match(found, np.array([0.9, 0.8, 0.5, 0.95]), truth, 30.0)
    assert matched.tolist() == [0, -1, 1, -1]


def test_detection_figures_against_counting_by_hand():
    d = Detections(np.array([0.9, 0.8, 0.7, 0.2]), np.array([True, False, True, False]), 4, 2.0)
    assert d.at(0.7) == (pytest.approx(2 / 3), 0.5, pytest.approx(4 / 7))
    assert 0.2 < d.best_threshold() < 0.7
    assert d.average_precision() == pytest.approx(0.25 * 1 + 0.25 * 2 / 3)


def test_binary_figures_against_counting_by_hand():
    p, y = np.array([0.1, 0.4, 0.35, 0.8]), np.array([False, False, True, True])
    assert binary_metrics(p, y, 0.5).balanced_accuracy == 0.75
    assert binary_metrics(p, y, 0.5).auroc == 0.75


@pytest.mark.parametrize("shift", [0.0, 1.5])
def test_the_threshold_for_balanced_accuracy_is_near_the_best_and_steady(shift):
    """Of normal scores with the same spread the middle between the two means is best."""
    found = []
    for _ in range(20):
        truth = RNG.random(600) < 0.2
        logit = RNG.normal(truth * 2.0, 1) + shift
        found.append(balanced_threshold(1 / (1 + np.exp(-logit)), truth))
    middles = np.log(np.array(found) / (1 - np.array(found)))
    assert middles.mean() == pytest.approx(1.0 + shift, abs=0.1)
    assert middles.std() < 0.15


def test_batches_are_class_balanced():
    atypical = np.array([True] * 5 + [False] * 95)
    drawn = class_balanced(atypical, 4000, RNG)
    assert atypical[drawn].mean() == pytest.approx(0.5, abs=0.05)


def test_mosaics_know_every_figure_they_show(amibr, fields):
    crops = load_amibr(amibr / "amf", "train")
    crops.images[:] = 255
    crops.images[:, 60:68, 60:68] = 0  # the figure itself
    shown = neighbours(crops)
    assert [len(s) for s in shown[:5]] == [1] * 5  # 100 px apart: out of each other's crop
    config = DetectorTraining(task="detector", validation_slides=("S2",), on_mosaics=1.0, **COMMON)
    sampler = CropSampler(load_fields(fields / "detection", slides={"S1"}), config, crops)
    region, targets, _ = sampler.draw(RNG)
    figures = targets[:, :2]
    assert region.shape == (sampler.side, sampler.side, 3)
    inside = figures[(np.abs(figures) < sampler.side / 2 - 5).all(1)] + sampler.side / 2
    assert len(inside) >= 4
    for x, y in np.round(inside).astype(int):
        assert region[y, x].max() == 0


def test_figures_close_by_are_shown_in_each_others_crops(amibr):
    crops = load_amibr(amibr / "amf", "train")
    crops.xy[1] = crops.xy[0] + (20, -10)
    shown = neighbours(crops)
    assert [20.0, -10.0] in shown[0].tolist()
    assert [-20.0, 10.0] in shown[1].tolist()


def test_cut_pads_with_white():
    image = np.zeros((10, 10, 3), np.uint8)
    square = Picture(image).cut(np.array([0.0, 0.0]), 8)
    assert square[:4].min() == 255
    assert square[4:, 4:].max() == 0


def test_amibr_parts_are_disjoint_and_labelled(amibr):
    train, test = load_amibr(amibr / "amf", "train"), load_amibr(amibr / "amf", "test")
    assert (len(train), len(test)) == (50, 10)
    assert not set(train.slide) & set(test.slide)
    assert (train.images[train.atypical].mean((1, 2, 3)) < 100).all()
    assert set(train.subtype) == {1, 5}


def test_amibr_faults_name_the_file(amibr):
    (amibr / "amf" / "AMi-Br" / "Normal" / "MIDOG21_1.png").unlink()
    with pytest.raises(DataError, match="MIDOG21_1"):
        load_amibr(amibr / "amf", "train")
    (amibr / "amf" / "AMI-BR.csv").write_text("slide\nx\n")
    with pytest.raises(DataError, match="columns missing"):
        load_amibr(amibr / "amf", "train")


def test_held_out_slides_are_never_trained_on(amibr):
    config = ClassifierTraining(task="classifier", **COMMON)
    train, held_out = split_by_slide(load_amibr(amibr / "amf", "train"), config)
    assert not set(train.slide) & set(held_out.slide)
    assert held_out.atypical.any()


def test_too_few_slides_to_hold_any_out_are_an_error_that_says_so(amibr):
    crops = load_amibr(amibr / "amf", "train")
    config = ClassifierTraining(task="classifier", folds=3, **COMMON)
    few = crops.take(np.flatnonzero(~crops.atypical | (crops.slide <= crops.slide[5])))
    with pytest.raises(DataError, match="2 slides with atypical figures do not make 3 folds"):
        split_by_slide(few, config)


def test_fields_come_with_their_points_and_without_unlabelled_ones(fields):
    loaded = load_fields(fields / "detection", leave_out={"S2"})
    assert [f.slide for f in loaded] == ["S1"]
    assert loaded[0].figures.tolist() == [[200.0, 100.0]]
    assert loaded[0].hard_negatives.tolist() == [[50.0, 250.0]]
    assert loaded[0].doubtful.tolist() == [[350.0, 250.0]]
    assert loaded[0].area_mm2 == pytest.approx(0.0075)
    with pytest.raises(DataError, match="S9"):
        load_fields(fields / "detection", slides={"S9"})


def test_sampler_keeps_figures_in_the_crop_and_in_place(fields):
    config = DetectorTraining(
        task="detector", validation_slides=("S2",), on_figures=1.0, on_hard_negatives=0.0, **COMMON
    )
    sampler = CropSampler(load_fields(fields / "detection", slides={"S1"}), config)
    for _ in range(10):
        region, targets, _ = sampler.draw(RNG)
        figures = targets[:, :2]
        x, y = np.round(figures[0] + sampler.side / 2).astype(int)
        assert region[y, x].max() < 60  # the dark square is where the label says
        assert (np.abs(figures[0]) < config.crop_px / 2).all()


@pytest.mark.usefixtures("amibr", "fields")
@pytest.mark.parametrize("task", ["detector", "classifier"])
def test_training_writes_a_usable_model_and_refuses_to_overwrite(tmp_path, task):
    extra = {"detector": "  validation_slides: [S2]\n  crop_px: 64\n", "classifier": "  folds: 3\n"}[task]
    values = "".join(f"  {k}: {v}\n" for k, v in COMMON.items())
    config = tmp_path / "tiny.yaml"
    config.write_text(f"train:\n  task: {task}\n{values}{extra}")
    out = tmp_path / "model"
    card = train_from_config(task, str(config), tmp_path, out)
    assert load_card(out) == card
    assert checked_weights(out, card).is_file()
    assert (out / "log.csv").read_text().startswith("step,loss")
    assert card.training.command == f"mitoscan train {task} tiny"
    assert card.training.data == "my slides"
    assert card.operating_point.dataset.startswith("my others")
    with pytest.raises(OutputError):
        train_from_config(task, str(config), tmp_path, out)


@pytest.mark.usefixtures("amibr")
def test_folds_train_one_after_the_other_and_choose_the_operating_point_together(tmp_path):
    values = {**COMMON, "soft_labels": True, "mixup": 0.4}
    values |= {
        "folds": 3,
        "fold": "null",
        "resize_px": 64,
        "views": 2,
        "start_from": "detector-lite0",
    }
    lines = "".join(f"  {k}: {v}\n" for k, v in values.items())
    config = tmp_path / "tiny.yaml"
    config.write_text(f"train:\n  task: classifier\n{lines}")
    out, steps = tmp_path / "model", []
    card = train_from_config("classifier", str(config), tmp_path, out, lambda *at: steps.append(at))
    assert steps[-1] == (8, 8)  # three folds and the model of all crops, two steps each
    counts = card.validation
    assert counts.tp + counts.fn + counts.tn + counts.fp == 50  # each training crop held out once
    assert "3 slide-grouped folds" in card.operating_point.dataset
    assert "detector-lite0" in card.training.data  # what the trunk saw is said
    assert "MITOS-ATYPIA-14" in card.training.data
    assert (card.resize_px, card.views) == (64, 2)
    folds = [load_card(out / f"fold{k}") for k in range(3)]
    assert len({f.sha256 for f in folds} | {card.sha256}) == 4
    slides = [set(pd.read_csv(out / f"fold{k}" / "held_out.csv")["slide"]) for k in range(3)]
    assert sum(map(len, slides)) == len(set.union(*slides)) == 10

    (out / "card.json").unlink()  # interrupted after the folds: they are not trained again
    again: list[tuple[int, int]] = []
    train_from_config("classifier", str(config), tmp_path, out, lambda *at: again.append(at))
    assert again == [(7, 8), (8, 8)]
    assert [load_card(out / f"fold{k}") for k in range(3)] == folds
    (out / "card.json").unlink()
    config.write_text(config.read_text().replace("mixup: 0.4", "mixup: 0.2"))
    with pytest.raises(OutputError, match="another config"):
        train_from_config("classifier", str(config), tmp_path, out)


def test_a_config_for_the_other_task_or_with_unknown_keys_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="trains a detector"):
        train_from_config("classifier", "detector-lite0", tmp_path, tmp_path / "out")
    (tmp_path / "bad.yaml").write_text("train:\n  task: detector\n  nonsense: 3\n")
    with pytest.raises(ConfigError, match="nonsense"):
        train_from_config("detector", str(tmp_path / "bad.yaml"), tmp_path, tmp_path / "out")


@pytest.mark.data
def test_the_published_split_is_read_as_published(data_dir):
    train, test = load_amibr(data_dir / "amf", "train"), load_amibr(data_dir / "amf", "test")
    assert (len(train), len(test)) == (2894, 826)
    assert train.atypical.sum() + test.atypical.sum() == 832
    assert not set(train.slide) & set(test.slide)
    assert len(AMIBR_SUBTYPES) == 8


def test_platt_scaling_gives_frequencies_and_keeps_the_order():
    truth = RNG.random(4000) < 0.2
    logit = 2 * RNG.normal(truth * 1.5, 1) + 1  # as after training on balanced batches: too high, too steep
    network = CropNet("tf_efficientnet_lite0", (0.5,) * 3, (0.5,) * 3, 96, 8).eval()
    image = torch.randint(0, 255, (1, 128, 128, 3), dtype=torch.uint8)
    before = network(image).detach()[0]
    p = calibrate(network, 1 / (1 + np.exp(-logit)), truth)
    assert p.mean() == pytest.approx(truth.mean(), abs=0.005)
    assert (np.argsort(p) == np.argsort(logit)).all()
    after = network(image).detach()[0]
    expected = np.interp(float(before[0]), np.sort(logit), np.sort(np.log(p / (1 - p))))
    assert float(after[0]) == pytest.approx(expected, abs=0.02)
    assert torch.equal(before[1:], after[1:])


def test_a_classifier_starts_from_the_trunk_of_a_detector():
    folder, _ = find_model("detector-lite0", "detector")
    theirs = load_file(folder / "model.safetensors")
    network = CropNet("tf_efficientnet_lite0", (0.5,) * 3, (0.5,) * 3, 96, 8)
    load_trunk(network, "detector-lite0")
    ours = network.backbone.state_dict()
    assert torch.equal(ours["conv_stem.weight"], theirs["stem.0.weight"])
    assert torch.equal(ours["bn1.running_mean"], theirs["stem.1.running_mean"])
    for name, value in theirs.items():
        part, _, rest = name.partition(".")
        if part.startswith("to_stride"):
            assert torch.equal(ours[f"blocks.{rest}"], value), name
    other = CropNet("tf_efficientnet_lite1", (0.5,) * 3, (0.5,) * 3, 96, 8)
    with pytest.raises(ModelError, match="another backbone") as caught:
        load_trunk(other, "detector-lite0")
    assert caught.value.path == folder
