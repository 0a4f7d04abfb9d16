"""Training of one contestant on one split: epochs, early stopping, a rate lowered on plateaus."""

from __future__ import annotations

import copy
import csv
import logging
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torchvision.transforms import v2

from mitoscan.learn.augment import gaussian_noise, mix_up
from mitoscan.learn.benchmark_config import Augmentation, Contestant
from mitoscan.learn.classifier_metrics import atypical_from_subtypes
from mitoscan.learn.data import CropSet, Float
from mitoscan.learn.domains import DomainHead
from mitoscan.learn.losses import adaptive_binary_focal, categorical_focal, supervised_contrastive
from mitoscan.learn.metrics import binary_metrics
from mitoscan.learn.sampling import HardExamples, class_and_domain_balanced, class_balanced
from mitoscan.models.card import SUBTYPES
from mitoscan.models.networks import Normalise

log = logging.getLogger(__name__)


class StudyNet(nn.Module):
    """A backbone that gives features, and a linear head, on crops that are resized in the graph.

    Input uint8 (N, S, S, 3), or features that were computed before, float (N, D), with an identity for a
    backbone; logits (N, 1) or (N, 8). Crops are resized as the classifiers of a scan resize them.
    """

    def __init__(
        self,
        backbone: nn.Module,
        width: int,
        outputs: int,
        input_px: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.normalise = Normalise(mean, std, resize_px=input_px)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(width, outputs)

    def features(self, images: Tensor) -> Tensor:
        """Resize, normalise, and run the backbone; what are features already stays as it is."""
        if images.ndim == 2:
            return images
        features: Tensor = self.backbone(self.normalise(images))
        return features

    def forward(self, images: Tensor) -> Tensor:
        """See the class."""
        logits: Tensor = self.head(self.dropout(self.features(images)))
        return logits


class _Targets(NamedTuple):
    """What is learnt of each crop."""

    values: Tensor
    """float (N,) for binary, (N, 8) for subtypes; rows of zeros where unknown."""
    classes: npt.NDArray[np.int64]
    """Majority class, for samplers and the contrastive loss."""
    domain: npt.NDArray[np.int64]


def fit_contestant(
    contestant: Contestant,
    network: StudyNet,
    training: CropSet,
    validation: CropSet,
    seed: int,
    log_path: Path,
) -> StudyNet:
    """Train until the monitored figure stops improving; give the best epoch's network.

    Parameters
    ----------
    contestant
        The recipe.
    network
        Trained in place; parameters that do not require a gradient stay as they are.
    training, validation
        Crops; the second chooses the epoch.
    seed
        Of batches and augmentation.
    log_path
        CSV with a row an epoch.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    how = contestant.optimiser
    targets = _targets(contestant, training)
    adversary = _adversary(contestant, network, targets)
    parameters = [p for p in [*network.parameters(), *adversary.parameters()] if p.requires_grad]
    optimiser = torch.optim.Adam(parameters, how.learning_rate, weight_decay=how.l2)
    rate = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimiser, mode="max", factor=how.factor, patience=how.factor_patience, min_lr=how.least_rate
    )
    hard = HardExamples(len(training), contestant.hard_share)
    best, since, kept = -math.inf, 0, copy.deepcopy(network.state_dict())
    rows: list[dict[str, float]] = []
    for epoch in range(how.epochs):
        _freeze_backbone(network, parameters, frozen=epoch < how.head_only_epochs)
        network.train()
        loss = _epoch(contestant, network, adversary, optimiser, training, targets, hard, rng)
        figures = validation_figures(contestant, network, validation)
        score = figures[how.monitor] if how.monitor != "loss" else -figures["loss"]
        rate.step(score)
        rows.append(
            {"epoch": epoch + 1, "training_loss": loss, **figures, "rate": float(rate.get_last_lr()[0])}
        )
        log.info("  ".join(f"{k} {v:.4g}" for k, v in rows[-1].items()))
        if score > best:
            best, since, kept = score, 0, copy.deepcopy(network.state_dict())
        else:
            since += 1
        if since >= how.patience:
            break
    _write_rows(rows, log_path)
    network.load_state_dict(kept)
    return network.eval()


def _targets(contestant: Contestant, crops: CropSet) -> _Targets:
    soft = contestant.loss.soft_labels
    _, domains = np.unique(crops.domain, return_inverse=True)
    if contestant.target == "binary":
        values = crops.atypical_share if soft else crops.atypical.astype(np.float64)
        return _Targets(torch.from_numpy(values).float(), crops.atypical.astype(np.int64), domains)
    first = _one_hot(crops.subtype)
    second = _one_hot(crops.subtype2)
    both = first + second
    mean = both / np.maximum(both.sum(axis=1, keepdims=True), 1)
    return _Targets(torch.from_numpy(mean if soft else first).float(), crops.subtype, domains)


def _one_hot(subtype: npt.NDArray[np.int64]) -> Float:
    """(N, 8); a row of zeros where unknown."""
    known = (subtype >= 0)[:, None]
    rows: Float = np.eye(len(SUBTYPES))[subtype] * known
    return rows


def _adversary(contestant: Contestant, network: StudyNet, targets: _Targets) -> nn.Module:
    domains = int(targets.domain.max()) + 1
    if not contestant.loss.adversarial or domains < 2:
        return nn.Identity()
    return DomainHead(network.head.in_features, domains, contestant.loss.adversarial)


def _freeze_backbone(network: StudyNet, parameters: list[nn.Parameter], *, frozen: bool) -> None:
    """Stop or let go the backbone's gradients, of those parameters that are trained at all."""
    trained = {id(p) for p in parameters}
    for parameter in network.backbone.parameters():
        if id(parameter) in trained:
            parameter.requires_grad_(not frozen)


def _epoch(
    contestant: Contestant,
    network: StudyNet,
    adversary: nn.Module,
    optimiser: torch.optim.Optimizer,
    crops: CropSet,
    targets: _Targets,
    hard: HardExamples,
    rng: np.random.Generator,
) -> float:
    """Go once through as many crops as there are; give the mean loss."""
    batch = contestant.optimiser.batch
    augment, weights = _augmentation(contestant.augmentation), _class_weights(contestant, targets)
    order = rng.permutation(len(crops))
    losses = []
    for start in range(0, len(crops) - len(crops) % batch or batch, batch):
        index = hard.mix_in(_draw(contestant, targets, order[start : start + batch], rng), rng)
        images = torch.from_numpy(crops.images[index])
        if images.ndim == 4:
            images = augment(images.permute(0, 3, 1, 2)).float().permute(0, 2, 3, 1)
            images = gaussian_noise(images, contestant.augmentation.noise, rng)
        wanted = targets.values[torch.from_numpy(index)]
        images, mixed = mix_up(images, wanted, contestant.loss.mixup, rng)
        features = network.features(images)
        logits = network.head(network.dropout(features))
        loss = _loss(contestant, logits, mixed, weights)
        if contestant.loss.contrastive:
            labels = torch.from_numpy(targets.classes[index])
            loss = loss + contestant.loss.contrastive * supervised_contrastive(features, labels)
        if isinstance(adversary, DomainHead):
            loss = loss + adversary(features, torch.from_numpy(targets.domain[index]))
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        if contestant.hard_share:
            hard.note(index, _each_loss(logits.detach(), wanted).numpy().astype(np.float64))
        losses.append(loss.item())
    return float(np.mean(losses))


def _draw(
    contestant: Contestant, targets: _Targets, plain: npt.NDArray[np.int64], rng: np.random.Generator
) -> npt.NDArray[np.int64]:
    if contestant.sampler == "plain":
        return plain
    if contestant.target == "subtypes":
        counts = np.bincount(targets.classes[targets.classes >= 0], minlength=len(SUBTYPES))
        weight = np.where(targets.classes >= 0, 1 / np.maximum(counts[targets.classes], 1), 0)
        return rng.choice(len(weight), size=len(plain), p=weight / weight.sum())
    atypical = targets.classes == 1
    if contestant.sampler == "domains":
        return class_and_domain_balanced(atypical, targets.domain.astype(str), len(plain), rng)
    return class_balanced(atypical, len(plain), rng)


def _augmentation(how: Augmentation) -> v2.Transform:
    """Each crop of the batch is transformed on its own."""
    steps: list[v2.Transform] = []
    if how.area != (1, 1):
        steps.append(v2.RandomResizedCrop(128, scale=how.area, antialias=True))
    if how.flip != "none":
        steps.append(v2.RandomHorizontalFlip())
    if how.flip == "both":
        steps.append(v2.RandomVerticalFlip())
    if how.rotate:
        steps.append(v2.RandomRotation(how.rotate, fill=255))
    steps.append(v2.ColorJitter(how.brightness, how.contrast, how.saturation, how.hue))
    one = v2.Compose(steps)
    return v2.Lambda(lambda images: torch.stack([one(image) for image in images]))


def _class_weights(contestant: Contestant, targets: _Targets) -> Tensor:
    """(2,) or (8,): 1, or inverse to the class's frequency with mean 1."""
    classes = 2 if contestant.target == "binary" else len(SUBTYPES)
    if not contestant.loss.class_weighted:
        return torch.ones(classes)
    counts = np.bincount(targets.classes[targets.classes >= 0], minlength=classes)
    weights = 1 / np.maximum(counts, 1)
    return torch.from_numpy(weights / weights.mean()).float()


def _loss(contestant: Contestant, logits: Tensor, target: Tensor, weights: Tensor) -> Tensor:
    kind, gamma = contestant.loss.kind, contestant.loss.gamma
    if contestant.target == "binary":
        if kind == "adaptive_focal":
            return adaptive_binary_focal(logits[:, 0], target)
        # NMF and AMF as two classes with logits 0 and z: the same probability as sigmoid(z)
        logits = torch.cat([torch.zeros_like(logits), logits], dim=1)
        target = torch.stack([1 - target, target], dim=1)
    return categorical_focal(logits, target, weights, 0.0 if kind == "cross_entropy" else gamma)


def _each_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy of each crop, (N,)."""
    if target.ndim == 1:
        return F.binary_cross_entropy_with_logits(logits[:, 0], target, reduction="none")
    return F.cross_entropy(logits, target, reduction="none")


def validation_figures(contestant: Contestant, network: StudyNet, crops: CropSet) -> dict[str, float]:
    """Balanced accuracy and AUROC of p_atypical at ½, and the loss."""
    p, logits = predict(contestant, network, crops)
    at = binary_metrics(p, crops.atypical, 0.5)
    targets = _targets(contestant, crops).values
    loss = _each_loss(torch.from_numpy(logits).float(), targets).mean().item()
    return {"balanced_accuracy": at.balanced_accuracy, "auroc": at.auroc, "loss": loss}


def predict(contestant: Contestant, network: StudyNet, crops: CropSet) -> tuple[Float, Float]:
    """Give p_atypical, (N,), and the logits, (N, 1) or (N, 8)."""
    network.eval()
    batches = (torch.from_numpy(crops.images[i : i + 32]) for i in range(0, len(crops), 32))
    with torch.inference_mode():
        logits = torch.cat([network(batch) for batch in batches])
    if contestant.target == "binary":
        return logits[:, 0].sigmoid().numpy().astype(np.float64), logits.numpy().astype(np.float64)
    shares = logits.softmax(dim=1).numpy().astype(np.float64)
    return atypical_from_subtypes(shares), logits.numpy().astype(np.float64)


def _write_rows(rows: list[dict[str, float]], path: Path) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows({k: f"{v:.6g}" for k, v in row.items()} for row in rows)
