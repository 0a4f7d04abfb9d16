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


def class_and_domain_balanced(
    atypical: npt.NDArray[np.bool_], domain: npt.NDArray[np.str_], batch: int, rng: np.random.Generator
) -> npt.NDArray[np.int64]:
    """Draw the indices of a batch in which each class has the same chance within each domain.

    Domains without one of the classes still have the same chance as the others.
    """
    _, group = np.unique(domain, return_inverse=True)
    weight = np.zeros(len(atypical))
    for g in np.unique(group):
        classes = np.unique(atypical[group == g])
        for value in classes:
            members = (group == g) & (atypical == value)
            weight[members] = 1 / (len(classes) * members.sum())
    return rng.choice(len(atypical), size=batch, p=weight / weight.sum())


class HardExamples:
    """Draws more often what the network still gets wrong (hard-negative mining, online).

    Keeps a moving average of each crop's loss; a share of every batch is drawn in proportion to it.

    Parameters
    ----------
    count
        Number of crops.
    share
        Part of a batch that is drawn by loss, 0 to 1.
    memory
        Decay of the moving average.
    """

    def __init__(self, count: int, share: float, memory: float = 0.7) -> None:
        self._loss = np.ones(count)
        self._share, self._memory = share, memory

    def note(self, index: npt.NDArray[np.int64], loss: Float) -> None:
        """Remember the losses of the crops at ``index``."""
        self._loss[index] = self._memory * self._loss[index] + (1 - self._memory) * loss

    def mix_in(self, index: npt.NDArray[np.int64], rng: np.random.Generator) -> npt.NDArray[np.int64]:
        """Replace a share of a batch's indices by hard ones."""
        hard = rng.random(len(index)) < self._share
        drawn = rng.choice(len(self._loss), size=int(hard.sum()), p=self._loss / self._loss.sum())
        result = index.copy()
        result[hard] = drawn
        return result


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
