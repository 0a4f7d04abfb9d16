"""From the findings table to the numbers of a slide: counts, densities, rates with uncertainty, hot spot."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
from pydantic import Field
from scipy import stats

from mitoscan import __version__
from mitoscan.config import Frozen, ScanConfig
from mitoscan.models.card import SUBTYPES, Counts, ModelCard
from mitoscan.scan.candidates import FirstStage
from mitoscan.scan.findings import ADDED, AMF, BY_MODEL, NMF, Thresholds, call_findings
from mitoscan.scan.qc import Quality, is_coarse
from mitoscan.scan.review import Agreement
from mitoscan.slide.base import SlideInfo
from mitoscan.units import Box, Mpp

FloatArray = npt.NDArray[np.float64]

HOTSPOT_ASPECT = 4 / 3
NO_FIGURES = "no mitotic figures"


class Interval(NamedTuple):
    """A two-sided confidence interval."""

    low: float
    high: float


class Estimate(NamedTuple):
    """A value with its confidence interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Hotspot:
    """The window with the most mitotic figures."""

    box: Box
    count: int
    area_mm2: float
    """Of ``box``, also where the slide was too small and cut it."""


class SlideSummary(Frozen):
    """The numbers of one slide: summary.json, and a row of slides.csv. None: not defined for this slide."""

    slide_id: str
    case_id: str = ""
    """Empty unless a manifest names the case."""
    path: str
    mpp_x: float
    mpp_y: float
    mpp_source: str
    tissue_mm2: float
    """Area scanned: tissue, cut to the regions of interest where there are any."""
    mf_count: int
    mf_per_mm2: float
    mf_per_mm2_low: float
    mf_per_mm2_high: float
    amf_count: int
    nmf_count: int
    amf_rate: float | None
    amf_rate_low: float | None
    amf_rate_high: float | None
    amf_rate_flag: str
    """Empty, or why the rate should not be trusted."""
    amf_rate_corrected: float | None
    amf_rate_corrected_low: float | None
    amf_rate_corrected_high: float | None
    amf_nmf_ratio: float | None
    amf_per_mm2: float
    hotspot_count: int | None
    hotspot_mm2: float | None
    hotspot_x_l0: float | None
    hotspot_y_l0: float | None
    hotspot_width_l0: float | None
    hotspot_height_l0: float | None
    subtype_counts: dict[str, int] | None
    """MF of each subtype; None when subtypes are not reported."""
    reviewed_count: int | None = None
    """Findings whose label a reviewer gave, the rejected and the added ones too; None without a review."""
    rejected_count: int | None = None
    """Findings that the models call MF and the reviewer does not."""
    added_count: int | None = None
    """MF that the reviewer drew."""
    agreement_kappa: float | None = None
    """Cohen's kappa of models and reviewer; see ``scan.review``."""
    agreement_amf_kappa: float | None = None
    """The same of AMF against NMF alone."""
    out_of_focus_share: float | None = None
    """Share of the tissue, 0 to 1."""
    pen_mm2: float | None = None
    fold_mm2: float | None = None
    unlike_distance: float | None = None
    """How far the findings look from the training data; about 1 for a slide like those."""
    qc_flags: tuple[str, ...]
    detector: str
    detector_threshold: float
    detector_sha256: str
    """First 12 digits; empty where a file gave the candidates, whose checksum is in the record."""
    classifier: str
    classifier_threshold: float
    classifier_sha256: str
    """First 12 digits."""
    mitoscan_version: str
    seconds: float
    notes: dict[str, str] = Field(default_factory=dict)
    """Further columns of the manifest."""


def garwood_interval(count: int, exposure: float, level: float = 0.95) -> Interval:
    """Exact Poisson interval of the rate ``count / exposure`` (Garwood, Biometrika 1936).

    Parameters
    ----------
    count
        Events counted.
    exposure
        What they were counted in (mm² for a density in 1/mm²), above 0.
    level
        Coverage, at least.
    """
    if count < 0 or not exposure > 0:
        raise ValueError(f"count {count} must not be negative and exposure {exposure} must be above 0")
    tail = (1 - level) / 2
    low = float(stats.chi2.ppf(tail, 2 * count)) / 2 if count else 0.0
    high = float(stats.chi2.ppf(1 - tail, 2 * count + 2)) / 2
    return Interval(low / exposure, high / exposure)


def wilson_interval(k: int, n: int, level: float = 0.95) -> Interval:
    """Score interval of the proportion ``k / n`` (Wilson, JASA 1927); ``n`` must be above 0."""
    if not 0 <= k <= n or n == 0:
        raise ValueError(f"no proportion: {k} of {n}")
    z2 = float(stats.norm.ppf((1 + level) / 2)) ** 2
    centre = (k + z2 / 2) / (n + z2)
    half = math.sqrt(z2 * (k * (n - k) / n + z2 / 4)) / (n + z2)
    # At the ends the bound is the proportion itself, which rounding would miss by an ulp.
    return Interval(0.0 if k == 0 else centre - half, 1.0 if k == n else centre + half)


