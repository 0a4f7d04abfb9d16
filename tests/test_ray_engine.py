"""Slides on a Ray cluster of two nodes, of which one is killed in the middle."""

from __future__ import annotations

import csv
import os
import socket
import time
from collections import Counter
from pathlib import Path

import pytest

ray = pytest.importorskip("ray", reason="needs the extra mitoscan[ray]")

import batches  # noqa: E402
import ray_work  # noqa: E402
from ray.cluster_utils import Cluster  # noqa: E402

from mitoscan.cohort.batch import Unwatched, run_batch  # noqa: E402
from mitoscan.cohort.job import Done, Dropped, Ended, Failed, Job, Progressed, Started  # noqa: E402
from mitoscan.cohort.ray_engine import RayEngine  # noqa: E402
from mitoscan.config import ScanConfig  # noqa: E402
from mitoscan.errors import ConfigError  # noqa: E402

# Ray leaves the files and sockets of the processes that it starts to the garbage collector.
pytestmark = pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)

SMALL = {"num_cpus": 1, "object_store_memory": 80 * 2**20, "include_dashboard": False}


@pytest.fixture(scope="module")
def cluster():
    """Two nodes of one CPU each, and a connection that all engines share, with its warm workers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        here = str(Path(__file__).parent)  # where the nodes' processes find ray_work
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")])))
        made = started(nodes=2)
        try:
            ray.init(address=made.address, log_to_driver=False, logging_level="ERROR")
            yield made
        finally:
            ray.shutdown()
            made.shutdown()


def started(nodes: int, tries: int = 3) -> Cluster:
    """Start a cluster; Ray gives up on a node after 30 s, which a busy machine may need."""
    made = Cluster()
    try:
        for _ in range(nodes):
            made.add_node(**SMALL)
    except Exception:
        made.shutdown()
        if tries == 1:
            raise
        return started(nodes, tries - 1)
    return made


def job(slide_id: str, out: Path) -> Job:
    return Job(slide_id, Path("slides") / f"{slide_id}.svs", ScanConfig(), out)


def follow(engine, ends: int, on_event=None, limit_s=90.0):
    """Poll until so many slides have ended; give all events."""
    events, deadline = [], time.monotonic() + limit_s
    while sum(isinstance(e, Ended) for e in events) < ends:
        assert time.monotonic() < deadline, events
        for event in engine.poll(0.5):
            events.append(event)
            if on_event:
                on_event(event)
    return events


def outcomes(events):
    return {e.slide_id: e.outcome for e in events if isinstance(e, Ended)}


def attempts(out: Path) -> list[list[str]]:
    return [line.split() for line in (out / "attempts.txt").read_text().splitlines()]


@pytest.mark.usefixtures("cluster")
def test_bad_slides_cost_no_other_and_models_are_loaded_once(tmp_path):
    ids = ["ok-1", "bad-1", "raise-1", "ok-2", "ok-3", "ok-4", "kill-1", "hang-1", "ok-5"]
    engine = RayEngine(ray_work.work, num_cpus=1, slide_timeout_s=3)
    assert engine.slots == 4
    for slide_id in ids:
        engine.submit(job(slide_id, tmp_path))
    events = follow(engine, len(ids))
    engine.close()
    found = outcomes(events)
    assert {i for i, o in found.items() if isinstance(o, Done)} == {i for i in ids if i[:2] == "ok"}
    failures = {i: (o.error, o.transient) for i, o in found.items() if isinstance(o, Failed)}
    assert failures == {
        "bad-1": ("SlideOpenError", False),
        "raise-1": ("ZeroDivisionError", True),
        "kill-1": ("WorkerDied", True),
        "hang-1": ("SlideTimeout", True),
    }
    assert all(o.message and o.remedy for o in found.values() if isinstance(o, Failed))
    tried = attempts(tmp_path)
    assert Counter(i for i, *_ in tried) == Counter(ids), "whether to repeat a slide is the batch's to say"
    assert len({process for _, process, _ in tried[:6]}) < 6, "processes are kept for the next slide"
    for slide_id in ids:
        kinds = [type(e) for e in events if e.slide_id == slide_id]
        assert (kinds[0], kinds[-1]) == (Started, Ended)
        assert (kinds.count(Started), kinds.count(Ended)) == (1, 1)
    assert any(isinstance(e, Progressed) for e in events)


@pytest.mark.usefixtures("cluster")
def test_a_stopped_engine_begins_nothing_and_accounts_for_everything(tmp_path):
    engine = RayEngine(ray_work.work)
    ids = [f"slow-{n}" for n in range(5)]
    for slide_id in ids:
        engine.submit(job(slide_id, tmp_path))
    events = []
    while not any(isinstance(e, Started) for e in events):
        events += engine.poll(0.2)
    engine.stop(now=False)
    events += follow(engine, len(ids))
    engine.close()
    begun = {e.slide_id for e in events if isinstance(e, Started)}
    assert 1 <= len(begun) < len(ids)
    assert {i for i, o in outcomes(events).items() if isinstance(o, Done)} == begun
    assert {i for i, o in outcomes(events).items() if isinstance(o, Dropped)} == set(ids) - begun
    assert {i for i, *_ in attempts(tmp_path)} == begun


@pytest.mark.usefixtures("cluster")
def test_stopped_now_it_drops_what_runs(tmp_path):
    engine = RayEngine(ray_work.work)
    engine.submit(job("hang-1", tmp_path))
    while not engine.poll(0.2):
        pass
    engine.stop(now=True)
    assert outcomes(follow(engine, 1, limit_s=5)) == {"hang-1": Dropped()}
    engine.close()


@pytest.mark.usefixtures("cluster")
def test_results_that_a_node_cannot_see_are_an_error(tmp_path):
    engine = RayEngine(ray_work.work)
    engine.submit(job("ok-1", tmp_path / "elsewhere"))
    failed = outcomes(follow(engine, 1))["ok-1"]
    engine.close()
    assert "does not see the results' folder" in failed.message
    assert "same paths" in failed.remedy


@pytest.mark.usefixtures("cluster")
def test_a_slide_that_fits_no_node_is_refused_at_once():
    with pytest.raises(ConfigError, match=r"no node .* 2 CPUs and 1 GPUs.*--ray-gpus"):
        RayEngine(ray_work.work, num_cpus=2, num_gpus=1)


def test_a_node_killed_in_the_middle_costs_no_slide(cluster, tmp_path):
    engine = RayEngine(ray_work.work)
    ids = [f"slow-{n}" for n in range(6)]

    def kill_its_node(event):
        """Once a slide is under way on the node that is not the driver's."""
        for node in list(cluster.worker_nodes):
            if isinstance(event, Progressed) and attempts(tmp_path)[-1][2] == node.node_id:
                cluster.remove_node(node, allow_graceful=False)

    for slide_id in ids:
        engine.submit(job(slide_id, tmp_path))
    events = follow(engine, len(ids), kill_its_node)
    engine.close()
    assert not cluster.worker_nodes
    assert {i: type(o) for i, o in outcomes(events).items()} == dict.fromkeys(ids, Done)
    for kind in (Started, Ended):
        assert Counter(e.slide_id for e in events if isinstance(e, kind)) == Counter(ids)
    tried = Counter(i for i, *_ in attempts(tmp_path))
    assert set(tried) == set(ids)
    assert max(tried.values()) == 2, "it was killed with a slide in its hands"


