"""Where the tissue is: a mask at about 8 µm/px, as polygons in level-0 px.

Haematoxylin and eosin both absorb green more than red or blue, alone or mixed; glass, dust, black borders
and black pen absorb all three alike, green pen absorbs green least, blue pen red most, red pen blue as much
as green. So tissue is told by its *magenta density*, the optical density of green above that of the least
absorbed channel, and pens by the order of the channels, not by darkness.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, TypeAlias

import contourpy
import numpy as np
import numpy.typing as npt
import shapely
from scipy import ndimage
from shapely import MultiPolygon, Polygon, affinity

from mitoscan.errors import NoTissueError
from mitoscan.slide.base import Slide
from mitoscan.units import Box, Mpp

Picture: TypeAlias = npt.NDArray[np.uint8]
Mask: TypeAlias = npt.NDArray[np.bool_]
Plane: TypeAlias = npt.NDArray[np.float32]

MASK_MPP = 8.0
RIM_UM = 8.0
"""The outline is widened by so much, so that figures at the tissue's edge are not lost. Smoothing has widened
it by about as much already; more would only dilute the densities of small pieces."""
_GAP_UM = 48.0
"""Narrower gaps between pieces of tissue are closed."""
_MAX_MASK_PX = 16_000_000
_BLOCK_PX = 1024
_MIN_TISSUE_MM2 = 0.005
"""Smaller specks are debris. A 0.3 mm biopsy core has 0.07 mm²."""
_MAX_HOLE_MM2 = 0.02
"""Smaller holes (vessels, glands, fat cells) are filled: too small to save tiles."""
_THRESHOLD = 0.03
"""Magenta density of the palest tissue. Fixed, because it is relative to the slide's own glass, and because
Otsu's threshold parts tissue from tissue on slides without glass and noise from noise without tissue."""
_BLACK_DENSITY = 0.5
"""Optical density of every channel from which something grey is ink or padding; dust has less."""
_PEN_EDGE_PX = 2
"""Ink fades out at its edge, where its hue is lost."""


class Densities(NamedTuple):
    """What a picture's pixels absorb, glass taken off, each (height, width) and smoothed a little."""

    mean: Plane
    """Optical density (base 10), mean of the three channels."""
    magenta: Plane
    """That of green above that of the least absorbed channel."""
    pen: Mask
    """What has a pen's hue or is grey: ink, but dust and shadows too. No tissue."""
    ink: Mask
    """Only what must be ink: coloured pens, and what is nearly black."""


@dataclass(frozen=True)
class CoarseView:
    """The whole slide at mask resolution."""

    picture: Picture
    mpp: float

    @cached_property
    def densities(self) -> Densities:
        """What it absorbs."""
        return densities(self.picture)


def coarse_view(slide: Slide) -> CoarseView:
    """Read the whole slide at about `MASK_MPP`.

    Raises
    ------
    MppError
        The slide's pixel size is not known.
    """
    info, mpp = slide.info, slide.info.known_mpp()
    side_um2 = info.width_l0 * info.height_l0 * mpp.mm2_per_px * 1e6
    mask_mpp = max(MASK_MPP, math.sqrt(side_um2 / _MAX_MASK_PX), min(mpp.x, mpp.y))
    return CoarseView(_picture(slide, mask_mpp), mask_mpp)


def find_tissue(slide: Slide, view: CoarseView | None = None) -> MultiPolygon:
    """Outline the tissue of an H&E slide.

    Parameters
    ----------
    slide
        The slide.
    view
        Its coarse view, where it was read already.

    Returns
    -------
    Valid polygons with holes, in level-0 px, within the slide. They enclose all tissue with a rim of about
    twice `RIM_UM` and small holes filled, so their area is that of the pieces of tissue as the eye outlines
    them, not of stained pixels.

    Raises
    ------
    MppError
        The slide's pixel size is not known.
    NoTissueError
        No tissue is found.
    """
    info, view = slide.info, view or coarse_view(slide)
    mask = _tissue_mask(view.densities, view.mpp)
    frame = info.frame(view.mpp)
    whole = shapely.box(0, 0, info.width_l0, info.height_l0)
    outlines = affinity.scale(outline(mask), frame.l0_per_px_x, frame.l0_per_px_y, origin=(0, 0))
    area = polygons_of(shapely.intersection(outlines, whole))
    if area.is_empty:
        side_mm2 = info.width_l0 * info.height_l0 * info.known_mpp().mm2_per_px
        raise NoTissueError(
            f"no tissue found in {side_mm2:.3g} mm²",
            path=info.path,
            remedy="Scan everything with --no-tissue-mask, or outline the tissue with --roi.",
        )
    return area


def area_mm2(area: MultiPolygon, mpp: Mpp) -> float:
    """Area in mm² of polygons in level-0 px."""
    return float(area.area) * mpp.mm2_per_px


def _picture(slide: Slide, mask_mpp: float) -> Picture:
    """Read the whole slide at ``mask_mpp``, block by block."""
    frame = slide.info.frame(mask_mpp)
    width, height = frame.size_of(slide.info.width_l0, slide.info.height_l0)
    picture = np.empty((height, width, 3), np.uint8)
    for y in range(0, height, _BLOCK_PX):
        for x in range(0, width, _BLOCK_PX):
            block = picture[y : y + _BLOCK_PX, x : x + _BLOCK_PX]
            rows, columns = block.shape[:2]
            box: Box = frame.box_to_l0(x, y, columns, rows)
            block[:] = slide.read(box, columns, rows)
    return picture


