"""Find the slide of a finished result again, for what only its pixels or header can give."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mitoscan.errors import SlideNotFoundError
from mitoscan.scan.result import SlideResult
from mitoscan.slide.base import Slide
from mitoscan.slide.reader import open_slide


def find_slide(result: SlideResult, folder: Path | None) -> Path:
    """Give the slide's file: where it was scanned, else one of that name in ``folder`` or below it.

    Raises
    ------
    SlideNotFoundError
        When it is in neither place.
    """
    for path in _places(result.info.path, folder):
        if path.exists():
            return path
    raise SlideNotFoundError(
        "the slide is no longer there",
        path=result.info.path,
        remedy="Name the folder that it lies in with --slides.",
    )


def open_again(result: SlideResult, folder: Path | None) -> Slide:
    """Open the slide of a result, and make sure that it is the one.

    Raises
    ------
    SlideNotFoundError
        When it is not found, or what is there under its name has other content.
    """
    path = find_slide(result, folder)
    mpp = result.info.known_mpp()
    given = mpp.x if result.config.mpp is not None else None
    slide = open_slide(path, mpp=given)
    if slide.info.identity != result.info.identity:
        slide.close()
        raise SlideNotFoundError(
            f"is not the slide that {result.summary.slide_id} was made from: its content differs",
            path=path,
            remedy="Name the folder of the right one with --slides, or scan this one.",
        )
    return slide


def _places(path: Path, folder: Path | None) -> Iterator[Path]:
    if folder is not None:
        yield folder / path.name
        yield from sorted(found for found in folder.rglob("*") if found.name == path.name)
    yield path
