"""A picture in memory as a slide, so that arrays go the same way as files."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from mitoscan.slide.base import Slide, SlideInfo, make_levels, resolve_mpp


class ArraySlide(Slide):
    """An image in memory.

    Parameters
    ----------
    image
        uint8 (H, W, 3), RGB.
    mpp
        µm per pixel.

    Raises
    ------
    ValueError
        When the array is not such an image.
    MppError
        When ``mpp`` is absurd.
    """

    def __init__(self, image: npt.NDArray[np.uint8], mpp: float) -> None:
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
            raise ValueError(f"expected uint8 (H, W, 3), got {image.dtype} {image.shape}")
        path = Path("<array>")
        chosen, source = resolve_mpp(path, given=mpp, stored=None, source="", required=True)
        self._picture = Image.fromarray(image)
        self.info = SlideInfo(
            path=path,
            slide_id="array",
            width_l0=image.shape[1],
            height_l0=image.shape[0],
            mpp=chosen,
            mpp_source=source,
            vendor="none",
            reader="array",
            levels=make_levels([(image.shape[1], image.shape[0])]),
            bounds=None,
            objective=None,
            identity=hashlib.sha256(image.tobytes()).hexdigest(),
        )

    def _region(self, level: int, x: int, y: int, width: int, height: int) -> Image.Image:  # noqa: ARG002
        return self._picture.crop((x, y, x + width, y + height))

    def close(self) -> None:
        """Nothing is held open."""
