"""Quality of a slide: focus, pen marks, folds, and whether it looks like the training data.

`QualityCheck` listens while a slide goes through the pipeline; nothing is read for it alone. What it gives,
`Quality`, holds numbers; the flags are sentences made from them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import shapely
from scipy import ndimage
from shapely import MultiPolygon

from mitoscan.models.card import FocusReference, LikenessReference, ModelCard
from mitoscan.models.likeness import Likeness
from mitoscan.scan.candidates import FirstStage
from mitoscan.scan.focus import FocusMeter
from mitoscan.slide.base import SlideInfo
from mitoscan.slide.tiling import Tile
from mitoscan.slide.tissue import CoarseView, Mask

Float = npt.NDArray[np.float64]

UPSAMPLING_TOLERANCE = 1.15
"""A slide whose pixels are larger than the detector's by more than this factor is flagged."""

PEN_FLAG_MM2 = 0.05
FOLD_FLAG_MM2 = 0.01
FOLD_FLAG_SHARE = 0.01
"""Folds are flagged from this area and this share of the area scanned."""
_MIN_INK_MM2 = 0.02
_INK_REACH_UM = 100.0
"""Ink counts when it comes so near to what is scanned: what it hides may be tissue."""
_MIN_FOLD_MM2 = 0.005
_FOLD_FACTOR = 2.0
"""A fold is three layers of tissue: denser by this factor than three quarters of the slide's tissue. Single
layers hardly are: in real fields and slides less than 0.1 % of the tissue, in specks."""
_INK_RIM_PX = 3
"""Where ink fades out over tissue it looks like dense tissue."""
_PADDING_SHARE = 0.95
"""Rows and columns at the slide's edge with more black than this are padding, not ink."""

NO_REFERENCE = "the {0}'s card has no reference; mitoscan train reference makes one"
NO_TILES = "the candidates came from a file: no tiles were read"
COARSE = "the slide is coarser than the detector's mpp"


@dataclass(frozen=True)
class Quality:
    """Numbers on a slide's quality; None: not assessed."""

    out_of_focus_share: float | None = None
    pen_mm2: float | None = None
    fold_mm2: float | None = None
    unlike_distance: float | None = None
    not_assessed: Mapping[str, str] = field(default_factory=dict)
    """Why, for the numbers that are None."""

    def numbers(self) -> dict[str, float | None]:
        """Give the four numbers by name."""
        return {
            "out_of_focus_share": self.out_of_focus_share,
            "pen_mm2": self.pen_mm2,
            "fold_mm2": self.fold_mm2,
            "unlike_distance": self.unlike_distance,
        }

    def flags(self, detector: FirstStage, classifier: ModelCard, tissue_mm2: float) -> tuple[str, ...]:
        """Say in short sentences what is beyond its limit.

        Parameters
        ----------
        detector, classifier
            Cards of the models that were used: they own the limits of focus and likeness.
        tissue_mm2
            Area scanned.
        """
        focus, likeness = focus_reference(detector), likeness_reference(classifier)
        share, distance = self.out_of_focus_share, self.unlike_distance
        found = []
        if share is not None and focus is not None and share > focus.max_share:
            found.append(f"{100 * share:.0f} % of tissue out of focus")
        if self.pen_mm2 is not None and self.pen_mm2 >= PEN_FLAG_MM2:
            found.append(f"pen marks: {self.pen_mm2:.2g} mm²")
        if self.fold_mm2 is not None and self.fold_mm2 >= max(FOLD_FLAG_MM2, FOLD_FLAG_SHARE * tissue_mm2):
            found.append(f"folds: {self.fold_mm2:.2g} mm²")
        if distance is not None and likeness is not None and distance > likeness.limit:
            found.append(
                f"image unlike the training data (distance {distance:.1f}, limit {likeness.limit:.1f})"
            )
        return tuple(found)


def focus_reference(detector: FirstStage | None) -> FocusReference | None:
    """Give what the detector's card says about focus; files of candidates say nothing."""
    return detector.reference.focus if isinstance(detector, ModelCard) and detector.reference else None


def likeness_reference(classifier: ModelCard) -> LikenessReference | None:
    """Give what the classifier's card says about likeness."""
    return classifier.reference.likeness if classifier.reference else None


def is_coarse(info: SlideInfo, detector: ModelCard) -> bool:
    """Whether the slide has to be enlarged for the detector."""
    mpp = info.known_mpp()
    return max(mpp.x, mpp.y) > detector.mpp * UPSAMPLING_TOLERANCE


