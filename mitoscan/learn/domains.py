"""Domains, where crops come from (data set, scanner, tumour), and a head that makes features forget them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812


class _Reversal(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, strength: float) -> Tensor:
        ctx.strength = strength
        return features.view_as(features)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return -ctx.strength * grads[0], None


class DomainHead(nn.Module):
    """Adversarial head: learns to tell the domain while the features below unlearn it.

    Gradient reversal of Ganin et al. 2016 (Domain-adversarial training of neural networks).

    Parameters
    ----------
    features
        Width of the features.
    domains
        Number of domains.
    strength
        Factor on the reversed gradient.
    """

    def __init__(self, features: int, domains: int, strength: float) -> None:
        super().__init__()
        self.strength = strength
        self.layers = nn.Sequential(nn.Linear(features, 128), nn.ReLU(), nn.Linear(128, domains))

    def forward(self, features: Tensor, domain: Tensor) -> Tensor:
        """Cross-entropy of the domain, int64 (N,), told from ``features``, (N, D)."""
        reversed_: Tensor = _Reversal.apply(features, self.strength)  # type: ignore[no-untyped-call]
        logits = self.layers(reversed_)
        return F.cross_entropy(logits, domain)
