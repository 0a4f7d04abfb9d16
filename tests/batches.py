"""Small batches over tiny slides, in this process or as a program of its own that can be killed.

As a program: ``python batches.py OUT FOLDER WORKERS [TIMEOUT_S]``.
"""

from __future__ import annotations

import sys
from pathlib import Path

import bad_workers
import slides

from mitoscan.cohort.batch import Batch, Rules, Unwatched, run_batch
from mitoscan.cohort.job import Job
from mitoscan.cohort.manifest import jobs_of
from mitoscan.cohort.processes import ProcessEngine, ThreadEngine
from mitoscan.config import ScanConfig
from mitoscan.slide.write import write_pyramid

__all__ = ["Unwatched"]

MARKS = [(150.0, 150.0), (400.0, 300.0)]
PICTURE = slides.with_marks(520, 420, MARKS)
CONFIG = ScanConfig(tissue_mask=False, readers=1)
CARDS = bad_workers.load_fake_cards(CONFIG)


def fakes_with_other_weights():
    return CARDS[0].model_copy(update={"sha256": "c" * 64}), CARDS[1]


def make_slides(folder: Path, *names: str) -> Path:
    """Write tiny slides with two figures each."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        write_pyramid(folder / f"{name}.svs", PICTURE, 0.25, downsamples=[1])
    return folder


def jobs(folder: Path, out: Path, config: ScanConfig = CONFIG):
    return jobs_of(sorted(folder.glob("*.svs")), config, out)


def run_jobs(jobs: list[Job], out: Path, cards=CARDS, function=bad_workers.scan, **rules) -> Batch:
    """Run in this process: quick."""
    return run_batch(jobs, lambda: ThreadEngine(function), out, cards, rules=Rules(**rules))


def here(folder: Path, out: Path, function=bad_workers.scan, config=CONFIG, **rules) -> Batch:
    """Run the slides of a folder in this process."""
    return run_jobs(jobs(folder, out, config), out, function=function, **rules)


def apart(folder: Path, out: Path, workers=1, *, timeout_s=None, memory_gb=None, **rules) -> Batch:
    """Run in worker processes that fail as the slides' names say."""
    return run_batch(
        jobs(folder, out),
        lambda: ProcessEngine(bad_workers.by_name, workers, slide_timeout_s=timeout_s, memory_gb=memory_gb),
        out,
        CARDS,
        rules=Rules(**rules),
    )


if __name__ == "__main__":
    result = apart(Path(sys.argv[2]), Path(sys.argv[1]), int(sys.argv[3]))
    sys.exit(result.exit_code)
