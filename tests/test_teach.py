"""Distillation: labels and teachers together say how likely each place is a figure."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from test_negatives import config, data, field, recipe  # noqa: F401  (data is a fixture)

from mitoscan.errors import ConfigError, ModelError
from mitoscan.learn.detector import train_detector
from mitoscan.learn.detector_metrics import match_field
from mitoscan.learn.losses import centres, gaussian_targets, heatmap_focal
from mitoscan.learn.run import train_from_config
from mitoscan.learn.sampling import CropSampler
from mitoscan.learn.teach import LEAST_CHANCE, teach


def matched():
    """Figures at (100, 100), …: one found 8 px off, one faintly, one missed; and two false calls."""
    at = field(200, (100.0, 100.0), (200.0, 200.0), (300.0, 300.0))
    found = np.array([[108.0, 100.0], [200.0, 200.0], [50.0, 350.0], [350.0, 50.0]])
    return match_field(at, found, np.array([0.6, 0.2, 0.5, 0.02]))


def chances(label_share: float) -> dict[tuple[float, float], float]:
    (taught,) = teach([matched()], label_share)
    assert taught.figures.tolist() == matched().field.figures.tolist(), "the labels stay"
    return {(x, y): chance for x, y, chance in taught.targets}


def test_a_figure_that_the_teachers_doubt_weighs_less_and_their_calls_weigh_something():
    half = chances(0.5)
    # At (100, 100), where the label says, not where it was found.
    assert half[100, 100] > half[200, 200] > half[300, 300] == 0.5
    assert LEAST_CHANCE <= half[50, 350] < 0.5
    assert all(chance <= 1 for chance in half.values())
    teachers = chances(0.0)
    assert (300, 300) not in teachers
    assert teachers[50, 350] == pytest.approx(2 * half[50, 350])


def test_with_the_labels_alone_nothing_changes():
    assert chances(1.0) == {(100, 100): 1, (200, 200): 1, (300, 300): 1}


def test_soft_targets_reach_the_batches():
    (taught,) = teach([matched()], 0.5)
    sampler = CropSampler([taught], recipe(on_figures=1.0, on_hard_negatives=0.0))
    drawn = [sampler.draw(np.random.default_rng(seed))[1] for seed in range(5)]
    for targets in drawn:
        assert sorted(targets[:, 2]) == sorted(taught.targets[:, 2])
        np.testing.assert_allclose(np.diff(targets[:, :2], axis=0), np.diff(taught.targets[:, :2], axis=0))


def test_a_cell_is_learnt_with_its_chance():
    points = [torch.tensor([[4.5, 4.5, 0.5]])]
    target, centre = gaussian_targets(points, 9, 9, 1.0), centres(points, 9, 9)
    assert target[0, 4, 4] == centre[0, 4, 4] == 0.5
    assert 0 < target[0, 4, 5] < 0.5
    assert (centre > 0).sum() == 1

    def loss(p: float) -> float:
        logits = torch.full_like(target, -20.0)
        logits[0, 4, 4] = np.log(p / (1 - p))
        return float(heatmap_focal(logits, target, torch.ones_like(target), centre))

    assert loss(0.5) < min(loss(0.3), loss(0.7))
    assert loss(0.1) == pytest.approx(loss(0.9))


def test_a_student_is_trained_and_others_cannot_teach(data):  # noqa: F811
    first = data / "first"
    teacher = train_from_config("detector", config(data), data, first)
    student = train_from_config("detector", config(data, f"  teachers: [{first}]\n"), data, data / "student")
    assert student.sha256 != teacher.sha256
    with pytest.raises(ConfigError, match=r"first \(0.25 µm/px\) cannot teach .* 0.5 µm/px"):
        train_detector(
            recipe(teachers=(str(first),)).model_copy(update={"mpp": 0.5}), data, data / "x", "", ""
        )
    with pytest.raises(ConfigError, match="tiatoolbox:KongNet_Det_MIDOG_1 cannot teach"):
        train_detector(recipe(teachers=("tiatoolbox:KongNet_Det_MIDOG_1",)), data, data / "x", "", "")
    with pytest.raises(ModelError, match="no model named 'nobody'"):
        train_detector(recipe(teachers=("nobody",)), data, data / "x", "", "")
