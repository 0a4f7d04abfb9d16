"""Fields with points, what a detector learns from: our CSV tables, and COCO files as MIDOG publishes them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
import pandas as pd
from pydantic import Field as Limits
from pydantic import ValidationError

from mitoscan.config import Frozen, faults, load_config
from mitoscan.errors import ConfigError, DataError
from mitoscan.learn.config import CocoFile, DetectorTraining, TrainFile
from mitoscan.learn.data import Float, UInt8, read_image, read_table
from mitoscan.slide.base import Slide
from mitoscan.slide.reader import open_slide
from mitoscan.units import WorkFrame

LABEL_NOISE_FROM = 0.5
"""Hard negatives that the pathologists held for a mitosis with at least this confidence are left out."""


class Pixels(Protocol):
    """Where the pixels of a field come from; all at the field's own mpp."""

    width: int
    height: int

    def cut(self, centre: Float, side: int) -> UInt8:
        """Give the ``side`` × ``side`` square about ``centre`` (x, y; px), white outside the field."""

    def whole(self) -> UInt8:
        """Give all of it, uint8 (height, width, 3)."""


class Picture:
    """A field in memory: uint8 (H, W, 3)."""

    def __init__(self, image: UInt8) -> None:
        self.image = image
        self.height, self.width = image.shape[:2]

    def cut(self, centre: Float, side: int) -> UInt8:
        """See ``Pixels``."""
        left, top = (int(c) - side // 2 for c in centre)
        square = np.full((side, side, 3), 255, np.uint8)
        x0, x1 = np.clip((left, left + side), 0, self.width)
        y0, y1 = np.clip((top, top + side), 0, self.height)
        square[y0 - top : y1 - top, x0 - left : x1 - left] = self.image[y0:y1, x0:x1]
        return square

    def whole(self) -> UInt8:
        """See ``Pixels``."""
        return self.image


class OnDisk:
    """A slide or a large picture, read region by region and resampled to ``mpp``."""

    def __init__(self, path: Path, mpp: float, given_mpp: float | None) -> None:
        self._path, self._mpp, self._given = path, mpp, given_mpp
        info = self._slide.info
        self.frame = WorkFrame(info.known_mpp(), mpp)
        self.width, self.height = self.frame.size_of(info.width_l0, info.height_l0)

    @cached_property
    def _slide(self) -> Slide:
        return open_slide(self._path, mpp=self._given)

    def cut(self, centre: Float, side: int) -> UInt8:
        """See ``Pixels``."""
        left, top = (int(c) - side // 2 for c in centre)
        return self._slide.read(self.frame.box_to_l0(left, top, side, side), side, side)

    def whole(self) -> UInt8:
        """See ``Pixels``."""
        box = self.frame.box_to_l0(0, 0, self.width, self.height)
        return self._slide.read(box, self.width, self.height)


def with_chance(xy: Float, chance: float = 1.0) -> Float:
    """Give (K, 2) points the same chance to be figures: (K, 3)."""
    return np.column_stack([xy, np.full(len(xy), chance)])


@dataclass(frozen=True)
class Field:
    """A picture with its points; coordinates in px of the picture at ``mpp``."""

    name: str
    dataset: str
    slide: str
    mpp: float
    pixels: Pixels
    figures: Float
    """(K, 2): x, y of the mitotic figures."""
    hard_negatives: Float
    """(K, 2): look-alikes."""
    doubtful: Float
    """(K, 2): look-alikes that may be figures; neither to learn nor to count."""
    taught: Float | None = None
    """(K, 3): x, y of what may be a figure and the chance that it is, by labels and teachers (``teach``).
    None: the labels are taken at their word."""

    @property
    def targets(self) -> Float:
        """(K, 3): x, y and chance of what is to be learnt as figures."""
        return with_chance(self.figures) if self.taught is None else self.taught

    @property
    def image(self) -> UInt8:
        """All pixels, uint8 (H, W, 3)."""
        return self.pixels.whole()

    @property
    def area_mm2(self) -> float:
        """Area of the picture."""
        return float(self.pixels.height * self.pixels.width * (self.mpp * 1e-3) ** 2)


def load_fields(
    folder: Path, slides: Iterable[str] | None = None, *, leave_out: Iterable[str] = (), labelled: bool = True
) -> list[Field]:
    """Read the fields of ``folder`` (``fields.csv``, ``points.csv`` and the pictures).

    Parameters
    ----------
    folder
        The folder with the two tables.
    slides
        Only these slides. None: all of them.
    leave_out
        Not these slides.
    labelled
        True: the fields with labels; False: those of datasets named ``…_unlabelled``.

    Raises
    ------
    DataError
        When a file or column is missing, or a slide named has no field.
    """
    fields = read_table(folder / "fields.csv", {"field", "dataset", "slide", "mpp"})
    points = read_table(folder / "points.csv", {"field", "x", "y", "label", "confidence"})
    wanted, unwanted = set(fields["slide"] if slides is None else slides), set(leave_out)
    if unknown := (wanted | unwanted) - set(fields["slide"]):
        raise DataError(f"no fields of slide {', '.join(sorted(unknown))}", path=folder / "fields.csv")
    chosen = fields[fields["dataset"].str.endswith("_unlabelled") != labelled]
    chosen = chosen[chosen["slide"].isin(wanted - unwanted)]
    by_field = {str(name): part for name, part in points.groupby("field")}
    none = points.iloc[:0]
    return [_field(folder, row, by_field.get(str(row.field), none)) for row in chosen.itertuples()]


def _field(folder: Path, row: object, points: pd.DataFrame) -> Field:
    values = row._asdict()  # type: ignore[attr-defined]
    figure = points["label"] == "mitotic figure"
    doubtful = ~figure & (points["confidence"].fillna(0) >= LABEL_NOISE_FROM)
    xy = points[["x", "y"]].to_numpy(np.float64)
    return Field(
        name=str(values["field"]),
        dataset=str(values["dataset"]),
        slide=str(values["slide"]),
        mpp=float(values["mpp"]),
        pixels=Picture(read_image(folder / str(values["field"]))),
        figures=xy[figure.to_numpy()],
        hard_negatives=xy[(~figure & ~doubtful).to_numpy()],
        doubtful=xy[doubtful.to_numpy()],
    )


class _CocoImage(Frozen, extra="ignore"):
    id: int
    file_name: str
    tumor_type: str | None = None


class _CocoBox(Frozen, extra="ignore"):
    image_id: int
    category_id: int
    bbox: tuple[float, float, float, float]


class _CocoCategory(Frozen, extra="ignore"):
    id: int
    name: str


class _Coco(Frozen, extra="ignore"):
    images: list[_CocoImage] = Limits(min_length=1)
    annotations: list[_CocoBox]
    categories: tuple[_CocoCategory, ...] = ()


def load_coco(spec: CocoFile, data: Path, mpp: float) -> list[Field]:
    """Read a COCO file as MIDOG and MIDOG++ publish it: one field a picture, one slide a file.

    ``bbox`` is x1, y1, x2, y2 (not x, y, width, height), level-0 px; category 1 or "mitotic figure" is a
    mitotic figure, category 2 or "… negative" / "not …" / "non-…" a look-alike.

    Parameters
    ----------
    spec
        File, folder of the pictures and their pixel size.
    data
        What the paths in ``spec`` are relative to.
    mpp
        µm per px at which the fields are wanted.

    Raises
    ------
    DataError
        When the file is missing or does not fit, or a picture is missing.
    SlideError
        When a picture cannot be opened or has no pixel size.
    """
    path = data / spec.file
    try:
        coco = _Coco.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except ValidationError as exc:
        raise DataError(f"not such a COCO file: {faults(exc)}", path=path) from exc
    except (OSError, ValueError) as exc:
        raise DataError(f"not readable as JSON: {exc}", path=path) from exc
    figure_ids = {c.id for c in coco.categories if c.name.strip().lower() == "mitotic figure"} or {1}
    boxes: dict[int, list[_CocoBox]] = {}
    for box in coco.annotations:
        boxes.setdefault(box.image_id, []).append(box)
    folder = data / spec.images
    if missing := [i.file_name for i in coco.images if not (folder / i.file_name).exists()]:
        raise DataError(
            f"{len(missing)} of {len(coco.images)} pictures are missing, {missing[0]} first", path=folder
        )
    return [
        _coco_field(spec, folder, image, boxes.get(image.id, []), figure_ids, mpp) for image in coco.images
    ]


def _coco_field(
    spec: CocoFile, folder: Path, image: _CocoImage, boxes: list[_CocoBox], figure_ids: set[int], mpp: float
) -> Field:
    pixels = OnDisk(folder / image.file_name, mpp, spec.mpp)
    corners = np.array([b.bbox for b in boxes], np.float64).reshape(-1, 4)
    x, y = pixels.frame.from_l0((corners[:, 0] + corners[:, 2]) / 2, (corners[:, 1] + corners[:, 3]) / 2)
    figure = np.array([b.category_id in figure_ids for b in boxes], bool)
    xy = np.stack([x, y], 1)
    return Field(
        name=image.file_name,
        dataset=image.tumor_type or Path(spec.file).stem,
        slide=Path(image.file_name).stem,
        mpp=mpp,
        pixels=pixels,
        figures=xy[figure],
        hard_negatives=xy[~figure],
        doubtful=np.empty((0, 2)),
    )


def only_slides(fields: Sequence[Field], slides: Sequence[str] | None, source: Path) -> list[Field]:
    """Give the fields of these slides; None or none named: all.

    Raises
    ------
    DataError
        When a slide has no field; ``source`` is named.
    """
    if unknown := set(slides or ()) - {f.slide for f in fields}:
        raise DataError(f"no fields of slide {', '.join(sorted(unknown))}", path=source)
    return [f for f in fields if not slides or f.slide in slides]


def load_datasets(config: DetectorTraining, data: Path) -> tuple[list[Field], list[Field]]:
    """Read all datasets of ``config`` and split them by slide: training and validation fields.

    Raises
    ------
    DataError
        When a file is missing or faulty, or a slide named in the config has no field in any dataset.
    """
    fields: list[Field] = load_fields(data / config.fields) if config.fields else []
    for spec in config.coco:
        fields += load_coco(spec, data, config.mpp)
    validation = only_slides(fields, config.validation_slides, data)
    only_slides(fields, config.leave_out_slides, data)
    held_out = {*config.validation_slides, *config.leave_out_slides}
    train = [f for f in fields if f.slide not in held_out and f.dataset not in config.leave_out_datasets]
    return train, validation


def load_negatives(config: DetectorTraining, data: Path) -> tuple[list[Field], list[Field]]:
    """Read the unlabelled fields of ``config``, if any: those to learn from, and those held out.

    Raises
    ------
    DataError
        When a file is missing or faulty, or a slide named in the config has no such field.
    """
    spec = config.negatives
    if spec is None:
        return [], []
    fields = load_fields(data / spec.fields, labelled=False)
    held_out = only_slides(fields, spec.hold_out, data / spec.fields) if spec.hold_out else []
    only_slides(fields, [d.slide for d in spec.doubtful], data / spec.fields)
    train = []
    for field in fields:
        if field.slide not in spec.hold_out:
            points = [(d.x, d.y) for d in spec.doubtful if d.slide == field.slide]
            train.append(replace(field, doubtful=np.array(points, np.float64).reshape(-1, 2)))
    return train, held_out


def load_unlabelled(data: Path, held_out_of: str | None = None) -> list[Field]:
    """Read the unlabelled fields of ``data/detection``, or only those that a training config holds out.

    Raises
    ------
    ConfigError
        When the config is faulty or holds no unlabelled fields out.
    DataError
        When a file is missing or faulty.
    """
    if held_out_of is None:
        return load_fields(data / "detection", labelled=False)
    config = load_config(TrainFile, held_out_of).train
    if not isinstance(config, DetectorTraining) or config.negatives is None:
        raise ConfigError(f"{held_out_of} holds no unlabelled fields out")
    return load_negatives(config, data)[1]


def refuse_leak(train: Sequence[str], validation: Sequence[str]) -> None:
    """Refuse slides that are in both parts.

    Names are compared without folder, suffix and case, since data sets name the same slide differently
    (``MIDOG21/002.tiff`` among crops, ``002`` among fields).

    Raises
    ------
    DataError
        Naming the slides.
    """
    both = {_plain(s) for s in train} & {_plain(s) for s in validation}
    if both:
        raise DataError(
            f"slides in training and validation: {', '.join(sorted(both))}",
            remedy="Take them out of one of the two; split by slide, never by field or crop.",
        )


def _plain(slide: str) -> str:
    return Path(slide).stem.lower()
