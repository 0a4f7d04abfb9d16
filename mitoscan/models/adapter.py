"""A foundation model made a classifier: a linear head on frozen features (probe), or LoRA and a head.

Only what was trained is ever kept: the head and the LoRA matrices, a few MB. The backbone stays frozen, comes
from its publisher each time, and is recognised by the fingerprint in the card.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mitoscan.errors import ModelError
from mitoscan.models.card import Lora, ModelCard
from mitoscan.models.foundation import Backbone, Foundation, find_foundation, load_backbone, read_weights
from mitoscan.models.lora import load_lora_state, lora_shapes, lora_state, merge_lora, wrap
from mitoscan.models.networks import CropNet, build_crop_net
from mitoscan.models.weights import Shapes, check_weights


@dataclass(frozen=True)
class Adapted:
    """A classifier to train: ``network.parameters()`` that require a gradient are all that may change."""

    network: CropNet
    foundation: Foundation
    backbone_sha256: str
    """``foundation.fingerprint`` of the backbone."""
    lora: Lora | None
    """None: a probe."""
    centre_px: int | None

    @property
    def card_fields(self) -> dict[str, Any]:
        """What a card must say so that the classifier can be put together again."""
        return {
            "backbone": self.foundation.name,
            "adaptation": "probe" if self.lora is None else "lora",
            "backbone_sha256": self.backbone_sha256,
            "lora": self.lora,
            "mean": self.foundation.mean,
            "std": self.foundation.std,
            "centre_px": self.centre_px,
            "resize_px": self.foundation.input_px,
        }


def adapt(
    name: str,
    *,
    lora: Lora | None = None,
    subtypes: int = 0,
    centre_px: int | None = None,
    dropout: float = 0.0,
    weights_dir: Path | None = None,
) -> Adapted:
    """Put an untrained head, and LoRA where asked, on a frozen foundation model.

    Parameters
    ----------
    name
        Of the foundation model.
    lora
        Settings of the adapters. None: a linear probe.
    subtypes
        Outputs beside the one for atypical.
    centre_px
        Side of the central square of the crop that is looked at, enlarged to the model's input. None: all.
    dropout
        Before the head.
    weights_dir
        See ``foundation.find_weights``.

    Raises
    ------
    ModelError
        When there is no such model, or its weights are not to be had.
    MissingExtraError
        When LoRA is asked for without peft.
    """
    entry = find_foundation(name)
    backbone, sha256 = load_backbone(entry, weights_dir)
    network = CropNet(backbone, entry.mean, entry.std, centre_px, subtypes, dropout, entry.input_px)
    if lora is not None:
        wrap(network, lora)
        network.head.requires_grad_(True)
    return Adapted(network, entry, sha256, lora, centre_px)


def adapter_state(adapted: Adapted) -> dict[str, Tensor]:
    """Give all that was trained: ``head.weight``, ``head.bias`` and the LoRA matrices."""
    head = {f"head.{name}": value.detach() for name, value in adapted.network.head.named_parameters()}
    return {name: value.cpu().contiguous() for name, value in (head | lora_state(adapted.network)).items()}


def load_adapter_state(adapted: Adapted, state: Mapping[str, Tensor]) -> None:
    """Put what ``adapter_state`` gave back, to go on training or to take the best epoch.

    Raises
    ------
    ModelError
        When it is of another network.
    """
    _load_head(adapted.network, state)
    load_lora_state(adapted.network, _without_head(state))


def merged_parameters(adapted: Adapted) -> int:
    """Count the parameters of the network that runs: backbone and head."""
    body = adapted.foundation.parameters
    return body + sum(p.numel() for p in adapted.network.head.parameters())


def load_adapted(weights: Path, card: ModelCard, weights_dir: Path | None = None) -> CropNet:
    """Merge a saved adapter into its backbone: a plain network, in evaluation mode. Needs no peft.

    Parameters
    ----------
    weights
        The adapter's safetensors.
    card
        Its card, with ``adaptation``.
    weights_dir
        See ``foundation.find_weights``.

    Raises
    ------
    ModelError
        When the backbone is not to be had or another than the adapter was trained on, or the two do not fit.
    """
    entry = find_foundation(card.backbone)
    with torch.device("meta"):  # what does not fit is found out before gigabytes are read
        check_weights(weights, _shapes_of(build_crop_net(card, Backbone(entry)), card.lora))
    backbone, sha256 = load_backbone(entry, weights_dir)
    if sha256 != card.backbone_sha256:
        raise ModelError(
            f"was trained on other weights of {entry.name}: {str(card.backbone_sha256)[:12]}…, here are "
            f"{sha256[:12]}…",
            path=weights,
            remedy=f"Take the weights from {entry.page}.",
        )
    network, state = build_crop_net(card, backbone), read_weights(weights)
    _load_head(network, state)
    if card.lora is not None:
        merge_lora(network, _without_head(state), card.lora)
    return network.eval()


def _shapes_of(network: CropNet, lora: Lora | None) -> Shapes:
    head = {f"head.{name}": tuple(value.shape) for name, value in network.head.named_parameters()}
    return head if lora is None else head | lora_shapes(network, lora)


def _load_head(network: CropNet, state: Mapping[str, Tensor]) -> None:
    head = {name.removeprefix("head."): value for name, value in state.items() if name.startswith("head.")}
    try:
        with torch.no_grad():
            network.head.load_state_dict(head)
    except RuntimeError as exc:
        raise ModelError(f"the head does not fit: {exc!s:.300}") from exc


def _without_head(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in state.items() if not name.startswith("head.")}
