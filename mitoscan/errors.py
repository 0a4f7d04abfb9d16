"""Every error that mitoscan raises on purpose, and the exit code that the command line gives it.

::

    MitoscanError                   1
    ├── ConfigError                 2   a bad option, config value or config file
    ├── SlideError
    │   ├── SlideNotFoundError     10   no such file, or a folder or glob without slides
    │   ├── SlideOpenError         11   empty, broken or of a format that no reader takes
    │   ├── MppError               12   pixel size missing or absurd
    │   ├── NoTissueError          13   the tissue mask is empty
    │   └── SlideReadError         14   pixels could not be decoded after the slide had opened
    ├── RoiError                   20   the regions of interest could not be used
    ├── CandidatesError            21   a file of candidates could not be used
    ├── ModelError                 30   unknown model, bad card, weights that do not fit their checksum
    ├── MissingExtraError          31   an optional dependency is needed and absent
    ├── OutputError                40   results exist already, or cannot be written
    └── DataError                  50   data for training, evaluation or a study missing or faulty

Exit code 0 means that all slides are done, ``SOME_FAILED`` (3) that at least one was done and at least
one failed. 1 without one of the errors above is a bug in mitoscan.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

SOME_FAILED = 3


class MitoscanError(Exception):
    """Base of all errors raised on purpose.

    Parameters
    ----------
    message
        What is wrong, with the offending value.
    path
        The file concerned; printed before the message.
    remedy
        What the user can do about it; printed after the message.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, path: Path | str | None = None, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.path = None if path is None else Path(path)
        self.remedy = remedy

    def __str__(self) -> str:
        """One line: ``path: message. remedy``."""
        line = self.message if self.path is None else f"{self.path}: {self.message}"
        return " ".join((f"{line.rstrip('.')}. {self.remedy}" if self.remedy else line).split())

    def __reduce__(self) -> tuple[object, ...]:
        """Keep path and remedy when the error crosses a process border."""
        return (_rebuild, (type(self), self.message, self.path, self.remedy))


def _rebuild(cls: type[MitoscanError], message: str, path: Path | None, remedy: str) -> MitoscanError:
    return cls(message, path=path, remedy=remedy)


class ConfigError(MitoscanError):
    """A bad option, config value or config file."""

    exit_code = 2


class SlideError(MitoscanError):
    """Anything wrong with one slide."""


class SlideNotFoundError(SlideError):
    """No such file, or a folder or glob without slides."""

    exit_code = 10


class SlideOpenError(SlideError):
    """Empty, broken or of a format that no reader takes."""

    exit_code = 11


class MppError(SlideError):
    """Pixel size missing or absurd."""

    exit_code = 12


class NoTissueError(SlideError):
    """The tissue mask is empty."""

    exit_code = 13


class SlideReadError(SlideError):
    """Pixels could not be decoded after the slide had opened."""

    exit_code = 14


class RoiError(MitoscanError):
    """The regions of interest could not be used."""

    exit_code = 20


class CandidatesError(MitoscanError):
    """A file of candidates could not be used."""

    exit_code = 21


class ModelError(MitoscanError):
    """Unknown model, bad card, or weights that do not fit their checksum."""

    exit_code = 30


class MissingExtraError(MitoscanError):
    """An optional dependency is needed and absent."""

    exit_code = 31


class OutputError(MitoscanError):
    """Results exist already, or cannot be written."""

    exit_code = 40


class DataError(MitoscanError):
    """Training or evaluation data missing or faulty."""

    exit_code = 50
