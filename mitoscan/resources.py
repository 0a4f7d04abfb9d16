"""Where the files that ship with mitoscan are: ``weights/`` and ``configs/``.

In the wheel they lie inside the package; in a source checkout beside it.
"""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).parent


def shipped(kind: str) -> Path:
    """Give the folder ``weights`` or ``configs`` that came with this installation."""
    inside = _PACKAGE / kind
    return inside if inside.is_dir() else _PACKAGE.parent / kind
