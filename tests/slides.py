"""Slides with known content, in formats that OpenSlide really opens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import imagecodecs
import numpy as np
import tifffile

TISSUE = (205, 130, 185)
GLASS = (243, 242, 244)


def with_marks(width: int, height: int, marks: Sequence[tuple[float, float]], sigma=8.0, mpp=(0.25, 0.25)):
    """Tissue-coloured picture with dark round blobs centred at `marks` (continuous px); round in µm."""
    picture = np.full((height, width, 3), TISSUE, np.uint8)
    sx, sy = sigma * 0.25 / mpp[0], sigma * 0.25 / mpp[1]
    for x, y in marks:
        left, right = max(0, int(x - 5 * sx)), min(width, int(x + 5 * sx))
        top, bottom = max(0, int(y - 5 * sy)), min(height, int(y + 5 * sy))
        dx = (np.arange(left, right) + 0.5 - x) / sx
        dy = (np.arange(top, bottom) + 0.5 - y) / sy
        blob = np.exp(-(dx[None, :] ** 2 + dy[:, None] ** 2) / 2)[..., None]
        part = picture[top:bottom, left:right]
        part[:] = np.rint(part * (1 - blob) + np.array((60, 20, 80)) * blob)
    return picture


def centroid(pixels: np.ndarray) -> tuple[float, float]:
    """Centre of what is darker than tissue, in continuous px."""
    dark = np.clip(TISSUE[1] - 12.0 - pixels[..., 1], 0, None)
    y, x = np.indices(dark.shape) + 0.5
    return float((x * dark).sum() / dark.sum()), float((y * dark).sum() / dark.sum())


def generic_tiff(
    path: Path, picture: np.ndarray, *, mpp: tuple[float, float] | None = None, dpi=None
) -> Path:
    """Tiled TIFF of one level; `mpp` (x, y) goes into its resolution tags, per centimetre."""
    resolution, unit = ((1e4 / mpp[0], 1e4 / mpp[1]), 3) if mpp else ((dpi, dpi), 2) if dpi else (None, None)
    tifffile.imwrite(
        path, picture, tile=(256, 256), compression="jpeg", photometric="rgb",
        compressionargs={"level": 95}, resolution=resolution, resolutionunit=unit, metadata=None,
    )  # fmt: skip
    return path


def with_missing_tiles(path: Path, columns: int, rows: int, missing: set[tuple[int, int]]) -> Path:
    """Aperio slide of 256 px tiles; those missing (column, row) have no bytes: OpenSlide gives alpha 0."""
    tile = bytes(imagecodecs.jpeg8_encode(np.full((256, 256, 3), TISSUE, np.uint8), level=95))
    stored = (b"" if (c, r) in missing else tile for r in range(rows) for c in range(columns))
    size = f"{columns * 256}x{rows * 256}"
    tifffile.imwrite(
        path, stored, shape=(rows * 256, columns * 256, 3), dtype=np.uint8, tile=(256, 256),
        compression="jpeg", photometric="ycbcr", subsampling=(2, 2), metadata=None, software=False,
        description=f"Aperio Image Library v12.0.0\r\n{size} (256x256) JPEG/RGB|AppMag = 40|MPP = 0.25",
    )  # fmt: skip
    return path


def leica(path: Path, picture: np.ndarray, *, canvas: tuple[int, int], offset: tuple[int, int]) -> Path:
    """Leica SCN at 0.25 mpp: `picture` lies at `offset` on a larger canvas, so OpenSlide states bounds."""
    height, width = picture.shape[:2]
    macro = np.full((max(16, canvas[1] // 16), max(16, canvas[0] // 16), 3), 230, np.uint8)
    levels = [macro, picture, picture[: height // 4 * 4 : 4, : width // 4 * 4 : 4]]
    sizes = [(a.shape[1], a.shape[0]) for a in levels]
    namespace = "http://www.leica-microsystems.com/scn/2010/10/01"
    description = (
        f'<?xml version="1.0"?><scn xmlns="{namespace}" uuid="s">'
        f'<collection name="c" uuid="c" sizeX="{canvas[0] * 250}" sizeY="{canvas[1] * 250}">'
        "<barcode></barcode>"
        + _leica_image("macro", sizes[:1], 0, canvas, (0, 0))
        + _leica_image("main", sizes[1:], 1, (width, height), offset)
        + "</collection></scn>"
    )
    with tifffile.TiffWriter(path, bigtiff=True) as tiff:
        for number, level in enumerate(levels):
            tiff.write(
                np.ascontiguousarray(level), tile=(256, 256), compression="jpeg", photometric="rgb",
                compressionargs={"level": 95}, metadata=None, software=False,
                resolution=(40_000, 40_000), resolutionunit=3,
                description=description if number == 0 else None,
            )  # fmt: skip
    return path


def _leica_image(name, sizes, first_ifd, view, offset) -> str:
    dimensions = "".join(
        f'<dimension sizeX="{w}" sizeY="{h}" r="{n}" ifd="{first_ifd + n}"/>'
        for n, (w, h) in enumerate(sizes)
    )
    return (
        f'<image name="{name}" uuid="{name}"><creationDate>2020-01-01T00:00:00.000Z</creationDate>'
        f'<device model="Leica SCN400" version="1"/>'
        f'<pixels sizeX="{sizes[0][0]}" sizeY="{sizes[0][1]}">{dimensions}</pixels>'
        f'<view sizeX="{view[0] * 250}" sizeY="{view[1] * 250}" offsetX="{offset[0] * 250}" '
        f'offsetY="{offset[1] * 250}" spacingZ="0"/><scanSettings><objectiveSettings>'
        f"<objective>{0.6 if name == 'macro' else 40}</objective></objectiveSettings><illuminationSettings>"
        f"<numericalAperture>0.5</numericalAperture><illuminationSource>brightfield</illuminationSource>"
        f"</illuminationSettings></scanSettings></image>"
    )


def ngff(path: Path, picture: np.ndarray, *, mpp: float) -> Path:
    """OME-NGFF 0.4 folder of one level."""
    import zarr

    group = zarr.open_group(path, mode="w", zarr_format=2)
    group.create_array("0", data=picture, chunks=(256, 256, 3))
    axes = [{"name": n, "type": "space", "unit": "micrometer"} for n in "yx"]
    scale = [{"type": "scale", "scale": [mpp, mpp, 1]}]
    group.attrs["multiscales"] = [
        {
            "version": "0.4",
            "axes": [*axes, {"name": "c", "type": "channel"}],
            "datasets": [{"path": "0", "coordinateTransformations": scale}],
        }
    ]
    window = {"start": 0, "end": 255, "min": 0, "max": 255}
    channel = {"family": "linear", "coefficient": 1, "inverted": False, "active": True, "window": window}
    group.attrs["omero"] = {
        "name": "a", "id": 1, "version": "0.4", "rdefs": {"defaultT": 0, "defaultZ": 0, "model": "color"},
        "channels": [channel | {"label": c, "color": "FF0000"} for c in "RGB"],
    }  # fmt: skip
    return path


def paint_tissue(picture: np.ndarray, x: int, y: int, width: int, height: int, seed=0) -> None:
    """Paint an H&E-like ellipse: pink with purple dots, slightly uneven."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:height, 0:width]
    inside = ((columns + 0.5) / width * 2 - 1) ** 2 + ((rows + 0.5) / height * 2 - 1) ** 2 <= 1
    eosin = np.array((225, 150, 195)) + rng.normal(0, 8, (height, width, 3))
    nuclei = rng.random((height, width)) < 0.15
    eosin[nuclei] = (110, 60, 140)
    part = picture[y : y + height, x : x + width]
    part[inside] = np.clip(eosin, 0, 255).astype(np.uint8)[inside]
