"""The way back: results scored again from their folder, and what a reviewer says of them."""

from __future__ import annotations

import gzip
import hashlib
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import shapely
from geojson_check import faults, load
from PIL import Image
from results import IDENTITY, THRESHOLDS, findings, info, result
from shapely import MultiPolygon

from mitoscan import cli
from mitoscan.errors import ConfigError, DataError, OutputError
from mitoscan.report.rescored import Wanted, rescore_stored, write_rescored
from mitoscan.report.review import read_review
from mitoscan.report.stored import read_result, result_folders
from mitoscan.report.writer import write_slide
from mitoscan.scan.findings import read_findings
from mitoscan.scan.review import cohens_kappa
from mitoscan.units import Box

HEADER = "id,x_l0,y_l0,label,subtype,flag,reviewer,reviewed_utc\n"


@pytest.fixture
def folder(tmp_path) -> Path:
    """A finished result: 60 findings with subtypes; a hole in the area scanned."""
    tissue = MultiPolygon([shapely.box(0, 0, 8000, 6000) - shapely.box(7000, 5000, 7900, 5900)])
    return write_slide(result(findings(60, subtypes=True), tissue=tissue), tmp_path / "out")


@pytest.fixture(autouse=True)
def quick_overview(monkeypatch):
    """The picture has tests of its own and takes most of the time."""
    monkeypatch.setattr("mitoscan.report.writer.overview", lambda _: Image.new("RGB", (9, 9)))


def again(folder: Path, out: Path | None = None, **wanted) -> Path:
    return write_rescored(rescore_stored(read_result(folder), Wanted(**wanted)), out)


def summary(folder: Path) -> dict:
    return json.loads((folder / "summary.json").read_text())


def record(folder: Path) -> dict:
    return json.loads((folder / "record.json").read_text())


def figures(folder: Path) -> pd.DataFrame:
    table = read_findings(folder / "findings.csv")
    return table[table["is_mf"]]


def csv(path: Path, *rows: tuple) -> Path:
    path.write_text(HEADER + "".join(",".join(map(str, row)) + "\n" for row in rows))
    return path


def drawn(x: float, y: float, name: str, kind="Point") -> dict:
    """An object as QuPath writes one that was drawn by hand."""
    geometry = {"type": "Point", "coordinates": [x, y]}
    if kind == "outline":
        geometry = shapely.geometry.mapping(shapely.Point(x, y).buffer(40))
    classification = {"classification": {"name": name, "color": [1, 2, 3]}} if name else {}
    return {
        "type": "Feature",
        "id": "12345678-1234-4234-8234-123456789abc",
        "geometry": geometry,
        "properties": {"objectType": "annotation", **classification},
    }


def edited(folder: Path, path: Path, change) -> Path:
    """findings.geojson after ``change`` of its features."""
    collection = load(folder / "findings.geojson")
    collection["features"] = change(collection["features"])
    data = json.dumps(collection).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def test_scoring_again_without_a_change_gives_the_same_files(folder):
    same = ["findings.csv", "findings.geojson", "summary.json", "pictures.zip"]
    before = {name: (folder / name).read_bytes() for name in same}
    first = (folder / "record.json").read_bytes()
    again(folder)
    again(folder)
    assert {name: (folder / name).read_bytes() for name in same} == before
    chain = record(folder)["rescored_from"]
    assert len(chain) == 2
    assert chain[0]["record_sha256"] == hashlib.sha256(first).hexdigest()
    for link in chain:
        kept = folder / f"record-{link['record_sha256'][:12]}.json"
        assert hashlib.sha256(kept.read_bytes()).hexdigest() == link["record_sha256"]


def test_a_slide_with_bounds_and_two_pixel_sizes_comes_back_whole(tmp_path):
    slide = info(bounds=Box(500.0, 300.0, 7000.0, 5000.0))
    tissue = MultiPolygon([shapely.box(600, 400, 5000, 3000)])
    whole = result(findings(40), slide=slide, tissue=tissue, mpp=0.25)
    stored = read_result(write_slide(whole, tmp_path)).result
    assert stored.tissue.equals_exact(tissue, 0.01, normalize=True)
    assert (stored.info.bounds, stored.config, stored.hotspot) == (slide.bounds, whole.config, whole.hotspot)
    assert (stored.detector, stored.classifier, stored.identity) == (
        whole.detector,
        whole.classifier,
        whole.identity,
    )
    pd.testing.assert_frame_equal(stored.findings, whole.findings)
    assert stored.thumbnail.shape == whole.thumbnail.shape


