"""What a training run needs to know; read from ``configs/*.yaml``."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from mitoscan.config import Frozen


class TrainConfig(Frozen):
    """Shared by both tasks."""

    name: str
    """Name of the model, and of its folder."""
    description: str
    trained_on: str
    """What data the weights see; goes into the card."""
    validated_on: str
    """What data chooses the operating point; goes into the card."""
    backbone: str = "tf_efficientnet_lite0"
    views: Literal[1, 2, 4] = 1
    """Quarter turns of a tile or crop whose scores are averaged, in validation and on slides."""
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    mpp: float = 0.25
    seed: int = 0
    steps: int = Field(gt=0)
    batch: int = Field(gt=0)
    learning_rate: float = Field(gt=0)
    weight_decay: float = Field(ge=0)
    average_decay: float = Field(default=0.998, ge=0, lt=1)
    """Decay of the exponential moving average of the weights; the average is what is validated and saved."""
    validate_every: int = Field(gt=0)
    scale: tuple[float, float] = (0.85, 1.2)
    od_gain: float = Field(default=0.2, ge=0)
    """Standard deviation of the factor on each channel's optical density."""
    od_shift: float = Field(default=0.05, ge=0)
    """Standard deviation of what is added to each channel's optical density."""
    od_strength: float = Field(default=0.0, ge=0)
    """Standard deviation of the factor on the optical density of all channels together."""
    mixing: float = Field(default=0.0, ge=0)
    """Standard deviation of the entries of the matrix that mixes the channels' optical densities."""
    jpeg: float = Field(default=0.0, ge=0, le=1)
    """Share of crops that are compressed as JPEG."""
    blur: float = Field(default=0.0, ge=0, le=1)
    """Share of crops that are blurred or sharpened."""

    @property
    def total_steps(self) -> int:
        """Steps of all that one call trains."""
        return self.steps


class CocoFile(Frozen):
    """A data set in the layout of MIDOG and MIDOG++; paths are relative to the data folder."""

    file: str
    """The JSON file."""
    images: str
    """Folder of its pictures: regions or whole slides."""
    mpp: float | None = Field(default=None, gt=0)
    """µm per level-0 px; None: what each picture states."""


class DoubtfulPoint(Frozen):
    """A place in an unlabelled field that may be a mitotic figure: neither to learn nor to mine."""

    slide: str
    x: float
    """px of the field."""
    y: float


class NegativeFields(Frozen):
    """Unlabelled fields with next to no mitotic figures (data sets named ``…_unlabelled``) to learn from."""

    fields: str = "detection"
    """Folder with ``fields.csv`` and ``points.csv``, relative to the data folder."""
    hold_out: tuple[str, ...]
    """Slides that are not learnt from, so that false alarms can be counted on them."""
    doubtful: tuple[DoubtfulPoint, ...] = ()


class DetectorTraining(TrainConfig):
    """Training of a heat-map detector."""

    task: Literal["detector"]
    fields: str | None = "detection"
    """Folder with ``fields.csv`` and ``points.csv``, relative to the data folder. None: not used."""
    coco: tuple[CocoFile, ...] = ()
    """Further data sets."""
    leave_out_datasets: tuple[str, ...] = ()
    """Data sets not to train on, so that they can be tested on."""
    leave_out_slides: tuple[str, ...] = ()
    """Slides not to train on."""
    tile_px: int = 2048
    """Side of the tiles at scan time."""
    crop_px: int = 256
    sigma_cells: float = 1.25
    """Standard deviation of the Gaussian target, heat-map cells."""
    on_figures: float = Field(default=0.5, ge=0, le=1)
    on_hard_negatives: float = Field(default=0.3, ge=0, le=1)
    on_mosaics: float = Field(default=0.0, ge=0, le=1)
    """Share of the batch that is put together from AMi-Br's training crops, for their many scanners."""
    look_alikes: float = Field(default=0.0, ge=0, lt=1)
    """Share of a mosaic's crops that show a look-alike of the fields, a mined place or anything negative."""
    negatives: NegativeFields | None = None
    on_negatives: float = Field(default=0.0, ge=0, le=1)
    """Share of the batch that is drawn anywhere on the unlabelled fields."""
    start_from: str | None = None
    """A model (shipped name, or folder) whose weights to start from. None: ImageNet's."""
    teachers: tuple[str, ...] = ()
    """Detectors (shipped names, or folders) whose mean score is learnt beside the labels of the fields."""
    label_share: float = Field(default=0.5, ge=0, le=1)
    """What the labels count against the teachers, who count for the rest."""
    start_share: float = Field(default=0.0, ge=0, lt=1)
    """Share of the weights started from in the result: what the first round knew is not forgotten."""
    mine_with: str | None = None
    """A model whose false calls on the training fields to learn from."""
    mine_on: Literal["all", "negatives"] = "all"
    """``negatives``: on the unlabelled fields only, where no wrong label can make a figure a false call."""
    mined_from: float = Field(default=0.1, gt=0, lt=1)
    """Least score of a false call that is mined."""
    on_mined: float = Field(default=0.0, ge=0, le=1)
    """Share of the batch that is drawn about mined places, the higher their score the more often."""
    validation_slides: tuple[str, ...]


class ClassifierTraining(TrainConfig):
    """Training of an AMF classifier with a subtype head."""

    task: Literal["classifier"]
    crop_px: int = 128
    centre_px: int = 96
    resize_px: int | None = Field(default=None, gt=0, le=2048)
    """Side to which the centre is enlarged before the network. None: as it is."""
    start_from: str | None = None
    """Detector whose trunk the training starts from: shipped name or folder. None: ImageNet weights alone."""
    dropout: float = 0.3
    soft_labels: bool = False
    """Learn the share of the experts that called a crop atypical, and both experts' subtypes. False: the
    majority, and expert 1's subtype."""
    mixup: float = Field(default=0.0, ge=0)
    """Parameter of the beta distribution that crops are blended by; 0: they are not."""
    label_smoothing: float = 0.05
    subtype_weight: float = Field(default=0.3, ge=0)
    """Weight of the subtype loss beside the binary one."""
    folds: int = Field(default=5, ge=2)
    fold: int | None = Field(default=0, ge=0)
    """Which of ``folds`` slide-grouped parts of the training data is held out. None: each in turn, and then a
    model of all crops is trained, whose operating point the held-out predictions choose."""

    @property
    def total_steps(self) -> int:
        """Steps of all that one call trains."""
        return self.steps * (1 if self.fold is not None else self.folds + 1)

    @model_validator(mode="after")
    def _fold_is_one_of_the_folds(self) -> Self:
        if self.fold is not None and self.fold >= self.folds:
            raise ValueError(f"fold {self.fold} is none of {self.folds}, which count from 0")
        return self


class TrainFile(Frozen):
    """A training config file: its ``task`` decides which fields apply."""

    train: Annotated[DetectorTraining | ClassifierTraining, Field(discriminator="task")]
