"""The benchmark's machinery on generated crops, with a tiny network."""

from __future__ import annotations

import json
from importlib.util import find_spec

import numpy as np
import pandas as pd
import pytest
import torch
from foundations import random_weights, stand_in
from PIL import Image

from mitoscan.config import build, load_config
from mitoscan.errors import ConfigError, ModelError
from mitoscan.learn import benchmark as bench
from mitoscan.learn.benchmark import run_benchmark, significance, table
from mitoscan.learn.benchmark_config import Benchmark, BenchmarkFile, Contestant
from mitoscan.learn.benchmark_fit import fit_contestant, predict
from mitoscan.learn.data import load_amibr
from mitoscan.models.foundation import FOUNDATIONS
from mitoscan.scan.classify import load_classifier

needs_peft = pytest.mark.skipif(find_spec("peft") is None, reason="needs the extra mitoscan[train]")
RNG = np.random.default_rng(3)
TINY = {"timm": "test_resnet", "pretrained": False, "input_px": 32}
QUICK = {"batch": 8, "epochs": 4, "learning_rate": 3e-3, "patience": 2}


@pytest.fixture
def amibr(tmp_path):
    """AMi-Br's layout: 72 crops of 18 slides of two data sets; AMF are dark, subtypes differ in hue."""
    rows = []
    for i in range(72):
        atypical, dataset = i % 3 == 0, ("MIDOG21", "TUPAC16")[i // 36]
        folder = tmp_path / "AMi-Br" / ("Atypical" if atypical else "Normal")
        folder.mkdir(parents=True, exist_ok=True)
        picture = np.full((128, 128, 3), 60 if atypical else 200) + RNG.integers(-20, 20, (128, 128, 3))
        Image.fromarray(picture.astype(np.uint8)).save(folder / f"{dataset}_{i}.png")
        label = ("AMF multipolar" if atypical else "NMF metaphase") if i % 2 else "NMF prometaphase"
        rows.append(
            {"slide": f"{i // 4:03}.tiff", "dataset": dataset, "uid": i, "expert1_label": label}
            | {"expert2_label": "NMF metaphase", "majority_atypical": atypical, "x": 9, "y": 9}
            | {f"expert{k}_atypical": atypical for k in (1, 2, 3)}
        )
    frame = pd.DataFrame(rows)
    frame.to_csv(tmp_path / "AMI-BR.csv")
    frame[frame["uid"] % 36 < 24].to_csv(tmp_path / "amibr_train_split.csv")
    return tmp_path


def config(*contestants: dict, **values) -> Benchmark:
    own = [{"network": TINY, "optimiser": QUICK} | c for c in contestants]
    return build(Benchmark, {"name": "b", "description": "d", "source": "s", "contestants": own} | values)


def test_a_benchmark_trains_each_fold_once_and_says_mean_and_sd(amibr, tmp_path, monkeypatch):
    plan = config(
        {"name": "a"}, {"name": "b", "sampler": "plain"}, split={"kind": "folds", "folds": 3}, baseline="a"
    )
    out = tmp_path / "out"
    results = run_benchmark(plan, amibr, out)
    assert len(results) == 6
    assert set(results["test"]) == {"AMi-Br test"}
    assert results["auroc"].min() > 0.8  # dark and light are easily told apart
    text = (out / "table.md").read_text()
    assert "Swin-B (published)" in text
    assert "±" in text
    assert "expert 1 1.0000" in text
    sensitivity = results[results["contestant"] == "a"]["sensitivity"]
    (cell,) = table(plan, results, called=True).query("model == 'a'")["AMi-Br test"]
    assert cell.startswith(f"{sensitivity.mean():.4f}±{sensitivity.std():.4f} / ")
    assert f"| a | {cell} |" in text
    assert (out / "a" / "fold0" / "log.csv").is_file()
    assert len(pd.read_csv(out / "tests.csv")) == 2  # the baseline and b, by two figures

    def never(*_):
        raise AssertionError("trained again")

    monkeypatch.setattr(bench, "build", never)
    again = run_benchmark(plan, amibr, out)
    assert np.allclose(again["auroc"], results["auroc"])
    changed = config({"name": "a", "sampler": "plain"}, split={"kind": "folds", "folds": 3})
    with pytest.raises(ConfigError, match="another config"):
        run_benchmark(changed, amibr, out)


def test_an_ensemble_is_measured_as_one_with_subtypes(amibr, tmp_path):
    plan = config(
        {"name": "n", "target": "subtypes", "loss": {"kind": "focal", "class_weighted": True}},
        split={"kind": "ensemble", "folds": 2},
    )
    results = run_benchmark(plan, amibr, tmp_path / "out")
    assert len(results) == 1
    text = (tmp_path / "out" / "table.md").read_text()
    assert "## Subtypes: n, AMi-Br test" in text
    assert "(published)" not in text
    assert (tmp_path / "out" / "confusion_n.png").is_file()


def test_a_domain_left_out_is_tested_on_and_never_trained_on(amibr, tmp_path):
    everything = {
        "name": "aware",
        "sampler": "domains",
        "hard_share": 0.5,
        "loss": {
            "kind": "adaptive_focal",
            "soft_labels": True,
            "mixup": 0.2,
            "contrastive": 0.1,
            "adversarial": 0.1,
        },
    }
    plan = config(everything, split={"kind": "leave_one_domain_out"})
    for split in bench._splits(plan, amibr):
        (tested,) = split.tests.values()
        assert set(tested.domain) == {split.name}
        assert split.name not in set(split.training.domain) | set(split.validation.domain)
    results = run_benchmark(plan, amibr, tmp_path / "out")
    assert set(results["split"]) == {"MIDOG21", "TUPAC16"}
    (mean,) = table(plan, results)["mean over domains"]
    assert mean.startswith(f"{results['balanced_accuracy'].mean():.4f}±")


def contestant(**values) -> Contestant:
    return build(Contestant, {"name": "c", "network": TINY, "optimiser": QUICK} | values)


def test_training_stops_early_and_gives_the_best_epoch(amibr, tmp_path):
    split = next(iter(bench._splits(config({"name": "a"}), amibr)))
    recipe = contestant(optimiser=QUICK | {"learning_rate": 1e-12, "epochs": 50, "patience": 2})
    network = bench.build(recipe)
    fit_contestant(recipe, network, split.training, split.validation, 0, tmp_path / "log.csv")
    rows = pd.read_csv(tmp_path / "log.csv")
    assert len(rows) < 50
    p, _ = predict(recipe, network, split.validation)
    called = p >= 0.5
    truth = split.validation.atypical
    reached = (called[truth].mean() + (~called[~truth]).mean()) / 2
    assert reached == pytest.approx(rows["balanced_accuracy"].max(), abs=1e-6)


def test_the_head_is_trained_alone_first_and_a_probe_never_moves_its_backbone(amibr, tmp_path):
    split = next(iter(bench._splits(config({"name": "a"}), amibr)))
    for recipe in (
        contestant(optimiser=QUICK | {"head_only_epochs": 4}),
        contestant(network=TINY | {"adapt": "probe"}),
    ):
        network = bench.build(recipe)
        before = [p.clone() for p in network.backbone.parameters()], network.head.weight.clone()
        fit_contestant(recipe, network, split.training, split.validation, 0, tmp_path / "log.csv")
        for old, new in zip(before[0], network.backbone.parameters(), strict=True):
            assert torch.equal(old, new)
        assert not torch.equal(before[1], network.head.weight)


@pytest.mark.parametrize("adapt", ["probe", pytest.param("lora", marks=needs_peft)])
def test_a_foundation_model_joins_in_by_probe_and_by_lora(amibr, tmp_path, monkeypatch, adapt):
    entry = stand_in()
    monkeypatch.setitem(FOUNDATIONS, entry.name, entry)
    weights = random_weights(entry, tmp_path / "weights", seed=0)
    network = {"foundation": entry.name, "adapt": adapt, "input_px": entry.input_px}
    plan = config({"name": adapt, "network": network}, split={"kind": "folds", "folds": 2})
    out = tmp_path / "out"
    assert len(run_benchmark(plan, amibr, out, weights_dir=weights)) == 2
    assert (out / "features").exists() == (adapt == "probe")  # a frozen backbone is run once
    adapted = bench._adapted(plan.contestants[0].network, weights)
    built = bench.build(plan.contestants[0], adapted)
    trained = {n for n, p in built.named_parameters() if p.requires_grad}
    assert all("lora" in n or n.startswith("head") for n in trained)
    assert any("lora" in n for n in trained) == (adapt == "lora")
    with pytest.raises(ConfigError, match="wants input_px 32, not 224"):
        bench._adapted(contestant(network=network | {"input_px": 224}).network, weights)

    # Each fold is a classifier like any other, and gives what the benchmark measured.
    model = out / adapt / "fold0" / "model"
    assert sum(f.stat().st_size for f in model.iterdir()) < 200_000  # never the backbone
    classifier = load_classifier(model, "cpu", weights)
    assert classifier.card.adaptation == adapt
    assert classifier.card.name == f"{adapt}-fold0"
    test = load_amibr(amibr, "test")
    stored = json.loads((out / adapt / "fold0" / "predictions.json").read_text())["shares"]["AMi-Br test"]
    np.testing.assert_allclose(classifier.predict(test.images), np.ravel(stored), atol=1e-4)


def test_significance_of_a_planted_difference():
    plan = config({"name": "a"}, {"name": "b"}, baseline="a", paired=[["a", "b"]])
    rows = [
        {"contestant": c, "split": f, "test": "t", "balanced_accuracy": v + f / 100, "auroc": v}
        for c, v in (("a", 0.6), ("b", 0.8))
        for f in range(5)
    ]
    found = significance(plan, pd.DataFrame(rows))
    by = found[found["figure"] == "balanced_accuracy"].set_index("kind")["p"]
    assert by["Wilcoxon signed-rank"] == 0.0625  # the least that five folds can give
    assert by["Mann–Whitney U"] == pytest.approx(2 / 252)
    assert "0.6200±0.0158" in table(plan, pd.DataFrame(rows)).iloc[-2]["t"]


@pytest.mark.parametrize("name", ["benchmark-amibr", "benchmark-subtypes", "benchmark-domains"])
def test_shipped_configs_are_whole_and_name_networks_that_exist(name):
    import timm

    shipped = load_config(BenchmarkFile, name).benchmark
    for c in shipped.contestants:
        if c.network.timm:
            assert timm.is_model(c.network.timm)


def test_faulty_configs_are_refused_with_the_value():
    with pytest.raises(ConfigError, match="same name"):
        config({"name": "a"}, {"name": "a"})
    with pytest.raises(ConfigError, match="not among the contestants: x"):
        config({"name": "a"}, baseline="x")
    with pytest.raises(ConfigError, match="timm or foundation"):
        config({"name": "a", "network": {}})
    with pytest.raises(ModelError, match="no_such_network"):
        bench.build(contestant(network={"timm": "no_such_network", "pretrained": False}))
