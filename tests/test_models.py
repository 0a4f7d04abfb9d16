"""Cards, weights and runtimes: a user cannot get a model wrong, and both runtimes agree."""

from __future__ import annotations

import io
import json
import pickle
import resource
import shutil
import subprocess
import sys

import fakes
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import mitoscan
from mitoscan.errors import ConfigError, ModelError
from mitoscan.models.card import WEIGHTS_NAME, checked_weights, load_card, save_card, sha256_of
from mitoscan.models.networks import build_network
from mitoscan.models.runtime import OpenVinoRuntime, TorchRuntime, images_at_once, load_network, pick_backend
from mitoscan.models.zoo import DEFAULTS, find_model, shipped_models


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("MITOSCAN_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def folder(tmp_path):
    """A model folder with random weights whose outputs vary."""
    return random_model(tmp_path / "model", "classifier")


def random_model(folder, task, **changes):
    torch.manual_seed(1)
    card = fakes.card(task, **changes)
    network = build_network(card)
    network.train()
    for _ in range(3):  # give batch norm some statistics
        network(torch.randint(0, 255, (4, 128, 128, 3), dtype=torch.uint8))
    folder.mkdir()
    save_file(network.state_dict(), folder / WEIGHTS_NAME)
    save_card(card.model_copy(update={"sha256": sha256_of(folder / WEIGHTS_NAME)}), folder)
    return folder


@pytest.mark.parametrize(
    ("task", "changes"),
    [("detector", {}), ("detector", {"views": 2}), ("classifier", {}), ("classifier", {"views": 4})],
)
def test_torch_and_openvino_agree(tmp_path, task, changes):
    folder = random_model(tmp_path / "model", task, **changes)
    card = load_card(folder)
    weights = checked_weights(folder, card)
    torch_one = TorchRuntime(load_network(weights, card), "cpu")
    openvino_one = OpenVinoRuntime(weights, card)
    side = card.input_px
    images = np.random.default_rng(0).integers(0, 255, (2, side, side, 3), dtype=np.uint8)
    a, b = torch_one(images), openvino_one(images)
    assert a.shape == ((2, side // 8, side // 8) if task == "detector" else (2, 9))
    assert a.std() > 1e-4
    np.testing.assert_allclose(a, b, atol=1e-3)


def test_views_make_scores_independent_of_how_a_crop_lies(folder):
    once = load_card(folder)
    four = once.model_copy(update={"views": 4})
    images = np.random.default_rng(0).integers(0, 255, (3, 128, 128, 3), dtype=np.uint8)
    turned = np.ascontiguousarray(np.rot90(images, axes=(1, 2)))
    # The same weights twice: the second must not get the first one's graph from the cache.
    (upright, stem), (averaged, same_stem) = (
        OpenVinoRuntime(folder / WEIGHTS_NAME, card).with_embedding(images) for card in (once, four)
    )
    assert np.abs(upright - OpenVinoRuntime(folder / WEIGHTS_NAME, once)(turned)).max() > 1e-3
    np.testing.assert_allclose(averaged, OpenVinoRuntime(folder / WEIGHTS_NAME, four)(turned), atol=1e-5)
    single = [OpenVinoRuntime(folder / WEIGHTS_NAME, once)(np.rot90(images, k, (1, 2))) for k in range(4)]
    p = np.stack(single)[..., 0]
    expected = 1 / (1 + np.exp(-logit(p).mean(axis=0)))
    np.testing.assert_allclose(averaged[:, 0], expected, atol=1e-4)
    np.testing.assert_allclose(stem, same_stem, atol=1e-5)  # how a slide looks does not depend on it


def logit(p):
    return np.log(p / (1 - p))


@pytest.mark.parametrize("views", [2, 4])
def test_a_detectors_views_are_turned_back_before_they_are_averaged(tmp_path, views):
    folder = random_model(tmp_path / "model", "detector")
    once = load_card(folder)
    weights, averaged = folder / WEIGHTS_NAME, once.model_copy(update={"views": views})
    images = np.random.default_rng(0).integers(0, 255, (1, 96, 160, 3), dtype=np.uint8)
    single = OpenVinoRuntime(weights, once)
    maps = [logit(np.rot90(single(np.rot90(images, k, (1, 2))), -k, (1, 2))) for k in range(views)]
    assert np.abs(maps[0] - maps[1]).max() > 0.02
    p = OpenVinoRuntime(weights, averaged)(images)
    np.testing.assert_allclose(logit(p), np.mean(maps, axis=0), atol=2e-3)


def test_openvino_takes_any_batch_and_caches_the_graph(folder, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    monkeypatch.setenv("MITOSCAN_CACHE", str(cache))
    card = load_card(folder)
    images = np.random.default_rng(0).integers(0, 255, (3, 128, 128, 3), dtype=np.uint8)
    first = OpenVinoRuntime(folder / WEIGHTS_NAME, card)(images)
    assert [p.suffix for p in sorted((cache / "openvino").iterdir())] == [".bin", ".xml"]

    def fail(*_):
        raise AssertionError("converted again")

    monkeypatch.setattr("mitoscan.models.runtime._convert", fail)
    again = OpenVinoRuntime(folder / WEIGHTS_NAME, card)
    np.testing.assert_allclose(first, np.concatenate([again(images[i : i + 1]) for i in range(3)]), atol=1e-4)


def test_weights_that_do_not_fit_the_checksum_are_refused(folder):
    with (folder / WEIGHTS_NAME).open("ab") as file:
        file.write(b"x")
    with pytest.raises(ModelError, match="sha256") as caught:
        mitoscan.load_classifier(folder)
    assert caught.value.path == folder / WEIGHTS_NAME


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (lambda c: c.update(mpp=-1), "mpp"),
        (lambda c: c.update(surprise=1), "surprise"),
        (lambda c: c.pop("sha256"), "sha256"),
        (lambda c: c.update(name="../x"), "name"),
        (lambda c: c.update(mpp=1e-9), "mpp"),
        (lambda c: c.update(input_px=10**9), "input_px"),
        (lambda c: c.update(centre_px=4096), "centre_px"),
        (lambda c: c.update(std=[0, 1, 1]), "std"),
        (lambda c: c.update(task="detector", margin_px=64), "margin_px"),
    ],
)
def test_a_faulty_card_names_the_key_and_the_file(folder, damage, named):
    card = json.loads((folder / "card.json").read_text())
    damage(card)
    (folder / "card.json").write_text(json.dumps(card))
    with pytest.raises(ModelError, match=named) as caught:
        load_card(folder)
    assert str(folder) in str(caught.value)


def test_a_card_that_is_not_json_or_missing(folder):
    (folder / "card.json").write_text("{")
    with pytest.raises(ModelError, match="JSON"):
        load_card(folder)
    (folder / "card.json").unlink()
    with pytest.raises(ModelError, match=r"card\.json"):
        load_card(folder)


def header(**tensors):
    """A safetensors file that is all header; its tensors (dtype, shape, begin, end) are claims."""
    entries = {n: dict(zip(("dtype", "shape", "data_offsets"), (d, s, [b, e]), strict=True))
               for n, (d, s, b, e) in tensors.items()}  # fmt: skip
    text = json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text


def pickled():
    file = io.BytesIO()
    torch.save({"a": torch.zeros(1)}, file)
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (pickled(), "is a pickle"),
        (pickle.dumps({"a": 1}), "is a pickle"),
        (b"", "no safetensors"),
        (b"not weights at all", "a header of [0-9]+ bytes"),
        ((2**62).to_bytes(8, "little") + b"{}", "a header of [0-9]+ bytes"),
        ((2).to_bytes(8, "little") + b"[]", "header is no table"),
        ((4).to_bytes(8, "little") + b"nope", "no safetensors"),
        (header(a=("F32", [10**6, 10**6, 10**6], 0, 4 * 10**18)), "claims 1000000 x 1000000 x 1000000"),
        (header(a=("F32", [10**9, 10**9], 0, 4)) + b"1234", "claims"),
        (header(a=("F32", [-1, -4], 0, 16)) + b"1" * 16, "claims"),
        (header(a=("F32", "huge", 0, 4)), "badly described|claims"),
        (header(a=("F32", [1], 0, 4)) + b"1234", "do not fit .* is missing"),
    ],
)
def test_weights_that_are_something_else_are_refused_before_they_are_loaded(
    folder, monkeypatch, content, reason
):
    (folder / WEIGHTS_NAME).write_bytes(content)
    card = load_card(folder).model_copy(update={"sha256": sha256_of(folder / WEIGHTS_NAME)})
    save_card(card, folder)

    def fail(*_):
        raise AssertionError("loaded")

    monkeypatch.setattr("safetensors.torch.load_file", fail)
    with pytest.raises(ModelError, match=reason) as caught:
        mitoscan.load_classifier(folder, "cpu")
    assert caught.value.path == folder / WEIGHTS_NAME
    assert caught.value.remedy


