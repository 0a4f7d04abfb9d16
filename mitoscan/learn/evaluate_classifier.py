"""``mitoscan evaluate classifier``: models beside the published ones and the experts, in one folder."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from mitoscan.learn import plots
from mitoscan.learn.classifier_metrics import (
    ExpertFigures,
    Figure,
    Float,
    SubtypeFigures,
    binary_figures,
    confusion,
    human_ceiling,
    paired_difference,
    subtype_figures,
    with_intervals,
    within_label,
)
from mitoscan.learn.data import CropSet, load_amibr, load_atnorm
from mitoscan.learn.metrics import binary_metrics
from mitoscan.learn.published import BENCHMARK, SUBTYPE_AUC
from mitoscan.models.card import SUBTYPES
from mitoscan.report.atomic import write_atomically
from mitoscan.scan.classify import Classifier

TEST_SETS = ("AMi-Br test", "AtNorM-Br", "AtNorM-MD")
"""In the published table's order."""


def load_test_sets(data: Path) -> dict[str, CropSet]:
    """Read what there is of the three published test sets.

    Parameters
    ----------
    data
        The AMi-Br_Benchmark folder as cloned, or a folder with it as ``amf/``.

    Raises
    ------
    DataError
        When there is none, or one is faulty.
    """
    folder = data / "amf" if (data / "amf").is_dir() else data
    sets = {"AMi-Br test": load_amibr(folder, "test")} if (folder / "AMi-Br").is_dir() else {}
    sets |= {name: load_atnorm(folder, name) for name in TEST_SETS[1:] if (folder / name).is_dir()}
    return sets or {"AMi-Br test": load_amibr(folder, "test")}


@dataclass(frozen=True)
class Measured:
    """One model on one set."""

    model: str
    data: str
    n: int
    atypical: int
    threshold: float
    by_slide: bool
    """Whether the intervals come from resampled slides; else from crops."""
    figures: dict[str, Figure]
    subtypes: list[SubtypeFigures]


@dataclass(frozen=True)
class Comparison:
    """First model minus another, on the same crops."""

    model: str
    other: str
    data: str
    differences: dict[str, Figure]


@dataclass(frozen=True)
class FoldsMeasured:
    """The folds of one training on one set: mean and standard deviation."""

    model: str
    data: str
    folds: int
    threshold: str
    """``½``, as published, or ``the card's``: each fold at its own, chosen on its held-out slides."""
    mean: dict[str, float]
    sd: dict[str, float]

    def cell(self, figure: str) -> str:
        """Mean ± sd."""
        return f"{self.mean[figure]:.4f}±{self.sd[figure]:.4f}"


@dataclass(frozen=True)
class Evaluation:
    """All that was measured."""

    rows: list[Measured]
    comparisons: list[Comparison]
    experts: dict[str, list[ExpertFigures]]
    folds: list[FoldsMeasured] = field(default_factory=list)


