"""Losses and targets."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812


def gaussian_targets(points: list[Tensor], height: int, width: int, sigma: float) -> Tensor:
    """Heat maps with a Gaussian at every point; the cell that holds it has exactly the Gaussian's height.

    Parameters
    ----------
    points
        One (K, 2) tensor an image: x, y in heat-map cells, continuous; or (K, 3) with the chance that the
        point is a figure, which is the Gaussian's height. Without: 1.
    height, width
        Size of the map, cells.
    sigma
        Standard deviation, cells.

    Returns
    -------
    Tensor
        float (N, height, width).
    """

    def drawn(dx: Tensor, dy: Tensor, chance: Tensor) -> Tensor:
        bumps = chance * torch.exp(-(dx**2 + dy**2) / (2 * sigma**2))
        return torch.where(_holds(dx, dy), chance, bumps.clamp(max=0.99))

    return _highest(points, height, width, drawn)


def centres(points: list[Tensor], height: int, width: int) -> Tensor:
    """Give the heights of ``gaussian_targets`` in the cells that hold a point, and 0 elsewhere."""

    def drawn(dx: Tensor, dy: Tensor, chance: Tensor) -> Tensor:
        return torch.where(_holds(dx, dy), chance, 0.0)

    return _highest(points, height, width, drawn)


def _holds(dx: Tensor, dy: Tensor) -> Tensor:
    return (dx.abs() <= 0.5) & (dy.abs() <= 0.5)


def _highest(
    points: list[Tensor], height: int, width: int, drawn: Callable[[Tensor, Tensor, Tensor], Tensor]
) -> Tensor:
    """Draw each point from its offsets to the cells' middles and its chance; the highest counts."""
    ys = torch.arange(height).view(1, -1, 1) + 0.5
    xs = torch.arange(width).view(1, 1, -1) + 0.5
    maps = []
    for p in points:
        if not len(p):
            maps.append(torch.zeros(height, width))
            continue
        x, y = p[:, 0].view(-1, 1, 1), p[:, 1].view(-1, 1, 1)
        chance = p[:, 2].view(-1, 1, 1) if p.shape[1] > 2 else torch.ones_like(x)
        maps.append(drawn(xs - x, ys - y, chance).amax(0))
    return torch.stack(maps)


def heatmap_focal(logits: Tensor, target: Tensor, weight: Tensor, centre: Tensor | None = None) -> Tensor:
    """Penalty-reduced focal loss of CornerNet/CenterNet (α = 2, β = 4), divided by the number of figures.

    Parameters
    ----------
    logits, target
        (N, H, W).
    weight
        (N, H, W); 0 leaves a cell out.
    centre
        (N, H, W): in cells that hold a point the chance that it is a figure, 0 in the others. The cell counts
        that much as a figure, and for the rest as none. None: the cells where ``target`` is 1 hold figures.
    """
    if centre is None:
        centre = (target == 1).float()
    p = logits.sigmoid()
    positive = centre * weight
    negative = torch.where(centre > 0, 1 - centre, (1 - target) ** 4) * weight
    loss = positive * (1 - p) ** 2 * F.softplus(-logits) + negative * p**2 * F.softplus(logits)
    return loss.sum() / positive.sum().clamp(min=1)


def amf_and_subtype(
    logits: Tensor, atypical: Tensor, subtype: Tensor, smoothing: float, subtype_weight: float
) -> Tensor:
    """Binary cross-entropy of the atypical logit plus weighted cross-entropy of the subtype logits.

    Parameters
    ----------
    logits
        (N, 1 + K).
    atypical
        float (N,), 0 to 1: the majority's word, or the share of the experts.
    subtype
        float (N, K), rows that sum to 1, or to 0 where unknown.
    smoothing
        Label smoothing of both.
    subtype_weight
        Weight of the second term.
    """
    soft = atypical * (1 - smoothing) + smoothing / 2
    binary = F.binary_cross_entropy_with_logits(logits[:, 0], soft)
    known = subtype.sum(dim=1, keepdim=True)
    spread = subtype * (1 - smoothing) + known * smoothing / subtype.shape[1]
    eight = -(spread * logits[:, 1:].log_softmax(dim=1)).sum() / known.sum().clamp(min=1)
    return binary + subtype_weight * eight


def categorical_focal(logits: Tensor, target: Tensor, class_weight: Tensor, gamma: float) -> Tensor:
    """Class-weighted focal loss (Lin et al. 2017) for soft targets; ``gamma`` 0 is cross-entropy.

    Parameters
    ----------
    logits
        (N, K).
    target
        float (N, K), rows that sum to 1, or to 0 where the truth is unknown.
    class_weight
        (K,), multiplies each class's term.
    gamma
        Down-weights what is already right.
    """
    log_p = F.log_softmax(logits, dim=1)
    terms = class_weight * target * (1 - log_p.exp()) ** gamma * -log_p
    return terms.sum() / target.sum().clamp(min=1)


def adaptive_binary_focal(logits: Tensor, target: Tensor) -> Tensor:
    """Binary focal loss whose γ depends on the sample: 5 where p of the truth is below 0.2, else 3.

    FLSD-53 of Mukhoti et al. 2020 (Calibrating deep neural networks using focal loss). ``logits`` and
    ``target``, float in [0, 1] (soft labels allowed), are (N,).
    """
    p = logits.sigmoid()
    of_truth = (target * p + (1 - target) * (1 - p)).detach()
    gamma = torch.where(of_truth < 0.2, 5.0, 3.0)
    right = target * (1 - p) ** gamma * F.softplus(-logits)
    wrong = (1 - target) * p**gamma * F.softplus(logits)
    return (right + wrong).mean()


def supervised_contrastive(features: Tensor, labels: Tensor, temperature: float = 0.1) -> Tensor:
    """Pull crops of one class together and push the others away (Khosla et al. 2020, eq. 2).

    Parameters
    ----------
    features
        (N, D); normalised here.
    labels
        int64 (N,). A class with a single member has nothing to be pulled to and is left out.
    temperature
        Smaller: harder.
    """
    z = F.normalize(features, dim=1)
    itself = torch.eye(len(z), dtype=torch.bool)
    similarity = (z @ z.T / temperature).masked_fill(itself, -torch.inf)
    log_p = similarity - similarity.logsumexp(dim=1, keepdim=True)
    same = (labels[:, None] == labels) & ~itself
    partners = same.sum(dim=1)
    terms = -log_p.masked_fill(~same, 0).sum(dim=1)[partners > 0] / partners[partners > 0]
    return terms.mean() if len(terms) else features.sum() * 0
