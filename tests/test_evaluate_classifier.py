"""Evaluation of classifiers on generated crops with known truth, and the loaders of the published sets."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from fakes import card, redness
from PIL import Image

from mitoscan.errors import DataError
from mitoscan.learn.classifier_metrics import (
    atypical_from_subtypes,
    binary_figures,
    calibration_error,
    confusion,
    human_ceiling,
    paired_difference,
    resampled,
    subtype_figures,
    with_intervals,
    within_label,
)
from mitoscan.learn.data import CropSet, load_atnorm
from mitoscan.learn.evaluate_classifier import evaluate_classifiers, load_test_sets, markdown
from mitoscan.models.card import SUBTYPES
from mitoscan.scan.classify import Classifier
from mitoscan.scan.findings import SUBTYPE_COLUMNS, best_subtypes

RNG = np.random.default_rng(1)


def crops(n: int = 60, slides: int = 6, noise: float = 0.0) -> CropSet:
    """Every third crop is atypical and red in its middle (what the fake classifier looks at)."""
    atypical = np.arange(n) % 3 == 0
    shade = np.clip(np.where(atypical, 200, 40) + RNG.normal(0, noise, n), 0, 255)
    images = np.full((n, 128, 128, 3), 220, np.uint8)
    images[:, 60:68, 60:68, 0] = shade[:, None, None]
    return CropSet(
        images=images,
        atypical=atypical,
        votes=np.stack([atypical] * 3, axis=1),
        subtype=np.where(atypical, SUBTYPES.index("multipolar"), SUBTYPES.index("metaphase")),
        subtype2=np.full(n, -1),
        slide=np.array([f"s{i % slides}" for i in range(n)]),
        domain=np.full(n, "lab"),
        xy=np.zeros((n, 2)),
    )


def fake(threshold: float = 0.5, **changes) -> Classifier:
    point = {"threshold": threshold, "criterion": "by hand", "dataset": "none"}
    return Classifier(card("classifier", operating_point=point, **changes), redness)


def test_binary_figures_of_a_hand_made_case():
    p, truth = np.array([0.9, 0.6, 0.4, 0.2]), np.array([True, False, True, False])
    figures = binary_figures(p, truth, 0.5)
    assert figures["sensitivity"] == figures["specificity"] == figures["balanced_accuracy"] == 0.5
    assert figures["auroc"] == 0.75
    assert figures["brier"] == pytest.approx((0.01 + 0.36 + 0.36 + 0.04) / 4)
    assert calibration_error(np.array([0.25, 0.25, 0.25, 0.25]), np.array([True, False, False, False])) == 0


def test_intervals_are_wider_when_whole_slides_are_drawn():
    """All errors are on one slide: resampling crops would not know that they come together."""
    together = crops(300, slides=5)
    p = together.atypical * 0.8 + 0.1
    p[together.slide == "s0"] = 0.5

    def measure(index):
        return {"auroc": binary_figures(p[index], together.atypical[index], 0.5)["auroc"]}

    apart = together.take(np.arange(300))
    object.__setattr__(apart, "slide", np.arange(300).astype(str))
    by_slide = with_intervals(measure, together, resamples=200)["auroc"]
    by_crop = with_intervals(measure, apart, resamples=200)["auroc"]
    assert by_slide.high - by_slide.low > 1.5 * (by_crop.high - by_crop.low)
    assert not apart.slides_known


def test_resampling_keeps_slides_whole():
    data = crops(60)
    for index in resampled(data, 20, RNG):
        counts = np.bincount(index, minlength=60)
        for slide in np.unique(data.slide):
            assert len(set(counts[data.slide == slide])) == 1


def test_a_model_compared_with_itself_differs_by_nothing_and_a_worse_one_by_something():
    data = crops(120)
    good, bad = data.atypical * 0.8 + 0.1, RNG.random(120)
    same = paired_difference(good, good, (0.5, 0.5), data, resamples=50)
    assert (same["auroc"].low, same["auroc"].high) == (0, 0)
    assert paired_difference(good, bad, (0.5, 0.5), data, resamples=50)["auroc"].low > 0.1


def test_experts_are_measured_against_the_others_and_ties_left_out():
    votes = np.array([[1, 1, 1], [0, 0, 0], [0, 1, 1], [1, 0, 1]], bool)
    first = human_ceiling(votes)[0]
    assert (first.n, first.ties) == (3, 1)
    assert first.balanced_accuracy == pytest.approx((0.5 + 1) / 2)
    assert human_ceiling(votes[:, :2]) == []


def test_subtypes_one_against_the_rest():
    truth = np.array([0, 0, 1, -1])
    p = np.full((4, 8), 0.05)
    p[[0, 2], [0, 1]] = 0.9
    p[1, 1] = 0.9  # the second is called metaphase
    by_name = {s.subtype: s for s in subtype_figures(p, truth)}
    assert by_name["prometaphase"].n == 2
    assert by_name["prometaphase"].sensitivity == 0.5
    assert by_name["metaphase"].ppv == 0.5
    assert np.isnan(by_name["ring"].auc)
    counts = confusion(p.argmax(axis=1), truth)
    assert counts.sum() == 3
    assert counts[0, 1] == 1
    assert atypical_from_subtypes(np.eye(8)).tolist() == [0, 0, 0, 0, 1, 1, 1, 1]


def test_subtypes_are_called_as_a_scan_calls_them_within_their_label():
    shares = np.full((3, 8), 0.05)
    shares[:, SUBTYPES.index("metaphase")] = 0.5
    shares[:, SUBTYPES.index("multipolar")] = 0.15
    called = within_label(np.array([0.9, 0.3, 0.1]), shares, 0.3)
    assert [SUBTYPES[k] for k in called] == ["multipolar", "multipolar", "metaphase"]
    scan = pd.DataFrame(shares, columns=SUBTYPE_COLUMNS).assign(label=["AMF", "AMF", "NMF"])
    assert list(best_subtypes(scan)) == [SUBTYPES[k] for k in called]
    (multipolar,) = [
        s for s in subtype_figures(shares, np.array([5, 5, 1]), called) if s.subtype == "multipolar"
    ]
    assert multipolar.sensitivity == 1


def test_the_evaluation_leaves_tables_that_say_what_was_measured(tmp_path):
    red = fake()
    result = evaluate_classifiers(
        {"red": red, "<b>never</b>": fake(0.99)}, {"AMi-Br test": crops()}, tmp_path, resamples=30
    )
    first = result.rows[0]
    assert first.figures["balanced_accuracy"].value == 1
    assert first.by_slide
    assert result.comparisons[0].differences["balanced_accuracy"].value == 0.5
    assert result.comparisons[0].differences["auroc"].value == 0
    text = markdown(result)
    assert "| Swin-B | 0.8052 / 0.9029 |" in text
    assert "| red (this tool, one model) | 1.0000 / 1.0000 | not measured | not measured |" in text
    assert "<b>never" not in (tmp_path / "evaluation.html").read_text()
    stored = json.loads((tmp_path / "evaluation.json").read_text())
    assert stored["rows"][0]["n"] == 60
    assert {e["expert"] for e in stored["experts"]["AMi-Br test"]} == {1, 2, 3}
    assert len(pd.read_csv(tmp_path / "predictions.csv")) == 120
    assert {p.name for p in tmp_path.glob("*.png")} >= {
        "roc_AMi-Br_test.png",
        "confusion_red_AMi-Br_test.png",
    }


def test_folds_of_one_training_are_summed_up_at_one_half_and_at_their_own_thresholds(tmp_path):
    unsure = Classifier(fake(0.2).card, never_sure)
    models = {"x-fold0": fake(0.99), "x-fold1": unsure, "x": fake()}
    result = evaluate_classifiers(models, {"AtNorM-Br": crops()}, tmp_path, resamples=30)
    row, own = result.folds
    assert (row.model, row.data, row.folds, row.threshold) == ("x", "AtNorM-Br", 2, "½")
    assert own.mean == {"balanced_accuracy": 0.5, "auroc": 0.75, "sensitivity": 0.5, "specificity": 0.5}
    assert row.mean == {"balanced_accuracy": 0.75, "auroc": 0.75, "sensitivity": 0.5, "specificity": 1.0}
    assert row.sd["balanced_accuracy"] == pytest.approx(0.25 * np.sqrt(2))
    text = markdown(result)
    cells = "not measured | 0.7500±0.3536 / 0.7500±0.3536 | not measured"
    assert f"| x (this tool, 2 folds, at ½) | {cells} |" in text
    assert "| x (this tool, one model) |" in text
    assert "| x-fold0 (this tool, one model) |" not in text
    assert [c.other for c in result.comparisons] == ["x"]


def never_sure(images):
    return np.full((len(images), 9), 0.25, np.float32)


def atnorm(folder, *names: str) -> None:
    for i, name in enumerate(names):
        kind = folder / "AtNorM-MD" / ("Atypical" if i % 2 else "Normal")
        kind.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((128, 128, 3), 200, np.uint8)).save(kind / f"{name}.png")


def test_votes_of_atnorm_md_are_joined_by_file_name(tmp_path):
    atnorm(tmp_path, "7", "3")
    table = pd.DataFrame(
        {"Filename": ["3.png", "7.png"], "Expert_1": [1, 0], "Expert_2": ["Atypical", "Normal"]}
    )
    table.to_csv(tmp_path / "AtNorM-MD_expert_votes.csv", index=False)
    (loaded,) = load_test_sets(tmp_path).values()
    assert loaded.atypical.tolist() == [True, False]  # sorted by path: Atypical/3, Normal/7
    assert loaded.votes.tolist() == [[True, True], [False, False]]
    assert not loaded.slides_known
    table[:1].to_csv(tmp_path / "AtNorM-MD_expert_votes.csv", index=False)
    with pytest.raises(DataError, match="no votes for 1 crops, 7 first"):
        load_atnorm(tmp_path, "AtNorM-MD")


def test_a_folder_without_test_sets_is_an_error(tmp_path):
    with pytest.raises(DataError, match=r"AMI-BR\.csv"):
        load_test_sets(tmp_path)
    (tmp_path / "AtNorM-Br").mkdir()
    with pytest.raises(DataError, match="no crops"):
        load_test_sets(tmp_path)
