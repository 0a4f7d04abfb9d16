"""The measures of a study: what each is, its value for a case with several slides, and for the cohort."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mitoscan.models.card import Counts, ModelCard, load_card
from mitoscan.models.zoo import shipped_models
from mitoscan.scan.score import (
    Estimate,
    corrected_interval,
    corrected_rate,
    garwood_interval,
    wilson_interval,
)
from mitoscan.study.join import Member
from mitoscan.study.slides import Model, SlideRow
from mitoscan.study.statistics import NAN, FloatArray, bias_corrected, median_estimate, stream


@dataclass(frozen=True)
class Measure:
    """What can be studied of a case."""

    name: str
    label: str
    unit: str
    """Empty for counts and rates."""
    is_rate: bool = False

    @property
    def title(self) -> str:
        """Label with its unit."""
        return f"{self.label} ({self.unit})" if self.unit else self.label

    def show(self, value: float) -> str:
        """Give a value as people read it."""
        if value != value:
            return "–"
        return f"{value:.1%}" if self.is_rate else f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


MEASURES = {
    measure.name: measure
    for measure in (
        Measure("amf_rate", "AMF rate", "", True),
        Measure("amf_rate_corrected", "AMF rate, corrected", "", True),
        Measure("amf_per_mm2", "AMF density", "per mm²"),
        Measure("amf_count", "AMF count", ""),
        Measure("mf_per_mm2", "MF density", "per mm²"),
        Measure("mf_count", "MF count", ""),
        Measure("hotspot_count", "MF in the hot spot", ""),
    )
}


@dataclass(frozen=True)
class CaseValues:
    """The numbers of one member of the study."""

    id: str
    slides: int
    tissue_mm2: float
    mf: int
    amf: int
    hotspot_slide: str
    hotspot_mm2: float | None
    estimates: dict[str, Estimate]
    """By measure; nan is not defined, or no interval exists."""


@dataclass(frozen=True)
class Description:
    """How a measure is distributed over the cohort."""

    measure: Measure
    n: int
    """Members for which it is defined."""
    zeros: int
    mean: float
    sd: float
    median: Estimate
    quartile_low: float
    quartile_high: float
    least: float
    most: float


@dataclass(frozen=True)
class Pooled:
    """The rate of all figures of the cohort together."""

    name: str
    amf: int
    mf: int
    rate: Estimate
    note: str = ""


@dataclass(frozen=True)
class Validation:
    """The confusion counts that belong to the classifiers of a study, and why some were not found."""

    counts: dict[Model, Counts]
    faults: tuple[str, ...]


NOT_DEFINED = Estimate(NAN, NAN, NAN)


def find_validation(classifiers: Iterable[Model], folders: Sequence[Path] = ()) -> Validation:
    """Find the held-out counts of the classifiers: among the shipped cards and those in ``folders``.

    A card counts when its name, checksum and threshold are those of the slides: counts of other weights or of
    another operating point would correct wrongly.

    Raises
    ------
    ModelError
        When a folder given has no card or a faulty one.
    """
    cards = [load_card(folder) for folder in (*shipped_models().values(), *folders)]
    counts, faults = {}, []
    for model in dict.fromkeys(classifiers):
        card, fault = _card_of(model, cards)
        if card is not None and card.validation is not None:
            counts[model] = card.validation
        else:
            faults.append(f"No correction for classifier {model}: {fault}")
    return Validation(counts, tuple(faults))


def _card_of(model: Model, cards: Sequence[ModelCard]) -> tuple[ModelCard | None, str]:
    named = [card for card in cards if card.name == model.name and card.task == "classifier"]
    if not named:
        return None, "its card was not found; give its folder with --classifier."
    fitting = [card for card in named if model.sha256 and card.sha256.startswith(model.sha256)]
    if not fitting:
        return None, "the card of this name belongs to other weights; give the folder with --classifier."
    card = fitting[0]
    if abs(card.operating_point.threshold - model.threshold) > 1e-9:
        return None, f"its card was validated at threshold {card.operating_point.threshold:g}."
    return card, "its card states no validation."


def case_values(member: Member, validation: Validation, min_figures: int = 1) -> CaseValues:
    """Put the slides of a member together.

    Counts and tissue are summed, so densities are weighted by tissue; the hot spot is the fullest of those of
    the slides. Intervals: Garwood's for counts and densities, Wilson's for the rate; the corrected rate is
    computed anew from the summed counts. They hold the chance of counting, not differences between slides.

    Parameters
    ----------
    member
        With at least one slide.
    validation
        Of the classifiers. Where it lacks one or a reviewer gave labels, a single slide's own corrected rate
        is taken, and several slides have one only where their labels are alike in origin.
    min_figures
        Below so many mitotic figures the rates are not defined.
    """
    slides = member.slides
    mf, amf = sum(slide.mf for slide in slides), sum(slide.amf for slide in slides)
    tissue = sum(slide.tissue_mm2 for slide in slides)
    fullest = max(slides, key=lambda slide: slide.hotspot_count)
    rated = mf >= min_figures
    estimates = {
        "amf_rate": Estimate(amf / mf, *wilson_interval(amf, mf)) if rated else NOT_DEFINED,
        "amf_rate_corrected": _corrected(member, amf, mf, validation) if rated else NOT_DEFINED,
        "amf_per_mm2": Estimate(amf / tissue, *garwood_interval(amf, tissue)),
        "amf_count": Estimate(amf, *garwood_interval(amf, 1.0)),
        "mf_per_mm2": Estimate(mf / tissue, *garwood_interval(mf, tissue)),
        "mf_count": Estimate(mf, *garwood_interval(mf, 1.0)),
        "hotspot_count": Estimate(fullest.hotspot_count, NAN, NAN),
    }
    found = fullest.hotspot_count > 0
    return CaseValues(
        id=member.id,
        slides=len(slides),
        tissue_mm2=tissue,
        mf=mf,
        amf=amf,
        hotspot_slide=fullest.slide_id if found else "",
        hotspot_mm2=fullest.hotspot_mm2 if found else None,
        estimates=estimates,
    )


def _corrected(member: Member, amf: int, mf: int, validation: Validation) -> Estimate:
    if len(member.slides) == 1:
        slide = member.slides[0]
        counts = None if slide.reviewed else validation.counts.get(slide.classifier)
        estimate = corrected_rate(amf, mf, counts) if counts else slide.corrected
        return estimate or NOT_DEFINED
    judged = {judge(slide, validation) for slide in member.slides if slide.mf}
    if judged == {"reviewer"}:
        return Estimate(amf / mf, *wilson_interval(amf, mf))
    classifiers = {slide.classifier for slide in member.slides if slide.mf}
    if judged == {"classifier"} and len(classifiers) == 1:
        return corrected_rate(amf, mf, validation.counts[classifiers.pop()]) or NOT_DEFINED
    return NOT_DEFINED


def judge(slide: SlideRow, validation: Validation) -> str:
    """Say whose errors are in a slide's labels: classifier (and can be corrected for), reviewer, or unknown.

    After a review of every figure the rate itself is the corrected one, after one that only rejected false
    alarms the correction stays as it is, after any other there is none; see ``scan.score``.
    """
    counts = validation.counts.get(slide.classifier)
    if not slide.reviewed:
        return "classifier" if counts else "unknown"
    if slide.corrected is None or not slide.mf:
        return "unknown"
    if math.isclose(slide.corrected.value, slide.amf / slide.mf, rel_tol=1e-9, abs_tol=1e-12):
        return "reviewer"
    of_card = corrected_rate(slide.amf, slide.mf, counts) if counts else None
    same = of_card is not None and math.isclose(slide.corrected.value, of_card.value, abs_tol=1e-9)
    return "classifier" if same else "unknown"


def values_of(cases: Sequence[CaseValues], measure: str) -> FloatArray:
    """Give a measure of all members, shape (N,), nan where it is not defined."""
    return np.array([case.estimates[measure].value for case in cases], dtype=np.float64)


def describe(cases: Sequence[CaseValues]) -> list[Description]:
    """Describe the distribution of every measure that is defined for somebody."""
    found = []
    for measure in MEASURES.values():
        values = values_of(cases, measure.name)
        values = values[np.isfinite(values)]
        if not len(values):
            continue
        low, high = np.quantile(values, (0.25, 0.75))
        found.append(
            Description(
                measure=measure,
                n=len(values),
                zeros=int(np.count_nonzero(values == 0)),
                mean=float(values.mean()),
                sd=float(values.std(ddof=1)) if len(values) > 1 else NAN,
                median=median_estimate(values),
                quartile_low=float(low),
                quartile_high=float(high),
                least=float(values.min()),
                most=float(values.max()),
            )
        )
    return found


def pooled_rates(cases: Sequence[CaseValues], counts: Counts | None, seed: int, draws: int) -> list[Pooled]:
    """Give the AMF rate of all figures together, raw and corrected.

    The intervals resample whole members, because figures of one tumour are alike (Field & Welsh, J R Stat
    Soc B 2007). That of the corrected rate also draws sensitivity and specificity.

    Parameters
    ----------
    cases
        The members.
    counts
        Of the one classifier; None: no corrected rate.
    seed, draws
        Of the bootstrap.
    """
    mf, amf = np.array([case.mf for case in cases]), np.array([case.amf for case in cases])
    if mf.sum() == 0:
        return []
    rng = stream(seed, "pooled")
    rates = np.full(draws, NAN)
    for i in range(draws):
        drawn = rng.integers(len(cases), size=len(cases))
        rates[i] = amf[drawn].sum() / mf[drawn].sum() if mf[drawn].sum() else NAN
    rates = rates[np.isfinite(rates)]
    value = float(amf.sum() / mf.sum())
    note = "" if len(cases) > 1 else "One member: an interval over members does not exist."
    ends = bias_corrected(rates, value) if len(cases) > 1 else (NAN, NAN)
    found = [Pooled("AMF rate", int(amf.sum()), int(mf.sum()), Estimate(value, *ends), note)]
    corrected = corrected_rate(int(amf.sum()), int(mf.sum()), counts) if counts else None
    if counts and corrected:
        ends = corrected_interval(rates, counts, rng) if len(cases) > 1 else (NAN, NAN)
        low, high = min(ends[0], corrected.value), max(ends[1], corrected.value)
        estimate = Estimate(corrected.value, low, high)
        found.append(Pooled("AMF rate, corrected", int(amf.sum()), int(mf.sum()), estimate, note))
    return found
