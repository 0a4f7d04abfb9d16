"""Crops for classifiers: the AMi-Br folder as published."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
from PIL import Image

from mitoscan.errors import DataError
from mitoscan.models.card import AMIBR_SUBTYPES, SUBTYPES

UInt8 = npt.NDArray[np.uint8]
Float = npt.NDArray[np.float64]


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
    votes: npt.NDArray[np.bool_]
    """(N, E): which of E experts called it atypical; E = 0 where that is not published."""
    subtype: npt.NDArray[np.int64]
    """Expert 1's, index into ``SUBTYPES``, -1 where unknown."""
    subtype2: npt.NDArray[np.int64]
    """Expert 2's."""
    slide: npt.NDArray[np.str_]
    """Every crop its own where the slides are not published."""
    domain: npt.NDArray[np.str_]
    """Where it comes from: data set, scanner or tumour."""
    xy: Float
    """(N, 2): the centre's place on its slide, px; nan where unknown."""

    def __len__(self) -> int:
        return len(self.images)

    def take(self, index: npt.NDArray[np.int64]) -> CropSet:
        """Give the crops at ``index``."""
        return CropSet(**{f.name: getattr(self, f.name)[index] for f in fields(self)})

    @property
    def atypical_share(self) -> Float:
        """Share of the experts that called each crop atypical; 0 or 1 where only the majority is known."""
        return self.votes.mean(axis=1) if self.votes.shape[1] else self.atypical.astype(np.float64)

    @property
    def subtype_share(self) -> Float:
        """(N, K): share of the two experts that called each subtype; a row of zeros where neither did."""
        named = [np.eye(len(SUBTYPES) + 1)[expert, :-1] for expert in (self.subtype, self.subtype2)]
        total = named[0] + named[1]
        share: Float = total / np.maximum(total.sum(axis=1, keepdims=True), 1)
        return share

    @property
    def slides_known(self) -> bool:
        """Whether crops of one slide can be told."""
        return len(np.unique(self.slide)) < len(self)


def load_amibr(folder: Path, part: str, domain: str = "dataset") -> CropSet:
    """Read the published training or test part of AMi-Br.

    Parameters
    ----------
    folder
        As DeepMicroscopy/AMi-Br_Benchmark has it: ``AMI-BR.csv``, ``amibr_train_split.csv`` and
        ``AMi-Br/{Atypical,Normal}/DATASET_UID.png`` (or .jpg). Columns ``expert1_atypical`` to
        ``expert3_atypical`` and ``expert2_label`` are read where they are there.
    part
        ``"train"`` or ``"test"`` (all that is not in the training split).
    domain
        Column that says which domain a crop is of: ``dataset``, or one that was added (scanner, tumour).

    Raises
    ------
    DataError
        When a table, a column or a crop is missing.
    """
    every = read_table(
        folder / "AMI-BR.csv",
        {"dataset", "uid", "slide", "x", "y", "expert1_label", "majority_atypical", domain},
    )
    split = read_table(folder / "amibr_train_split.csv", {"dataset", "uid"})
    key = every["dataset"] + "_" + every["uid"].astype(str)
    in_train = key.isin(split["dataset"] + "_" + split["uid"].astype(str))
    rows = every[in_train if part == "train" else ~in_train]
    atypical = rows["majority_atypical"].to_numpy(bool)
    paths = [_crop_path(folder / "AMi-Br", k, a) for k, a in zip(key[rows.index], atypical, strict=True)]
    return CropSet(
        images=np.stack([read_image(p) for p in paths]),
        atypical=atypical,
        votes=_votes(rows, "expert{}_atypical"),
        subtype=_subtypes(rows, "expert1_label"),
        subtype2=_subtypes(rows, "expert2_label"),
        slide=(rows["dataset"] + "/" + rows["slide"]).to_numpy(str),
        domain=rows[domain].to_numpy(str),
        xy=rows[["x", "y"]].to_numpy(np.float64),
    )


def load_atnorm(folder: Path, name: str) -> CropSet:
    """Read ``folder/name/{Atypical,Normal}/``: AtNorM-Br or AtNorM-MD, or crops of one's own.

    ``folder/name_expert_votes.csv`` or ``folder/name/name_expert_votes.csv`` (Filename, Expert_1, …) is read
    where it is there.

    Raises
    ------
    DataError
        When the folder has no such crops.
    """
    root = folder / name
    paths = sorted(p for kind in ("Atypical", "Normal") for p in (root / kind).glob("*.[jp][pn]g"))
    if not paths:
        raise DataError("no crops in Atypical/ and Normal/", path=root, remedy="Give the folder with --data.")
    none = np.full(len(paths), -1)
    return CropSet(
        images=np.stack([read_image(p) for p in paths]),
        atypical=np.array([p.parent.name == "Atypical" for p in paths]),
        votes=_atnorm_votes(folder, name, [p.stem for p in paths]),
        subtype=none,
        subtype2=none,
        slide=np.array([f"{name}/{p.stem}" for p in paths]),
        domain=np.full(len(paths), name),
        xy=np.full((len(paths), 2), np.nan),
    )


def _atnorm_votes(folder: Path, name: str, stems: list[str]) -> npt.NDArray[np.bool_]:
    table = f"{name}_expert_votes.csv"
    path = next((p for p in (folder / table, folder / name / table) if p.is_file()), None)
    if path is None:
        return np.empty((len(stems), 0), bool)
    rows = read_table(path, {"Filename", "Expert_1"})
    rows = rows.set_index(rows["Filename"].map(lambda n: Path(str(n)).stem))
    if missing := [s for s in stems if s not in rows.index]:
        raise DataError(f"no votes for {len(missing)} crops, {missing[0]} first", path=path)
    return _votes(rows.loc[stems], "Expert_{}")


def _votes(rows: pd.DataFrame, pattern: str) -> npt.NDArray[np.bool_]:
    """Columns ``pattern`` 1, 2, … as far as they go: (N, E)."""
    names = [pattern.format(i) for i in range(1, 10) if pattern.format(i) in rows.columns]
    yes = {"true", "1", "1.0", "atypical", "amf"}
    columns = [rows[n].astype(str).str.strip().str.lower().isin(yes).to_numpy() for n in names]
    return np.stack(columns, axis=1) if columns else np.empty((len(rows), 0), bool)


def _subtypes(rows: pd.DataFrame, column: str) -> npt.NDArray[np.int64]:
    if column not in rows.columns:
        return np.full(len(rows), -1)
    names = rows[column].map(AMIBR_SUBTYPES)
    return np.array([SUBTYPES.index(n) if n in SUBTYPES else -1 for n in names])


def _crop_path(folder: Path, key: str, atypical: bool) -> Path:
    stem = folder / ("Atypical" if atypical else "Normal") / key
    for suffix in (".png", ".jpg"):
        if (path := stem.with_name(stem.name + suffix)).is_file():
            return path
    raise DataError("no such crop, neither .png nor .jpg", path=stem)
