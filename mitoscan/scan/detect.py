"""Stage 1: tiles to candidates, candidates to merged positions."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import groupby, islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
from shapely import MultiPolygon, box, contains_xy, prepare

from mitoscan.config import Device, PointName
from mitoscan.models.card import ModelCard
from mitoscan.models.runtime import Runtime, images_at_once, load_runtime
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
MARGIN_SLACK_PX = 2.0
"""Positions differ by fractions of a pixel between neighbouring tiles: each tile keeps what lies so far
outside its core too, lest a figure on the line belong to neither. Merging removes the double."""

_GRID_PX = 16
"""Tiles begin at multiples of it, lest the network see the same figure on another phase of its grid."""
_HALVINGS = 2
"""How often the core of a tile is halved, where the network takes pictures of any size."""
_UNDER_WAY = 2
"""Batches that the network has or waits for."""

Pixels = npt.NDArray[np.uint8]
Batch = list[tuple[Tile, Pixels]]


class Candidates(NamedTuple):
    """What a detector found, highest score first; arrays of equal length."""

    x: Float
    """(K,), level-0 px."""
    y: Float
    p: Float
    """(K,), p_mitosis."""
    seen: Float
    """(K, C): what the visitor of the tiles said of each."""


Visitor = Callable[[Tile, Pixels, Float], Float]
"""Shown each tile, its pixels, uint8 (size, size, 3), and its candidates, (K, 3): x and y in work px, p.
Gives (K, C) numbers about them, which stay with them through merging."""


def _just_look(_tile: Tile, _pixels: Pixels, found: Float) -> Float:
    return np.empty((len(found), 0))


class Detector:
    """A detector ready to run. Made by ``mitoscan.load_detector``."""

    def __init__(
        self, card: ModelCard, runtime: Runtime, threshold: float | None = None, *, any_size: bool = True
    ) -> None:
        self.card = card
        self._any_size = any_size
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
            x, y, p, _ = self.run(tiles, frame, pool)
        inside = (x >= 0) & (y >= 0) & (x < image.shape[1]) & (y < image.shape[0])
        found = pd.DataFrame({"x": x, "y": y, "p_mitosis": p, "is_mf": p >= self.threshold})
        result: pd.DataFrame = found[inside].reset_index(drop=True)
        return result

    def plan(
        self, frame: WorkFrame, width_l0: int, height_l0: int, area: MultiPolygon, shift_px: int = 0
    ) -> list[Tile]:
        """Lay out this detector's tiles over ``area`` (level-0 px)."""
        core = self.card.input_px - 2 * self.card.margin_px
        halvings = _HALVINGS if self._any_size else 0
        while core % (_GRID_PX << halvings) and halvings:
            halvings -= 1
        return plan_tiles(
            frame,
            width_l0,
            height_l0,
            area,
            tile_px=self.card.input_px,
            margin_px=self.card.margin_px,
            shift_px=shift_px,
            halvings=halvings,
        )

    def run(
        self,
        tiles: Sequence[Tile],
        frame: WorkFrame,
        pool: ReaderPool,
        batch_size: int | None = None,
        on_tiles: Callable[[int], None] = lambda _: None,
        visit: Visitor = _just_look,
    ) -> Candidates:
        """Read ``tiles``, find candidates and merge them.

        Reading, the network and what is done with its heat maps go on side by side, each in threads of its
        own.

        Parameters
        ----------
        tiles, frame
            The plan.
        pool
            Reads the pixels.
        batch_size
            Tiles that the network takes at once, at most; they have the same size. None: as suits the device.
        on_tiles
            Told how many tiles are done after each batch.
        visit
            See ``Visitor``.
        """
        pixels = pool.read(Region(frame.box_to_l0(t.x, t.y, t.size, t.size), t.size) for t in tiles)
        size = batch_size or images_at_once(self.heat, self.card.input_px)
        parts: list[Float] = []
        for batch, heats in self._heats(_batches(zip(tiles, pixels, strict=True), size)):
            for (tile, image), heat in zip(batch, heats, strict=True):
                found = self._candidates(tile, heat)
                parts.append(np.hstack([found, visit(tile, image, found)]))
            on_tiles(len(batch))
        found = np.concatenate(parts) if parts else np.empty((0, 3))
        kept = found[merge(found[:, 0], found[:, 1], found[:, 2], MERGE_RADIUS_UM / frame.mpp)]
        x, y = frame.to_l0(kept[:, 0], kept[:, 1])
        return Candidates(x, y, kept[:, 2], kept[:, 3:])

    def _heats(self, batches: Iterable[Batch]) -> Iterator[tuple[Batch, npt.NDArray[np.float32]]]:
        """Run the network in a thread, ahead of whoever takes its heat maps."""
        waiting: deque[tuple[Batch, Future[npt.NDArray[np.float32]]]] = deque()
        with ThreadPoolExecutor(1, thread_name_prefix="detector") as thread:
            try:
                for batch in batches:
                    images = np.stack([image for _, image in batch])
                    waiting.append((batch, thread.submit(self.heat, images)))
                    if len(waiting) >= _UNDER_WAY:
                        done, heats = waiting.popleft()
                        yield done, heats.result()
                while waiting:
                    done, heats = waiting.popleft()
                    yield done, heats.result()
            finally:
                for _, future in waiting:
                    future.cancel()

    def _candidates(self, tile: Tile, heat: npt.NDArray[np.float32]) -> Float:
        """Candidates of one tile's core: (K, 3), x and y in work px, p."""
        x, y, p = find_peaks(heat, self.threshold * FLOOR_SHARE)
        stride = tile.size / len(heat)
        x, y = tile.x + x * stride, tile.y + y * stride
        left, top, right, bottom = tile.core
        near = (x > left - MARGIN_SLACK_PX) & (x < right + MARGIN_SLACK_PX)
        near &= (y > top - MARGIN_SLACK_PX) & (y < bottom + MARGIN_SLACK_PX)
        return np.stack([x, y, p], axis=1)[near]


def keep_inside(area: MultiPolygon, found: Candidates) -> Candidates:
    """Drop what lies outside ``area`` (level-0 px), which the tiles reach over."""
    prepare(area)
    inside = contains_xy(area, found.x, found.y)
    return Candidates(*(column[inside] for column in found))


def _batches(items: Iterable[tuple[Tile, Pixels]], size: int) -> Iterator[Batch]:
    """Put neighbours of equal size together, at most ``size`` of them."""
    for _, alike in groupby(items, key=lambda item: item[0].size):
        while batch := list(islice(alike, size)):
            yield batch


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
        shipped default for the device.
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
    folder, card = find_model(name_or_folder, "detector", device)
    if threshold is None:
        threshold = card.point(operating_point).threshold
    foreign = is_tiatoolbox(name_or_folder)
    load = load_tiatoolbox_runtime if foreign else load_runtime
    return Detector(card, load(folder, card, device), threshold, any_size=not foreign)
