"""``mitoscan evaluate classifier``: models beside the published ones and the experts, in one folder."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
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
)
from mitoscan.learn.data import CropSet, load_amibr, load_atnorm
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
class Evaluation:
    """All that was measured."""

    rows: list[Measured]
    comparisons: list[Comparison]
    experts: dict[str, list[ExpertFigures]]


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
        By name; the first is compared with each of the others.
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
        if model != first:
            thresholds = classifiers[first].threshold, classifiers[model].threshold
            gap = paired_difference(
                p[first, data], scores, thresholds, sets[data], resamples=resamples, seed=seed
            )
            comparisons.append(Comparison(first, model, data, gap))
    experts = {name: human_ceiling(crops.votes) for name, crops in sets.items()}
    result = Evaluation(rows, comparisons, {k: v for k, v in experts.items() if v})
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
        subtypes = subtype_figures(shares, crops.subtype)
        plots.confusion_matrix(confusion(shares, crops.subtype), SUBTYPES, out / f"confusion_{slug}.png")
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


def _slug(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-." else "_" for c in name)


def published_table(result: Evaluation) -> pd.DataFrame:
    """Give the published table, balanced accuracy / AUROC by test set, with our rows beneath."""
    table = [
        [row.model, *(f"{ba:.4f} / {auc:.4f}" for ba, auc in (row.amibr, row.atnorm_br, row.atnorm_md))]
        for row in BENCHMARK
    ]
    for model in dict.fromkeys(row.model for row in result.rows):
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
