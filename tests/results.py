"""Slide results with chosen figures, made without a slide or a model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import shapely
from fakes import card
from shapely import MultiPolygon

from mitoscan.config import ScanConfig
from mitoscan.scan.findings import Identity, Thresholds, build_findings, mark_hotspot
from mitoscan.scan.result import SlideResult
from mitoscan.scan.score import find_hotspot, summarise
from mitoscan.slide.base import Level, SlideInfo
from mitoscan.units import Mpp

THRESHOLDS = Thresholds(mitosis=0.5, atypical=0.5)
IDENTITY = Identity("slide", "a" * 64, "b" * 64)
MPP = Mpp(0.25, 0.25)


def info(width=8000, height=6000, mpp=MPP, **changes) -> SlideInfo:
    values = {
        "path": Path("slides/example.svs"),
        "slide_id": "example",
        "width_l0": width,
        "height_l0": height,
        "mpp": mpp,
        "mpp_source": "openslide.mpp-x",
        "vendor": "generic-tiff",
        "reader": "openslide",
        "levels": (Level(width, height, 1.0),),
        "bounds": None,
        "objective": None,
        "identity": "slide",
    }
    return SlideInfo(**(values | changes))


def findings(n=50, width=8000, height=6000, *, subtypes=False, mpp=MPP, seed=0, p_mitosis=None):
    """A random table; candidates below 0.3 are not classified."""
    rng = np.random.default_rng(seed)
    p = rng.random(n) if p_mitosis is None else np.broadcast_to(p_mitosis, n)
    classified = p >= 0.3
    probabilities = rng.dirichlet(np.full(8, 0.5), n)
    return build_findings(
        x_l0=rng.random(n) * width,
        y_l0=rng.random(n) * height,
        p_mitosis=p,
        p_atypical=np.where(classified, rng.random(n), np.nan),
        p_subtypes=np.where(classified[:, None], probabilities, np.nan) if subtypes else None,
        thresholds=THRESHOLDS,
        mpp=mpp,
        identity=IDENTITY,
    )


def result(table=None, slide=None, tissue=None, thumbnail=None, **config) -> SlideResult:
    """The result of a slide with these findings, scored as the pipeline does."""
    slide = slide or info()
    width, height, mpp = slide.width_l0, slide.height_l0, slide.known_mpp()
    table = findings(width=width, height=height) if table is None else table
    tissue = MultiPolygon([shapely.box(0, 0, width, height)]) if tissue is None else tissue
    settings = ScanConfig(threshold=THRESHOLDS.mitosis, **config)
    detector = card("detector")
    classifier = card(
        "classifier",
        operating_point={"threshold": THRESHOLDS.atypical, "criterion": "by hand", "dataset": "none"},
    )
    figures = table[table["is_mf"]]
    hotspot = find_hotspot(
        figures["x_l0"].to_numpy(), figures["y_l0"].to_numpy(), mpp, settings.hotspot_mm2, width, height
    )
    table = mark_hotspot(table, hotspot.box if hotspot else None)
    summary = summarise(
        info=slide,
        config=settings,
        detector=detector,
        classifier=classifier,
        findings=table,
        tissue_mm2=tissue.area * mpp.mm2_per_px,
        hotspot=hotspot,
        seconds=12.3456,
    )
    if thumbnail is None:
        thumbnail = np.full((max(1, height // 10), max(1, width // 10), 3), 235, np.uint8)
    return SlideResult(
        info=slide,
        config=settings,
        detector=detector,
        classifier=classifier,
        findings=table,
        tissue=tissue,
        hotspot=hotspot,
        summary=summary,
        thumbnail=thumbnail,
        seconds={"detect": 9.87654, "classify": 2.0},
    )
