"""The order of the packages: a module imports only from its own group or from groups above it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ORDER = [
    {"__init__"},
    {"errors", "units", "resources"},
    {"config"},
    {"slide"},
    {"models"},
    {"scan"},
    {"report"},
    {"cohort"},
    {"study"},
    {"learn"},
    {"demo", "demo_stamps"},
    {"console", "describe", "doctor"},
    {"cli"},
]
RANK = {name: rank for rank, group in enumerate(ORDER) for name in group}
SOURCE = Path(__file__).parents[1] / "mitoscan"
MODULES = sorted(SOURCE.rglob("*.py"))
ONLY_IMPORTER: dict[str, str | set[str]] = {
    "huggingface_hub": "models/foundation.py",
    "peft": "models/lora.py",
    "jinja2": "report/html.py",
    "lifelines": "study/survival.py",
    "openslide": "slide/reader.py",
    "openvino": "models/runtime.py",
    "psutil": "cohort/system.py",
    "ray": "cohort/ray_engine.py",
    "tiatoolbox": {
        "models/tiatoolbox_models.py",
        "slide/tiatoolbox_reader.py",
        "report/export/annotation_store.py",
    },
    "pyarrow": "report/export/parquet.py",
    "highdicom": "report/export/dicom.py",
}


def imported(path: Path) -> set[str]:
    """Dotted names that a module imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return names


def group_of(dotted: str) -> str:
    parts = dotted.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.relative_to(SOURCE).as_posix())
def test_imports_go_up_only(path: Path) -> None:
    own = path.relative_to(SOURCE).parts[0].removesuffix(".py")
    if path == SOURCE / "__init__.py":
        return  # its names are imported lazily from everywhere
    for name in imported(path):
        if name.split(".")[0] == "mitoscan":
            assert RANK[group_of(name)] <= RANK[own], f"{own} imports {name}"


@pytest.mark.parametrize(("library", "importer"), ONLY_IMPORTER.items())
def test_each_outside_library_has_one_seam(library: str, importer: str | set[str]) -> None:
    """tiatoolbox has three, its readers, its detector and its store of annotations: nothing in common."""
    users = {
        path.relative_to(SOURCE).as_posix()
        for path in MODULES
        if any(name.split(".")[0] == library for name in imported(path))
    }
    assert users == ({importer} if isinstance(importer, str) else importer)