def corrected_rate(
    amf: int, mf: int, counts: Counts, *, seed: int = 0, draws: int = 10_000, level: float = 0.95
) -> Estimate | None:
    """AMF rate corrected for the classifier's errors (Rogan & Gladen, Am J Epidemiol 1978).

    (rate + specificity − 1) / (sensitivity + specificity − 1), clipped to [0, 1]. The interval is the
    percentile interval of draws of all three proportions, so it carries the sampling of the slide's figures
    and the limited validation of the classifier. They are drawn from their Jeffreys posteriors instead of
    resampled, because resampling has no spread at 0 of n or n of n, which is where slides often are. A draw
    with sensitivity + specificity ≤ 1 says nothing about the rate: it counts as 0 for the lower bound and as
    1 for the upper one.

    Parameters
    ----------
    amf, mf
        Figures called atypical, and all figures of the slide.
    counts
        The classifier's held-out confusion counts.
    seed, draws, level
        Of the interval.

    Returns
    -------
    Estimate or None
        None without figures, without validated AMF or NMF, or for a classifier no better than chance.
    """
    positives, negatives = counts.tp + counts.fn, counts.tn + counts.fp
    if mf == 0 or positives == 0 or negatives == 0:
        return None
    youden = counts.sensitivity + counts.specificity - 1
    if youden <= 0:
        return None
    value = min(max((amf / mf + counts.specificity - 1) / youden, 0.0), 1.0)

    rng = np.random.default_rng(seed)
    low, high = corrected_interval(rng.beta(amf + 0.5, mf - amf + 0.5, draws), counts, rng, level)
    return Estimate(value, min(low, value), max(high, value))


def corrected_interval(
    rates: FloatArray, counts: Counts, rng: np.random.Generator, level: float = 0.95
) -> Interval:
    """Carry draws of a raw AMF rate through the correction of ``corrected_rate``; give their interval.

    Parameters
    ----------
    rates
        Draws of the raw rate, shape (N,).
    counts
        The classifier's held-out confusion counts.
    rng, level
        For the draws of sensitivity and specificity; coverage.
    """
    sensitivity = rng.beta(counts.tp + 0.5, counts.fn + 0.5, len(rates))
    specificity = rng.beta(counts.tn + 0.5, counts.fp + 0.5, len(rates))
    drawn_youden = sensitivity + specificity - 1
    usable = drawn_youden > 0
    corrected = np.clip((rates + specificity - 1) / np.where(usable, drawn_youden, 1.0), 0.0, 1.0)
    low = float(np.quantile(np.where(usable, corrected, 0.0), (1 - level) / 2))
    high = float(np.quantile(np.where(usable, corrected, 1.0), (1 + level) / 2))
    return Interval(low, high)


def find_hotspot(
    x_l0: FloatArray, y_l0: FloatArray, mpp: Mpp, area_mm2: float, width_l0: int, height_l0: int
) -> Hotspot | None:
    """Find the 4:3 landscape window of ``area_mm2`` with the most points, over all its positions.

    Exact: a window can be moved right and down until its left and top edge each meet a point without losing
    one, so only those edges are tried. A sweep over the top edges keeps the count of
    every left edge in an array; a point that enters or leaves changes one slice of it, and only slices that
    gained can hold a new maximum. Of equal windows the topmost, then leftmost, is taken, then centred on
    its points and moved into the slide.

    Parameters
    ----------
    x_l0, y_l0
        Mitotic figures in level-0 px, shape (N,).
    mpp
        Pixel size of level 0.
    area_mm2
        Window area; the window is √(A·4/3) wide.
    width_l0, height_l0
        The slide's size. The window stays inside; where it does not fit it is cut, and its area with it.

    Returns
    -------
    Hotspot or None
        None without points.
    """
    x, y = np.asarray(x_l0, dtype=np.float64), np.asarray(y_l0, dtype=np.float64)
    width_um = math.sqrt(area_mm2 * HOTSPOT_ASPECT) * 1000
    width = min(width_um / mpp.x, float(width_l0))
    height = min(width_um / HOTSPOT_ASPECT / mpp.y, float(height_l0))
    box, count = _fullest(x, y, width, height)
    if count == 0:
        return None
    inside = box.contains(x, y)
    centred = Box(
        _centred(x[inside], width, width_l0 - width),
        _centred(y[inside], height, height_l0 - height),
        width,
        height,
    )
    if (
        int(centred.contains(x, y).sum()) == count
    ):  # not so only when the points span the window to the last ulp
        box = centred
    return Hotspot(box, count, box.area_mm2(mpp))


