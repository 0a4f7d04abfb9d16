"""The grid of tiles over a slide. Pure geometry, in work px (see `mitoscan.units.WorkFrame`)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import shapely
from shapely import MultiPolygon, affinity

from mitoscan.units import WorkFrame

Mask = npt.NDArray[np.bool_]

_BAND = 4
"""Largest cores across a band of tiles."""


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
    halvings: int = 0,
) -> list[Tile]:
    """Lay out the tiles whose cores meet an area.

    Large tiles waste little on their margins, small ones little on what lies beside the area. So where four
    cores of half the side, or those of them that meet the area, have fewer pixels with their margins, they
    stand in for the large one, and so on.

    Parameters
    ----------
    frame
        The work frame of the detector on this slide.
    width_l0, height_l0
        Size of the slide, level-0 px.
    area
        What is to be scanned, level-0 px; parts off the slide are ignored.
    tile_px, margin_px
        Side of the largest tiles and the margin of all on each side, work px.
    shift_px
        Moves the grid left and up by so many work px (modulo the largest core's side).
    halvings
        How often a core may be halved.

    Returns
    -------
    In bands of a few tiles' width, row by row in each, so that pixels that neighbours share are wanted again
    soon, and every other tile of a row first, so that two threads do not decode them at once. Every point of
    the area on the slide is in exactly one tile's core.

    Raises
    ------
    ValueError
        When nothing is left between the margins, or the core cannot be halved so often.
    """
    core = tile_px - 2 * margin_px
    if core < 1 or margin_px < 0:
        raise ValueError(f"tiles of {tile_px} px with margins of {margin_px} px have no core")
    if core % 2**halvings:
        raise ValueError(f"a core of {core} px cannot be halved {halvings} times")
    start = -(shift_px % core)
    cell = core >> halvings
    right, bottom = width_l0 / frame.l0_per_px_x, height_l0 / frame.l0_per_px_y
    lefts, tops = (_starts(start, math.ceil(far), core, cell) for far in (right, bottom))
    scaled = affinity.scale(area, 1 / frame.l0_per_px_x, 1 / frame.l0_per_px_y, origin=(0, 0))
    on_slide = np.outer((tops < bottom) & (tops + cell > 0), (lefts < right) & (lefts + cell > 0))
    x, y = (grid[on_slide] for grid in np.meshgrid(lefts, tops))
    shapely.prepare(scaled)
    wanted = on_slide.copy()
    wanted[on_slide] = shapely.intersects(scaled, shapely.box(x, y, x + cell, y + cell))
    sides = [core >> halved for halved in range(halvings + 1)]
    chosen = [
        (start + int(column) * side, start + int(row) * side, side)
        for side, taken in zip(sides, _cheapest(wanted, [s + 2 * margin_px for s in sides]), strict=True)
        for row, column in zip(*np.nonzero(taken), strict=True)
    ]

    def place(square: tuple[int, int, int]) -> tuple[int, ...]:
        x, y, _ = square
        column, row = (x - start) // core, (y - start) // core
        return column // _BAND, row, column % 2, column, y, x

    return [
        Tile(x - margin_px, y - margin_px, side + 2 * margin_px, margin_px)
        for x, y, side in sorted(chosen, key=place)
    ]


def _starts(start: int, end: int, core: int, cell: int) -> npt.NDArray[np.int64]:
    """Give where cells begin that fill whole cores from ``start`` to ``end`` or beyond."""
    return np.arange(start, start + -(-(end - start) // core) * core, cell, dtype=np.int64)


def _cheapest(wanted: Mask, sides: list[int]) -> list[Mask]:
    """Cover the wanted cells with squares of fewest pixels.

    Parameters
    ----------
    wanted
        Cells of the smallest kind, rows × columns.
    sides
        Of the tiles of each kind with their margins, largest first; the cores of each kind are twice as long
        as those of the next.

    Returns
    -------
    Which squares of each kind to take; together their cores hold each wanted cell once.
    """
    costs = [wanted * float(sides[-1]) ** 2]
    whole = [wanted]
    for side in reversed(sides[:-1]):
        rows, columns = (n // 2 for n in costs[0].shape)
        parts = costs[0].reshape(rows, 2, columns, 2).sum(axis=(1, 3))
        whole.insert(0, parts >= float(side) ** 2)
        costs.insert(0, np.minimum(parts, float(side) ** 2))
    taken, open_ = [], np.ones_like(whole[0])
    for fits in whole:
        taken.append(open_ & fits)
        open_ = np.repeat(np.repeat(open_ & ~fits, 2, axis=0), 2, axis=1)
    return taken
