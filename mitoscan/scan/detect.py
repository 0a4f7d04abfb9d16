"""Stage 1: tiles to candidates, candidates to merged positions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import pandas as pd
from shapely import MultiPolygon, box, contains_xy, prepare

from mitoscan.config import Device, PointName
from mitoscan.models.card import ModelCard
from mitoscan.models.runtime import Runtime, load_runtime
from mitoscan.models.tiatoolbox_models import is_tiatoolbox, load_tiatoolbox_runtime
from mitoscan.models.zoo import find_model
from mitoscan.scan.merge import merge
from mitoscan.scan.peaks import find_peaks
from mitoscan.scan.readers import ReaderPool, Region
from mitoscan.slide.array_reader import ArraySlide
from mitoscan.slide.tiling import Tile, plan_tiles
from mitoscan.units import WorkFrame

Float = npt.NDArray[np.float64]

MERGE_RADIUS_UM = 7.5
FLOOR_SHARE = 0.25
"""Candidates below this share of the operating point are dropped; those above stay in the table."""
_SLACK_PX = 2.0
"""Positions differ by fractions of a pixel between neighbouring tiles: each tile keeps what lies so far
outside its core too, lest a figure on the line belong to neither. Merging removes the double."""

T = TypeVar("T")


class Detector:
    """A detector ready to run. Made by ``mitoscan.load_detector``."""

    def __init__(self, card: ModelCard, runtime: Runtime, threshold: float | None = None) -> None:
        self.card = card
        self.threshold = card.operating_point.threshold if threshold is None else threshold
        """p_mitosis from which a finding counts as a mitotic figure."""
        self.heat = runtime
        """Tiles, uint8 (N, S, S, 3), to heat maps, float32 (N, S / stride, S / stride)."""

    def detect(self, image: npt.NDArray[np.uint8], mpp: float) -> pd.DataFrame:
        """Find mitotic figures in a picture.

        Parameters
        ----------
        image
            uint8 (H, W, 3), RGB.
        mpp
            µm per pixel of ``image``.

        Returns
        -------
        DataFrame
            ``x``, ``y`` (px of ``image``, continuous, from its top-left corner), ``p_mitosis``,
            ``is_mf`` (p_mitosis ≥ ``threshold``); highest score first. Also what lies below the threshold.

        Raises
        ------
        ValueError
            When ``image`` is not such an array.
        MppError
            When ``mpp`` is absurd.
        """
        slide = ArraySlide(image, mpp)
        frame = slide.info.frame(self.card.mpp)
        everywhere = MultiPolygon([box(0, 0, image.shape[1], image.shape[0])])
        tiles = self.plan(frame, image.shape[1], image.shape[0], everywhere)
        with ReaderPool(lambda: slide, 1) as pool:
            x, y, p = self.run(tiles, frame, pool)
        inside = (x >= 0) & (y >= 0) & (x < image.shape[1]) & (y < image.shape[0])
        found = pd.DataFrame({"x": x, "y": y, "p_mitosis": p, "is_mf": p >= self.threshold})
        result: pd.DataFrame = found[inside].reset_index(drop=True)
        return result

    def plan(
        self, frame: WorkFrame, width_l0: int, height_l0: int, area: MultiPolygon, shift_px: int = 0
    ) -> list[Tile]:
        """Lay out this detector's tiles over ``area`` (level-0 px)."""
        return plan_tiles(
            frame,
            width_l0,
            height_l0,
            area,
            tile_px=self.card.input_px,
            margin_px=self.card.margin_px,
            shift_px=shift_px,
        )

    def run(
        self,
        tiles: Sequence[Tile],
        frame: WorkFrame,
        pool: ReaderPool,
        batch_size: int = 1,
        on_tiles: Callable[[int], None] = lambda _: None,
        on_pixels: Callable[[Tile, npt.NDArray[np.uint8]], None] = lambda _, __: None,
    ) -> tuple[Float, Float, Float]:
        """Read ``tiles``, find candidates and merge them.

        Parameters
        ----------
        tiles, frame
            The plan.
        pool
            Reads the pixels.
        batch_size
            Tiles that the network takes at once.
        on_tiles
            Told how many tiles are done after each batch.
        on_pixels
            Shown each tile and its pixels, uint8 (size, size, 3).

        Returns
        -------
        x, y, p
            (K,) each: level-0 px and p_mitosis, highest first.
        """
        pixels = pool.read(Region(frame.box_to_l0(t.x, t.y, t.size, t.size), t.size) for t in tiles)
        parts: list[Float] = []
        for group in _batches(zip(tiles, pixels, strict=True), batch_size):
            heats = self.heat(np.stack([image for _, image in group]))
            for tile, image in group:
                on_pixels(tile, image)
            parts += [self._candidates(tile, h) for (tile, _), h in zip(group, heats, strict=True)]
            on_tiles(len(group))
        found = np.concatenate(parts) if parts else np.empty((0, 3))
        kept = found[merge(found[:, 0], found[:, 1], found[:, 2], MERGE_RADIUS_UM / frame.mpp)]
        x, y = frame.to_l0(kept[:, 0], kept[:, 1])
        return x, y, kept[:, 2]

    def _candidates(self, tile: Tile, heat: npt.NDArray[np.float32]) -> Float:
        """Candidates of one tile's core: (K, 3), x and y in work px, p."""
        x, y, p = find_peaks(heat, self.threshold * FLOOR_SHARE)
        stride = tile.size / len(heat)
        x, y = tile.x + x * stride, tile.y + y * stride
        left, top, right, bottom = tile.core
        near = (x > left - _SLACK_PX) & (x < right + _SLACK_PX)
        near &= (y > top - _SLACK_PX) & (y < bottom + _SLACK_PX)
        return np.stack([x, y, p], axis=1)[near]


def keep_inside(area: MultiPolygon, x: Float, y: Float, p: Float) -> tuple[Float, Float, Float]:
    """Drop what lies outside ``area``, which the tiles reach over; all in level-0 px."""
    prepare(area)
    inside = contains_xy(area, x, y)
    return x[inside], y[inside], p[inside]


def _batches(items: Iterator[T], size: int) -> Iterator[list[T]]:
    while group := list(islice(items, size)):
        yield group


def load_detector(
    name_or_folder: str | Path | None = None,
    device: Device = "auto",
    threshold: float | None = None,
    operating_point: PointName = "balanced",
) -> Detector:
    """Load a detector.

    Parameters
    ----------
    name_or_folder
        Name of a shipped one, a folder with a card.json, or ``tiatoolbox:KongNet_Det_MIDOG_1``. None: the
        shipped default.
    device
        ``auto``, ``cpu`` (OpenVINO), ``cuda`` or ``mps`` (torch).
    threshold
        Overrides the card's operating point.
    operating_point
        Which of the card's two: ``balanced`` (greatest F1) or ``sensitive`` (fewer figures missed).

    Raises
    ------
    ModelError
        When the model is not found or its files are faulty.
    ConfigError
        When the device is not available.
    """
    folder, card = find_model(name_or_folder, "detector")
    if threshold is None:
        threshold = card.point(operating_point).threshold
    load = load_tiatoolbox_runtime if is_tiatoolbox(name_or_folder) else load_runtime
    return Detector(card, load(folder, card, device), threshold)
