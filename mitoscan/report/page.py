"""The page of a slide: numbers in words, the slide with its figures, a gallery for review, a threshold.

Everything is in the one file: thumbnail and crops as base64 JPEG, findings as JSON. The numbers are written
here; the script in ``templates/js`` draws, filters, recounts and keeps the review.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping

import numpy as np
import pandas as pd
import shapely
from PIL import Image
from shapely import Polygon

from mitoscan.models.card import ModelCard
from mitoscan.report import words
from mitoscan.report.colours import COLOURS
from mitoscan.report.geojson import FIGURE_RADIUS_UM
from mitoscan.report.html import render
from mitoscan.report.record import package_versions
from mitoscan.scan.findings import ATYPICAL_SUBTYPES, NORMAL_SUBTYPES, SUBTYPE_COLUMNS
from mitoscan.scan.gallery import CONTEXT_UM, jpeg
from mitoscan.scan.result import SlideResult
from mitoscan.slide.roi import qupath_origin

PAGE_NAME = "report.html"

MAX_ROWS = 20_000
"""Figures on a page; beyond that those of the highest p_mitosis."""
CROPS_BUDGET = 10_000_000
"""Characters of base64 for the crops. With 20 000 rows and the thumbnail the page stays below 15 MB."""
_SMALL_PX, _SMALL_QUALITY = 160, 70
"""When the crops do not fit as they are, they are made this small before any is left out."""
_THUMBNAIL_QUALITY = 80
_CLASSIFIER_UM = 32.0

_SCRIPTS = tuple(
    f"js/{name}.js"
    for name in ("data", "stats", "crops", "store", "map", "gallery", "detail", "threshold", "export", "main")
)


def page_bytes(result: SlideResult) -> bytes:
    """Give report.html of a slide: self-contained, below 15 MB whatever the number of figures.

    What does not fit is left out, figures with the lowest p_mitosis first, and the page says so.
    """
    rows, summary = _rows(result), result.summary
    wanted = set(rows["id"])
    crops, shrunk = _fitting({name: data for name, data in result.crops.items() if name in wanted})
    context = {
        "summary": summary,
        "title": summary.slide_id,
        "lead": words.rate_sentence(summary),
        "corrected": words.corrected_sentence(summary),
        "density": words.density_sentence(summary),
        "hotspot": words.hotspot_sentence(summary),
        "flags": [words.flag_in_words(flag) for flag in summary.qc_flags],
        "scanned": "inside the regions of interest" if result.config.roi else "of tissue",
        "not_assessed": words.not_assessed_sentence(result.quality.not_assessed),
        "limits": _limits(result, rows, crops, shrunk),
        "facts": _facts(result),
        "review": words.review_sentence(summary),
        "card_threshold": result.classifier.operating_point.threshold,
        "versions": package_versions(),
        "words": words,
        "subtypes": {"NMF": NORMAL_SUBTYPES, "AMF": ATYPICAL_SUBTYPES},
        "has_subtypes": SUBTYPE_COLUMNS[0] in rows,
    }
    data = {"data": _data(result, rows), "crops": crops, "slide": _thumbnail(result)}
    return render(
        "slide.html.j2", scripts=_SCRIPTS, styles=("page.css", "slide.css"), data=data, context=context
    )


def _rows(result: SlideResult) -> pd.DataFrame:
    """Give the findings on the page, in the table's order: figures, and what below them has a picture."""
    findings = result.findings
    figures = findings[findings["is_mf"]].sort_values("p_mitosis", ascending=False, na_position="first")
    below = findings[~findings["is_mf"] & findings["id"].isin(set(result.crops))]
    return pd.concat([figures.head(MAX_ROWS), below]).sort_index()


def _fitting(crops: Mapping[str, bytes]) -> tuple[dict[str, str], bool]:
    """Give the first crops that fit as base64, and whether all had to be made smaller."""
    encoded = {name: _base64(data) for name, data in crops.items()}
    shrunk = sum(map(len, encoded.values())) > CROPS_BUDGET
    if shrunk:
        encoded = {name: _base64(_smaller(data)) for name, data in crops.items()}
    kept, total = {}, 0
    for name, text in encoded.items():
        total += len(text)
        if total > CROPS_BUDGET:
            break
        kept[name] = text
    return kept, shrunk


def _smaller(crop: bytes) -> bytes:
    picture = Image.open(io.BytesIO(crop)).convert("RGB")
    return jpeg(np.asarray(picture.resize((_SMALL_PX, _SMALL_PX), Image.Resampling.LANCZOS)), _SMALL_QUALITY)


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _limits(result: SlideResult, rows: pd.DataFrame, crops: Mapping[str, str], shrunk: bool) -> list[str]:
    """Say what of the result is not on the page."""
    said = []
    total, shown = result.summary.mf_count, int(rows["is_mf"].sum())
    if shown < total:
        said.append(
            f"This page lists the {shown:,} mitotic figures of the highest p_mitosis of {total:,}; "
            "the numbers above are those of all."
        )
    pictured = int((rows["is_mf"] & rows["id"].isin(set(crops))).sum())
    if pictured < shown:
        said.append(
            f"{pictured:,} of {shown:,} figures have a picture, those of the highest p_mitosis: "
            "the page is kept below 15 MB. All are in findings.csv and on the map."
        )
    if shrunk:
        said.append(
            f"The pictures were made smaller ({_SMALL_PX} px) to fit; pictures.zip has the full ones."
        )
    return said


