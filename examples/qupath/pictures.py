"""Draw the pictures of README.md beside this file, from a synthetic slide and mitoscan's own colours.

python examples/qupath/pictures.py [FOLDER]
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

import mitoscan
from mitoscan.demo import write_demo_slide
from mitoscan.report.colours import COLOURS
from mitoscan.report.geojson import FIGURE_RADIUS_UM

GREY, MIDDLE = (120, 120, 120), (225, 225, 225)
WIDTH_PX = 640

Colour = tuple[int, ...]
Figure = dict[Any, Any]


def by_class(figure: Figure) -> Colour:
    """Give the colour of AMF or NMF."""
    return COLOURS[figure["label"]]


def by_score(figure: Figure) -> Colour:
    """Give the colour that load_results.groovy gives: blue 0, grey the middle, orange 1."""
    p = figure["p_atypical"]
    ends = (COLOURS["NMF"], MIDDLE) if p < 0.5 else (MIDDLE, COLOURS["AMF"])
    start, end = np.array(ends)
    return tuple(int(v) for v in np.round(start + (end - start) * ((2 * p) % 1 if p < 1 else 1)))


def picture(pixels: np.ndarray, figures: list[Figure], colour: Callable[[Figure], Colour]) -> Image.Image:
    """Draw the figures' circles on a slide of 0.25 µm per pixel."""
    image = Image.fromarray(pixels)
    draw = ImageDraw.Draw(image)
    radius = FIGURE_RADIUS_UM / 0.25
    for figure in figures:
        x, y = figure["x_l0"], figure["y_l0"]
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), outline=colour(figure), width=9)
    return image.resize((WIDTH_PX, round(WIDTH_PX * image.height / image.width)), Image.Resampling.LANCZOS)


def beside(left: Image.Image, right: Image.Image) -> Image.Image:
    """Put two pictures side by side."""
    both = Image.new("RGB", (left.width + right.width + 12, left.height), (255, 255, 255))
    both.paste(left, (0, 0))
    both.paste(right, (left.width + 12, 0))
    return both


def main() -> None:
    """Write colours.png and corrections.png."""
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent
    with tempfile.TemporaryDirectory() as folder:
        slide = Path(folder) / "synthetic.svs"
        write_demo_slide(slide, seed=1, width_mm=0.4, height_mm=0.28, figures=8)
        result = mitoscan.scan_slide(slide, mitoscan.ScanConfig(hotspot_mm2=0.05))
    pixels = np.asarray(
        Image.fromarray(result.thumbnail).resize((result.info.width_l0, result.info.height_l0))
    )
    figures = result.findings[result.findings["is_mf"]].to_dict("records")
    classes = picture(pixels, figures, by_class)
    beside(classes, picture(pixels, figures, by_score)).save(out / "colours.png", optimize=True)

    # The reviewer turns the first AMF into an NMF, rejects the first NMF and draws a figure of her own.
    corrected = [dict(figure) for figure in figures]
    next(f for f in corrected if f["label"] == "AMF")["label"] = "was AMF"
    next(f for f in corrected if f["label"] == "NMF")["label"] = "not MF"
    corrected.append(
        {"x_l0": result.info.width_l0 * 0.261, "y_l0": result.info.height_l0 * 0.775, "label": "AMF"}
    )
    colours = COLOURS | {"not MF": GREY, "was AMF": COLOURS["NMF"]}
    after = picture(pixels, corrected, lambda figure: colours[figure["label"]])
    beside(classes, after).save(out / "corrections.png", optimize=True)


if __name__ == "__main__":
    main()
