from __future__ import annotations

import csv
import errno
import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import geojson_check
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from results import findings, info, result

from mitoscan.errors import DataError, OutputError
from mitoscan.report.atomic import write_atomically
from mitoscan.report.colours import COLOURS
from mitoscan.report.figures import overview
from mitoscan.report.record import package_versions
from mitoscan.report.tables import read_summary, write_slides_csv
from mitoscan.report.writer import ensure_writable, folder_name, write_slide
from mitoscan.scan.findings import read_findings

FILES = {
    "findings.csv",
    "findings.geojson",
    "summary.json",
    "overview.png",
    "pictures.zip",
    "record.json",
    "report.html",
}


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# The folder of a slide


@pytest.mark.parametrize("n", [0, 200])
def test_table_geojson_summary_and_picture_agree(tmp_path, n):
    folder = write_slide(result(findings(n, subtypes=True)), tmp_path / "new" / "out")
    assert folder == tmp_path / "new" / "out" / "example"
    assert names(folder) == FILES
    table, summary = read_findings(folder / "findings.csv"), read_summary(folder / "summary.json")
    collection = geojson_check.load(folder / "findings.geojson")
    mf = table[table["is_mf"]]
    assert summary.mf_count == len(mf)
    for label, count in (("AMF", summary.amf_count), ("NMF", summary.nmf_count)):
        ids = mf["id"][mf["label"] == label]
        assert [f["id"] for f in geojson_check.of_class(collection, label)] == list(ids)
        assert len(ids) == count
    assert (summary.hotspot_count or 0) == (mf["in_hotspot"]).sum()
    hotspots = geojson_check.of_class(collection, "Hot spot")
    assert [f["properties"]["measurements"]["mf_count"] for f in hotspots] == [summary.hotspot_count] * (
        n > 0
    )
    assert {k: (mf["subtype"] == k).sum() for k in summary.subtype_counts} == summary.subtype_counts
    with Image.open(folder / "overview.png") as picture:
        picture.load()


def test_the_record_says_what_made_the_result(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["mitoscan", "run", "my slide.svs"])
    whole = result(hotspot_mm2=2.37)
    record = json.loads((write_slide(whole, tmp_path) / "record.json").read_text())
    assert record["detector"] == {"name": "fake-detector", "sha256": "a" * 64, "mpp": 0.25, "threshold": 0.5}
    assert record["classifier"]["sha256"] == "b" * 64
    assert record["slide"]["mpp_source"] == "openslide.mpp-x"
    assert record["config"]["hotspot_mm2"] == 2.37
    assert record["seconds"] == {"total": 12.346, "detect": 9.877, "classify": 2.0}
    assert record["command"] == "mitoscan run 'my slide.svs'"
    assert record["versions"]["numpy"] == np.__version__
    assert record["started_utc"] < record["finished_utc"]
    assert record["finished_utc"].endswith("+00:00")


def test_versions_need_no_import():
    before = set(sys.modules)
    assert "torch" in package_versions()
    assert not {name for name in set(sys.modules) - before if name.startswith(("torch", "openvino"))}


def test_a_finished_result_is_kept_unless_told_to_overwrite(tmp_path):
    folder = write_slide(result(findings(10)), tmp_path)
    with pytest.raises(OutputError, match="--overwrite") as caught:
        write_slide(result(findings(20)), tmp_path)
    assert caught.value.path == folder
    assert len(read_findings(folder / "findings.csv")) == 10
    write_slide(result(findings(20)), tmp_path, overwrite=True)
    assert len(read_findings(folder / "findings.csv")) == 20
    assert names(folder) == FILES


def test_an_unfinished_result_is_completed_without_being_told(tmp_path):
    folder = write_slide(result(), tmp_path)
    (folder / "record.json").unlink()
    write_slide(result(), tmp_path)
    assert names(folder) == FILES


@pytest.mark.parametrize("failing", range(1, len(FILES) + 1))
def test_a_full_disk_leaves_nothing_that_looks_finished(tmp_path, monkeypatch, failing):
    """Whichever file meets it: the old record is gone, no new one appears, no half file stays."""
    write_slide(result(findings(10)), tmp_path)
    calls = []

    def full(handle: int) -> None:
        calls.append(handle)
        if len(calls) == 2 * failing - 1:  # each file is synced, then its folder
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match="No space left on device") as caught:
        write_slide(result(findings(20)), tmp_path, overwrite=True)
    folder = tmp_path / "example"
    assert caught.value.path.parent == folder
    assert names(folder) == FILES - {"record.json"}
    assert len(read_findings(folder / "findings.csv")) == (10 if failing == 1 else 20)


def test_a_fault_in_the_result_leaves_the_old_one_untouched(tmp_path):
    folder = write_slide(result(findings(10)), tmp_path)
    broken = replace(result(findings(20)), thumbnail=np.zeros((9, 9, 3), np.float64))
    with pytest.raises(TypeError):
        write_slide(broken, tmp_path, overwrite=True)
    assert names(folder) == FILES
    assert len(read_findings(folder / "findings.csv")) == 10


# Before the work


def test_a_writable_place_is_left_empty(tmp_path):
    assert ensure_writable(tmp_path / "out", "slide", overwrite=False) == tmp_path / "out" / "slide"
    assert names(tmp_path / "out") == set()


def test_output_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "out").write_text("mine")
    for place in ("out", "out/below"):
        with pytest.raises(OutputError, match="cannot be written") as caught:
            ensure_writable(tmp_path / place, "slide", overwrite=True)
        assert caught.value.path.is_relative_to(tmp_path / "out")
    (tmp_path / "slide").write_text("mine")
    with pytest.raises(OutputError, match="cannot be written"):
        ensure_writable(tmp_path, "slide", overwrite=True)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_output_without_permission_is_refused(tmp_path):
    (tmp_path / "out").mkdir(mode=0o500)
    with pytest.raises(OutputError, match="Permission denied"):
        ensure_writable(tmp_path / "out", "slide", overwrite=False)


