"""``mitoscan benchmark``: train every contestant on every split, measure on the test sets, compare."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import timm
from torch import nn

from mitoscan.errors import ConfigError, ModelError
from mitoscan.learn import plots
from mitoscan.learn.adapt import export_adapter
from mitoscan.learn.benchmark_config import Benchmark, Contestant, Ensemble, Folds, LeaveOneDomainOut, Network
from mitoscan.learn.benchmark_fit import StudyNet, fit_contestant, predict
from mitoscan.learn.classifier_metrics import confusion, human_ceiling, subtype_figures
from mitoscan.learn.data import CropSet, Float, load_amibr
from mitoscan.learn.evaluate_classifier import TEST_SETS, load_test_sets, markdown_table, subtype_table
from mitoscan.learn.features import cached_features
from mitoscan.learn.metrics import binary_metrics, counts
from mitoscan.learn.published import BENCHMARK
from mitoscan.learn.train import INTENDED_USE, LICENCE
from mitoscan.models.adapter import Adapted, adapt
from mitoscan.models.card import SUBTYPES, Lora, ModelCard, OperatingPoint, Training
from mitoscan.report.atomic import write_atomically

log = logging.getLogger(__name__)

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
NOT_NORMALISED = (1.0, 1.0, 1.0)
"""Features are no pictures."""
WILCOXON, MANN_WHITNEY = "Wilcoxon signed-rank", "Mann–Whitney U"
CROP_PX = 128
"""Side of the published crops."""
FIGURES = ("balanced_accuracy", "auroc", "sensitivity", "specificity")


@dataclass(frozen=True)
class Split:
    """One training of a contestant, and what it is measured on."""

    name: str
    training: CropSet
    validation: CropSet
    tests: Mapping[str, CropSet]


def run_benchmark(
    config: Benchmark, data: Path, out: Path, only: tuple[str, ...] = (), weights_dir: Path | None = None
) -> pd.DataFrame:
    """Run a benchmark; a contestant's fold that is there already is not trained again.

    Parameters
    ----------
    config
        See ``benchmark_config``.
    data
        The AMi-Br_Benchmark folder as cloned, or a folder with it as ``amf/``.
    out
        Folder for ``CONTESTANT/FOLD/`` (log, predictions; ``model/``, a classifier for ``mitoscan run``, of
        foundation models), results.csv, table.md, tests.csv and pictures.
    only
        Names of contestants; none: all.
    weights_dir
        Folder with the foundation models' weights, see ``models.foundation.find_weights``. None: their hub.

    Returns
    -------
    DataFrame
        One row a contestant, fold and test set: balanced accuracy, AUROC, sensitivity, specificity at ½.

    Raises
    ------
    ConfigError, DataError, ModelError
        For an unknown contestant, missing data, or starting weights that cannot be had.
    """
    if unknown := set(only) - {c.name for c in config.contestants}:
        raise ConfigError(f"no contestant {', '.join(sorted(unknown))} in {config.name}")
    splits = list(_splits(config, data))
    out.mkdir(parents=True, exist_ok=True)
    rows, scores = [], {}
    for contestant in config.contestants:
        if only and contestant.name not in only:
            continue
        found = [_predictions(config, contestant, split, out, weights_dir) for split in splits]
        if isinstance(config.split, Ensemble):
            found = [{name: np.mean([f[name] for f in found], axis=0) for name in found[0]}]
            splits_of = splits[:1]
        else:
            splits_of = splits
        scores[contestant.name] = found
        rows += [
            {"contestant": contestant.name, "split": split.name, "test": test}
            | _figures(_p_atypical(contestant, shares[test]), crops.atypical)
            for split, shares in zip(splits_of, found, strict=True)
            for test, crops in split.tests.items()
        ]
    results = pd.DataFrame(rows)
    _write(config, results, scores, splits, out)
    return results


def _splits(config: Benchmark, data: Path) -> Iterator[Split]:
    from sklearn.model_selection import StratifiedGroupKFold

    folder = data / "amf" if (data / "amf").is_dir() else data
    how = config.split
    if isinstance(how, LeaveOneDomainOut):
        crops = load_amibr(folder, "train", how.domain)
        for domain in np.unique(crops.domain):
            rest, left = np.flatnonzero(crops.domain != domain), np.flatnonzero(crops.domain == domain)
            seen = crops.take(rest)
            folds = StratifiedGroupKFold(5, shuffle=True, random_state=config.seed)
            train, held_out = next(folds.split(seen.images, seen.atypical, seen.slide))
            yield Split(str(domain), seen.take(train), seen.take(held_out), {str(domain): crops.take(left)})
        return
    crops, tests = load_amibr(folder, "train"), load_test_sets(data)
    folds = StratifiedGroupKFold(how.folds, shuffle=True, random_state=config.seed)
    for number, (train, held_out) in enumerate(folds.split(crops.images, crops.atypical, crops.slide)):
        yield Split(f"fold{number}", crops.take(train), crops.take(held_out), tests)


def _predictions(
    config: Benchmark, contestant: Contestant, split: Split, out: Path, weights_dir: Path | None
) -> dict[str, Float]:
    """Give (N, 1) p_atypical or (N, 8) subtypes' shares on each test set; trained unless they are there."""
    folder = out / contestant.name / split.name
    path = folder / "predictions.json"
    if path.is_file():
        stored = json.loads(path.read_text(encoding="utf-8"))
        if stored["contestant"] != contestant.model_dump(mode="json"):
            raise ConfigError("was trained with another config", path=path, remedy="Choose another -o.")
        return {name: np.array(values) for name, values in stored["shares"].items()}
    log.info("%s, %s: training", contestant.name, split.name)
    folder.mkdir(parents=True, exist_ok=True)
    adapted = _adapted(contestant.network, weights_dir)
    network = build(contestant, adapted)
    if adapted is not None and adapted.lora is None:
        network, split = _on_features(network, adapted, split, out / "features")
    fit_contestant(contestant, network, split.training, split.validation, config.seed, folder / "log.csv")
    shares = {name: _shares(contestant, network, crops) for name, crops in split.tests.items()}
    if adapted is not None and contestant.target == "binary":
        adapted.network.head.load_state_dict(network.head.state_dict())
        p, _ = predict(contestant, network, split.validation)
        _export(config, contestant, adapted, split, p, folder / "model")
    stored = {
        "contestant": contestant.model_dump(mode="json"),
        "shares": {name: values.round(6).tolist() for name, values in shares.items()},
    }
    write_atomically(path, json.dumps(stored).encode())
    return shares


