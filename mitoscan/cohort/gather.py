"""The tables of a whole output folder, made from what lies in the folders of its slides."""

from __future__ import annotations

import csv
import io
import json
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from mitoscan.cohort.lock import HeldError, holder_of
from mitoscan.errors import DataError, OutputError
from mitoscan.report.atomic import write_atomically
from mitoscan.report.cohort_page import write_cohort_page
from mitoscan.report.tables import csv_bytes, read_summary, slide_columns, slide_row
from mitoscan.report.writer import RECORD_NAME, folder_name
from mitoscan.scan.score import SlideSummary, printable

log = logging.getLogger(__name__)

SLIDES_NAME, FAILURES_NAME, RUN_NAME, LOCK_NAME = "slides.csv", "failures.csv", "run.json", ".lock"
SHARDS = "shards"
OWN = ".mitoscan"
"""Claims and joined runs; no slide's folder has such a name."""
_SHARD = re.compile(r"(\d+)-of-(\d+)")


@dataclass(frozen=True)
class Failure:
    """A slide that could not be done: a row of failures.csv."""

    slide_id: str
    path: str
    stage: str
    error: str
    """Class of the error."""
    message: str
    remedy: str
    attempts: int


FAILURE_COLUMNS = [field.name for field in fields(Failure)]


@dataclass(frozen=True)
class Merged:
    """What a whole output folder holds."""

    finished: int
    failures: tuple[Failure, ...]
    absent: tuple[str, ...]
    """Shards (``i/n``) that never started."""
    unfinished: tuple[str, ...]
    """Shards that started and have not come to their end."""


def finished(out: Path, keep: Callable[[str], bool] = bool) -> Iterator[SlideSummary]:
    """Read the summaries of the finished slides in ``out``, sorted by the names of their folders.

    ``keep`` is asked whether to take a folder, by its name.

    One that cannot be read is left out with a warning: a run that names its slide does it again.
    """
    with os.scandir(out) as entries:
        names = sorted(
            e.name for e in entries if e.is_dir() and not e.name.startswith(".") and e.name != SHARDS
        )
    for name in names:
        folder = out / name
        if not keep(name) or not (folder / RECORD_NAME).is_file():
            continue
        try:
            yield read_summary(folder / "summary.json")
        except DataError as error:
            log.warning("left out of %s: %s", SLIDES_NAME, error)


def slides_csv(
    out: Path, notes: Iterable[str] = (), keep: Callable[[str], bool] = bool
) -> tuple[list[str], bytes]:
    """Give columns and content of slides.csv of what is finished; ``notes``: columns to have in any case.

    Memory holds the text only, not the summaries: there may be thousands.
    """
    names = dict.fromkeys(notes)
    while True:
        columns = slide_columns(names)
        known = len(names)
        parts = [csv_bytes(columns, [])]
        for summary in finished(out, keep):
            names |= dict.fromkeys(summary.notes)
            parts.append(csv_bytes(columns, [slide_row(summary)], header=False))
        if len(names) == known:  # else a slide brought a column that the rows before it lack
            return columns, b"".join(parts)


def read_failures(path: Path) -> list[Failure]:
    """Read failures.csv back; none when it is not there, and rows that are no failures are passed over."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return []
    found = []
    for row in csv.DictReader(io.StringIO(text, newline="")):
        values = {name: row.get(name) or "" for name in FAILURE_COLUMNS}
        if values["slide_id"] and values["attempts"].isdigit():
            found.append(Failure(**(values | {"attempts": int(values["attempts"])})))  # type: ignore[arg-type]
    return found


def write_failures(failures: list[Failure], path: Path) -> None:
    """Write a row a failed slide; without any there is no file.

    Raises
    ------
    OutputError
        When the file cannot be written.
    """
    if failures:
        write_atomically(path, csv_bytes(FAILURE_COLUMNS, (asdict(failure) for failure in failures)))
    else:
        path.unlink(missing_ok=True)


def without_finished(out: Path, failures: Iterable[Failure]) -> list[Failure]:
    """Give the failures of slides that have no result meanwhile."""
    return [f for f in failures if not (out / folder_name(f.slide_id) / RECORD_NAME).is_file()]


def joined_homes(out: Path) -> list[Path]:
    """Give the folders of the runs that joined another one."""
    return sorted((out / OWN / "joined").glob("*"))


def merge(out: Path) -> Merged:
    """Write slides.csv, failures.csv and report.html from all that runs and shards left in an output folder.

    failures.csv lists what is still missing: what failed, and what a shard ended without doing.

    Raises
    ------
    OutputError
        When ``out`` is no folder, cannot be written, or a run is writing there.
    """
    if not out.is_dir():
        raise OutputError("no such folder", path=out, remedy="Name the folder that was given to -o.")
    if holder := holder_of(out / LOCK_NAME):
        raise HeldError(f"in use by {holder}", path=out, remedy="Wait for it: it writes the tables itself.")
    absent, unfinished = _shards(out)
    failures = {f.slide_id: f for f in read_failures(out / FAILURES_NAME) if f.error != "NotDone"}
    for home in [*joined_homes(out), *(out / SHARDS).glob("*")]:
        own = {f.slide_id: f for f in read_failures(home / FAILURES_NAME)}
        failures |= {f.slide_id: f for f in _not_done(home) if f.slide_id not in failures} | own
    missing = without_finished(out, [failures[slide_id] for slide_id in sorted(failures)])
    write_atomically(out / SLIDES_NAME, slides_csv(out)[1])
    write_failures(missing, out / FAILURES_NAME)
    write_cohort_page(out)
    return Merged(sum(1 for _ in finished(out)), tuple(missing), tuple(absent), tuple(unfinished))


def read_run(home: Path) -> dict[str, object]:
    """Read run.json of a run; empty when there is none."""
    try:
        run = json.loads((home / RUN_NAME).read_bytes())
    except (OSError, ValueError):
        return {}
    return run if isinstance(run, dict) else {}


def _not_done(home: Path) -> Iterator[Failure]:
    """Name the slides that a run set out to do."""
    selection = read_run(home).get("slides")
    if isinstance(selection, dict):
        for slide_id, path in selection.items():
            yield Failure(
                printable(slide_id),
                str(path),
                "",
                "NotDone",
                f"{home.name} ended without it",
                "Run it again.",
                0,
            )


def _shards(out: Path) -> tuple[list[str], list[str]]:
    """Give the shards that are absent and those that have not come to their end."""
    present: dict[int, dict[int, Path]] = {}
    for home in (out / SHARDS).glob("*"):
        if found := _SHARD.fullmatch(home.name):
            present.setdefault(int(found[2]), {})[int(found[1])] = home
    absent = [f"{i}/{n}" for n in sorted(present) for i in range(1, n + 1) if i not in present[n]]
    unfinished = [
        f"{i}/{n}"
        for n in sorted(present)
        for i, home in sorted(present[n].items())
        if read_run(home).get("state") != "finished"
    ]
    return absent, unfinished
