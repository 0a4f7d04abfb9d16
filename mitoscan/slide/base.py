"""What every slide can do, whatever library decodes it: give any level-0 box at any size in pixels.

All geometry of reading is here; a reader adds only `Slide._region`, which copies whole stored pixels.
"""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt
from PIL import Image

from mitoscan.errors import MppError, SlideReadError
from mitoscan.units import MPP_MAX, MPP_MIN, Box, Mpp, WorkFrame

WHITE = (255, 255, 255)

MPP_REMEDY = "Give the pixel size in µm with --mpp, e.g. --mpp 0.25."

_FILTER = Image.Resampling.BILINEAR
"""Pillow widens its kernels by the shrinking factor, so this averages over the area of an output pixel when
shrinking (no aliasing) and is smooth when enlarging. Of Pillow's filters it came closest (RMSE, and mean
gradient within 6 %) to the fields at 0.25 mpp that the models learn from, when their 0.2273 mpp originals
are read. BOX, the literal area filter, takes each source pixel wholly or not at all, which at scales near 1
shifts detail by up to half a pixel."""
_FILTER_REACH = 2.0
"""Half-width of the kernel, in output pixels when shrinking, in source pixels when enlarging."""

_LEVEL_TOLERANCE = 1.02
"""A level up to 2 % coarser than wanted still serves: levels are rarely exact powers of two."""
_MAX_SOURCE_PX = 2048 * 2048
"""Larger boxes are read in halves, so that no box, not even the whole of a single-level slide at 8 µm/px,
needs more than this many stored pixels in memory."""
_EXACT_PX = 1e-3
"""Boxes that lie on stored pixels within this many pixels are copied, not resampled."""


@dataclass(frozen=True)
class Level:
    """One stored pyramid level; sizes in its own px."""

    width: int
    height: int
    downsample: float
    """Level-0 px per px of this level."""
    tile_width: int | None = None
    tile_height: int | None = None


@dataclass(frozen=True)
class SlideInfo:
    """What is known of a slide before any pixel is read; lengths in level-0 px."""

    path: Path
    slide_id: str
    """File name without its last suffix."""
    width_l0: int
    height_l0: int
    mpp: Mpp | None
    mpp_source: str
    """The property or option that gave `mpp`; why there is none where it is None."""
    vendor: str
    reader: str
    """``openslide``, ``image`` or ``tiatoolbox``."""
    levels: tuple[Level, ...]
    bounds: Box | None
    """The scanned part, where the file states all four of ``openslide.bounds-*``."""
    objective: str | None
    """Nominal magnification as the file states it; never used to infer `mpp`."""
    identity: str
    """Hash of the slide's content, the same wherever the file lies."""

    def known_mpp(self) -> Mpp:
        """Give the pixel size.

        Raises
        ------
        MppError
            When it is not known.
        """
        if self.mpp is None:
            raise MppError(f"no usable pixel size ({self.mpp_source})", path=self.path, remedy=MPP_REMEDY)
        return self.mpp

    def frame(self, mpp: float) -> WorkFrame:
        """Lay square pixels of ``mpp`` µm over this slide.

        Raises
        ------
        MppError
            When the slide's own pixel size is not known.
        """
        return WorkFrame(self.known_mpp(), mpp)


