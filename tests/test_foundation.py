"""Foundation models: built as published, adapted by a probe or LoRA, saved without the backbone, and run."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import shutil
import sys
from dataclasses import replace

import fakes
import numpy as np
import pandas as pd
import pytest
import slides
import torch
from foundations import random_weights, stand_in
from safetensors.torch import load_file, save_file
from torch.nn import functional as F  # noqa: N812

import mitoscan
from mitoscan import cli
from mitoscan.errors import MissingExtraError, ModelError
from mitoscan.learn.adapt import export_adapter
from mitoscan.learn.features import cached_features
from mitoscan.learn.imagenet import load_imagenet
from mitoscan.models import foundation
from mitoscan.models.adapter import adapt, adapter_state, load_adapter_state
from mitoscan.models.card import WEIGHTS_NAME, Lora, ModelCard, load_card
from mitoscan.models.foundation import (
    END_TO_END,
    FOUNDATIONS,
    Backbone,
    find_weights,
    fingerprint,
    load_backbone,
)
from mitoscan.models.networks import CropNet
from mitoscan.models.runtime import OpenVinoRuntime, TorchRuntime, load_network
from mitoscan.slide.write import write_pyramid

needs_peft = pytest.mark.skipif(
    importlib.util.find_spec("peft") is None, reason="peft is not installed (extra train)"
)
ADAPTATIONS = [pytest.param(None, id="probe"), pytest.param(Lora(), id="lora", marks=needs_peft)]
SUBTYPES = 8
RNG = np.random.default_rng(0)


@pytest.fixture
def weights_dir(tmp_path, monkeypatch):
    """Random weights of the stand-in, which is known as a foundation model in this test only."""
    entry = stand_in()
    monkeypatch.setitem(FOUNDATIONS, entry.name, entry)
    return random_weights(entry, tmp_path / "weights", seed=0)


def crops(n=6):
    return RNG.integers(0, 255, (n, 128, 128, 3), dtype=np.uint8)


def train_some_steps(adapted, steps=3):
    images = torch.from_numpy(crops())
    target = torch.tensor([0.0, 1.0] * 3)
    changeable = [p for p in adapted.network.parameters() if p.requires_grad]
    optimiser = torch.optim.Adam(changeable, lr=1e-2)
    adapted.network.train()
    for _ in range(steps):
        optimiser.zero_grad()
        loss = F.binary_cross_entropy_with_logits(adapted.network(images)[:, 0], target)
        loss.backward()
        optimiser.step()
    adapted.network.eval()


def make_card(sha256, parameters):
    return fakes.card("classifier", name="adapted", sha256=sha256, parameters=parameters)


def make_binary_card(sha256, parameters):
    return make_card(sha256, parameters).model_copy(update={"subtypes": ()})


def outputs(network, images):
    with torch.inference_mode():
        return network(torch.from_numpy(images)).numpy()


# Published: UNI 303.4 M and 1024, UNI2-h 681.4 M and 1536, Virchow and Virchow2 631.2 M and 2560,
# Prov-GigaPath 1,134,953,984 and 1536, H-Optimus-0 and -1 1.13 B and 1536, H0-mini 85.7 M and 768.
@pytest.mark.parametrize(
    ("name", "millions", "width", "tokens"),
    [
        ("UNI", 303.4, 1024, 1 + 196),
        ("UNI2-h", 681.4, 1536, 9 + 256),
        ("Virchow", 631.2, 2560, 1 + 256),
        ("Virchow2", 631.2, 2560, 5 + 256),
        ("Prov-GigaPath", 1134.953984, 1536, 1 + 196),
        ("H-Optimus-0", 1134.8, 1536, 5 + 256),
        ("H-Optimus-1", 1134.8, 1536, 5 + 256),
        ("H0-mini", 85.7, 768, 5 + 256),
    ],
)
def test_each_foundation_model_is_built_as_published(name, millions, width, tokens):
    entry = FOUNDATIONS[name]
    with torch.device("meta"):
        backbone = Backbone(entry).eval()
        picture = torch.zeros(2, 3, entry.input_px, entry.input_px)
        seen = backbone.vit.forward_features(picture)
        features = backbone(picture)
    assert sum(p.numel() for p in backbone.parameters()) == entry.parameters
    assert entry.parameters / 1e6 == pytest.approx(millions, abs=0.05)
    assert features.shape == (2, width)
    assert backbone.num_features == entry.feature_width == width
    assert seen.shape[1] == tokens


def test_no_foundation_model_is_forgotten():
    assert len(FOUNDATIONS) == 8
    for entry in [*FOUNDATIONS.values(), *END_TO_END.values()]:
        assert entry.page.startswith("https://huggingface.co/")
        assert entry.licence
        assert entry.sources


# timm's model cards: 54.1 M, 304.3 M and 87.8 M with the head for 1000 classes.
@pytest.mark.parametrize(
    ("backbone", "millions"),
    [("tf_efficientnetv2_m", 54.1), ("vit_large_patch16_224", 304.3), ("swin_base_patch4_window7_224", 87.8)],
)
def test_each_end_to_end_network_is_built_as_published(backbone, millions):
    entry = END_TO_END[backbone]
    with torch.device("meta"):
        network = CropNet(backbone, entry.mean, entry.std, None, 0, resize_px=entry.input_px)
        logits = network(torch.zeros(2, 128, 128, 3))
    assert logits.shape == (2, 1)
    body = sum(p.numel() for p in network.backbone.parameters())
    assert body == entry.parameters
    assert (body + 1000 * (entry.feature_width + 1)) / 1e6 == pytest.approx(millions, abs=0.05)


def test_class_and_mean_tokens_leave_the_registers_out(weights_dir):
    backbone, _ = load_backbone(stand_in(), weights_dir)
    picture = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        tokens = backbone.vit.forward_features(picture)
        assert tokens.shape[1] == 1 + 4 + 4
        expected = torch.cat([tokens[:, 0], tokens[:, 5:].mean(1)], 1)
        assert torch.allclose(backbone(picture), expected)


@pytest.mark.parametrize("lora", ADAPTATIONS)
def test_a_saved_adapter_merged_into_its_backbone_gives_what_was_trained(weights_dir, tmp_path, lora):
    adapted = adapt("stand-in", lora=lora, subtypes=SUBTYPES, weights_dir=weights_dir)
    images = crops()
    untrained = outputs(adapted.network.eval(), images)
    train_some_steps(adapted)
    trained = outputs(adapted.network, images)
    assert np.abs(trained[:, 0] - untrained[:, 0]).max() > 0.05

    card = export_adapter(adapted, tmp_path / "model", make_card)
    assert load_card(tmp_path / "model") == card
    merged = load_network(tmp_path / "model" / WEIGHTS_NAME, card, weights_dir)
    np.testing.assert_allclose(outputs(merged.network, images), trained, atol=1e-5)
    assert not any("lora" in name for name, _ in merged.named_parameters())
    assert sum(p.numel() for p in merged.parameters()) == card.parameters

    again = adapt("stand-in", lora=lora, subtypes=SUBTYPES, weights_dir=weights_dir)
    load_adapter_state(again, adapter_state(adapted))
    np.testing.assert_allclose(outputs(again.network.eval(), images), trained, atol=1e-6)


@pytest.mark.parametrize("lora", ADAPTATIONS)
def test_the_backbone_neither_changes_nor_is_saved(weights_dir, tmp_path, lora):
    before = load_backbone(stand_in(), weights_dir)[0].vit.state_dict()
    adapted = adapt("stand-in", lora=lora, weights_dir=weights_dir)
    train_some_steps(adapted)
    after = {
        name.replace("base_layer.", ""): value
        for name, value in adapted.network.backbone.vit.state_dict().items()
        if "lora_" not in name
    }
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)

    export_adapter(adapted, tmp_path / "model", make_binary_card)
    saved = load_file(tmp_path / "model" / WEIGHTS_NAME)
    layers = {name.rsplit(".", 1)[0] for name in saved if "lora_" in name}
    assert {name for name in saved if "lora_" not in name} == {"head.weight", "head.bias"}
    names = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    expected = {f"backbone.vit.blocks.{i}.{n}" for i in range(3) for n in names} if lora else set()
    assert layers == expected
    assert (tmp_path / "model" / WEIGHTS_NAME).stat().st_size < 40_000
    assert sorted(p.name for p in (tmp_path / "model").iterdir()) == ["card.json", WEIGHTS_NAME]


@needs_peft
def test_untrained_lora_changes_nothing_and_trains_what_the_study_trained(weights_dir):
    probe = adapt("stand-in", weights_dir=weights_dir)
    adapted = adapt("stand-in", lora=Lora(), weights_dir=weights_dir)
    adapted.network.head.load_state_dict(probe.network.head.state_dict())
    images = crops()
    np.testing.assert_allclose(
        outputs(adapted.network.eval(), images), outputs(probe.network.eval(), images), atol=1e-6
    )
    changeable = {name for name, p in adapted.network.named_parameters() if p.requires_grad}
    assert changeable == {n for n, _ in adapted.network.named_parameters() if "lora_" in n or "head." in n}
    assert {n for n, p in probe.network.named_parameters() if p.requires_grad} == {"head.weight", "head.bias"}
    layer = adapted.network.backbone.vit.blocks[0].mlp.fc1
    assert (layer.r["default"], layer.scaling["default"], layer.lora_dropout["default"].p) == (8, 2.0, 0.3)


@pytest.mark.parametrize("lora", ADAPTATIONS)
def test_an_adapter_folder_is_a_classifier_like_any_other(weights_dir, tmp_path, monkeypatch, lora):
    monkeypatch.setenv("MITOSCAN_CACHE", str(tmp_path / "cache"))
    adapted = adapt("stand-in", lora=lora, subtypes=SUBTYPES, centre_px=96, weights_dir=weights_dir)
    train_some_steps(adapted)
    export_adapter(adapted, tmp_path / "model", make_card)
    classifier = mitoscan.load_classifier(tmp_path / "model", "cpu", weights_dir)
    images = crops(3)
    expected = torch.from_numpy(outputs(adapted.network, images))
    np.testing.assert_allclose(classifier.predict(images), expected[:, 0].sigmoid(), atol=1e-5)
    np.testing.assert_allclose(classifier.predict_subtypes(images), expected[:, 1:].softmax(1), atol=1e-5)
    assert not (tmp_path / "cache").exists()  # no copy of the backbone is left there


def test_a_slide_is_scanned_with_an_adapter_folder(weights_dir, tmp_path, monkeypatch, capsys):
    """In this process (``--workers 0``), since only it knows the stand-in."""
    monkeypatch.setenv("MITOSCAN_CACHE", str(tmp_path / "cache"))
    adapted = adapt("stand-in", subtypes=SUBTYPES, weights_dir=weights_dir)
    train_some_steps(adapted)
    card = export_adapter(adapted, tmp_path / "model", make_card)
    marks = [(210.0, 220.0), (500.0, 300.0), (350.0, 480.0)]
    picture = slides.with_marks(700, 600, marks)
    write_pyramid(tmp_path / "a.svs", picture, 0.25)
    pd.DataFrame(marks, columns=["x_l0", "y_l0"]).to_csv(tmp_path / "a.csv", index=False)
    words = f"mitoscan run {tmp_path}/a.svs -o {tmp_path}/out --candidates {tmp_path}/a.csv --subtypes"
    words += f" --classifier {tmp_path}/model --weights-dir {weights_dir} --device cpu --workers 0"
    monkeypatch.setattr("sys.argv", words.split())
    with contextlib.suppress(SystemExit):
        cli.main()
    assert not (tmp_path / "out" / "failures.csv").exists(), capsys.readouterr()
    found = pd.read_csv(tmp_path / "out" / "a" / "findings.csv").sort_values("y_l0")
    crops = np.stack(
        [picture[round(y) - 64 : round(y) + 64, round(x) - 64 : round(x) + 64] for x, y in marks]
    )
    expected = torch.from_numpy(outputs(adapted.network, crops))[:, 0].sigmoid()
    np.testing.assert_allclose(found["p_atypical"], expected, atol=1e-4)
    record = json.loads((tmp_path / "out" / "a" / "record.json").read_text())
    assert record["classifier"]["sha256"] == card.sha256


def test_the_cache_is_hit_the_second_time_and_missed_after_any_change(weights_dir, tmp_path, monkeypatch):
    passes = []
    forward = Backbone.forward
    monkeypatch.setattr(Backbone, "forward", lambda self, x: passes.append(len(x)) or forward(self, x))

    def computed(images, folder=weights_dir, **settings):
        passes.clear()
        adapted = adapt("stand-in", weights_dir=folder, **settings)
        found = cached_features(images, adapted, tmp_path / "cache", device="cpu", batch=4)
        with torch.inference_mode():
            expected = adapted.network.features(torch.from_numpy(images.copy())).numpy()
        passes.pop()
        np.testing.assert_allclose(found, expected, atol=1e-5)
        return sum(passes)

    images = crops(6)
    assert computed(images) == 6
    assert computed(images) == 0
    assert computed(images[::-1][:4]) == 0
    changed = images.copy()
    changed[2, 0, 0, 0] ^= 1
    assert computed(changed) == 1
    assert computed(np.concatenate([changed, changed, crops(1)])) == 1
    assert computed(images, centre_px=96) == 6
    assert computed(images, random_weights(stand_in(), tmp_path / "others", seed=1)) == 6
    monkeypatch.setitem(FOUNDATIONS, "stand-in", stand_in(mean=(0.5, 0.5, 0.5)))
    assert computed(images) == 6
    monkeypatch.setitem(FOUNDATIONS, "stand-in", stand_in(pooling="class", feature_width=24))
    assert computed(images) == 6


def test_an_interrupted_extraction_goes_on_where_it_was(weights_dir, tmp_path, monkeypatch):
    monkeypatch.setattr("mitoscan.learn.features.SHARD", 2)
    adapted = adapt("stand-in", weights_dir=weights_dir)
    images, done = crops(6), []

    def stop(n):
        done.append(n)
        if len(done) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cached_features(images, adapted, tmp_path / "cache", device="cpu", on_crops=stop)
    shards = list((tmp_path / "cache").rglob("*.safetensors"))
    assert len(shards) == 1
    done.clear()
    cached_features(images, adapted, tmp_path / "cache", device="cpu", on_crops=done.append)
    assert sum(done) == 4
    shards[0].write_bytes(b"damaged")
    done.clear()
    whole = cached_features(images, adapted, tmp_path / "cache", device="cpu", on_crops=done.append)
    assert sum(done) == 2
    assert whole.shape == (6, 48)
    assert cached_features(images[:0], adapted, tmp_path / "cache", device="cpu").shape == (0, 48)


@needs_peft
def test_only_training_with_lora_needs_peft(weights_dir, tmp_path, monkeypatch):
    adapted = adapt("stand-in", lora=Lora(), weights_dir=weights_dir)
    export_adapter(adapted, tmp_path / "model", make_binary_card)
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(MissingExtraError, match="peft"):
        adapt("stand-in", lora=Lora(), weights_dir=weights_dir)
    adapt("stand-in", weights_dir=weights_dir)
    images = crops(2)
    expected = torch.from_numpy(outputs(adapted.network.eval(), images))[:, 0].sigmoid()
    found = mitoscan.load_classifier(tmp_path / "model", "cpu", weights_dir).predict(images)
    np.testing.assert_allclose(found, expected, atol=1e-5)


@needs_peft
def test_features_that_training_changes_are_not_cached(weights_dir, tmp_path):
    adapted = adapt("stand-in", lora=Lora(), weights_dir=weights_dir)
    with pytest.raises(ValueError, match="LoRA"):
        cached_features(crops(1), adapted, tmp_path)


def test_both_file_formats_and_layouts_are_found_and_are_the_same_weights(weights_dir, tmp_path):
    entry = stand_in()
    state = load_file(weights_dir / "stand-in" / WEIGHTS_NAME)
    (tmp_path / "nobody" / "stand-in").mkdir(parents=True)
    torch.save(state, tmp_path / "nobody" / "stand-in" / "pytorch_model.bin")
    a, b = load_backbone(entry, weights_dir), load_backbone(entry, tmp_path)
    assert a[1] == b[1] == fingerprint(state)
    assert all(torch.equal(x, y) for x, y in zip(a[0].parameters(), b[0].parameters(), strict=True))
    state["norm.bias"] = state["norm.bias"] + 1e-3
    assert fingerprint(state) != a[1]


def test_weights_that_are_absent_damaged_dangerous_or_of_another_model_are_refused(weights_dir, tmp_path):
    with pytest.raises(ModelError, match="no weights of UNI here") as caught:
        load_backbone(FOUNDATIONS["UNI"], tmp_path)
    assert "https://huggingface.co/MahmoodLab/UNI" in caught.value.remedy
    with pytest.raises(ModelError, match="no foundation model named 'UNI3'"):
        adapt("UNI3", weights_dir=weights_dir)

    path = weights_dir / "stand-in" / WEIGHTS_NAME
    state = load_file(path)
    save_file({k: v for k, v in state.items() if "blocks.2" not in k}, path)
    with pytest.raises(ModelError, match="not those of stand-in") as caught:
        load_backbone(stand_in(), weights_dir)
    assert len(str(caught.value)) < 800
    path.write_bytes(b"no weights")
    with pytest.raises(ModelError, match="not readable as weights"):
        load_backbone(stand_in(), weights_dir)
    path.unlink()
    pickled = path.with_name("pytorch_model.bin")
    for content, said in ((print, "not readable as weights"), ({"a": 1}, "other things")):
        torch.save(content, pickled)
        with pytest.raises(ModelError, match=said):
            load_backbone(stand_in(), weights_dir)


def test_an_adapter_is_refused_on_another_backbone_or_with_a_card_that_does_not_fit(weights_dir, tmp_path):
    adapted = adapt("stand-in", weights_dir=weights_dir)
    export_adapter(adapted, tmp_path / "model", make_binary_card)
    others = random_weights(stand_in(), tmp_path / "others", seed=1)
    with pytest.raises(ModelError, match="trained on other weights of stand-in"):
        mitoscan.load_classifier(tmp_path / "model", "cpu", others)
    card = load_card(tmp_path / "model")
    for change, said in (({"subtypes": ("a", "b")}, "head.weight is 1 x 48, not 3 x 48"),):
        with pytest.raises(ModelError, match=said):
            load_network(tmp_path / "model" / WEIGHTS_NAME, card.model_copy(update=change), weights_dir)
    values = json.loads((tmp_path / "model" / "card.json").read_text()) | {"adaptation": "lora"}
    (tmp_path / "model" / "card.json").write_text(json.dumps(values))
    with pytest.raises(ModelError, match="lora goes with"):
        load_card(tmp_path / "model")


@needs_peft
def test_lora_of_other_settings_is_refused(weights_dir, tmp_path):
    adapted = adapt("stand-in", lora=Lora(rank=4), weights_dir=weights_dir)
    card = export_adapter(adapted, tmp_path / "model", make_binary_card)
    wrong = card.model_copy(update={"lora": Lora(rank=8)})
    with pytest.raises(ModelError, match="is 4 x 24, not 8 x 24"):
        load_network(tmp_path / "model" / WEIGHTS_NAME, wrong, weights_dir)
    with pytest.raises(ModelError, match="does not fit"):
        load_adapter_state(adapt("stand-in", lora=Lora(), weights_dir=weights_dir), adapter_state(adapted))


def test_the_card_names_backbone_and_licence(weights_dir, tmp_path):
    adapted = adapt("stand-in", weights_dir=weights_dir)
    card = export_adapter(adapted, tmp_path / "model", make_binary_card)
    assert isinstance(card, ModelCard)
    assert (card.backbone, card.adaptation, card.lora) == ("stand-in", "probe", None)
    assert card.backbone_sha256 == load_backbone(stand_in(), weights_dir)[1]
    assert "backbone stand-in: CC0-1.0" in card.licence
    assert (card.mean, card.resize_px, card.centre_px) == (foundation.IMAGENET_MEAN, 32, None)


def hub_error(kind, status):
    import httpx
    from huggingface_hub import errors

    response = httpx.Response(status, request=httpx.Request("GET", "https://huggingface.co/x"))
    return getattr(errors, kind)("refused", response=response)


@pytest.mark.parametrize("kind", ["GatedRepoError", "RepositoryNotFoundError"])
def test_refused_access_names_the_page_and_the_command(monkeypatch, kind):
    def refuse(*_):
        raise hub_error(kind, 403)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", refuse)
    with pytest.raises(ModelError, match="licence") as caught:
        find_weights(FOUNDATIONS["UNI2-h"])
    for needed in ("https://huggingface.co/MahmoodLab/UNI2-h", "hf auth login", "--weights-dir"):
        assert needed in caught.value.remedy


def test_the_hub_is_asked_for_the_better_format_first_and_may_be_out_of_reach(monkeypatch, tmp_path):
    from huggingface_hub.errors import LocalEntryNotFoundError

    asked = []

    def download(repo, name):
        asked.append((repo, name))
        if name.endswith(".safetensors"):
            raise hub_error("RemoteEntryNotFoundError", 404)
        return str(tmp_path / name)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    assert find_weights(FOUNDATIONS["Virchow"]) == tmp_path / "pytorch_model.bin"
    assert asked == [("paige-ai/Virchow", name) for name in foundation.WEIGHTS_NAMES]

    def offline(*_):
        raise LocalEntryNotFoundError("offline")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", offline)
    with pytest.raises(ModelError, match="cannot be reached"):
        find_weights(FOUNDATIONS["Virchow"])


def test_crops_are_enlarged_as_pil_enlarges_them():
    from PIL import Image

    network = CropNet("resnet10t", (0.0,) * 3, (1.0,) * 3, None, 0, resize_px=224)
    picture = crops(1)
    ours = network.normalise(torch.from_numpy(picture))[0].permute(1, 2, 0).numpy() * 255
    theirs = np.asarray(Image.fromarray(picture[0]).resize((224, 224), Image.Resampling.BILINEAR))
    np.testing.assert_allclose(ours, theirs, atol=1.1)


def test_a_transformer_that_enlarges_its_crops_runs_alike_in_torch_and_openvino(tmp_path, monkeypatch):
    monkeypatch.setenv("MITOSCAN_CACHE", str(tmp_path / "cache"))
    card = fakes.card("classifier", backbone="test_vit", resize_px=160, centre_px=None)
    network = CropNet(card.backbone, card.mean, card.std, None, len(card.subtypes), resize_px=160)
    for value in network.parameters():
        torch.nn.init.normal_(value, std=0.05)
    save_file(network.state_dict(), tmp_path / WEIGHTS_NAME)
    images = crops(2)
    a = TorchRuntime(load_network(tmp_path / WEIGHTS_NAME, card), "cpu")(images)
    np.testing.assert_allclose(a, OpenVinoRuntime(tmp_path / WEIGHTS_NAME, card)(images), atol=1e-3)
    assert a.std() > 1e-3


def test_end_to_end_networks_start_from_a_folder_of_weights(tmp_path, monkeypatch):
    entry = replace(END_TO_END["vit_large_patch16_224"], name="tiny", architecture="vit_tiny_patch16_224")
    monkeypatch.setitem(END_TO_END, entry.architecture, entry)
    import timm

    torch.manual_seed(3)
    state = timm.create_model(entry.architecture).state_dict()
    (tmp_path / "tiny").mkdir()
    save_file(state, tmp_path / "tiny" / WEIGHTS_NAME)
    network = CropNet(entry.architecture, entry.mean, entry.std, None, 0, resize_px=224)
    load_imagenet(network, entry.architecture, tmp_path)
    assert torch.equal(network.backbone.blocks[0].attn.qkv.weight, state["blocks.0.attn.qkv.weight"])
    shutil.rmtree(tmp_path / "tiny")
    with pytest.raises(ModelError, match="no weights of tiny"):
        load_imagenet(network, entry.architecture, tmp_path)
