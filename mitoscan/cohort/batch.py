"""Many slides: what is still to do, one engine to do it, and tables that are right whenever the run ends.

Results lie in ``OUT/<slide>/``, and each run keeps its own tables in its home: OUT itself, or
``OUT/shards/i-of-n/`` of a shard. While it runs, rows are appended as slides finish; at its end the tables
are made anew from the folders of the slides, which alone are the truth.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import platform
import re
import shutil
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Protocol

from mitoscan.cohort.gather import (
    FAILURE_COLUMNS,
    FAILURES_NAME,
    LOCK_NAME,
    OWN,
    RUN_NAME,
    SHARDS,
    SLIDES_NAME,
    Failure,
    joined_homes,
    read_failures,
    slides_csv,
    without_finished,
    write_failures,
)
from mitoscan.cohort.interrupts import Interrupts
from mitoscan.cohort.job import Done, Dropped, Ended, Engine, Event, Failed, Job, Progressed, Started
from mitoscan.cohort.lock import HeldError, Lock, holder_of
from mitoscan.cohort.resume import Finished, look, refresh
from mitoscan.errors import SOME_FAILED, ConfigError, OutputError
from mitoscan.models.card import ModelCard
from mitoscan.report.atomic import write_atomically
from mitoscan.report.cohort_page import write_cohort_page
from mitoscan.report.record import surroundings
from mitoscan.report.tables import GrowingTable, slide_row
from mitoscan.report.writer import RECORD_NAME, folder_name, remove_leftovers
from mitoscan.scan.score import printable

log = logging.getLogger(__name__)

POLL_S = 0.5
LOOK_AGAIN_S = 2.0
"""How often a run looks whether slides that another run has claimed have become free."""
OUTDATED_NAME = "record.outdated.json"
"""The record of a result whose slide could not be done again with the inputs of now."""
_SHOWN_REASONS = 5

Cards = tuple[ModelCard | None, ModelCard]
"""Of detector and classifier; no detector where candidates are given."""


@dataclass(frozen=True)
class Shard:
    """One of ``of`` parts of the slides, counted from 1."""

    number: int
    of: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Read ``i/n``.

        Raises
        ------
        ConfigError
            When it is not that, or i is not within 1 to n.
        """
        found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text.strip())
        if not found or not 1 <= int(found[1]) <= int(found[2]):
            raise ConfigError(
                f"shard {text!r:.40} is not i/n with i from 1 to n", remedy="For example: --shard 3/10."
            )
        return cls(int(found[1]), int(found[2]))

    def select(self, jobs: Sequence[Job]) -> list[Job]:
        """Take every n-th of the slides in the order of their ids: each slide is in one shard."""
        return sorted(jobs, key=lambda job: job.slide_id)[self.number - 1 :: self.of]

    def home(self, out: Path) -> Path:
        """Where this shard keeps its tables."""
        return out / SHARDS / f"{self.number}-of-{self.of}"


@dataclass(frozen=True)
class Rules:
    """How a batch goes about its slides."""

    retries: int = 1
    """Further attempts at a slide whose failure may pass."""
    overwrite: bool = False
    """Do slides again that are finished."""
    join: bool = False
    """Share the work with a run that is there already."""
    shard: Shard | None = None


@dataclass
class Batch:
    """What became of the slides."""

    selected: int = 0
    done: int = 0
    resumed: int = 0
    """Finished before: by an earlier run, or by another one at the same time."""
    failures: list[Failure] = field(default_factory=list)
    signal: int = 0
    """Which signal ended it early; 0: none."""
    ended_by: Failed | None = None
    """The failure that no other slide would have escaped."""
    first_exit_code: int = 0

    @property
    def left(self) -> int:
        """Slides that were not attempted to their end."""
        return self.selected - self.done - self.resumed - len(self.failures)

    @property
    def exit_code(self) -> int:
        """0 when all are done, 3 when some are, else the code of the first failure; 128 + signal."""
        if self.signal and self.left:
            return 128 + self.signal
        if self.ended_by is not None:
            return self.ended_by.exit_code
        if not self.failures:
            return 0
        return SOME_FAILED if self.done + self.resumed else self.first_exit_code