def test_weights_of_another_architecture_are_refused_with_what_differs(folder, tmp_path):
    other = random_model(tmp_path / "other", "detector")
    shutil.copy(other / WEIGHTS_NAME, folder / WEIGHTS_NAME)
    card = load_card(folder).model_copy(update={"sha256": sha256_of(folder / WEIGHTS_NAME)})
    save_card(card, folder)
    with pytest.raises(ModelError, match=r"do not fit .*backbone\.\S+ is missing.* more"):
        mitoscan.load_classifier(folder)
    save_card(card.model_copy(update={"backbone": "tf_efficientnet_lite4"}), folder)
    with pytest.raises(ModelError, match="do not fit"):
        mitoscan.load_classifier(folder)


@pytest.mark.parametrize(
    "backbone", ["nonsense", "hf-hub:some/model", "local-dir:/tmp", "resnet18", "\0", ""]
)
def test_a_backbone_that_is_none_or_would_be_fetched_is_refused(tmp_path, monkeypatch, backbone):
    def fail(*_, **__):
        raise AssertionError("asked the network")

    monkeypatch.setattr("socket.create_connection", fail)
    folder = random_model(tmp_path / "model", "detector")
    save_card(load_card(folder).model_copy(update={"backbone": backbone}), folder)
    with pytest.raises(ModelError):
        load_network(folder / WEIGHTS_NAME, load_card(folder))


