"""The two network architectures, as plain torch modules that take uint8 pictures.

Cropping, conversion to float and normalisation are part of the graph, so that every runtime gets the same
bytes and no caller can normalise wrongly.
"""

from __future__ import annotations

from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  (the library's own custom)

from mitoscan.models.card import ModelCard

STRIDE = 8
"""Work px per cell of the detector's heat map."""


class Normalise(nn.Module):
    """uint8 (N, H, W, 3) to normalised float (N, 3, h, w), optionally cut to the centre and resized.

    Resizing is bilinear with a filter as wide as the step where it shrinks, as torchvision does on pictures.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        centre_px: int | None = None,
        resize_px: int | None = None,
    ) -> None:
        super().__init__()
        self.centre_px, self.resize_px = centre_px, resize_px
        self.register_buffer("mean", 255 * torch.tensor(mean), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(std), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """See the class."""
        if self.centre_px is not None:
            top, left = ((side - self.centre_px) // 2 for side in images.shape[1:3])
            images = images[:, top : top + self.centre_px, left : left + self.centre_px]
        # Channels last as long as possible: it is how the convolutions want it, and saves two copies.
        x: Tensor = ((images.float() - self.mean) / self.std).permute(0, 3, 1, 2)
        if self.resize_px is not None and self.resize_px != x.shape[2]:
            size = (self.resize_px, self.resize_px)
            x = F.interpolate(x, size, mode="bilinear", antialias=self.resize_px < x.shape[2])
        return x


class HeatmapNet(nn.Module):
    """Fully convolutional detector: an EfficientNet cut at stride 16, one top-down step to stride 8.

    Input uint8 (N, H, W, 3) with H and W multiples of 16; output logits (N, H / 8, W / 8), one for each
    8 × 8 px cell: how likely a mitotic figure's centre lies there (CenterNet's heat map, Zhou et al. 2019).
    Outside training they are the mean of ``views``, each turned by a further quarter.
    """

    def __init__(
        self,
        backbone: str,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        width: int = 64,
        views: int = 1,
    ) -> None:
        super().__init__()
        self.views = views
        self.normalise = Normalise(mean, std)
        full: Any = timm.create_model(backbone, pretrained=False)
        self.stem = nn.Sequential(full.conv_stem, full.bn1)
        self.to_stride8 = full.blocks[:3]
        self.to_stride16 = full.blocks[3:5]
        self.lateral8 = _conv(full.blocks[2][-1].conv_pwl.out_channels, width, 1)
        self.lateral16 = _conv(full.blocks[4][-1].conv_pwl.out_channels, width, 1)
        self.smooth = nn.Sequential(_conv(width, width, 3, groups=width), _conv(width, width, 1))
        self.out = nn.Conv2d(width, 1, 1)
        nn.init.constant_(self.out.bias, -4.6)  # type: ignore[arg-type]  # start at p = 0.01: figures are rare

    def forward(self, images: Tensor) -> Tensor:
        """See the class."""
        logits = self._one_view(images)
        if self.training or self.views == 1:
            return logits
        # One after the other: turned pictures that are not square do not fit into one batch.
        for turns, turned in enumerate(_quarter_turns(images, self.views)[1:], 1):
            logits = logits + _turn_back(self._one_view(turned), turns)
        return logits / self.views

    def _one_view(self, images: Tensor) -> Tensor:
        fine = self.to_stride8(self.stem(self.normalise(images)))
        coarse = self.lateral16(self.to_stride16(fine))
        x = self.lateral8(fine) + F.interpolate(coarse, scale_factor=2.0, mode="nearest")
        logits: Tensor = self.out(self.smooth(x))[:, 0]
        return logits


def _conv(inputs: int, outputs: int, kernel: int, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


class CropNet(nn.Module):
    """Crop classifier with two heads on one backbone: atypical or not, and the eight subtypes.

    Input uint8 (N, S, S, 3), of which the central ``centre_px`` square is looked at, enlarged to
    ``resize_px``; output logits (N, 1 + K): column 0 atypical, the others the subtypes. ``backbone`` is a
    timm name, or a module from normalised pictures to features (N, ``num_features``). Outside training the
    logits are the mean of ``views``, each turned by a further quarter: a figure has no upright position.
    """

    def __init__(
        self,
        backbone: str | nn.Module,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        centre_px: int | None,
        subtypes: int,
        dropout: float = 0.0,
        resize_px: int | None = None,
        views: int = 1,
    ) -> None:
        super().__init__()
        self.views = views
        self.normalise = Normalise(mean, std, centre_px, resize_px)
        body: Any = backbone
        if isinstance(backbone, str):
            body = timm.create_model(backbone, pretrained=False, num_classes=0)
        self.backbone: nn.Module = body
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(body.num_features, 1 + subtypes)

    def forward(self, images: Tensor) -> Tensor:
        """See the class."""
        if self.training or self.views == 1:
            logits: Tensor = self.head(self.dropout(self.features(images)))
            return logits
        # One pass for all of them, the upright ones first.
        each: Tensor = self.head(self.features(torch.cat(_quarter_turns(images, self.views))))
        return each.reshape(self.views, -1, each.shape[1]).mean(dim=0)

    def features(self, images: Tensor) -> Tensor:
        """Give what the head sees, (N, ``num_features``), of uint8 (N, S, S, 3), each seen once."""
        features: Tensor = self.backbone(self.normalise(images))
        return features


def _quarter_turns(images: Tensor, views: int) -> list[Tensor]:
    """Give (N, S, S, 3) as it is, and turned by one quarter after the other."""
    turned = [images]
    while len(turned) < views:
        turned.append(turned[-1].transpose(1, 2).flip(1))
    return turned


def _turn_back(maps: Tensor, quarters: int) -> Tensor:
    """Undo ``_quarter_turns`` on (N, h, w)."""
    for _ in range(quarters):
        maps = maps.flip(1).transpose(1, 2)
    return maps


class Probabilities(nn.Module):
    """Wrap a network so that it gives probabilities: what the runtimes execute."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Detector: p_mitosis (N, h, w). Classifier: (N, 1 + K), p_atypical and then the subtypes' shares."""
        logits: Tensor = self.network(images).float()
        if logits.ndim == 3:
            return logits.sigmoid()
        return torch.cat([logits[:, :1].sigmoid(), logits[:, 1:].softmax(dim=1)], dim=1)