def test_a_batch_on_a_cluster_has_each_slide_once(cluster, tmp_path):
    if not cluster.worker_nodes:
        cluster.add_node(**SMALL)
    names = [f"s{n}" for n in range(5)]
    folder, out = batches.make_slides(tmp_path / "slides", *names), tmp_path / "out"
    (folder / "bad.svs").write_text("no slide")

    class Killer(Unwatched):
        def progressed(self, event):  # noqa: ARG002
            for node in list(cluster.worker_nodes):
                if (out / f"on-{node.node_id}").exists():
                    cluster.remove_node(node, allow_graceful=False)

    def made():
        return RayEngine(ray_work.scan_and_say_where)

    batch = run_batch(batches.jobs(folder, out), made, out, batches.CARDS, watcher=Killer())
    assert not cluster.worker_nodes, "a node was killed"
    assert (batch.done, len(batch.failures), batch.exit_code) == (len(names), 1, 3)
    with (out / "slides.csv").open(newline="") as file:
        assert [row["slide_id"] for row in csv.DictReader(file)] == names
    again = run_batch(batches.jobs(folder, out), made, out, batches.CARDS)
    assert (again.resumed, again.done) == (len(names), 0)


def test_no_cluster_is_an_error_with_a_remedy():
    assert not ray.is_initialized() or ray.shutdown() is None
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        began = time.monotonic()
        for address in (f"127.0.0.1:{port}", "nonsense", "host:port"):
            with pytest.raises(ConfigError, match=rf"no Ray cluster at '{address}'.*ray start --head"):
                RayEngine(ray_work.work, address)
    assert time.monotonic() - began < 20