class QualityCheck:
    """Listens to a scan and gives the slide's `Quality`.

    Parameters
    ----------
    info
        The slide.
    detector, classifier
        Cards of the models; no detector where a file gives the candidates.
    likeness
        What belongs to the classifier's card; None: likeness is not assessed.
    """

    def __init__(
        self, info: SlideInfo, detector: ModelCard | None, classifier: ModelCard, likeness: Likeness | None
    ) -> None:
        self._info = info
        self._not_assessed: dict[str, str] = {}
        self._areas: tuple[float | None, float | None] = None, None
        self._folds: tuple[Mask, float] | None = None
        self._reach_um = classifier.input_px / 2 * classifier.mpp
        self._embeddings: list[npt.NDArray[np.float32]] = []
        self._likeness, self._classifier = likeness, likeness_reference(classifier)
        focus = focus_reference(detector)
        self._meter: FocusMeter | None = None
        if detector is None:
            self._not_assessed["out_of_focus_share"] = NO_TILES
        elif focus is None:
            self._not_assessed["out_of_focus_share"] = NO_REFERENCE.format("detector")
        elif is_coarse(info, detector):
            self._not_assessed["out_of_focus_share"] = COARSE
        else:
            self._meter = FocusMeter(focus)

    def see_slide(self, view: CoarseView | None, area: MultiPolygon) -> None:
        """Look for pen and folds; ``area`` (level-0 px) is scanned. Without a view they are not assessed."""
        if view is None:
            for name in ("pen_mm2", "fold_mm2"):
                self._not_assessed[name] = "scanned without a tissue mask"
            return
        folded = folds(view)
        self._areas = pen_mm2(view, self._info, area), fold_mm2(folded, view, self._info, area)
        if folded.any():
            reach_px = math.ceil(self._reach_um / view.mpp)
            near = ndimage.binary_dilation(folded, np.ones((3, 3), bool), iterations=reach_px)
            self._folds = near, view.mpp

    def see_tile(self, tile: Tile, image: npt.NDArray[np.uint8]) -> None:
        """Measure the focus of a tile of the detector."""
        if self._meter is not None:
            self._meter.add(tile, image)

    def see_crops(self, embeddings: Sequence[npt.NDArray[np.float32]], x: Float, y: Float) -> None:
        """Take stem embeddings, batches of (n, D), of the crops that were classified at (N,) level-0 px.

        Those below the operating point count too: how a picture looks does not depend on what is in it. Crops
        that show a fold do not: it has a flag of its own, and would speak for the slide.
        """
        if embeddings:
            self._embeddings.append(np.concatenate(embeddings)[~self._on_fold(x, y)])

    def _on_fold(self, x: Float, y: Float) -> Mask:
        if self._folds is None:
            return np.zeros(len(x), bool)
        near, mpp = self._folds
        columns, rows = self._info.frame(mpp).from_l0(x, y)
        height, width = near.shape
        found: Mask = near[rows.astype(int).clip(0, height - 1), columns.astype(int).clip(0, width - 1)]
        return found

    def quality(self) -> Quality:
        """Give what was found, once the slide is through."""
        share = None if self._meter is None else self._meter.share()
        if self._meter is not None and share is None:
            self._not_assessed["out_of_focus_share"] = "no tissue with contrast"
        distance = self._distance()
        return Quality(share, *self._areas, distance, dict(self._not_assessed))

    def _distance(self) -> float | None:
        if self._likeness is None or self._classifier is None:
            self._not_assessed["unlike_distance"] = NO_REFERENCE.format("classifier")
            return None
        number = sum(map(len, self._embeddings))
        if number < self._classifier.min_crops:
            where = " outside folds" if self._folds else ""
            few = f"{number} findings{where} were classified, {self._classifier.min_crops} are needed"
            self._not_assessed["unlike_distance"] = few
            return None
        embeddings = np.concatenate(self._embeddings).astype(np.float64)
        if embeddings.shape[1] != len(self._likeness.centre):
            self._not_assessed["unlike_distance"] = "the reference does not fit the classifier's network"
            return None
        return self._likeness.distance(embeddings)


def pen_mm2(view: CoarseView, info: SlideInfo, area: MultiPolygon) -> float:
    """Area of pen marks that lie on or within 100 µm of ``area`` (level-0 px), counted whole.

    Ink is told by the order of the channels' densities or by being black (``slide.tissue``). Black rows and
    columns at the slide's edge are what scanners fill up with.
    """
    ink = _without_padding(view.densities.ink)
    labels, count = ndimage.label(ink, np.ones((3, 3)))
    if not count:
        return 0.0
    sizes = np.bincount(labels.ravel())
    rows, columns = np.nonzero(labels)
    reach = area.buffer(_INK_REACH_UM / max(info.known_mpp().x, info.known_mpp().y))
    near = np.unique(labels[rows, columns][_inside(view, info, reach, rows, columns)])
    large = near[sizes[near] * _px_mm2(view) >= _MIN_INK_MM2]
    return float(sizes[large].sum() * _px_mm2(view))


def folds(view: CoarseView) -> Mask:
    """Which px of the view lie in folds: much denser than the slide's other tissue, no specks."""
    found = view.densities
    tissue = (found.magenta > 0.05) & ~found.pen
    tissue &= ~ndimage.binary_dilation(found.ink, iterations=_INK_RIM_PX)
    if not tissue.any():
        return tissue
    usual = float(np.quantile(found.mean[tissue], 0.75))
    labels, _ = ndimage.label(tissue & (found.mean > _FOLD_FACTOR * usual), np.ones((3, 3)))
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    large: Mask = (sizes * _px_mm2(view) >= _MIN_FOLD_MM2)[labels]
    return large


def fold_mm2(folded: Mask, view: CoarseView, info: SlideInfo, area: MultiPolygon) -> float:
    """Area of ``folds`` within ``area`` (level-0 px)."""
    return float(np.count_nonzero(_inside(view, info, area, *np.nonzero(folded))) * _px_mm2(view))


def _px_mm2(view: CoarseView) -> float:
    return view.mpp * view.mpp * 1e-6


def _inside(
    view: CoarseView,
    info: SlideInfo,
    area: shapely.Geometry,
    rows: npt.NDArray[np.int64],
    columns: npt.NDArray[np.int64],
) -> Mask:
    """Which px of the view have their centre in ``area`` (level-0 px)."""
    x, y = info.frame(view.mpp).to_l0(columns.astype(np.float64) + 0.5, rows.astype(np.float64) + 0.5)
    shapely.prepare(area)
    inside: Mask = shapely.contains_xy(area, x, y)
    return inside


def _without_padding(ink: Mask) -> Mask:
    """Clear whole rows and columns at the edge."""
    kept = ink.copy()
    for turned in (kept, kept[::-1], kept.T, kept.T[::-1]):
        for line in turned:
            if line.mean() < _PADDING_SHARE:
                break
            line[:] = False
    return kept
