"""Small pictures of the figures, for the eye: more context than the classifier sees, and only so many."""

from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt
import pandas as pd
from PIL import Image

from mitoscan.scan.readers import ReaderPool, Region
from mitoscan.slide.base import SlideInfo

CONTEXT_UM = 64.0
"""Side of a picture; the classifier's 32 µm are its middle."""
CONTEXT_PX = 256
"""The same in px: 0.25 µm each, which is what the classifier looks at."""
MAX_FIGURES = 2000
"""Mitotic figures with a picture; beyond that those of the highest p_mitosis."""
MAX_BELOW = 200
"""Classified findings below the operating point with a picture, those of the highest p_mitosis: what a
reviewer looks through for missed figures, and what a lower threshold makes figures of."""
_JPEG_QUALITY = 85
_ROW_PX = 1024
"""Pictures are read in rows of this height."""


def choose(findings: pd.DataFrame) -> pd.DataFrame:
    """Give the rows of the findings that get a picture: figures first, each group by falling p_mitosis."""
    ranked = findings.sort_values("p_mitosis", ascending=False, kind="stable")
    figures = ranked[ranked["is_mf"]].head(MAX_FIGURES)
    below = ranked[~ranked["is_mf"] & ranked["p_atypical"].notna()].head(MAX_BELOW)
    return pd.concat([figures, below])


def read_crops(findings: pd.DataFrame, info: SlideInfo, pool: ReaderPool) -> dict[str, bytes]:
    """Read the pictures of the findings that ``choose`` names.

    Parameters
    ----------
    findings
        The slide's findings table.
    info
        The slide.
    pool
        Reads its pixels.

    Returns
    -------
    dict
        Finding id → JPEG of ``CONTEXT_PX`` px a side with the finding in the middle, in the order of
        ``choose``; what lies beyond the slide is white.
    """
    frame = info.frame(CONTEXT_UM / CONTEXT_PX)
    chosen = choose(findings)
    x, y = frame.from_l0(chosen["x_l0"].to_numpy(), chosen["y_l0"].to_numpy())
    # Whole px, like the classifier's crops: stored pixels are copied where they have the same size.
    left, top = np.round(x) - CONTEXT_PX // 2, np.round(y) - CONTEXT_PX // 2
    # Neighbours one after the other, because they share stored tiles.
    order = np.lexsort((left, top // _ROW_PX))
    pixels = pool.read(
        Region(frame.box_to_l0(left[i], top[i], CONTEXT_PX, CONTEXT_PX), CONTEXT_PX) for i in order
    )
    pictures = {int(i): jpeg(image) for i, image in zip(order, pixels, strict=True)}
    return {name: pictures[i] for i, name in enumerate(chosen["id"])}


def jpeg(image: npt.NDArray[np.uint8], quality: int = _JPEG_QUALITY) -> bytes:
    """Encode uint8 (height, width, 3) RGB."""
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, format="JPEG", quality=quality, optimize=True)
    return stream.getvalue()
