"""Stage 1 without a detector: the candidates of a file, brought into the slide's level-0 px."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import shapely
from shapely import MultiPolygon

from mitoscan.config import Frozen, PointName, ScanConfig
from mitoscan.errors import CandidatesError, ConfigError
from mitoscan.models.card import ModelCard, OperatingPoint, sha256_of
from mitoscan.scan.candidate_files import SUFFIXES, Given, Unit, read_candidates
from mitoscan.scan.detect import MERGE_RADIUS_UM
from mitoscan.scan.merge import merge
from mitoscan.slide.base import SlideInfo
from mitoscan.slide.roi import load_roi, qupath_origin

log = logging.getLogger(__name__)

Float = npt.NDArray[np.float64]

LARGEST_CELL_UM = 100.0
"""An outline with a longer side is a region that somebody drew, not a cell."""
_FORMAT: dict[Unit, str] = {"l0": "level-0 px", "um": "µm", "mm": "mm"}


class CandidateCard(Frozen):
    """Says in a result where its candidates came from, where a detector's card would."""

    name: Literal["candidates"] = "candidates"
    path: str
    sha256: str
    given: int
    """Entries that the file calls mitotic figures, or does not name otherwise."""
    denied: int
    """Entries that it calls something else, by class or ``is_mf``: left out."""
    regions: int
    """Outlines too large for a cell: left out."""
    merged: int
    """Entries within the merging radius of a better one: left out."""
    outside_roi: int
    """Candidates outside the regions of interest: left out."""
    outside_area: int
    """Candidates outside the area scanned, the density's denominator: kept, because people and detectors know
    tissue better than the mask does."""

    def point(self, _name: PointName) -> OperatingPoint:
        """Give the operating point: whatever the file calls a candidate is a mitotic figure."""
        return OperatingPoint(threshold=0.0, criterion="all candidates of the file", dataset="none")


FirstStage = ModelCard | CandidateCard
"""What made the candidates of a result."""


class CandidateFiles:
    """Takes the detector's place: gives the candidates of each slide from its file.

    Parameters
    ----------
    threshold
        p_mitosis from which a candidate is a mitotic figure. None: all are.
    """

    card = None
    """There is no model."""

    def __init__(self, threshold: float | None = None) -> None:
        self.threshold = 0.0 if threshold is None else threshold

    def find(
        self, place: Path, info: SlideInfo, area: MultiPolygon, config: ScanConfig
    ) -> tuple[tuple[Float, Float, Float], CandidateCard]:
        """Read the slide's candidates.

        Parameters
        ----------
        place
            The file, or a folder with ``<slide_id>.csv``, ``.geojson`` or ``.json``.
        info
            The slide.
        area
            What is scanned, level-0 px: only to count the candidates outside it.
        config
            Its ROI drops candidates, its ``qupath_crop`` says what GeoJSON counts from.

        Returns
        -------
        (x, y, p), card
            (K,) each, level-0 px and p_mitosis; and where they came from.

        Raises
        ------
        CandidatesError
            When there is no file for the slide, it cannot be read, or candidates lie outside the slide.
        RoiError
            When the regions of interest cannot be used.
        """
        path = file_of(place, info.slide_id)
        given = read_candidates(path)
        x, y = _to_l0(given, info, config.qupath_crop)
        _refuse_outside(given, x, y, info, config.qupath_crop, path)
        cells = np.array(given.side, dtype=np.float64) * _um_per_unit(given.unit, info) <= LARGEST_CELL_UM
        x, y, p = x[cells], y[cells], np.array(given.p, dtype=np.float64)[cells]
        mpp = info.known_mpp()
        kept = merge(x * mpp.x, y * mpp.y, p, MERGE_RADIUS_UM)
        x, y, p = x[kept], y[kept], p[kept]
        if config.roi is not None:
            roi = load_roi(config.roi, info, config.qupath_crop)
            inside = shapely.contains_xy(roi, x, y)
            x, y, p = x[inside], y[inside], p[inside]
        card = CandidateCard(
            path=str(path).encode("utf-8", "backslashreplace").decode(),
            sha256=sha256_of(path),
            given=len(cells),
            denied=given.denied,
            regions=int((~cells).sum()),
            merged=int(cells.sum()) - len(kept),
            outside_roi=len(kept) - len(x),
            outside_area=int((~shapely.contains_xy(area, x, y)).sum()),
        )
        _tell(card, len(x))
        return (x, y, p), card


