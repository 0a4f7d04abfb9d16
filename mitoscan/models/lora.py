"""Low-rank adaptation (LoRA, Hu et al. 2021) of a vision transformer's blocks.

Training goes through peft. Running an adapted model does not: the two small matrices of each layer are added
to its weight, after which the network is an ordinary one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mitoscan.errors import MissingExtraError, ModelError
from mitoscan.models.card import Lora

TARGETS = r".*\bblocks\.\d+\.(attn\.(qkv|proj)|mlp\.fc[12])"
"""timm's names: query, key and value in one, output projection, both layers of the MLP (packed SwiGLU too).

Not ``patch_embed.proj``, which a search for names that end in ``proj`` would adapt as well."""


def wrap(network: nn.Module, settings: Lora) -> None:
    """Give every targeted layer of ``network`` its adapter, in place; only adapters are left to be trained.

    An untrained adapter changes no output.

    Raises
    ------
    MissingExtraError
        When peft is not installed.
    ModelError
        When the network has no layer of these names.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as exc:
        raise MissingExtraError(
            "training with LoRA needs peft", remedy='Run: pip install "mitoscan[train]".'
        ) from exc
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=TARGETS,
        bias="none",
    )
    try:
        inject_adapter_in_model(config, network)
    except ValueError as exc:
        raise ModelError(
            "the network has none of the layers that LoRA adapts", remedy="Take a vision transformer of timm."
        ) from exc


def lora_state(network: nn.Module) -> dict[str, Tensor]:
    """Give a wrapped network's adapters: ``LAYER.lora_A`` (rank, in) and ``LAYER.lora_B`` (out, rank)."""
    return {
        f"{name}.{which}": getattr(layer, which)["default"].weight.detach()
        for name, layer in _adapted(network)
        for which in ("lora_A", "lora_B")
    }


def load_lora_state(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Put what ``lora_state`` gave back into a network wrapped with the same settings.

    Raises
    ------
    ModelError
        When layers or shapes differ.
    """
    own = lora_state(network)
    _require({name: tuple(value.shape) for name, value in own.items()}, state)
    with torch.no_grad():
        for name, value in own.items():
            value.copy_(state[name])


def merge_lora(network: nn.Module, state: Mapping[str, Tensor], settings: Lora) -> None:
    """Add ``alpha / rank × B A`` to the weights of a plain network that has the adapted layers.

    Parameters
    ----------
    network
        Not wrapped; changed in place.
    state
        From ``lora_state``.
    settings
        Those it was trained with.

    Raises
    ------
    ModelError
        When the network lacks a layer, or shapes differ.
    """
    _require(lora_shapes(network, settings), state)
    with torch.no_grad():
        for name, weight in _targets(network):
            change = state[f"{name}.lora_B"] @ state[f"{name}.lora_A"]
            weight += settings.alpha / settings.rank * change.to(weight)


def lora_shapes(network: nn.Module, settings: Lora) -> dict[str, tuple[int, ...]]:
    """Give the shapes that ``lora_state`` has for a network, here not wrapped and possibly without memory."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name, weight in _targets(network):
        outputs, inputs = weight.shape
        shapes |= {f"{name}.lora_A": (settings.rank, inputs), f"{name}.lora_B": (outputs, settings.rank)}
    return shapes


def _targets(network: nn.Module) -> list[tuple[str, Tensor]]:
    layers: list[tuple[str, Any]] = list(network.named_modules())
    return [(name, layer.weight) for name, layer in layers if re.fullmatch(TARGETS, name)]


def _adapted(network: nn.Module) -> list[tuple[str, Any]]:
    return [(name, layer) for name, layer in network.named_modules() if hasattr(layer, "lora_A")]


def _require(wanted: Mapping[str, tuple[int, ...]], state: Mapping[str, Tensor]) -> None:
    found = {name: tuple(value.shape) for name, value in state.items()}
    differing = sorted(name for name in {**wanted, **found} if wanted.get(name) != found.get(name))
    if differing:
        raise ModelError(f"the adapter does not fit the backbone at {', '.join(differing[:3])}")