def _thumbnail(result: SlideResult) -> str:
    return _base64(jpeg(result.thumbnail, _THUMBNAIL_QUALITY))


def _facts(result: SlideResult) -> list[tuple[str, str]]:
    """List slide, models and settings as name and value."""
    summary, info = result.summary, result.info
    models = [card for card in (result.detector, result.classifier) if isinstance(card, ModelCard)]
    return [
        ("Slide file", summary.path),
        ("Size", f"{info.width_l0:,} × {info.height_l0:,} px"),
        ("Pixel size", f"{summary.mpp_x:.4g} × {summary.mpp_y:.4g} µm ({summary.mpp_source})"),
        ("Reader", f"{info.reader}, {info.vendor}"),
        _candidates_from(result),
        (
            "Mitotic figure from",
            f"p_mitosis ≥ {summary.detector_threshold:g} ({_chosen(result, 'detector')})",
        ),
        ("Classifier", f"{summary.classifier}, weights {summary.classifier_sha256}"),
        ("Atypical from", f"p_atypical ≥ {summary.classifier_threshold:g} ({_chosen(result, 'classifier')})"),
        ("Classifier's errors", _errors(result)),
        ("Training data", "; ".join(card.training.data for card in models)),
        ("mitoscan", summary.mitoscan_version),
        ("Finished", f"{result.finished:%Y-%m-%d %H:%M} UTC, after {summary.seconds:,.0f} s"),
    ]


def _candidates_from(result: SlideResult) -> tuple[str, str]:
    card = result.detector
    if isinstance(card, ModelCard):
        return "Detector", f"{card.name}, weights {card.sha256[:12]}"
    return "Candidates", f"{card.path}, sha256 {card.sha256[:12]}"


def _chosen(result: SlideResult, stage: str) -> str:
    config = result.config
    given = config.threshold if stage == "detector" else config.amf_threshold
    if given is not None:
        return "given by hand"
    point = result.classifier.operating_point
    if stage == "detector":
        point = result.detector.point(config.operating_point)
    return f"{point.criterion}, {point.dataset}"


def _errors(result: SlideResult) -> str:
    counts = result.classifier.validation
    if counts is None:
        return "not known"
    return (
        f"finds {counts.tp} of {counts.tp + counts.fn} AMF, "
        f"calls {counts.fp} of {counts.tn + counts.fp} NMF atypical (held-out figures)"
    )


def _data(result: SlideResult, rows: pd.DataFrame) -> dict[str, object]:
    """Give what the script works on; lengths in level-0 px unless they say otherwise."""
    info, summary = result.info, result.summary
    mpp = info.known_mpp()
    box = None if result.hotspot is None else result.hotspot.box
    return {
        "key": result.identity.uuid_of("review"),
        "name": summary.slide_id,
        "width": info.width_l0,
        "height": info.height_l0,
        "mpp": [mpp.x, mpp.y],
        "origin": qupath_origin(info) if result.config.qupath_crop else (0.0, 0.0),
        "contextUm": CONTEXT_UM,
        "boxUm": _CLASSIFIER_UM,
        "circleUm": FIGURE_RADIUS_UM,
        "hotspot": None if box is None else [box.x, box.y, box.width, box.height],
        "hotspotMm2": summary.hotspot_mm2,
        "tissueMm2": summary.tissue_mm2,
        "tissue": _outlines(result),
        "threshold": summary.classifier_threshold,
        "thresholdMitosis": summary.detector_threshold,
        "colours": {name: list(colour) for name, colour in COLOURS.items()},
        "normal": NORMAL_SUBTYPES,
        "atypical": ATYPICAL_SUBTYPES,
        "findings": _columns(rows),
    }


def _columns(rows: pd.DataFrame) -> dict[str, object]:
    """Give the table column by column, which is smaller than row by row; not classified is None."""
    names = ["id", "x_l0", "y_l0", "p_mitosis", "is_mf", "p_atypical", "label", "subtype", "in_hotspot"]
    if SUBTYPE_COLUMNS[0] in rows:
        names += SUBTYPE_COLUMNS
    if "reviewed" in rows:
        names.append("reviewed")
    return {name: [None if value != value else value for value in rows[name].tolist()] for name in names}


def _outlines(result: SlideResult) -> list[list[float]]:
    """Give the rings of the area scanned as x, y, x, y, …, as fine as the thumbnail can show."""
    fine = max(result.info.width_l0 / result.thumbnail.shape[1], 1.0)
    rings = []
    for polygon in shapely.get_parts(shapely.simplify(result.tissue, fine)):
        if isinstance(polygon, Polygon):
            rings += [polygon.exterior, *polygon.interiors]
    return [np.asarray(ring.coords).round(1).ravel().tolist() for ring in rings]
