"""The findings table: one row a merged candidate, validated, the same in memory and in findings.csv.

==============  =======  ==========================================================================
column          dtype    meaning
==============  =======  ==========================================================================
id              str      uuid; the same for the same slide, models and place
x_l0, y_l0      float64  centre in level-0 px, rounded to 0.01
x_um, y_um      float64  the same in µm from the slide's level-0 corner, rounded to 0.01
p_mitosis       float64  detector's probability, rounded to 0.0001
is_mf           bool     p_mitosis at or above the detector's operating point
p_atypical      float64  classifier's probability, rounded to 0.0001; nan: not classified
label           str      ``AMF`` or ``NMF`` for a mitotic figure, else empty
subtype         str      most probable subtype among those of the label; empty where none is reported
p_<subtype>     float64  classifier's subtype probabilities; only when subtypes are reported
in_hotspot      bool     inside the hot-spot window
reviewed        bool     a reviewer gave the label; this column and those below only after a review
label_source    str      ``model``, ``reviewer``, or ``added``: drawn by the reviewer, without scores
subtype_source  str      ``model`` or ``reviewer``: who chose the subtype
==============  =======  ==========================================================================

Rows are ordered from top to bottom (y, then x): two runs can be compared line by line. Probabilities are
rounded *before* the operating points are applied, so what is printed never contradicts is_mf and label.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from mitoscan.config import ScanConfig
from mitoscan.errors import DataError
from mitoscan.models.card import SUBTYPES, ModelCard
from mitoscan.scan.candidates import FirstStage
from mitoscan.units import Box, Mpp

FloatArray = npt.NDArray[np.float64]

AMF, NMF, NOT_MF = "AMF", "NMF", ""
NORMAL_SUBTYPES, ATYPICAL_SUBTYPES = SUBTYPES[:4], SUBTYPES[4:]
SUBTYPE_COLUMNS = tuple(f"p_{name}" for name in SUBTYPES)

BY_MODEL, BY_REVIEWER, ADDED = "model", "reviewer", "added"
REVIEW_COLUMNS = {"reviewed": "bool", "label_source": "str", "subtype_source": "str"}

POSITION_DECIMALS, PROBABILITY_DECIMALS = 2, 4

_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_DNS, "mitoscan")
_LEADING: dict[str, str] = {
    "id": "str",
    "x_l0": "float64",
    "y_l0": "float64",
    "x_um": "float64",
    "y_um": "float64",
    "p_mitosis": "float64",
    "is_mf": "bool",
    "p_atypical": "float64",
    "label": "str",
    "subtype": "str",
}


@dataclass(frozen=True)
class Thresholds:
    """Operating points in force: probabilities from which a finding is an MF, and an MF an AMF."""

    mitosis: float
    atypical: float

    @classmethod
    def of(cls, config: ScanConfig, detector: FirstStage, classifier: ModelCard) -> Thresholds:
        """Take the cards' operating points, unless the configuration overrides them."""
        mitosis, atypical = config.threshold, config.amf_threshold
        return cls(
            detector.point(config.operating_point).threshold if mitosis is None else mitosis,
            classifier.operating_point.threshold if atypical is None else atypical,
        )


@dataclass(frozen=True)
class Identity:
    """What the ids are made from: the slide's content and the weights that looked at it."""

    slide: str
    detector_sha256: str
    classifier_sha256: str

    def uuid_of(self, what: str) -> str:
        """Give the stable uuid of ``what`` under this slide and these models."""
        parts = (self.slide, self.detector_sha256, self.classifier_sha256, what)
        return str(uuid.uuid5(_NAMESPACE, "|".join(parts)))


def columns(subtypes: bool, reviewed: bool = False) -> dict[str, str]:
    """Name the table's columns, in order, with their dtypes."""
    extra = dict.fromkeys(SUBTYPE_COLUMNS, "float64") if subtypes else {}
    return {**_LEADING, **extra, "in_hotspot": "bool", **(REVIEW_COLUMNS if reviewed else {})}


def columns_of(names: Iterable[str]) -> dict[str, str]:
    """Give the columns, with their dtypes, of a table that has ``names`` among its own."""
    present = set(names)
    return columns(SUBTYPE_COLUMNS[0] in present, "label_source" in present)


