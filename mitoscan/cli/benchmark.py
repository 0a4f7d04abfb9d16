"""``mitoscan benchmark``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markdown import Markdown

from mitoscan.cli.options import OutOption, WeightsDirOption


def benchmark(
    config: Annotated[str, typer.Argument(help="YAML file, or name of a shipped config.")],
    data: Annotated[
        Path,
        typer.Option(envvar="MITOSCAN_DATA", help="The AMi-Br_Benchmark folder, or one with it as amf/."),
    ],
    out: OutOption,
    only: Annotated[list[str] | None, typer.Option(help="Only this contestant; repeat for more.")] = None,
    weights_dir: WeightsDirOption = None,
) -> None:
    """Train classifiers by a published study's protocol and compare them on its test sets.

    Called again, it goes on with the folds that are missing.
    """
    from mitoscan.config import load_config
    from mitoscan.learn.benchmark import run_benchmark
    from mitoscan.learn.benchmark_config import BenchmarkFile

    run_benchmark(load_config(BenchmarkFile, config).benchmark, data, out, tuple(only or ()), weights_dir)
    console = Console()
    console.print(Markdown((out / "table.md").read_text(encoding="utf-8")))
    console.print(f"Written to {out}", soft_wrap=True)
