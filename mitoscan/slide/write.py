"""Write tiled, pyramidal JPEG TIFF that OpenSlide opens as an Aperio slide with its pixel size."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeAlias

import imagecodecs
import numpy as np
import numpy.typing as npt
import tifffile

Picture: TypeAlias = npt.NDArray[np.uint8]

TILE_PX = 256
DOWNSAMPLES = (1, 4, 16)


def write_pyramid(
    path: Path,
    image: Picture,
    mpp: float | None,
    *,
    downsamples: Sequence[int] = DOWNSAMPLES,
    quality: int = 90,
) -> None:
    """Write an image as a slide.

    Parameters
    ----------
    path
        Usually ending ``.svs``.
    image
        uint8 (height, width, 3), RGB; may be a memory map.
    mpp
        µm per px; None leaves it out of the file.
    downsamples
        Of the levels to store, level 0 (1) first.
    quality
        Of the JPEG compression, 1 to 100.
    """
    with tifffile.TiffWriter(path, bigtiff=image.nbytes > 2**31) as tiff:
        for downsample in downsamples:
            height, width = image.shape[0] // downsample, image.shape[1] // downsample
            tiles = (
                _encode(_shrink(tile, downsample), quality)
                for tile in _cut(image, width * downsample, height * downsample, TILE_PX * downsample)
            )
            _write_level(tiff, tiles, width, height, downsample, mpp, image.shape[1], image.shape[0])


def write_mosaic(path: Path, tiles: Sequence[Picture], columns: int, rows: int, mpp: float | None) -> None:
    """Write a slide of any size in little time and memory, by repeating a few tiles.

    Parameters
    ----------
    path
        Usually ending ``.svs``.
    tiles
        uint8 (TILE_PX, TILE_PX, 3) each; tile ``(column + row) % len(tiles)`` lies at (column, row).
    columns, rows
        Size of the slide in tiles.
    mpp
        µm per px; None leaves it out of the file.
    """
    width_l0, height_l0 = columns * TILE_PX, rows * TILE_PX
    with tifffile.TiffWriter(path, bigtiff=True) as tiff:
        for downsample in DOWNSAMPLES:
            encoded = [_encode(_mosaic_tile(tiles, n, downsample), 90) for n in range(len(tiles))]
            width, height = width_l0 // downsample, height_l0 // downsample
            stored = (
                encoded[(column + row) * downsample % len(tiles)]
                for row in range(-(-height // TILE_PX))
                for column in range(-(-width // TILE_PX))
            )
            _write_level(tiff, stored, width, height, downsample, mpp, width_l0, height_l0)


def _mosaic_tile(tiles: Sequence[Picture], first: int, downsample: int) -> Picture:
    """One tile of a lower level: the ``downsample`` x ``downsample`` tiles below it, shrunk."""
    small = [_shrink(tile, downsample) for tile in tiles]
    steps = range(downsample)
    return np.vstack([np.hstack([small[(first + i + j) % len(tiles)] for i in steps]) for j in steps])


def _write_level(
    tiff: tifffile.TiffWriter,
    tiles: Iterator[bytes],
    width: int,
    height: int,
    downsample: int,
    mpp: float | None,
    width_l0: int,
    height_l0: int,
) -> None:
    size = f"{width_l0}x{height_l0} [0,0 {width_l0}x{height_l0}] ({TILE_PX}x{TILE_PX})"
    note = f" -> {width}x{height}" if downsample > 1 else ""
    scale = "" if mpp is None else f"|AppMag = {10 / mpp:.4g}|MPP = {mpp:.6g}"
    tiff.write(
        tiles,
        shape=(height, width, 3),
        dtype=np.uint8,
        tile=(TILE_PX, TILE_PX),
        compression="jpeg",
        photometric="ycbcr",
        subsampling=(2, 2),
        subfiletype=0 if downsample == 1 else 1,
        description=f"Aperio Image Library v12.0.0\r\n{size}{note} JPEG/RGB{scale}",
        metadata=None,
        software=False,
    )


def _cut(image: Picture, width: int, height: int, side: int) -> Iterator[Picture]:
    """Give square tiles row by row; the last ones are filled up by repeating the edge."""
    for y in range(0, height, side):
        for x in range(0, width, side):
            tile = np.asarray(image[y : min(y + side, height), x : min(x + side, width)])
            missing = ((0, side - tile.shape[0]), (0, side - tile.shape[1]), (0, 0))
            yield np.pad(tile, missing, mode="edge")


def _shrink(tile: Picture, factor: int) -> Picture:
    """Average blocks of ``factor`` x ``factor`` px."""
    if factor == 1:
        return tile
    side = tile.shape[0] // factor
    blocks = tile.reshape(side, factor, side, factor, 3).mean(axis=(1, 3), dtype=np.float32)
    shrunk: Picture = np.rint(blocks).astype(np.uint8)
    return shrunk


def _encode(tile: Picture, quality: int) -> bytes:
    return bytes(
        imagecodecs.jpeg8_encode(
            tile, level=quality, colorspace="rgb", outcolorspace="ycbcr", subsampling="420"
        )
    )
