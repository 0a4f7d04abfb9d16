"""Adapter to tiatoolbox's readers (DICOM, JP2, OME-TIFF, NGFF).

Needs the extra ``mitoscan[tiatoolbox]``. The import takes seconds, so it happens here, in the module that is
imported only for such a slide.
"""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mitoscan.errors import SlideOpenError
from mitoscan.slide.base import Slide, SlideInfo, content_hash, make_levels, on_white, resolve_mpp
from mitoscan.units import Mpp


def _import_reader() -> Any:
    """Import WSIReader; tiatoolbox sets up the root logger and warns on import, which is undone here."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from tiatoolbox.wsicore.wsireader import WSIReader
    root.handlers[:] = handlers
    root.setLevel(level)
    WSIReader._estimate_mpp_objective_power = staticmethod(_as_stated)
    return WSIReader


def _as_stated(objective_power: Any, mpp: Any) -> tuple[Any, Any]:
    """Stand in for tiatoolbox's guess of the pixel size from the magnification: keep what the file says."""
    return objective_power, mpp


class TiatoolboxSlide(Slide):
    """A slide that one of tiatoolbox's readers decodes.

    Parameters
    ----------
    path, mpp, require_mpp
        As in `mitoscan.slide.reader.open_slide`.

    Raises
    ------
    SlideOpenError
        When tiatoolbox does not take the file either.
    MppError
        Pixel size missing or absurd.
    """

    def __init__(self, path: Path, *, mpp: float | None, require_mpp: bool) -> None:
        reader_class = _import_reader()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self._reader = reader_class.open(path)
                meta = self._reader.info
        # Its readers raise whatever the library behind them raises; no common base is documented.
        except Exception as exc:
            raise SlideOpenError(
                f"neither OpenSlide nor tiatoolbox takes this file ({type(exc).__name__}: {exc})",
                path=path,
                remedy="Check that it is whole, or convert it to a tiled TIFF.",
            ) from exc
        stored = None if meta.mpp is None else Mpp(*(float(v) for v in meta.mpp))
        chosen, source = resolve_mpp(
            path,
            given=mpp,
            stored=stored,
            source=f"tiatoolbox {type(self._reader).__name__}",
            required=require_mpp,
        )
        width, height = (int(v) for v in meta.slide_dimensions)
        # Its NGFF reader knows the downsample of level 0 only, and reads no other level rightly.
        sizes = [(int(w), int(h)) for w, h in meta.level_dimensions[: len(meta.level_downsamples)]]
        self.info = SlideInfo(
            path=path,
            slide_id=path.stem,
            width_l0=width,
            height_l0=height,
            mpp=chosen,
            mpp_source=source,
            vendor=str(meta.vendor or "unknown"),
            reader="tiatoolbox",
            levels=make_levels(sizes),
            bounds=None,
            objective=None if meta.objective_power is None else f"{meta.objective_power:g}",
            identity=content_hash(path),
        )

    def _region(self, level: int, x: int, y: int, width: int, height: int) -> Image.Image:
        stored = float(self._reader.info.level_downsamples[level])
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                pixels = self._reader.read_rect(
                    (round(x * stored), round(y * stored)),
                    (width, height),
                    resolution=level,
                    units="level",
                    coord_space="baseline",
                )
        except Exception as exc:
            raise self._read_error(level, (x, y, width, height), exc) from exc
        return on_white(Image.fromarray(np.asarray(pixels)))

    def close(self) -> None:
        """Let go of the reader; tiatoolbox has no common way to close one."""
        del self._reader
