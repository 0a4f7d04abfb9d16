"""``mitoscan study``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console


def study(
    results: Annotated[Path, typer.Argument(metavar="OUT", help="Output folder of `mitoscan run`.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the study.")],
    clinical: Annotated[
        Path | None, typer.Option(help="CSV with slide_id or case_id, and whatever is known of them.")
    ] = None,
    group: Annotated[
        list[str] | None, typer.Option(help="Column whose groups are compared; repeatable.")
    ] = None,
    outcome: Annotated[str | None, typer.Option(help="Column with two values: ROC, AUC and cut.")] = None,
    positive: Annotated[
        str | None, typer.Option(help="The outcome's value to be found; default: 1, yes or true.")
    ] = None,
    time: Annotated[str | None, typer.Option(help="Column of follow-up times; default: time.")] = None,
    event: Annotated[str | None, typer.Option(help="Column of events, 1 or 0; default: event.")] = None,
    correlate: Annotated[list[str] | None, typer.Option(help="Column of numbers; repeatable.")] = None,
    by: Annotated[
        str, typer.Option(help="What counts as one: case or slide; auto: cases where known.")
    ] = "auto",
    measure: Annotated[
        list[str] | None, typer.Option(help="Measure to test, the main one first; repeatable.")
    ] = None,
    cut: Annotated[
        float | None, typer.Option(help="Cut of the main measure that was fixed beforehand, for survival.")
    ] = None,
    min_figures: Annotated[int, typer.Option(help="Fewer mitotic figures: no AMF rate in the study.")] = 1,
    width: Annotated[float, typer.Option(help="Wanted full width of an AMF rate's 95 % interval.")] = 0.1,
    correction: Annotated[str, typer.Option(help="Of p-values: holm, or bh (Benjamini–Hochberg).")] = "holm",
    classifier: Annotated[
        list[Path] | None,
        typer.Option(help="Folder with a classifier's card, if it did not ship; repeatable."),
    ] = None,
    bootstrap: Annotated[int, typer.Option(help="Resamples of each bootstrap.")] = 2000,
    seed: Annotated[int, typer.Option(help="Of bootstrap and permutations.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a study that is there.")] = False,
) -> None:
    """Join the results of many slides with a clinical table: statistics, figures and a page."""
    from mitoscan.config import build
    from mitoscan.study.analyse import analyse
    from mitoscan.study.config import StudyConfig
    from mitoscan.study.figures import require_matplotlib
    from mitoscan.study.write import ensure_writable, write_study

    values: dict[str, object] = {
        "groups": tuple(group or ()),
        "outcome": outcome,
        "positive": positive,
        "time": time,
        "event": event,
        "correlate": tuple(correlate or ()),
        "by": by,
        "cut": cut,
        "min_figures": min_figures,
        "width": width,
        "correction": correction,
        "classifiers": tuple(classifier or ()),
        "bootstrap": bootstrap,
        "seed": seed,
    }
    if measure:
        values["measures"] = tuple(measure)
    config = build(StudyConfig, values)
    require_matplotlib()
    ensure_writable(out, overwrite)
    found = analyse(results, clinical, config)
    inputs = [path for path in (results / "slides.csv", clinical) if path]
    write_study(found, out, inputs=inputs, overwrite=overwrite)
    console = Console()
    for step in found.cohort.flow:
        console.print(f"{'  − ' if step.removed else ''}{step.text}: {step.n}", markup=False, soft_wrap=True)
    for warning in found.warnings:
        console.print(f"⚠ {warning}", style="yellow", markup=False, soft_wrap=True)
    console.print(f"Study: {out / 'study.html'}", markup=False, soft_wrap=True)
