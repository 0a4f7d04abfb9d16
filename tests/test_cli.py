"""The commands as a user gives them: exit codes, one-line errors, nothing half done."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import bad_workers
import numpy as np
import pandas as pd
import pytest
import slides
from geojson_check import faults, load
from PIL import Image

from mitoscan import cli
from mitoscan.slide.write import write_pyramid

MARKS = [(200.0 + 260 * i, 220.0 + 190 * j) for i in range(4) for j in range(3)]
PICTURE = slides.with_marks(1300, 900, MARKS)


@pytest.fixture(autouse=True)
def fake_models(monkeypatch):
    """Quick models with a known answer; the shipped ones have tests of their own."""

    monkeypatch.setenv("COLUMNS", "200")

    monkeypatch.setattr("mitoscan.cohort.work.do_slide", bad_workers.scan)
    monkeypatch.setattr("mitoscan.cohort.resume.load_cards", bad_workers.load_fake_cards)


@pytest.fixture
def slide(tmp_path):
    write_pyramid(tmp_path / "a.svs", PICTURE, 0.25)
    return tmp_path / "a.svs"


def call(*arguments, monkeypatch, capsys):
    """Run the command line in this process; give exit code, standard output and error."""
    here = ["--workers", "0"] if arguments[0] == "run" and "--workers" not in arguments else []
    monkeypatch.setattr(sys, "argv", ["mitoscan", *map(str, arguments), *here])
    code = 0
    try:
        cli.main()
    except SystemExit as stop:
        code = stop.code or 0
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture
def mitoscan(monkeypatch, capsys):
    return lambda *arguments: call(*arguments, monkeypatch=monkeypatch, capsys=capsys)


def test_run_writes_everything_and_it_agrees(mitoscan, slide, tmp_path):
    code, shown, _ = mitoscan("run", slide, "-o", tmp_path / "out", "--subtypes")
    assert code == 0
    folder = tmp_path / "out" / "a"
    assert {p.name for p in folder.iterdir()} >= {
        "findings.csv", "findings.geojson", "summary.json", "overview.png", "record.json",
    }  # fmt: skip
    table = pd.read_csv(folder / "findings.csv")
    summary = json.loads((folder / "summary.json").read_text())
    collection = load(folder / "findings.geojson")
    assert faults(collection) == []
    detections = [f for f in collection["features"] if f["properties"]["objectType"] == "detection"]
    assert table["is_mf"].sum() == summary["mf_count"] == len(detections) == len(MARKS)
    assert (table["label"] == "AMF").sum() == summary["amf_count"]
    assert set(table.loc[table["is_mf"], "id"]) == {f["id"] for f in detections}
    assert sum(summary["subtype_counts"].values()) == len(MARKS)
    row = pd.read_csv(tmp_path / "out" / "slides.csv").iloc[0]
    assert row["mf_count"] == len(MARKS)
    assert row["slide_id"] == "a"
    with Image.open(folder / "overview.png") as picture:
        assert min(picture.size) > 200
    assert "a" in shown
    record = json.loads((folder / "record.json").read_text())
    assert "openvino" in json.dumps(record)


def test_a_second_slide_joins_slides_csv(mitoscan, slide, tmp_path):
    write_pyramid(tmp_path / "b.svs", PICTURE, 0.25)
    assert mitoscan("run", slide, "-o", tmp_path / "out")[0] == 0
    assert mitoscan("run", tmp_path / "b.svs", "-o", tmp_path / "out")[0] == 0
    assert pd.read_csv(tmp_path / "out" / "slides.csv")["slide_id"].tolist() == ["a", "b"]


def test_what_is_finished_is_not_done_again_unless_asked(mitoscan, slide, tmp_path):
    assert mitoscan("run", slide, "-o", tmp_path / "out")[0] == 0
    before = (tmp_path / "out" / "a" / "record.json").read_bytes()
    code, shown, _ = mitoscan("run", slide, "-o", tmp_path / "out")
    assert code == 0
    assert "1 of 1 slides were finished before" in shown
    assert "--overwrite" in shown
    assert (tmp_path / "out" / "a" / "record.json").read_bytes() == before
    assert mitoscan("run", slide, "-o", tmp_path / "out", "--overwrite")[0] == 0
    assert (tmp_path / "out" / "a" / "record.json").read_bytes() != before


def broken_inputs(folder: Path) -> dict[str, tuple[list[str], int, str]]:
    """Name → arguments, exit code, what the error must say."""
    write_pyramid(folder / "nompp.svs", PICTURE, None)
    write_pyramid(folder / "good.svs", PICTURE, 0.25)
    (folder / "text.svs").write_text("this is not a slide")
    (folder / "empty.svs").touch()
    (folder / "nothing").mkdir()
    (folder / "directory.svs").mkdir()
    Image.fromarray(PICTURE).save(folder / "field.png")
    (folder / "roi.geojson").write_text('{"type": "FeatureCollection", "features": []}')
    good = str(folder / "good.svs")
    return {
        "no mpp": ([str(folder / "nompp.svs")], 12, "--mpp"),
        "picture without mpp": ([str(folder / "field.png")], 12, "--mpp"),
        "text": ([str(folder / "text.svs")], 11, "text.svs"),
        "empty": ([str(folder / "empty.svs")], 11, "empty.svs"),
        "folder without slides": ([str(folder / "nothing")], 10, "nothing"),
        "missing": ([str(folder / "gone.svs")], 10, "gone.svs"),
        "glob without slides": ([str(folder / "*.ndpi")], 10, "ndpi"),
        "mpp 0": ([good, "--mpp", "0"], 12, "--mpp 0"),
        "mpp 50": ([good, "--mpp", "50"], 12, "--mpp 50"),
        "mpp nan": ([good, "--mpp", "nan"], 12, "nan"),
        "mpp negative": ([good, "--mpp", "-0.25"], 12, "-0.25"),
        "roi without polygons": ([good, "--roi", str(folder / "roi.geojson")], 20, "roi.geojson"),
        "roi missing": ([good, "--roi", str(folder / "gone.geojson")], 20, "gone.geojson"),
        "threshold above 1": ([good, "--threshold", "3"], 2, "threshold"),
        "no hot spot": ([good, "--hotspot-mm2", "0"], 2, "hotspot_mm2"),
    }


@pytest.mark.parametrize("case", [
    "no mpp", "picture without mpp", "text", "empty", "folder without slides", "missing",
    "glob without slides", "mpp 0", "mpp 50", "mpp nan", "mpp negative", "roi without polygons",
    "roi missing", "threshold above 1", "no hot spot",
])  # fmt: skip
def test_bad_input_is_one_line_with_path_and_remedy(mitoscan, tmp_path, case):
    arguments, expected, said = broken_inputs(tmp_path)[case]
    out = tmp_path / "out"
    code, _, error = mitoscan("run", *arguments, "-o", out)
    assert code == expected
    lines = [line for line in error.splitlines() if "error" in line.lower()]
    assert len(lines) == 1
    assert said in lines[0]
    assert "Traceback" not in error
    assert not list(out.glob("*/*"))
    assert not out.is_dir() or pd.read_csv(out / "slides.csv").empty


def test_a_field_with_mpp_runs(mitoscan, tmp_path):
    Image.fromarray(PICTURE).save(tmp_path / "field.png")
    assert mitoscan("run", tmp_path / "field.png", "--mpp", "0.25", "-o", tmp_path / "out")[0] == 0
    summary = json.loads((tmp_path / "out" / "field" / "summary.json").read_text())
    assert summary["mf_count"] == len(MARKS)
    assert summary["mpp_source"] == "--mpp"


@pytest.mark.usefixtures("slide")
def test_a_bad_slide_neither_stops_the_batch_nor_hides(mitoscan, tmp_path):
    (tmp_path / "bad.svs").write_text("no slide")
    write_pyramid(tmp_path / "c.svs", PICTURE, 0.25)
    code, shown, _ = mitoscan("run", tmp_path, "-o", tmp_path / "out")
    assert code == 3
    assert "1 of 3 slides failed" in shown
    failures = pd.read_csv(tmp_path / "out" / "failures.csv")
    assert failures["error"].tolist() == ["SlideOpenError"]
    assert failures["path"].str.endswith("bad.svs").all()
    assert pd.read_csv(tmp_path / "out" / "slides.csv")["slide_id"].tolist() == ["a", "c"]


def test_an_unforeseen_fault_costs_only_its_slide(mitoscan, slide, tmp_path, monkeypatch):
    from mitoscan.cohort import work

    write_pyramid(tmp_path / "b.svs", PICTURE, 0.25)
    original = work.scan_slide

    def explode(path, *rest, **named):
        if path.stem == "a":
            raise ZeroDivisionError("boom")
        return original(path, *rest, **named)

    monkeypatch.setattr(work, "scan_slide", explode)
    assert mitoscan("run", slide, tmp_path / "b.svs", "-o", tmp_path / "out")[0] == 3
    assert pd.read_csv(tmp_path / "out" / "failures.csv")["error"].tolist() == ["ZeroDivisionError"]
    assert pd.read_csv(tmp_path / "out" / "slides.csv")["slide_id"].tolist() == ["b"]


def test_two_slides_of_one_name_are_refused(mitoscan, slide, tmp_path):
    (tmp_path / "sub").mkdir()
    write_pyramid(tmp_path / "sub" / "a.svs", PICTURE, 0.25)
    code, _, error = mitoscan("run", tmp_path, "-o", tmp_path / "out")
    assert code == 2
    assert str(slide) in error
    assert str(tmp_path / "sub" / "a.svs") in error


def test_an_output_that_is_a_file_is_refused(mitoscan, slide, tmp_path):
    (tmp_path / "out").write_text("")
    code, _, error = mitoscan("run", slide, "-o", tmp_path / "out")
    assert code == 40
    assert str(tmp_path / "out") in error


def test_unknown_model_names_what_there_is(slide, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "mitoscan.cli", "run", slide, "-o", tmp_path / "o", "--detector", "nonsense"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 30
    assert "nonsense" in done.stderr
    assert "detector-lite0" in done.stderr


def test_plain_lines_tell_the_progress_where_there_is_no_terminal(mitoscan, slide, tmp_path):
    _, _, error = mitoscan("run", slide, "-o", tmp_path / "out")
    assert "a: detecting" in error
    assert "mm²" in error
    assert "\x1b" not in error


def test_info_shows_levels_pixel_size_and_tissue(mitoscan, slide, tmp_path):
    code, shown, _ = mitoscan("info", slide, "--no-estimate")
    assert code == 0
    for part in ("1300 × 900", "0.25 × 0.25", "openslide.mpp-x", "aperio", "tissue"):
        assert part in shown
    write_pyramid(tmp_path / "nompp.svs", PICTURE, None)
    code, shown, _ = mitoscan("info", tmp_path / "nompp.svs")
    assert code == 0
    assert "--mpp" in shown
    assert mitoscan("info", tmp_path / "gone.svs")[0] == 10


def test_info_estimates_the_time(mitoscan, slide):
    code, shown, _ = mitoscan("info", slide)
    assert code == 0
    assert "tiles, on this machine" in " ".join(shown.split())


def test_models_lists_what_ships(mitoscan):
    code, shown, _ = mitoscan("models")
    assert code == 0
    flat = "".join(shown.split())
    for part in ("detector-lite0", "classifier-lite0", "Apache-2.0"):
        assert part in flat


def test_doctor_finds_a_whole_installation_and_names_what_is_wrong(mitoscan, monkeypatch, tmp_path):
    code, shown, _ = mitoscan("doctor")
    assert code == 0
    assert "OpenSlide" in shown
    target = tmp_path / "file"
    target.touch()
    monkeypatch.setenv("MITOSCAN_CACHE", str(target / "cache"))
    code, shown, _ = mitoscan("doctor")
    assert code == 1
    assert "MITOSCAN_CACHE" in shown


def test_numbers_do_not_depend_on_the_terminal(mitoscan, slide, tmp_path):
    mitoscan("run", slide, "-o", tmp_path / "one")
    mitoscan("run", slide, "-o", tmp_path / "two", "--readers", "4", "--batch-size", "3")
    one, two = (pd.read_csv(tmp_path / name / "a" / "findings.csv") for name in ("one", "two"))
    pd.testing.assert_frame_equal(one, two)
    assert np.isfinite(one["p_mitosis"]).all()


@pytest.mark.parametrize(
    ("options", "device"),
    [
        ((), "cpu"),
        (("--ray-gpus", "0.5"), "cuda"),
        (("--device", "mps"), "mps"),
        (("--device", "cuda"), "cuda"),
    ],
)
def test_on_ray_the_clusters_gpus_decide_the_device_not_this_machines(
    mitoscan, monkeypatch, slide, tmp_path, options, device
):
    asked = []
    monkeypatch.setattr("mitoscan.cli.run._run", lambda jobs, *_: asked.extend(jobs) or 0)
    code, _, _ = mitoscan("run", slide, "-o", tmp_path / "out", "--engine", "ray", "--workers", "1", *options)
    assert code == 0
    assert [job.config.device for job in asked] == [device]
