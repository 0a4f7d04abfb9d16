"""Stand-ins for the work on a slide, for Ray's workers to import: what the slide's id says is done."""

from __future__ import annotations

import os
import time

import bad_workers
import ray
from results import result

from mitoscan.cohort.job import Done, Failed, Progressed


def work(job, report) -> Done | Failed:
    """Leave a line in OUT for every attempt, and do what the id says."""
    node = ray.get_runtime_context().get_node_id()
    with (job.out / "attempts.txt").open("a") as file:
        file.write(f"{job.slide_id} {os.getpid()} {node}\n")
    report(Progressed(job.slide_id, "detecting", 1, 2, 1.0))
    kind = job.slide_id.partition("-")[0]
    if kind == "kill":
        os._exit(9)
    if kind == "raise":
        raise ZeroDivisionError("boom")
    if kind in {"slow", "hang"}:
        time.sleep(600 if kind == "hang" else 1.5)
    if kind == "bad":
        return Failed("open", "SlideOpenError", "broken", "mend it", 11)
    return Done(result().summary.model_copy(update={"slide_id": job.slide_id}))


def scan_and_say_where(job, report) -> Done | Failed:
    """A real scan with models of a known answer; leaves a mark of the node, and time to kill it."""
    (job.out / f"on-{ray.get_runtime_context().get_node_id()}").touch()
    report(Progressed(job.slide_id, "detecting", 0, 2, 1.0))
    time.sleep(1)
    return bad_workers.scan(job, report)
