from __future__ import annotations

import uuid

import numpy as np
import pandas as pd
import pytest
from results import IDENTITY, THRESHOLDS, findings

from mitoscan.errors import DataError
from mitoscan.models.card import SUBTYPES
from mitoscan.report.tables import findings_bytes
from mitoscan.scan.findings import (
    ATYPICAL_SUBTYPES,
    NORMAL_SUBTYPES,
    Identity,
    Thresholds,
    build_findings,
    mark_hotspot,
    read_findings,
    validate_findings,
)
from mitoscan.units import Box, Mpp


def build(p_mitosis, p_atypical, *, thresholds=THRESHOLDS, mpp=None, identity=IDENTITY, **arrays):
    n = len(p_mitosis)
    places = {"x_l0": np.arange(n) * 100.0, "y_l0": np.zeros(n)} | arrays
    return build_findings(
        p_mitosis=np.array(p_mitosis),
        p_atypical=np.array(p_atypical),
        thresholds=thresholds,
        mpp=mpp or Mpp(0.25, 0.25),
        identity=identity,
        **places,
    )


def test_labels_follow_the_operating_points():
    table = build([0.5, 0.49, 0.9, 0.2], [0.5, 0.9, 0.1, np.nan])
    assert table["is_mf"].tolist() == [True, False, True, False]
    assert table["label"].tolist() == ["AMF", "", "NMF", ""]


@pytest.mark.parametrize("threshold", [0.43217, 0.12345, 0.99995, 0.5])
def test_what_is_printed_never_contradicts_the_labels(threshold):
    p = np.clip(threshold + np.linspace(-2e-4, 2e-4, 401), 0, 1)
    table = build(p, p, thresholds=Thresholds(threshold, threshold))
    assert (table["is_mf"] == (table["p_mitosis"] >= threshold)).all()
    for name in ("p_mitosis", "p_atypical"):
        assert all(f"{value:.4f}" == f"{value:.9f}".rstrip("0").ljust(6, "0") for value in table[name])
    mf = table[table["is_mf"]]
    assert ((mf["label"] == "AMF") == (mf["p_atypical"] >= threshold)).all()
    assert 0 < len(mf) < len(table)


def test_micrometres_follow_each_axis():
    table = build([0.9], [0.9], mpp=Mpp(0.2273, 0.46), x_l0=np.array([1234.567]), y_l0=np.array([10_000.0]))
    assert table.loc[0, ["x_l0", "y_l0", "x_um", "y_um"]].tolist() == [1234.57, 10_000.0, 280.62, 4600.0]


def test_rows_run_from_top_to_bottom_whatever_the_order_of_the_input():
    x, y, p = np.array([5.0, 1.0, 9.0]), np.array([7.0, 7.0, 2.0]), np.array([0.1, 0.2, 0.3])
    table = build(p, np.full(3, np.nan), x_l0=x, y_l0=y)
    assert table["p_mitosis"].tolist() == [0.3, 0.2, 0.1]
    pd.testing.assert_frame_equal(table, build(p[::-1], np.full(3, np.nan), x_l0=x[::-1], y_l0=y[::-1]))


def test_ids_are_stable_and_change_with_slide_model_and_place():
    first = build([0.9], [0.1])["id"][0]
    assert first == build([0.7], [0.8])["id"][0]
    assert uuid.UUID(first).version == 5
    others = [Identity("other", "a" * 64, "b" * 64), Identity("slide", "c" * 64, "b" * 64)]
    others.append(Identity("slide", "a" * 64, "c" * 64))
    ids = {build([0.9], [0.1], identity=identity)["id"][0] for identity in others}
    ids |= {build([0.9], [0.1], x_l0=np.array([0.01]))["id"][0], first}
    assert len(ids) == 5


def test_ids_do_not_change_between_versions():
    """They link a reviewer's work in QuPath to the table: a change orphans it."""
    assert build([0.9], [0.1])["id"][0] == "424b23c0-9cdc-5f95-b9b1-234c4ec6cadc"


