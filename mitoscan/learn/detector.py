"""Training of the detector on fields with points."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from scipy.special import expit
from torch import Tensor, nn

from mitoscan.errors import ConfigError
from mitoscan.learn.augment import (
    colour_mixing,
    random_affine,
    random_focus,
    random_jpeg,
    stain_jitter,
    to_uint8,
)
from mitoscan.learn.config import DetectorTraining
from mitoscan.learn.data import UInt8, load_amibr
from mitoscan.learn.detector_metrics import LOWEST_P, Matched, match_field, pooled
from mitoscan.learn.fields import Field, load_datasets, load_negatives, refuse_leak
from mitoscan.learn.imagenet import load_heatmap_net, load_imagenet
from mitoscan.learn.losses import centres, gaussian_targets, heatmap_focal
from mitoscan.learn.metrics import MATCH_RADIUS_UM, Detections, logits, platt, round_down
from mitoscan.learn.sampling import CropSampler, Place
from mitoscan.learn.teach import teach
from mitoscan.learn.train import Validation, export, fit, new_card
from mitoscan.models.card import ModelCard, OperatingPoint
from mitoscan.models.networks import STRIDE, HeatmapNet, Probabilities
from mitoscan.models.runtime import Runtime, TorchRuntime, load_runtime
from mitoscan.models.tiatoolbox_models import is_tiatoolbox
from mitoscan.models.zoo import find_model
from mitoscan.report.atomic import write_atomically
from mitoscan.scan.merge import merge
from mitoscan.scan.peaks import find_peaks

log = logging.getLogger(__name__)

MINED = "mined.csv"
DOUBTFUL_RADIUS_UM = 12.0
MARGIN_PX = 112
"""Half of what neighbouring tiles share, work px; see benchmarks/README.md."""
SENSITIVE_RECALL = 0.85
F1_TOLERANCE = 0.02
"""What the operating point may lose of the greatest F1; see benchmarks/detector.md."""


def train_detector(
    config: DetectorTraining,
    data: Path,
    out: Path,
    command: str,
    source: str,
    on_step: Callable[[int], None] = lambda _: None,
) -> ModelCard:
    """Train from ImageNet weights, calibrate and choose the thresholds on the validation slides, export.

    Parameters
    ----------
    config
        The recipe.
    data
        Folder that the config's data sets are relative to, with ``amf/`` for mosaics.
    out
        The model's folder; gets ``log.csv`` too, and ``mined.csv`` where places are mined.
    command, source
        What was called with which config; noted in the card.
    on_step
        Told the number of steps done.

    Raises
    ------
    DataError
        When data are missing or faulty, or a slide is both trained on and validated on.
    ModelError, ConfigError
        When a model that the config names is missing, faulty or does not fit.
    """
    torch.manual_seed(config.seed)
    rng = np.random.default_rng(config.seed)
    training, validation = load_datasets(config, data)
    negatives, held_out = load_negatives(config, data)
    crops = load_amibr(data / "amf", "train") if config.on_mosaics else None
    mosaics = [] if crops is None else list(crops.slide)
    learnt = [f.slide for f in training + negatives] + mosaics
    refuse_leak(learnt, [f.slide for f in validation + held_out])
    mined = None
    if config.mine_with is not None:
        searched = negatives if config.mine_on == "negatives" else training + negatives
        mined = mine(_runtime(load_heatmap_net(config.mine_with)), searched, config.mined_from)
        _note_mined(*mined, out)
    if config.teachers:
        training = teach(detect_all(_mean_of(config.teachers, config.mpp), training), config.label_share)
    sampler = CropSampler(training, config, crops, negatives, mined)
    network = start(config)

    def validate(average: nn.Module) -> Validation:
        found = pooled(detect_all(_runtime(average), validation))
        threshold = found.best_threshold()
        precision, recall, f1 = found.at(threshold)
        return {
            "ap": found.average_precision(),
            "f1": f1,
            "precision": precision,
            "recall": recall,
            "threshold": threshold,
        }

    def batch_loss(net: nn.Module) -> Tensor:
        return _batch_loss(net, sampler, config, rng)

    average = fit(network, config, rng, batch_loss, validate, out, best_by="ap", on_step=on_step)
    assert isinstance(average, HeatmapNet)  # noqa: S101  # what fit was given
    if config.start_share:
        blend(average, start(config), config.start_share)
    calibrate(average, pooled(detect_all(_runtime(average), validation)))
    found = detect_all(_runtime(average), validation)
    return export(average, out, ("ap", "f1"), lambda sha, n: _card(config, found, command, source, sha, n))


def start(config: DetectorTraining) -> HeatmapNet:
    """Give the network to train, with ImageNet's weights or those of ``config.start_from``.

    Raises
    ------
    ModelError, ConfigError
        When the model to start from is faulty, or no detector with the config's backbone.
    """
    network = HeatmapNet(config.backbone, config.mean, config.std, views=config.views)
    if config.start_from is not None:
        network.load_state_dict(load_heatmap_net(config.start_from, config.backbone).state_dict())
    else:
        load_imagenet(network, config.backbone)
    return network


def _runtime(network: nn.Module) -> Runtime:
    return TorchRuntime(Probabilities(network).eval(), "cpu")


def _mean_of(teachers: Sequence[str], mpp: float) -> Runtime:
    """Run several detectors and average their scores' logits.

    Raises
    ------
    ModelError
        When one is not found or faulty.
    ConfigError
        When one is made for another pixel size than ``mpp``, or is not mitoscan's own kind.
    """
    heats = []
    remedy = "Name detectors trained by mitoscan at the config's mpp under teachers."
    for name in teachers:
        if is_tiatoolbox(name):  # before its weights are fetched
            raise ConfigError(f"{name} cannot teach: its heat map is not mitoscan's", remedy=remedy)
        folder, card = find_model(name, "detector")
        if card.mpp != mpp:
            raise ConfigError(
                f"{name} ({card.mpp:g} µm/px) cannot teach a heat map at {mpp:g} µm/px", remedy=remedy
            )
        heats.append(load_runtime(folder, card, "cpu"))

    def run(images: UInt8) -> npt.NDArray[np.float32]:
        mean = np.mean([logits(heat(images).astype(np.float64)) for heat in heats], axis=0)
        return np.asarray(expit(mean), np.float32)

    return run


def blend(network: nn.Module, other: nn.Module, share: float) -> None:
    """Move the weights of ``network`` towards those of ``other`` by ``share``, 0 to 1, in place.

    Method: Wortsman et al. 2022 (robust fine-tuning); the two must come from one training.
    """
    theirs = other.state_dict()
    with torch.no_grad():
        for name, values in network.state_dict().items():
            if values.is_floating_point():
                values.lerp_(theirs[name], share)


def mine(
    runtime: Runtime, fields: Sequence[Field], least: float
) -> tuple[list[Place], npt.NDArray[np.float64]]:
    """Find what a detector wrongly calls: places that are near no figure and nothing doubtful.

    Parameters
    ----------
    runtime
        Of the detector.
    fields
        Training fields, with and without labels.
    least
        Lowest score, 0 to 1.

    Returns
    -------
    places
        One for each false call.
    scores
        float64 (N,).
    """
    matched = detect_all(runtime, list(fields), least)
    false = [(m, i) for m in matched for i in np.flatnonzero((m.figure < 0) & ~m.ignored)]
    return [Place(m.field, m.xy[i]) for m, i in false], np.array([m.p[i] for m, i in false])


def _note_mined(places: Sequence[Place], scores: npt.NDArray[np.float64], out: Path) -> None:
    """Write what was mined, the highest score first: worth a look before it is learnt as no figure."""
    columns = {
        "field": [p.field.name for p in places],
        "slide": [p.field.slide for p in places],
        "x": [p.xy[0] for p in places],
        "y": [p.xy[1] for p in places],
        "p_mitosis": scores.round(4),
    }
    table = pd.DataFrame(columns).sort_values("p_mitosis", ascending=False)
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / MINED, table.to_csv(index=False).encode())
    log.info("%d places mined, see %s", len(table), out / MINED)


def calibrate(network: HeatmapNet, found: Detections) -> None:
    """Make the scores mean what they say: Platt scaling on held-out detections, put into the last layer."""
    gain, shift = platt(found.p, found.hit)
    with torch.no_grad():
        network.out.weight.mul_(gain)
        bias = network.out.bias
        assert bias is not None  # noqa: S101  # HeatmapNet's last layer has one
        bias.mul_(gain).add_(shift)


def _batch_loss(
    network: nn.Module, sampler: CropSampler, config: DetectorTraining, rng: np.random.Generator
) -> Tensor:
    regions, targets, doubtful = zip(*(sampler.draw(rng) for _ in range(config.batch)), strict=True)
    images, matrices = random_affine(torch.from_numpy(np.stack(regions)), config.crop_px, config.scale, rng)
    images = colour_mixing(images, config.mixing, rng)
    images = stain_jitter(images, config.od_gain, config.od_shift, config.od_strength, rng)
    images = random_focus(images, config.blur, rng)
    cells = config.crop_px // STRIDE

    def in_cells(points: tuple[np.ndarray, ...]) -> list[Tensor]:
        result = []
        for p, m in zip(points, matrices, strict=True):
            q = torch.from_numpy(p).float()
            moved = (q[:, :2] @ m.T + config.crop_px / 2) / STRIDE
            result.append(torch.cat([moved, q[:, 2:]], dim=1))
        return result

    points = in_cells(targets)
    target = gaussian_targets(points, cells, cells, config.sigma_cells)
    centre = centres(points, cells, cells)
    radius = DOUBTFUL_RADIUS_UM / config.mpp / STRIDE
    near_doubt = gaussian_targets(in_cells(doubtful), cells, cells, radius) > np.exp(-0.5)
    weight = torch.where(near_doubt & (centre == 0), 0.0, 1.0)
    return heatmap_focal(network(random_jpeg(to_uint8(images), config.jpeg, rng)), target, weight, centre)


def detect_all(runtime: Runtime, fields: list[Field], floor: float = LOWEST_P) -> list[Matched]:
    """Run a detector's runtime over whole fields, each in one piece, and match what it finds.

    Quicker than going tile by tile as a scan does (``detector_metrics.finder``), with the same scores inside.
    """
    return [match_field(field, *_find(runtime, field, floor)) for field in fields]


def _find(runtime: Runtime, field: Field, floor: float) -> tuple[np.ndarray, np.ndarray]:
    image = field.image
    height, width = (-(-side // 16) * 16 for side in image.shape[:2])
    padded = np.full((1, height, width, 3), 255, np.uint8)
    padded[0, : image.shape[0], : image.shape[1]] = image
    x, y, p = find_peaks(runtime(padded)[0], floor)
    xy = np.stack([x, y], 1) * STRIDE
    kept = merge(xy[:, 0], xy[:, 1], p, MATCH_RADIUS_UM / field.mpp)
    return xy[kept], p[kept]


def _card(
    config: DetectorTraining,
    matched: list[Matched],
    command: str,
    source: str,
    sha256: str,
    parameters: int,
) -> ModelCard:
    found = pooled(matched)
    threshold = round_down(found.low_threshold(F1_TOLERANCE))
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
        operating_point=OperatingPoint(
            threshold=threshold,
            criterion=f"lowest within {F1_TOLERANCE:g} of the greatest F1 at 7.5 µm",
            dataset=where,
        ),
        sensitive=OperatingPoint(
            threshold=round_down(found.threshold_at_recall(SENSITIVE_RECALL)),
            criterion=f"recall {SENSITIVE_RECALL:g} at 7.5 µm",
            dataset=where,
        ),
        parameters=parameters,
        sha256=sha256,
    )
