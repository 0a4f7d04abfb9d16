"""A reviewer's judgements laid over the findings, and how far models and reviewer agree.

A judgement wins over the models at every threshold. What a reviewer drew is taken for the finding that lies
within the match radius of it, where there is one: a figure that the detector scored low is not counted twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.spatial import cKDTree

from mitoscan.config import Frozen
from mitoscan.scan.findings import (
    ADDED,
    AMF,
    BY_MODEL,
    BY_REVIEWER,
    NMF,
    NOT_MF,
    POSITION_DECIMALS,
    REVIEW_COLUMNS,
    SUBTYPE_COLUMNS,
    Identity,
    Thresholds,
    best_subtypes,
    call_findings,
    columns_of,
    validate_findings,
)
from mitoscan.units import Mpp

MATCH_RADIUS_UM = 7.5
LABELS = (AMF, NMF, NOT_MF)


@dataclass(frozen=True)
class Judgement:
    """What a reviewer says of one figure."""

    label: str
    """``AMF``, ``NMF``, or empty: not a mitotic figure."""
    subtype: str = ""
    """Empty: not said."""
    finding: str = ""
    """Id of the finding judged; empty: a figure that the reviewer drew."""
    x_l0: float = float("nan")
    y_l0: float = float("nan")
    """Where it was drawn, level-0 px."""


class Agreement(Frozen):
    """Models against reviewer, over the figures that the reviewer judged."""

    n: int
    confusion: dict[str, dict[str, int]]
    """Model's label → reviewer's label → figures; labels ``AMF``, ``NMF`` and ``not MF``."""
    kappa: float | None
    """Cohen's kappa of the three labels; None where it is not defined (everything has one label)."""
    amf_n: int
    """Figures that both hold for mitotic."""
    amf_kappa: float | None
    """Cohen's kappa of AMF against NMF among those."""


def lay_over(
    findings: pd.DataFrame,
    judgements: Sequence[Judgement],
    thresholds: Thresholds,
    mpp: Mpp,
    identity: Identity,
) -> pd.DataFrame:
    """Label the findings as the models do at ``thresholds``, then as the reviewer does.

    Judgements that the table already holds stay, unless ``judgements`` has a newer one. Without any, the
    table has no review columns.

    Parameters
    ----------
    findings
        The table; its hot spot is not kept.
    judgements
        The newer ones. Those of findings must name ids of the table.
    thresholds, mpp, identity
        Operating points, pixel size of level 0, and what the ids are made from.

    Raises
    ------
    KeyError
        When a judgement names a finding that is not in the table.
    DataError
        When the outcome is no valid table.
    """
    held = "label_source" in findings
    table = call_findings(findings, thresholds).assign(in_hotspot=False)
    if not held and not judgements:
        return validate_findings(table)
    if held:
        kept = (findings["label_source"] != BY_MODEL).to_numpy()
        table["is_mf"] = np.where(kept, findings["is_mf"], table["is_mf"])
        for name in ("label", "subtype", "subtype_source"):
            table[name] = table[name].where(~kept, findings[name])
    else:
        table = table.assign(reviewed=False, label_source=BY_MODEL, subtype_source=BY_MODEL)
    table = _judge(table, [j for j in judgements if j.finding])
    drawn = [j for j in judgements if not j.finding]
    if drawn:
        table = _draw(table, drawn, mpp, identity)
    expected = columns_of(table.columns)
    table = table.sort_values(["y_l0", "x_l0"], kind="stable", ignore_index=True)
    return validate_findings(table.astype(expected)[[*expected]])


def without_review(findings: pd.DataFrame) -> pd.DataFrame:
    """Give the table as it was before any review; ``lay_over`` then says what the models say."""
    if "label_source" not in findings:
        return findings
    kept = findings[findings["label_source"] != ADDED].drop(columns=[*REVIEW_COLUMNS])
    return kept.reset_index(drop=True)


def agreement(findings: pd.DataFrame, thresholds: Thresholds) -> Agreement | None:
    """Compare the models' labels at ``thresholds`` with the reviewer's; None when nothing was reviewed.

    A figure that the reviewer added is one that the models did not call. Kappa is that of Cohen (Educ Psychol
    Meas 1960).
    """
    if "label_source" not in findings:
        return None
    judged = findings[findings["reviewed"]]
    if judged.empty:
        return None
    called = call_findings(judged, thresholds)["label"].to_numpy()
    said = judged["label"].to_numpy()
    counts = np.array([[int(((called == a) & (said == b)).sum()) for b in LABELS] for a in LABELS])
    names = [label or "not MF" for label in LABELS]
    return Agreement(
        n=len(judged),
        confusion={
            a: dict(zip(names, map(int, row), strict=True)) for a, row in zip(names, counts, strict=True)
        },
        kappa=cohens_kappa(counts),
        amf_n=int(counts[:2, :2].sum()),
        amf_kappa=cohens_kappa(counts[:2, :2]),
    )


