"""What the README says is so: its snippet runs, and its tables name what there is, all of it."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import typer
from PIL import Image

from mitoscan import cli, errors
from mitoscan.demo import draw_field
from mitoscan.scan.findings import columns
from mitoscan.scan.score import SlideSummary
from mitoscan.slide.write import write_pyramid

REPO = Path(__file__).parents[1]
README = (REPO / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def options(command: click.Command) -> Iterator[str]:
    """Long options of a command and of its subcommands."""
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            yield from (o for o in (*parameter.opts, *parameter.secondary_opts) if o.startswith("--"))
    if isinstance(command, click.Group):
        for part in command.commands.values():
            yield from options(part)


def test_the_snippet_runs(tmp_path, monkeypatch, capsys):
    field = draw_field(seed=1, width_px=1400, height_px=1000, figures=5)
    Image.fromarray(field.image).save(tmp_path / "field.png")
    write_pyramid(tmp_path / "slide.svs", field.image, field.mpp)
    monkeypatch.chdir(tmp_path)
    (snippet,) = blocks("python")
    names: dict[str, object] = {}
    exec(compile(snippet, "README.md", "exec"), names)  # noqa: S102  (our own README)
    assert names["p_subtypes"].shape == (2, 8)
    assert len(names["found"]) > 0
    assert capsys.readouterr().out


def test_every_option_exists_and_every_option_of_run_is_explained():
    said = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", README))
    app = typer.main.get_command(cli.app)
    assert said <= set(options(app))
    assert isinstance(app, click.Group)
    assert set(options(app.commands["run"])) <= said


def test_every_command_exists():
    app = typer.main.get_command(cli.app)
    assert isinstance(app, click.Group)
    used = re.findall(r"^(?:\S*/)?mitoscan ([a-z]+)", "\n".join(blocks("sh")), re.MULTILINE)
    assert {"run", "info", "demo", "train"} <= set(used) <= set(app.commands)


@pytest.mark.parametrize("name", [*SlideSummary.model_fields, *columns(subtypes=True, reviewed=True)])
def test_every_column_is_explained(name):
    assert re.search(rf"^\|[^|]*`{name}`", README, re.MULTILINE)


def test_every_exit_code_is_explained():
    def below(error: type[errors.MitoscanError]) -> Iterator[int]:
        yield error.exit_code
        for child in error.__subclasses__():
            yield from below(child)

    said = {int(code) for code in re.findall(r"^\| (\d+)(?:, \d+)? \| \w", README, re.MULTILINE)}
    assert said == {0, 130, errors.SOME_FAILED, *below(errors.MitoscanError)}


def test_links_lead_somewhere():
    for target in re.findall(r"\]\((?!http|#)([^)]+)\)", README):
        assert (REPO / target).exists(), target


def test_the_table_of_accuracy_is_that_of_the_shipped_cards():
    spec = importlib.util.spec_from_file_location("readme_figures", REPO / "benchmarks" / "readme_figures.py")
    assert spec is not None
    assert spec.loader is not None
    figures = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(figures)
    assert figures.with_table(README) == README, "run: python benchmarks/readme_figures.py"
