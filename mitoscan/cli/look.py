"""``mitoscan info``, ``models`` and ``doctor``: look, change nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from mitoscan.cli.options import MppOption


def info(
    slide: Annotated[Path, typer.Argument(help="A slide or an image.")],
    mpp: MppOption = None,
    estimate: Annotated[
        bool, typer.Option("--estimate/--no-estimate", help="Measure how long a run would take here.")
    ] = True,
) -> None:
    """Show a slide's levels, pixel size and its source, bounds, tissue area and estimated time."""
    from mitoscan.describe import describe

    Console().print(describe(slide, mpp, estimate))


def models() -> None:
    """List the models that ship: task, size, metrics, licence."""
    from mitoscan.describe import model_table

    Console().print(model_table())


def doctor() -> None:
    """Check the installation: versions, devices, readers, weights; name the command that mends a fault."""
    from mitoscan.doctor import examine, report

    checks = examine()
    Console().print(report(checks))
    if any(check.ok is False for check in checks):
        raise typer.Exit(1)
