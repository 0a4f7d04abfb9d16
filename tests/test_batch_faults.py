"""Faults injected into running batches: whatever ends, the rest goes on, and the same command mends it."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import bad_workers
import batches
import numpy as np
import pandas as pd
import psutil
import pytest
from batches import apart, make_slides

from mitoscan.cohort.gather import OWN
from mitoscan.errors import OutputError

pytestmark = pytest.mark.slow

WITHOUT_TIMES = ("seconds", "path")


def table(out: Path, name: str = "slides.csv") -> pd.DataFrame:
    return pd.read_csv(out / name, dtype=str, keep_default_na=False)


def ids(out: Path, name: str = "slides.csv") -> list[str]:
    return table(out, name)["slide_id"].tolist()


def start(folder: Path, out: Path, workers=1, **popen) -> subprocess.Popen:
    """Run a batch as a program of its own."""
    program = [sys.executable, batches.__file__, out, folder, str(workers)]
    return subprocess.Popen(program, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **popen)


def wait_for(condition, seconds=60.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def workers_of(process: subprocess.Popen) -> list[psutil.Process]:
    """The spawned workers, not the helper of multiprocessing."""
    try:
        children = psutil.Process(process.pid).children()
        return [child for child in children if "spawn_main" in " ".join(child.cmdline())]
    except psutil.Error:
        return []


def finished(out: Path) -> int:
    return len(list(out.glob("*/record.json")))


def assert_same_results(one: Path, two: Path) -> None:
    """The same slides, files and findings; only times and places differ."""
    drop = lambda frame: frame.drop(columns=list(WITHOUT_TIMES))  # noqa: E731
    pd.testing.assert_frame_equal(drop(table(one)), drop(table(two)))
    for folder in (path.parent for path in one.glob("*/record.json")):
        other = two / folder.name
        assert {p.name for p in folder.iterdir()} == {p.name for p in other.iterdir()}
        for name in ("findings.csv", "findings.geojson"):
            assert (folder / name).read_bytes() == (other / name).read_bytes()


def test_segfault_hang_and_eaten_memory_cost_only_their_slides(tmp_path):
    names = ["exits-1", "good-1", "segfault-1", "eats-1", "once-1", "hangs-1", "good-2"]
    folder, out = make_slides(tmp_path / "in", *names), tmp_path / "out"
    batch = apart(folder, out, 2, timeout_s=20, memory_gb=1.0, retries=1)
    assert batch.exit_code == 3
    assert ids(out) == ["good-1", "good-2", "once-1"]
    failures = table(out, "failures.csv").set_index("slide_id")
    assert failures["stage"].eq("worker").all()
    assert failures["attempts"].eq("2").all()
    assert failures["error"].to_dict() == {
        "eats-1": "WorkerMemory",
        "exits-1": "WorkerDied",
        "hangs-1": "SlideTimeout",
        "segfault-1": "WorkerDied",
    }
    assert "SIGSEGV" in failures.loc["segfault-1", "message"]
    assert "exit code 7" in failures.loc["exits-1", "message"]
    assert "--slide-timeout" in failures.loc["hangs-1", "remedy"]
    assert "--worker-memory" in failures.loc["eats-1", "remedy"]
    assert not list(out.rglob("*.tmp"))
    assert not [p for p in psutil.Process().children() if "spawn_main" in " ".join(p.cmdline())]


def test_fifty_kills_and_nothing_is_lost(tmp_path):
    """Parent and workers, at random moments; then the results of a run that nobody disturbed."""
    names = [f"s{n:02}" for n in range(60)]
    folder, out = make_slides(tmp_path / "in", *names), tmp_path / "out"
    rng = random.Random(5)  # noqa: S311
    kills, run = 0, start(folder, out)
    while kills < 50:
        if run.poll() is not None:  # all done, or too many of its workers were killed: disturb it once more
            for name in rng.sample(names, 20):
                shutil.rmtree(out / name, ignore_errors=True)
            run = start(folder, out)
        time.sleep(rng.expovariate(1 / 0.4))
        workers = workers_of(run)
        if rng.random() < 0.15 or not workers:
            run.kill()
            run.wait()
            wait_for(lambda gone=workers: not any(w.is_running() for w in gone))  # no orphan
            run = start(folder, out)
        else:
            workers[0].kill()
        kills += 1
    run.kill()
    run.wait()
    last = apart(folder, out)
    assert last.exit_code == 0
    assert ids(out) == names
    undisturbed = tmp_path / "undisturbed"
    apart(folder, undisturbed)
    assert_same_results(undisturbed, out)
    assert not list(out.rglob("*.tmp"))
    assert {p.name for p in out.iterdir()} == {p.name for p in undisturbed.iterdir()}


@pytest.mark.parametrize(
    ("signals", "code"), [(["SIGINT"], 130), (["SIGINT", "SIGINT"], 130), (["SIGTERM"], 143)]
)
def test_ctrl_c_and_sigterm_end_it_cleanly_and_it_goes_on_later(tmp_path, signals, code):
    names = ["first", *(f"slow-{n}" for n in range(3))]  # slow: the second signal comes while one still runs
    folder, out = make_slides(tmp_path / "in", *names), tmp_path / "out"
    run = start(folder, out, start_new_session=True)
    wait_for(lambda: finished(out) >= 1 and list((out / OWN / "claims").glob("*slow*")))
    workers = workers_of(run)
    for name in signals:
        os.killpg(run.pid, signal.Signals[name])  # as a terminal does: to all of the group
        time.sleep(0.1)
    assert run.wait(20) == code
    wait_for(lambda: not any(w.is_running() for w in workers), 5)
    assert not list(out.rglob("*.tmp"))
    assert not (out / ".lock").exists()
    assert not (out / OWN).exists()
    assert ids(out) == sorted(p.parent.name for p in out.glob("*/record.json"))
    assert not (out / "failures.csv").exists()
    state = json.loads((out / "run.json").read_text())
    assert state["state"] == "interrupted"
    assert state["counts"]["left"] == len(names) - len(ids(out)) > 0
    assert apart(folder, out).exit_code == 0
    assert ids(out) == names


def test_a_killed_parent_leaves_no_orphan_even_while_a_slide_hangs(tmp_path):
    folder = make_slides(tmp_path / "in", "hangs-1")
    run = start(folder, tmp_path / "out")
    wait_for(lambda: workers_of(run) and (tmp_path / "out" / OWN / "claims").exists())
    time.sleep(0.5)
    workers = workers_of(run)
    run.kill()
    run.wait()
    wait_for(lambda: not any(w.is_running() for w in workers))  # one that is importing ends after that


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MB, which may also be made read-only."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)]
    if (
        sys.platform != "linux"
        or os.geteuid()
        or subprocess.run(mount, check=False, capture_output=True).returncode
    ):
        pytest.skip("only root on Linux can mount a small disk")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=False)


def test_a_full_disk_ends_the_run_and_it_goes_on_when_there_is_space(tmp_path, small_disk):
    names = [f"s{n:02}" for n in range(25)]
    folder, out = make_slides(tmp_path / "in", *names), small_disk / "out"
    batch = apart(folder, out)
    assert batch.exit_code == 40
    assert 0 < batch.done < 24
    assert batch.left > 0
    assert "No space left" in batch.failures[-1].message
    assert len(batch.failures) == 1
    assert not list(out.rglob("*.tmp"))
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    again = apart(folder, out)
    assert (again.exit_code, again.resumed) == (0, batch.done)
    assert ids(out) == names
    assert not (out / "failures.csv").exists()


def test_a_read_only_folder_is_one_clear_error(tmp_path, small_disk):
    folder = make_slides(tmp_path / "in", "a")
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(OutputError, match=r"cannot be written: Read-only") as caught:
        apart(folder, small_disk / "out")
    assert caught.value.remedy


def test_the_parent_does_not_grow_with_the_number_of_slides(tmp_path):
    """2000 slides; the rows that it keeps are all that grows."""
    folder = make_slides(tmp_path / "in", "s0000")
    for n in range(1, 2000):
        (folder / f"s{n:04}.svs").hardlink_to(folder / "s0000.svs")
    out = tmp_path / "out"
    used: list[int] = []

    class Watcher(batches.Unwatched):
        def ended(self, *_, **__):
            used.append(psutil.Process().memory_info().rss)

    batch = batches.run_batch(
        batches.jobs(folder, out),
        lambda: batches.ProcessEngine(bad_workers.pretend, 2),
        out,
        batches.CARDS,
        watcher=Watcher(),
    )
    assert (batch.done, batch.exit_code) == (2000, 0)
    assert len(ids(out)) == len(set(ids(out))) == 2000
    assert np.mean(used[-100:]) - np.mean(used[200:300]) < 3e6
    began = time.monotonic()
    assert batches.here(folder, out).resumed == 2000
    assert time.monotonic() - began < 20
