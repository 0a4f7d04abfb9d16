"""The grid of tiles over a slide. Pure geometry, in work px (see `mitoscan.units.WorkFrame`)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import shapely
from shapely import MultiPolygon, affinity

from mitoscan.units import WorkFrame


@dataclass(frozen=True)
class Tile:
    """A square that the detector reads, in work px.

    Its *core* is what is left without the margin. Cores partition the plane: left and top edges belong to
    a core, right and bottom edges to the next, so that each figure belongs to exactly one tile.
    """

    x: int
    """Left edge, margin included; may be negative."""
    y: int
    """Top edge, margin included; may be negative."""
    size: int
    margin: int

    @property
    def core(self) -> tuple[int, int, int, int]:
        """Left, top, right and bottom of the core."""
        far = self.size - self.margin
        return self.x + self.margin, self.y + self.margin, self.x + far, self.y + far

    def owns(self, x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
        """Which points (work px) belong to this tile's core."""
        left, top, right, bottom = self.core
        return (x >= left) & (x < right) & (y >= top) & (y < bottom)


def plan_tiles(
    frame: WorkFrame,
    width_l0: int,
    height_l0: int,
    area: MultiPolygon,
    *,
    tile_px: int,
    margin_px: int,
    shift_px: int = 0,
) -> list[Tile]:
    """Lay out the tiles whose cores meet an area.

    Parameters
    ----------
    frame
        The work frame of the detector on this slide.
    width_l0, height_l0
        Size of the slide, level-0 px.
    area
        What is to be scanned, level-0 px; parts off the slide are ignored.
    tile_px, margin_px
        Side of a tile and its margin on each side, work px.
    shift_px
        Moves the grid left and up by so many work px (modulo the core's side).

    Returns
    -------
    Row by row. Every point of the area on the slide is in exactly one tile's core.
    """
    core = tile_px - 2 * margin_px
    if core < 1 or margin_px < 0:
        raise ValueError(f"tiles of {tile_px} px with margins of {margin_px} px have no core")
    start = -(shift_px % core)
    scaled = affinity.scale(area, 1 / frame.l0_per_px_x, 1 / frame.l0_per_px_y, origin=(0, 0))
    lefts = np.arange(start, math.ceil(width_l0 / frame.l0_per_px_x), core)
    tops = np.arange(start, math.ceil(height_l0 / frame.l0_per_px_y), core)
    x, y = (grid.ravel() for grid in np.meshgrid(lefts, tops))
    shapely.prepare(scaled)
    meets = shapely.intersects(scaled, shapely.box(x, y, x + core, y + core))
    return [
        Tile(int(left) - margin_px, int(top) - margin_px, tile_px, margin_px)
        for left, top in zip(x[meets], y[meets], strict=True)
    ]
