"""Which crops a batch is made of."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mitoscan.learn.config import DetectorTraining
from mitoscan.learn.data import CropSet, Float, UInt8
from mitoscan.learn.fields import Field


def class_balanced(
    atypical: npt.NDArray[np.bool_], batch: int, rng: np.random.Generator
) -> npt.NDArray[np.int64]:
    """Draw the indices of a batch in which both classes have the same chance."""
    weight = np.where(atypical, 0.5 / max(atypical.sum(), 1), 0.5 / max((~atypical).sum(), 1))
    return rng.choice(len(atypical), size=batch, p=weight / weight.sum())


class CropSampler:
    """Draws square regions: of the fields about figures, about hard negatives or anywhere, and mosaics.

    Regions are 1.7 times the network's crop, so that a rotated and shrunken crop still fits in. A mosaic is
    a region put together from classifier crops, each of which has a figure at its centre and may show
    others of the same slide.
    """

    def __init__(self, fields: list[Field], config: DetectorTraining, crops: CropSet | None = None) -> None:
        self.fields = fields
        self._crops = crops
        self._neighbours = [] if crops is None else neighbours(crops)
        self.config = config
        self.side = 2 * round(config.crop_px * 1.7 / 2)
        self._figures = [(i, xy) for i, f in enumerate(fields) for xy in f.figures]
        self._negatives = [(i, xy) for i, f in enumerate(fields) for xy in f.hard_negatives]

    def draw(self, rng: np.random.Generator) -> tuple[UInt8, Float, Float]:
        """One region: uint8 (side, side, 3), its figures and its doubtful points, px from its centre."""
        if self._crops is not None and rng.random() < self.config.on_mosaics:
            return self._mosaic(self._crops, rng)
        kind = rng.random()
        jitter = rng.uniform(-0.35, 0.35, 2) * self.config.crop_px
        if kind < self.config.on_figures:
            field, xy = self._figures[rng.integers(len(self._figures))]
        elif kind < self.config.on_figures + self.config.on_hard_negatives:
            field, xy = self._negatives[rng.integers(len(self._negatives))]
        else:
            field = int(rng.integers(len(self.fields)))
            pixels = self.fields[field].pixels
            xy = rng.uniform(0, (pixels.width, pixels.height))
        chosen = self.fields[field]
        centre = np.round(xy + jitter)
        return (
            chosen.pixels.cut(centre, self.side),
            chosen.figures - centre,
            chosen.doubtful - centre,
        )

    def _mosaic(self, crops: CropSet, rng: np.random.Generator) -> tuple[UInt8, Float, Float]:
        """Put crops of chance together; the seams' place is left to chance too."""
        size = crops.images.shape[1]
        across = -(-self.side // size) + 1
        chosen = rng.integers(len(crops), size=(across, across))
        whole = np.concatenate([np.concatenate(list(crops.images[row]), axis=1) for row in chosen])
        corners = np.stack(np.meshgrid(np.arange(across), np.arange(across)), -1).reshape(-1, 2) * size
        points = [
            corner + size / 2 + self._neighbours[i] for corner, i in zip(corners, chosen.ravel(), strict=True)
        ]
        left, top = rng.integers(0, across * size - self.side + 1, 2)
        region = whole[top : top + self.side, left : left + self.side]
        figures = np.concatenate(points) - (left, top) - self.side / 2
        return region, figures, np.empty((0, 2))


def neighbours(crops: CropSet) -> list[Float]:
    """For each crop the figures that it shows, (K, 2): px from its centre; its own is among them."""
    half = crops.images.shape[1] / 2
    result: list[Float] = [np.zeros((1, 2))] * len(crops)
    for slide in np.unique(crops.slide):
        members = np.flatnonzero(crops.slide == slide)
        offsets = crops.xy[members][None] - crops.xy[members][:, None]
        for i, offset in zip(members, offsets, strict=True):
            result[i] = offset[(np.abs(offset) < half).all(axis=1)]
    return result
