"""What workers do in tests: real scans with models of a known answer, and every way to fail.

Importable by name, since the engine hands these functions to other processes.
"""

from __future__ import annotations

import json
import os
import signal
import time

import fakes
from results import result

from mitoscan.cohort.job import Done, Failed, Job, Report
from mitoscan.cohort.resume import inputs_of
from mitoscan.cohort.work import do_slide
from mitoscan.config import ScanConfig
from mitoscan.report.tables import summary_bytes
from mitoscan.report.writer import folder_name
from mitoscan.scan.score import SlideSummary


def load_fakes(config: ScanConfig):
    return fakes.models(0.15 if config.threshold is None else config.threshold)


def load_fake_cards(_config: ScanConfig):
    return fakes.card("detector"), fakes.card("classifier")


def scan(job: Job, report: Report) -> Done | Failed:
    """A real scan with fake models."""
    return do_slide(job, report, load=load_fakes)


def by_name(job: Job, report: Report) -> Done | Failed:
    """Fail as the slide's name says, else scan."""
    kind = job.slide_id.split("-")[0]
    if kind == "segfault":
        os.kill(os.getpid(), signal.SIGSEGV)
    elif kind == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    elif kind == "exits":
        os._exit(7)
    elif kind == "hangs":
        time.sleep(600)
    elif kind == "slow":
        time.sleep(1)
    elif kind == "eats":
        hoard = []
        while True:
            hoard.append(b"x" * 2**24)
            time.sleep(0.01)
    elif kind == "once":  # fails the first time, as a network drive does
        mark = job.path.with_suffix(".tried")
        if not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
    return scan(job, report)


def pretend(job: Job, _report: Report) -> Done | Failed:
    """Leave a finished slide's record and summary without a scan, in a millisecond."""
    global _pretended
    if _pretended is None:
        _pretended = result().summary
    summary = _pretended.model_copy(update={"slide_id": job.slide_id, "path": str(job.path)})
    folder = job.out / folder_name(job.slide_id)
    folder.mkdir(parents=True)
    (folder / "summary.json").write_bytes(summary_bytes(summary))
    (folder / "record.json").write_text(json.dumps({"inputs": inputs_of(job, *load_fake_cards(job.config))}))
    return Done(summary)


_pretended: SlideSummary | None = None
