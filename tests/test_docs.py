"""What README and docs/ say is so: commands parse, snippets run, tables name all there is."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import click
import pytest
import typer
from PIL import Image

from mitoscan import cli, errors
from mitoscan.cohort import lock
from mitoscan.demo import draw_field
from mitoscan.models.card import ModelCard
from mitoscan.scan.findings import columns
from mitoscan.scan.score import SlideSummary
from mitoscan.slide.write import write_pyramid

REPO = Path(__file__).parents[1]
DOCS = REPO / "docs"
PAGES = [REPO / "README.md", *sorted(DOCS.glob("*.md")), REPO / "examples" / "qupath" / "README.md"]
# The page with a table of all options of the command.
TABLES = {"run": "run.md", "rescore": "review.md", "export": "review.md", "study": "study.md"}


def page(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


@cache
def app() -> click.Group:
    group = typer.main.get_command(cli.app)
    assert isinstance(group, click.Group)
    return group


def commands(group: click.Group, above: str = "") -> Iterator[tuple[str, click.Command]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, f"{above}{name} ")
        else:
            yield f"{above}{name}", command


def long_options(command: click.Command) -> set[str]:
    options = [p for p in command.params if isinstance(p, click.Option)]
    return {o for p in options for o in (*p.opts, *p.secondary_opts) if o.startswith("--")}


def options_in(text: str) -> set[str]:
    """Options that a text names, other programs' command lines left out."""
    ours = re.sub(r"^(?:ray|pip|python3?|sbatch|snakemake|vips) .*$", "", text, flags=re.MULTILINE)
    return set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", ours))


def command_lines() -> list[tuple[str, str]]:
    return [
        (path.name, line.split(" #")[0].strip())
        for path in PAGES
        for block in blocks(path.read_text(encoding="utf-8"), "sh")
        for line in block.splitlines()
        if re.match(r"(?:\S*/)?mitoscan ", line)
    ]


@pytest.mark.parametrize(("name", "line"), command_lines())
def test_every_command_line_that_is_shown_parses(name, line):
    arguments = [word.strip("'") for word in line.split()[1:]]
    command: click.Command = app()
    while isinstance(command, click.Group):
        assert arguments[0] in command.commands, name
        command = command.commands[arguments.pop(0)]
    command.make_context(command.name, arguments)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(REPO).as_posix())
def test_every_option_named_exists(path):
    there = set().union(*(long_options(command) for _, command in commands(app())), {"--verbose", "--help"})
    assert options_in(path.read_text(encoding="utf-8")) <= there


@pytest.mark.parametrize(("command", "name"), TABLES.items())
def test_the_table_of_options_is_complete(command, name):
    rows = "\n".join(re.findall(r"^\|.*", page(name), re.MULTILINE))
    explained = options_in(page(name)) if command == "export" else set(re.findall(r"`(--[a-z0-9-]+)`", rows))
    assert long_options(app().commands[command]) <= explained


def test_every_option_of_the_other_commands_is_explained_somewhere():
    said = set().union(*(options_in(path.read_text(encoding="utf-8")) for path in PAGES))
    for name, command in commands(app()):
        assert long_options(command) <= said, name


def test_every_command_is_shown():
    used = {line.split()[1] for _, line in command_lines()}
    assert used == set(app().commands)


@pytest.mark.parametrize("name", [*SlideSummary.model_fields, *columns(subtypes=True, reviewed=True)])
def test_every_column_is_explained(name):
    assert re.search(rf"^\|[^|]*`{name}`", page("outputs.md"), re.MULTILINE)


@pytest.mark.parametrize("name", ModelCard.model_fields)
def test_every_field_of_the_card_is_explained(name):
    assert re.search(rf"^\|[^|]*`{name}`", page("models.md"), re.MULTILINE)


def test_every_exit_code_is_explained():
    said = {int(code) for code in re.findall(r"^\| (\d+)(?:, \d+)? \| \w", page("run.md"), re.MULTILINE)}
    assert said == {0, 130, errors.SOME_FAILED, *exit_codes().values()}


def exit_codes() -> dict[str, int]:
    assert issubclass(lock.HeldError, errors.MitoscanError)  # so it is imported

    def below(error: type[errors.MitoscanError]) -> Iterator[tuple[str, int]]:
        yield error.__name__, error.exit_code
        for child in error.__subclasses__():
            yield from below(child)

    return dict(below(errors.MitoscanError))


