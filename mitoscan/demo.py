"""The built-in sample: a synthetic H&E slide with planted mitotic figures whose truth is known.

Nothing in it comes from a real slide. Stain densities of haematoxylin and eosin are drawn (tissue with a
ragged border, tumour cells, fibrous stroma, gaps, nuclei, look-alikes, mitotic figures) and turned into
colour by the Beer–Lambert law: optical density is the sum of density times stain vector (Ruifrok and
Johnston, Anal Quant Cytol Histol 23, 2001).

The drawing was adjusted until detectors trained on real tissue found its figures, so results on it show
that the machinery works; they say nothing about accuracy on real slides.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import ndimage
from scipy.spatial import cKDTree

from mitoscan.demo_stamps import (
    DRAW_MPP,
    FIGURE_REACH_UM,
    Floats,
    Points,
    Rng,
    Stamp,
    mitotic_figure,
    smooth_noise,
    stamp_bank,
)
from mitoscan.errors import ConfigError
from mitoscan.models.card import SUBTYPES
from mitoscan.slide.write import write_pyramid

Picture = npt.NDArray[np.uint8]

NORMAL = frozenset(SUBTYPES[:4])
HAEMATOXYLIN_OD = np.array([0.62, 1.20, 0.48], np.float32)
"""Optical density (base 10; red, green, blue) of haematoxylin at density 1."""
EOSIN_OD = np.array([0.08, 0.37, 0.15], np.float32)
GLASS = np.array([246, 244, 247], np.float32)
"""Colour of empty glass, RGB."""

_APART_UM = 40.0
"""Planted figures keep at least this distance from each other."""
_COARSE_PX = 4
"""Slow maps are computed on every so-many-th px and interpolated."""
_ROWS = 512
"""Rows of the picture that are coloured at once."""


@dataclass(frozen=True)
class PlantedFigure:
    """A synthetic mitotic figure; ``x``, ``y`` in px of the picture (level-0 px of the slide)."""

    x: float
    y: float
    subtype: str

    @property
    def label(self) -> str:
        """``AMF`` or ``NMF``."""
        return "NMF" if self.subtype in NORMAL else "AMF"


@dataclass(frozen=True)
class SyntheticField:
    """A synthetic picture, uint8 (height, width, 3), with its truth.

    ``tissue`` is a bool (height, width) mask: True on tissue (small gaps in it included), False on glass
    around it.
    """

    image: Picture
    figures: tuple[PlantedFigure, ...]
    tissue: npt.NDArray[np.bool_]
    mpp: float


def draw_field(
    seed: int,
    width_px: int,
    height_px: int,
    figures: int | Sequence[PlantedFigure] = 12,
    *,
    mpp: float = DRAW_MPP,
    glass: bool = True,
) -> SyntheticField:
    """Draw a synthetic H&E picture with planted mitotic figures.

    Parameters
    ----------
    seed
        The same seed and sizes give the same picture.
    width_px, height_px
        Size of the picture.
    figures
        How many to plant at places and of subtypes left to chance (about a third atypical, at least
        40 µm apart), or exactly which (x, y in px of the picture).
    mpp
        µm per px of the picture. Drawn at 0.25 and resampled.
    glass
        Leave empty glass around the tissue; otherwise tissue fills the picture.

    Raises
    ------
    ConfigError
        When so many figures do not fit, or a subtype is unknown.
    """
    scale = mpp / DRAW_MPP
    width, height = int(np.ceil(width_px * scale)), int(np.ceil(height_px * scale))
    place_rng, slow_rng, cell_rng, colour_rng = np.random.default_rng(seed).spawn(4)
    scores = _draw_scores(slow_rng, width, height, glass)
    if isinstance(figures, int):
        drawn = _choose_figures(place_rng, scores, width, height, figures)
        planted = tuple(PlantedFigure(f.x / scale, f.y / scale, f.subtype) for f in drawn)
    else:
        planted = tuple(figures)
        drawn = [PlantedFigure(f.x * scale, f.y * scale, f.subtype) for f in planted]
    unknown = {f.subtype for f in drawn} - set(SUBTYPES)
    if unknown:
        raise ConfigError(f"unknown subtype {unknown}", remedy=f"Use one of: {', '.join(SUBTYPES)}.")
    _make_room(scores, drawn)
    cells = _lay_out_cells(cell_rng, scores, width, height, drawn)
    haematoxylin, eosin = _draw_ground(colour_rng, scores, cells, width, height)
    _press_all(cell_rng, haematoxylin, eosin, cells, drawn)
    image = _colour(colour_rng, haematoxylin, eosin)
    tissue = _enlarge(scores.tissue, 0, height, width) > 0
    if scale != 1:
        image, tissue = _resample(image, tissue, width_px, height_px, scale)
    return SyntheticField(image, planted, tissue, mpp)


def write_demo_slide(
    path: Path,
    *,
    seed: int = 0,
    mpp: float = DRAW_MPP,
    width_mm: float = 1.5,
    height_mm: float = 1.2,
    figures: int | Sequence[PlantedFigure] = 40,
) -> tuple[PlantedFigure, ...]:
    """Write a synthetic pyramidal slide and beside it its truth, ``<stem>.truth.geojson``.

    Parameters
    ----------
    path
        Of the slide, ending ``.svs`` or ``.tif``; overwritten if it exists, its folder made if it does not.
    seed, mpp, figures
        See ``draw_field``.
    width_mm, height_mm
        Size of the slide.

    Returns
    -------
    tuple of PlantedFigure
        The truth, in level-0 px.

    Raises
    ------
    ConfigError
        When so many figures do not fit, or a subtype is unknown.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    size = [round(mm * 1000 / mpp) for mm in (width_mm, height_mm)]
    field = draw_field(seed, size[0], size[1], figures, mpp=mpp)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        write_pyramid(unfinished, field.image, mpp, quality=85)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    truth = json.dumps(truth_geojson(field.figures), indent=1) + "\n"
    path.with_suffix(".truth.geojson").write_text(truth, encoding="utf-8")
    return field.figures


