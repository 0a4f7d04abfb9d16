"""Score a slide again from its findings, with other thresholds or a reviewer's labels: no pixel is read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pandas as pd

from mitoscan.config import ScanConfig
from mitoscan.errors import ConfigError
from mitoscan.scan.classify import CLASSIFY_SHARE
from mitoscan.scan.findings import BY_MODEL, PROBABILITY_DECIMALS, Thresholds, mark_hotspot
from mitoscan.scan.result import SlideResult
from mitoscan.scan.review import Agreement, Judgement, agreement, lay_over, without_review
from mitoscan.scan.score import SCORE_FLAGS, find_hotspot, summarise


@dataclass(frozen=True)
class Rescoring:
    """How to score again."""

    config: ScanConfig
    """Of the scan, with ``threshold``, ``amf_threshold`` and ``hotspot_mm2`` as now wanted."""
    judgements: Sequence[Judgement] = ()
    forget: bool = False
    """Drop the reviewer's labels that the findings hold."""
    comparable: bool = True
    """Whether the judged figures are what the reviewer looked at, and not only those she changed: without
    that nothing can be said about the agreement."""


def rescore(result: SlideResult, how: Rescoring, scanned_at: float) -> tuple[SlideResult, Agreement | None]:
    """Give the result as it would be under ``how``, and how far models and reviewer agree.

    Parameters
    ----------
    result
        A finished one.
    how
        What changes.
    scanned_at
        Detector threshold of the scan; ``floor_of`` it is the lowest that can be asked for.

    Raises
    ------
    ConfigError
        When the threshold is below that floor.
    """
    config, info, mpp = how.config, result.info, result.info.known_mpp()
    thresholds = Thresholds.of(config, result.detector, result.classifier)
    findings = without_review(result.findings) if how.forget else result.findings
    _refuse_unclassified(findings, thresholds, scanned_at)
    findings = lay_over(findings, how.judgements, thresholds, mpp, result.identity)
    figures = findings[findings["is_mf"]]
    hotspot = find_hotspot(
        figures["x_l0"].to_numpy(),
        figures["y_l0"].to_numpy(),
        mpp,
        config.hotspot_mm2,
        info.width_l0,
        info.height_l0,
    )
    findings = mark_hotspot(findings, None if hotspot is None else hotspot.box)
    agreed = agreement(findings, thresholds) if how.comparable else None
    summary = summarise(
        info=info,
        config=config,
        detector=result.detector,
        classifier=result.classifier,
        findings=findings,
        tissue_mm2=result.summary.tissue_mm2,
        hotspot=hotspot,
        seconds=result.summary.seconds,
        agreed=agreed,
        pixel_flags=tuple(flag for flag in result.summary.qc_flags if flag not in SCORE_FLAGS),
    )
    # What the score does not set was found on the slide or said by a manifest, and stays.
    rest = {name: value for name, value in result.summary if name not in summary.model_fields_set}
    summary = summary.model_copy(update=rest)
    changed = replace(
        result,
        config=config,
        findings=findings,
        hotspot=hotspot,
        summary=summary,
    )
    return changed, agreed


def floor_of(scanned_at: float) -> float:
    """Give the lowest p_mitosis whose findings were all classified in a scan at this threshold."""
    places = 10**PROBABILITY_DECIMALS
    return float(math.ceil(scanned_at * CLASSIFY_SHARE * places - 1e-9) / places)


def _refuse_unclassified(findings: pd.DataFrame, thresholds: Thresholds, scanned_at: float) -> None:
    """Refuse a threshold that would make figures of findings that the classifier never saw."""
    by_model = findings.get("label_source", pd.Series(BY_MODEL, findings.index)) == BY_MODEL
    unseen = findings["p_mitosis"][by_model & findings["p_atypical"].isna()]
    floor = max([floor_of(scanned_at), *(unseen + 10**-PROBABILITY_DECIMALS).round(PROBABILITY_DECIMALS)])
    if thresholds.mitosis < floor:
        raise ConfigError(
            f"--threshold {thresholds.mitosis:g} is below {floor:g}: what scores lower was not classified",
            remedy=f"Take {floor:g} or more, or scan the slide again with the lower --threshold.",
        )