def test_thresholds_and_hot_spot_are_those_asked_for(folder, tmp_path):
    other = again(folder, tmp_path / "other", threshold=0.7, amf_threshold=0.9, hotspot_mm2=0.5)
    table = read_findings(other / "findings.csv")
    old = read_findings(folder / "findings.csv")
    assert (table["is_mf"] == (old["p_mitosis"] >= 0.7)).all()
    assert ((table["label"] == "AMF") == (table["is_mf"] & (old["p_atypical"] >= 0.9))).all()
    said = summary(other)
    assert (said["mf_count"], said["detector_threshold"]) == (table["is_mf"].sum(), 0.7)
    assert said["hotspot_mm2"] == pytest.approx(0.5)
    assert said["hotspot_count"] == (table["in_hotspot"] & table["is_mf"]).sum()
    assert said["amf_rate_corrected"] is None  # its sensitivity is known at the card's threshold only
    assert "AMF threshold not the card's: no corrected rate" in said["qc_flags"]
    collection = load(other / "findings.geojson")
    assert faults(collection) == []
    assert len(collection["features"]) == said["mf_count"] + 2
    back = again(other, tmp_path / "back", threshold=0.5, amf_threshold=0.5, hotspot_mm2=2.0)
    assert (back / "findings.csv").read_bytes() == (folder / "findings.csv").read_bytes()
    assert summary(back) == summary(folder)


def test_a_threshold_below_what_was_classified_is_refused_with_the_floor(folder, tmp_path):
    # scanned at 0.5: classified from 0.25 on; this table's lowest classified finding is at 0.3
    with pytest.raises(ConfigError, match=r"0\.2 is below 0\.\d+") as caught:
        again(folder, threshold=0.2)
    floor = float(caught.value.remedy.split()[1])
    again(folder, tmp_path / "lowest", threshold=floor)
    with pytest.raises(ConfigError):
        again(tmp_path / "lowest" / "example", threshold=floor - 0.01)
    high = again(folder, tmp_path / "high", threshold=0.9)
    with pytest.raises(ConfigError, match="is below"):  # the floor stays that of the scan
        again(high, threshold=0.2)
    again(high, tmp_path / "lowest_again", threshold=floor)


def test_a_review_wins_and_is_marked(folder, tmp_path):
    old = figures(folder)
    amf, nmf = old[old["label"] == "AMF"]["id"].tolist(), old[old["label"] == "NMF"]["id"].tolist()
    path = csv(
        tmp_path / "review.csv",
        (amf[0], 0, 0, "NMF", "", "", "Dr A", "2026-01-01T10:00:00Z"),
        (amf[1], 0, 0, "AMF", "multipolar", "", "Dr A", ""),
        (nmf[0], 0, 0, "not MF", "", "", "Dr A", ""),
        (nmf[1], 0, 0, "", "", "look again", "Dr A", ""),
        ("", 3000.5, 2000.25, "AMF", "", "", "Dr A", ""),
    )
    said = summary(again(folder, review=path))
    table = read_findings(folder / "findings.csv").set_index("id")
    assert table.loc[[amf[0], amf[1], nmf[0]], "label"].tolist() == ["NMF", "AMF", ""]
    assert table.loc[amf[1], "subtype"] == "multipolar"
    assert table.loc[amf[0], "subtype"] in {"prometaphase", "metaphase", "anaphase_telophase", "ring"}
    assert table.loc[[amf[0], nmf[0], nmf[1]], "label_source"].tolist() == ["reviewer", "reviewer", "model"]
    added = table[table["label_source"] == "added"]
    assert added[["x_l0", "y_l0", "label", "is_mf"]].to_numpy().tolist() == [[3000.5, 2000.25, "AMF", True]]
    assert table["reviewed"].sum() == said["reviewed_count"] == 4
    assert (said["rejected_count"], said["added_count"]) == (1, 1)
    assert said["mf_count"] == len(old)  # one rejected, one added
    assert said["amf_count"] == len(amf)  # one relabelled, one added
    assert said["amf_rate_corrected"] is None
    assert "partly reviewed: no corrected rate" in said["qc_flags"]
    agreed = record(folder)["agreement"]
    assert agreed["n"] == 4
    assert agreed["confusion"]["AMF"] == {"AMF": 1, "NMF": 1, "not MF": 0}
    assert agreed["confusion"]["NMF"]["not MF"] == agreed["confusion"]["not MF"]["AMF"] == 1
    assert agreed["kappa"] == said["agreement_kappa"] == pytest.approx((0.25 - 0.375) / (1 - 0.375))
    assert record(folder)["reviews"][0]["reviewers"] == ["Dr A"]
    collection = load(folder / "findings.geojson")
    assert faults(collection) == []
    assert {f["id"] for f in collection["features"]} >= set(added.index)


