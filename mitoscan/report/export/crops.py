"""Labelled crops of reviewed slides in the layout of AMi-Br_Benchmark, for ``mitoscan train classifier``.

::

    DEST/amf/AMI-BR.csv                   a row a crop
    DEST/amf/amibr_train_split.csv        the rows to train on: all of them
    DEST/amf/AMi-Br/{Atypical,Normal}/    DATASET_UID.png, 128 px at 0.25 mpp

x and y in the tables are px of 0.25 µm; x_l0 and y_l0 beside them are level-0 px.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from mitoscan.errors import ConfigError, DataError
from mitoscan.models.card import AMIBR_SUBTYPES
from mitoscan.report.atomic import write_atomically
from mitoscan.report.export.common import Options
from mitoscan.report.export.slides import open_again
from mitoscan.scan.findings import AMF, BY_REVIEWER
from mitoscan.scan.readers import ReaderPool, Region
from mitoscan.scan.result import SlideResult

CROP_PX = 128
CROP_MPP = 0.25

_DATASET = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]{0,60}")
_NAMES = {ours: theirs for theirs, ours in AMIBR_SUBTYPES.items()}


def write_crops(results: Iterable[SlideResult], out: Path, options: Options) -> list[Path]:
    """Cut the crops of slides, reading each slide again, and write them with their tables.

    Only figures that a reviewer labelled, unless ``options.unreviewed``. A subtype is given as the first
    expert's label only when a reviewer chose it.

    Raises
    ------
    ConfigError
        When ``options.dataset`` cannot be part of a file name.
    DataError
        When there is nothing to export.
    SlideError
        When a slide is not found, is another one, or cannot be read.
    """
    if not _DATASET.fullmatch(options.dataset):
        raise ConfigError(
            f"the data set cannot be called {options.dataset!r}: it is part of file names",
            remedy="Use letters, digits, dots and hyphens.",
        )
    folder = out / "amf"
    rows: list[dict[str, Any]] = []
    for result in results:
        rows += _export(result, folder, options, len(rows) + 1)
    if not rows:
        raise DataError(
            "no figure here has a label from a reviewer",
            remedy="Review first (mitoscan rescore --review), or take the models' labels with --unreviewed.",
        )
    table = pd.DataFrame(rows)
    paths = [folder / "AMI-BR.csv", folder / "amibr_train_split.csv"]
    for path in paths:
        write_atomically(path, table.to_csv(index=False, lineterminator="\n").encode())
    return paths


def _export(result: SlideResult, folder: Path, options: Options, first: int) -> list[dict[str, Any]]:
    chosen = _chosen(result.findings, options)
    rows = []
    for number, (finding, crop) in enumerate(_cut(result, chosen, options), start=first):
        atypical = finding["label"] == AMF
        part = folder / "AMi-Br" / ("Atypical" if atypical else "Normal")
        part.mkdir(parents=True, exist_ok=True)
        stream = io.BytesIO()
        Image.fromarray(crop).save(stream, format="PNG")
        write_atomically(part / f"{options.dataset}_{number}.png", stream.getvalue())
        rows.append(_row(result, finding, number, atypical, options.dataset))
    return rows


def _chosen(findings: pd.DataFrame, options: Options) -> pd.DataFrame:
    figures = findings[findings["is_mf"]]
    if options.unreviewed:
        return figures
    return figures[figures["reviewed"]] if "reviewed" in figures else figures.head(0)


def _cut(
    result: SlideResult, chosen: pd.DataFrame, options: Options
) -> Iterator[tuple[dict[Any, Any], np.ndarray[Any, np.dtype[np.uint8]]]]:
    """Give each figure with its crop, cut as the classifier's crops are: whole px of 0.25 µm."""
    if chosen.empty:
        return
    open_again(result, options.slides).close()
    frame = result.info.frame(CROP_MPP)
    x, y = frame.from_l0(chosen["x_l0"].to_numpy(), chosen["y_l0"].to_numpy())
    left, top = np.round(x) - CROP_PX // 2, np.round(y) - CROP_PX // 2
    regions = (
        Region(frame.box_to_l0(a, b, CROP_PX, CROP_PX), CROP_PX) for a, b in zip(left, top, strict=True)
    )
    with ReaderPool(lambda: open_again(result, options.slides), 1) as pool:
        yield from zip(chosen.to_dict("records"), pool.read(regions), strict=True)


def _row(
    result: SlideResult, finding: dict[Any, Any], number: int, atypical: bool, dataset: str
) -> dict[str, Any]:
    frame = result.info.frame(CROP_MPP)
    x, y = frame.from_l0(finding["x_l0"], finding["y_l0"])
    by_reviewer = finding.get("subtype_source", "") == BY_REVIEWER
    return {
        "slide": result.summary.slide_id,
        "dataset": dataset,
        "uid": number,
        "x": round(x, 2),
        "y": round(y, 2),
        "expert1_label": _NAMES.get(finding["subtype"], "") if by_reviewer else "",
        "majority_atypical": atypical,
        "x_l0": finding["x_l0"],
        "y_l0": finding["y_l0"],
        "finding": finding["id"],
        "label_source": finding.get("label_source", "model"),
    }
