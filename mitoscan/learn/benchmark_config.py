"""What a benchmark compares: networks, how each is adapted and trained, and how the data are split."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from mitoscan.config import Frozen


class Network(Frozen):
    """What is trained."""

    timm: str | None = None
    """Name of a timm network; or ``foundation``."""
    foundation: str | None = None
    """Name of a foundation model (``models/foundation.py``)."""
    adapt: Literal["full", "probe", "lora"] = "full"
    """All weights, a linear head on frozen features, or adapters of low rank with the head."""
    pretrained: bool = True
    """Start from published weights; False: from chance (tests)."""
    input_px: int = Field(default=224, gt=0)
    """Crops are resized to this."""
    dropout: float = Field(default=0.0, ge=0, lt=1)

    @model_validator(mode="after")
    def _one_of_two(self) -> Network:
        if (self.timm is None) == (self.foundation is None):
            raise ValueError("give timm or foundation, one of the two")
        if self.foundation is None and self.adapt == "lora":
            raise ValueError("lora is for foundation models")
        return self


class Augmentation(Frozen):
    """What happens to a training crop; 0: nothing."""

    flip: Literal["none", "horizontal", "both"] = "both"
    rotate: float = Field(default=180.0, ge=0, le=180)
    """Greatest angle, degrees."""
    area: tuple[float, float] = (0.64, 1.0)
    """Share of the area that a random resized crop keeps; 1 to 1: no such crop."""
    brightness: float = 0.2
    contrast: float = 0.2
    saturation: float = 0.2
    hue: float = 0.05
    noise: float = 0.0
    """Standard deviation of Gaussian noise, grey levels."""


class Optimiser(Frozen):
    """How the weights move."""

    batch: int = Field(default=8, gt=0)
    epochs: int = Field(default=100, gt=0)
    """At most."""
    learning_rate: float = Field(default=1e-4, gt=0)
    least_rate: float = 0.0
    """The rate is not lowered below."""
    l2: float = 1e-4
    patience: int = 15
    """Epochs without a better ``monitor`` after which training stops."""
    monitor: Literal["balanced_accuracy", "loss"] = "balanced_accuracy"
    factor: float = 0.5
    """The rate is multiplied by this …"""
    factor_patience: int = 3
    """… after more epochs than these without a better ``monitor``."""
    head_only_epochs: int = 0
    """Epochs in which only the head is trained, first."""


class Loss(Frozen):
    """What is minimised; the parts can be switched on in any config."""

    kind: Literal["cross_entropy", "focal", "adaptive_focal"] = "cross_entropy"
    gamma: float = 2.0
    """Of the focal loss."""
    class_weighted: bool = False
    """Weigh classes by the inverse of their frequency."""
    soft_labels: bool = False
    """The experts' votes (binary) or both experts' subtypes, instead of the majority or expert 1."""
    mixup: float = Field(default=0.0, ge=0)
    contrastive: float = Field(default=0.0, ge=0)
    """Weight of the supervised contrastive loss on the features."""
    adversarial: float = Field(default=0.0, ge=0)
    """Strength of the adversarial domain head."""


class Contestant(Frozen):
    """One row of the benchmark."""

    name: str
    network: Network
    target: Literal["binary", "subtypes"] = "binary"
    sampler: Literal["plain", "classes", "domains"] = "classes"
    """Crops of a batch: as they come, inverse to class frequency, or to class frequency within domains."""
    hard_share: float = Field(default=0.0, ge=0, le=1)
    """Part of a batch that is drawn by loss (hard-negative mining)."""
    augmentation: Augmentation = Augmentation()
    loss: Loss = Loss()
    optimiser: Optimiser = Optimiser()


class Folds(Frozen):
    """Cross-validation grouped by slide, stratified by class: each fold's network sees the test sets."""

    kind: Literal["folds"] = "folds"
    folds: int = Field(default=5, ge=2)


class Ensemble(Frozen):
    """As ``Folds``, but the folds' networks are averaged and measured as one."""

    kind: Literal["ensemble"]
    folds: int = Field(default=3, ge=2)


class LeaveOneDomainOut(Frozen):
    """Each domain in turn is the test set of a network that never saw it."""

    kind: Literal["leave_one_domain_out"]
    domain: str = "dataset"
    """Column of the labels' CSV: dataset, or one that was added (scanner, tumour)."""


class Benchmark(Frozen):
    """The contents of a benchmark config."""

    name: str
    description: str
    source: str
    """The study whose protocol it is."""
    seed: int = 0
    split: Annotated[Folds | Ensemble | LeaveOneDomainOut, Field(discriminator="kind")] = Folds()
    contestants: tuple[Contestant, ...] = Field(min_length=1)
    paired: tuple[tuple[str, str], ...] = ()
    """Pairs for the Wilcoxon signed-rank test over folds."""
    baseline: str | None = None
    """Compared with all others by the Mann–Whitney U test over folds."""

    @model_validator(mode="after")
    def _names(self) -> Benchmark:
        names = [c.name for c in self.contestants]
        if len(set(names)) < len(names):
            raise ValueError("two contestants have the same name")
        named = {n for pair in self.paired for n in pair} | ({self.baseline} - {None})
        if unknown := named - set(names):
            raise ValueError(
                f"compared but not among the contestants: {', '.join(sorted(map(str, unknown)))}"
            )
        return self


class BenchmarkFile(Frozen):
    """A benchmark config file."""

    benchmark: Benchmark