class Slide(ABC):
    """An open slide; close it or use it as a context manager."""

    info: SlideInfo
    shareable = False
    """Whether several threads may read from it at once; otherwise open one for each."""

    @abstractmethod
    def _region(self, level: int, x: int, y: int, width: int, height: int) -> Image.Image:
        """Copy an RGB picture of stored pixels that lies inside ``level``; transparent ones are white."""

    @abstractmethod
    def close(self) -> None:
        """Release the file."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def read(self, box: Box, width: int, height: int) -> npt.NDArray[np.uint8]:
        """Read a box, resampled to exactly ``width`` x ``height`` px.

        Parameters
        ----------
        box
            Level-0 px, continuous; may leave the slide.
        width, height
            Size of the result; the scales along x and y may differ.

        Returns
        -------
        uint8 array (height, width, 3), RGB. Off the slide and where it is transparent: white.

        Raises
        ------
        SlideReadError
            When the pixels cannot be decoded.
        """
        if not (all(map(math.isfinite, (box.x, box.y))) and min(width, height, box.width, box.height) > 0):
            raise ValueError(f"cannot read {box} to {width} x {height} px")
        number, level = self._level_for(min(box.width / width, box.height / height))
        span_x, span_y = box.width / level.downsample, box.height / level.downsample
        if span_x * span_y > _MAX_SOURCE_PX and max(width, height) > 1:
            return self._read_halves(
                box, width, height, along_x=height == 1 or (width > 1 and span_x > span_y)
            )
        left, top = box.x / level.downsample, box.y / level.downsample
        return np.asarray(self._resample(number, left, top, span_x, span_y, width, height))

    def _read_halves(self, box: Box, width: int, height: int, *, along_x: bool) -> npt.NDArray[np.uint8]:
        if along_x:
            cut = width // 2
            part = box.width * cut / width
            first = self.read(Box(box.x, box.y, part, box.height), cut, height)
            rest = Box(box.x + part, box.y, box.width - part, box.height)
            return np.concatenate([first, self.read(rest, width - cut, height)], axis=1)
        cut = height // 2
        part = box.height * cut / height
        first = self.read(Box(box.x, box.y, box.width, part), width, cut)
        rest = Box(box.x, box.y + part, box.width, box.height - part)
        return np.concatenate([first, self.read(rest, width, height - cut)], axis=0)

    def _level_for(self, wanted: float) -> tuple[int, Level]:
        """Find the coarsest level that is not coarser than ``wanted`` level-0 px per px."""
        fits = [(n, v) for n, v in enumerate(self.info.levels) if v.downsample <= wanted * _LEVEL_TOLERANCE]
        return max(fits, key=lambda pair: pair[1].downsample, default=(0, self.info.levels[0]))

    def _resample(
        self, level: int, x: float, y: float, span_x: float, span_y: float, width: int, height: int
    ) -> Image.Image:
        """Resample a float rectangle of ``level`` (its px) to ``width`` x ``height`` px."""
        off_grid = max(abs(x - round(x)), abs(y - round(y)), abs(span_x - width), abs(span_y - height))
        if off_grid < _EXACT_PX:
            return self._padded(level, round(x), round(y), width, height)
        margin_x = math.ceil(_FILTER_REACH * max(1.0, span_x / width)) + 1
        margin_y = math.ceil(_FILTER_REACH * max(1.0, span_y / height)) + 1
        left, top = math.floor(x) - margin_x, math.floor(y) - margin_y
        right, bottom = math.ceil(x + span_x) + margin_x, math.ceil(y + span_y) + margin_y
        source = self._padded(level, left, top, right - left, bottom - top)
        window = (x - left, y - top, x - left + span_x, y - top + span_y)
        return source.resize((width, height), _FILTER, box=window)

    def _padded(self, level: int, x: int, y: int, width: int, height: int) -> Image.Image:
        """Copy stored pixels, white where the rectangle leaves the level."""
        stored = self.info.levels[level]
        left, top = max(x, 0), max(y, 0)
        right, bottom = min(x + width, stored.width), min(y + height, stored.height)
        if left >= right or top >= bottom:
            return Image.new("RGB", (width, height), WHITE)
        picture = self._region(level, left, top, right - left, bottom - top)
        if picture.size == (width, height):
            return picture
        canvas = Image.new("RGB", (width, height), WHITE)
        canvas.paste(picture, (left - x, top - y))
        return canvas

    def _read_error(self, level: int, rectangle: tuple[int, int, int, int], exc: Exception) -> SlideReadError:
        """Say which pixels (x, y, width, height of ``level``) could not be decoded."""
        x, y, width, height = rectangle
        return SlideReadError(
            f"cannot decode {width} x {height} px at ({x}, {y}) of level {level}: {exc}",
            path=self.info.path,
            remedy="The file seems damaged: copy or export it again.",
        )


def on_white(picture: Image.Image) -> Image.Image:
    """Lay a picture over white, by its alpha, and give RGB."""
    if picture.mode != "RGBA":
        return picture.convert("RGB")
    alpha = picture.getchannel("A")
    if alpha.getextrema() == (255, 255):
        return picture.convert("RGB")
    canvas = Image.new("RGB", picture.size, WHITE)
    canvas.paste(picture, mask=alpha)
    return canvas


def make_levels(
    sizes: Sequence[tuple[int, int]], tile_sizes: Sequence[tuple[int | None, int | None]] | None = None
) -> tuple[Level, ...]:
    """Describe levels by their sizes (width, height), level 0 first."""
    tiles = tile_sizes or [(None, None)] * len(sizes)
    return tuple(
        Level(*size, _downsample(sizes[0], size), *tile) for size, tile in zip(sizes, tiles, strict=True)
    )


def _downsample(full: tuple[int, int], size: tuple[int, int]) -> float:
    """Level-0 px per px of a level; whole where the level's size is that of a whole factor.

    A level of 1803 x 1353 px below 7215 x 5412 was shrunk by 4 and lost the odd pixels; the plain ratio of
    the sizes, 4.0008, would drift by pixels across the slide.
    """
    ratio = (full[0] / size[0] + full[1] / size[1]) / 2
    whole = round(ratio)
    exact = all(abs(f / whole - s) < 1 for f, s in zip(full, size, strict=True))
    return float(whole) if exact else ratio


def resolve_mpp(
    path: Path, *, given: float | None, stored: Mpp | None, source: str, required: bool
) -> tuple[Mpp | None, str]:
    """Choose the pixel size: the user's, else the file's, never a guess.

    Parameters
    ----------
    given
        What the user says (``--mpp``); taken for both axes.
    stored, source
        What the file says, and where.
    required
        Whether a missing or absurd pixel size of the file is an error.

    Returns
    -------
    The pixel size and where it came from, or None and why there is none.

    Raises
    ------
    MppError
        When ``given`` is absurd, or ``required`` and the file's is missing or absurd.
    """
    allowed = f"{MPP_MIN:g} to {MPP_MAX:g} µm"
    if given is not None:
        mpp = Mpp(given, given)
        if not mpp.is_plausible:
            raise MppError(f"--mpp {given:g} is not within {allowed}", path=path, remedy=MPP_REMEDY)
        return mpp, "--mpp"
    if stored is None:
        reason = "the file states no pixel size"
    elif not stored.is_plausible:
        reason = (
            f"the pixel size in the file, {stored.x:g} x {stored.y:g} µm ({source}), is not within {allowed}"
        )
    else:
        return stored, source
    if required:
        raise MppError(reason, path=path, remedy=MPP_REMEDY)
    return None, reason


def content_hash(path: Path) -> str:
    """Hash a file's size and its first and last MB (a folder: the names and sizes of its files)."""
    digest = hashlib.sha256()
    if path.is_dir():
        for file in sorted(p for p in path.rglob("*") if p.is_file()):
            digest.update(f"{file.relative_to(path).as_posix()}:{file.stat().st_size}\n".encode())
        return digest.hexdigest()
    size, part = path.stat().st_size, 2**20
    digest.update(str(size).encode())
    with path.open("rb") as stream:
        digest.update(stream.read(part))
        stream.seek(max(0, size - part))
        digest.update(stream.read(part))
    return digest.hexdigest()