def _shares(contestant: Contestant, network: StudyNet, crops: CropSet) -> Float:
    p, logits = predict(contestant, network, crops)
    if contestant.target == "binary":
        return p[:, None]
    exp = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares: Float = exp / exp.sum(axis=1, keepdims=True)
    return shares


def _p_atypical(contestant: Contestant, shares: Float) -> Float:
    first = 0 if contestant.target == "binary" else SUBTYPES.index("bipolar_asymmetric")
    p: Float = shares[:, first:].sum(axis=1)
    return p


def _on_features(network: StudyNet, adapted: Adapted, split: Split, cache: Path) -> tuple[StudyNet, Split]:
    """Run the frozen backbone once over every crop, and leave only the head to train.

    The crops are not augmented then: their features are computed once and kept in ``cache``.
    """

    def features(crops: CropSet) -> CropSet:
        rows = cached_features(crops.images, adapted, cache)
        return replace(crops, images=rows)  # type: ignore[arg-type]  # they stand for the crops from here on

    head = StudyNet(
        nn.Identity(), network.head.in_features, network.head.out_features, 1, NOT_NORMALISED, NOT_NORMALISED
    )
    tests = {name: features(crops) for name, crops in split.tests.items()}
    return head, Split(split.name, features(split.training), features(split.validation), tests)


