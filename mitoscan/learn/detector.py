"""Training of the detector on fields with points."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from mitoscan.learn.augment import random_affine, random_focus, stain_jitter, to_uint8
from mitoscan.learn.config import DetectorTraining
from mitoscan.learn.data import Field, load_amibr, load_fields
from mitoscan.learn.imagenet import load_imagenet
from mitoscan.learn.losses import gaussian_targets, heatmap_focal
from mitoscan.learn.metrics import MATCH_RADIUS_UM, Detections, match, round_down
from mitoscan.learn.sampling import CropSampler
from mitoscan.learn.train import Validation, export, fit, new_card
from mitoscan.models.card import ModelCard, OperatingPoint
from mitoscan.models.networks import STRIDE, HeatmapNet, Probabilities
from mitoscan.models.runtime import Runtime, TorchRuntime
from mitoscan.scan.merge import merge
from mitoscan.scan.peaks import find_peaks

DOUBTFUL_RADIUS_UM = 12.0
MARGIN_PX = 96
"""Half of what neighbouring tiles share, work px; measured in benchmarks/borders.py."""


def train_detector(config: DetectorTraining, data: Path, out: Path, command: str, source: str) -> ModelCard:
    """Train from ImageNet weights, choose the threshold on the validation slides, export to ``out``.

    Parameters
    ----------
    config
        The recipe.
    data
        Folder with ``detection/fields.csv`` and so on, and ``amf/`` for mosaics.
    out
        The model's folder; gets ``log.csv`` too.
    command, source
        What was called with which config; noted in the card.
    """
    torch.manual_seed(config.seed)
    rng = np.random.default_rng(config.seed)
    held_out = set(config.validation_slides)
    crops = load_amibr(data / "amf", "train") if config.on_mosaics else None
    sampler = CropSampler(load_fields(data / "detection", leave_out=held_out), config, crops)
    validation = load_fields(data / "detection", slides=held_out)
    network = HeatmapNet(config.backbone, config.mean, config.std)
    load_imagenet(network, config.backbone)

    def validate(average: nn.Module) -> Validation:
        found = detect_all(TorchRuntime(Probabilities(average), "cpu"), validation)
        threshold = found.best_threshold()
        precision, recall, f1 = found.at(threshold)
        return {
            "ap": found.average_precision(),
            "f1": f1,
            "precision": precision,
            "recall": recall,
            "threshold": threshold,
        }

    average = fit(network, config, lambda net: _batch_loss(net, sampler, config, rng), validate, out)
    found = detect_all(TorchRuntime(Probabilities(average), "cpu"), validation)
    return export(average, out, lambda sha, n: _card(config, found, command, source, sha, n))


def _batch_loss(
    network: nn.Module, sampler: CropSampler, config: DetectorTraining, rng: np.random.Generator
) -> Tensor:
    regions, figures, doubtful = zip(*(sampler.draw(rng) for _ in range(config.batch)), strict=True)
    images, matrices = random_affine(torch.from_numpy(np.stack(regions)), config.crop_px, config.scale, rng)
    images = stain_jitter(images, config.od_gain, config.od_shift, config.od_strength, rng)
    images = random_focus(images, config.blur, rng)
    cells = config.crop_px // STRIDE

    def in_cells(points: tuple[np.ndarray, ...]) -> list[Tensor]:
        moved = [torch.from_numpy(p).float() @ m.T for p, m in zip(points, matrices, strict=True)]
        return [(xy + config.crop_px / 2) / STRIDE for xy in moved]

    target = gaussian_targets(in_cells(figures), cells, cells, config.sigma_cells)
    radius = DOUBTFUL_RADIUS_UM / config.mpp / STRIDE
    near_doubt = gaussian_targets(in_cells(doubtful), cells, cells, radius) > np.exp(-0.5)
    weight = torch.where(near_doubt & (target < 1), 0.0, 1.0)
    return heatmap_focal(network(to_uint8(images)), target, weight)


def detect_all(runtime: Runtime, fields: list[Field], floor: float = 0.02) -> Detections:
    """Run a detector's runtime over whole fields and match what it finds, doubtful look-alikes left out."""
    return Detections.pool([_detect(runtime, field, floor) for field in fields])


def _detect(runtime: Runtime, field: Field, floor: float) -> Detections:
    height, width = (-(-side // 16) * 16 for side in field.image.shape[:2])
    padded = np.full((1, height, width, 3), 255, np.uint8)
    padded[0, : field.image.shape[0], : field.image.shape[1]] = field.image
    x, y, p = find_peaks(runtime(padded)[0], floor)
    radius = MATCH_RADIUS_UM / field.mpp
    kept = merge(x * STRIDE, y * STRIDE, p, radius)
    xy, p = np.stack([x, y], 1)[kept] * STRIDE, p[kept]
    hit = match(xy, p, field.figures, radius) >= 0
    doubt = match(xy, np.where(hit, -1.0, p), field.doubtful, radius) >= 0
    count = hit | ~doubt
    return Detections(p[count], hit[count], len(field.figures), field.area_mm2)


def _card(
    config: DetectorTraining, found: Detections, command: str, source: str, sha256: str, parameters: int
) -> ModelCard:
    threshold = round_down(found.best_threshold())
    precision, recall, f1 = found.at(threshold)
    where = config.validated_on
    figures = {"F1": f1, "precision": precision, "recall": recall, "AP": found.average_precision()}
    return new_card(
        config,
        measured=figures,
        n=found.figures,
        dataset=where,
        command=command,
        source=source,
        task="detector",
        input_px=config.tile_px,
        margin_px=MARGIN_PX,
        classes=("mitotic figure",),
        operating_point=OperatingPoint(threshold=threshold, criterion="greatest F1 at 7.5 µm", dataset=where),
        parameters=parameters,
        sha256=sha256,
    )
