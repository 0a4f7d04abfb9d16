"""What the scan of one slide gives: the findings, the numbers, and all that the writers need beside them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

import numpy as np
import numpy.typing as npt
import pandas as pd
from shapely import MultiPolygon

from mitoscan.config import ScanConfig
from mitoscan.models.card import ModelCard
from mitoscan.scan.candidates import FirstStage
from mitoscan.scan.findings import Identity
from mitoscan.scan.qc import Quality
from mitoscan.scan.score import Hotspot, SlideSummary
from mitoscan.slide.base import SlideInfo


@dataclass(frozen=True)
class SlideResult:
    """The result of ``scan_slide``."""

    info: SlideInfo
    config: ScanConfig
    detector: FirstStage
    classifier: ModelCard
    findings: pd.DataFrame
    """See ``scan.findings``; hot spot marked."""
    tissue: MultiPolygon
    """Area scanned, level-0 px."""
    hotspot: Hotspot | None
    """None without mitotic figures."""
    summary: SlideSummary
    thumbnail: npt.NDArray[np.uint8]
    """The whole slide, (height, width, 3), for the overview picture and the page."""
    seconds: dict[str, float]
    """Time of each stage; stages overlap, so the sum may exceed the wall time in ``summary.seconds``."""
    crops: Mapping[str, bytes] = field(default_factory=dict)
    """Finding id → JPEG of the 64 µm about it, not of all findings: see ``scan.gallery``."""
    quality: Quality = field(default_factory=Quality)
    """The numbers behind some of the QC flags, and why what is missing was not assessed."""
    finished: datetime = field(default_factory=lambda: datetime.now(UTC))

    @property
    def identity(self) -> Identity:
        """What the ids of this result are made from."""
        return Identity(self.info.identity, self.detector.sha256, self.classifier.sha256)