def _export(
    config: Benchmark, contestant: Contestant, adapted: Adapted, split: Split, p: Float, folder: Path
) -> None:
    """Write head and adapters as a classifier for ``mitoscan run``; ``p``, (N,), is of the validation."""
    atypical, called = split.validation.atypical, p >= 0.5
    where = f"AMi-Br training part, {split.name}: its validation slides, which chose the epoch"
    about = "AMi-Br, published training part" + (
        "" if split.name.startswith("fold") else f", not {split.name}"
    )

    def card(sha256: str, parameters: int) -> ModelCard:
        return ModelCard(
            name=f"{re.sub(r'[^A-Za-z0-9._-]+', '-', contestant.name).strip('-.')}-{split.name}",
            task="classifier",
            description=f"{contestant.name} of {config.name}",
            backbone=adapted.foundation.name,
            mpp=0.25,
            input_px=CROP_PX,
            mean=adapted.foundation.mean,
            std=adapted.foundation.std,
            classes=("NMF", "AMF"),
            operating_point=OperatingPoint(threshold=0.5, criterion="as published", dataset=where),
            validation=counts(called, atypical),
            parameters=parameters,
            training=Training(
                command="mitoscan benchmark",
                config=config.name,
                seed=config.seed,
                data=about,
                data_use="research use",
            ),
            licence=LICENCE,
            intended_use=INTENDED_USE,
            sha256=sha256,
        )

    export_adapter(adapted, folder, card)


def build(contestant: Contestant, adapted: Adapted | None = None) -> StudyNet:
    """Give a contestant's network with its starting weights.

    Parameters
    ----------
    contestant
        The recipe.
    adapted
        Its foundation model, where it is one.

    Raises
    ------
    ModelError
        When the network is unknown or its weights cannot be had.
    """
    how = contestant.network
    outputs = 1 if contestant.target == "binary" else len(SUBTYPES)
    if adapted is None:
        body, width, mean, std = _timm(how)
    else:
        entry = adapted.foundation
        body, width, mean, std = adapted.network.backbone, entry.feature_width, entry.mean, entry.std
    if how.adapt == "probe":
        body.requires_grad_(requires_grad=False)
    return StudyNet(body, width, outputs, how.input_px, mean, std, how.dropout)


def _timm(how: Network) -> tuple[nn.Module, int, tuple[float, ...], tuple[float, ...]]:
    try:
        body: Any = timm.create_model(str(how.timm), pretrained=how.pretrained, num_classes=0)
    except RuntimeError as exc:
        raise ModelError(f"timm knows no {how.timm}: {exc}") from exc
    except OSError as exc:
        raise ModelError(
            f"the starting weights of {how.timm} cannot be fetched: {exc}",
            remedy="Fetch them on a machine with a network and set HF_HOME to that cache.",
        ) from exc
    return body, body.num_features, IMAGENET_MEAN, IMAGENET_STD


def _adapted(how: Network, weights_dir: Path | None) -> Adapted | None:
    """Load the foundation model that a contestant adapts; None: it is none."""
    if how.foundation is None:
        return None
    adapted = adapt(how.foundation, lora=Lora() if how.adapt == "lora" else None, weights_dir=weights_dir)
    entry = adapted.foundation
    if how.input_px != entry.input_px:
        raise ConfigError(f"{entry.name} wants input_px {entry.input_px}, not {how.input_px}")
    return adapted


def _figures(p: Float, atypical: npt.NDArray[np.bool_]) -> dict[str, float]:
    at = binary_metrics(p, atypical, 0.5)
    return {name: getattr(at, name) for name in FIGURES}


def significance(config: Benchmark, results: pd.DataFrame) -> pd.DataFrame:
    """Compare balanced accuracy and AUROC over folds: Wilcoxon for the pairs, Mann–Whitney for the baseline.

    With five folds the Wilcoxon test cannot give less than p = .0625, two-sided.
    """
    from scipy.stats import mannwhitneyu, wilcoxon

    here = set(results["contestant"])
    rows = []
    for test, part in results.groupby("test", sort=False):
        for figure in FIGURES[:2]:
            by_name = {str(name): group[figure].to_numpy() for name, group in part.groupby("contestant")}
            pairs = [(WILCOXON, a, b) for a, b in config.paired if {a, b} <= here]
            if config.baseline in by_name:
                pairs += [(MANN_WHITNEY, config.baseline, c) for c in by_name if c != config.baseline]
            for kind, a, b in pairs:
                x, y = by_name[a], by_name[b]
                if len(x) < 2:
                    continue
                p = (wilcoxon(x, y) if kind == WILCOXON else mannwhitneyu(x, y)).pvalue
                p = 1.0 if np.allclose(x, y) else float(p)
                rows.append({"test": test, "figure": figure, "kind": kind, "first": a, "second": b, "p": p})
    return pd.DataFrame(rows, columns=["test", "figure", "kind", "first", "second", "p"])