def tissue_mask(picture: Picture, mpp: float) -> Mask:
    """Mark tissue.

    Parameters
    ----------
    picture
        uint8 (height, width, 3), RGB.
    mpp
        Its pixel size, µm.

    Returns
    -------
    bool (height, width).
    """
    return _tissue_mask(densities(picture), mpp)


def _tissue_mask(found: Densities, mpp: float) -> Mask:
    px_mm2 = mpp * mpp * 1e-6
    mask = found.magenta > _THRESHOLD
    mask &= ~_disk_dilate(found.pen, _PEN_EDGE_PX)
    mask = _close(mask, max(1, round(_GAP_UM / 2 / mpp)))
    mask = _drop_small(mask, _MIN_TISSUE_MM2 / px_mm2)
    mask = _disk_dilate(mask, max(1, round(RIM_UM / mpp)))
    return ~_drop_small(~mask, _MAX_HOLE_MM2 / px_mm2)


def densities(picture: Picture) -> Densities:
    """Give what the pixels of ``picture``, uint8 (height, width, 3), absorb."""
    table = -np.log10(np.maximum(np.arange(256, dtype=np.float32), 1) / 255)
    glass = _glass(picture)
    red, green, blue = (
        ndimage.gaussian_filter(table[picture[..., c]], 1.0) - table[glass[c]] for c in range(3)
    )
    magenta = green - np.minimum(red, blue)
    # Bounds with a margin to real tissue: in the fields and slides looked at, in all but 0.5 % of the dense
    # pixels of each, red < 0.97 green, blue < 0.86 green and magenta > 0.25 green.
    blue_pen = red > 1.1 * green
    red_pen = (blue > 0.85 * green) & (red < 0.3 * green)
    grey = magenta < 0.12 * green
    dense = np.maximum(np.maximum(red, green), blue) > 0.1
    coloured = dense & (blue_pen | red_pen)
    black = grey & (np.minimum(np.minimum(red, green), blue) > _BLACK_DENSITY)
    pen = coloured | (dense & grey)
    return Densities((red + green + blue) / 3, magenta, pen, coloured | black)


def _glass(picture: Picture) -> tuple[int, int, int]:
    """Colour of the empty glass: the median of bright, nearly grey pixels; white where there are few."""
    sample = picture[::2, ::2].reshape(-1, 3)
    high, low = sample.max(axis=1), sample.min(axis=1)
    bright = (high - low < 24) & (low >= 160)
    if np.count_nonzero(bright) < 0.02 * len(sample):
        return 255, 255, 255
    red, green, blue = (int(v) for v in np.median(sample[bright], axis=0))
    return red, green, blue


def _disk_dilate(mask: Mask, radius: int) -> Mask:
    """Dilate by a disk, at a cost that does not grow with its radius."""
    if not mask.any():
        return mask
    grown: Mask = ndimage.distance_transform_edt(~mask) <= radius
    return grown


def _close(mask: Mask, radius: int) -> Mask:
    """Close gaps up to twice the radius, without eating away tissue at the slide's edge."""
    padded = np.pad(mask, radius + 1)
    grown = _disk_dilate(padded, radius)
    closed = ~_disk_dilate(~grown, radius)
    inner: Mask = closed[radius + 1 : -radius - 1, radius + 1 : -radius - 1] | mask
    return inner


def _drop_small(mask: Mask, pixels: float) -> Mask:
    labels, _ = ndimage.label(mask)
    sizes = np.bincount(labels.ravel())
    keep = sizes >= pixels
    keep[0] = False
    kept: Mask = keep[labels]
    return kept


def outline(mask: Mask) -> MultiPolygon:
    """Turn a mask into valid polygons with holes, in its px; they reach the mask's edge where it does."""
    # One pixel more on each side keeps the corners square where tissue leaves the picture.
    padded = np.pad(np.pad(mask, 1, mode="edge"), 1).astype(np.float32)
    centres = np.arange(max(padded.shape)) - 1.5
    contours = contourpy.contour_generator(
        x=centres[: padded.shape[1]],
        y=centres[: padded.shape[0]],
        z=padded,
        fill_type=contourpy.FillType.OuterOffset,
    ).filled(0.5, 2)
    pieces = []
    for points, offsets in zip(*contours, strict=True):
        rings = [points[a:b] for a, b in itertools.pairwise(offsets)]
        pieces.append(Polygon(rings[0], [r for r in rings[1:] if len(r) >= 4]))
    simple = shapely.simplify(shapely.union_all(pieces), 0.5)
    return polygons_of(shapely.intersection(simple, shapely.box(0, 0, mask.shape[1], mask.shape[0])))


def polygons_of(shape: shapely.Geometry) -> MultiPolygon:
    """Keep the areas of any shape, made valid; lines and points, which have none, fall away."""
    parts = shapely.get_parts(shapely.make_valid(shape)).tolist()
    while any(p.geom_type == "GeometryCollection" for p in parts):
        parts = [q for p in parts for q in shapely.get_parts(p)]
    areas = [q for p in parts for q in shapely.get_parts(p) if isinstance(q, Polygon) and q.area > 0]
    return MultiPolygon(areas)
