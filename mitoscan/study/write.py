"""A study as files: tables, figures, study.json and, last, the page."""

from __future__ import annotations

import json
import platform
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from mitoscan import __version__
from mitoscan.errors import OutputError
from mitoscan.report.atomic import write_atomically
from mitoscan.scan.score import Estimate, printable
from mitoscan.study.analyse import Study
from mitoscan.study.figures import Picture, draw
from mitoscan.study.measures import MEASURES
from mitoscan.study.page import Made, render
from mitoscan.study.tables import csv_bytes

PAGE, RECORD = "study.html", "study.json"
SCHEMA_VERSION = 1
Row = dict[str, object]
_PACKAGES = ("numpy", "scipy", "pandas", "lifelines", "matplotlib", "jinja2")


def ensure_writable(folder: Path, overwrite: bool) -> None:
    """Make the folder; refuse one that holds a study unless ``overwrite``.

    Raises
    ------
    OutputError
        When a study is there already, or the folder cannot be made.
    """
    if (folder / PAGE).exists() and not overwrite:
        raise OutputError("a study is there already", path=folder, remedy="Say --overwrite to replace it.")
    try:
        for part in ("tables", "figures"):
            (folder / part).mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise OutputError(f"cannot be made: {exc.strerror or exc}", path=folder) from exc


