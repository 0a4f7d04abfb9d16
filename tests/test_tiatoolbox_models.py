"""tiatoolbox's detector as stage 1: what is taken over, places at any pixel size, loading, no network."""

from __future__ import annotations

import logging
import pickle

import fakes
import numpy as np
import pytest
import slides
import torch
from scipy.spatial import cKDTree

from mitoscan.errors import MissingExtraError, ModelError
from mitoscan.models import tiatoolbox_models
from mitoscan.models.runtime import TorchRuntime
from mitoscan.models.tiatoolbox_models import (
    PREFIX,
    build_kongnet,
    find_tiatoolbox_model,
    heat_of,
    load_tiatoolbox_runtime,
)
from mitoscan.models.zoo import find_model
from mitoscan.scan.detect import Detector
from mitoscan.scan.pipeline import Models, scan_slide
from mitoscan.slide.write import write_pyramid

NAME = "KongNet_Det_MIDOG_1"
needs_tiatoolbox = pytest.mark.skipif(
    tiatoolbox_models.importlib.util.find_spec("tiatoolbox") is None,
    reason="the extra mitoscan[tiatoolbox] is not installed",
)


@pytest.fixture(autouse=True)
def own_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("MITOSCAN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


def place(tmp_path, data=b"weights"):
    path = tmp_path / "cache" / "tiatoolbox" / f"{NAME}.pth"
    path.parent.mkdir(parents=True)
    path.write_bytes(data)
    return path


class DarkPlaces(torch.nn.Module):
    """Stands where KongNet does: sure of what is dark, after undoing the normalisation that it must get."""

    def forward(self, x):
        rgb = x * torch.tensor([0.229, 0.224, 0.225])[:, None, None]
        rgb = 255 * (rgb + torch.tensor([0.485, 0.456, 0.406])[:, None, None])
        blurred = torch.nn.functional.avg_pool2d(rgb[:, 1:2], 7, stride=1, padding=3, count_include_pad=False)
        return (95 - blurred) * 2  # the sigmoid saturates: a plateau on every mark


@needs_tiatoolbox
@pytest.mark.parametrize("mpp", [0.2273, 0.25, 0.5])
def test_a_response_lands_in_its_place_once_over_many_tiles(tmp_path, mpp):
    place(tmp_path)
    _, card = find_tiatoolbox_model(PREFIX + NAME)
    width, height = (round(um / mpp) for um in (700.0, 500.0))  # 1400 x 1000 px of the network: 4 x 3 tiles
    rng = np.random.default_rng(2)
    xs, ys = np.meshgrid(np.arange(30, 680, 47), np.arange(30, 480, 47))
    marks = (np.column_stack([xs.ravel(), ys.ravel()]) + rng.uniform(-8, 8, (xs.size, 2))) / mpp
    write_pyramid(tmp_path / "s.svs", slides.with_marks(width, height, marks, sigma=11, mpp=(mpp, mpp)), mpp)
    detector = Detector(card, TorchRuntime(heat_of(DarkPlaces()), "cpu"))
    result = scan_slide(tmp_path / "s.svs", models=Models(detector, fakes.models().classifier))
    figures = result.findings[result.findings["is_mf"]]
    assert len(figures) == len(marks)
    distance, index = cKDTree(figures[["x_um", "y_um"]]).query(marks * mpp)
    assert len(set(index)) == len(marks)
    assert distance.max() < 1.0
    assert result.summary.detector == NAME
    assert result.summary.detector_threshold == 0.99


@needs_tiatoolbox
def test_the_real_architecture_with_random_weights(tmp_path):
    torch.manual_seed(0)
    network = build_kongnet(NAME)
    path = place(tmp_path)
    torch.save({"model": network.state_dict()}, path)
    found, card = find_model(PREFIX + NAME, "detector")
    assert found == path
    assert card.parameters == sum(p.numel() for p in network.parameters())
    runtime = load_tiatoolbox_runtime(path, card, "cpu")
    images = np.random.default_rng(0).integers(0, 255, (2, 64, 64, 3), dtype=np.uint8)
    heat = runtime(images)
    assert heat.shape == (2, 64, 64)
    x = heat_of(network).normalise(torch.from_numpy(images))
    np.testing.assert_allclose(x.permute(0, 2, 3, 1), [network.preproc(i) for i in images], atol=1e-5)
    with torch.inference_mode():
        theirs = network(x).sigmoid()[:, 0].numpy()
    np.testing.assert_allclose(heat, theirs, atol=1.1e-3)

    small = Detector(card.model_copy(update={"input_px": 64, "margin_px": 16}), runtime, threshold=0.0)
    seen = small.detect(np.concatenate(list(images), axis=1), mpp=0.5)  # 128 x 64 px: several tiles
    assert len(seen) > 0
    places = seen[["x", "y"]].to_numpy() * 0.5
    assert len(cKDTree(places).query_pairs(7.4)) == 0


@needs_tiatoolbox
def test_the_card_says_what_tiatoolbox_does(tmp_path):
    from tiatoolbox import rcParam

    place(tmp_path)
    _, card = find_tiatoolbox_model(PREFIX + NAME)
    registry = rcParam["pretrained_model_info"][NAME]
    asked, kwargs = registry["ioconfig"]["kwargs"], registry["architecture"]["kwargs"]
    assert asked["input_resolutions"] == [{"units": "mpp", "resolution": card.mpp}]
    assert asked["patch_input_shape"] == asked["patch_output_shape"] == [card.input_px] * 2
    assert 2 * card.margin_px >= card.input_px - asked["stride_shape"][0]
    assert kwargs["threshold_abs"] == card.operating_point.threshold
    assert kwargs["target_channels"] == [0]
    assert kwargs["num_channels_per_head"] == [1]


@needs_tiatoolbox
def test_without_a_network_the_error_says_what_to_place_where(tmp_path, monkeypatch):
    def offline(*_, **__):
        raise OSError("Name or service not known")

    monkeypatch.setattr(tiatoolbox_models, "_fetch", offline)
    with pytest.raises(ModelError, match="Name or service not known") as caught:
        find_model(PREFIX + NAME, "detector")
    assert caught.value.path == tmp_path / "cache" / "tiatoolbox" / f"{NAME}.pth"
    assert f"Fetch {NAME}.pth from https://huggingface.co/TIACentre/" in caught.value.remedy


@needs_tiatoolbox
def test_the_licence_is_said_once(tmp_path, caplog):
    place(tmp_path)
    with caplog.at_level(logging.WARNING, logger="mitoscan"):
        for _ in range(3):
            find_tiatoolbox_model(PREFIX + NAME)
    assert [r.getMessage().count("terms of use") for r in caplog.records] == [1]


class Harmful:
    def __reduce__(self):
        return (pytest.fail, ("the pickle was executed",))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (pickle.dumps({"model": Harmful()}), "refused"),
        (b"", "not the weights"),
        (b"PK\3\4x", "not the weights"),
    ],
)
def test_files_that_are_no_plain_weights_are_refused(tmp_path, monkeypatch, data, reason):
    monkeypatch.setattr(tiatoolbox_models, "build_kongnet", lambda _: DarkPlaces())
    with pytest.raises(ModelError, match=reason):
        load_tiatoolbox_runtime(place(tmp_path, data), fakes.card("detector"), "cpu")


def test_other_names_and_a_missing_extra(monkeypatch):
    with pytest.raises(ModelError, match="KongNet_Det_MIDOG_1"):
        find_tiatoolbox_model("tiatoolbox:KongNet_CoNIC_1")
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match=r"mitoscan\[tiatoolbox\]"):
        find_tiatoolbox_model(PREFIX + NAME)
