"""Which crops a batch is made of."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mitoscan.learn.config import DetectorTraining
from mitoscan.learn.data import Field, Float, UInt8


def class_balanced(
    atypical: npt.NDArray[np.bool_], batch: int, rng: np.random.Generator
) -> npt.NDArray[np.int64]:
    """Draw the indices of a batch in which both classes have the same chance."""
    weight = np.where(atypical, 0.5 / max(atypical.sum(), 1), 0.5 / max((~atypical).sum(), 1))
    return rng.choice(len(atypical), size=batch, p=weight / weight.sum())


class CropSampler:
    """Draws square regions of the fields: about figures, about hard negatives, or anywhere.

    Regions are 1.7 times the network's crop, so that a rotated and shrunken crop still fits in.
    """

    def __init__(self, fields: list[Field], config: DetectorTraining) -> None:
        self.fields = fields
        self.config = config
        self.side = 2 * round(config.crop_px * 1.7 / 2)
        self._figures = [(i, xy) for i, f in enumerate(fields) for xy in f.figures]
        self._negatives = [(i, xy) for i, f in enumerate(fields) for xy in f.hard_negatives]

    def draw(self, rng: np.random.Generator) -> tuple[UInt8, Float, Float]:
        """One region: uint8 (side, side, 3), its figures and its doubtful points, px from its centre."""
        kind = rng.random()
        jitter = rng.uniform(-0.35, 0.35, 2) * self.config.crop_px
        if kind < self.config.on_figures:
            field, xy = self._figures[rng.integers(len(self._figures))]
        elif kind < self.config.on_figures + self.config.on_hard_negatives:
            field, xy = self._negatives[rng.integers(len(self._negatives))]
        else:
            field = int(rng.integers(len(self.fields)))
            height, width = self.fields[field].image.shape[:2]
            xy = rng.uniform(0, (width, height))
        chosen = self.fields[field]
        centre = np.round(xy + jitter)
        return (
            cut(chosen.image, centre, self.side),
            chosen.figures - centre,
            chosen.doubtful - centre,
        )


def cut(image: UInt8, centre: Float, side: int) -> UInt8:
    """Cut the ``side`` × ``side`` square about ``centre`` (x, y; px); white where it leaves the image."""
    height, width = image.shape[:2]
    left, top = (int(c) - side // 2 for c in centre)
    square = np.full((side, side, 3), 255, np.uint8)
    x0, x1 = np.clip((left, left + side), 0, width)
    y0, y1 = np.clip((top, top + side), 0, height)
    square[y0 - top : y1 - top, x0 - left : x1 - left] = image[y0:y1, x0:x1]
    return square