def write_study(
    study: Study, folder: Path, *, inputs: Sequence[Path] = (), overwrite: bool = False
) -> list[Path]:
    """Write a study and give the paths of its files; the page comes last.

    Files of the study that was there before go, so that none of them is taken for one of this study.

    Parameters
    ----------
    study
        What was found.
    folder
        Where to; made when absent.
    inputs
        What was read, for the record.
    overwrite
        Replace a study that is there.

    Raises
    ------
    OutputError
        When a study is there already, or a file cannot be written.
    MissingExtraError
        When matplotlib is not installed.
    """
    ensure_writable(folder, overwrite)
    pictures = _named_apart(draw(study))
    files = dict(_tables(study))
    tables = tuple(Path(name).name for name in files)
    for picture in pictures:
        files[f"figures/{picture.name}.png"] = picture.png
        files[f"figures/{picture.name}.svg"] = picture.svg
    facts = _facts(study, inputs)
    command = printable(shlex.join(sys.argv))
    page = render(study, pictures, Made(command, tuple(facts.items()), tables))
    record = _record(study, command, facts, [*files, PAGE])
    _remove_former(folder)
    files[RECORD] = (json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()
    files[PAGE] = page
    for name, data in files.items():
        write_atomically(folder / name, data)
    return [folder / name for name in files]


def _named_apart(pictures: Sequence[Picture]) -> list[Picture]:
    """Tell pictures of one name apart: columns may differ only in signs that file names do not take."""
    seen: set[str] = set()
    named = []
    for picture in pictures:
        name, number = picture.name, 1
        while name.lower() in seen:
            number += 1
            name = f"{picture.name}-{number}"
        seen.add(name.lower())
        named.append(replace(picture, name=name))
    return named


def _remove_former(folder: Path) -> None:
    """Remove the files that a former study lists, and only those, from its two folders."""
    try:
        listed = json.loads((folder / RECORD).read_text(encoding="utf-8"))["files"]
        former = [Path(name) for name in listed if isinstance(name, str)]
    except (OSError, ValueError, KeyError, TypeError):
        return
    for path in former:
        if path.parts[:-1] in {("tables",), ("figures",)} or path == Path(PAGE):
            (folder / path).unlink(missing_ok=True)


def _tables(study: Study) -> Iterator[tuple[str, bytes]]:
    yield "tables/cases.csv", csv_bytes(list(_cases(study)))
    flow = [{"step": s.text, "n": s.n, "removed": s.removed} for s in study.cohort.flow]
    yield "tables/flow.csv", csv_bytes(flow)
    exclusions: list[Row] = [
        {"what": e.what, "id": e.id, "reason": e.reason, "detail": e.detail} for e in study.exclusions
    ]
    yield "tables/exclusions.csv", csv_bytes(exclusions, ("what", "id", "reason", "detail"))
    yield "tables/distributions.csv", csv_bytes(list(_descriptions(study)))
    if study.pooled:
        pooled = [{"rate": p.name, "amf": p.amf, "mf": p.mf, **_parts("value", p.rate)} for p in study.pooled]
        yield "tables/pooled_rates.csv", csv_bytes(pooled)
    if study.groups:
        yield "tables/groups.csv", csv_bytes(list(_groups(study)))
    if study.tests:
        yield "tables/tests.csv", csv_bytes(list(_tests(study)))
    if study.rocs:
        yield "tables/cuts.csv", csv_bytes(list(_cuts(study)))
        yield "tables/roc.csv", csv_bytes(list(_roc_points(study)))
    if study.curves:
        yield "tables/survival.csv", csv_bytes(list(_survival(study)))
    if study.sample is not None:
        yield "tables/sample_size.csv", csv_bytes([dict(vars(study.sample))])


def _parts(name: str, estimate: Estimate | None) -> Row:
    value, low, high = estimate or (None, None, None)
    return {name: value, f"{name}_low": low, f"{name}_high": high}


def _cases(study: Study) -> Iterator[Row]:
    for case, member in zip(study.cases, study.cohort.members, strict=True):
        row: Row = {
            f"{study.cohort.by}_id": case.id,
            "slides": case.slides,
            "slide_ids": "; ".join(slide.slide_id for slide in member.slides),
            "tissue_mm2": case.tissue_mm2,
        }
        for measure in MEASURES:
            row |= _parts(measure, case.estimates[measure])
        row |= {"hotspot_slide": case.hotspot_slide, "hotspot_mm2": case.hotspot_mm2}
        yield row | {f"clinical: {name}": cell for name, cell in member.clinical.items()}


def _descriptions(study: Study) -> Iterator[Row]:
    for d in study.descriptions:
        row: Row = {"measure": d.measure.name, "n": d.n, "zeros": d.zeros, "mean": d.mean, "sd": d.sd}
        row |= _parts("median", d.median)
        yield row | {"q25": d.quartile_low, "q75": d.quartile_high, "min": d.least, "max": d.most}


def _groups(study: Study) -> Iterator[Row]:
    for g in study.groups:
        row: Row = {"column": g.column, "group": g.group, "measure": g.measure.name, "n": g.n}
        row |= {"not_defined": g.undefined, **_parts("median", g.median)}
        low, high = g.quartiles or (None, None)
        yield row | {"q25": low, "q75": high}


def _tests(study: Study) -> Iterator[Row]:
    for t in study.tests:
        row: Row = {
            "section": t.section,
            "column": t.variable,
            "measure": t.measure.name if t.measure else "",
            "test": t.method,
            "n": t.n,
            "groups": t.detail,
            "statistic": t.statistic,
            "effect": t.effect_name,
        }
        row |= _parts("value", t.effect)
        yield row | {
            "p": t.p,
            "p_adjusted": t.p_adjusted,
            "counted": t.in_family and t.computed,
            "note": t.note,
        }


def _cuts(study: Study) -> Iterator[Row]:
    for name, found in study.rocs.items():
        row: Row = {"measure": name, "positives": found.positives, "negatives": found.negatives}
        row |= {**_parts("auc", found.auc), "cut": found.cut.value, "positive_above": found.cut.above}
        row |= {"cut_low": found.cut_interval.low, "cut_high": found.cut_interval.high}
        row |= {**_parts("sensitivity", found.sensitivity), **_parts("specificity", found.specificity)}
        row |= {"youden": found.cut.youden, "oob_sensitivity": found.oob_sensitivity}
        row |= {"oob_specificity": found.oob_specificity, "oob_youden": found.oob_youden}
        yield row | {"optimism": found.optimism, "resamples": found.resamples}


def _roc_points(study: Study) -> Iterator[Row]:
    for name, found in study.rocs.items():
        for x, y in zip(found.false_positive.tolist(), found.true_positive.tolist(), strict=True):
            yield {"measure": name, "false_positive": x, "true_positive": y}


def _survival(study: Study) -> Iterator[Row]:
    for figure in study.curves:
        for curve in figure.curves:
            columns = (curve.times, curve.survival, curve.low, curve.high)
            for time, survival, low, high in zip(*(c.tolist() for c in columns), strict=True):
                row: Row = {"curves": figure.title, "group": curve.name, "n": curve.n, "events": curve.events}
                yield row | {"time": time, "survival": survival, "low": low, "high": high}


def _facts(study: Study, inputs: Sequence[Path]) -> dict[str, str]:
    config = study.config
    models = dict.fromkeys(
        str(model) for m in study.cohort.members for s in m.slides for model in (s.detector, s.classifier)
    )
    versions = dict.fromkeys(slide.version for member in study.cohort.members for slide in member.slides)
    facts = {
        "read": "; ".join(printable(str(path)) for path in inputs),
        "counted as one": study.cohort.by,
        "models": "; ".join(models),
        "slides scanned by mitoscan": ", ".join(versions),
        "bootstrap": f"{config.bootstrap} resamples, seed {config.seed}",
        "correction of p-values": config.correction,
        "least figures for a rate": str(config.min_figures),
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "mitoscan": __version__,
        "python": platform.python_version(),
    }
    return facts | dict(_versions())


def _versions() -> Iterator[tuple[str, str]]:
    for name in _PACKAGES:
        try:
            yield name, version(name)
        except PackageNotFoundError:
            continue


def _record(study: Study, command: str, facts: dict[str, str], files: Sequence[str]) -> dict[str, Any]:
    return {
        "schema_version": SCHEMA_VERSION,
        "command": command,
        "config": study.config.model_dump(mode="json"),
        "facts": facts,
        "flow": [{"step": s.text, "n": s.n, "removed": s.removed} for s in study.cohort.flow],
        "warnings": list(study.warnings),
        "files": list(files),
    }