class Watcher(Protocol):
    """Is told what happens, to show it."""

    def begin(self, selected: int, resumed: int) -> None:
        """Note how many slides there are, and how many of them were finished before."""

    def started(self, slide_id: str) -> None:
        """Note that a worker has taken a slide."""

    def progressed(self, event: Progressed) -> None:
        """Note how far a slide is."""

    def ended(self, slide_id: str, outcome: Done | Failed | Dropped, *, again: bool) -> None:
        """Note that a slide is through; ``again``: it gets another attempt."""


class Unwatched:
    """Shows nothing."""

    def begin(self, selected: int, resumed: int) -> None:
        """Ignore."""

    def started(self, slide_id: str) -> None:
        """Ignore."""

    def progressed(self, event: Progressed) -> None:
        """Ignore."""

    def ended(self, slide_id: str, outcome: Done | Failed | Dropped, *, again: bool) -> None:
        """Ignore."""


def run_batch(
    jobs: Sequence[Job],
    engine: Callable[[], Engine],
    out: Path,
    cards: Cards,
    *,
    rules: Rules | None = None,
    watcher: Watcher | None = None,
) -> Batch:
    """Do what is missing of some slides; see the module for what it writes.

    Parameters
    ----------
    jobs
        The slides, with ids that differ (`manifest.jobs_of`, `manifest.read_manifest`).
    engine
        Makes the engine; not called when nothing is missing.
    out
        Folder for the results; made when absent.
    cards
        Of the detector and the classifier that the jobs' configs name.
    rules, watcher
        How, and who is told.

    Raises
    ------
    ConfigError
        When the rules contradict each other.
    HeldError
        When another run writes to ``out``.
    OutputError
        When ``out`` cannot be written.
    """
    rules = rules or Rules()
    if rules.join and rules.overwrite:
        raise ConfigError(
            "--join and --overwrite exclude each other", remedy="The runs would do each other's slides again."
        )
    chosen = list(jobs) if rules.shard is None else rules.shard.select(jobs)
    home, lock = _home(out, rules)
    try:
        with Interrupts() as interrupts:
            run = _Run(chosen, out, home, cards, rules, watcher or Unwatched(), interrupts, lock)
            return run.run(engine)
    finally:
        lock.release()


def _home(out: Path, rules: Rules) -> tuple[Path, Lock]:
    """Give the folder of this run's own tables, locked."""
    if rules.shard is not None:
        if holder := holder_of(out / LOCK_NAME):
            raise HeldError(f"in use by {holder}", path=out, remedy="Wait for it: it does all slides.")
        home = rules.shard.home(out)
        return home, Lock.take(home / LOCK_NAME)
    for other in (out / SHARDS).glob(f"*/{LOCK_NAME}"):
        if holder := holder_of(other):
            raise HeldError(
                f"shard {other.parent.name} is in use by {holder}", path=out, remedy="Wait for all shards."
            )
    try:
        return out, Lock.take(out / LOCK_NAME)
    except HeldError:
        if not rules.join:
            raise
    home = out / OWN / "joined" / f"{platform.node() or 'host'}-{os.getpid()}"
    return home, Lock.take(home / LOCK_NAME)