def test_reviewed_labels_outlast_thresholds_until_they_are_forgotten(folder, tmp_path):
    before = (folder / "findings.csv").read_bytes()
    faint = read_findings(folder / "findings.csv").query("0.3 < p_mitosis < 0.5")["id"].iloc[0]
    again(folder, review=csv(tmp_path / "r.csv", (faint, "", "", "AMF"), ("", 3000, 2000, "NMF")))
    again(folder, threshold=0.9)
    kept = figures(folder)
    assert faint in set(kept["id"])
    assert (kept["p_mitosis"].fillna(1) >= 0.9).sum() == len(kept) - 1
    again(folder, threshold=0.5)
    assert summary(folder)["reviewed_count"] == 2
    again(folder, forget_review=True)
    assert (folder / "findings.csv").read_bytes() == before
    assert summary(folder)["reviewed_count"] is None
    assert record(folder)["reviews"] == []


def test_when_all_is_reviewed_the_rate_needs_no_correction(folder, tmp_path):
    rows = [(name, "", "", "NMF" if number else "AMF") for number, name in enumerate(figures(folder)["id"])]
    said = summary(again(folder, review=csv(tmp_path / "r.csv", *rows)))
    for end in ("", "_low", "_high"):
        assert said[f"amf_rate_corrected{end}"] == said[f"amf_rate{end}"]
    assert said["amf_rate"] == 1 / len(rows)
    assert not [flag for flag in said["qc_flags"] if "correct" in flag]


def test_rejections_alone_leave_the_correction_in_place(folder, tmp_path):
    name = figures(folder)["id"].iloc[0]
    said = summary(again(folder, review=csv(tmp_path / "r.csv", (name, "", "", "not MF"))))
    assert said["amf_rate_corrected"] is not None
    assert said["rejected_count"] == 1


@pytest.mark.parametrize("suffix", [".geojson", ".geojson.gz"])
def test_corrections_come_back_from_qupath(folder, tmp_path, suffix):
    old = figures(folder).reset_index(drop=True)
    relabelled, gone = old["id"][0], old["id"][1]

    def work(features):
        for feature in features:
            if feature["id"] == relabelled:
                feature["properties"]["classification"] = {"name": "not MF"}
        new = drawn(1000, 1500, "AMF: multipolar")
        new["properties"]["classification"] = {"names": ["AMF", "multipolar"]}
        many = drawn(0, 0, "NMF") | {
            "geometry": {"type": "MultiPoint", "coordinates": [[900, 900], [940, 900]]}
        }
        region = drawn(0, 0, "NMF") | {"geometry": shapely.geometry.mapping(shapely.box(10, 10, 2000, 2000))}
        others = [
            drawn(1200, 1500, "ring", "outline"),
            many,
            region,
            drawn(50, 50, ""),
            drawn(60, 60, "Tumor"),
        ]
        return [f for f in features if f["id"] != gone] + [new, *others, drawn(7500, 5500, "AMF")]

    path = edited(folder, tmp_path / f"reviewed{suffix}", work)
    review = read_review(path, read_result(folder).result)
    assert len(review.judgements) == 5
    assert [note.split()[0] for note in review.notes] == ["1", "2", "1"]  # hole, no class, region
    said = summary(again(folder, review=path))
    table = read_findings(folder / "findings.csv")
    assert said["added_count"] == 4
    added = table[table["label_source"] == "added"]
    assert sorted(added["subtype"]) == ["", "", "multipolar", "ring"]
    assert dict(added.groupby("label").size()) == {"AMF": 1, "NMF": 3}
    assert table.set_index("id").loc[gone, "is_mf"]  # deleting is not rejecting
    assert said["rejected_count"] == 1
    assert said["agreement_kappa"] is None  # only what was changed is known: no agreement can be said
    assert record(folder)["agreement"] is None
    again(folder, review=path)  # the same file once more changes nothing
    pd.testing.assert_frame_equal(read_findings(folder / "findings.csv"), table)


