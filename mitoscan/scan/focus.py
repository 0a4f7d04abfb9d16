"""How much of the tissue is out of focus, measured on tiles that the detector reads anyway.

The measure of a block of tissue is the mean squared difference of the green optical density between
neighbouring pixels over that between pixels two apart. In a blurred picture differences grow with the
distance, so it falls to 1/4; noise alone gives 1. A ratio of densities does not change with the strength of
the stain. Of two dozen measures compared (gradient and Laplacian energies, at several distances, of densities
and of brightness), it parted tissue blurred by one pixel from tissue in focus best.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mitoscan.models.card import FocusReference
from mitoscan.slide.tiling import Tile

UInt8 = npt.NDArray[np.uint8]
Float = npt.NDArray[np.float64]

BLOCK_PX = 128
"""Side of a block: 32 µm, large enough to hold some nuclei."""
_SPACING_PX = 256
"""Mean distance of blocks: one block in four is measured."""
_MIN_DENSITY = 0.08
"""Mean green optical density from which a block is taken for tissue."""
_MIN_CONTRAST = 5e-5
"""Mean squared difference two px apart from which there is something to be in focus: a tenth of what the
smoothest blocks of real tissue have after a blur of 2 px."""
_DENSITY = (-np.log10((np.arange(256) + 1) / 256)).astype(np.float32)


def sharpness(block: UInt8) -> float:
    """Measure a block, uint8 (h, w, 3), at the detector's mpp; nan where it holds no tissue to measure."""
    density = _DENSITY[block[..., 1]]
    if density.mean() < _MIN_DENSITY:
        return float("nan")
    near, far = (_difference(density, px) for px in (1, 2))
    return near / far if far >= _MIN_CONTRAST else float("nan")


def _difference(plane: npt.NDArray[np.float32], px: int) -> float:
    """Mean squared difference between pixels ``px`` apart, along rows and columns."""
    across = (plane[:, px:] - plane[:, :-px]).ravel()
    down = (plane[px:] - plane[:-px]).ravel()
    return float(across @ across / across.size + down @ down / down.size) / 2


def blocks_of(image: UInt8, margin_px: int = 0) -> list[UInt8]:
    """Give blocks, spread evenly over ``image`` without its margin."""
    rows, columns = (_starts(side - 2 * margin_px) for side in image.shape[:2])
    return [image[y : y + BLOCK_PX, x : x + BLOCK_PX] for y in margin_px + rows for x in margin_px + columns]


def _starts(side: int) -> npt.NDArray[np.int64]:
    count = max(side // _SPACING_PX, min(side // BLOCK_PX, 1))
    slack = side / count - BLOCK_PX if count else 0.0
    return np.round(np.arange(count) * (BLOCK_PX + slack) + slack / 2).astype(np.int64)


class FocusMeter:
    """Measures blocks of the tiles that pass, and gives the share out of focus."""

    def __init__(self, reference: FocusReference) -> None:
        self._reference = reference
        self._values: list[float] = []

    def add(self, tile: Tile, image: UInt8) -> None:
        """Measure a tile's core, uint8 (size, size, 3)."""
        self._values += [sharpness(block) for block in blocks_of(image, tile.margin)]

    @property
    def blocks(self) -> int:
        """Blocks of tissue measured."""
        return int(np.count_nonzero(~np.isnan(self._values)))

    def share(self) -> float | None:
        """Share of the tissue out of focus, 0 to 1; None when no tissue was measured."""
        values = np.array(self._values)
        values = values[~np.isnan(values)]
        return float((values < self._reference.limit).mean()) if len(values) else None
