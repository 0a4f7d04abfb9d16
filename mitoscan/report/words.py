"""The numbers of a slide in plain words, for the pages."""

from __future__ import annotations

from collections.abc import Mapping

from mitoscan.scan.score import SlideSummary

_FLAGS = {
    "mpp given by hand": "The pixel size was given by hand: every area and density depends on it.",
    "slide coarser than the detector's mpp": "The slide is coarser than what the detector learnt from: "
    "figures may be missed or miscalled.",
    "candidates outside the area scanned": "Some of the candidates given lie outside the area scanned: "
    "they are counted, but check the unit and frame of their file.",
    "few mitotic figures": "Few mitotic figures: the AMF rate says little, mind its interval.",
    "hot spot cut to the slide": "The slide is smaller than the hot-spot window, which was cut to it.",
    "partly reviewed: no corrected rate": "Only some figures were reviewed: the classifier's errors can be "
    "corrected neither for them nor for the rest.",
    "AMF threshold not the card's: no corrected rate": "The AMF threshold is not the model's own, where its "
    "errors were measured: no corrected rate.",
}

_MEANING = {
    "out of focus": "figures may be missed there, and others miscalled.",
    "pen marks": "tissue below them was not scanned.",
    "folds": "figures may be missed there.",
    "unlike the training data": "the models may err more often here than was measured.",
}
"""What follows from flags that name a number, by words in them."""
_QUALITY = {
    "out_of_focus_share": "focus",
    "pen_mm2": "pen marks",
    "fold_mm2": "folds",
    "unlike_distance": "likeness to the training data",
}


def flag_in_words(flag: str) -> str:
    """Say what a QC flag means; one without a sentence of its own says it itself."""
    if flag in _FLAGS:
        return _FLAGS[flag]
    said = flag[:1].upper() + flag[1:]
    meaning = next((meaning for words, meaning in _MEANING.items() if words in flag), "")
    return f"{said}: {meaning}" if meaning else said + ("" if said.endswith(".") else ".")


def not_assessed_sentence(reasons: Mapping[str, str]) -> str:
    """Say which numbers of a slide's quality are missing, and why; empty when none is."""
    names: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        names.setdefault(reason, []).append(_QUALITY.get(name, name))
    said = [f"{' and '.join(each)} ({reason})" for reason, each in names.items()]
    return f"Not assessed: {'; '.join(said)}." if said else ""


def figures(count: int) -> str:
    """Say how many mitotic figures: ``1 mitotic figure``, ``12 mitotic figures``."""
    return f"{count} mitotic figure{'' if count == 1 else 's'}"


def number(value: float) -> str:
    """Round to three digits, without the exponent that this gives large numbers."""
    return f"{float(f'{value:.3g}'):g}"


def span(low: float | None, high: float | None) -> str:
    """Give an interval of numbers: ``36.6–63.3``."""
    return f"{number(low or 0.0)}–{number(high or 0.0)}"


def percent(value: float | None) -> str:
    """Give a share in percent to a tenth: ``15.5 %``."""
    return "–" if value is None else f"{value * 100:.1f} %"


def percent_span(low: float | None, high: float | None) -> str:
    """Give an interval of shares: ``10.6–22.2 %``."""
    return f"{(low or 0.0) * 100:.1f}–{(high or 0.0) * 100:.1f} %"


def density_sentence(summary: SlideSummary) -> str:
    """Say count, density, interval and area."""
    interval = span(summary.mf_per_mm2_low, summary.mf_per_mm2_high)
    return (
        f"{figures(summary.mf_count)} in {number(summary.tissue_mm2)} mm² scanned: "
        f"{number(summary.mf_per_mm2)} per mm², 95 % interval {interval}."
    )


def rate_sentence(summary: SlideSummary) -> str:
    """Say the AMF rate with its interval, or why there is none."""
    if summary.amf_rate is None:
        return "No mitotic figures were found, so there is no AMF rate."
    interval = percent_span(summary.amf_rate_low, summary.amf_rate_high)
    return (
        f"{summary.amf_count} of {figures(summary.mf_count)} atypical: "
        f"{percent(summary.amf_rate)}, 95 % interval {interval}."
    )


def corrected_sentence(summary: SlideSummary) -> str:
    """Say the corrected AMF rate with its interval, or why there is none."""
    if summary.amf_rate_corrected is None:
        return "" if summary.amf_rate is None else "There is no corrected rate for it."
    if summary.reviewed_count and summary.amf_rate_corrected == summary.amf_rate:
        return "All figures were reviewed: the rate has none of the classifier's errors."
    interval = percent_span(summary.amf_rate_corrected_low, summary.amf_rate_corrected_high)
    said = f"Corrected for the classifier's errors: {percent(summary.amf_rate_corrected)}, "
    said += f"95 % interval {interval}."
    if summary.amf_rate_corrected == 0:
        said += " So few are not distinguishable from those errors."
    return said


def review_sentence(summary: SlideSummary) -> str:
    """Say what a reviewer did; empty without a review."""
    if summary.reviewed_count is None:
        return ""
    count = summary.reviewed_count
    said = f"A reviewer judged {count} finding{'' if count == 1 else 's'}: "
    said += f"{summary.rejected_count or 0} rejected, {summary.added_count or 0} added."
    if summary.agreement_kappa is not None:
        said += f" Agreement with the models: kappa {summary.agreement_kappa:.2f}."
    return said


def hotspot_sentence(summary: SlideSummary) -> str:
    """Say the count of the hot spot and its area, or that there is none."""
    if summary.hotspot_count is None or summary.hotspot_mm2 is None:
        return "No hot spot without mitotic figures."
    return f"{figures(summary.hotspot_count)} in the densest {number(summary.hotspot_mm2)} mm²."
