"""Plain pictures (PNG, JPEG, TIFF…) as slides of one level, through Pillow."""

from __future__ import annotations

import warnings
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from mitoscan.errors import SlideOpenError
from mitoscan.slide.base import Slide, SlideInfo, content_hash, make_levels, on_white, resolve_mpp

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp", ".bmp")
OPEN_REMEDY = "Check that the file is whole and is a slide or an image."


class ImageSlide(Slide):
    """A picture that Pillow decodes. Its dpi entry is no pixel size: most programs write a default there.

    Parameters
    ----------
    path, mpp, require_mpp
        As in `open_slide`.
    refusal
        Why no slide reader took the file, for the error message when Pillow does not either.

    Raises
    ------
    SlideOpenError
        When Pillow cannot read it, it is too large to decode whole, or its pixels are not colours.
    MppError
        When ``mpp`` is needed and not given.
    """

    def __init__(self, path: Path, *, mpp: float | None, require_mpp: bool, refusal: str) -> None:
        width, height, kind = _header(path, refusal)
        chosen, source = resolve_mpp(path, given=mpp, stored=None, source="", required=require_mpp)
        self.info = SlideInfo(
            path=path,
            slide_id=path.stem,
            width_l0=width,
            height_l0=height,
            mpp=chosen,
            mpp_source=source,
            vendor=kind,
            reader="image",
            levels=make_levels([(width, height)]),
            bounds=None,
            objective=None,
            identity=content_hash(path),
        )

    def _region(self, level: int, x: int, y: int, width: int, height: int) -> Image.Image:
        try:
            stat = self.info.path.stat()
            picture = _decoded(self.info.path, stat.st_mtime_ns, stat.st_size)
        except (OSError, SyntaxError, ValueError) as exc:
            raise self._read_error(level, (x, y, width, height), exc) from exc
        return picture.crop((x, y, x + width, y + height))

    def close(self) -> None:
        """Nothing is held open."""


def _header(path: Path, refusal: str) -> tuple[int, int, str]:
    """Read (width, height, format) and refuse what cannot be used."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as picture:
                (width, height), mode, kind = picture.size, picture.mode, picture.format or "image"
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as exc:
        raise SlideOpenError(
            f"too large for a plain image, which is decoded whole: {exc}",
            path=path,
            remedy="Convert it to a tiled TIFF, e.g.: vips tiffsave IN OUT.tif --tile --pyramid",
        ) from exc
    except (UnidentifiedImageError, SyntaxError, ValueError, OSError) as exc:
        raise SlideOpenError(refusal, path=path, remedy=OPEN_REMEDY) from exc
    if mode in {"I", "F"}:
        raise SlideOpenError(
            f"pixels of mode {mode} are numbers, not colours", path=path, remedy="Export it as 8-bit RGB."
        )
    return width, height, kind.lower()


@lru_cache(maxsize=1)
def _decoded(path: Path, mtime_ns: int, size: int) -> Image.Image:  # noqa: ARG001 (they key the cache)
    """Decode once for all threads that read the same picture."""
    with Image.open(path) as picture:
        if picture.mode.startswith("I;16"):
            return Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8)).convert("RGB")
        if "transparency" in picture.info or picture.mode in {"LA", "PA", "La", "RGBa"}:
            return on_white(picture.convert("RGBA"))
        picture.load()
        return on_white(picture)