def build_findings(
    *,
    x_l0: FloatArray,
    y_l0: FloatArray,
    p_mitosis: FloatArray,
    p_atypical: FloatArray,
    p_subtypes: FloatArray | None = None,
    thresholds: Thresholds,
    mpp: Mpp,
    identity: Identity,
) -> pd.DataFrame:
    """Build the validated table from the arrays of one slide; nothing is in a hot spot yet.

    Parameters
    ----------
    x_l0, y_l0
        Centres in level-0 px, shape (N,).
    p_mitosis
        Detector's probabilities, shape (N,).
    p_atypical
        Classifier's probabilities, shape (N,); nan where it was not asked, which no MF may be.
    p_subtypes
        Probabilities of ``SUBTYPES``, shape (N, 8), nan where not classified; None: not reported.
    thresholds, mpp, identity
        Operating points, pixel size of level 0, and what the ids are made from.

    Raises
    ------
    DataError
        When the values do not make a valid table.
    """
    table = pd.DataFrame(
        {
            "x_l0": np.round(np.asarray(x_l0, dtype=np.float64), POSITION_DECIMALS),
            "y_l0": np.round(np.asarray(y_l0, dtype=np.float64), POSITION_DECIMALS),
            "p_mitosis": _probability(p_mitosis),
            "p_atypical": _probability(p_atypical),
        }
    )
    table["x_um"] = np.round(table["x_l0"] * mpp.x, POSITION_DECIMALS)
    table["y_um"] = np.round(table["y_l0"] * mpp.y, POSITION_DECIMALS)
    if p_subtypes is not None:
        table[list(SUBTYPE_COLUMNS)] = _probability(p_subtypes)
    table = call_findings(table, thresholds).assign(in_hotspot=False)
    table["id"] = [
        identity.uuid_of(f"{x:.2f},{y:.2f}") for x, y in zip(table["x_l0"], table["y_l0"], strict=True)
    ]
    table = table.sort_values(["y_l0", "x_l0"], kind="stable", ignore_index=True)
    return validate_findings(
        table.astype(columns(p_subtypes is not None))[[*columns(p_subtypes is not None)]]
    )


def call_findings(findings: pd.DataFrame, thresholds: Thresholds) -> pd.DataFrame:
    """Give a copy whose ``is_mf``, ``label`` and ``subtype`` are what the models say at ``thresholds``.

    Needs the probabilities only; what a reviewer added has none and is no figure of the models.
    """
    is_mf = findings["p_mitosis"] >= thresholds.mitosis
    atypical = findings["p_atypical"] >= thresholds.atypical
    classified = is_mf & findings["p_atypical"].notna()
    label = np.where(classified, np.where(atypical, AMF, NMF), NOT_MF)
    called = findings.assign(is_mf=is_mf, label=label, subtype="")
    return called.assign(subtype=best_subtypes(called)) if SUBTYPE_COLUMNS[0] in called else called


def mark_hotspot(findings: pd.DataFrame, box: Box | None) -> pd.DataFrame:
    """Give a copy whose ``in_hotspot`` says which findings lie in ``box`` (none without one)."""
    if box is None:
        return findings.assign(in_hotspot=False)
    inside = box.contains(findings["x_l0"].to_numpy(), findings["y_l0"].to_numpy())
    return findings.assign(in_hotspot=inside)


def validate_findings(findings: pd.DataFrame) -> pd.DataFrame:
    """Give the table back when it obeys the rules of this module.

    Raises
    ------
    DataError
        Naming every fault found.
    """
    expected = columns_of(findings.columns)
    if list(findings.columns) != list(expected):
        raise DataError(f"findings columns are {list(findings.columns)}, expected {list(expected)}")
    found = list(_faults(findings, expected))
    if found:
        raise DataError("faulty findings: " + "; ".join(found))
    return findings


def read_findings(path: Path) -> pd.DataFrame:
    """Read findings.csv back to the table that was written.

    Raises
    ------
    DataError
        When the file is missing, is not such a table, or its values break the rules.
    """
    try:
        header = pd.read_csv(path, nrows=0).columns
        dtypes = columns_of(header)
        scores = ("p_mitosis", "p_atypical", *SUBTYPE_COLUMNS)
        optional = {name: [""] for name in scores if name in header}
        table = pd.read_csv(
            path,
            dtype={name: kind for name, kind in dtypes.items() if name in header},
            keep_default_na=False,
            na_values=optional,
        )
        return validate_findings(table)
    except (OSError, ValueError) as exc:
        raise DataError(f"not readable as a findings table: {exc}", path=path) from exc
    except DataError as exc:
        raise DataError(exc.message, path=path, remedy="Run mitoscan again to rewrite it.") from exc


