"""Which crops a batch is made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from mitoscan.learn.config import DetectorTraining
from mitoscan.learn.data import CropSet, Float, UInt8
from mitoscan.learn.fields import Field, with_chance


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


class Place(NamedTuple):
    """Somewhere on a field."""

    field: Field
    xy: Float
    """(2,): px of the field."""


class CropSampler:
    """Draws square regions: of the fields about figures, about hard negatives or anywhere, and mosaics.

    Regions are 1.7 times the network's crop, so that a rotated and shrunken crop still fits in. A mosaic is
    a region put together from classifier crops, each of which has a figure at its centre and may show
    others of the same slide; some of its crops may be look-alikes from the fields.

    Parameters
    ----------
    fields
        Labelled fields.
    config
        The shares of each kind.
    crops
        For the mosaics.
    negatives
        Fields without figures.
    mined
        Places that a detector wrongly called, and its score for each (N,).
    """

    def __init__(
        self,
        fields: list[Field],
        config: DetectorTraining,
        crops: CropSet | None = None,
        negatives: Sequence[Field] = (),
        mined: tuple[Sequence[Place], Float] | None = None,
    ) -> None:
        self.fields = fields
        self.config = config
        self.side = 2 * round(config.crop_px * 1.7 / 2)
        self._crops = crops
        self._neighbours = [] if crops is None else neighbours(crops)
        self._tiles = list(negatives)
        self._figures = [Place(f, xy) for f in fields for xy in f.figures]
        self._hard = [Place(f, xy) for f in fields for xy in f.hard_negatives]
        places, scores = ([], np.empty(0)) if mined is None else mined
        self._mined, self._weight = list(places), scores / max(scores.sum(), 1e-9)

    def draw(self, rng: np.random.Generator) -> tuple[UInt8, Float, Float]:
        """Draw one region.

        Returns
        -------
        pixels
            uint8 (side, side, 3).
        targets
            (K, 3): x, y (px from the region's centre) and chance of what is to be learnt as figures.
        doubtful
            (L, 2): x, y of the doubtful points.
        """
        mosaics = self.config.on_mosaics if self._crops is not None else 0.0
        negatives = self.config.on_negatives if self._tiles else 0.0
        mined = self.config.on_mined if self._mined else 0.0
        kind = rng.random()
        if self._crops is not None and kind < mosaics:
            return self._mosaic(self._crops, rng)
        if kind < mosaics + negatives:
            place = self._anywhere(self._tiles, rng)
        elif kind < mosaics + negatives + mined:
            place = self._draw_mined(rng)
        else:
            place = self._on_fields(rng)
        centre = np.round(place.xy + rng.uniform(-0.35, 0.35, 2) * self.config.crop_px)
        field = place.field
        return field.pixels.cut(centre, self.side), field.targets - [*centre, 0], field.doubtful - centre

    def _on_fields(self, rng: np.random.Generator) -> Place:
        kind = rng.random()
        if kind < self.config.on_figures:
            return self._figures[rng.integers(len(self._figures))]
        if kind < self.config.on_figures + self.config.on_hard_negatives and self._hard:
            return self._hard[rng.integers(len(self._hard))]
        return self._anywhere(self.fields, rng)

    def _anywhere(self, fields: Sequence[Field], rng: np.random.Generator) -> Place:
        field = fields[int(rng.integers(len(fields)))]
        return Place(field, rng.uniform(0, (field.pixels.width, field.pixels.height)))

    def _draw_mined(self, rng: np.random.Generator) -> Place:
        return self._mined[rng.choice(len(self._mined), p=self._weight)]

    def _look_alike(self, rng: np.random.Generator) -> Place:
        """Give a mined place, a hard negative or a place without labels; each kind has the same chance."""
        kinds = [k for k in (self._mined, self._hard, self._tiles) if k]
        kind = kinds[int(rng.integers(len(kinds)))] if kinds else self.fields
        if kind is self._mined:
            return self._draw_mined(rng)
        if kind is self._hard:
            return self._hard[rng.integers(len(self._hard))]
        return self._anywhere(self._tiles or self.fields, rng)

    def _mosaic(self, crops: CropSet, rng: np.random.Generator) -> tuple[UInt8, Float, Float]:
        """Put crops of chance together; the seams' place is left to chance too."""
        size = crops.images.shape[1]
        across = -(-self.side // size) + 1
        whole = np.empty((across * size, across * size, 3), np.uint8)
        targets, doubtful = [], []
        for row, column in np.ndindex(across, across):
            picture, shown, unsure = self._mosaic_crop(crops, rng)
            whole[row * size : (row + 1) * size, column * size : (column + 1) * size] = picture
            middle = np.array([column + 0.5, row + 0.5]) * size
            targets.append(shown + np.array([*middle, 0]))
            doubtful.append(middle + unsure)
        left, top = rng.integers(0, across * size - self.side + 1, 2)
        region = whole[top : top + self.side, left : left + self.side]
        centre = np.array([left, top]) + self.side / 2
        return region, np.concatenate(targets) - [*centre, 0], np.concatenate(doubtful) - centre

    def _mosaic_crop(self, crops: CropSet, rng: np.random.Generator) -> tuple[UInt8, Float, Float]:
        """One crop: its pixels, its targets and its doubtful points, px from its centre."""
        size = crops.images.shape[1]
        if rng.random() >= self.config.look_alikes:
            i = rng.integers(len(crops))
            return crops.images[i], with_chance(self._neighbours[i]), np.empty((0, 2))
        field, xy = self._look_alike(rng)
        centre = np.round(xy + rng.uniform(-0.1, 0.1, 2) * size)
        targets, doubtful = field.targets - [*centre, 0], field.doubtful - centre
        targets, doubtful = (p[(np.abs(p[:, :2]) < size / 2).all(axis=1)] for p in (targets, doubtful))
        return field.pixels.cut(centre, size), targets, doubtful


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