class _Run:
    """One run over some slides."""

    def __init__(
        self,
        jobs: list[Job],
        out: Path,
        home: Path,
        cards: Cards,
        rules: Rules,
        watcher: Watcher,
        interrupts: Interrupts,
        lock: Lock,
    ) -> None:
        self._jobs, self._out, self._home, self._cards = jobs, out, home, cards
        self._rules, self._watcher, self._interrupts, self._lock = rules, watcher, interrupts, lock
        self._batch = Batch(selected=len(jobs))
        self._queue: deque[Job] = deque()
        self._open: dict[str, tuple[Job, Lock]] = {}
        self._elsewhere: list[Job] = []
        """Claimed by other runs."""
        self._looked = 0.0
        self._attempts: Counter[str] = Counter()
        self._undone: set[str] = set()
        """Folders of slides that are still to do: what lies in them is of other inputs."""
        self._ending = self._ended = False
        self._own = {folder_name(job.slide_id) for job in jobs}
        self._config = jobs[0].config.model_dump(mode="json") if jobs else {}
        self._began, self._started = time.monotonic(), datetime.now(UTC)

    def run(self, engine: Callable[[], Engine]) -> Batch:
        """Do it all."""
        remove_leftovers(self._home)
        if self._home == self._out:
            _forget_joined(self._out)
        self._sort_out()
        self._write_run("running")
        notes = (name for job in self._jobs for name, _ in job.notes)
        self._slides = GrowingTable(self._home / SLIDES_NAME, *slides_csv(self._out, notes, self._counts))
        self._failures: GrowingTable | None = None
        (self._home / FAILURES_NAME).unlink(missing_ok=True)
        self._watcher.begin(self._batch.selected, self._batch.resumed)
        try:
            if self._queue:
                self._work(engine)
        finally:
            self._close()
        return self._batch

    # What is to do

    def _sort_out(self) -> None:
        """Tell finished slides from those to do, and say why a finished one is done again."""
        reasons: Counter[str] = Counter()
        for job in self._jobs:
            found = look(job, *self._cards)
            if isinstance(found, Finished) and not self._rules.overwrite:
                refresh(found.summary, job)
                self._batch.resumed += 1
                continue
            self._queue.append(job)
            self._undone.add(folder_name(job.slide_id))
            reason = "--overwrite" if isinstance(found, Finished) else found.reason
            if reason:
                log.debug("%s is done again: %s", job.slide_id, reason)
                reasons[reason] += 1
        for reason, count in reasons.most_common(_SHOWN_REASONS):
            log.info("%d done again: %s", count, reason)
        if len(reasons) > _SHOWN_REASONS:
            log.info(
                "%d done again for other reasons, see --verbose",
                sum(reasons.values()) - sum(count for _, count in reasons.most_common(_SHOWN_REASONS)),
            )

    def _counts(self, folder: str) -> bool:
        """Whether what lies in a folder belongs into this run's slides.csv."""
        return folder not in self._undone and (self._home == self._out or folder in self._own)

    # The work

    def _work(self, make_engine: Callable[[], Engine]) -> None:
        engine = make_engine()
        try:
            while self._goes_on(engine):
                for event in engine.poll(POLL_S):
                    self._take(event)
                for lock in (self._lock, *(claim for _, claim in self._open.values())):
                    lock.touch()
        finally:
            engine.close()
            for _, claim in self._open.values():
                claim.release()

    def _goes_on(self, engine: Engine) -> bool:
        """Heed requests to stop, hand out slides, and say whether there is anything to wait for."""
        if self._interrupts.now and not self._ended:
            self._ended = True
            engine.stop(now=True)
        if (self._interrupts.signal or self._batch.ended_by) and not self._ending:
            self._ending = True
            engine.stop(now=False)
            if self._open and not self._ended:
                log.warning("finishing %d running; Ctrl-C again stops them", len(self._open))
        if not self._ending:
            self._look_elsewhere()
            while self._queue and len(self._open) < engine.slots:
                self._hand_out(self._queue.popleft(), engine)
        return bool(self._open) or (not self._ending and bool(self._queue or self._elsewhere))

    def _hand_out(self, job: Job, engine: Engine) -> None:
        try:
            claim = Lock.take(self._claim(job))
        except HeldError:
            self._elsewhere.append(job)
            return
        except OutputError as error:
            self._fail(
                job, Failed("write", "OutputError", str(error), error.remedy, error.exit_code, fatal=True)
            )
            return
        if not self._rules.overwrite and isinstance(look(job, *self._cards), Finished):
            claim.release()
            self._undone.discard(folder_name(job.slide_id))
            self._batch.resumed += 1
            self._watcher.begin(self._batch.selected, self._batch.resumed)
            return
        self._attempts[job.slide_id] += 1
        self._open[job.slide_id] = job, claim
        engine.submit(job)

    def _look_elsewhere(self) -> None:
        """Take back slides that others had claimed, finished or not, when they let go of them."""
        if not self._elsewhere or time.monotonic() - self._looked < LOOK_AGAIN_S:
            return
        self._looked = time.monotonic()
        waiting, self._elsewhere = self._elsewhere, []
        for job in waiting:
            (self._elsewhere if holder_of(self._claim(job)) else self._queue).append(job)

    def _take(self, event: Event) -> None:
        if isinstance(event, Started):
            self._watcher.started(event.slide_id)
        elif isinstance(event, Progressed):
            self._watcher.progressed(event)
        else:
            self._end(event)

    def _end(self, event: Ended) -> None:
        job, claim = self._open.pop(event.slide_id)
        outcome = event.outcome
        again = (
            isinstance(outcome, Failed)
            and outcome.transient
            and not self._ending
            and self._attempts[job.slide_id] <= self._rules.retries
        )
        if not isinstance(outcome, Done):
            remove_leftovers(self._out / folder_name(job.slide_id))
        if isinstance(outcome, Done):
            self._batch.done += 1
            self._undone.discard(folder_name(job.slide_id))
            self._append(self._slides, slide_row(outcome.summary))
        elif again:
            self._queue.append(job)
        elif isinstance(outcome, Failed):
            self._fail(job, outcome)
        claim.release()
        self._watcher.ended(event.slide_id, outcome, again=again)

    def _fail(self, job: Job, failed: Failed) -> None:
        batch = self._batch
        row = Failure(
            printable(job.slide_id),
            printable(str(job.path)),
            failed.stage,
            failed.error,
            printable(failed.message),
            failed.remedy,
            self._attempts.pop(job.slide_id, 1),
        )
        batch.first_exit_code = batch.first_exit_code or failed.exit_code
        batch.failures.append(row)
        if failed.fatal and batch.ended_by is None:
            batch.ended_by = failed
        with contextlib.suppress(OSError):
            record = self._out / folder_name(job.slide_id) / RECORD_NAME
            record.replace(record.with_name(OUTDATED_NAME))
        with contextlib.suppress(OutputError):  # its end tries again, and says so
            if self._failures is None:
                self._failures = GrowingTable(self._home / FAILURES_NAME, FAILURE_COLUMNS)
        if self._failures is not None:
            self._append(self._failures, asdict(row))

    @staticmethod
    def _append(table: GrowingTable, row: dict[str, object]) -> None:
        try:
            table.append(row)
        except OutputError as error:  # the table is made anew at the end
            log.warning("%s", error)

    def _claim(self, job: Job) -> Path:
        return self._out / OWN / "claims" / f"{folder_name(job.slide_id)}.claim"

    # The end

    def _close(self) -> None:
        """Make the tables anew, sorted and whole, and say how it ended."""
        self._batch.signal = self._interrupts.signal
        try:
            self._write_tables()
        except OutputError as error:
            if self._batch.ended_by is None:
                raise
            log.warning("the tables are not up to date: %s", error)  # the same full disk that ended the run
        with contextlib.suppress(OSError):  # not empty: another run is at work
            (self._out / OWN / "claims").rmdir()
            (self._out / OWN).rmdir()

    def _write_tables(self) -> None:
        notes = (name for job in self._jobs for name, _ in job.notes)
        write_atomically(self._home / SLIDES_NAME, slides_csv(self._out, notes, self._counts)[1])
        failures = {failure.slide_id: failure for failure in self._batch.failures}
        if self._home == self._out:
            for home in joined_homes(self._out):
                theirs = {f.slide_id: f for f in read_failures(home / FAILURES_NAME)}
                failures = theirs | failures
        missing = [failures[slide_id] for slide_id in sorted(failures)]
        write_failures(without_finished(self._out, missing), self._home / FAILURES_NAME)
        if self._home == self._out:
            write_cohort_page(self._out)
        self._write_run("interrupted" if self._batch.left else "finished")

    def _write_run(self, state: str) -> None:
        batch = self._batch
        seconds = time.monotonic() - self._began  # the clock may have been set meanwhile
        run = {
            "state": state,
            "started_utc": self._started.isoformat(timespec="seconds"),
            "finished_utc": None
            if state == "running"
            else (self._started + timedelta(seconds=seconds)).isoformat(timespec="seconds"),
            "seconds": round(seconds, 3),
            "counts": {
                "selected": batch.selected,
                "done": batch.done,
                "finished_before": batch.resumed,
                "failed": len(batch.failures),
                "left": batch.left,
            },
            "shard": None
            if self._rules.shard is None
            else f"{self._rules.shard.number}/{self._rules.shard.of}",
            "models": [{"name": card.name, "sha256": card.sha256} for card in self._cards if card],
            "config": self._config,
            **surroundings(),
            "slides": {printable(job.slide_id): printable(str(job.path)) for job in self._jobs},
        }
        text = json.dumps(run, indent=1, ensure_ascii=False) + "\n"
        write_atomically(self._home / RUN_NAME, text.encode("utf-8", "backslashreplace"))


def _forget_joined(out: Path) -> None:
    """Remove what runs that had joined an earlier one left behind."""
    for home in joined_homes(out):
        if not holder_of(home / LOCK_NAME):
            shutil.rmtree(home, ignore_errors=True)