def test_a_network_too_large_for_memory_is_refused_without_taking_any(folder):
    card = load_card(folder).model_copy(update={"backbone": "vit_gigantic_patch14_clip_224"})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ModelError, match="do not fit"):
        load_network(folder / WEIGHTS_NAME, card)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000, "KB"


def test_unknown_names_and_the_wrong_task_are_refused(folder):
    with pytest.raises(ModelError, match="no model named 'nonsense'"):
        find_model("nonsense", "detector")
    with pytest.raises(ModelError, match="is a classifier, not a detector"):
        find_model(folder, "detector")


def test_a_folder_that_shadows_a_shipped_name_is_refused(tmp_path, monkeypatch):
    name = DEFAULTS["classifier"]
    shutil.copytree(shipped_models()[name], tmp_path / name)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match="both"):
        find_model(name, "classifier")
    assert find_model(f"./{name}", "classifier")[1].name == name


def test_the_default_detector_on_a_gpu_is_the_accurate_one(monkeypatch):
    def default(task, device, name=None):
        return find_model(name, task, device)[1].name

    assert default("detector", "cpu") == "detector-lite0"
    assert default("detector", "cuda") == default("detector", "mps") == "detector-lite0-accurate"
    assert default("classifier", "cuda") == default("classifier", "cpu")
    assert default("detector", "cuda", "detector-lite0") == "detector-lite0", "a name is taken at its word"
    for backend, name in (("cpu", "detector-lite0"), ("cuda", "detector-lite0-accurate")):
        monkeypatch.setattr("mitoscan.models.zoo.pick_backend", lambda _, found=backend: found)
        assert default("detector", "auto") == name


