"""The formats by name, and the one function that writes finished results in any of them."""

from __future__ import annotations

import gzip
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mitoscan.errors import ConfigError, OutputError
from mitoscan.report.atomic import write_atomically
from mitoscan.report.export.annotation_store import store_bytes
from mitoscan.report.export.common import Options, in_frame
from mitoscan.report.export.crops import write_crops
from mitoscan.report.export.dicom import annotations_bytes
from mitoscan.report.export.midog import coco_bytes, points_bytes
from mitoscan.report.export.parquet import parquet_bytes
from mitoscan.report.export.slides import find_slide
from mitoscan.report.geojson import geojson_bytes
from mitoscan.report.stored import read_result
from mitoscan.scan.result import SlideResult

log = logging.getLogger(__name__)

Results = Iterable[SlideResult]


@dataclass(frozen=True)
class PerSlide:
    """A file a slide, ``DEST/<slide><suffix>``; none where there is nothing to write."""

    suffix: str
    make: Callable[[SlideResult, Options], bytes | None]


@dataclass(frozen=True)
class PerSet:
    """One file for all slides."""

    name: str
    make: Callable[[Results, Options], bytes]


@dataclass(frozen=True)
class Folder:
    """Many files; ``name`` must not be there yet."""

    name: str
    write: Callable[[Results, Path, Options], list[Path]]


def _geojson(result: SlideResult, options: Options) -> bytes:
    return geojson_bytes(in_frame(result, options.qupath_crop))


FORMATS: dict[str, PerSlide | PerSet | Folder] = {
    "qupath": PerSlide(".geojson", _geojson),
    "qupath-gz": PerSlide(".geojson.gz", lambda r, o: gzip.compress(_geojson(r, o), mtime=0)),
    "midog": PerSlide(".json", lambda r, _: points_bytes(r)),
    "coco": PerSet("midog.json", lambda all_, _: coco_bytes(all_)),
    "tiatoolbox": PerSlide(".db", lambda r, _: store_bytes(r)),
    "parquet": PerSet("findings.parquet", lambda all_, _: parquet_bytes(all_)),
    "geoparquet": PerSet("findings.geoparquet", lambda all_, _: parquet_bytes(all_, geometry=True)),
    "dicom": PerSlide(".dcm", lambda r, o: annotations_bytes(r, find_slide(r, o.slides))),
    "crops": Folder("amf", write_crops),
}


def export(folders: Sequence[Path], name: str, out: Path, options: Options) -> list[Path]:
    """Write finished results in a format; one slide at a time is in memory.

    Parameters
    ----------
    folders
        Of the slides.
    name
        Of the format, a key of ``FORMATS``.
    out
        Folder for the files, made where needed.
    options
        See there.

    Returns
    -------
    list
        The files written (of the crops: their tables).

    Raises
    ------
    ConfigError
        For an unknown format, or two slides of one name.
    OutputError
        When a file is there already and ``options.overwrite`` is off, or cannot be written.
    """
    if name not in FORMATS:
        raise ConfigError(f"unknown format {name!r}", remedy=f"Choose one of: {', '.join(FORMATS)}.")
    _refuse_twins(folders)
    chosen = FORMATS[name]
    targets = [out / chosen.name] if not isinstance(chosen, PerSlide) else []
    if isinstance(chosen, PerSlide):
        targets = [out / f"{folder.resolve().name}{chosen.suffix}" for folder in folders]
    for target in targets:
        if target.exists() and not options.overwrite:
            raise OutputError("is there already", path=target, remedy="Use --overwrite, or another -o.")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise OutputError(f"cannot be written: {exc.strerror or exc}", path=out) from exc
    if isinstance(chosen, Folder):
        return chosen.write(_read(folders), out, options)
    if isinstance(chosen, PerSet):
        write_atomically(targets[0], chosen.make(_read(folders), options))
        return targets
    written = []
    for target, result in zip(targets, _read(folders), strict=True):
        data = chosen.make(result, options)
        if data is None:
            log.warning("%s: no mitotic figures, nothing to write", result.summary.slide_id)
            continue
        write_atomically(target, data)
        written.append(target)
    return written


def _read(folders: Sequence[Path]) -> Iterator[SlideResult]:
    for folder in folders:
        yield read_result(folder).result


def _refuse_twins(folders: Sequence[Path]) -> None:
    seen: dict[str, Path] = {}
    for folder in folders:
        if (other := seen.setdefault(folder.resolve().name, folder)) != folder:
            raise ConfigError(
                f"two slides are called {folder.name}: {other} and {folder}",
                remedy="Export them to different places.",
            )
