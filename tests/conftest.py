from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The real data; tests that use it are skipped where it is absent."""
    folder = Path(os.environ.get("MITOSCAN_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}: set MITOSCAN_DATA")
    return folder
