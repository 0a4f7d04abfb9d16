"""The model card: everything about a model that a user could otherwise get wrong.

A model is a folder with ``card.json`` and ``model.safetensors``. The card owns pixel size, input size,
normalisation, classes and operating point; its sha256 ties it to exactly one weights file.
"""

from __future__ import annotations

import hashlib
import json
from functools import lru_cache
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from mitoscan.config import Frozen, PointName, build
from mitoscan.errors import ModelError
from mitoscan.units import MPP_MAX, MPP_MIN

CARD_NAME, WEIGHTS_NAME = "card.json", "model.safetensors"

SUBTYPES = (
    "prometaphase",
    "metaphase",
    "anaphase_telophase",
    "ring",
    "bipolar_asymmetric",
    "multipolar",
    "segregation",
    "other",
)
"""The eight subtypes of AMi-Br: four normal ones, then four atypical ones."""

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
"""The names of the subtypes in AMi-Br's tables."""

Task = Literal["detector", "classifier"]


class OperatingPoint(Frozen):
    """A threshold, and what chose it."""

    threshold: float = Field(ge=0, le=1)
    criterion: str
    dataset: str


class Counts(Frozen):
    """Held-out confusion counts of AMF (positive) against NMF at the operating point."""

    tp: int = Field(ge=0)
    fn: int = Field(ge=0)
    tn: int = Field(ge=0)
    fp: int = Field(ge=0)

    @property
    def sensitivity(self) -> float:
        """Share of AMF called AMF; nan without AMF."""
        return self.tp / (self.tp + self.fn) if self.tp + self.fn else float("nan")

    @property
    def specificity(self) -> float:
        """Share of NMF called NMF; nan without NMF."""
        return self.tn / (self.tn + self.fp) if self.tn + self.fp else float("nan")


class Metric(Frozen):
    """A measured figure with its 95 % interval and the data it was measured on."""

    name: str
    value: float
    low: float | None = None
    high: float | None = None
    n: int
    dataset: str


class Training(Frozen):
    """How the weights came about."""

    command: str
    config: str
    seed: int
    data: str
    data_use: str


class FocusReference(Frozen):
    """Detector: what tissue in focus measures (``scan.focus``)."""

    limit: float = Field(gt=0)
    """Blocks of tissue that measure less are out of focus."""
    max_share: float = Field(gt=0, le=1)
    """A slide with a greater share of such blocks is flagged."""
    blocks: int
    slides: int
    """How much the limit was taken from."""
    tested: int
    false_alarms: int
    """Slides with five blocks or more, and how many of them were flagged by a limit from the others."""
    dataset: str


class LikenessReference(Frozen):
    """Classifier: how far a slide's crops may look from the training data (``models.likeness``)."""

    limit: float = Field(gt=0)
    """Slides at a greater distance are flagged."""
    min_crops: int = Field(ge=1)
    """Slides with fewer classified findings are not assessed."""
    crops: int
    slides: int
    """How much the reference was computed from."""
    tested: int
    false_alarms: int
    """Slides with enough crops, and how many were flagged by a reference and a limit from the others."""
    dataset: str
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    """Of ``reference.safetensors``."""


class Reference(Frozen):
    """What a slide is compared with to flag it; made by ``mitoscan train reference``."""

    focus: FocusReference | None = None
    likeness: LikenessReference | None = None


class Lora(Frozen):
    """Low-rank adaptation of a frozen backbone; the defaults are those of the AMi-Br benchmark."""

    rank: int = Field(default=8, gt=0)
    alpha: int = Field(default=16, gt=0)
    """What is added to a weight is ``alpha / rank × B A``."""
    dropout: float = Field(default=0.3, ge=0, lt=1)
    """Of the adapters' inputs, in training."""