def truth_geojson(figures: Sequence[PlantedFigure]) -> dict[str, object]:
    """Give the planted figures as QuPath point annotations, coordinates in level-0 px."""
    features = [
        {
            "type": "Feature",
            "geometry": {"type": "Point", "coordinates": [f.x, f.y]},
            "properties": {
                "objectType": "annotation",
                "name": f"synthetic {f.subtype}",
                "classification": {"name": f.label},
                "metadata": {"origin": "synthetic", "subtype": f.subtype},
            },
        }
        for f in figures
    ]
    return {"type": "FeatureCollection", "features": features}


class _Scores(NamedTuple):
    """Slow maps on the coarse grid; > 0 means yes."""

    tissue: Floats
    nest: Floats
    gap: Floats
    flow: Floats
    """Phase of the stroma's fibres, in turns."""


class _Cells(NamedTuple):
    """Where cells lie, in drawn px, and what each of them is."""

    x: Points
    y: Points
    kind: list[str]
    figures: Points
    """(n, 2)."""


def _slow_noise(rng: Rng, width: int, height: int, scale_um: float) -> Floats:
    """Noise that is smooth over ``scale_um``, on the coarse grid of a picture of this size."""
    step = max(scale_um / DRAW_MPP / 2, 1)
    knots = rng.standard_normal((int(height / step) + 4, int(width / step) + 4)).astype(np.float32)
    knots = ndimage.gaussian_filter(knots, 0.8, mode="reflect") * 2.3
    size = (-(-width // _COARSE_PX), -(-height // _COARSE_PX))
    box = (1.5, 1.5, 1.5 + width / step, 1.5 + height / step)
    return np.asarray(Image.fromarray(knots).resize(size, Image.Resampling.BICUBIC, box))


def _above(score: Floats, share: float) -> Floats:
    """Shift a score so that it is positive on this share of the area."""
    return score - np.float32(np.quantile(score[::4, ::4], 1 - share))


def _draw_scores(rng: Rng, width: int, height: int, glass: bool) -> _Scores:
    nest = _above(_slow_noise(rng, width, height, 90) + 0.25 * _slow_noise(rng, width, height, 14), 0.68)
    gap = _above(_slow_noise(rng, width, height, 26) - 0.35 * np.clip(nest, -1, 1), 0.045)
    flow = 5.0 * _slow_noise(rng, width, height, 85) + 0.35 * _slow_noise(rng, width, height, 12)
    tissue = np.ones_like(nest)
    if glass:
        rows, columns = nest.shape
        v, u = np.ogrid[-1 : 1 : rows * 1j, -1 : 1 : columns * 1j]
        tilt = rng.uniform(-0.3, 0.3)
        islands = [
            ((u - 0.38) ** 2 / 0.2 + (v - tilt) ** 2 / 0.5),
            ((u + 0.5) ** 2 / 0.12 + (v + tilt) ** 2 / 0.4),
        ]
        bulk = 1 - np.minimum(*islands)
        ragged = 0.30 * _slow_noise(rng, width, height, 170) + 0.05 * _slow_noise(rng, width, height, 22)
        margin = np.minimum(1 - np.abs(u), 1 - np.abs(v))
        tissue = _above((bulk + ragged - 0.6 * np.exp(-margin / 0.03)).astype(np.float32), 0.58)
    return _Scores(tissue, nest, gap, flow)


def _choose_figures(rng: Rng, scores: _Scores, width: int, height: int, count: int) -> list[PlantedFigure]:
    """Choose subtypes and places well inside nests of tumour cells."""
    coarse_um = _COARSE_PX * DRAW_MPP
    inside = np.pad(scores.tissue > 0, 1)
    deep = ndimage.distance_transform_edt(inside)[1:-1, 1:-1] * coarse_um > FIGURE_REACH_UM + 3
    rows, columns = np.nonzero(deep & (scores.nest > 0) & (scores.gap < -0.2))
    order = rng.permutation(rows.size)
    chosen: list[tuple[float, float]] = []
    for x, y in zip((columns[order] + 0.5) * _COARSE_PX, (rows[order] + 0.5) * _COARSE_PX, strict=True):
        if len(chosen) == count:
            break
        if all(np.hypot(x - a, y - b) * DRAW_MPP >= _APART_UM for a, b in chosen):
            chosen.append((x, y))
    if len(chosen) < count:
        raise ConfigError(
            f"{count} figures do not fit into {width} x {height} px, only {len(chosen)}",
            remedy="Ask for fewer or draw a larger picture.",
        )
    atypical = [s for s in SUBTYPES if s not in NORMAL]
    normal = ["metaphase", "prometaphase", "metaphase", "anaphase_telophase", "prometaphase", "ring"]
    kinds = [atypical[n // 3 % 4] if n % 3 == 2 else normal[(n - n // 3) % 6] for n in range(count)]
    return [PlantedFigure(float(x), float(y), kind) for (x, y), kind in zip(chosen, kinds, strict=True)]


def _make_room(scores: _Scores, figures: Sequence[PlantedFigure]) -> None:
    """Put tumour tissue without gaps under every figure, in place."""
    radius = (FIGURE_REACH_UM + 3) / DRAW_MPP / _COARSE_PX
    rows, columns = scores.tissue.shape
    for figure in figures:
        x, y = figure.x / _COARSE_PX, figure.y / _COARSE_PX
        top, left = (max(int(c - 2 * radius), 0) for c in (y, x))
        bottom, right = min(int(y + 2 * radius), rows), min(int(x + 2 * radius), columns)
        v, u = np.ogrid[top:bottom, left:right]
        bump = (1 - np.hypot(u + 0.5 - x, v + 0.5 - y) / radius).astype(np.float32)
        near = (slice(top, bottom), slice(left, right))
        scores.tissue[near] = np.maximum(scores.tissue[near], 0.3 * bump)
        scores.nest[near] = np.maximum(scores.nest[near], bump)
        scores.gap[near] = np.minimum(scores.gap[near], -bump)


def _jittered(rng: Rng, width: int, height: int, spacing_um: float) -> tuple[Points, Points]:
    """Points on a jittered triangular grid over the picture."""
    step = spacing_um / DRAW_MPP
    y, x = np.mgrid[0 : height + step : step * 0.87, 0 : width + step : step]
    x[1::2] += step / 2
    x = x + rng.uniform(-0.3, 0.3, x.shape) * step
    y = y + rng.uniform(-0.3, 0.3, y.shape) * step
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    return x[inside], y[inside]


def _lay_out_cells(
    rng: Rng, scores: _Scores, width: int, height: int, figures: Sequence[PlantedFigure]
) -> _Cells:
    """Place nuclei by tissue kind; none within a figure's own cell."""
    x, y = _jittered(rng, width, height, 14.5)
    row, column = (y / _COARSE_PX).astype(int), (x / _COARSE_PX).astype(int)
    nest = scores.nest[row, column] > 0
    chance = rng.uniform(0, 1, x.size)
    wanted = chance < np.where(nest, 0.88, 0.55)
    wanted &= (scores.tissue[row, column] > 0.03) & (scores.gap[row, column] < 0)
    centres = np.array([(f.x, f.y) for f in figures]).reshape(-1, 2)
    if len(centres):
        distance, _ = cKDTree(centres).query(np.column_stack([x, y]))
        wanted &= distance * DRAW_MPP > FIGURE_REACH_UM
    roll = rng.uniform(0, 1, x.size)
    in_nest = np.select(
        [roll < 0.012, roll < 0.022, roll < 0.037], ["pyknotic", "hyperchromatic", "lymphocyte"], "nucleus"
    )
    in_stroma = np.select(
        [roll < 0.25, roll < 0.4, roll < 0.41], ["lymphocyte", "red_cell", "pyknotic"], "spindle"
    )
    kind = np.where(nest, in_nest, in_stroma)[wanted]
    return _Cells(x[wanted], y[wanted], kind.tolist(), centres)


def _enlarge(coarse: Floats, top: int, rows: int, width: int) -> Floats:
    """Interpolate rows ``top`` to ``top + rows`` of a coarse map to the picture's px."""
    box = (0, top / _COARSE_PX, width / _COARSE_PX, (top + rows) / _COARSE_PX)
    return np.asarray(Image.fromarray(coarse).resize((width, rows), Image.Resampling.BILINEAR, box))


class _Texture:
    """Endless texture: smooth noise that repeats after ``side`` px."""

    def __init__(self, rng: Rng, side: int, sigma_px: float) -> None:
        self._tile = smooth_noise(rng, side, sigma_px)

    def rows(self, top: int, rows: int, width: int) -> Floats:
        """Give a strip of the texture."""
        side = self._tile.shape[0]
        strip: Floats = self._tile[(top + np.arange(rows)) % side].take(np.arange(width) % side, axis=1)
        return strip


def _cell_borders(cells: _Cells, scores: _Scores) -> Floats:
    """How near a px of the coarse grid is to the border between two tumour cells, 0 to 1."""
    border = np.zeros_like(scores.nest)
    rows, columns = np.nonzero((scores.tissue > 0) & (scores.nest > -0.1))
    centres = np.vstack([np.column_stack([cells.x, cells.y]), cells.figures])
    if len(centres) >= 2 and rows.size:
        places = (np.column_stack([columns, rows]) + 0.5) * _COARSE_PX
        nearest, second = np.asarray(cKDTree(centres).query(places, k=2)[0]).T
        slack_um = (second - nearest) * DRAW_MPP
        border[rows, columns] = np.exp(-((slack_um / 1.4) ** 2))
    return border


def _draw_ground(rng: Rng, scores: _Scores, cells: _Cells, width: int, height: int) -> tuple[Floats, Floats]:
    """Cytoplasm, fibres and gaps: densities of both stains, float32 (height, width) each."""
    haematoxylin, eosin = (np.empty((height, width), np.float32) for _ in range(2))
    border = _cell_borders(cells, scores)
    shade = _slow_noise(rng, width, height, 60)
    fine, medium, coarse = (_Texture(rng, side, s) for side, s in ((509, 1.4), (601, 2.6), (733, 9.0)))
    for top in range(0, height, _ROWS):
        rows = min(_ROWS, height - top)
        strip = (top, rows, width)
        tissue, nest, gap, flow, edge, dark = (_enlarge(plane, *strip) for plane in (*scores, border, shade))
        strands = 0.6 - np.abs(medium.rows(*strip))
        grain = 0.11 * fine.rows(*strip) + 0.2 * strands
        cytoplasm = 0.8 + 0.1 * dark + grain + 0.5 * edge + 0.12 * coarse.rows(*strip)
        wave = np.cos(2 * np.pi * flow + 0.5 * coarse.rows(*strip) + 0.3 * medium.rows(*strip))
        fibres = 0.88 + 0.4 * wave + 0.12 * dark + 0.8 * grain + 0.3 * coarse.rows(*strip)
        share = np.clip(nest / 0.12 + 0.5, 0, 1)
        there = np.clip(tissue / 0.02, 0, 1) * np.clip(0.5 - gap / 0.08, 0, 1)
        here = slice(top, top + rows)
        eosin[here] = there * np.clip(share * cytoplasm + (1 - share) * fibres, 0.05, None)
        haematoxylin[here] = there * np.clip(share * (0.07 + 0.03 * dark + 0.15 * grain), 0.01, None)
    return haematoxylin, eosin


def _press_all(
    rng: Rng, haematoxylin: Floats, eosin: Floats, cells: _Cells, figures: Sequence[PlantedFigure]
) -> None:
    """Press nuclei, then mitotic figures, into the stain densities, in place."""
    bank = stamp_bank(rng)
    picks = rng.integers(0, 2**31, (len(cells.kind), 2))
    for x, y, kind, (pick, symmetry) in zip(cells.x, cells.y, cells.kind, picks, strict=True):
        stamps: list[Stamp] = bank[kind]
        stamp = stamps[pick % len(stamps)].turned(int(symmetry) % 8)
        stamp.press(haematoxylin, eosin, int(x), int(y))
    for figure in figures:
        mitotic_figure(rng, figure.subtype).press(haematoxylin, eosin, int(figure.x), int(figure.y))


def _colour(rng: Rng, haematoxylin: Floats, eosin: Floats) -> Picture:
    """Beer–Lambert: light through both stains, with a little sensor noise."""
    height, width = haematoxylin.shape
    image = np.empty((height, width, 3), np.uint8)
    sensor = [_Texture(rng, side, 0.6) for side in (389, 419, 443)]
    for top in range(0, height, _ROWS):
        here = slice(top, min(top + _ROWS, height))
        for channel in range(3):
            density = haematoxylin[here] * HAEMATOXYLIN_OD[channel] + eosin[here] * EOSIN_OD[channel]
            light = GLASS[channel] * np.exp(density * np.float32(-np.log(10)))
            light += 1.2 * sensor[channel].rows(top, density.shape[0], width)
            image[here, :, channel] = np.clip(light + 0.5, 0, 255)
    return image


def _resample(
    image: Picture, tissue: npt.NDArray[np.bool_], width_px: int, height_px: int, scale: float
) -> tuple[Picture, npt.NDArray[np.bool_]]:
    box = (0.0, 0.0, width_px * scale, height_px * scale)
    size = (width_px, height_px)
    picture = Image.fromarray(image).resize(size, Image.Resampling.BICUBIC, box)
    mask = Image.fromarray(tissue).convert("L").resize(size, Image.Resampling.BILINEAR, box)
    return np.asarray(picture), np.asarray(mask) >= 128