def _probability(values: FloatArray) -> FloatArray:
    return np.asarray(values, dtype=np.float64).round(PROBABILITY_DECIMALS)


def best_subtypes(table: pd.DataFrame) -> npt.NDArray[np.str_]:
    """Name the most probable subtype of each MF among those of its label, so the two never disagree."""
    names = np.full(len(table), "", dtype=object)
    for label, group in ((NMF, NORMAL_SUBTYPES), (AMF, ATYPICAL_SUBTYPES)):
        probabilities = table[[f"p_{name}" for name in group]].to_numpy()
        rows = (table["label"] == label).to_numpy() & np.isfinite(probabilities).all(axis=1)
        names[rows] = np.array(group, dtype=object)[probabilities[rows].argmax(axis=1)]
    return names


def _faults(findings: pd.DataFrame, expected: dict[str, str]) -> Iterator[str]:
    """Yield what is wrong with a table whose columns are right."""
    for name, kind in expected.items():
        if kind != "str" and findings[name].dtype != kind:
            yield f"{name} is {findings[name].dtype}, not {kind}"
            return
    by_model = findings.get("label_source", pd.Series(BY_MODEL, findings.index)) == BY_MODEL
    added = findings.get("label_source", pd.Series(BY_MODEL, findings.index)) == ADDED
    for name in ("x_l0", "y_l0", "x_um", "y_um", "p_mitosis"):
        needed = findings[name][~added] if name == "p_mitosis" else findings[name]
        if not np.isfinite(needed).all():
            yield f"{name} has values that are not finite"
    for name in (name for name in expected if name.startswith("p_")):
        wrong = findings[name][(findings[name] < 0) | (findings[name] > 1)]
        if len(wrong):
            yield f"{name} leaves 0–1: {wrong.iloc[0]}"
    if findings["id"].duplicated().any():
        yield f"id occurs twice: {findings['id'][findings['id'].duplicated()].iloc[0]}"
    if (findings["is_mf"] & by_model & findings["p_atypical"].isna()).any():
        yield "a mitotic figure without p_atypical"
    if "label_source" in findings:
        yield from _review_faults(findings)
    yield from _label_faults(findings)


def _review_faults(findings: pd.DataFrame) -> Iterator[str]:
    """Yield contradictions between reviewed and label_source."""
    unknown = sorted(set(findings["label_source"]) - {BY_MODEL, BY_REVIEWER, ADDED})
    if unknown:
        yield f"unknown label_source: {unknown[0]!r}"
    unknown = sorted(set(findings["subtype_source"]) - {BY_MODEL, BY_REVIEWER})
    if unknown:
        yield f"unknown subtype_source: {unknown[0]!r}"
    if (findings["reviewed"] != (findings["label_source"] != BY_MODEL)).any():
        yield "reviewed and label_source disagree"


def _label_faults(findings: pd.DataFrame) -> Iterator[str]:
    """Yield contradictions between is_mf, label and subtype."""
    unknown = sorted(set(findings["label"]) - {AMF, NMF, NOT_MF})
    if unknown:
        yield f"unknown label: {unknown[0]!r}"
    unknown = sorted(set(findings["subtype"]) - {*SUBTYPES, ""})
    if unknown:
        yield f"unknown subtype: {unknown[0]!r}"
    if (findings["is_mf"] != (findings["label"] != NOT_MF)).any():
        yield "is_mf and label disagree: a label belongs to every mitotic figure and to nothing else"
    for label, others in ((AMF, NORMAL_SUBTYPES), (NMF, ATYPICAL_SUBTYPES), (NOT_MF, SUBTYPES)):
        wrong = findings["subtype"][(findings["label"] == label) & findings["subtype"].isin(others)]
        if len(wrong):
            yield f"subtype {wrong.iloc[0]!r} does not go with label {label!r}"