def test_a_complete_review_confirms_the_unchanged_and_rejects_the_deleted(folder, tmp_path):
    old = figures(folder).reset_index(drop=True)
    path = edited(folder, tmp_path / "r.geojson", lambda all_: [f for f in all_ if f["id"] != old["id"][1]])
    said = summary(again(folder, review=path, complete=True))
    assert said["reviewed_count"] == len(old)
    assert said["rejected_count"] == 1
    assert said["amf_rate_corrected"] == said["amf_rate"]
    assert said["agreement_amf_kappa"] == 1
    assert record(folder)["agreement"]["n"] == len(old)


def test_geojson_of_the_page_also_says_what_was_confirmed(folder, tmp_path):
    marked = set(figures(folder)["id"].iloc[:3])

    def work(features):
        for feature in features:
            if feature["id"] in marked:
                feature["properties"]["metadata"] |= {"reviewed": "yes", "reviewer": "Dr A"}
        return features

    said = summary(again(folder, review=edited(folder, tmp_path / "r.geojson", work)))
    assert said["reviewed_count"] == record(folder)["agreement"]["n"] == 3
    assert record(folder)["reviews"][0]["reviewers"] == ["Dr A"]


def test_a_drawn_figure_on_a_finding_is_that_finding(folder, tmp_path):
    table = read_findings(folder / "findings.csv")
    faint = table.query("0.3 < p_mitosis < 0.5").iloc[0]
    near = drawn(faint["x_l0"] + 20, faint["y_l0"], "AMF")  # 5 µm
    exact = drawn(figures(folder)["x_l0"].iloc[0], figures(folder)["y_l0"].iloc[0], "not MF")
    path = tmp_path / "r.geojson"
    path.write_text(json.dumps({"type": "FeatureCollection", "features": [near, exact]}))
    said = summary(again(folder, review=path))
    after = read_findings(folder / "findings.csv").set_index("id")
    assert len(after) == len(table)
    assert after.loc[faint["id"], ["label", "label_source"]].tolist() == ["AMF", "reviewer"]
    assert (said["added_count"], said["reviewed_count"], said["rejected_count"]) == (0, 2, 1)


def test_a_slide_that_qupath_crops_is_reviewed_in_its_frame(tmp_path):
    slide = info(bounds=Box(500.0, 300.0, 7000.0, 5000.0))
    folder = write_slide(result(findings(30), slide=slide), tmp_path / "out")
    path = tmp_path / "r.geojson"
    path.write_text(json.dumps(drawn(1000, 1000, "AMF")))
    table = read_findings(again(folder, review=path) / "findings.csv")
    assert table[table["label_source"] == "added"][["x_l0", "y_l0"]].to_numpy().tolist() == [[1500, 1300]]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("id,label\nnope,AMF\n", "another slide or of other models"),
        ("id,label\n{0},AMFF\n", "line 2: class is 'AMFF'"),
        ("id,label,subtype\n{0},NMF,multipolar\n", "does not go with"),
        ("id,label\n{0},AMF\n{0},NMF\n", "judged twice"),
        ("id,x_l0,y_l0,label\n,nan,3,AMF\n", "x_l0 is 'nan'"),
        ("id,x_l0,y_l0,label\n,9000,3,AMF\n", "not on the slide"),
        ("name,class\na,AMF\n", "columns missing: id, label"),
        ("", "not readable as CSV"),
    ],
)
def test_a_faulty_csv_review_is_refused_and_changes_nothing(folder, tmp_path, text, said):
    before = (folder / "findings.csv").read_bytes(), (folder / "record.json").read_bytes()
    path = tmp_path / "r.csv"
    path.write_text(text.format(figures(folder)["id"].iloc[0]))
    with pytest.raises(DataError, match=said):
        again(folder, review=path)
    assert ((folder / "findings.csv").read_bytes(), (folder / "record.json").read_bytes()) == before