def test_subtype_is_the_likeliest_of_its_label():
    likeliest_is_metaphase = np.array([[0.1, 0.5, 0, 0, 0.1, 0.3, 0, 0]] * 3)
    table = build([0.9, 0.9, 0.1], [0.9, 0.1, 0.1], p_subtypes=likeliest_is_metaphase)
    assert table["subtype"].tolist() == ["multipolar", "metaphase", ""]
    table = findings(500, subtypes=True)
    assert set(table["subtype"][table["label"] == "AMF"]) <= set(ATYPICAL_SUBTYPES)
    assert set(table["subtype"][table["label"] == "NMF"]) <= set(NORMAL_SUBTYPES)


@pytest.mark.parametrize("subtypes", [False, True])
@pytest.mark.parametrize("n", [0, 1, 300])
def test_csv_reads_back_to_the_same_table(tmp_path, n, subtypes):
    table = mark_hotspot(findings(n, subtypes=subtypes), Box(0, 0, 4000, 4000))
    path = tmp_path / "findings.csv"
    path.write_bytes(findings_bytes(table))
    pd.testing.assert_frame_equal(read_findings(path), table)


def test_columns_are_those_documented():
    leading = ["id", "x_l0", "y_l0", "x_um", "y_um", "p_mitosis", "is_mf", "p_atypical", "label", "subtype"]
    assert list(findings()) == [*leading, "in_hotspot"]
    assert list(findings(subtypes=True)) == [*leading, *(f"p_{name}" for name in SUBTYPES), "in_hotspot"]


def test_hotspot_marks_what_lies_inside_and_clears_what_did_before():
    table = build([0.9, 0.9, 0.1], [0.1, 0.1, 0.1])
    marked = mark_hotspot(table, Box(100, -1, 150, 2))
    assert marked["in_hotspot"].tolist() == [False, True, True]
    assert not mark_hotspot(marked, None)["in_hotspot"].any()
    assert not table["in_hotspot"].any()


def test_every_fault_is_named():
    table = findings(50, subtypes=True)
    table.loc[0, "x_l0"] = np.nan
    table.loc[1, "p_mitosis"] = 1.5
    table.loc[2, "id"] = table.loc[3, "id"]
    table.loc[4, "label"] = "mitosis"
    table.loc[5, "subtype"] = "round"
    table.loc[table["is_mf"].idxmax(), "p_atypical"] = np.nan
    with pytest.raises(DataError) as caught:
        validate_findings(table)
    for fault in ("x_l0", "1.5", "id occurs twice", "'mitosis'", "'round'", "without p_atypical", "disagree"):
        assert fault in str(caught.value)


@pytest.mark.parametrize(("label", "subtype"), [("AMF", "metaphase"), ("NMF", "multipolar"), ("", "ring")])
def test_subtype_and_label_must_agree(label, subtype):
    table = build([0.9 if label else 0.1], [0.9 if label == "AMF" else 0.1])
    table["subtype"] = subtype
    with pytest.raises(DataError, match=subtype):
        validate_findings(table)


def test_an_mf_must_be_classified():
    with pytest.raises(DataError, match="without p_atypical"):
        build([0.9], [np.nan])


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("", "not readable"),
        ("a,b\n1,2\n", "expected"),
        ("slides\x00\xff", "expected"),
    ],
)
def test_a_file_that_is_no_findings_table_is_refused_by_name(tmp_path, content, fault):
    path = tmp_path / "findings.csv"
    path.write_text(content)
    with pytest.raises(DataError, match=fault) as caught:
        read_findings(path)
    assert caught.value.path == path


def test_edited_values_and_missing_files_are_refused_by_name(tmp_path):
    path = tmp_path / "findings.csv"
    for old, new, fault in (("True", "maybe", "bool"), ("AMF", "XMF", "unknown label: 'XMF'")):
        path.write_bytes(findings_bytes(findings()).replace(old.encode(), new.encode()))
        with pytest.raises(DataError, match=fault) as caught:
            read_findings(path)
        assert caught.value.path == path
    with pytest.raises(DataError, match="No such file"):
        read_findings(tmp_path / "none.csv")