def _fullest(x: FloatArray, y: FloatArray, width: float, height: float) -> tuple[Box, int]:
    """Give the window with the most points, and their number."""
    order = np.argsort(y, kind="stable")
    x, y = x[order], y[order]
    lefts, tops = np.unique(x), np.unique(y)
    # Point i is inside the windows with left edges first[i]:last[i]; the same comparisons as Box.contains.
    first = np.searchsorted(lefts + width, x, side="right")
    last = np.searchsorted(lefts, x, side="right")
    leaving = np.searchsorted(y, tops, side="left")
    entering = np.searchsorted(y, tops + height, side="left")
    counts = np.zeros(len(lefts), dtype=np.int32)
    best, best_box = 0, Box(0.0, 0.0, width, height)
    gone = entered = 0
    for top, leave_to, enter_to in zip(tops, leaving, entering, strict=True):
        for i in range(gone, leave_to):
            counts[first[i] : last[i]] -= 1
        for i in range(entered, enter_to):
            counts[first[i] : last[i]] += 1
        if enter_to > entered:
            start = int(first[entered:enter_to].min())
            gained = counts[start : int(last[entered:enter_to].max())]
            at = int(gained.argmax()) if len(gained) else 0
            if len(gained) and gained[at] > best:
                best, best_box = int(gained[at]), Box(float(lefts[start + at]), float(top), width, height)
        gone, entered = leave_to, enter_to
    return best_box, best


def _centred(values: FloatArray, length: float, limit: float) -> float:
    """Give the start of a window of ``length`` centred on ``values``, kept in [0, limit]."""
    return min(max((float(values.min()) + float(values.max()) - length) / 2, 0.0), limit)


def summarise(
    *,
    info: SlideInfo,
    config: ScanConfig,
    detector: FirstStage,
    classifier: ModelCard,
    findings: pd.DataFrame,
    tissue_mm2: float,
    hotspot: Hotspot | None,
    seconds: float,
    agreed: Agreement | None = None,
    pixel_flags: tuple[str, ...] = (),
    quality: Quality | None = None,
) -> SlideSummary:
    """Count the findings and put rates, densities and their intervals beside the counts.

    Parameters
    ----------
    info, config, detector, classifier
        What was scanned, how, and with which models.
    findings
        The slide's findings table, hot spot marked.
    tissue_mm2
        Area scanned, the denominator of the densities.
    hotspot
        The slide's hot spot; None without MF.
    seconds
        Wall time of the scan.
    agreed
        Models against reviewer, where that can be said.
    pixel_flags
        QC flags that were raised by looking at the slide; they go behind those computed here.
    quality
        Focus, pen, folds and likeness, with their flags. None: those fields are left unset.

    Raises
    ------
    MppError
        When the slide has no pixel size.
    """
    mpp = info.known_mpp()
    mf = int(findings["is_mf"].sum())
    thresholds = Thresholds.of(config, detector, classifier)
    return SlideSummary.model_validate(
        {
            "slide_id": printable(info.slide_id),
            "path": printable(str(info.path)),
            "mpp_x": mpp.x,
            "mpp_y": mpp.y,
            "mpp_source": info.mpp_source,
            "tissue_mm2": tissue_mm2,
            **_density_fields(mf, tissue_mm2),
            **_rate_fields(findings, tissue_mm2, classifier, config),
            **_hotspot_fields(hotspot),
            "subtype_counts": _subtype_counts(findings),
            **_review_fields(findings, thresholds, agreed),
            **(quality.numbers() if quality else {}),
            "qc_flags": (
                *_qc_flags(info, config, detector, classifier, findings, hotspot),
                *(quality.flags(detector, classifier, tissue_mm2) if quality else ()),
                *pixel_flags,
            ),
            "detector": detector.name,
            "detector_threshold": thresholds.mitosis,
            "detector_sha256": detector.sha256[:12] if isinstance(detector, ModelCard) else "",
            "classifier": classifier.name,
            "classifier_threshold": thresholds.atypical,
            "classifier_sha256": classifier.sha256[:12],
            "mitoscan_version": __version__,
            "seconds": round(seconds, 3),
        }
    )


def printable(name: str) -> str:
    """Give a file name that can be written as UTF-8: bytes of another encoding are spelt out as escapes."""
    return name.encode("utf-8", "backslashreplace").decode()


def _density_fields(mf: int, tissue_mm2: float) -> dict[str, object]:
    interval = garwood_interval(mf, tissue_mm2)
    return {
        "mf_count": mf,
        "mf_per_mm2": mf / tissue_mm2,
        "mf_per_mm2_low": interval.low,
        "mf_per_mm2_high": interval.high,
    }


