"""Open a slide with whatever library takes it. The only importer of openslide.

Threads may share a handle whose ``shareable`` says so; otherwise open one for each.
"""

from __future__ import annotations

import contextlib
import importlib.util
import math
from pathlib import Path

import openslide
from PIL import Image

from mitoscan.errors import MissingExtraError, MitoscanError, SlideNotFoundError, SlideOpenError
from mitoscan.slide.base import (
    Level,
    Slide,
    SlideInfo,
    content_hash,
    make_levels,
    on_white,
    resolve_mpp,
)
from mitoscan.slide.image_reader import IMAGE_SUFFIXES, OPEN_REMEDY, ImageSlide
from mitoscan.units import Box, Mpp

__all__ = ["Level", "Slide", "SlideInfo", "open_slide"]

_TIATOOLBOX_SUFFIXES = (".dcm", ".jp2", ".ome.tif", ".ome.tiff", ".zarr", ".ngff")

_ONE_FILE_SUFFIXES = (".svs", ".tif", ".tiff", ".ndpi", ".scn", ".svslide", ".bif")
_CACHE_BYTES = 128 * 2**20
"""Decoded tiles that OpenSlide keeps: more than a band of the detector's tiles needs of 40x slides."""
_CHECKED_PX = 10**8
_LEAST_BYTES_A_PX = 1e-4


class _OpenSlideSlide(Slide):
    """A slide that OpenSlide decodes."""

    shareable = True

    def __init__(self, path: Path, *, mpp: float | None, require_mpp: bool) -> None:
        self._handle = openslide.OpenSlide(path)
        try:
            self._handle.set_cache(openslide.OpenSlideCache(_CACHE_BYTES))
            self.info = self._describe(path, mpp, require_mpp)
        except MitoscanError:
            self._handle.close()
            raise

    def _describe(self, path: Path, mpp: float | None, require_mpp: bool) -> SlideInfo:
        handle, properties = self._handle, self._handle.properties
        stored = _stored_mpp(properties.get("openslide.mpp-x"), properties.get("openslide.mpp-y"))
        chosen, source = resolve_mpp(
            path, given=mpp, stored=stored, source="openslide.mpp-x", required=require_mpp
        )
        tiles = [
            tuple(_whole(properties.get(f"openslide.level[{n}].tile-{side}")) for side in ("width", "height"))
            for n in range(handle.level_count)
        ]
        width, height = handle.dimensions
        _refuse_absurd_size(path, width, height)
        return SlideInfo(
            path=path,
            slide_id=path.stem,
            width_l0=width,
            height_l0=height,
            mpp=chosen,
            mpp_source=source,
            vendor=properties.get("openslide.vendor", "unknown"),
            reader="openslide",
            levels=make_levels(handle.level_dimensions, [(w, h) for w, h in tiles]),
            bounds=_bounds(properties),
            objective=properties.get("openslide.objective-power"),
            identity=properties.get("openslide.quickhash-1") or content_hash(path),
        )

    def _region(self, level: int, x: int, y: int, width: int, height: int) -> Image.Image:
        # OpenSlide wants the corner in level-0 px and divides by its own downsample, so use that here.
        stored = self._handle.level_downsamples[level]
        try:
            return on_white(
                self._handle.read_region((round(x * stored), round(y * stored)), level, (width, height))
            )
        except openslide.OpenSlideError as exc:
            raise self._read_error(level, (x, y, width, height), exc) from exc

    def close(self) -> None:
        self._handle.close()


