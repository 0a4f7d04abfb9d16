"""Models with a known answer, so that geometry and plumbing are tested without trained weights."""

from __future__ import annotations

import numpy as np

from mitoscan.models.card import SUBTYPES, Counts, ModelCard, OperatingPoint, Training
from mitoscan.scan.classify import Classifier
from mitoscan.scan.detect import Detector
from mitoscan.scan.pipeline import Models

STRIDE = 8


def card(task: str, **changes) -> ModelCard:
    values = {
        "name": f"fake-{task}",
        "task": task,
        "description": "finds dark spots",
        "backbone": "tf_efficientnet_lite0",
        "mpp": 0.25,
        "input_px": 512 if task == "detector" else 128,
        "margin_px": 64 if task == "detector" else 0,
        "centre_px": None if task == "detector" else 96,
        "mean": (0.5, 0.5, 0.5),
        "std": (0.5, 0.5, 0.5),
        "classes": ("mitotic figure",) if task == "detector" else ("NMF", "AMF"),
        "subtypes": () if task == "detector" else SUBTYPES,
        "operating_point": OperatingPoint(threshold=0.15, criterion="set by hand", dataset="none"),
        "validation": None if task == "detector" else Counts(tp=80, fn=20, tn=90, fp=10),
        "parameters": 1,
        "training": Training(command="none", config="none", seed=0, data="none", data_use="none"),
        "licence": "Apache-2.0",
        "intended_use": "tests",
        "sha256": ("a" if task == "detector" else "b") * 64,
    }
    return ModelCard.model_validate(values | changes)


def dark_spots(tiles: np.ndarray) -> np.ndarray:
    """A heat map: how much darker (green) a blurred cell is than tissue."""
    from scipy.ndimage import uniform_filter

    n, height, width, _ = tiles.shape
    green = tiles[..., 1].astype(np.float32).reshape(n, height // STRIDE, STRIDE, width // STRIDE, STRIDE)
    dark = np.clip((125 - green.mean((2, 4))) / 125, 0, 1)
    return np.stack([uniform_filter(d, 3, mode="nearest") for d in dark])


def redness(crops: np.ndarray) -> np.ndarray:
    """p_atypical from how far off the crop's mean is; the subtypes are all alike."""
    p = np.clip(crops[:, 60:68, 60:68, 0].mean((1, 2)) / 255, 0, 1)[:, None]
    return np.concatenate([p, np.full((len(crops), 8), 1 / 8)], axis=1).astype(np.float32)


def models(threshold: float = 0.15, **detector_changes) -> Models:
    return Models(
        Detector(card("detector", **detector_changes), dark_spots, threshold),
        Classifier(card("classifier"), redness),
    )
