"""``mitoscan train``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress

from mitoscan.cli.options import DataOption, OutOption

app = typer.Typer(help="Train a model from a config.", no_args_is_help=True)


@app.command("detector")
def train_detector(
    config: Annotated[str, typer.Argument(help="YAML file, or name of a shipped config.")],
    data: DataOption,
    out: OutOption,
) -> None:
    """Train a detector and write its model folder. Called again, an interrupted training goes on."""
    _train("detector", config, data, out)


@app.command("classifier")
def train_classifier(
    config: Annotated[str, typer.Argument(help="YAML file, or name of a shipped config.")],
    data: DataOption,
    out: OutOption,
) -> None:
    """Train an AMF classifier and write its model folder. Called again, an interrupted training goes on."""
    _train("classifier", config, data, out)


@app.command("reference")
def train_reference(
    model: Annotated[Path, typer.Argument(help="Model folder; its card.json changes, its weights do not.")],
    data: DataOption,
) -> None:
    """Compute from the data what slides are compared with for their QC flags, and put it into the card."""
    from mitoscan.learn.reference import add_reference

    card = add_reference(model, data)
    console = Console()
    reference = None if card.reference is None else card.reference.focus or card.reference.likeness
    if reference is not None:
        console.print(
            f"{card.name}: limit {reference.limit:g} from {reference.slides} slides; "
            f"false alarms on {reference.false_alarms} of {reference.tested} slides",
            soft_wrap=True,
        )


def _train(task: str, name: str, data: Path, out: Path) -> None:
    from mitoscan.learn.run import train_from_config

    with Progress(
        *Progress.get_default_columns(), MofNCompleteColumn(), console=Console(stderr=True)
    ) as bars:
        bar = bars.add_task(f"training {name}", total=None)
        card = train_from_config(
            task, name, data, out, lambda done, steps: bars.update(bar, completed=done, total=steps)
        )
    console = Console()
    console.print(f"{card.name} written to {out}", soft_wrap=True)
    for metric in card.metrics:
        console.print(
            f"  {metric.name} {metric.value:.3f} ({metric.dataset}, n = {metric.n})", soft_wrap=True
        )