def file_of(place: Path, slide_id: str) -> Path:
    """Give a slide's file: ``place`` itself, or the one in this folder that is named after the slide.

    Raises
    ------
    CandidatesError
        When there is none, or more than one.
    """
    if not place.is_dir():
        return place
    found = [
        place / f"{slide_id}{suffix}" for suffix in SUFFIXES if (place / f"{slide_id}{suffix}").is_file()
    ]
    if len(found) == 1:
        return found[0]
    if found:
        raise CandidatesError(
            f"several files for slide {slide_id}: {', '.join(path.name for path in found)}",
            path=place,
            remedy="Leave one of them.",
        )
    raise CandidatesError(
        f"no candidates for slide {slide_id}",
        path=place,
        remedy=f"Name a file {slide_id}.csv, .geojson or .json; without candidates it has only a header.",
    )


def check_place(place: Path | None, slides: Sequence[Path]) -> None:
    """Refuse one file of candidates for several slides.

    Raises
    ------
    ConfigError
        When ``place`` is no folder and there is more than one slide.
    CandidatesError
        When it is not there.
    """
    if place is not None and not place.exists():
        raise CandidatesError("no such file or folder", path=place, remedy="Check the path.")
    if place is not None and len(slides) > 1 and not place.is_dir():
        raise ConfigError(
            f"one file of candidates for {len(slides)} slides: {place}",
            remedy="Give --candidates a folder with a file for each slide, named after it.",
        )


def _um_per_unit(unit: Unit, info: SlideInfo) -> float:
    mpp = info.known_mpp()
    return {"l0": max(mpp.x, mpp.y), "um": 1.0, "mm": 1000.0}[unit]


def _to_l0(given: Given, info: SlideInfo, qupath_crop: bool) -> tuple[Float, Float]:
    x, y = np.array(given.x, dtype=np.float64), np.array(given.y, dtype=np.float64)
    return _from_unit(x, y, given.unit, info, given.from_qupath and qupath_crop)


def _from_unit(x: Float, y: Float, unit: Unit, info: SlideInfo, cropped: bool) -> tuple[Float, Float]:
    if unit != "l0":
        um, mpp = _um_per_unit(unit, info), info.known_mpp()
        return x * um / mpp.x, y * um / mpp.y
    dx, dy = qupath_origin(info) if cropped else (0.0, 0.0)
    return x + dx, y + dy


def _outside(x: Float, y: Float, info: SlideInfo) -> npt.NDArray[np.bool_]:
    return ~((x >= 0) & (y >= 0) & (x <= info.width_l0) & (y <= info.height_l0))


def _refuse_outside(given: Given, x: Float, y: Float, info: SlideInfo, qupath_crop: bool, path: Path) -> None:
    outside = _outside(x, y, info)
    if not outside.any():
        return
    first = int(outside.argmax())
    raise CandidatesError(
        f"{int(outside.sum())} of {len(x)} candidates lie outside {info.slide_id} "
        f"({info.width_l0} x {info.height_l0} px), the first at ({x[first]:.0f}, {y[first]:.0f}) px",
        path=path,
        remedy=_likely_mistake(given, info, qupath_crop),
    )


def _likely_mistake(given: Given, info: SlideInfo, qupath_crop: bool) -> str:
    """Try what is often confused; the first reading under which all lie on the slide is the likely one."""
    x, y = np.array(given.x, dtype=np.float64), np.array(given.y, dtype=np.float64)
    readings: list[tuple[str, tuple[Float, Float]]] = []
    if given.from_qupath:
        option = "--no-qupath-crop" if qupath_crop else "--qupath-crop"
        readings.append(
            (f"They fit with {option}.", _from_unit(x, y, given.unit, info, cropped=not qupath_crop))
        )
    readings += [
        (f"They fit if the numbers are {_FORMAT[unit]}, not {_FORMAT[given.unit]}.", found)
        for unit in ("l0", "um", "mm")
        if unit != given.unit
        for found in [_from_unit(x, y, unit, info, cropped=False)]
    ]
    readings.append(
        (
            "They fit with x and y exchanged.",
            _from_unit(y, x, given.unit, info, given.from_qupath and qupath_crop),
        )
    )
    for text, (a, b) in readings:
        if not _outside(a, b, info).any():
            return text
    return (
        f"The numbers are taken for {_FORMAT[given.unit]}: check that they are, that they count from the "
        "slide's corner at its finest level, and that the file belongs to this slide."
    )


def _tell(card: CandidateCard, kept: int) -> None:
    left_out = {
        "called no mitotic figure": card.denied,
        "too large for a cell": card.regions,
        "merged": card.merged,
        "outside the regions of interest": card.outside_roi,
    }
    why = ", ".join(f"{count} {what}" for what, count in left_out.items() if count)
    log.info("%s: %d candidates%s", card.path, kept, f"; left out: {why}" if why else "")
    if card.outside_area:
        log.warning(
            "%s: %d of %d candidates lie outside the area scanned; check unit and frame of the file",
            card.path,
            card.outside_area,
            kept,
        )