def test_a_link_out_of_the_output_folder_is_not_followed(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out" / "slide").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OutputError, match="leads out"):
        ensure_writable(tmp_path / "out", "slide", overwrite=True)


def test_an_output_folder_may_itself_be_a_link(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk")
    assert names(write_slide(result(), tmp_path / "out")) == FILES


@pytest.mark.parametrize("slide_id", ["TCGA-CR-7395.01", "Größe 3 (b)", "切片", "a,b+c=d@e#f&g"])
def test_ordinary_names_stay_as_they_are(slide_id):
    assert folder_name(slide_id) == slide_id


UNSAFE = [
    "",
    ".",
    "..",
    "../up",
    "/etc/x",
    "a/b",
    "a\\b",
    "C:x",
    "new\nline",
    "nul",
    "COM1.x",
    ".hidden",
    "end.",
    "end ",
    "n\x00l",
    "x" * 300,
    "切" * 100,
    "bad\udce9byte",
]


@pytest.mark.parametrize("slide_id", UNSAFE)
def test_unsafe_names_become_safe_ones_inside_the_output_folder(tmp_path, slide_id):
    folder = write_slide(result(slide=info(slide_id=slide_id, path=Path("bad\udce9byte.svs"))), tmp_path)
    assert folder.parent == tmp_path
    assert folder.name != slide_id
    assert names(tmp_path) == {folder.name}
    assert names(folder) == FILES
    assert len(folder.name.encode()) < 200
    assert folder.name == folder.name.strip(" .")


def test_unsafe_names_stay_apart():
    made = [folder_name(slide_id) for slide_id in [*UNSAFE, "a_b", "new_line", "x" * 299, "slide"]]
    assert len(set(made)) == len(made)


# Tables


def test_slides_csv_has_a_row_a_slide_and_empty_cells_for_what_is_not_defined(tmp_path):
    slides = [
        result(findings(100, subtypes=True)).summary,
        result(
            findings(9, p_mitosis=0.1), info(slide_id='odd, "name"', mpp_source="--mpp"), mpp=0.25
        ).summary,
    ]
    path = tmp_path / "slides.csv"
    write_slides_csv(slides, path)
    with path.open(newline="") as file:
        first, second = csv.DictReader(file)
    assert first["slide_id"] == "example"
    assert int(first["mf_count"]) == slides[0].mf_count
    assert float(first["amf_rate"]) == slides[0].amf_rate
    assert int(first["n_metaphase"]) == slides[0].subtype_counts["metaphase"]
    assert second["slide_id"] == 'odd, "name"'
    assert (second["mf_count"], second["amf_rate"], second["hotspot_count"]) == ("0", "", "")
    assert second["n_metaphase"] == ""
    assert second["qc_flags"] == "mpp given by hand; few mitotic figures"
    table = pd.read_csv(path)
    assert table["amf_rate"].isna().tolist() == [False, True]


def test_slides_csv_without_slides_has_its_header(tmp_path):
    write_slides_csv([], tmp_path / "slides.csv")
    assert list(pd.read_csv(tmp_path / "slides.csv"))[:3] == ["slide_id", "case_id", "path"]


@pytest.mark.parametrize("content", [None, "", "{}", '{"slide_id": 3}', "\xff"])
def test_a_file_that_is_no_summary_is_refused_by_name(tmp_path, content):
    path = tmp_path / "summary.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(DataError) as caught:
        read_summary(path)
    assert caught.value.path == path


def test_writing_to_a_missing_folder_is_an_output_error(tmp_path):
    with pytest.raises(OutputError) as caught:
        write_atomically(tmp_path / "none" / "x", b"")
    assert caught.value.path == tmp_path / "none" / "x"


# The picture


@pytest.mark.parametrize(
    ("width", "height", "n"),
    [(8000, 6000, 0), (100_000, 70_000, 3000), (90, 60, 3), (200_000, 900, 50), (900, 200_000, 50)],
)
def test_the_overview_fits_a_page_whatever_the_slide(width, height, n):
    thumbnail = np.full((50, 50, 3), 235, np.uint8)
    whole = result(findings(n, width, height, p_mitosis=0.9), info(width, height), thumbnail=thumbnail)
    picture = overview(whole)
    assert picture.mode == "RGB"
    assert 900 <= picture.width <= 1700
    assert picture.height <= 1500


def test_figures_are_drawn_where_they_are_in_their_colour_amf_on_top():
    table = findings(2, p_mitosis=0.9)
    table[["x_l0", "y_l0"]] = [[2000.0, 1500.0], [2010.0, 1500.0]]
    table["label"], table["p_atypical"] = ["AMF", "NMF"], [0.9, 0.1]
    before = np.asarray(overview(result(findings(2, p_mitosis=0.1))), dtype=int)
    after = np.asarray(overview(result(table)), dtype=int)
    top = after.shape[0] - before.shape[0]
    assert top == 0
    amf = np.argwhere(np.abs(after[90:-60] - COLOURS["AMF"]).sum(axis=2) < 12)
    assert amf.mean(axis=0)[1] - 24 == pytest.approx(2000 / 8000 * 1600, abs=2)
    assert np.ptp(amf, axis=0) == pytest.approx((15, 15), abs=3)


def test_names_in_any_script_can_be_drawn():
    for slide_id in ("Größe", "切片", "x" * 400, "bad\udce9byte"):
        overview(result(slide=info(slide_id=slide_id)))