class ProbabilitiesAndStain(Probabilities):
    """Like ``Probabilities`` of a classifier; a second output of the same pass says how the picture looks.

    That is the *stem embedding*, (N, D): the mean of each channel behind the backbone's first layer, whose
    filters are of colour, contrast and edges. The features that the heads see will not do: training with
    varied stain makes them blind to it (they cannot tell a hue turned by 180°; benchmarks/README.md).
    """

    def __init__(self, network: CropNet) -> None:
        super().__init__(network)
        self._stem: list[Tensor] = []
        first: Any = network.backbone
        first.bn1.register_forward_hook(lambda _, __, output: self._stem.append(output))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """Give the probabilities, (N, 1 + K), and the stem embeddings."""
        probabilities = super().forward(images)
        upright = self._stem.pop()[: probabilities.shape[0]]
        return probabilities, upright.float().mean(dim=(2, 3))


def runnable(network: nn.Module) -> Probabilities:
    """Wrap a network for a runtime; with the stem embedding where it is a classifier that has one."""
    if isinstance(network, CropNet) and hasattr(network.backbone, "bn1"):
        return ProbabilitiesAndStain(network).eval()
    return Probabilities(network).eval()


def build_network(card: ModelCard) -> HeatmapNet | CropNet:
    """Give the untrained network that a card without ``adaptation`` describes."""
    if card.task == "detector":
        return HeatmapNet(card.backbone, card.mean, card.std, views=card.views)
    return build_crop_net(card, card.backbone)


def build_crop_net(card: ModelCard, backbone: str | nn.Module) -> CropNet:
    """Give the classifier that a card describes, on a timm backbone by name or on one at hand."""
    return CropNet(
        backbone,
        card.mean,
        card.std,
        card.centre_px,
        len(card.subtypes),
        resize_px=card.resize_px,
        views=card.views,
    )
