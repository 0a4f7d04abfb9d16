"""Training of the AMF classifier on the published training part of AMi-Br."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor, nn

from mitoscan.errors import DataError, OutputError
from mitoscan.learn.augment import (
    colour_mixing,
    mix_up,
    random_affine,
    random_focus,
    random_jpeg,
    stain_jitter,
    to_uint8,
)
from mitoscan.learn.config import ClassifierTraining
from mitoscan.learn.data import CropSet, Float, load_amibr
from mitoscan.learn.imagenet import load_imagenet, load_trunk
from mitoscan.learn.losses import amf_and_subtype
from mitoscan.learn.metrics import balanced_threshold, binary_metrics, counts, platt, rescaled, round_down
from mitoscan.learn.sampling import class_balanced
from mitoscan.learn.train import Validation, export, fit, new_card
from mitoscan.models.card import CARD_NAME, SUBTYPES, ModelCard, OperatingPoint
from mitoscan.models.networks import CropNet, Probabilities
from mitoscan.models.runtime import Runtime, TorchRuntime
from mitoscan.models.zoo import find_model
from mitoscan.report.atomic import write_atomically

HELD_OUT = "held_out.csv"
"""A fold's predictions of the crops that it did not see."""
CONFIG = "config.json"
"""What a fold was trained with."""


@dataclass(frozen=True)
class Job:
    """What one call trains, and how it is noted in the cards."""

    config: ClassifierTraining
    crops: CropSet
    command: str
    source: str
    on_step: Callable[[int], None]
    done: int = 0
    """Steps of what was trained before it."""


def train_classifier(
    config: ClassifierTraining,
    data: Path,
    out: Path,
    command: str,
    source: str,
    on_step: Callable[[int], None] = lambda _: None,
) -> ModelCard:
    """Train one fold; or, with ``config.fold`` None, every fold and then the model of all crops.

    One fold chooses its operating point on its held-out slides. The folds of the second case become models of
    their own, in ``out/fold0`` and so on; those that are there already are not trained again. Their pooled
    held-out predictions calibrate the model of all crops and choose its operating point.

    Parameters
    ----------
    config
        The recipe.
    data
        Folder with ``amf/AMI-BR.csv`` and so on.
    out
        The model's folder; gets ``log.csv`` and ``held_out.csv`` too.
    command, source
        What was called with which config; noted in the card.
    on_step
        Told the number of steps done.
    """
    config, crops = _with_origin(config), load_amibr(data / "amf", "train")
    if config.fold is not None:
        return _train_fold(Job(config, crops, command, source, on_step), out)
    for fold in range(config.folds):
        of_fold = config.model_copy(update={"fold": fold, "name": f"{config.name}-fold{fold}"})
        folder = out / f"fold{fold}"
        if not _is_trained(of_fold, folder):
            _train_fold(Job(of_fold, crops, command, source, on_step, fold * config.steps), folder)
    return _train_all(Job(config, crops, command, source, on_step, config.folds * config.steps), out)


def _with_origin(config: ClassifierTraining) -> ClassifierTraining:
    """Add what the detector saw that the training starts from: the card must say so."""
    if config.start_from is None:
        return config
    _, card = find_model(config.start_from, "detector")
    seen = f"{config.trained_on}; the trunk started from {card.name} (sha256 {card.sha256[:12]}…), which saw "
    return config.model_copy(update={"trained_on": seen + card.training.data})


def _is_trained(config: ClassifierTraining, folder: Path) -> bool:
    """Say whether a fold is there already; one that another config made is refused."""
    if not (folder / CARD_NAME).exists():
        return False
    path = folder / CONFIG
    if not path.exists() or path.read_text(encoding="utf-8") != config.model_dump_json():
        raise OutputError(
            "a fold trained with another config is there",
            path=folder,
            remedy="Choose another folder with -o, or remove this one.",
        )
    return True


def _train_fold(job: Job, out: Path) -> ModelCard:
    config = job.config
    training, held_out = split_by_slide(job.crops, config)

    def validate(average: nn.Module) -> Validation:
        p = predict_all(TorchRuntime(Probabilities(average), "cpu"), held_out)[:, 0]
        figures = binary_metrics(p, held_out.atypical, 0.5)
        return {"balanced_accuracy": figures.balanced_accuracy, "auroc": figures.auroc}

    average = _fit(job, training, validate, out)
    shares = predict_all(TorchRuntime(Probabilities(average), "cpu"), held_out)
    _write_held_out(shares, held_out, out / HELD_OUT)
    write_atomically(out / CONFIG, config.model_dump_json().encode())
    where = f"{config.validated_on}, slide-grouped fold {config.fold} of {config.folds}, held out"
    curves = ("balanced_accuracy", "auroc")
    return export(
        average,
        out,
        curves,
        lambda sha, n: _card(job, shares[:, 0], held_out.atypical, where, sha, n),
    )


def _train_all(job: Job, out: Path) -> ModelCard:
    """Train on all crops; the folds beside it say how good that is, and calibrate it."""
    config = job.config
    network = _fit(job, job.crops, lambda _: {}, out)
    tables = [pd.read_csv(out / f"fold{fold}" / HELD_OUT) for fold in range(config.folds)]
    pooled = pd.concat(tables)
    p, atypical = pooled["p_atypical"].to_numpy(), pooled["atypical"].to_numpy(bool)
    p = calibrate(network, p, atypical)
    where = f"{config.validated_on}, {config.folds} slide-grouped folds, each held out once"
    return export(network, out, (), lambda sha, n: _card(job, p, atypical, where, sha, n))


