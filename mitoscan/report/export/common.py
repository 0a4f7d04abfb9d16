"""What the exporters share."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from mitoscan.scan.result import SlideResult


@dataclass(frozen=True)
class Options:
    """What some of the formats can be told."""

    qupath_crop: bool | None = None
    """GeoJSON from QuPath's cropped origin (True) or in level-0 px (False). None: as in the scan."""
    slides: Path | None = None
    """Folder in which slides are looked for that are no longer where they were scanned."""
    dataset: str = "mitoscan"
    """Name of the data set in the tables of crops."""
    unreviewed: bool = False
    """Export the models' labels as truth where there is no reviewer's."""
    overwrite: bool = False


def in_frame(result: SlideResult, qupath_crop: bool | None) -> SlideResult:
    """Give the result with GeoJSON in the frame asked for."""
    if qupath_crop is None:
        return result
    return replace(result, config=result.config.model_copy(update={"qupath_crop": qupath_crop}))
