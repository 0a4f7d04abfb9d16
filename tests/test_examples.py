"""The examples run as they stand, in a process of their own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from mitoscan.report.colours import COLOURS
from mitoscan.report.review import NOT_MF_NAME

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


def test_one_slide_scans_and_uses_both_models() -> None:
    done = run(EXAMPLES / "one_slide.py")
    assert done.returncode == 0, done.stderr
    counted = re.search(r"synthetic: (\d+) mitotic figures in (\d+\.\d+) mm²", done.stdout)
    assert counted is not None
    assert int(counted[1]) > 0
    assert 0.1 < float(counted[2]) < 0.8 * 0.6
    assert re.search(r"AMF rate \d+%, \d+% to \d+%", done.stdout)
    assert re.search(r"p_atypical [01]\.\d\d \((AMF|NMF)\), \w+", done.stdout)


def test_one_slide_takes_the_users_own(tmp_path: Path) -> None:
    done = run(EXAMPLES / "one_slide.py", tmp_path / "gone.svs")
    assert done.returncode != 0
    assert "gone.svs: no such file" in done.stderr


def test_slurm_array_hands_each_job_its_shard_and_merges_at_the_end(tmp_path):
    """With stand-ins for sbatch and mitoscan that only say how they were called."""
    for name in ("sbatch", "mitoscan"):
        (tmp_path / name).write_text('#!/bin/sh\necho "$(basename "$0") $*" >> "$CALLS"\necho 17\n')
        (tmp_path / name).chmod(0o755)
    calls = tmp_path / "calls"
    environment = os.environ | {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "CALLS": str(calls),
        "SLURM_ARRAY_TASK_ID": "3",
        "SLURM_ARRAY_TASK_COUNT": "8",
    }
    for script in (["submit.sh", "8"], ["array.sbatch"]):
        command = ["bash", str(EXAMPLES / "slurm" / script[0]), *script[1:]]
        subprocess.run(command, env=environment, check=True, timeout=30, capture_output=True)
    array, merge, job = calls.read_text().splitlines()
    assert "--array=1-8" in array
    assert "--dependency=afterany:17" in merge
    assert "merge" in merge
    assert job.startswith("mitoscan run --manifest slides.csv -o results")
    assert job.endswith("--shard 3/8")


def test_a_cohort_becomes_a_table() -> None:
    done = run(EXAMPLES / "cohort_table.py")
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines()]
    counts = [int(row[2]) for row in rows[1:3]]
    assert [row[0] for row in rows[1:3]] == ["synthetic1", "synthetic2"]
    assert re.search(rf"together: \d+ of {sum(counts)} atypical, \d+% \(\d+% to \d+%\)", done.stdout)


def test_a_reviewed_cohort_trains_a_classifier_that_scans() -> None:
    done = run(EXAMPLES / "retrain.py")
    assert done.returncode == 0, done.stderr
    line = r"^s\d: \d+ figures, \d+ rejected; AMF \d+ called, \d+ reviewed$"
    assert len(re.findall(line, done.stdout, re.MULTILINE)) == 3
    assert "scanned again with my-classifier" in done.stdout


def test_the_pictures_for_qupath_are_drawn_and_its_scripts_use_our_names(tmp_path: Path) -> None:
    done = run(EXAMPLES / "qupath" / "pictures.py", tmp_path)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"colours.png", "corrections.png"}
    scripts = {path.name: path.read_text(encoding="utf-8") for path in (EXAMPLES / "qupath").glob("*.groovy")}
    readme = (EXAMPLES / "qupath" / "README.md").read_text(encoding="utf-8")
    assert all(name in readme for name in scripts)
    assert f"'{NOT_MF_NAME}'" in scripts["review_classes.groovy"]
    for name in ("AMF", "NMF"):
        assert f"['{name}', {', '.join(map(str, COLOURS[name]))}]" in scripts["review_classes.groovy"]
    assert "'p_atypical'" in scripts["load_results.groovy"]
