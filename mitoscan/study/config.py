"""What a study asks for."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from mitoscan.config import Frozen

MeasureName = Literal[
    "amf_rate", "amf_rate_corrected", "amf_per_mm2", "amf_count", "mf_per_mm2", "mf_count", "hotspot_count"
]
By = Literal["auto", "case", "slide"]
Correction = Literal["holm", "bh"]


class StudyConfig(Frozen):
    """Everything that decides what a study computes."""

    groups: tuple[str, ...] = ()
    """Columns of the clinical table whose groups are compared."""
    outcome: str | None = None
    """Column with two values: ROC, AUC and cut."""
    positive: str | None = None
    """The value of ``outcome`` to be found. None: 1, yes or true, else the last in alphabetical order."""
    correlate: tuple[str, ...] = ()
    """Columns of numbers for rank correlation."""
    time: str | None = None
    """Column of the follow-up time. None: ``time``, if the table has it."""
    event: str | None = None
    """Column of the event, 1 or 0. None: ``event``, if the table has it."""
    by: By = "auto"
    """What is counted as one. ``auto``: cases where case ids are known, else slides."""
    measures: tuple[MeasureName, ...] = Field(
        default=("amf_rate", "amf_per_mm2", "mf_per_mm2", "hotspot_count"), min_length=1
    )
    """Tested, the most important one first. All measures are described, tested or not."""
    cut: float | None = None
    """A cut of the first measure that was fixed before the study."""
    min_figures: int = Field(default=1, ge=1)
    """Below so many mitotic figures a case has no AMF rate in the study."""
    width: float = Field(default=0.1, gt=0, lt=1)
    """Full width of the AMF rate's interval that the sample-size note aims at."""
    correction: Correction = "holm"
    """How p-values are corrected for the number of tests."""
    seed: int = Field(default=0, ge=0)
    bootstrap: int = Field(default=2000, ge=200, le=100_000)
    """Resamples of each bootstrap."""
    classifiers: tuple[Path, ...] = ()
    """Folders with the cards of classifiers that do not ship; for the corrected rate."""