def _fit(job: Job, training: CropSet, validate: Callable[[nn.Module], Validation], out: Path) -> CropNet:
    config = job.config
    torch.manual_seed(config.seed)
    rng = np.random.default_rng(config.seed)
    network = CropNet(
        config.backbone,
        config.mean,
        config.std,
        config.centre_px,
        len(SUBTYPES),
        config.dropout,
        config.resize_px,
        config.views,
    )
    load_imagenet(network, config.backbone)
    if config.start_from is not None:
        load_trunk(network, config.start_from)
    average = fit(
        network,
        config,
        rng,
        lambda net: _batch_loss(net, training, config, rng),
        validate,
        out,
        on_step=lambda n: job.on_step(job.done + n),
    )
    assert isinstance(average, CropNet)  # noqa: S101  # a copy of what it was given
    return average


def split_by_slide(crops: CropSet, config: ClassifierTraining) -> tuple[CropSet, CropSet]:
    """Split into training and held-out crops; no slide is in both, and AMF are spread evenly.

    Raises
    ------
    DataError
        When the slides are too few for that.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    for kind, members in (("atypical", crops.atypical), ("normal", ~crops.atypical)):
        slides = len(np.unique(crops.slide[members]))
        if slides < config.folds:
            raise DataError(
                f"{slides} slides with {kind} figures do not make {config.folds} folds",
                remedy="Set folds lower, or add slides.",
            )
    folds = StratifiedGroupKFold(config.folds, shuffle=True, random_state=config.seed)
    train, held_out = list(folds.split(crops.images, crops.atypical, crops.slide))[config.fold or 0]
    return crops.take(train), crops.take(held_out)


def _batch_loss(
    network: nn.Module, crops: CropSet, config: ClassifierTraining, rng: np.random.Generator
) -> Tensor:
    drawn = crops.take(class_balanced(crops.atypical, config.batch, rng))
    images, _ = random_affine(torch.from_numpy(drawn.images), config.centre_px, config.scale, rng)
    images = colour_mixing(images, config.mixing, rng)
    images = stain_jitter(images, config.od_gain, config.od_shift, config.od_strength, rng)
    images = random_focus(images, config.blur, rng)
    images = random_jpeg(to_uint8(images), config.jpeg, rng).permute(0, 3, 1, 2).float()
    images, targets = mix_up(images, _targets(drawn, config), config.mixup, rng)
    logits = network(to_uint8(images))
    return amf_and_subtype(
        logits, targets[:, 0], targets[:, 1:], config.label_smoothing, config.subtype_weight
    )


def _targets(crops: CropSet, config: ClassifierTraining) -> Tensor:
    """Give what to learn, (N, 1 + K): p_atypical, and the subtypes' shares (zeros where unknown)."""
    if config.soft_labels:
        atypical, subtypes = crops.atypical_share, crops.subtype_share
    else:
        atypical = crops.atypical.astype(np.float64)
        subtypes = np.eye(len(SUBTYPES) + 1)[crops.subtype, :-1]
    return torch.from_numpy(np.column_stack([atypical, subtypes])).float()


def predict_all(runtime: Runtime, crops: CropSet, batch: int = 64) -> Float:
    """Run a classifier's runtime over crops: (N, 1 + K), p_atypical and the subtypes' shares."""
    parts = [runtime(crops.images[i : i + batch]) for i in range(0, len(crops), batch)]
    return np.concatenate(parts).astype(np.float64)


def calibrate(network: CropNet, p: Float, atypical: npt.NDArray[np.bool_]) -> Float:
    """Make p_atypical mean what it says: Platt scaling on held-out predictions, put into the last layer.

    Training draws as many atypical crops as normal ones, so that before this p_atypical is far above the
    frequency.

    Returns
    -------
    float64 (N,)
        ``p``, calibrated: what the calibrated network would have given.
    """
    gain, shift = platt(p, atypical)
    with torch.no_grad():
        network.head.weight[0].mul_(gain)
        network.head.bias[0].mul_(gain).add_(shift)
    return rescaled(p, gain, shift)


def _write_held_out(shares: Float, crops: CropSet, path: Path) -> None:
    table = pd.DataFrame({"slide": crops.slide, "atypical": crops.atypical, "p_atypical": shares[:, 0]})
    for k, name in enumerate(SUBTYPES):
        table[f"p_{name}"] = shares[:, 1 + k]
    for expert, subtype in enumerate((crops.subtype, crops.subtype2), start=1):
        table[f"expert{expert}"] = [SUBTYPES[k] if k >= 0 else "" for k in subtype]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, table.to_csv(index=False).encode())


def _card(
    job: Job, p: Float, atypical: npt.NDArray[np.bool_], where: str, sha256: str, parameters: int
) -> ModelCard:
    """Describe the model; ``p`` and ``atypical``, (N,), are held-out predictions and their truth."""
    config = job.config
    threshold = round_down(balanced_threshold(p, atypical))
    called = p >= threshold
    figures = binary_metrics(p, atypical, threshold)
    metrics = {
        "balanced accuracy": figures.balanced_accuracy,
        "AUROC": figures.auroc,
        "sensitivity": figures.sensitivity,
        "specificity": figures.specificity,
    }
    return new_card(
        config,
        measured=metrics,
        n=len(p),
        dataset=where,
        command=job.command,
        source=job.source,
        task="classifier",
        input_px=config.crop_px,
        centre_px=config.centre_px,
        resize_px=config.resize_px,
        classes=("NMF", "AMF"),
        subtypes=SUBTYPES,
        operating_point=OperatingPoint(
            threshold=threshold, criterion="Bayes' rule for balanced accuracy", dataset=where
        ),
        validation=counts(called, atypical),
        parameters=parameters,
        sha256=sha256,
    )
