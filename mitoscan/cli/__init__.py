"""The command line. Heavy libraries are imported inside the commands, so that ``--help`` is quick.

A module a group of commands; here they are only gathered.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from mitoscan.cli import benchmark, evaluate, look, results, run, study, train
from mitoscan.console import set_up_logging
from mitoscan.errors import MitoscanError

app = typer.Typer(
    help="Find mitotic figures in H&E whole-slide images and tell atypical from normal ones. Research use.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
COMMANDS = (
    run.run,
    run.merge,
    run.demo,
    results.rescore,
    results.export,
    study.study,
    look.info,
    look.models,
    look.doctor,
    benchmark.benchmark,
)
for command in COMMANDS:
    app.command()(command)
app.add_typer(train.app, name="train")
app.add_typer(evaluate.app, name="evaluate")


@app.callback()
def _common(
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log more.")] = False,
) -> None:
    set_up_logging(verbose)


def main() -> None:
    """Run the command line; an error that was foreseen is one line and an exit code of its own."""
    try:
        app()
    except MitoscanError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(error.exit_code)
