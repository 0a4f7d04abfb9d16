"""Training of the AMF classifier on the published training part of AMi-Br."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from mitoscan.learn.augment import (
    colour_mixing,
    random_affine,
    random_focus,
    random_jpeg,
    stain_jitter,
    to_uint8,
)
from mitoscan.learn.config import ClassifierTraining
from mitoscan.learn.data import CropSet, Float, load_amibr
from mitoscan.learn.imagenet import load_imagenet
from mitoscan.learn.losses import amf_and_subtype
from mitoscan.learn.metrics import best_balanced_threshold, binary_metrics, round_down
from mitoscan.learn.sampling import class_balanced
from mitoscan.learn.train import Validation, export, fit, new_card
from mitoscan.models.card import SUBTYPES, Counts, ModelCard, OperatingPoint
from mitoscan.models.networks import CropNet, Probabilities
from mitoscan.models.runtime import Runtime, TorchRuntime


def train_classifier(
    config: ClassifierTraining,
    data: Path,
    out: Path,
    command: str,
    source: str,
    on_step: Callable[[int], None] = lambda _: None,
) -> ModelCard:
    """Train from ImageNet weights, choose the operating point on the held-out slides, and export to ``out``.

    Parameters
    ----------
    config
        The recipe.
    data
        Folder with ``amf/AMI-BR.csv`` and so on.
    out
        The model's folder; gets ``log.csv`` too.
    command, source
        What was called with which config; noted in the card.
    on_step
        Told the number of steps done.
    """
    torch.manual_seed(config.seed)
    rng = np.random.default_rng(config.seed)
    training, validation = split_by_slide(load_amibr(data / "amf", "train"), config)
    network = CropNet(
        config.backbone, config.mean, config.std, config.centre_px, len(SUBTYPES), config.dropout
    )
    load_imagenet(network, config.backbone)

    def validate(average: nn.Module) -> Validation:
        p = predict_all(TorchRuntime(Probabilities(average), "cpu"), validation)[:, 0]
        figures = binary_metrics(p, validation.atypical, 0.5)
        return {"balanced_accuracy": figures.balanced_accuracy, "auroc": figures.auroc}

    average = fit(
        network,
        config,
        rng,
        lambda net: _batch_loss(net, training, config, rng),
        validate,
        out,
        on_step=on_step,
    )
    p = predict_all(TorchRuntime(Probabilities(average), "cpu"), validation)[:, 0]
    curves = ("balanced_accuracy", "auroc")
    return export(average, out, curves, lambda sha, n: _card(config, p, validation, command, source, sha, n))


def split_by_slide(crops: CropSet, config: ClassifierTraining) -> tuple[CropSet, CropSet]:
    """Split into training and held-out crops; no slide is in both, and AMF are spread evenly."""
    from sklearn.model_selection import StratifiedGroupKFold

    folds = StratifiedGroupKFold(config.folds, shuffle=True, random_state=config.seed)
    train, held_out = list(folds.split(crops.images, crops.atypical, crops.slide))[config.fold]
    return crops.take(train), crops.take(held_out)


def _batch_loss(
    network: nn.Module, crops: CropSet, config: ClassifierTraining, rng: np.random.Generator
) -> Tensor:
    drawn = crops.take(class_balanced(crops.atypical, config.batch, rng))
    images, _ = random_affine(torch.from_numpy(drawn.images), config.centre_px, config.scale, rng)
    images = colour_mixing(images, config.mixing, rng)
    images = stain_jitter(images, config.od_gain, config.od_shift, config.od_strength, rng)
    images = random_focus(images, config.blur, rng)
    logits = network(random_jpeg(to_uint8(images), config.jpeg, rng))
    return amf_and_subtype(
        logits,
        torch.from_numpy(drawn.atypical).float(),
        torch.from_numpy(drawn.subtype),
        config.label_smoothing,
        config.subtype_weight,
    )


def predict_all(runtime: Runtime, crops: CropSet, batch: int = 64) -> Float:
    """Run a classifier's runtime over crops: (N, 1 + K), p_atypical and the subtypes' shares."""
    parts = [runtime(crops.images[i : i + batch]) for i in range(0, len(crops), batch)]
    return np.concatenate(parts).astype(np.float64)


def _card(
    config: ClassifierTraining,
    p: Float,
    held_out: CropSet,
    command: str,
    source: str,
    sha256: str,
    parameters: int,
) -> ModelCard:
    threshold = round_down(best_balanced_threshold(p, held_out.atypical))
    called, atypical = p >= threshold, held_out.atypical
    figures = binary_metrics(p, atypical, threshold)
    where = f"{config.validated_on}, slide-grouped fold {config.fold} of {config.folds}, held out"
    metrics = {
        "balanced accuracy": figures.balanced_accuracy,
        "AUROC": figures.auroc,
        "sensitivity": figures.sensitivity,
        "specificity": figures.specificity,
    }
    return new_card(
        config,
        measured=metrics,
        n=len(held_out),
        dataset=where,
        command=command,
        source=source,
        task="classifier",
        input_px=config.crop_px,
        centre_px=config.centre_px,
        classes=("NMF", "AMF"),
        subtypes=SUBTYPES,
        operating_point=OperatingPoint(
            threshold=threshold, criterion="greatest balanced accuracy", dataset=where
        ),
        validation=Counts(
            tp=int((called & atypical).sum()),
            fn=int((~called & atypical).sum()),
            tn=int((~called & ~atypical).sum()),
            fp=int((called & ~atypical).sum()),
        ),
        parameters=parameters,
        sha256=sha256,
    )