def _rate_fields(
    findings: pd.DataFrame, tissue_mm2: float, classifier: ModelCard, config: ScanConfig
) -> dict[str, object]:
    amf, nmf = (int((findings["label"] == label).sum()) for label in (AMF, NMF))
    mf = amf + nmf
    rate = Estimate(amf / mf, *wilson_interval(amf, mf)) if mf else None
    reviewed = _reviewed_share(findings)
    corrected = None
    if reviewed == 1:
        corrected = rate
    elif classifier.validation and reviewed == 0 and not _moved(config, classifier):
        corrected = corrected_rate(amf, mf, classifier.validation)
    few = f"fewer than {config.min_figures} mitotic figures" if mf < config.min_figures else ""
    return {
        "amf_count": amf,
        "nmf_count": nmf,
        **_estimate_fields("amf_rate", rate),
        "amf_rate_flag": few if mf else NO_FIGURES,
        **_estimate_fields("amf_rate_corrected", corrected),
        "amf_nmf_ratio": amf / nmf if nmf else None,
        "amf_per_mm2": amf / tissue_mm2,
    }


def _reviewed_share(findings: pd.DataFrame) -> float:
    """Give the share of MF whose label a reviewer gave.

    All of them: the labels are not the classifier's, and the rate has none of its errors. Some of them: which
    ones a reviewer looks at is hardly ever by chance (the doubtful, the atypical), so the classifier's
    sensitivity and specificity hold neither for the rest nor for the whole, and no correction is right.
    """
    figures = findings[findings["is_mf"]]
    if "label_source" not in findings or figures.empty:
        return 0.0
    return float((figures["label_source"] != BY_MODEL).mean())


def _moved(config: ScanConfig, classifier: ModelCard) -> bool:
    """Whether the AMF threshold is not the one at which sensitivity and specificity were measured."""
    given = config.amf_threshold
    return given is not None and given != classifier.operating_point.threshold


def _review_fields(
    findings: pd.DataFrame, thresholds: Thresholds, agreed: Agreement | None
) -> dict[str, object]:
    names = ("reviewed_count", "rejected_count", "added_count", "agreement_kappa", "agreement_amf_kappa")
    if "label_source" not in findings:
        return dict.fromkeys(names)
    judged = findings[findings["reviewed"]]
    called = call_findings(judged, thresholds)["is_mf"]
    return {
        "reviewed_count": len(judged),
        "rejected_count": int((called & ~judged["is_mf"]).sum()),
        "added_count": int((judged["is_mf"] & (judged["label_source"] == ADDED)).sum()),
        "agreement_kappa": agreed.kappa if agreed else None,
        "agreement_amf_kappa": agreed.amf_kappa if agreed else None,
    }


def _estimate_fields(name: str, estimate: Estimate | None) -> dict[str, object]:
    value, low, high = estimate or (None, None, None)
    return {name: value, f"{name}_low": low, f"{name}_high": high}


def _hotspot_fields(hotspot: Hotspot | None) -> dict[str, object]:
    names = ("count", "mm2", "x_l0", "y_l0", "width_l0", "height_l0")
    values: tuple[float | None, ...] = (None,) * len(names)
    if hotspot is not None:
        box = hotspot.box
        values = (hotspot.count, hotspot.area_mm2, box.x, box.y, box.width, box.height)
    return {f"hotspot_{name}": value for name, value in zip(names, values, strict=True)}


def _subtype_counts(findings: pd.DataFrame) -> dict[str, int] | None:
    if f"p_{SUBTYPES[0]}" not in findings:
        return None
    return {name: int((findings["subtype"] == name).sum()) for name in SUBTYPES}


SCORE_FLAGS = (
    "mpp given by hand",
    "slide coarser than the detector's mpp",
    "candidates outside the area scanned",
    "few mitotic figures",
    "hot spot cut to the slide",
    "partly reviewed: no corrected rate",
    "AMF threshold not the card's: no corrected rate",
)
"""The flags that follow from the findings, the configuration and the cards; all others need the slide."""


def _qc_flags(
    info: SlideInfo,
    config: ScanConfig,
    detector: FirstStage,
    classifier: ModelCard,
    findings: pd.DataFrame,
    hotspot: Hotspot | None,
) -> tuple[str, ...]:
    """Name what a reader of the numbers should know before trusting them."""
    reviewed = _reviewed_share(findings)
    off = not isinstance(detector, ModelCard) and detector.outside_area > 0
    cut = hotspot is not None and hotspot.area_mm2 < config.hotspot_mm2 * 0.999
    raised = (
        config.mpp is not None,
        isinstance(detector, ModelCard) and is_coarse(info, detector),
        off,
        int(findings["is_mf"].sum()) < config.min_figures,
        cut,
        0 < reviewed < 1,
        reviewed < 1 and _moved(config, classifier),
    )
    return tuple(flag for flag, is_raised in zip(SCORE_FLAGS, raised, strict=True) if is_raised)