def cohens_kappa(counts: npt.NDArray[np.int_]) -> float | None:
    """Give Cohen's kappa of a square table of counts; None without counts or when only one label occurs."""
    n = counts.sum()
    if n == 0:
        return None
    observed = np.trace(counts) / n
    expected = float(counts.sum(axis=0) @ counts.sum(axis=1)) / float(n) ** 2
    return None if expected == 1 else float((observed - expected) / (1 - expected))


def _judge(table: pd.DataFrame, judgements: Sequence[Judgement]) -> pd.DataFrame:
    """Write judgements of findings into the table; those of added figures leave them added."""
    place = {name: row for row, name in enumerate(table["id"])}
    names = ("label", "subtype", "label_source", "subtype_source")
    label, subtype, source, subtype_source = (table[name].to_numpy(object, copy=True) for name in names)
    relabelled = np.zeros(len(table), dtype=bool)
    for judgement in judgements:
        row = place[judgement.finding]
        relabelled[row] = not judgement.subtype and label[row] != judgement.label
        label[row], subtype[row] = judgement.label, judgement.subtype or subtype[row]
        if judgement.subtype or relabelled[row]:
            subtype_source[row] = BY_REVIEWER if judgement.subtype else BY_MODEL
        source[row] = ADDED if source[row] == ADDED else BY_REVIEWER
    table = table.assign(
        label=label,
        subtype=subtype,
        label_source=source,
        subtype_source=subtype_source,
        is_mf=label != NOT_MF,
        reviewed=source != BY_MODEL,
    )
    # The models' best subtype under the reviewer's label, where subtypes are reported.
    likely = best_subtypes(table) if SUBTYPE_COLUMNS[0] in table else ""
    return table.assign(subtype=np.where(relabelled, likely, subtype))


def _draw(table: pd.DataFrame, drawn: Sequence[Judgement], mpp: Mpp, identity: Identity) -> pd.DataFrame:
    """Give drawn figures to the findings that they lie on, one to one by distance; add the others."""
    um = np.array([mpp.x, mpp.y])
    points = np.array([[j.x_l0, j.y_l0] for j in drawn]) * um
    taken = dict(_nearest(points, table[["x_l0", "y_l0"]].to_numpy() * um))
    on_findings = [
        Judgement(drawn[point].label, drawn[point].subtype, table["id"].iloc[row])
        for point, row in taken.items()
    ]
    table = _judge(table, on_findings)
    # What is left is new; figures that are drawn twice at one place are one figure.
    left = [number for number in range(len(drawn)) if number not in taken]
    fresh = list({_rounded(drawn[number]): drawn[number] for number in left}.items())
    if not fresh:
        return table
    rows = pd.DataFrame(
        {
            "id": [identity.uuid_of(f"{x:.2f},{y:.2f}") for (x, y), _ in fresh],
            "x_l0": [x for (x, _), _ in fresh],
            "y_l0": [y for (_, y), _ in fresh],
            "x_um": [round(x * mpp.x, POSITION_DECIMALS) for (x, _), _ in fresh],
            "y_um": [round(y * mpp.y, POSITION_DECIMALS) for (_, y), _ in fresh],
            "is_mf": [j.label != NOT_MF for _, j in fresh],
            "label": [j.label for _, j in fresh],
            "subtype": [j.subtype for _, j in fresh],
            "in_hotspot": False,
            "reviewed": True,
            "label_source": ADDED,
            "subtype_source": [BY_REVIEWER if j.subtype else BY_MODEL for _, j in fresh],
        }
    )
    scores = {name: np.nan for name in table.columns if name.startswith("p_")}
    return pd.concat([table, rows.assign(**scores)[[*table.columns]]], ignore_index=True)


def _rounded(judgement: Judgement) -> tuple[float, float]:
    return round(judgement.x_l0, POSITION_DECIMALS), round(judgement.y_l0, POSITION_DECIMALS)


def _nearest(points: npt.NDArray[np.float64], findings: npt.NDArray[np.float64]) -> list[tuple[int, int]]:
    """Pair points (N, 2) with findings (M, 2), in µm: the closest pairs first, each used once."""
    if not len(findings):
        return []
    close = cKDTree(points).sparse_distance_matrix(
        cKDTree(findings), MATCH_RADIUS_UM, output_type="coo_matrix"
    )
    pairs, points_used, rows_used = [], set(), set()
    for _, point, row in sorted(zip(close.data, close.row, close.col, strict=True)):
        if point not in points_used and row not in rows_used:
            points_used.add(point)
            rows_used.add(row)
            pairs.append((int(point), int(row)))
    return pairs
