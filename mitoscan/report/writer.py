"""Write the result of one slide to its folder, whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import io
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path

from mitoscan.errors import OutputError
from mitoscan.report.atomic import is_temporary, write_atomically
from mitoscan.report.figures import overview
from mitoscan.report.geojson import geojson_bytes
from mitoscan.report.page import PAGE_NAME, page_bytes
from mitoscan.report.pictures import PICTURES_NAME, pictures_bytes
from mitoscan.report.record import record_bytes
from mitoscan.report.tables import findings_bytes, summary_bytes
from mitoscan.scan.result import SlideResult

RECORD_NAME = "record.json"
"""Written last: a folder that has it holds a whole result."""

_MAX_NAME_BYTES = 120
_UNSAFE = re.compile(r"[^\w .,()+=@#&-]")
_RESERVED = re.compile(
    r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?|(slides|failures)\.csv|run\.json|report\.html|shards",
    re.IGNORECASE,
)
"""Names that Windows gives to devices, and those of other files in the output folder."""


def write_slide(
    result: SlideResult,
    out: Path,
    *,
    overwrite: bool = False,
    inputs: Mapping[str, object] | None = None,
    instead: Mapping[str, bytes] | None = None,
) -> Path:
    """Write report.html, the tables, GeoJSON, pictures and record of a result.

    They go to ``out/<slide_id>/``. Each file appears only when it is whole and the record comes last, so a
    folder with a record is a finished result; an old record goes before anything else is touched.

    Parameters
    ----------
    result
        What the scan gave.
    out
        The output folder, made where needed.
    overwrite
        Replace a finished result.
    inputs
        What the result was made from; goes into the record, for a batch that is run again.
    instead
        Contents of files, by name, that are not to be made from ``result``.

    Returns
    -------
    pathlib.Path
        The slide's folder.

    Raises
    ------
    OutputError
        When a finished result is there and ``overwrite`` is off, or the files cannot be written.
    """
    folder = ensure_writable(out, result.info.slide_id, overwrite)
    picture = io.BytesIO()
    overview(result).save(picture, format="PNG", optimize=True)
    contents = {
        "findings.csv": findings_bytes(result.findings),
        "findings.geojson": geojson_bytes(result),
        "summary.json": summary_bytes(result.summary),
        "overview.png": picture.getvalue(),
        PICTURES_NAME: pictures_bytes(result),
        PAGE_NAME: page_bytes(result),
        RECORD_NAME: record_bytes(result, inputs),
    } | dict(instead or {})
    try:
        folder.mkdir(exist_ok=True)
        (folder / RECORD_NAME).unlink(missing_ok=True)
    except OSError as exc:
        raise _refused(folder, exc) from exc
    for name, data in contents.items():
        write_atomically(folder / name, data)
    return folder


def ensure_writable(out: Path, slide_id: str, overwrite: bool) -> Path:
    """Find out before the expensive work whether the result can be written; give the slide's folder.

    Makes ``out``, but not the folder in it, so that a slide that fails leaves nothing behind.

    Raises
    ------
    OutputError
        When ``out`` is no folder, cannot be written, or holds a finished result and ``overwrite`` is off.
    """
    folder = out / folder_name(slide_id)
    try:
        out.mkdir(parents=True, exist_ok=True)
        if folder.resolve().parent != out.resolve():
            raise OutputError("leads out of the output folder", path=folder, remedy="Remove this link.")
        if (folder / RECORD_NAME).exists() and not overwrite:
            raise OutputError(
                "holds a finished result", path=folder, remedy="Use --overwrite to replace it, or another -o."
            )
        with tempfile.TemporaryFile(dir=folder if folder.exists() else out):
            pass
    except OSError as exc:
        raise _refused(folder, exc) from exc
    return folder


def remove_leftovers(folder: Path) -> None:
    """Remove temporary files of a run that was killed; only for who alone writes to ``folder``."""
    with contextlib.suppress(OSError):  # none there, or not ours to remove: they do no harm
        for path in folder.iterdir():
            if is_temporary(path):
                path.unlink()


def folder_name(slide_id: str) -> str:
    """Give the slide id as a name that is safe for a folder on every system.

    A name that had to change ends in a hash of the slide id, so that two slides never share a folder by it.
    """
    name = _UNSAFE.sub("_", slide_id).encode()[:_MAX_NAME_BYTES].decode(errors="ignore").strip(" .")
    if _RESERVED.fullmatch(name):
        name = f"_{name}"
    if name and name == slide_id:
        return name
    digest = hashlib.sha256(slide_id.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return f"{name or 'slide'}-{digest}"


def _refused(path: Path, exc: OSError) -> OutputError:
    return OutputError(
        f"cannot be written: {exc.strerror or exc}", path=path, remedy="Choose another folder with -o."
    )
