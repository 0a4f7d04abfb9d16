"""The way of the data through one slide; each stage is a function elsewhere, here they are only wired.

::

    open ─ tissue mask ─ tile plan ─ [reader threads] ─ tiles ─ [detector's thread] ─ heat maps ─ candidates
                                                                                                      │
    SlideResult ─ score ─ findings table ─ merge ─ classifier ─ crops, cut from the tiles in memory ──┘
          └────── pictures of the figures ─ [reader threads] ─┘

Crops that the tiles do not hold (another pixel size, candidates from a file) are read after merging.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import shapely
from PIL import Image
from shapely import MultiPolygon

from mitoscan.config import ScanConfig
from mitoscan.errors import ConfigError, RoiError
from mitoscan.models.card import ModelCard
from mitoscan.models.runtime import on_accelerator
from mitoscan.scan.candidates import CandidateFiles, FirstStage
from mitoscan.scan.classify import CLASSIFY_SHARE, Classifier, load_classifier
from mitoscan.scan.detect import MARGIN_SLACK_PX, Candidates, Detector, keep_inside, load_detector
from mitoscan.scan.findings import Identity, Thresholds, build_findings, mark_hotspot
from mitoscan.scan.gallery import read_crops
from mitoscan.scan.progress import Progress, Silent
from mitoscan.scan.qc import QualityCheck
from mitoscan.scan.readers import ReaderPool, threads_for
from mitoscan.scan.result import SlideResult
from mitoscan.scan.score import Hotspot, find_hotspot, summarise
from mitoscan.slide.base import Slide, SlideInfo
from mitoscan.slide.reader import open_slide
from mitoscan.slide.roi import load_roi
from mitoscan.slide.tiling import Tile
from mitoscan.slide.tissue import CoarseView, area_mm2, coarse_view, find_tissue, polygons_of
from mitoscan.units import Box

Float = npt.NDArray[np.float64]
THUMBNAIL_PX = 1600


@dataclass(frozen=True)
class Models:
    """Both stages, loaded once and used for any number of slides."""

    detector: Detector | CandidateFiles
    classifier: Classifier

    @property
    def on_accelerator(self) -> bool:
        """Whether the detector leaves the CPU to the readers."""
        return isinstance(self.detector, Detector) and on_accelerator(self.detector.heat)


@dataclass
class Stopwatch:
    """Seconds of wall time by stage."""

    started: float = field(default_factory=time.monotonic)
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time what runs inside."""
        begin = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = round(time.monotonic() - begin, 3)

    @property
    def total(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.started


def load_models(config: ScanConfig) -> Models:
    """Load what ``config`` names; see ``load_detector`` and ``load_classifier`` for the errors."""
    classifier = load_classifier(config.classifier, config.device, config.weights_dir)
    if config.subtypes:
        classifier.require_subtypes()
    return Models(load_first_stage(config), classifier)


def load_first_stage(config: ScanConfig) -> Detector | CandidateFiles:
    """Load what gives the candidates: the detector, or the files that take its place.

    Raises
    ------
    ConfigError
        When both are named.
    ModelError
        When there is no such detector, or its files are faulty.
    """
    if config.candidates is None:
        return load_detector(config.detector, config.device, config.threshold, config.operating_point)
    if config.detector is not None or config.operating_point != "balanced":
        raise ConfigError(
            "candidates from a file need no detector and have no operating point",
            remedy="Leave --detector and --operating-point away; --threshold applies to the file's p.",
        )
    return CandidateFiles(config.threshold)


def scan_slide(
    path: Path | str,
    config: ScanConfig | None = None,
    *,
    models: Models | None = None,
    progress: Progress | None = None,
) -> SlideResult:
    """Find and classify the mitotic figures of one slide. Writes nothing.

    Parameters
    ----------
    path
        The slide.
    config
        How to scan it. None: the defaults.
    models
        Already loaded models of the same config. None: loaded here.
    progress
        Told how far the scan is.

    Raises
    ------
    MitoscanError
        One of its subclasses, for everything foreseeable that goes wrong with slide, ROI or models.
    """
    path, config, progress = Path(path), config or ScanConfig(), progress or Silent()
    watch = Stopwatch()
    with watch.stage("load models"):
        models = models or load_models(config)
    with open_slide(path, mpp=config.mpp) as slide:
        info = slide.info
        progress.start("finding tissue", 0, 0.0)
        check = QualityCheck(info, models.detector.card, models.classifier.card, models.classifier.likeness)
        with watch.stage("tissue"):
            view = coarse_view(slide) if config.tissue_mask else None
            area = scan_area(slide, config, view)
            check.see_slide(view, area)
        with watch.stage("thumbnail"):
            thumbnail = read_thumbnail(slide, view)
        del view  # large
    tissue_mm2 = area_mm2(area, info.known_mpp())
    readers = config.readers or threads_for(cpu_is_busy=not models.on_accelerator)
    with ReaderPool(lambda: open_slide(path, mpp=config.mpp), readers) as pool:
        with watch.stage("detect"):
            first, found = _first_stage(models, info, area, tissue_mm2, config, pool, progress, check)
        with watch.stage("classify"):
            found = _classify_rest(models, info, found, pool, progress, check)
        with watch.stage("score"):
            findings, hotspot = _table(config, first, models.classifier.card, info, found)
        with watch.stage("pictures"):
            crops = read_crops(findings, info, pool)
    quality = check.quality()
    summary = summarise(
        info=info,
        config=config,
        detector=first,
        classifier=models.classifier.card,
        findings=findings,
        tissue_mm2=tissue_mm2,
        hotspot=hotspot,
        seconds=watch.total,
        quality=quality,
    )
    return SlideResult(
        info=info,
        config=config,
        detector=first,
        classifier=models.classifier.card,
        findings=findings,
        tissue=area,
        hotspot=hotspot,
        summary=summary,
        thumbnail=thumbnail,
        seconds=dict(watch.seconds),
        crops=crops,
        quality=quality,
    )


def scan_area(slide: Slide, config: ScanConfig, view: CoarseView | None = None) -> MultiPolygon:
    """Give what is to be scanned, level-0 px: the tissue, the regions of interest, or where they overlap.

    Raises
    ------
    NoTissueError, RoiError
        When nothing is left.
    """
    info = slide.info
    roi = None if config.roi is None else load_roi(config.roi, info, config.qupath_crop)
    if not config.tissue_mask:
        return roi or MultiPolygon([shapely.box(0, 0, info.width_l0, info.height_l0)])
    tissue = find_tissue(slide, view)
    if roi is None:
        return tissue
    both = polygons_of(shapely.intersection(tissue, roi))
    if both.is_empty:
        raise RoiError(
            f"no tissue of {info.path} inside the regions of interest",
            path=config.roi,
            remedy="Check that the file belongs to this slide, or scan all of it with --no-tissue-mask.",
        )
    return both


def read_thumbnail(slide: Slide, view: CoarseView | None = None) -> npt.NDArray[np.uint8]:
    """Give the whole slide at up to ``THUMBNAIL_PX`` px a side: uint8 (h, w, 3) with square pixels.

    It is shrunk from ``view`` where that is fine enough, so that a slide with one level is not decoded twice.
    """
    info, mpp = slide.info, slide.info.known_mpp()
    width_um, height_um = info.width_l0 * mpp.x, info.height_l0 * mpp.y
    um_per_px = max(max(width_um, height_um) / THUMBNAIL_PX, min(mpp.x, mpp.y))
    size = max(1, round(width_um / um_per_px)), max(1, round(height_um / um_per_px))
    if view is not None and view.mpp <= um_per_px:
        return np.asarray(Image.fromarray(view.picture).resize(size, Image.Resampling.BILINEAR))
    return slide.read(Box(0, 0, info.width_l0, info.height_l0), *size)


def _first_stage(
    models: Models,
    info: SlideInfo,
    area: MultiPolygon,
    tissue_mm2: float,
    config: ScanConfig,
    pool: ReaderPool,
    progress: Progress,
    check: QualityCheck,
) -> tuple[FirstStage, Candidates]:
    """Give the slide's candidates, classified where that cost no reading, and what made them."""
    stage = models.detector
    if not isinstance(stage, CandidateFiles):
        return stage.card, _detect(models, stage, info, area, tissue_mm2, config, pool, progress, check)
    if config.candidates is None:
        raise ConfigError("models without a detector, but no candidates in the configuration")
    (x, y, p), card = stage.find(config.candidates, info, area, config)
    return card, Candidates(x, y, p, _unknown(len(p), models.classifier))


def _detect(
    models: Models,
    detector: Detector,
    info: SlideInfo,
    area: MultiPolygon,
    tissue_mm2: float,
    config: ScanConfig,
    pool: ReaderPool,
    progress: Progress,
    check: QualityCheck,
) -> Candidates:
    """Find the merged candidates inside ``area``, and classify them while their tiles are in memory."""
    frame = info.frame(detector.card.mpp)
    tiles = detector.plan(frame, info.width_l0, info.height_l0, area, config.grid_shift_px)
    classifier = models.classifier
    in_memory = (
        classifier.card.mpp == detector.card.mpp
        and classifier.reach_px + MARGIN_SLACK_PX <= detector.card.margin_px
    )
    shapely.prepare(area)

    def visit(tile: Tile, image: npt.NDArray[np.uint8], found: Float) -> Float:
        check.see_tile(tile, image)
        seen = _unknown(len(found), classifier)
        if in_memory and len(found):
            x, y, p = found.T
            worth = _worth(detector, p) & shapely.contains_xy(area, *frame.to_l0(x, y))
            x, y = x[worth], y[worth]
            embeddings: list[npt.NDArray[np.float32]] = []
            seen[worth] = classifier.run_inside(image, x - tile.x, y - tile.y, embeddings.append)
            check.see_crops(embeddings, *frame.to_l0(x, y))
        return seen

    progress.start("detecting", len(tiles), tissue_mm2)
    found = detector.run(tiles, frame, pool, config.batch_size, progress.advance, visit)
    return keep_inside(area, found)


def _worth(detector: Detector | CandidateFiles, p: Float) -> npt.NDArray[np.bool_]:
    """Which candidates are worth a look: all but those far below the operating point."""
    return p >= detector.threshold * CLASSIFY_SHARE


def _unknown(count: int, classifier: Classifier) -> Float:
    """(count, 1 + K) of nan: not classified."""
    return np.full((count, 1 + len(classifier.card.subtypes)), np.nan)


def _classify_rest(
    models: Models,
    info: SlideInfo,
    found: Candidates,
    pool: ReaderPool,
    progress: Progress,
    check: QualityCheck,
) -> Candidates:
    """Classify the candidates that are worth it and were not yet; the others keep their nan."""
    x, y, p, seen = found
    left = _worth(models.detector, p) & np.isnan(seen[:, 0])
    if not left.any():
        return found
    progress.start("classifying", int(left.sum()), 0.0)
    frame, run = info.frame(models.classifier.card.mpp), models.classifier.run
    embeddings: list[npt.NDArray[np.float32]] = []
    seen[left] = run(x[left], y[left], frame, pool, progress.advance, embeddings.append)
    check.see_crops(embeddings, x[left], y[left])
    return found


def _table(
    config: ScanConfig,
    detector: FirstStage,
    classifier: ModelCard,
    info: SlideInfo,
    found: Candidates,
) -> tuple[pd.DataFrame, Hotspot | None]:
    """Give the findings table, hot spot marked, and the hot spot."""
    mpp = info.known_mpp()
    findings = build_findings(
        x_l0=found.x,
        y_l0=found.y,
        p_mitosis=found.p,
        p_atypical=found.seen[:, 0],
        p_subtypes=found.seen[:, 1:] if config.subtypes else None,
        thresholds=Thresholds.of(config, detector, classifier),
        mpp=mpp,
        identity=Identity(info.identity, detector.sha256, classifier.sha256),
    )
    figures = findings[findings["is_mf"]]
    hotspot = find_hotspot(
        figures["x_l0"].to_numpy(),
        figures["y_l0"].to_numpy(),
        mpp,
        config.hotspot_mm2,
        info.width_l0,
        info.height_l0,
    )
    return mark_hotspot(findings, None if hotspot is None else hotspot.box), hotspot
