"""The run record: what made a result, in enough detail to make it again. No record, no finished result."""

from __future__ import annotations

import json
import os
import platform
import shlex
import sys
from collections.abc import Mapping
from datetime import timedelta
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from mitoscan.models.card import ModelCard
from mitoscan.scan.candidates import FirstStage
from mitoscan.scan.result import SlideResult
from mitoscan.scan.score import printable
from mitoscan.slide.base import SlideInfo

SCHEMA_VERSION = 1
_PACKAGES = (
    "mitoscan",
    "torch",
    "torchvision",
    "timm",
    "openvino",
    "openslide-python",
    "openslide-bin",
    "tiatoolbox",
    "tifffile",
    "imagecodecs",
    "pillow",
    "numpy",
    "scipy",
    "pandas",
    "shapely",
    "safetensors",
)


def run_record(result: SlideResult, inputs: Mapping[str, object] | None = None) -> dict[str, Any]:
    """Describe the slide, models, configuration, software, machine and times of a result.

    ``inputs``: what the result was made from, for a later run that asks whether to make it again.
    """
    info, summary = result.info, result.summary
    started = result.finished - timedelta(seconds=summary.seconds)
    return {
        "schema_version": SCHEMA_VERSION,
        "slide": {
            "slide_id": summary.slide_id,
            "path": summary.path,
            "identity": info.identity,
            "width_l0": info.width_l0,
            "height_l0": info.height_l0,
            "mpp_x": summary.mpp_x,
            "mpp_y": summary.mpp_y,
            "mpp_source": info.mpp_source,
            "vendor": info.vendor,
            "reader": info.reader,
            "objective": info.objective,
            "levels": len(info.levels),
            "bounds_l0": _bounds(info),
        },
        **_first_stage(result.detector, summary.detector_threshold),
        "classifier": _model(result.classifier, summary.classifier_threshold),
        "cards": {
            "detector": result.detector.model_dump(mode="json"),
            "classifier": result.classifier.model_dump(mode="json"),
        },
        "config": result.config.model_dump(mode="json"),
        "inputs": dict(inputs or {}),
        "qc_flags": list(summary.qc_flags),
        "quality": result.quality.numbers() | {"not_assessed": dict(result.quality.not_assessed)},
        "started_utc": started.isoformat(timespec="seconds"),
        "finished_utc": result.finished.isoformat(timespec="seconds"),
        "seconds": {"total": summary.seconds} | {name: round(s, 3) for name, s in result.seconds.items()},
        **surroundings(),
    }


def surroundings() -> dict[str, Any]:
    """Describe the command, the software and the machine of this process."""
    return {
        "command": printable(shlex.join(sys.argv)),
        "python": platform.python_version(),
        "versions": package_versions(),
        "machine": {"system": platform.platform(), "processor": platform.machine(), "cpus": os.cpu_count()},
    }


def record_bytes(result: SlideResult, inputs: Mapping[str, object] | None = None) -> bytes:
    """Give record.json; see `run_record`."""
    return (json.dumps(run_record(result, inputs), indent=2, ensure_ascii=False) + "\n").encode()


def package_versions() -> dict[str, str]:
    """Give the versions of mitoscan and what it computes with, from their metadata: nothing is imported."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # an optional package, or a source tree that was never installed
            continue
    return found


def _bounds(info: SlideInfo) -> list[float] | None:
    box = info.bounds
    return None if box is None else [box.x, box.y, box.width, box.height]


def _first_stage(card: FirstStage, threshold: float) -> dict[str, object]:
    if isinstance(card, ModelCard):
        return {"detector": _model(card, threshold)}
    return {"candidates": card.model_dump(exclude={"name"}) | {"threshold": threshold}}


def _model(card: ModelCard, threshold: float) -> dict[str, object]:
    return {"name": card.name, "sha256": card.sha256, "mpp": card.mpp, "threshold": threshold}
