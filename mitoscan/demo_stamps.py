"""Stamps for the synthetic slide: nuclei, look-alikes and mitotic figures, in units of stain.

A stamp is a small square of haematoxylin and eosin density with a cover that says how much of what lies
beneath it is replaced. Sizes are in µm and drawn at ``DRAW_MPP``. Everything here is synthetic: shapes
follow textbook descriptions, no pixel comes from a real slide.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

DRAW_MPP = 0.25
"""µm per px at which everything is drawn."""

Floats = npt.NDArray[np.float32]
Points = npt.NDArray[np.float64]
Rng = np.random.Generator


@dataclass(frozen=True)
class Stamp:
    """Stain densities to lay down; three float32 (side, side) arrays, side odd.

    ``haematoxylin`` 1 is as dark as condensed chromatin, ``eosin`` 1 as dark as dense cytoplasm;
    ``cover`` runs from 0 (what lies beneath stays) to 1 (it is replaced).
    """

    haematoxylin: Floats
    eosin: Floats
    cover: Floats

    def turned(self, symmetry: int) -> Stamp:
        """One of the eight turned and mirrored versions."""

        def turn(plane: Floats) -> Floats:
            plane = np.rot90(plane, symmetry % 4)
            return plane[:, ::-1] if symmetry >= 4 else plane

        return Stamp(turn(self.haematoxylin), turn(self.eosin), turn(self.cover))

    def press(self, haematoxylin: Floats, eosin: Floats, column: int, row: int) -> None:
        """Lay the stamp down in place with its centre on px (column, row); what sticks out is cut off."""
        half = self.cover.shape[0] // 2
        height, width = haematoxylin.shape
        top, left = max(row - half, 0), max(column - half, 0)
        bottom, right = min(row + half + 1, height), min(column + half + 1, width)
        if top >= bottom or left >= right:
            return
        there = (slice(top, bottom), slice(left, right))
        here = (
            slice(top - row + half, bottom - row + half),
            slice(left - column + half, right - column + half),
        )
        keep = 1 - self.cover[here]
        haematoxylin[there] = haematoxylin[there] * keep + self.haematoxylin[here]
        eosin[there] = eosin[there] * keep + self.eosin[here]


def smooth_noise(rng: Rng, side: int, sigma_px: float) -> Floats:
    """Noise of zero mean and unit deviation that is smooth over ``sigma_px`` and wraps around."""
    noise = ndimage.gaussian_filter(rng.standard_normal((side, side)), sigma_px, mode="wrap", truncate=3)
    noise = (noise - noise.mean()) / noise.std()
    return np.asarray(noise, np.float32)


def _grid(side: int) -> tuple[Points, Points]:
    """Give x and y in µm from the stamp's centre, each (side, side)."""
    axis = (np.arange(side) - side // 2) * DRAW_MPP
    x, y = np.meshgrid(axis, axis)
    return x, y


def _side(reach_um: float) -> int:
    return 2 * int(np.ceil(reach_um / DRAW_MPP)) + 1


def _soft(depth_um: Points, softness_um: float) -> Points:
    """1 inside (depth > 0), 0 outside, with an edge as soft as a scanner's."""
    inside: Points = 1 / (1 + np.exp(-np.clip(depth_um / softness_um, -30, 30)))
    return inside


def _depth(rng: Rng, x: Points, y: Points, long_um: float, short_um: float, bumps: float) -> Points:
    """Depth in µm below the border of a bumpy ellipse of these half axes; negative outside."""
    turn = rng.uniform(0, np.pi)
    u = x * np.cos(turn) + y * np.sin(turn)
    v = y * np.cos(turn) - x * np.sin(turn)
    angle = np.arctan2(v / short_um, u / long_um)
    radius = np.hypot(u / long_um, v / short_um)
    border = np.ones_like(radius)
    for order in (2, 3, 4, 5):
        border += bumps / order * rng.standard_normal() * np.cos(order * angle + rng.uniform(0, 2 * np.pi))
    depth: Points = (border - radius) * np.sqrt(long_um * short_um)
    return depth


def _stamp(haematoxylin: Points, eosin: Points, cover: Points) -> Stamp:
    return Stamp(
        np.clip(haematoxylin, 0, None).astype(np.float32),
        np.clip(eosin, 0, None).astype(np.float32),
        np.clip(cover, 0, 1).astype(np.float32),
    )


def nucleus(rng: Rng) -> Stamp:
    """Draw an interphase tumour nucleus: rim, clumped chromatin, now and then nucleoli."""
    long_um = rng.uniform(4.0, 6.4)
    side = _side(long_um * 1.5)
    x, y = _grid(side)
    depth = _depth(rng, x, y, long_um, long_um * rng.uniform(0.68, 0.95), 0.09)
    inside = _soft(depth, 0.18)
    rim = np.exp(-(((depth - 0.4) / 0.4) ** 2)) * np.clip(0.8 + 0.5 * smooth_noise(rng, side, 3.0), 0.2, 1.5)
    open_chromatin = rng.uniform(0, 1)
    clumps = 0.7 * smooth_noise(rng, side, 1.7) + 0.6 * smooth_noise(rng, side, 3.2)
    body = (0.46 - 0.22 * open_chromatin) * (1 + 0.45 * clumps)
    haematoxylin = inside * np.clip(body, 0.06, 0.52) + (0.1 + 0.3 * open_chromatin) * rim
    for _ in range(rng.integers(0, 3)):
        spot = np.hypot(*(np.stack([x, y]) - rng.uniform(-0.4, 0.4, (2, 1, 1)) * long_um))
        haematoxylin += inside * 0.35 * _soft(rng.uniform(0.5, 1.0) - spot, 0.2)
    return _stamp(haematoxylin, inside * 0.45, inside)


def spindle(rng: Rng) -> Stamp:
    """Draw a slender nucleus of the stroma, evenly and darkly stained."""
    long_um = rng.uniform(5, 8)
    side = _side(long_um * 1.4)
    x, y = _grid(side)
    inside = _soft(_depth(rng, x, y, long_um, rng.uniform(1.2, 2.1), 0.08), 0.22)
    haematoxylin = inside * rng.uniform(0.38, 0.6) * (1 + 0.18 * smooth_noise(rng, side, 2.5))
    return _stamp(haematoxylin, inside * 0.5, inside)


def lymphocyte(rng: Rng) -> Stamp:
    """Draw a small, round, dark nucleus with coarse chromatin."""
    radius_um = rng.uniform(2.6, 3.4)
    side = _side(radius_um * 1.5)
    x, y = _grid(side)
    inside = _soft(_depth(rng, x, y, radius_um, radius_um * rng.uniform(0.85, 1), 0.04), 0.22)
    clumps = np.clip(1 + 0.22 * smooth_noise(rng, side, 2.6), 0.6, 1.25)
    return _stamp(inside * rng.uniform(0.4, 0.54) * clumps, inside * 0.45, inside)


def pyknotic(rng: Rng) -> Stamp:
    """Draw a look-alike: a dying cell, smooth round dark nucleus in shrunken, deeply pink cytoplasm."""
    radius_um = rng.uniform(1.5, 2.5)
    side = _side(radius_um * 3.4)
    x, y = _grid(side)
    cell = _soft(_depth(rng, x, y, radius_um * 2.2, radius_um * 1.9, 0.06), 0.2)
    halo = _soft(_depth(rng, x, y, radius_um * 2.9, radius_um * 2.6, 0.06), 0.35)
    inside = _soft(_depth(rng, x, y, radius_um, radius_um * 0.92, 0.03), 0.28)
    return _stamp(inside * rng.uniform(0.7, 0.95), cell * 1.5 - inside * 0.7, halo)


def hyperchromatic(rng: Rng) -> Stamp:
    """Draw a look-alike: a large dark nucleus, smudged and smooth-edged."""
    long_um = rng.uniform(4, 6)
    side = _side(long_um * 1.5)
    x, y = _grid(side)
    inside = _soft(_depth(rng, x, y, long_um, long_um * rng.uniform(0.5, 0.8), 0.06), 0.4)
    haematoxylin = inside * rng.uniform(0.52, 0.66) * (1 + 0.08 * smooth_noise(rng, side, 4))
    return _stamp(haematoxylin, inside * 0.8, inside)


def red_cell(rng: Rng) -> Stamp:
    """Draw a red blood cell: an eosin disc, paler in its middle."""
    radius_um = rng.uniform(2.6, 3.3)
    side = _side(radius_um * 1.4)
    x, y = _grid(side)
    depth = _depth(rng, x, y, radius_um, radius_um * rng.uniform(0.8, 1), 0.04)
    inside = _soft(depth, 0.2)
    return _stamp(inside * 0.0, inside * (1.7 - 0.25 * np.clip(depth, 0, 1.5)), inside)


# --- mitotic figures: chromatin as a union of discs along a skeleton, (n, 3) rows of x, y, radius in µm ---


def _plate(rng: Rng, length_um: float, radius_um: float, bend_um: float = 0.0) -> Points:
    """Discs along a slightly bent, uneven bar that lies along y; positive bends bulge towards +x."""
    count = max(int(length_um / 0.5), 4)
    along = np.linspace(-0.5, 0.5, count)
    x = bend_um * (1 - 4 * along**2) + rng.normal(0, 0.25, count)
    radii = radius_um * rng.uniform(0.75, 1.15, count)
    arms = _arms(rng, x, along * length_um, count // 3)
    return np.vstack([np.column_stack([x, along * length_um, radii]), arms])


def _arms(rng: Rng, x: Points, y: Points, count: int) -> Points:
    """Short chromosome arms that stick out from some of the given places."""
    start = rng.integers(0, len(x), count)
    angle = rng.uniform(0, 2 * np.pi, count)
    steps = np.linspace(0.4, rng.uniform(1.3, 2.0), 4)
    ax = (x[start, None] + steps * np.cos(angle)[:, None]).ravel()
    ay = (y[start, None] + steps * np.sin(angle)[:, None]).ravel()
    return np.column_stack([ax, ay, rng.uniform(0.35, 0.5, ax.size)])


def _moved(points: Points, dx: float, dy: float = 0.0, turn: float = 0.0) -> Points:
    x = points[:, 0] * np.cos(turn) - points[:, 1] * np.sin(turn) + dx
    y = points[:, 0] * np.sin(turn) + points[:, 1] * np.cos(turn) + dy
    return np.column_stack([x, y, points[:, 2]])


def _clump(rng: Rng, spread_um: float, count: int, low_um: float, high_um: float) -> Points:
    radius = spread_um * np.sqrt(rng.uniform(0, 1, count))
    angle = rng.uniform(0, 2 * np.pi, count)
    x, y = radius * np.cos(angle), radius * np.sin(angle)
    return np.column_stack([x, y, rng.uniform(low_um, high_um, count)])


def _metaphase(rng: Rng) -> Points:
    return _plate(rng, rng.uniform(7.5, 10), rng.uniform(1.2, 1.6), rng.uniform(-0.5, 0.5))


def _ring(rng: Rng) -> Points:
    angle = np.linspace(0, 2 * np.pi, 22, endpoint=False)
    radius = rng.uniform(2.9, 3.5) + rng.normal(0, 0.2, angle.size)
    x, y = radius * np.cos(angle), radius * np.sin(angle) * rng.uniform(0.82, 1)
    ring = np.column_stack([x, y, rng.uniform(0.95, 1.4, angle.size)])
    return np.vstack([ring, _arms(rng, x, y, 8)])


def _anaphase(rng: Rng) -> Points:
    apart, length, radius = rng.uniform(2.6, 4.2), rng.uniform(6, 7.5), rng.uniform(1.1, 1.4)
    left = _moved(_plate(rng, length, radius, -0.8), -apart)
    right = _moved(_plate(rng, length * rng.uniform(0.93, 1.07), radius, 0.8), apart)
    return np.vstack([left, right])


def _prometaphase(rng: Rng) -> Points:
    clump = _clump(rng, rng.uniform(2.6, 3.3), 30, 0.7, 1.2)
    return np.vstack([clump, _arms(rng, clump[:, 0], clump[:, 1], 10)])


def _multipolar(rng: Rng) -> Points:
    first = rng.uniform(0, 2 * np.pi)
    arms = []
    for k in range(3):
        length = rng.uniform(5.0, 7.5)
        arm = _moved(_plate(rng, length, rng.uniform(0.9, 1.3), rng.uniform(-0.5, 0.5)), 0, length / 2)
        arms.append(_moved(arm, 0, 0, first + k * 2 * np.pi / 3 + rng.normal(0, 0.25)))
    lost = _clump(rng, 5.0, int(rng.integers(1, 4)), 0.4, 0.6)
    return np.vstack([*arms, lost])


def _asymmetric(rng: Rng) -> Points:
    apart = rng.uniform(3.2, 4.5)
    large = _moved(_plate(rng, rng.uniform(7.5, 9), rng.uniform(1.5, 1.9), -0.8), -apart)
    small = _plate(rng, rng.uniform(2.5, 3.5), rng.uniform(0.8, 1.0))
    lost = _clump(rng, 2.0, int(rng.integers(1, 4)), 0.4, 0.6)
    return np.vstack([large, lost, _moved(small, apart, rng.uniform(-1.5, 1.5), rng.normal(0, 0.5))])


def _segregation(rng: Rng) -> Points:
    lost = _clump(rng, 1.0, int(rng.integers(4, 8)), 0.4, 0.75) * [2.6, 3.2, 1]
    apart = rng.uniform(3.8, 5.0)
    left = _moved(_plate(rng, rng.uniform(5, 7.5), rng.uniform(1.0, 1.3), -0.6), -apart)
    right = _moved(_plate(rng, rng.uniform(5, 7.5), rng.uniform(1.0, 1.3), 0.6), apart, 0, rng.normal(0, 0.2))
    return np.vstack([left, lost, right])


def _other(rng: Rng) -> Points:
    lumps = [
        _moved(_clump(rng, 1.2, 6, 0.5, 1.0), *rng.uniform(-4.2, 4.2, 2)) for _ in range(rng.integers(5, 8))
    ]
    return np.vstack([*lumps, _clump(rng, 5.5, 12, 0.3, 0.6)])


_SKELETONS: dict[str, Callable[[Rng], Points]] = {
    "prometaphase": _prometaphase,
    "metaphase": _metaphase,
    "anaphase_telophase": _anaphase,
    "ring": _ring,
    "bipolar_asymmetric": _asymmetric,
    "multipolar": _multipolar,
    "segregation": _segregation,
    "other": _other,
}

FIGURE_REACH_UM = 13.0
"""No stamp of a mitotic figure reaches farther than this from its centre."""


def mitotic_figure(rng: Rng, subtype: str) -> Stamp:
    """Draw a dividing cell: crisp dark chromatin without membrane in pale, cleared cytoplasm.

    Parameters
    ----------
    rng
        Source of the shape's chance.
    subtype
        One of ``models.card.SUBTYPES``.
    """
    side = _side(FIGURE_REACH_UM)
    x, y = _grid(side)
    discs = _moved(_SKELETONS[subtype](rng), 0, 0, rng.uniform(0, 2 * np.pi))
    discs[:, :2] -= (discs[:, :2].max(0) + discs[:, :2].min(0)) / 2
    depth = np.full_like(x, -np.inf)
    for disc_x, disc_y, radius in discs:
        depth = np.maximum(depth, radius - np.hypot(x - disc_x, y - disc_y))
    chromatin = _soft(depth + 0.16 * smooth_noise(rng, side, 1.8), 0.15)
    density = rng.uniform(0.95, 1.2) * (1 + 0.1 * smooth_noise(rng, side, 2.0))
    reach = np.clip(np.hypot(discs[:, 0], discs[:, 1]).max() + rng.uniform(2.2, 3.2), 6.8, 10.5)
    cell = _soft(_depth(rng, x, y, reach, reach * rng.uniform(0.85, 1), 0.04), 0.5)
    grain = 1 + 0.3 * smooth_noise(rng, side, 1.6) + 0.15 * smooth_noise(rng, side, 4.0)
    eosin = cell * rng.uniform(0.4, 0.6) * grain
    return _stamp(chromatin * density + 0.03 * cell, eosin, cell)


_BANK: tuple[tuple[str, Callable[[Rng], Stamp], int], ...] = (
    ("nucleus", nucleus, 64),
    ("spindle", spindle, 16),
    ("lymphocyte", lymphocyte, 10),
    ("pyknotic", pyknotic, 8),
    ("hyperchromatic", hyperchromatic, 8),
    ("red_cell", red_cell, 6),
)


def stamp_bank(rng: Rng) -> dict[str, list[Stamp]]:
    """Draw a bank of stamps of each kind; pressing one of them costs far less than drawing it."""
    return {kind: [draw(rng) for _ in range(count)] for kind, draw, count in _BANK}


__all__ = ["DRAW_MPP", "FIGURE_REACH_UM", "Stamp", "mitotic_figure", "smooth_noise", "stamp_bank"]
