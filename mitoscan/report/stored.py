"""A finished result read back from its folder, to be scored again, reviewed or exported without the slide.

Needs findings.csv, findings.geojson (for the area scanned), summary.json, pictures.zip and record.json, which
holds the models' cards.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import shapely
from shapely import MultiPolygon, affinity
from shapely.geometry import shape

from mitoscan.config import ScanConfig, build
from mitoscan.errors import DataError
from mitoscan.models.card import ModelCard
from mitoscan.report.pictures import PICTURES_NAME, read_pictures
from mitoscan.report.tables import read_summary
from mitoscan.report.writer import RECORD_NAME
from mitoscan.scan.candidates import CandidateCard, FirstStage
from mitoscan.scan.findings import Identity, read_findings
from mitoscan.scan.result import SlideResult
from mitoscan.scan.score import Hotspot, SlideSummary
from mitoscan.slide.base import SlideInfo, make_levels
from mitoscan.slide.roi import qupath_origin
from mitoscan.slide.tissue import area_mm2, polygons_of
from mitoscan.units import Box, Mpp

SUPERSEDED = "record-{}.json"
"""An earlier record of a result, by the first 12 digits of its sha256."""

_RERUN = "Scan the slide again with --overwrite."
_AREA_TOLERANCE = 0.01
"""Of the area scanned, between findings.geojson (rounded to 0.01 px) and the summary."""


@dataclass(frozen=True)
class Stored:
    """A result as it lies in its folder."""

    folder: Path
    result: SlideResult
    record: dict[str, Any]
    """The contents of record.json."""
    record_bytes: bytes

    @property
    def record_sha256(self) -> str:
        """Checksum of record.json: the link by which a later record names this one."""
        return hashlib.sha256(self.record_bytes).hexdigest()

    @property
    def scanned_at(self) -> float:
        """The detector's threshold when the slide was scanned."""
        chain = self.record.get("rescored_from") or [self.record]
        return float(chain[0][first_stage_of(chain[0])]["threshold"])


def first_stage_of(record: Mapping[str, Any]) -> str:
    """Give the key of what made the candidates: ``detector``, or ``candidates`` where a file did."""
    return "detector" if "detector" in record else "candidates"


def result_folders(paths: Sequence[Path]) -> list[Path]:
    """Give the folders of finished results that ``paths`` are or hold, in order, each once.

    Raises
    ------
    DataError
        When a path is no folder, or there is no finished result in it.
    """
    found: dict[Path, None] = {}
    for path in paths:
        inside = [path] if _record_of(path) else sorted(p for p in path.glob("*") if _record_of(p))
        if not inside:
            raise DataError(
                "no finished result here" if path.is_dir() else "no such folder",
                path=path,
                remedy="Give the folder of a slide (OUT/SLIDE), or the folder that `mitoscan run` wrote to.",
            )
        found |= dict.fromkeys(inside)
    return list(found)


def read_result(folder: Path) -> Stored:
    """Read a finished result back.

    What is not in the files is not in it: stored pyramid levels below level 0.

    Raises
    ------
    DataError
        When a file is missing, faulty, from another result, or written by a version that kept less.
    """
    path = _record_of(folder)
    if path is None:
        raise DataError("no finished result here", path=folder, remedy=_RERUN)
    data = path.read_bytes()
    try:
        record = json.loads(data)
        info = _info(record["slide"])
        finished = datetime.fromisoformat(record["finished_utc"])
        seconds = {name: float(value) for name, value in record["seconds"].items() if name != "total"}
        cards, config = record["cards"], record["config"]
        models = cards["detector"], cards["classifier"]
    except (ValueError, TypeError, KeyError, AttributeError) as exc:
        raise DataError(
            f"not a record that results can be read by ({type(exc).__name__}: {exc})",
            path=path,
            remedy=_RERUN,
        ) from exc
    detector: FirstStage
    if first_stage_of(record) == "detector":
        detector = build(ModelCard, models[0], path, DataError)
    else:
        detector = build(CandidateCard, models[0], path, DataError)
    classifier = build(ModelCard, models[1], path, DataError)
    summary = read_summary(folder / "summary.json")
    thumbnail, crops = read_pictures(folder / PICTURES_NAME)
    settings = build(ScanConfig, config, path, DataError)
    identity = Identity(info.identity, detector.sha256, classifier.sha256)
    result = SlideResult(
        info=info,
        config=settings,
        detector=detector,
        classifier=classifier,
        findings=read_findings(folder / "findings.csv"),
        tissue=_tissue(folder / "findings.geojson", identity.uuid_of("tissue"), info, settings, summary),
        hotspot=_hotspot(summary),
        summary=summary,
        thumbnail=thumbnail,
        seconds=seconds,
        crops=crops,
        finished=finished,
    )
    return Stored(folder, result, record, data)


def _record_of(folder: Path) -> Path | None:
    """Give the record; after a rescoring that was cut short, the newest one that it had put aside."""
    if (folder / RECORD_NAME).is_file():
        return folder / RECORD_NAME
    aside = sorted(folder.glob(SUPERSEDED.format("*")), key=lambda path: path.stat().st_mtime_ns)
    return aside[-1] if aside else None


def _info(slide: dict[str, Any]) -> SlideInfo:
    size = int(slide["width_l0"]), int(slide["height_l0"])
    bounds = slide["bounds_l0"]
    return SlideInfo(
        path=Path(slide["path"]),
        slide_id=slide["slide_id"],
        width_l0=size[0],
        height_l0=size[1],
        mpp=Mpp(float(slide["mpp_x"]), float(slide["mpp_y"])),
        mpp_source=slide["mpp_source"],
        vendor=slide["vendor"],
        reader=slide["reader"],
        levels=make_levels([size]),
        bounds=None if bounds is None else Box(*map(float, bounds)),
        objective=slide["objective"],
        identity=slide["identity"],
    )


def _hotspot(summary: SlideSummary) -> Hotspot | None:
    s = summary
    place = (s.hotspot_x_l0, s.hotspot_y_l0, s.hotspot_width_l0, s.hotspot_height_l0)
    if s.hotspot_count is None or s.hotspot_mm2 is None or None in place:
        return None
    x, y, width, height = (float(v or 0.0) for v in place)
    return Hotspot(Box(x, y, width, height), s.hotspot_count, s.hotspot_mm2)


def _tissue(
    path: Path, uuid: str, info: SlideInfo, config: ScanConfig, summary: SlideSummary
) -> MultiPolygon:
    """Read the area scanned, level-0 px, and make sure that it is the one that was counted in."""
    try:
        features = json.loads(path.read_bytes())["features"]
        found = [shape(feature["geometry"]) for feature in features if feature.get("id") == uuid]
    except OSError as exc:
        raise DataError(f"not readable: {exc.strerror or exc}", path=path, remedy=_RERUN) from exc
    except (ValueError, TypeError, KeyError, AttributeError, shapely.errors.ShapelyError) as exc:
        raise DataError(f"not the GeoJSON of a result: {exc}", path=path, remedy=_RERUN) from exc
    area = polygons_of(shapely.union_all(found))
    area_now = area_mm2(area, info.known_mpp())
    if abs(area_now - summary.tissue_mm2) > _AREA_TOLERANCE * summary.tissue_mm2 + 1e-4:
        raise DataError(
            f"the area scanned in it is {area_now:.3f} mm², in summary.json {summary.tissue_mm2:.3f} mm²",
            path=path,
            remedy="It was overwritten: export from QuPath to another place. " + _RERUN,
        )
    if config.qupath_crop:
        area = affinity.translate(area, *qupath_origin(info))
    return area
