"""What is installed is what is tested, and it is whole."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import mitoscan
from mitoscan.config import load_config
from mitoscan.learn.config import TrainFile
from mitoscan.models.card import checked_weights, load_card
from mitoscan.models.zoo import DEFAULTS, shipped_models
from mitoscan.resources import shipped

REPO = Path(__file__).parents[1]


def test_the_installed_package_is_tested() -> None:
    if not os.environ.get("MITOSCAN_TEST_INSTALLED"):
        pytest.skip("running from the source tree (make test runs the installed wheel)")
    package = Path(mitoscan.__file__).parent
    assert not package.is_relative_to(REPO / "mitoscan")
    assert shipped("weights") == package / "weights"
    assert shipped("configs") == package / "configs"


def test_the_default_models_ship_whole() -> None:
    models = shipped_models()
    assert set(DEFAULTS.values()) <= set(models)
    for folder in models.values():
        card = load_card(folder)
        assert checked_weights(folder, card).stat().st_size > 1000
        assert card.training.data_use == "research use"
        load_config(TrainFile, card.training.config)  # the recipe is there to be run again


def test_shipped_weights_stay_small() -> None:
    total = sum(p.stat().st_size for p in shipped("weights").rglob("*") if p.is_file())
    assert total < 60e6


def test_help_and_import_touch_no_heavy_library() -> None:
    code = (
        "import sys, mitoscan.cli\n"
        "heavy = {'torch', 'timm', 'openvino', 'pandas', 'scipy', 'shapely', 'openslide', 'tiatoolbox'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_public_names_are_there() -> None:
    for name in mitoscan.__all__:
        assert getattr(mitoscan, name) is not None
    with pytest.raises(AttributeError, match="nonsense"):
        _ = mitoscan.nonsense
