"""Files that users hand in, broken in every way: an error that says so, no traceback, hang or stray file."""

from __future__ import annotations

import contextlib
import copy
import gzip
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fakes
import pytest
import results
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from mitoscan.cohort.manifest import read_manifest
from mitoscan.config import Frozen, ScanConfig, load_config
from mitoscan.errors import ConfigError, DataError, MitoscanError, ModelError, RoiError
from mitoscan.learn.config import TrainFile
from mitoscan.models.card import load_card
from mitoscan.report.tables import findings_bytes, read_summary, summary_bytes
from mitoscan.report.writer import ensure_writable, folder_name
from mitoscan.resources import shipped
from mitoscan.scan.findings import read_findings
from mitoscan.slide.roi import load_roi

quick = settings(
    max_examples=60,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

NASTY = (
    None, True, "", "NaN", "../../../etc/passwd", "/etc/passwd", "C:\\x", "\0", "\x1b[31m", "x" * 5000,
    "\ud800", -1, 0, 1, 10**30, 10**400, 1e308, -1e308, math.nan, math.inf, [], {}, [[]], [{}],
)  # fmt: skip
junk = st.recursive(
    st.sampled_from(NASTY) | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
).map(copy.deepcopy)  # the lists among the nasty ones are written into
DEEP = 100_000


def spots(value: Any) -> Iterator[tuple[Any, Any]]:
    """Give every place in a document: its container, and key or index there."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield value, key
        yield from spots(inner)


@st.composite
def damaged(draw, valid: Any) -> Any:
    """A valid document with up to three values replaced, removed or added."""
    document = copy.deepcopy(valid)
    for _ in range(draw(st.integers(1, 3))):
        places = list(spots(document))
        if not places:
            break
        container, key = draw(st.sampled_from(places))
        what = draw(st.sampled_from(["replace", "replace", "remove", "add"]))
        if what == "replace":
            container[key] = draw(junk)
        elif what == "remove":
            del container[key]
        elif isinstance(container, list):
            container.append(draw(junk))
        else:
            container[draw(st.text(max_size=8))] = draw(junk)
    return document


def text_of(document: Any) -> bytes:
    return json.dumps(document).encode("utf-8", "surrogatepass")


def survives(read: Callable[[], object], allowed: type[MitoscanError]) -> None:
    """Read; an error is the expected one, on one printable line of a length that can be read."""
    try:
        read()
    except allowed as error:
        line = str(error)
        assert line
        assert "\n" not in line
        assert len(line) < 20_000


RING = [[10.0, 20.0], [110.0, 20.0], [110.0, 120.0], [10.0, 120.0], [10.0, 20.0]]
ROI = {
    "type": "FeatureCollection",
    "features": [
        {
            "type": "Feature",
            "geometry": {"type": "Polygon", "coordinates": [RING]},
            "properties": {"objectType": "annotation", "classification": {"name": "x"}},
        },
        {
            "type": "Feature",
            "geometry": {"type": "MultiPolygon", "coordinates": [[RING]]},
            "properties": None,
        },
        {"type": "GeometryCollection", "geometries": [{"type": "Point", "coordinates": [1, 2]}]},
    ],
}


@quick
@given(damaged(ROI).map(text_of) | junk.map(text_of) | st.binary(max_size=60))
@example(b"[" * DEEP)
@example(b'{"type":"GeometryCollection","geometries":[' * 5000 + b"]}" * 5000)
@example(b"[" * 900 + b"]" * 900)
@example(b'{"type":["Polygon"]}')
@example(text_of({"type": "Polygon", "coordinates": [[[0, 0], [1e308, 0], [1e308, 1e308], [0, 0]]]}))
@example(text_of({"type": "Feature", "geometry": [1], "properties": [1]}))
def test_regions_of_interest(tmp_path, content):
    for name, data in (("roi.geojson", content), ("roi.geojson.gz", gzip.compress(content, 1))):
        (tmp_path / name).write_bytes(data)
        survives(lambda name=name: load_roi(tmp_path / name, results.info(), True), RoiError)


CARD = json.loads(fakes.card("classifier").model_dump_json())


@quick
@given(damaged(CARD).map(text_of) | junk.map(text_of) | st.binary(max_size=60))
@example(b"[" * DEEP)
@example(b"1" * 5000)
def test_cards(tmp_path, content):
    (tmp_path / "card.json").write_bytes(content)
    survives(lambda: load_card(tmp_path), ModelError)


TRAINING = {name: yaml.safe_load((shipped("configs") / f"{name}.yaml").read_text()) for name in
            ("detector-lite0", "classifier-lite0")}  # fmt: skip
SCAN = json.loads(ScanConfig(roi=Path("roi.geojson"), threshold=0.5).model_dump_json())
BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)
)
"""Some hundred bytes that are 9^12 values once they are written out."""


@quick
@given(
    st.sampled_from([TrainFile, ScanConfig]),
    damaged({"train": TRAINING["detector-lite0"]["train"]}).map(text_of)
    | damaged(TRAINING["classifier-lite0"]).map(text_of)
    | damaged(SCAN).map(text_of)
    | st.binary(max_size=60)
    | st.text("!&*:-?<>|%@`'\"{}[]#, \nab0", max_size=40).map(str.encode),
)
@example(TrainFile, b"[" * DEEP)
@example(TrainFile, BOMB.encode())
@example(TrainFile, b"train: !!int ''")
@example(TrainFile, b"train: !!bool maybe")
@example(TrainFile, b"train: !!timestamp soon")
@example(TrainFile, b"train: 2001-99-99")
@example(TrainFile, b"train: " + b"1" * 5000)
@example(TrainFile, b"? [a]\n: 1")
@example(TrainFile, b"a: &a [*a]")
@example(TrainFile, b"!!python/object/apply:os.system ['echo hello']")
def test_configs(tmp_path, model: type[Frozen], content):
    (tmp_path / "some.yaml").write_bytes(content)
    survives(lambda: load_config(model, str(tmp_path / "some.yaml")), ConfigError)


@quick
@given(st.text(max_size=400) | st.sampled_from([n for n in NASTY if isinstance(n, str)]))
def test_names_of_configs(name):
    survives(lambda: load_config(TrainFile, name), ConfigError)


SUMMARY = json.loads(summary_bytes(results.result().summary))


@quick
@given(damaged(SUMMARY).map(text_of) | junk.map(text_of) | st.binary(max_size=60))
@example(b"[" * DEEP)
def test_summaries(tmp_path, content):
    (tmp_path / "summary.json").write_bytes(content)
    survives(lambda: read_summary(tmp_path / "summary.json"), DataError)


TABLE = findings_bytes(results.findings(4, subtypes=True)).decode().splitlines()
cells = st.sampled_from(
    ["", "nan", "inf", "-1", "1e999", "True", "yes", "AMF", "\0", '"', '""', "x" * 400, "9" * 400]
)


@st.composite
def damaged_tables(draw) -> bytes:
    lines = [line.split(",") for line in TABLE]
    for _ in range(draw(st.integers(1, 4))):
        line = draw(st.sampled_from(lines))
        column = draw(st.integers(0, len(line) - 1)) if line else 0
        what = draw(st.sampled_from(["replace", "remove", "add", "repeat"]))
        if what == "replace" and line:
            line[column] = draw(cells | st.text(max_size=12))
        elif what == "remove" and line:
            del line[column]
        elif what == "add":
            line.insert(column, draw(cells))
        else:
            lines.append(line)
    return "\n".join(",".join(line) for line in lines).encode("utf-8", "surrogatepass")


@quick
@given(damaged_tables() | st.binary(max_size=200))
@example(b"")
@example(b"\xff\xfe\0\0")
def test_findings(tmp_path, content):
    (tmp_path / "findings.csv").write_bytes(content)
    survives(lambda: read_findings(tmp_path / "findings.csv"), DataError)


names = st.text(max_size=300) | st.sampled_from([
    "..", ".", "/", "/etc/passwd", "../../up", "a/../../b", "C:\\x", "nul", "COM1.svs", "slides.csv", "\0",
    "a\0b", "\x1b[2J", "x" * 5000, "é" * 300, "\ud800", " ", "~", "-rf", "a\nb", "．．／",
])  # fmt: skip


@quick
@given(names, names)
def test_slide_ids_stay_inside_the_output_folder(tmp_path, one, other):
    out = tmp_path / "out"
    folder = ensure_writable(out, one, overwrite=True)
    folder.mkdir(exist_ok=True)
    assert folder.resolve().parent == out.resolve()
    assert folder.name.isprintable()
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    if one != other:
        assert folder_name(one) != folder_name(other)


@pytest.mark.parametrize(
    "read", [load_card, read_summary, read_findings, lambda p: load_config(TrainFile, str(p))]
)
@pytest.mark.parametrize("kind", ["folder", "long", "loop", "under a file"])
def test_paths_that_are_no_files(tmp_path, read, kind):
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    path = {"folder": tmp_path, "long": tmp_path / ("x" * 5000), "loop": tmp_path / "loop",
            "under a file": tmp_path / "file" / "x"}[kind]  # fmt: skip
    with pytest.raises(MitoscanError):
        read(path)


CELL = st.text(max_size=12) | st.sampled_from(
    ["../../x", "/etc/passwd", "a\0b", "0.25", "nan", "-1", "slide", ""]
)
HEADER = st.lists(
    st.sampled_from(["path", "slide_id", "case_id", "mpp", "roi", "tumour", "mf_count"])
    | st.text(max_size=6),
    min_size=1,
    max_size=6,
)


@given(header=HEADER, rows=st.lists(st.lists(CELL, max_size=6), max_size=5), sep=st.sampled_from(",;\t"))
@quick
def test_a_manifest_is_read_or_refused_and_never_leads_out_of_the_results(
    tmp_path_factory, header, rows, sep
):
    folder = tmp_path_factory.mktemp("m")
    text = "\n".join(sep.join(row) for row in [header, *rows])
    (folder / "m.csv").write_bytes(text.encode("utf-8", "surrogatepass"))
    out = folder / "out"
    try:
        jobs = read_manifest(folder / "m.csv", ScanConfig(), out)
    except MitoscanError:
        return
    for job in jobs:
        assert (out / folder_name(job.slide_id)).resolve().parent == out.resolve()


@given(data=st.binary(max_size=200))
@quick
def test_a_manifest_of_any_bytes_is_read_or_refused(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("m") / "m.csv"
    path.write_bytes(data)
    with contextlib.suppress(MitoscanError):
        read_manifest(path, ScanConfig(), path.parent / "out")
