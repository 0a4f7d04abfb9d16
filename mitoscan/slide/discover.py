"""Find slides in what the user names: files, folders and globs."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from mitoscan.errors import SlideNotFoundError

SLIDE_SUFFIXES = (
    ".svs", ".tif", ".tiff", ".ndpi", ".scn", ".mrxs", ".vms", ".vmu", ".svslide", ".bif", ".czi", ".dcm",
    ".jp2", ".zarr", ".ngff",
)  # fmt: skip
"""What is taken from folders. Plain pictures are not: folders of slides often hold thumbnails."""

_FOLDER_FORMATS = (".zarr", ".ngff")
_DICOM_HEAD = 2**16
_SERIES_UID = re.compile(rb"\x20\x00\x0e\x00(?:UI..|.\x00\x00\x00)([0-9.]{5,64})", re.DOTALL)


def find_slides(inputs: Sequence[str]) -> list[Path]:
    """List the slides named.

    Parameters
    ----------
    inputs
        Files (taken whatever their suffix), folders (searched with all their subfolders, for
        `SLIDE_SUFFIXES`; links followed, hidden files skipped) and globs (``**`` for any depth).

    Returns
    -------
    Sorted, each file once. Of a DICOM series, which is one slide in many files, the largest.

    Raises
    ------
    SlideNotFoundError
        No such file, a folder or glob without slides, or a folder that cannot be read.
    """
    if not inputs:
        raise SlideNotFoundError("no slides given", remedy="Name files, folders or globs.")
    found: dict[Path, Path] = {}
    for entry in inputs:
        for path in _expand(entry):
            found.setdefault(_real(path), path)
    return sorted(found.values())


def _expand(entry: str) -> list[Path]:
    try:
        return _named(entry)
    except (OSError, ValueError, RuntimeError) as exc:  # a name too long, a zero byte, no such user
        reason = getattr(exc, "strerror", None) or exc
        path = Path(entry.replace("\0", "?"))
        raise SlideNotFoundError(f"cannot be read: {reason}", path=path, remedy="Check the path.") from exc


def _named(entry: str) -> list[Path]:
    path = Path(entry).expanduser()
    if path.is_dir() and not _is_folder_slide(path):
        return _in_folder(path)
    if path.exists():
        return [path]
    if not glob.has_magic(entry):
        raise SlideNotFoundError("no such file or folder", path=path, remedy="Check the path.")
    matches = [Path(m) for m in sorted(glob.glob(str(path), recursive=True))]
    files = [m for m in matches if m.is_file() or _is_folder_slide(m)]
    # `dir/**` names folders and their files alike: folders count only where no file matches.
    slides = files or [s for m in matches for s in _in_folder(m)]
    if not slides:
        raise SlideNotFoundError("nothing matches this pattern", path=path, remedy="Check the pattern.")
    return slides


def _real(path: Path) -> Path:
    try:
        return path.resolve()
    except (OSError, RuntimeError):  # a link that leads to itself: opening it will say so
        return path


def _in_folder(folder: Path) -> list[Path]:
    slides = _one_per_series(sorted(_walk(folder)))
    if not slides:
        raise SlideNotFoundError(
            "no slides in this folder",
            path=folder,
            remedy=f"It is searched for {' '.join(SLIDE_SUFFIXES)}; name pictures by a glob, e.g. '*.png'.",
        )
    return slides


def _walk(folder: Path) -> Iterator[Path]:
    """Give all files with a slide's suffix; each real folder is visited once, so links cannot loop."""
    seen: set[str] = set()
    for root, folders, files in os.walk(folder, followlinks=True, onerror=_unreadable):
        real = os.path.realpath(root)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        yield from (Path(root, name) for name in folders if _is_folder_slide(Path(root, name)))
        folders[:] = [n for n in folders if not n.startswith(".") and not _is_folder_slide(Path(root, n))]
        yield from (
            Path(root, name)
            for name in files
            if name.lower().endswith(SLIDE_SUFFIXES) and not name.startswith(".")
        )


def _unreadable(exc: OSError) -> None:
    raise SlideNotFoundError(
        f"the folder cannot be read: {exc.strerror}", path=exc.filename, remedy="Check its permissions."
    ) from exc


def _is_folder_slide(path: Path) -> bool:
    return path.is_dir() and path.name.lower().endswith(_FOLDER_FORMATS)


def _one_per_series(paths: list[Path]) -> list[Path]:
    """Keep the largest file of each DICOM series; readers find the others from it."""
    chosen: dict[object, Path] = {}
    for path in paths:
        key = _series_of(path)
        if key not in chosen or path.stat().st_size > chosen[key].stat().st_size:
            chosen[key] = path
    return sorted(chosen.values())


def _series_of(path: Path) -> object:
    """Identify the slide that a file belongs to: (folder, series UID) for DICOM, else the file itself."""
    if path.suffix.lower() != ".dcm":
        return path
    with path.open("rb") as stream:
        uid = _SERIES_UID.search(stream.read(_DICOM_HEAD))
    return (path.parent, uid[1]) if uid else path
