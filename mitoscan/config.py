"""Configurations: frozen, validated, unknown keys refused; one YAML loader for all of them."""

from __future__ import annotations

import reprlib
from pathlib import Path
from typing import Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mitoscan.errors import ConfigError, MitoscanError
from mitoscan.resources import shipped

Device = Literal["auto", "cpu", "cuda", "mps"]
PointName = Literal["balanced", "sensitive"]


class Frozen(BaseModel):
    """Base of every configuration and card: immutable, and unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ScanConfig(Frozen):
    """Everything that decides how one slide is scanned."""

    mpp: float | None = Field(default=None, allow_inf_nan=True)
    """µm per level-0 pixel; overrides what the file says. None: the file's own. Checked at opening."""
    device: Device = "auto"
    detector: str | None = None
    """Name of a shipped detector, or a folder with a card.json. None: the default for the device."""
    candidates: Path | None = None
    """Somebody else's detections instead of a detector: a file, or a folder with one for each slide."""
    classifier: str | None = None
    """Name of a shipped classifier, or a folder with a card.json. None: the default."""
    weights_dir: Path | None = None
    """Folder with the weights of foundation models, for classifiers that adapt one. None: the hub."""
    subtypes: bool = False
    """Report the eight subtypes too."""
    threshold: float | None = Field(default=None, ge=0, le=1)
    """p_mitosis from which a finding counts as a mitotic figure. None: the card's operating point."""
    operating_point: PointName = "balanced"
    """Which of the detector's operating points, where ``threshold`` is None."""
    amf_threshold: float | None = Field(default=None, ge=0, le=1)
    """p_atypical from which a mitotic figure counts as atypical. None: the card's operating point; the
    corrected AMF rate is defined at no other."""
    hotspot_mm2: float = Field(default=2.0, gt=0)
    """Area of the 4:3 hot-spot window, mm²."""
    roi: Path | None = None
    """GeoJSON with polygons in level-0 px; only what lies inside is scanned and counted."""
    tissue_mask: bool = True
    """Scan only where there is tissue. False: the whole slide (or all of the ROI)."""
    qupath_crop: bool = True
    """Write GeoJSON relative to QuPath's cropped origin where the slide has bounds."""
    min_figures: int = Field(default=20, ge=1)
    """AMF rates from fewer mitotic figures are flagged."""
    batch_size: int | None = Field(default=None, ge=1)
    """Tiles that the detector takes at once. None: one on the CPU, as many as fit on a GPU."""
    readers: int | None = Field(default=None, ge=1)
    """Threads that read pixels. None: as many as keep the models busy."""
    grid_shift_px: int = Field(default=0, ge=0)
    """Shifts the tile grid by so many work px; findings do not depend on it (used by the tests)."""


ConfigT = TypeVar("ConfigT", bound=Frozen)


def faults(error: ValidationError) -> str:
    """Put all that pydantic found on one line: ``key: message (got value); …``."""
    return "; ".join(
        f"{'.'.join(map(str, e['loc'])) or 'file'}: {e['msg']} (got {reprlib.repr(e['input']):.60})"
        for e in error.errors()
    )


def build(
    model: type[ConfigT], values: object, path: Path | None = None, error: type[MitoscanError] = ConfigError
) -> ConfigT:
    """Validate ``values`` into ``model``; every fault is named in one ``error``."""
    try:
        return model.model_validate(values)
    except ValidationError as exc:
        raise error(faults(exc), path=path, remedy="Correct the values named.") from exc


def load_config(model: type[ConfigT], name_or_path: str) -> ConfigT:
    """Read a YAML config by path, or by the name of a shipped one (``detector-lite0``).

    Raises
    ------
    ConfigError
        When there is no such file, it is not YAML, or a value does not fit.
    """
    path = next(
        (p for p in (Path(name_or_path), shipped("configs") / f"{name_or_path}.yaml") if _is_file(p)), None
    )
    if path is None:
        known = ", ".join(sorted(p.stem for p in shipped("configs").glob("*.yaml")))
        raise ConfigError(f"no such config: {name_or_path}", remedy=f"Give a YAML file or one of: {known}.")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except Exception as exc:  # beside its own errors PyYAML lets out half a dozen of Python's for odd scalars
        raise ConfigError(f"not readable as YAML: {exc or type(exc).__name__}", path=path) from exc
    return build(model, values, path)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name too long, a folder that may not be read
        return False
