"""Crops for classifiers: the AMi-Br folder as published."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
from PIL import Image

from mitoscan.errors import DataError
from mitoscan.models.card import SUBTYPES

UInt8 = npt.NDArray[np.uint8]
Float = npt.NDArray[np.float64]

AMIBR_SUBTYPES = {
    "NMF prometaphase": "prometaphase",
    "NMF metaphase": "metaphase",
    "NMF anaphase-telophase": "anaphase_telophase",
    "NMF ring shape": "ring",
    "AMF bipolar assymetric": "bipolar_asymmetric",  # spelt so in the published file
    "AMF multipolar": "multipolar",
    "AMF segregation": "segregation",
    "AMF other": "other",
}


def read_image(path: Path) -> UInt8:
    """Decode a picture to uint8 (H, W, 3)."""
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except OSError as exc:
        raise DataError(f"cannot be read: {exc}", path=path) from exc


def read_table(path: Path, columns: set[str]) -> pd.DataFrame:
    """Read a CSV that must have ``columns``."""
    if not path.is_file():
        raise DataError("no such file", path=path, remedy="Give the data folder with --data.")
    table = pd.read_csv(path)
    if missing := columns - set(table.columns):
        raise DataError(f"columns missing: {', '.join(sorted(missing))}", path=path)
    return table


@dataclass(frozen=True)
class CropSet:
    """Labelled crops: ``images`` uint8 (N, 128, 128, 3) at 0.25 mpp."""

    images: UInt8
    atypical: npt.NDArray[np.bool_]
    subtype: npt.NDArray[np.int64]
    """Index into ``SUBTYPES``, -1 where unknown."""
    slide: npt.NDArray[np.str_]
    xy: Float
    """(N, 2): the centre's place on its slide, px."""

    def __len__(self) -> int:
        return len(self.images)

    def take(self, index: npt.NDArray[np.int64]) -> CropSet:
        """Give the crops at ``index``."""
        return CropSet(
            self.images[index], self.atypical[index], self.subtype[index], self.slide[index], self.xy[index]
        )


def load_amibr(folder: Path, part: str) -> CropSet:
    """Read the published training or test part of AMi-Br.

    Parameters
    ----------
    folder
        As DeepMicroscopy/AMi-Br_Benchmark has it: ``AMI-BR.csv``, ``amibr_train_split.csv`` and
        ``AMi-Br/{Atypical,Normal}/DATASET_UID.png`` (or .jpg).
    part
        ``"train"`` or ``"test"`` (all that is not in the training split).

    Raises
    ------
    DataError
        When a table, a column or a crop is missing.
    """
    every = read_table(
        folder / "AMI-BR.csv", {"dataset", "uid", "slide", "x", "y", "expert1_label", "majority_atypical"}
    )
    split = read_table(folder / "amibr_train_split.csv", {"dataset", "uid"})
    key = every["dataset"] + "_" + every["uid"].astype(str)
    in_train = key.isin(split["dataset"] + "_" + split["uid"].astype(str))
    rows = every[in_train if part == "train" else ~in_train]
    atypical = rows["majority_atypical"].to_numpy(bool)
    paths = [_crop_path(folder / "AMi-Br", k, a) for k, a in zip(key[rows.index], atypical, strict=True)]
    names = rows["expert1_label"].map(AMIBR_SUBTYPES)
    return CropSet(
        images=np.stack([read_image(p) for p in paths]),
        atypical=atypical,
        subtype=np.array([SUBTYPES.index(n) if n in SUBTYPES else -1 for n in names]),
        slide=(rows["dataset"] + "/" + rows["slide"]).to_numpy(str),
        xy=rows[["x", "y"]].to_numpy(np.float64),
    )


def _crop_path(folder: Path, key: str, atypical: bool) -> Path:
    stem = folder / ("Atypical" if atypical else "Normal") / key
    for suffix in (".png", ".jpg"):
        if (path := stem.with_name(stem.name + suffix)).is_file():
            return path
    raise DataError("no such crop, neither .png nor .jpg", path=stem)
