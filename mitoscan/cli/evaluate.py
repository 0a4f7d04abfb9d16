"""``mitoscan evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markdown import Markdown
from rich.table import Table

from mitoscan.cli.options import (
    DataOption,
    DeviceName,
    DeviceOption,
    OperatingPointName,
    OutOption,
    WeightsDirOption,
)

app = typer.Typer(help="Measure a model on labelled data.", no_args_is_help=True)


@app.command("detector")
def evaluate_detector(
    data: DataOption,
    out: OutOption,
    model: Annotated[str | None, typer.Option(help="Shipped name, or folder with card.json.")] = None,
    slide: Annotated[
        list[str] | None, typer.Option(help="Only this slide; repeat for more. Default: all of the data.")
    ] = None,
    coco: Annotated[
        Path | None, typer.Option(help="MIDOG's JSON instead of detection/fields.csv; relative to --data.")
    ] = None,
    images: Annotated[Path, typer.Option(help="Folder of its pictures; relative to --data.")] = Path("."),
    mpp: Annotated[
        float | None, typer.Option(help="µm per pixel of its pictures, if they state none.")
    ] = None,
    negative: Annotated[
        list[Path] | None, typer.Option(help="A slide with next to no figures, for false alarms per mm².")
    ] = None,
    unlabelled: Annotated[
        bool,
        typer.Option("--unlabelled/--no-unlabelled", help="Count false alarms on unlabelled fields too."),
    ] = False,
    held_out_of: Annotated[
        str | None,
        typer.Option(help="Of the unlabelled fields only those that this training config holds out."),
    ] = None,
    shifts: Annotated[
        bool, typer.Option("--shifts/--no-shifts", help="Measure again under JPEG, hue and mpp shifts.")
    ] = False,
    threshold: Annotated[float | None, typer.Option(help="Instead of the card's operating point.")] = None,
    operating_point: Annotated[
        OperatingPointName, typer.Option(help="Which of the card's two.")
    ] = OperatingPointName.balanced,
    device: DeviceOption = DeviceName.auto,
    seed: Annotated[int, typer.Option(help="Of the bootstrap.")] = 0,
) -> None:
    """Match detections to labels within 7.5 µm: F1, average precision, FROC, with 95 % intervals by slide."""
    from mitoscan.learn.config import CocoFile
    from mitoscan.learn.evaluate_detector import evaluate_detector
    from mitoscan.learn.fields import load_coco, load_fields, load_unlabelled, only_slides
    from mitoscan.scan.detect import load_detector

    detector = load_detector(model, device.value, threshold, operating_point.value)
    if coco is None:
        fields = load_fields(data / "detection", slide or None)
    else:
        spec = CocoFile(file=str(coco), images=str(images), mpp=mpp)
        fields = only_slides(load_coco(spec, data, detector.card.mpp), slide, data / coco)
    result = evaluate_detector(
        detector,
        fields,
        out,
        negatives=load_unlabelled(data, held_out_of) if unlabelled or held_out_of else (),
        negative_slides=negative or (),
        shifts=shifts,
        seed=seed,
    )
    console = Console()
    table = Table("part", "figures", "mm²", "F1", "95 %", "AP", "best F1", "FP/mm²", title=detector.card.name)
    for r in result.rows:
        interval = f"{r.low.f1:.2f}–{r.high.f1:.2f}"
        numbers = f"{r.f1:.3f}", interval, f"{r.ap:.3f}", f"{r.best_f1:.3f}", f"{r.fp_per_mm2:.1f}"
        table.add_row(r.part, str(r.figures), f"{r.area_mm2:.1f}", *numbers)
    console.print(table)
    for a in result.false_alarms:
        rate = f"{a.per_mm2:.2f} ({a.low:.2f}–{a.high:.2f}) per mm²"
        console.print(f"{a.name}: {a.count} called in {a.mm2:.2f} mm², {rate}")
    for name, f1 in result.shifts.items():
        console.print(f"F1 with {name}: {f1:.3f}")
    console.print(f"All of it, with curves and galleries: {out / 'evaluation.md'}", soft_wrap=True)


@app.command("classifier")
def evaluate_classifier(
    data: Annotated[
        Path,
        typer.Option(envvar="MITOSCAN_DATA", help="The AMi-Br_Benchmark folder, or one with it as amf/."),
    ],
    out: OutOption,
    model: Annotated[
        list[str] | None,
        typer.Option(help="Shipped name, or folder with card.json; repeat to compare the first with others."),
    ] = None,
    weights_dir: WeightsDirOption = None,
    device: DeviceOption = DeviceName.auto,
    resamples: Annotated[int, typer.Option(min=20, help="Of the bootstrap.")] = 1000,
    seed: Annotated[int, typer.Option(help="Of the bootstrap.")] = 0,
) -> None:
    """Measure AMF classifiers on the published test sets, beside the published models and the experts."""
    from mitoscan.learn.evaluate_classifier import evaluate_classifiers, load_test_sets, markdown
    from mitoscan.scan.classify import load_classifier

    chosen: list[str | None] = list(model) if model else [None]
    loaded = [load_classifier(name, device.value, weights_dir) for name in chosen]
    names = [c.card.name for c in loaded]
    if len(set(names)) < len(names):  # the same name in two folders
        names = [str(name) for name in chosen]
    result = evaluate_classifiers(
        dict(zip(names, loaded, strict=True)), load_test_sets(data), out, resamples=resamples, seed=seed
    )
    console = Console()
    console.print(Markdown(markdown(result)))
    console.print(f"Written to {out}", soft_wrap=True)
