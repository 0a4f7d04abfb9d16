"""Units as types, converted here and nowhere else.

Three lengths occur: micrometres, level-0 px (the exchange frame, names end in ``_l0``) and px of the
*work frame*: square pixels of a model's mpp laid over the slide from its level-0 origin. Coordinates are
continuous: (0, 0) is the top-left *corner* of the first pixel, in every frame.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NewType, TypeVar

import numpy as np
import numpy.typing as npt

Microns = NewType("Microns", float)
Level0Px = NewType("Level0Px", float)
TilePx = NewType("TilePx", int)
"""Whole pixels of the work frame."""

MPP_MIN, MPP_MAX = 0.05, 20.0
"""Pixel sizes outside this range (µm) are taken for faults of the file or typing errors."""

FloatOrArray = TypeVar("FloatOrArray", float, npt.NDArray[np.float64])


@dataclass(frozen=True)
class Mpp:
    """Micrometres per level-0 pixel, along x and y."""

    x: float
    y: float

    @property
    def is_plausible(self) -> bool:
        """Whether both are finite and within ``MPP_MIN`` to ``MPP_MAX``."""
        return all(math.isfinite(v) and MPP_MIN <= v <= MPP_MAX for v in (self.x, self.y))

    @property
    def mm2_per_px(self) -> float:
        """Area of one level-0 pixel in square millimetres."""
        return self.x * self.y * 1e-6


@dataclass(frozen=True)
class Box:
    """An upright rectangle in level-0 px: left, top, width, height."""

    x: float
    y: float
    width: float
    height: float

    @property
    def right(self) -> float:
        """Right edge."""
        return self.x + self.width

    @property
    def bottom(self) -> float:
        """Bottom edge."""
        return self.y + self.height

    def area_mm2(self, mpp: Mpp) -> float:
        """Area in square millimetres."""
        return self.width * self.height * mpp.mm2_per_px

    def contains(self, x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
        """Which points lie inside; left and top edges belong to the box, right and bottom do not."""
        return (x >= self.x) & (x < self.right) & (y >= self.y) & (y < self.bottom)


@dataclass(frozen=True)
class WorkFrame:
    """Square pixels of ``mpp`` laid over a slide whose level 0 has ``slide_mpp``.

    The origin is the slide's level-0 origin, so that a conversion is a plain product and nothing drifts
    across the slide.
    """

    slide_mpp: Mpp
    mpp: float

    @property
    def l0_per_px_x(self) -> float:
        """Level-0 px per work px along x."""
        return self.mpp / self.slide_mpp.x

    @property
    def l0_per_px_y(self) -> float:
        """Level-0 px per work px along y."""
        return self.mpp / self.slide_mpp.y

    def to_l0(self, x: FloatOrArray, y: FloatOrArray) -> tuple[FloatOrArray, FloatOrArray]:
        """Work px to level-0 px."""
        return x * self.l0_per_px_x, y * self.l0_per_px_y

    def from_l0(self, x: FloatOrArray, y: FloatOrArray) -> tuple[FloatOrArray, FloatOrArray]:
        """Level-0 px to work px."""
        return x / self.l0_per_px_x, y / self.l0_per_px_y

    def box_to_l0(self, x: float, y: float, width: float, height: float) -> Box:
        """Give the level-0 box of a rectangle in work px."""
        return Box(
            x * self.l0_per_px_x, y * self.l0_per_px_y, width * self.l0_per_px_x, height * self.l0_per_px_y
        )

    def size_of(self, width_l0: int, height_l0: int) -> tuple[int, int]:
        """Give (width, height) in whole work px that cover a slide of this level-0 size."""
        return math.ceil(width_l0 / self.l0_per_px_x), math.ceil(height_l0 / self.l0_per_px_y)