class ModelCard(Frozen):
    """The contents of card.json."""

    schema_version: Literal[1] = 1
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    task: Task
    description: str
    backbone: str
    """timm name of the backbone; with ``adaptation`` the name of a foundation model."""
    adaptation: Literal["probe", "lora"] | None = None
    """Classifier: the weights are only a head, or LoRA and a head, for a backbone that its publisher has."""
    backbone_sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    """With ``adaptation``: the fingerprint of that backbone."""
    lora: Lora | None = None
    """With adaptation ``lora``: its settings."""
    mpp: float = Field(ge=MPP_MIN, le=MPP_MAX)
    """µm per pixel of the network's input."""
    input_px: int = Field(gt=0, le=8192)
    """Side of the square that the caller hands over: detector tile or classifier crop."""
    margin_px: int = Field(default=0, ge=0)
    """Detector: how far from a tile's border findings are left to the neighbouring tile, px."""
    centre_px: int | None = Field(default=None, gt=0)
    """Classifier: side of the central square that the network looks at. None: all of it."""
    resize_px: int | None = Field(default=None, gt=0, le=2048)
    """Classifier: side to which what it looks at is enlarged. None: as it is."""
    views: Literal[1, 2, 4] = 1
    """How many quarter turns of a tile or crop the scores are the mean of (test-time augmentation)."""
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    classes: tuple[str, ...]
    subtypes: tuple[str, ...] = ()
    operating_point: OperatingPoint
    sensitive: OperatingPoint | None = None
    """Detector: a second operating point that misses fewer figures."""
    validation: Counts | None = None
    """Classifier: what the corrected AMF rate is computed from."""
    metrics: tuple[Metric, ...] = ()
    parameters: int = Field(gt=0)
    training: Training
    licence: str
    intended_use: str
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    reference: Reference | None = None
    """None: the slides' quality is not assessed by this model."""

    @model_validator(mode="after")
    def _adaptation_is_whole(self) -> Self:
        if (self.adaptation is None) != (self.backbone_sha256 is None):
            raise ValueError("adaptation and backbone_sha256 go together")
        if (self.adaptation == "lora") != (self.lora is not None):
            raise ValueError("lora goes with adaptation lora, and only with it")
        return self

    def point(self, name: PointName) -> OperatingPoint:
        """Give an operating point by name.

        Raises
        ------
        ModelError
            When the card has no sensitive one.
        """
        if name == "balanced":
            return self.operating_point
        if self.sensitive is None:
            raise ModelError(
                f"the card of {self.name} has no sensitive operating point",
                remedy="Give --threshold instead.",
            )
        return self.sensitive

    @model_validator(mode="after")
    def _sizes_agree(self) -> Self:
        if self.task == "detector" and (self.input_px % 16 or 2 * self.margin_px >= self.input_px):
            raise ValueError(
                f"a detector's input_px, here {self.input_px}, is a multiple of 16, "
                f"and more than twice its margin_px, here {self.margin_px}"
            )
        if self.centre_px is not None and self.centre_px > self.input_px:
            raise ValueError(f"centre_px, {self.centre_px}, is more than input_px, {self.input_px}")
        if not all(step > 0 for step in self.std):
            raise ValueError(f"std, {self.std}, is not above 0")
        return self


def sha256_of(path: Path) -> str:
    """Give the sha256 of a file as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load_card(folder: Path) -> ModelCard:
    """Read and validate ``folder/card.json``.

    Raises
    ------
    ModelError
        When the card is missing, is not JSON, or a value does not fit.
    """
    path = folder / CARD_NAME
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as exc:
        raise ModelError(
            f"no {CARD_NAME} in the model folder", path=folder, remedy="See `mitoscan models`."
        ) from exc
    except (OSError, ValueError, RecursionError) as exc:
        raise ModelError(f"not readable as JSON: {exc}", path=path) from exc
    return build(ModelCard, values, path, ModelError)


def save_card(card: ModelCard, folder: Path) -> None:
    """Write ``card`` to ``folder/card.json``."""
    (folder / CARD_NAME).write_text(card.model_dump_json(indent=2) + "\n", encoding="utf-8")


@lru_cache(maxsize=32)
def _sha256_once(path: Path, _mtime_ns: int, _size: int) -> str:
    return sha256_of(path)


def sha256_cached(path: Path) -> str:
    """Give the sha256 of a file as hex, read once in a process unless the file changes."""
    stat = path.stat()
    return _sha256_once(path, stat.st_mtime_ns, stat.st_size)


def checked_weights(folder: Path, card: ModelCard) -> Path:
    """Give the path of the weights after comparing them with the card's checksum.

    Raises
    ------
    ModelError
        When the file is missing or its sha256 is not the card's.
    """
    path = folder / WEIGHTS_NAME
    if not path.is_file():
        raise ModelError(
            f"{WEIGHTS_NAME} is missing", path=folder, remedy="Restore the file or reinstall mitoscan."
        )
    found = sha256_cached(path)
    if found != card.sha256:
        raise ModelError(
            f"sha256 {found[:12]}… is not the card's {card.sha256[:12]}…",
            path=path,
            remedy="The weights were changed or damaged: restore the file or reinstall mitoscan.",
        )
    return path
