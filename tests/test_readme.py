"""The README's table of accuracy is that of the cards. What it and the pages say otherwise: test_docs.py."""

from __future__ import annotations

import importlib.util
from pathlib import Path

REPO = Path(__file__).parents[1]
README = (REPO / "README.md").read_text(encoding="utf-8")


def test_the_table_of_accuracy_is_that_of_the_shipped_cards():
    spec = importlib.util.spec_from_file_location("readme_figures", REPO / "benchmarks" / "readme_figures.py")
    assert spec is not None
    assert spec.loader is not None
    figures = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(figures)
    assert figures.with_table(README) == README, "run: python benchmarks/readme_figures.py"


def test_it_stays_short():
    """Reference belongs in docs/: a newcomer reads this file to its end."""
    assert README.count("\n") < 220