def open_slide(
    path: Path | str,
    *,
    mpp: float | None = None,
    require_mpp: bool = True,
) -> Slide:
    """Open a slide or an image.

    OpenSlide is asked first; what it refuses goes to tiatoolbox (DICOM, JP2, OME-TIFF, NGFF) or, as a plain
    picture with one level (PNG, JPEG, TIFF, WebP, BMP), to Pillow.

    Parameters
    ----------
    path
        File, or the folder of an NGFF slide.
    mpp
        µm per level-0 px along both axes; overrides the file's.
    require_mpp
        False: a slide without a usable pixel size opens too, with ``info.mpp`` None.

    Raises
    ------
    SlideNotFoundError
        No such file.
    MppError
        Pixel size missing or absurd.
    SlideOpenError
        Empty, broken, or of a format that no reader takes.
    MissingExtraError
        The format needs the extra ``mitoscan[tiatoolbox]``, which is absent.
    """
    path = Path(path)
    _check_file(path, mpp)
    try:
        return _OpenSlideSlide(path, mpp=mpp, require_mpp=require_mpp)
    except openslide.OpenSlideUnsupportedFormatError:
        refusal = "not a slide or an image that can be read"
    except openslide.OpenSlideError as exc:
        refusal = f"OpenSlide: {exc}"
    if path.name.lower().endswith(_TIATOOLBOX_SUFFIXES):
        return _open_with_tiatoolbox(path, mpp, require_mpp, refusal)
    if not path.name.lower().endswith(IMAGE_SUFFIXES):
        raise SlideOpenError(refusal, path=path, remedy=OPEN_REMEDY)
    return ImageSlide(path, mpp=mpp, require_mpp=require_mpp, refusal=refusal)


def _check_file(path: Path, mpp: float | None) -> None:
    """Find the faults that need no reader."""
    try:
        with path.open("rb") if path.is_file() else contextlib.nullcontext():
            there = path.exists()
    except (OSError, ValueError) as exc:  # a loop of links, a name too long, no permission
        reason = getattr(exc, "strerror", None) or exc
        raise SlideNotFoundError(f"cannot be read: {reason}", path=path, remedy="Check the path.") from exc
    if not there:
        raise SlideNotFoundError("no such file", path=path, remedy="Check the path.")
    resolve_mpp(path, given=mpp, stored=None, source="", required=False)
    if path.is_dir() and not path.name.lower().endswith(_TIATOOLBOX_SUFFIXES):
        raise SlideOpenError("is a folder, not a slide", path=path, remedy="Name the slide file inside it.")
    if path.is_file() and path.stat().st_size == 0:
        raise SlideOpenError("the file is empty", path=path, remedy="Copy or export it again.")


def _open_with_tiatoolbox(path: Path, mpp: float | None, require_mpp: bool, refusal: str) -> Slide:
    if importlib.util.find_spec("tiatoolbox") is None:
        raise MissingExtraError(
            f"OpenSlide does not take this file ({refusal}); tiatoolbox may, but is not installed",
            path=path,
            remedy='Install it with: pip install "mitoscan[tiatoolbox]"',
        )
    from mitoscan.slide.tiatoolbox_reader import TiatoolboxSlide

    return TiatoolboxSlide(path, mpp=mpp, require_mpp=require_mpp)


def _refuse_absurd_size(path: Path, width: int, height: int) -> None:
    """Refuse a damaged file that claims far more pixels than its bytes can hold, before they are planned for.

    Blank JPEG tiles take about 0.01 bytes a pixel. Formats whose pixels lie in further files are passed over.
    """
    size = path.stat().st_size
    one_file = path.name.lower().endswith(_ONE_FILE_SUFFIXES)
    if one_file and width * height > _CHECKED_PX and size < width * height * _LEAST_BYTES_A_PX:
        raise SlideOpenError(
            f"claims {width} x {height} px but has only {size} bytes", path=path, remedy=OPEN_REMEDY
        )


def _stored_mpp(x: str | None, y: str | None) -> Mpp | None:
    """Read the two properties; a value that is no number counts as nan, so that it is refused by name."""
    if x is None and y is None:
        return None
    return Mpp(_number(x), _number(y))


def _number(text: str | None) -> float:
    try:
        return float(text) if text is not None else math.nan
    except ValueError:
        return math.nan


def _whole(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdigit() else None


def _bounds(properties: openslide.PropertyMap) -> Box | None:  # type: ignore[name-defined]
    values = [properties.get(f"openslide.bounds-{name}") for name in ("x", "y", "width", "height")]
    numbers = [_number(v) for v in values]
    return Box(*numbers) if all(map(math.isfinite, numbers)) else None
