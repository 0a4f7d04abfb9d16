"""Many slides: what is done, done again, left out and told; no fault here ends a process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from itertools import count
from pathlib import Path

import bad_workers
import batches
import pandas as pd
import pytest
from batches import CONFIG, here, make_slides, run_jobs

from mitoscan.cohort.batch import Shard
from mitoscan.cohort.gather import OWN, merge
from mitoscan.cohort.job import Failed
from mitoscan.cohort.lock import HeldError, Lock
from mitoscan.cohort.manifest import read_manifest
from mitoscan.errors import ConfigError, OutputError


def read(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, dtype=str, keep_default_na=False)


def ids(out: Path, name: str = "slides.csv") -> list[str]:
    return read(out / name)["slide_id"].tolist()


def times(out: Path) -> dict[str, int]:
    return {path.parent.name: path.stat().st_mtime_ns for path in out.glob("*/record.json")}


# Resume


def test_the_same_command_again_does_only_what_is_missing(tmp_path):
    folder, out = make_slides(tmp_path / "in", "a", "b"), tmp_path / "out"
    assert here(folder, out).done == 2
    before = times(out)
    make_slides(folder, "c")
    batch = here(folder, out)
    assert (batch.done, batch.resumed, batch.exit_code) == (1, 2, 0)
    assert {k: v for k, v in times(out).items() if k != "c"} == before
    assert ids(out) == ["a", "b", "c"]
    run = json.loads((out / "run.json").read_text())
    assert run["counts"] == {"selected": 3, "done": 1, "finished_before": 2, "failed": 0, "left": 0}
    assert run["state"] == "finished"
    assert list(run["slides"]) == ["a", "b", "c"]


def test_with_nothing_missing_no_engine_is_made(tmp_path):
    folder, out = make_slides(tmp_path / "in", "a"), tmp_path / "out"
    here(folder, out)

    def no_engine():
        raise AssertionError("nothing to do needs no workers")

    batch = batches.run_batch(batches.jobs(folder, out), no_engine, out, batches.CARDS)
    assert (batch.resumed, batch.exit_code) == (1, 0)
    assert here(folder, out, overwrite=True).done == 1


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"threshold": 0.3}, "threshold 0.15 → 0.3"),
        ({"hotspot_mm2": 1.0}, "hotspot mm2 2.0 → 1.0"),
        ({"subtypes": True}, "subtypes False → True"),
        ({"mpp": 0.26}, "mpp none → 0.26"),
        ({"qupath_crop": False}, "qupath crop True → False"),
        ({"tissue_mask": True}, "tissue mask False → True"),
    ],
    ids=str,
)
def test_a_setting_that_changes_the_result_does_it_again_and_says_why(tmp_path, caplog, change, reason):
    folder, out = make_slides(tmp_path / "in", "a"), tmp_path / "out"
    here(folder, out)
    config = CONFIG.model_copy(update=change)
    with caplog.at_level("INFO", "mitoscan"):
        assert here(folder, out, config=config).done == 1
    assert reason in caplog.text
    assert here(folder, out, config=config).done == 0


def test_settings_that_change_nothing_do_not(tmp_path):
    folder, out = make_slides(tmp_path / "in", "a"), tmp_path / "out"
    here(folder, out)
    change = {"readers": 3, "batch_size": 4, "device": "cpu", "threshold": 0.15}
    assert here(folder, out, config=CONFIG.model_copy(update=change)).done == 0


def test_a_replaced_slide_other_weights_and_an_edited_roi_are_done_again(tmp_path, caplog):
    folder, out = make_slides(tmp_path / "in", "a"), tmp_path / "out"
    roi = tmp_path / "roi.geojson"
    ring = [[0, 0], [500, 0], [500, 200], [0, 200], [0, 0]]
    roi.write_text(json.dumps({"type": "Polygon", "coordinates": [ring]}))
    config = CONFIG.model_copy(update={"roi": roi})
    here(folder, out, config=config)
    assert read(out / "slides.csv")["mf_count"].tolist() == ["1"]
    caplog.set_level("INFO", "mitoscan")
    os.utime(folder / "a.svs", ns=(1, 1))
    assert here(folder, out, config=config).done == 1
    assert "slide replaced: time of change" in caplog.text
    ring[2][1] = ring[3][1] = 400
    roi.write_text(json.dumps({"type": "Polygon", "coordinates": [ring]}))
    assert here(folder, out, config=config).done == 1
    assert "regions of interest" in caplog.text
    assert read(out / "slides.csv")["mf_count"].tolist() == ["2"]
    other = batches.fakes_with_other_weights()
    assert run_jobs(batches.jobs(folder, out, config), out, other).done == 1
    assert "detector aaaaaaaaaaaa → cccccccccccc" in caplog.text


@pytest.mark.parametrize("damage", ["record.json", "summary.json"])
@pytest.mark.parametrize("content", ["", "{}", "[1", None])
def test_a_damaged_result_is_done_again(tmp_path, damage, content):
    folder, out = make_slides(tmp_path / "in", "a", "b"), tmp_path / "out"
    here(folder, out)
    path = out / "a" / damage
    if content is None:
        path.unlink()
    else:
        path.write_text(content)
    assert here(folder, out).done == 1
    assert ids(out) == ["a", "b"]


def test_a_result_of_other_inputs_is_in_no_table_when_the_slide_fails_now(tmp_path):
    folder, out = make_slides(tmp_path / "in", "a", "b"), tmp_path / "out"
    here(folder, out)
    (folder / "a.svs").write_text("no slide")
    assert here(folder, out).exit_code == 3
    assert ids(out) == ["b"]
    assert ids(out, "failures.csv") == ["a"]
    assert (out / "a" / "record.outdated.json").is_file()
    make_slides(folder, "a")
    assert here(folder, out).done == 1
    assert ids(out) == ["a", "b"]
    assert not (out / "failures.csv").exists()


def test_leftovers_of_a_killed_run_go(tmp_path):
    folder, out = make_slides(tmp_path / "in", "a"), tmp_path / "out"
    (out / "a").mkdir(parents=True)
    for path in (out / ".slides.csv.12345678.tmp", out / "a" / ".summary.json.12345678.tmp"):
        path.write_text("half")
    here(folder, out)
    assert not list(out.rglob("*.tmp"))
    assert not (out / OWN).exists()


# Failures


def test_failures_name_stage_remedy_and_attempts(tmp_path):
    folder, out = make_slides(tmp_path / "in", "a"), tmp_path / "out"
    (folder / "text.svs").write_text("no slide")
    batch = here(folder, out)
    assert (batch.exit_code, batch.done) == (3, 1)
    (row,) = read(out / "failures.csv").to_dict("records")
    assert list(row) == ["slide_id", "path", "stage", "error", "message", "remedy", "attempts"]
    assert (row["slide_id"], row["stage"], row["error"], row["attempts"]) == (
        "text",
        "open",
        "SlideOpenError",
        "1",
    )
    assert row["path"] == str(folder / "text.svs")
    assert row["remedy"]
    assert not (out / "text").exists()


def fails_in_passing(job, report):
    """As a network drive: once."""
    mark = job.path.with_suffix(".tried")
    if job.slide_id == "a" and not mark.exists():
        mark.touch()
        return Failed("detect", "SlideReadError", "the drive was away", "Wait.", 14, transient=True)
    return bad_workers.scan(job, report)


def test_what_may_pass_is_tried_again(tmp_path):
    folder = make_slides(tmp_path / "in", "a", "b")
    assert here(folder, tmp_path / "one", fails_in_passing).exit_code == 0
    (folder / "a.tried").unlink()
    assert here(folder, tmp_path / "two", fails_in_passing, retries=0).exit_code == 3
    assert read(tmp_path / "two" / "failures.csv")["attempts"].tolist() == ["1"]


def no_models(job, report):
    def load(_config):
        raise OutputError("weights damaged")

    return bad_workers.do_slide(job, report, load=load)


def test_a_fault_that_no_slide_would_escape_ends_the_run(tmp_path):
    folder, out = make_slides(tmp_path / "in", "a", "b", "c"), tmp_path / "out"
    batch = here(folder, out, no_models)
    assert (batch.exit_code, batch.left, len(batch.failures)) == (40, 2, 1)
    assert read(out / "failures.csv")["stage"].tolist() == ["models"]
    assert json.loads((out / "run.json").read_text())["state"] == "interrupted"


def test_a_slide_that_grows_while_it_is_read_is_not_believed(tmp_path):
    folder, out = make_slides(tmp_path / "in", "a"), tmp_path / "out"

    ticks = count(1)

    def still_copied(job, _report):
        return bad_workers.scan(job, lambda _: os.utime(job.path, ns=(0, next(ticks))))

    batch = here(folder, out, still_copied)
    assert [f.attempts for f in batch.failures] == [2]
    assert "changed while" in batch.failures[0].message
    assert not list(out.glob("*/record.json"))


# Two runs on one folder


def test_a_second_run_says_who_holds_the_folder(tmp_path):
    folder, out = make_slides(tmp_path / "in", "a"), tmp_path / "out"
    lock = Lock.take(out / ".lock")
    with pytest.raises(HeldError, match=f"process {os.getpid()}") as caught:
        here(folder, out)
    assert caught.value.path == out
    assert "--join" in caught.value.remedy
    lock.release()
    assert here(folder, out).done == 1


def test_two_runs_share_the_work(tmp_path):
    folder, out = make_slides(tmp_path / "in", *(f"s{n}" for n in range(8))), tmp_path / "out"
    (folder / "bad.svs").write_text("no slide")
    results = []

    def slow(job, report):
        time.sleep(0.2)
        return bad_workers.scan(job, report)

    first = threading.Thread(target=lambda: results.append(here(folder, out, slow)))
    first.start()
    while not (out / ".lock").exists():
        time.sleep(0.01)
    results.append(here(folder, out, slow, join=True))
    first.join()
    assert sum(batch.done for batch in results) == 8
    assert all(batch.done for batch in results)
    assert ids(out) == sorted(f"s{n}" for n in range(8))
    assert ids(out, "failures.csv") == ["bad"]
    assert here(folder, out).resumed == 8


@pytest.mark.parametrize("holder", ["dead process", "reused id", "silent machine", "garbage"])
def test_a_stale_lock_is_taken_over(tmp_path, holder):
    path = tmp_path / ".lock"
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    Lock.take(path)
    content = json.loads(path.read_text())
    changes = {
        "dead process": {"pid": dead.pid},
        "reused id": {"start": "1"},
        "silent machine": {"machine": "other", "host": "other"},
        "garbage": {"nonsense": 1},
    }[holder]
    path.write_text(json.dumps(content | changes))
    if holder in ("silent machine", "garbage"):
        with pytest.raises(HeldError):
            Lock.take(path)
        os.utime(path, (time.time() - 301,) * 2)
    lock = Lock.take(path)
    lock.release()
    assert not list(tmp_path.iterdir())


def test_a_clock_that_goes_backwards_frees_no_lock_and_breaks_no_run(tmp_path, monkeypatch):
    path = tmp_path / ".lock"
    Lock.take(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"machine": "other"}))
    monkeypatch.setattr(time, "time", lambda: 0.0)
    os.utime(path, (time.monotonic() + 4e9,) * 2)  # touched in what is now the future
    with pytest.raises(HeldError):
        Lock.take(path)
    folder = make_slides(tmp_path / "in", "a")
    os.utime(folder / "a.svs", ns=(2**62, 2**62))
    assert here(folder, tmp_path / "out").done == 1
    assert here(folder, tmp_path / "out").resumed == 1


# Shards


def test_shards_share_all_slides_and_merge_joins_them(tmp_path):
    names = [f"s{n}" for n in range(7)]
    folder, out = make_slides(tmp_path / "in", *names), tmp_path / "out"
    (folder / "s3.svs").write_text("no slide")
    for number in (1, 3):
        here(folder, out, shard=Shard(number, 3))
    merged = merge(out)
    assert merged.absent == ("2/3",)
    assert ids(out) == ["s0", "s2", "s5", "s6"]
    assert here(folder, out, shard=Shard(2, 3)).done == 2
    assert ids(out / "shards" / "2-of-3") == ["s1", "s4"]
    merged = merge(out)
    assert (merged.absent, merged.unfinished, merged.finished) == ((), (), 6)
    assert ids(out) == [name for name in names if name != "s3"]
    assert ids(out, "failures.csv") == ["s3"]
    make_slides(folder, "s3")
    here(folder, out, shard=Shard(1, 3))
    assert merge(out).failures == ()
    assert not (out / "failures.csv").exists()
    assert here(folder, out).resumed == 7


def test_merge_lists_what_a_shard_ended_without(tmp_path):
    folder, out = make_slides(tmp_path / "in", "a", "b", "c"), tmp_path / "out"
    here(folder, out, no_models, shard=Shard(1, 1))
    merged = merge(out)
    assert merged.unfinished == ("1/1",)
    assert {f.slide_id: f.error for f in merged.failures} == {
        "a": "OutputError",
        "b": "NotDone",
        "c": "NotDone",
    }


@pytest.mark.parametrize("text", ["0/3", "4/3", "1", "a/b", "-1/2", "1/0", "", "1/2/3"])
def test_a_bad_shard_is_refused(text):
    with pytest.raises(ConfigError, match="i/n"):
        Shard.parse(text)


# Manifests and names


def test_a_manifest_names_slides_and_carries_its_columns_into_the_results(tmp_path):
    folder, out = make_slides(tmp_path / "in", "a", "b"), tmp_path / "out"
    manifest = folder / "list.csv"
    manifest.write_text(
        "\ufeffslide_id,path,case_id,mpp,grade,center\n"
        "S 1,a.svs,P1,,2,Wien\n"
        f'"S,2",{folder / "b.svs"},P1,0.5,,"=1+1"\n',
        encoding="utf-8",
    )

    def run():
        return run_jobs(read_manifest(manifest, CONFIG, out), out)

    assert run().done == 2
    table = read(out / "slides.csv").set_index("slide_id")
    assert list(table.columns[-2:]) == ["grade", "center"]
    assert table.loc["S 1", ["case_id", "grade", "center", "mpp_x"]].tolist() == ["P1", "2", "Wien", "0.25"]
    assert table.loc["S,2", ["case_id", "grade", "center", "mpp_x"]].tolist() == ["P1", "", "=1+1", "0.5"]
    summary = json.loads((out / "S 1" / "summary.json").read_text())
    assert (summary["case_id"], summary["notes"]) == ("P1", {"grade": "2", "center": "Wien"})
    manifest.write_text(manifest.read_text(encoding="utf-8-sig").replace("Wien", "Graz"))
    assert run().done == 0  # the new note needs no new scan
    assert read(out / "slides.csv")["center"].tolist() == ["Graz", "=1+1"]


BAD_MANIFESTS = {
    "no path column": ("slide,case\na.svs,1\n", ["'path'"]),
    "empty": ("", ["empty"]),
    "only header": ("path\n", ["no slide"]),
    "cells": ("path,case_id\na.svs\nb.svs,1,2\n", ["row 2", "row 3", "cells"]),
    "no path": ("path,case_id\n,x\n", ["row 2", "no path"]),
    "mpp": ("path,mpp\na.svs,abc\nb.svs,-1\nc.svs,nan\nd.svs,inf\n", ["row 2", "row 3", "row 4", "row 5"]),
    "twice": ("path,slide_id\nx/a.svs,s\ny/b.svs,s\n", ["rows 2 and 3", "x/a.svs", "y/b.svs"]),
    "case only": ("path,slide_id\na.svs,s\nb.svs,S\n", ["rows 2 and 3", "same"]),
    "own column": ("path,mf_count,slide_id\na.svs,1,s\n", ["'mf_count'"]),
    "column twice": ("path,grade,grade\na.svs,1,2\n", ["'grade'", "twice"]),
    "column without name": ("path,\na.svs,2\n", ["no name"]),
    "quote": ('path\n"a.svs\n', ["line"]),
    "zero byte": ("path\na\0.svs\n", ["zero byte"]),
}


@pytest.mark.parametrize("case", BAD_MANIFESTS)
def test_all_faults_of_a_manifest_are_named_at_once(tmp_path, case):
    text, said = BAD_MANIFESTS[case]
    path = tmp_path / "list.csv"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_manifest(path, CONFIG, tmp_path / "out")
    for part in said:
        assert part in str(caught.value)


def test_a_manifest_that_is_no_text_is_refused(tmp_path):
    path = tmp_path / "list.csv"
    path.write_bytes(b"path\n\xff\xfe.svs\n")
    with pytest.raises(ConfigError, match="UTF-8"):
        read_manifest(path, CONFIG, tmp_path / "out")
    with pytest.raises(ConfigError):
        read_manifest(tmp_path / "none.csv", CONFIG, tmp_path / "out")
    with pytest.raises(ConfigError):
        read_manifest(tmp_path, CONFIG, tmp_path / "out")


def test_no_slide_id_leads_out_of_the_folder(tmp_path):
    evil = ["../up", "/etc/passwd", "a/../../b", "..", ".", ".mitoscan", "nul", "tab\there", "x" * 400]
    evil += ["C:\\x", "slides.csv", "run.json", "shards", "Failures.CSV", "back\x1bspace", "\u202etxt"]
    folder, out = make_slides(tmp_path / "in", "a"), tmp_path / "deep" / "out"
    rows = pd.DataFrame({"path": "a.svs", "slide_id": evil})
    rows.to_csv(folder / "list.csv", index=False)
    before = set(tmp_path.rglob("*"))
    jobs = read_manifest(folder / "list.csv", CONFIG, out)
    batch = run_jobs(jobs, out)
    assert batch.done == len(evil)
    assert sorted(ids(out)) == sorted(evil)
    made = set(tmp_path.rglob("*")) - before
    assert all(path.is_relative_to(tmp_path / "deep") for path in made)
    assert len([path for path in out.iterdir() if path.is_dir()]) == len(evil)
    again = run_jobs(jobs, out)
    assert again.resumed == len(evil)