def test_the_snippet_runs(tmp_path, monkeypatch, capsys):
    field = draw_field(seed=1, width_px=1400, height_px=1000, figures=5)
    Image.fromarray(field.image).save(tmp_path / "field.png")
    write_pyramid(tmp_path / "slide.svs", field.image, field.mpp)
    monkeypatch.chdir(tmp_path)
    (snippet,) = blocks(page("api.md"), "python")
    names: dict[str, object] = {}
    exec(compile(snippet, "api.md", "exec"), names)  # noqa: S102  (our own page)
    assert names["p_subtypes"].shape == (2, 8)
    assert len(names["found"]) > 0
    assert capsys.readouterr().out


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(REPO).as_posix())
def test_paths_in_the_repository_exist(path):
    """mkdocs, below, sees the links between pages only: not the README's, nor paths in backticks."""
    text = path.read_text(encoding="utf-8")
    for name in re.findall(r"`((?:examples|benchmarks|configs|weights|docs|mitoscan|tests)/[\w./-]+)`", text):
        assert (REPO / name).exists(), name
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)", text):
        linked = (path.parent / target) if target else path
        assert linked.exists(), target
        if anchor:
            assert anchor in headings(linked.read_text(encoding="utf-8")), f"{target}#{anchor}"


def headings(text: str) -> set[str]:
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    names = re.findall(r"^#+ (.+)$", prose, re.MULTILINE)
    return {re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", name).strip().lower()) for name in names}


HOLE = "\N{BULLET}"


def text_of(node: ast.expr) -> str | None:
    """Give a literal of the source, with HOLE where a value is put in; None for anything else."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(text_of(part) or HOLE for part in node.values)
    return None


@cache
def messages() -> dict[str, set[int]]:
    """Literals of the package, each with the exit codes of the errors that it, or its function, raises."""
    codes, found = exit_codes(), {}

    def visit(node: ast.AST, around: set[int]) -> None:
        if isinstance(node, ast.Call | ast.FunctionDef):
            calls = [call for call in ast.walk(node) if isinstance(call, ast.Call)]
            raised = {codes[call.func.id] for call in calls if getattr(call.func, "id", "") in codes}
            around = raised or around
        for child in ast.iter_child_nodes(node):
            text = text_of(child) if isinstance(child, ast.expr) else None
            if text is not None:
                found.setdefault(text, set()).update(around)
            visit(child, around)

    for path in (REPO / "mitoscan").rglob("*.py"):
        visit(ast.parse(path.read_text(encoding="utf-8")), set())
    return found


def quoted() -> list[tuple[str, int]]:
    """Messages in troubleshooting.md, with their exit codes; 0 where the page states none."""
    heads = re.findall(r'^\*\*(".*?)\*\*', page("troubleshooting.md"), re.MULTILINE | re.DOTALL)
    found = re.findall(r'"(.*?)"(?: \((\d+)\))?', " ".join(heads), re.DOTALL)
    return [(" ".join(quote.split()), int(code or 0)) for quote, code in found]


@pytest.mark.parametrize(("quote", "code"), quoted())
def test_every_message_quoted_is_one_of_ours_with_its_exit_code(quote, code):
    pattern = re.compile(r".*".join(map(re.escape, quote.split("…"))), re.DOTALL)
    matches = [codes for message, codes in messages().items() if pattern.search(message)]
    assert matches, "no such message"
    assert code == 0 or any(code in codes for codes in matches)


def test_messages_are_quoted():
    assert len(quoted()) > 15


def test_the_site_builds_without_a_warning_and_needs_no_network(tmp_path):
    if importlib.util.find_spec("mkdocs") is None:
        pytest.skip("mkdocs is not installed")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", str(tmp_path / "site")]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    built = list((tmp_path / "site").rglob("*.html"))
    assert len(built) > len(list(DOCS.glob("*.md")))
    loads = r"<(?:(?:script|img|iframe|source)\b[^>]*\bsrc|link\b[^>]*\bhref)=[\"']?(?:https?:)?//"
    for path in built:
        assert not re.search(loads, path.read_text(encoding="utf-8")), path
    for path in (tmp_path / "site").rglob("*.css"):
        assert not re.search(r"url\([\"']?(?:https?:)?//", path.read_text(encoding="utf-8")), path
