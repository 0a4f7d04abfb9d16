"""The overview picture: the slide with the area scanned, the figures and the hot spot, and the numbers."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import shapely
from PIL import Image, ImageDraw, ImageFont
from shapely import Polygon

from mitoscan.report.colours import COLOURS
from mitoscan.scan.findings import AMF, NMF
from mitoscan.scan.result import SlideResult
from mitoscan.scan.score import SlideSummary

_MAX_WIDTH, _MAX_HEIGHT = 1600, 1200
_MIN_WIDTH = 900
"""Of the page: narrow slides stand centred on it, so that title and legend fit."""
_MARGIN = 24
_OVERSAMPLE = 2
_INK, _MUTED, _PAPER, _WHITE = (25, 25, 25), (95, 95, 95), (255, 255, 255), (255, 255, 255)
_TITLE_PX, _TEXT_PX, _LINE_PX = 26, 18, 27

_Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
_Points = npt.NDArray[np.float64]


@dataclass(frozen=True)
class _Scene:
    """A drawing on the enlarged thumbnail; ``scale_x`` and ``scale_y`` are its px per level-0 px."""

    draw: ImageDraw.ImageDraw
    scale_x: float
    scale_y: float

    def to_px(self, points: _Points) -> list[tuple[float, float]]:
        return [(x * self.scale_x, y * self.scale_y) for x, y in points]


def overview(result: SlideResult) -> Image.Image:
    """Draw the overview of a result, RGB; at most 1600 px wide, so it fits a page and a mail."""
    picture = _annotated(result)
    lines = _wrapped(_numbers(result.summary), max(picture.width, _MIN_WIDTH))
    header = _MARGIN + _TITLE_PX + 12 + len(lines) * _LINE_PX + 12
    footer = 2 * _LINE_PX + _MARGIN
    width = max(picture.width, _MIN_WIDTH) + 2 * _MARGIN
    page = Image.new("RGB", (width, header + picture.height + footer), _PAPER)
    page.paste(picture, ((width - picture.width) // 2, header))
    draw = ImageDraw.Draw(page)
    title = _shortened(_latin(result.summary.slide_id), _font(_TITLE_PX), width - 2 * _MARGIN)
    draw.text((_MARGIN, _MARGIN - 4), title, font=_font(_TITLE_PX), fill=_INK)
    for number, line in enumerate(lines):
        _text(draw, (_MARGIN, _MARGIN + _TITLE_PX + 12 + number * _LINE_PX), line, _MUTED)
    middle = header + picture.height + _LINE_PX
    _legend(draw, result, _MARGIN, middle)
    _scale_bar(draw, result, width - _MARGIN, middle, picture.width / result.info.width_l0)
    return page


def _annotated(result: SlideResult) -> Image.Image:
    """Draw tissue, hot spot and figures on the thumbnail, at twice the size for smooth edges."""
    info = result.info
    mpp = info.known_mpp()
    width_um, height_um = info.width_l0 * mpp.x, info.height_l0 * mpp.y
    scale = min(_MAX_WIDTH / width_um, _MAX_HEIGHT / height_um)
    size = max(1, round(width_um * scale)), max(1, round(height_um * scale))
    large = size[0] * _OVERSAMPLE, size[1] * _OVERSAMPLE
    picture = Image.fromarray(result.thumbnail).convert("RGB").resize(large, Image.Resampling.BICUBIC)
    scene = _Scene(ImageDraw.Draw(picture), large[0] / info.width_l0, large[1] / info.height_l0)
    _draw_tissue(scene, result)
    _draw_figures(scene, result, size[0] * size[1])
    _draw_hotspot(scene, result)
    scene.draw.rectangle((0, 0, large[0] - 1, large[1] - 1), outline=(190, 190, 190), width=_OVERSAMPLE)
    return picture.reduce(_OVERSAMPLE)


def _draw_tissue(scene: _Scene, result: SlideResult) -> None:
    for polygon in shapely.get_parts(result.tissue):
        if isinstance(polygon, Polygon):
            for ring in (polygon.exterior, *polygon.interiors):
                points = scene.to_px(np.asarray(ring.coords))
                scene.draw.line(points, fill=COLOURS["Tissue"], width=2 * _OVERSAMPLE, joint="curve")


def _draw_figures(scene: _Scene, result: SlideResult, area_px: int) -> None:
    """Mark the figures, AMF last so that they lie on top; the more there are, the smaller."""
    figures = result.findings[result.findings["is_mf"]]
    radius = _marker_radius(len(figures), area_px) * _OVERSAMPLE
    for label, mark in _MARKS.items():
        chosen = figures[figures["label"] == label]
        for x, y in scene.to_px(chosen[["x_l0", "y_l0"]].to_numpy()):
            mark(scene.draw, x, y, radius)


def _marker_radius(count: int, area_px: int) -> float:
    """Choose a radius, px of the page, at which evenly spread markers would cover a fifth of the picture."""
    return float(np.clip(math.sqrt(area_px / 5 / math.pi / max(count, 1)), 3.0, 6.5))


def _disc(draw: ImageDraw.ImageDraw, x: float, y: float, radius: float) -> None:
    rim = max(2, round(radius / 4))
    box = (x - radius, y - radius, x + radius, y + radius)
    draw.ellipse(box, fill=COLOURS[NMF], outline=_WHITE, width=rim)


def _diamond(draw: ImageDraw.ImageDraw, x: float, y: float, radius: float) -> None:
    for size, colour in ((radius * 1.65, _WHITE), (radius * 1.2, COLOURS[AMF])):
        draw.polygon([(x - size, y), (x, y - size), (x + size, y), (x, y + size)], fill=colour)


_MARKS: dict[str, Callable[[ImageDraw.ImageDraw, float, float, float], None]] = {NMF: _disc, AMF: _diamond}
"""Shape as well as colour tells them apart; in drawing order."""


def _draw_hotspot(scene: _Scene, result: SlideResult) -> None:
    if result.hotspot is None:
        return
    box = result.hotspot.box
    corners = scene.to_px(np.array([[box.x, box.y], [box.right, box.bottom]]))
    (left, top), (right, bottom) = corners
    for colour, width in ((_WHITE, 5 * _OVERSAMPLE), (COLOURS["Hot spot"], 3 * _OVERSAMPLE)):
        grow = (width - 3 * _OVERSAMPLE) // 2
        outer = (left - grow, top - grow, right + grow, bottom + grow)
        scene.draw.rectangle(outer, outline=colour, width=width)


def _numbers(summary: SlideSummary) -> list[str]:
    """Say the result in short pieces; they are joined to lines that fit the page."""
    density = _range(summary.mf_per_mm2_low, summary.mf_per_mm2_high)
    pieces = [f"{summary.mf_count} MF, {_number(summary.mf_per_mm2)} per mm² (95% CI {density})"]
    if summary.amf_rate is not None:
        rate = _range(summary.amf_rate_low, summary.amf_rate_high, percent=True)
        pieces.append(f"AMF rate {summary.amf_rate:.0%} ({rate})")
    if summary.amf_rate_corrected is not None:
        rate = _range(summary.amf_rate_corrected_low, summary.amf_rate_corrected_high, percent=True)
        pieces.append(f"corrected {summary.amf_rate_corrected:.0%} ({rate})")
    if summary.amf_rate_flag:
        pieces.append(summary.amf_rate_flag)
    return pieces


def _range(low: float | None, high: float | None, *, percent: bool = False) -> str:
    low, high = low or 0.0, high or 0.0
    return f"{low:.0%} to {high:.0%}" if percent else f"{_number(low)} to {_number(high)}"


def _number(value: float) -> str:
    """Round to three digits, without the exponent that this gives large numbers."""
    return f"{float(f'{value:.3g}'):g}"


def _wrapped(pieces: Sequence[str], width: int) -> list[str]:
    lines: list[str] = []
    for piece in pieces:
        longer = f"{lines[-1]}  ·  {piece}" if lines else piece
        if lines and _font(_TEXT_PX).getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(piece)
    return lines


def _legend(draw: ImageDraw.ImageDraw, result: SlideResult, x: float, middle: float) -> None:
    summary = result.summary
    for label, count in ((AMF, summary.amf_count), (NMF, summary.nmf_count)):
        _MARKS[label](draw, x + 7, middle, 7)
        x = _text(draw, (x + 22, middle - 11), f"{label} {count}", _INK) + 28
    if result.hotspot is not None:
        draw.rectangle((x, middle - 7, x + 18, middle + 7), outline=COLOURS["Hot spot"], width=3)
        text = f"hot spot {result.hotspot.count} MF in {_number(result.hotspot.area_mm2)} mm²"
        x = _text(draw, (x + 27, middle - 11), text, _INK) + 28
    draw.line((x, middle, x + 18, middle), fill=COLOURS["Tissue"], width=3)
    _text(draw, (x + 27, middle - 11), f"scanned {_number(summary.tissue_mm2)} mm²", _INK)


def _scale_bar(
    draw: ImageDraw.ImageDraw, result: SlideResult, right: float, middle: float, px_per_l0: float
) -> None:
    """Draw a bar of 1, 2 or 5 × 10ⁿ mm, at most 160 px long."""
    px_per_mm = px_per_l0 / result.info.known_mpp().x * 1000
    longest = 160 / px_per_mm
    power = 10.0 ** math.floor(math.log10(longest))
    length = max(step * power for step in (1, 2, 5) if step * power <= longest * (1 + 1e-9))
    text = f"{length:g} mm"
    start = right - length * px_per_mm
    draw.rectangle((start, middle - 2, right, middle + 2), fill=_INK)
    font = _font(_TEXT_PX)
    draw.text((start - font.getlength(text) - 10, middle - 11), text, font=font, fill=_INK)


def _text(
    draw: ImageDraw.ImageDraw, at: tuple[float, float], text: str, colour: tuple[int, int, int]
) -> float:
    """Write a line and give its right end; Pillow's own font has no ², so 2 is raised instead."""
    x, y = at
    for number, part in enumerate(text.split("²")):
        if number:
            small = _font(round(_TEXT_PX * 0.65))
            draw.text((x, y - 1), "2", font=small, fill=colour)
            x += small.getlength("2")
        draw.text((x, y), part, font=_font(_TEXT_PX), fill=colour)
        x += _font(_TEXT_PX).getlength(part)
    return x


def _font(size: int) -> _Font:
    return ImageFont.load_default(size=size)


def _latin(text: str) -> str:
    """Replace what Pillow's own font cannot draw: accents are dropped, other scripts become ``?``."""
    plain = "".join(
        c for c in unicodedata.normalize("NFKD", text.replace("ß", "ss")) if not unicodedata.combining(c)
    )
    return plain.encode("ascii", "replace").decode()


def _shortened(text: str, font: _Font, width: float) -> str:
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"
