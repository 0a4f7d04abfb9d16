"""The examples run as they stand, in a process of their own."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

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