def test_a_device_that_is_not_there_is_refused():
    for device in ("cuda", "mps"):
        available = torch.cuda.is_available() if device == "cuda" else torch.backends.mps.is_available()
        if not available:
            with pytest.raises(ConfigError, match=device):
                pick_backend(device)


def test_the_shipped_classifier_takes_crops_and_nothing_else():
    classifier = mitoscan.load_classifier(device="cpu")
    crops = np.random.default_rng(0).integers(0, 255, (5, 128, 128, 3), dtype=np.uint8)
    p, subtypes = classifier.predict(crops), classifier.predict_subtypes(crops)
    assert p.shape == (5,)
    assert subtypes.shape == (5, 8)
    np.testing.assert_allclose(subtypes.sum(1), 1, atol=1e-5)
    assert classifier.predict(crops[:0]).shape == (0,)
    assert 0 < classifier.threshold < 1
    for wrong in (crops[0], crops[:, :64], crops.astype(np.float32)):
        with pytest.raises(ValueError, match="uint8"):
            classifier.predict(wrong)


def test_a_classifier_without_subtypes_says_so():
    classifier = fakes.models().classifier
    classifier.card = classifier.card.model_copy(update={"subtypes": ()})
    with pytest.raises(ModelError, match="subtypes"):
        classifier.predict_subtypes(np.zeros((1, 128, 128, 3), np.uint8))


def test_the_shipped_runtimes_agree_on_every_default_model():
    for task in ("detector", "classifier"):
        folder, card = find_model(None, task)
        weights = checked_weights(folder, card)
        side = min(card.input_px, 256)
        images = np.random.default_rng(2).integers(0, 255, (2, side, side, 3), dtype=np.uint8)
        a = TorchRuntime(load_network(weights, card), "cpu")(images)
        np.testing.assert_allclose(a, OpenVinoRuntime(weights, card)(images), atol=1e-2)


class Narrow(torch.nn.Module):
    """Means of pictures, with memory for two at a time."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most, self.batches = most, []

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self.batches.append(len(images))
        if len(images) > self.most:
            raise torch.OutOfMemoryError
        means = images.float().mean(dim=(1, 2))
        return means[:, :1], means


def test_a_batch_that_does_not_fit_is_done_in_halves_and_nothing_is_lost():
    images = np.random.default_rng(0).integers(0, 255, (7, 16, 16, 3), dtype=np.uint8)
    network = Narrow(most=2)
    first, more = TorchRuntime(network, "cpu").with_embedding(images)
    np.testing.assert_allclose(more, images.mean(axis=(1, 2)), rtol=1e-5)
    np.testing.assert_allclose(first[:, 0], more[:, 0])
    assert sum(n for n in network.batches if n <= 2) == 7


def test_a_device_too_small_for_one_picture_says_what_to_do():
    images = np.zeros((3, 16, 16, 3), np.uint8)
    with pytest.raises(ConfigError, match=r"16 px.*--device cpu"):
        TorchRuntime(Narrow(most=0), "cpu")(images)


def test_batches_follow_the_free_memory(monkeypatch):
    runtime = TorchRuntime(Narrow(most=1), "cpu")
    assert images_at_once(runtime, 2048) == 1
    runtime._device = torch.device("cuda")
    for free_gb, batch in [(0.5, 1), (6, 3), (140, 8)]:
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _, free=free_gb: (free * 2**30, 0))
        assert images_at_once(runtime, 2048) == batch
    assert images_at_once(len, 2048) == 1


def test_torch_is_not_imported_where_openvino_has_its_graph():
    load = "from mitoscan.scan.pipeline import load_models; from mitoscan.config import ScanConfig"
    code = f"import sys; {load}; load_models(ScanConfig(device='cpu')); print('torch' in sys.modules)"
    for _ in range(2):  # the first may have to convert
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
