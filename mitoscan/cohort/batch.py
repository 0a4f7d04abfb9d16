"""Several slides, one after the other: a bad one is recorded and the others go on."""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from mitoscan.config import ScanConfig
from mitoscan.errors import SOME_FAILED, ConfigError, MitoscanError
from mitoscan.report.atomic import write_atomically
from mitoscan.report.tables import read_summary, write_slides_csv
from mitoscan.report.writer import RECORD_NAME, ensure_writable, write_slide
from mitoscan.scan.pipeline import Models, scan_slide
from mitoscan.scan.progress import Progress
from mitoscan.scan.score import SlideSummary

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Failure:
    """A slide that could not be done: a row of failures.csv."""

    path: str
    error: str
    """Class of the error."""
    message: str
    remedy: str
    exit_code: int


@dataclass(frozen=True)
class Batch:
    """What became of a list of slides."""

    done: tuple[SlideSummary, ...]
    failures: tuple[Failure, ...]

    @property
    def exit_code(self) -> int:
        """0 when all are done, 3 when some are, else the code of the first failure."""
        if not self.failures:
            return 0
        return SOME_FAILED if self.done else self.failures[0].exit_code


def run_batch(
    paths: Sequence[Path],
    config: ScanConfig,
    out: Path,
    models: Models,
    *,
    overwrite: bool = False,
    progress_of: Callable[[Path, int], Progress],
) -> Batch:
    """Scan slides and write ``OUT/<slide>/`` for each, ``OUT/slides.csv`` and ``OUT/failures.csv``.

    Parameters
    ----------
    paths
        The slides; their names without suffix are the slide ids.
    config, models
        How to scan, and with what.
    out
        Folder for the results; made when absent.
    overwrite
        Replace results that are there already.
    progress_of
        Makes the progress display of a slide, from its path and number.

    Raises
    ------
    ConfigError
        When two slides have the same id.
    """
    _refuse_duplicates(paths)
    done: list[SlideSummary] = []
    failures: list[Failure] = []
    for number, path in enumerate(paths):
        try:
            ensure_writable(out, path.stem, overwrite)
            result = scan_slide(path, config, models=models, progress=progress_of(path, number))
            write_slide(result, out, overwrite=overwrite)
        except MitoscanError as error:
            log.error("%s", error)
            failures.append(_failure(path, error))
        except Exception as error:  # a fault of ours or of a library must not cost the other slides
            log.exception("%s: unforeseen error", path)
            failures.append(Failure(str(path), type(error).__name__, str(error), "Please report this.", 1))
        else:
            done.append(result.summary)
            write_slides_csv(finished(out), out / "slides.csv")
    _write_failures(failures, out / "failures.csv")
    return Batch(tuple(done), tuple(failures))


def finished(out: Path) -> list[SlideSummary]:
    """Read the summaries of all finished slides in ``out``, those of earlier runs too, by slide id."""
    folders = [record.parent for record in sorted(out.glob(f"*/{RECORD_NAME}"))]
    return [read_summary(folder / "summary.json") for folder in folders]


def _write_failures(failures: Sequence[Failure], path: Path) -> None:
    """Write a row a failed slide; without any, the file of an earlier run goes."""
    if not failures:
        path.unlink(missing_ok=True)
        return
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, [field.name for field in fields(Failure)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(failure) for failure in failures)
    if path.parent.is_dir():  # else OUT itself is what failed
        write_atomically(path, text.getvalue().encode())


def _failure(path: Path, error: MitoscanError) -> Failure:
    return Failure(str(path), type(error).__name__, error.message, error.remedy, error.exit_code)


def _refuse_duplicates(paths: Sequence[Path]) -> None:
    seen: dict[str, Path] = {}
    for path in paths:
        if (other := seen.setdefault(path.stem, path)) != path:
            raise ConfigError(
                f"two slides have the id {path.stem!r}: {other} and {path}",
                remedy="Rename one, or run them into different output folders.",
            )
