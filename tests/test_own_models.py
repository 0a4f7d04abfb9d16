"""A user's own detector: a folder with a card and safetensors, from making it to `mitoscan run`."""

from __future__ import annotations

import json
import re
from pathlib import Path

import fakes
import pytest
import slides
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from mitoscan.cli import app
from mitoscan.errors import ModelError
from mitoscan.models.card import WEIGHTS_NAME, ModelCard, load_card, save_card, sha256_of
from mitoscan.models.networks import build_network
from mitoscan.scan.detect import load_detector
from mitoscan.slide.write import write_pyramid

GUIDE = Path(__file__).parents[1] / "docs" / "models.md"


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MITOSCAN_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path):
    """A tiny HeatmapNet with random weights, at a pixel size and tile of its own."""
    torch.manual_seed(0)
    card = fakes.card("detector", name="mine", backbone="tf_efficientnet_lite0", mpp=0.5, input_px=256)
    network = build_network(card)
    path = tmp_path / "mine"
    path.mkdir()
    save_file(network.state_dict(), path / WEIGHTS_NAME)
    save_card(card.model_copy(update={"sha256": sha256_of(path / WEIGHTS_NAME)}), path)
    return path


def test_it_runs_end_to_end(tmp_path, folder):
    write_pyramid(tmp_path / "s.svs", slides.with_marks(900, 700, [(300, 300)]), 0.25)
    command = ["run", str(tmp_path / "s.svs"), "-o", str(tmp_path / "out"), "--device", "cpu"]
    done = CliRunner().invoke(app, [*command, "--detector", str(folder), "--threshold", "0.005"])
    assert done.exit_code == 0, done.output
    record = json.loads((tmp_path / "out" / "s" / "record.json").read_text())
    assert record["detector"]["name"] == "mine"
    assert record["detector"]["sha256"] == load_card(folder).sha256
    assert record["detector"]["mpp"] == 0.5


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"backbone": "no_such_net"}, "no_such_net"),
        ({"backbone": "resnet18"}, "resnet18"),
        ({"backbone": "tf_efficientnet_lite1"}, "do not fit"),
        ({"input_px": 250}, "multiple of 16"),
        ({"margin_px": 128}, "margin_px"),
        ({"mpp": 0}, "mpp"),
        ({"std": [0.2, 0.0, 0.2]}, "std"),
        ({"operating_point": {"threshold": 40, "criterion": "a", "dataset": "b"}}, "threshold"),
        ({"task": "segmenter"}, "task"),
        ({"stride": 8}, "stride"),
        ({"sha256": "0" * 64}, "sha256"),
    ],
)
def test_a_wrong_field_is_refused_with_the_reason(folder, change, reason):
    card = json.loads((folder / "card.json").read_text())
    (folder / "card.json").write_text(json.dumps(card | change))
    with pytest.raises(ModelError, match=reason):
        load_detector(folder, "cpu")


def test_only_safetensors_count(folder):
    (folder / WEIGHTS_NAME).rename(folder / "model.pt")
    with pytest.raises(ModelError, match=r"model\.safetensors is missing"):
        load_detector(folder, "cpu")


def test_the_guide_names_every_field_and_its_program_makes_a_model(tmp_path, monkeypatch):
    guide = GUIDE.read_text(encoding="utf-8")
    rows = guide.split("## The card")[1].split("## ")[0]
    told = {name for row in re.findall(r"^\| (`.*?) \|", rows, re.M) for name in re.findall(r"`(\w+)`", row)}
    assert told == set(ModelCard.model_fields)
    monkeypatch.chdir(tmp_path)
    exec(re.search(r"```python\n(.*?)```", guide, re.S)[1], {})  # noqa: S102
    assert load_detector(tmp_path / "my-detector", "cpu").threshold == 0.4