def evaluate_classifiers(
    classifiers: Mapping[str, Classifier],
    sets: Mapping[str, CropSet],
    out: Path,
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> Evaluation:
    """Measure classifiers at their cards' thresholds; write tables, pictures and predictions to ``out``.

    Parameters
    ----------
    classifiers
        By name; the first is compared with each of the others. Folds of one training, NAME-fold0 and so on as
        ``mitoscan train classifier`` names them, are summed up besides.
    sets
        Labelled crops by name; see ``load_test_sets``.
    out
        Folder for evaluation.json, rows.csv, predictions.csv, evaluation.md, evaluation.html and pictures.
    resamples, seed
        Of the bootstrap.

    Raises
    ------
    OutputError
        When ``out`` cannot be written.
    """
    out.mkdir(parents=True, exist_ok=True)
    p = {(m, d): c.predict(crops.images) for m, c in classifiers.items() for d, crops in sets.items()}
    rows, comparisons = [], []
    for (model, data), scores in p.items():
        rows.append(_measure(model, classifiers[model], data, sets[data], scores, resamples, seed, out))
        first = next(iter(classifiers))
        of_one_training = _is_fold(model) and _family(model) == _family(first)
        if model != first and not of_one_training:
            thresholds = classifiers[first].threshold, classifiers[model].threshold
            gap = paired_difference(
                p[first, data], scores, thresholds, sets[data], resamples=resamples, seed=seed
            )
            comparisons.append(Comparison(first, model, data, gap))
    own = {name: classifier.threshold for name, classifier in classifiers.items()}
    experts = {name: human_ceiling(crops.votes) for name, crops in sets.items()}
    result = Evaluation(
        rows, comparisons, {k: v for k, v in experts.items() if v}, measure_folds(p, sets, own)
    )
    for data, crops in sets.items():
        curves = {m: (p[m, data], crops.atypical) for m in classifiers}
        plots.roc(curves, data, out / f"roc_{_slug(data)}.png")
    _write(result, out)
    predictions = [
        pd.DataFrame(
            {"model": m, "data": d, "slide": sets[d].slide, "atypical": sets[d].atypical, "p_atypical": v}
        )
        for (m, d), v in p.items()
    ]
    write_atomically(out / "predictions.csv", pd.concat(predictions).to_csv(index=False).encode())
    return result


def _measure(
    model: str,
    classifier: Classifier,
    data: str,
    crops: CropSet,
    p: Float,
    resamples: int,
    seed: int,
    out: Path,
) -> Measured:
    threshold, slug = classifier.threshold, f"{_slug(model)}_{_slug(data)}"
    figures = with_intervals(
        lambda index: binary_figures(p[index], crops.atypical[index], threshold),
        crops,
        resamples=resamples,
        seed=seed,
    )
    plots.reliability(p, crops.atypical, f"p_atypical, {model}, {data}", out / f"reliability_{slug}.png")
    subtypes: list[SubtypeFigures] = []
    if classifier.card.subtypes and (crops.subtype >= 0).any():
        shares = classifier.predict_subtypes(crops.images)
        called = within_label(p, shares, threshold)
        subtypes = subtype_figures(shares, crops.subtype, called)
        plots.confusion_matrix(confusion(called, crops.subtype), SUBTYPES, out / f"confusion_{slug}.png")
    return Measured(
        model=model,
        data=data,
        n=len(crops),
        atypical=int(crops.atypical.sum()),
        threshold=threshold,
        by_slide=crops.slides_known,
        figures=figures,
        subtypes=subtypes,
    )


def _family(model: str) -> str:
    """Name of the training that a fold is of; any other model's own name."""
    return re.sub(r"-fold\d+$", "", model)


def _is_fold(model: str) -> bool:
    return _family(model) != model


def measure_folds(
    p: Mapping[tuple[str, str], Float], sets: Mapping[str, CropSet], own: Mapping[str, float]
) -> list[FoldsMeasured]:
    """Sum up the folds of each training on each set, at threshold ½ and at the cards' thresholds.

    Parameters
    ----------
    p
        p_atypical, (N,), by model and set.
    sets
        The crops by name.
    own
        The cards' thresholds by model.
    """
    found = []
    for family in dict.fromkeys(_family(model) for model in own):
        members = [model for model in own if _is_fold(model) and _family(model) == family]
        for at in ("½", "the card's") if len(members) > 1 else ():
            for data, crops in sets.items():
                cuts = [own[m] if at != "½" else 0.5 for m in members]
                figures = [
                    asdict(binary_metrics(p[m, data], crops.atypical, cut))
                    for m, cut in zip(members, cuts, strict=True)
                ]
                found.append(
                    FoldsMeasured(
                        model=family,
                        data=data,
                        folds=len(members),
                        threshold=at,
                        mean={name: float(np.mean([f[name] for f in figures])) for name in figures[0]},
                        sd={name: float(np.std([f[name] for f in figures], ddof=1)) for name in figures[0]},
                    )
                )
    return found


def _slug(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-." else "_" for c in name)


def published_table(result: Evaluation) -> pd.DataFrame:
    """Give the published table, balanced accuracy / AUROC by test set, with our rows beneath."""
    table = [
        [row.model, *(f"{ba:.4f} / {auc:.4f}" for ba, auc in (row.amibr, row.atnorm_br, row.atnorm_md))]
        for row in BENCHMARK
    ]
    for model, at in dict.fromkeys((f.model, f.threshold) for f in result.folds):
        of = {f.data: f for f in result.folds if (f.model, f.threshold) == (model, at)}
        cells = [
            f"{of[d].cell('balanced_accuracy')} / {of[d].cell('auroc')}" if d in of else "not measured"
            for d in TEST_SETS
        ]
        table.append([f"{model} (this tool, {next(iter(of.values())).folds} folds, at {at})", *cells])
    in_folds = {f.model for f in result.folds}
    for model in dict.fromkeys(row.model for row in result.rows):
        if _is_fold(model) and _family(model) in in_folds:
            continue
        own = {r.data: r.figures for r in result.rows if r.model == model}
        cells = [
            f"{own[d]['balanced_accuracy'].value:.4f} / {own[d]['auroc'].value:.4f}"
            if d in own
            else "not measured"
            for d in TEST_SETS
        ]
        table.append([f"{model} (this tool, one model)", *cells])
    return pd.DataFrame(table, columns=["model", *TEST_SETS])


def figures_table(result: Evaluation) -> pd.DataFrame:
    """Give all binary figures with their intervals, a row a model and set."""
    return pd.DataFrame(
        [
            {
                "model": r.model,
                "data": r.data,
                "crops (AMF)": f"{r.n} ({r.atypical})",
                "threshold": r.threshold,
            }
            | {name.replace("_", " "): str(figure) for name, figure in r.figures.items()}
            | {"intervals by": "slide" if r.by_slide else "crop"}
            for r in result.rows
        ]
    )


def folds_table(result: Evaluation) -> pd.DataFrame:
    """Give mean ± sd over folds of the four figures that are published."""
    return pd.DataFrame(
        [
            {"model": f.model, "data": f.data, "folds": f.folds, "threshold": f.threshold}
            | {name.replace("_", " "): f.cell(name) for name in f.mean}
            for f in result.folds
        ]
    )


def subtype_table(subtypes: list[SubtypeFigures]) -> pd.DataFrame:
    """Give one row a subtype, and the mean AUC, beside the published one."""
    table = pd.DataFrame([asdict(s) for s in subtypes]).round(4)
    table["published AUC"] = [SUBTYPE_AUC[s.subtype] for s in subtypes]
    mean = {"subtype": "mean", "auc": table["auc"].mean(), "published AUC": table["published AUC"].mean()}
    whole = pd.concat([table, pd.DataFrame([mean])], ignore_index=True).round(4)
    return whole.astype({"n": "Int64"})


def _sections(result: Evaluation) -> list[tuple[str, pd.DataFrame]]:
    sections = [
        ("Balanced accuracy / AUROC beside the published ones (five-fold means)", published_table(result)),
        ("All figures at the card's threshold, 95 % intervals", figures_table(result)),
    ]
    if result.folds:
        sections.insert(1, ("Folds, mean ± sd", folds_table(result)))
    if result.experts:
        rows = [{"data": d, **asdict(e)} for d, experts in result.experts.items() for e in experts]
        sections.append(("Experts, each against the majority of the others", pd.DataFrame(rows).round(4)))
    if result.comparisons:
        rows = [
            {"model": c.model, "minus": c.other, "data": c.data}
            | {k: str(v) for k, v in c.differences.items()}
            for c in result.comparisons
        ]
        sections.append(("Differences on the same crops, 95 % intervals", pd.DataFrame(rows)))
    sections += [
        (f"Subtypes, one against the rest: {r.model}, {r.data}", subtype_table(r.subtypes))
        for r in result.rows
        if r.subtypes
    ]
    return sections


def markdown(result: Evaluation) -> str:
    """Give all tables as Markdown."""
    return "\n".join(f"## {title}\n\n{markdown_table(table)}\n" for title, table in _sections(result))


def markdown_table(table: pd.DataFrame) -> str:
    """Give a table as Markdown; what is not there as an empty cell."""
    cells = [
        list(table.columns),
        ["---"] * len(table.columns),
        *table.astype(object).where(table.notna(), "").astype(str).to_numpy(),
    ]
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in cells)


def _write(result: Evaluation, out: Path) -> None:
    write_atomically(out / "evaluation.md", markdown(result).encode())
    body = "".join(
        f"<h2>{html.escape(title)}</h2>{table.to_html(index=False, na_rep='', border=0)}"
        for title, table in _sections(result)
    )
    page = (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>Classifiers</title>'
        "<style>body{font:15px sans-serif;margin:2em}td,th{padding:.2em .8em;text-align:left;"
        f"border-bottom:1px solid #ccc}}</style><h1>Classifiers</h1>{body}</html>"
    )
    write_atomically(out / "evaluation.html", page.encode())
    write_atomically(out / "rows.csv", figures_table(result).to_csv(index=False).encode())
    plain = json.dumps(_without_nan(asdict(result)), indent=2)
    write_atomically(out / "evaluation.json", (plain + "\n").encode())


def _without_nan(value: object) -> object:
    if isinstance(value, dict):
        return {k: _without_nan(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(v) for v in value]
    if isinstance(value, float | np.floating):
        return round(float(value), 6) if np.isfinite(value) else None
    return value