def table(config: Benchmark, results: pd.DataFrame, *, called: bool = False) -> pd.DataFrame:
    """Give mean ± sd over splits: balanced accuracy / AUROC in the published layout, published rows first.

    ``called``: sensitivity / specificity instead, which are not at hand for the published rows.
    """
    tests = list(dict.fromkeys(results["test"]))
    rows: list[dict[str, str]] = []
    if isinstance(config.split, Folds) and not called:
        rows = [
            {"model": f"{r.model} (published)"}
            | {
                t: f"{ba:.4f} / {auc:.4f}"
                for t, (ba, auc) in zip(TEST_SETS, r[1:], strict=True)
                if t in tests
            }
            for r in BENCHMARK
        ]
    figures = FIGURES[2:] if called else FIGURES[:2]
    for name, part in results.groupby("contestant", sort=False):
        cells = {str(test): _cell(group, figures) for test, group in part.groupby("test", sort=False)}
        if isinstance(config.split, LeaveOneDomainOut):
            cells["mean over domains"] = _cell(part, figures)
        rows.append({"model": str(name), **cells})
    return pd.DataFrame(rows).fillna("")


def _cell(rows: pd.DataFrame, figures: tuple[str, ...]) -> str:
    """Mean of each figure, with the standard deviation where there are several rows."""
    means = [f"{rows[f].mean():.4f}" + (f"±{rows[f].std():.4f}" if len(rows) > 1 else "") for f in figures]
    return " / ".join(means)


def _write(
    config: Benchmark,
    results: pd.DataFrame,
    scores: Mapping[str, list[dict[str, Float]]],
    splits: list[Split],
    out: Path,
) -> None:
    write_atomically(out / "results.csv", results.to_csv(index=False).encode())
    write_atomically(out / "tests.csv", significance(config, results).to_csv(index=False).encode())
    lines = [f"# {config.name}\n", f"{config.description} ({config.source}; seed {config.seed})\n"]
    lines += ["Balanced accuracy / AUROC:\n", markdown_table(table(config, results))]
    lines += ["\nSensitivity / specificity at ½:\n", markdown_table(table(config, results, called=True))]
    targets = {c.name: c for c in config.contestants}
    for test, crops in {name: crops for split in splits for name, crops in split.tests.items()}.items():
        curves = {
            name: (_p_atypical(targets[name], _mean_of(found, test)), crops.atypical)
            for name, found in scores.items()
        }
        plots.roc(curves, f"{test} (mean of the splits' scores)", out / f"roc_{test.replace(' ', '_')}.png")
        lines += _ceiling(test, crops)
        for name, found in scores.items():
            if targets[name].target == "subtypes" and (crops.subtype >= 0).any():
                shares = _mean_of(found, test)
                table_of = subtype_table(subtype_figures(shares, crops.subtype))
                lines += [f"\n## Subtypes: {name}, {test}\n", markdown_table(table_of)]
                plots.confusion_matrix(
                    confusion(shares.argmax(axis=1), crops.subtype), SUBTYPES, out / f"confusion_{name}.png"
                )
    write_atomically(out / "table.md", ("\n".join(lines) + "\n").encode())


def _mean_of(found: list[dict[str, Float]], test: str) -> Float:
    """Mean of the shares of all splits that have this test set."""
    mean: Float = np.mean([f[test] for f in found if test in f], axis=0)
    return mean


def _ceiling(test: str, crops: CropSet) -> list[str]:
    experts = human_ceiling(crops.votes)
    said = "; ".join(f"expert {e.expert} {e.balanced_accuracy:.4f} (n = {e.n})" for e in experts)
    return (
        [f"\n{test}: balanced accuracy of each expert against the majority of the others: {said}."]
        if said
        else []
    )
