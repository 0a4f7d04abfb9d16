"""Tables of text from users: read with every fault named, never guessed around; and tables written as CSV."""

from __future__ import annotations

import csv
import io
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mitoscan.errors import DataError

DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs"}
MISSING = frozenset({"", "na", "n/a", "#n/a", "nan", "null"})
"""Cells that mean: not known. Compared in lower case."""

_DECIMAL_COMMA = re.compile(r"[+-]?\d+,\d+")


@dataclass(frozen=True)
class Table:
    """A CSV file as text; every row has every column, what is missing is an empty string."""

    path: Path
    columns: tuple[str, ...]
    rows: tuple[dict[str, str], ...]
    delimiter: str = ","

    def require(self, columns: Iterable[str], remedy: str) -> None:
        """Raise a ``DataError`` that names the columns missing and those there are."""
        missing = [name for name in columns if name not in self.columns]
        if missing:
            raise DataError(
                f"no column {_listed(missing)}; the columns are {_listed(self.columns)}",
                path=self.path,
                remedy=remedy,
            )

    def number(self, cell: str) -> float | None:
        """Give a cell's number; None when it is empty or none. A decimal comma is read where ; separates."""
        if self.delimiter == ";" and _DECIMAL_COMMA.fullmatch(cell):
            cell = cell.replace(",", ".")
        return parse_number(cell)


def parse_number(cell: str) -> float | None:
    """Give the finite number that a cell states; None when it states none."""
    if "_" in cell:  # Python would read 1_000
        return None
    try:
        value = float(cell)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def read_table(path: Path, ids: Sequence[str]) -> Table:
    """Read a CSV file (UTF-8; commas, semicolons or tabs) whose header names at least one of ``ids``.

    Cells lose outer blanks and are brought to Unicode NFC, so that an id typed on a Mac equals the same id
    typed elsewhere. Blank lines and columns without a name are passed over.

    Raises
    ------
    DataError
        When the file cannot be read or is not such a table; the message names line or column.
    """
    text = _text(path)
    delimiter = _delimiter(text, path, ids)
    lines = _lines(text, delimiter, path)
    header = [_clean(cell) for _, cell_row in lines[:1] for cell in cell_row]
    twice = [name for name, n in Counter(header).items() if n > 1 and name]
    if twice:
        raise DataError(f"column {_listed(twice)} occurs twice", path=path, remedy="Rename or remove one.")
    rows = tuple(_row(header, cells, number, path) for number, cells in lines[1:])
    if not rows:
        raise DataError("has a header and no rows", path=path)
    return Table(path, tuple(name for name in header if name), rows, delimiter)


def _text(path: Path) -> str:
    try:
        data = path.read_bytes()
    except OSError as exc:
        raise DataError(f"not readable: {exc.strerror or exc}", path=path) from exc
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        raise DataError(
            f"not UTF-8 text (byte {exc.start})", path=path, remedy="Save it as CSV, UTF-8."
        ) from exc
    if not text.strip():
        raise DataError("is empty", path=path)
    return text


def _delimiter(text: str, path: Path, ids: Sequence[str]) -> str:
    """Find the separator under which the header names an id column."""
    found: tuple[str, ...] = ()
    for delimiter in DELIMITERS:
        header = tuple(_clean(cell) for cell in _lines(text, delimiter, path, first=True)[0][1])
        if any(name in header for name in ids):
            return delimiter
        found = max(found, header, key=len)
    raise DataError(
        f"no column {' or '.join(ids)}; the first line reads {_listed(found)}",
        path=path,
        remedy="Name the column in the first line, and separate columns by commas.",
    )


def _lines(text: str, delimiter: str, path: Path, *, first: bool = False) -> list[tuple[int, list[str]]]:
    """Give the lines that are not blank, with their numbers."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    lines: list[tuple[int, list[str]]] = []
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                lines.append((reader.line_num, cells))
                if first:
                    break
    except csv.Error as exc:
        raise DataError(f"line {reader.line_num}: {exc}", path=path, remedy="Mend the line.") from exc
    if not lines:
        raise DataError("is empty", path=path)
    return lines


def _row(header: Sequence[str], cells: Sequence[str], line: int, path: Path) -> dict[str, str]:
    given = len(cells)
    while given > len(header) and not cells[given - 1].strip():
        given -= 1
    if given != len(header):
        raise DataError(
            f"line {line} has {given} fields, the header {len(header)}",
            path=path,
            remedy="Put cells that hold the separator into double quotes.",
        )
    return {name: _cell(cell) for name, cell in zip(header, cells, strict=False) if name}


def _clean(cell: str) -> str:
    return unicodedata.normalize("NFC", cell.strip())


def _cell(cell: str) -> str:
    text = _clean(cell)
    return "" if text.lower() in MISSING else text


def _listed(names: Iterable[str]) -> str:
    shown = [f"{name!r:.40}" for name in names]
    return ", ".join(shown[:12]) + (f" and {len(shown) - 12} more" if len(shown) > 12 else "")


def csv_bytes(rows: Sequence[dict[str, object]], columns: Sequence[str] | None = None) -> bytes:
    """Write rows as CSV. None and nan become empty cells; numbers keep all their digits."""
    names = list(columns if columns is not None else rows[0] if rows else [])
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    writer.writerows([_written(row.get(name)) for name in names] for row in rows)
    return text.getvalue().encode()


def _written(value: object) -> object:
    return "" if isinstance(value, float) and not math.isfinite(value) else value