def test_geojson_of_another_slide_or_broken_is_refused(folder, tmp_path):
    path = edited(
        folder, tmp_path / "r.geojson", lambda all_: [f | {"id": f["id"][::-1]} for f in all_ if f["id"]]
    )
    with pytest.raises(DataError, match="another slide or of other models"):
        again(folder, review=path)
    for text in ("[1]", "{", '{"type": "Feature", "geometry": {"type": "Point", "coordinates": ["a"]}}'):
        path.write_text(text)
        with pytest.raises(DataError):
            again(folder, review=path)
    with pytest.raises(ConfigError, match="--complete"):
        again(folder, review=csv(tmp_path / "r.csv"), complete=True)


def test_a_rescoring_cut_short_loses_nothing(folder, monkeypatch):
    changed = rescore_stored(read_result(folder), Wanted(threshold=0.6))

    def stop(*_, **__):
        (folder / "record.json").unlink()
        raise OutputError("disk full")

    monkeypatch.setattr("mitoscan.report.rescored.write_slide", stop)
    with pytest.raises(OutputError):
        write_rescored(changed)
    monkeypatch.undo()
    assert result_folders([folder.parent]) == [folder]
    assert summary(again(folder, threshold=0.6))["detector_threshold"] == 0.6


def test_a_folder_that_is_no_result_or_was_tampered_with_is_named(folder, tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        result_folders([tmp_path / "gone"])
    with pytest.raises(DataError, match="no finished result"):
        result_folders([tmp_path])
    edited(folder, folder / "findings.geojson", lambda _: [drawn(1, 2, "AMF")])
    with pytest.raises(DataError, match="area scanned"):
        read_result(folder)
    (folder / "record.json").write_text("{}")
    with pytest.raises(DataError, match="not a record"):
        read_result(folder)


def test_the_command_rescores_all_and_says_what_failed(folder, tmp_path, monkeypatch, capsys):
    write_slide(result(findings(30), slide=info(slide_id="second", path=Path("second.svs"))), folder.parent)

    def call(*arguments) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["mitoscan", "rescore", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        return stop.value.code or 0, *capsys.readouterr()

    code, shown, _ = call(folder.parent, "--threshold", 0.6)
    assert code == 0
    assert "second" in shown
    rows = pd.read_csv(folder.parent / "slides.csv")
    assert rows["detector_threshold"].tolist() == [0.6, 0.6]
    assert record(folder)["rescored"]["command"].startswith("mitoscan rescore")
    name = figures(folder)["id"].iloc[0]
    path = csv(tmp_path / "r.csv", (name, "", "", "not MF"))
    code, shown, _ = call(folder, "--review", path, "-o", tmp_path / "b")
    assert code == 0
    assert "n = 1" in shown
    assert pd.read_csv(tmp_path / "b" / "slides.csv")["rejected_count"].tolist() == [1]
    code, _, said = call(folder.parent, "--review", path)
    assert (code, "belongs to one slide" in said) == (2, True)
    code, _, said = call(folder, "-o", tmp_path / "b")
    assert (code, "--overwrite" in said) == (40, True)
    (folder.parent / "second" / "findings.csv").unlink()
    code, _, said = call(folder.parent)
    assert (code, "second" in said) == (3, True)
    code, _, said = call(folder, "--threshold", 0.1)
    assert (code, "is below" in said) == (2, True)


def test_kappa_against_counting_by_hand():
    assert cohens_kappa(np.array([[20, 5], [10, 15]])) == pytest.approx(0.4)
    assert cohens_kappa(np.array([[7, 0], [0, 0]])) is None
    assert cohens_kappa(np.zeros((2, 2), int)) is None


def test_the_ids_of_the_tests_are_those_of_the_results():
    assert result(findings(3)).identity == IDENTITY
    assert THRESHOLDS.mitosis == 0.5
