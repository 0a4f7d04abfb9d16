"""``mitoscan evaluate detector``: everything that is measured of a detector, in a folder to look at."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from mitoscan.config import ScanConfig
from mitoscan.learn import plots
from mitoscan.learn.detector_metrics import (
    SHIFTS,
    Find,
    Matched,
    Row,
    as_records,
    finder,
    match_field,
    pooled,
    table,
)
from mitoscan.learn.fields import Field
from mitoscan.report.atomic import write_atomically
from mitoscan.scan.detect import Detector, keep_inside
from mitoscan.scan.pipeline import scan_area
from mitoscan.scan.readers import ReaderPool
from mitoscan.scan.score import garwood_interval
from mitoscan.slide.reader import open_slide
from mitoscan.slide.tissue import area_mm2

log = logging.getLogger(__name__)

GALLERY = 60
CROP_PX = 96


@dataclass(frozen=True)
class FalseAlarms:
    """What a detector calls where there is nothing, or next to nothing, to find."""

    name: str
    count: int
    mm2: float
    low: float
    """Per mm², lower end of the 95 % interval: bootstrapped by slide, exact (Poisson) for a single one."""
    high: float

    @property
    def per_mm2(self) -> float:
        """False alarms per mm²."""
        return self.count / self.mm2


@dataclass(frozen=True)
class Evaluation:
    """All that was measured."""

    rows: list[Row]
    shifts: dict[str, float]
    """F1 of all fields at the same threshold under each shift."""
    false_alarms: list[FalseAlarms]


def evaluate_detector(
    detector: Detector,
    fields: Sequence[Field],
    out: Path,
    *,
    negatives: Sequence[Field] = (),
    negative_slides: Sequence[Path] = (),
    shifts: bool = True,
    resamples: int = 1000,
    seed: int = 0,
) -> Evaluation:
    """Measure a detector at its threshold and write tables, curves and galleries to ``out``.

    Parameters
    ----------
    detector
        Its ``threshold`` is the operating point that is measured.
    fields
        Labelled fields, whole slides held out from training.
    out
        Folder for evaluation.json, rows.csv, detections.csv, evaluation.md and pictures; made where needed.
    negatives, negative_slides
        Fields and slides with next to no mitotic figures, for false alarms per mm² (of slides: of tissue).
    shifts
        Measure again with ``SHIFTS`` applied.
    resamples, seed
        Of the bootstrap.

    Raises
    ------
    OutputError
        When ``out`` cannot be written.
    """
    find = finder(detector)
    matched = _match_all(find, fields, "fields")
    rows = table(matched, detector.threshold, resamples=resamples, seed=seed)
    shifted = {
        name: pooled(_match_all(find, [shift(f) for f in fields], name)).at(detector.threshold)[2]
        for name, shift in (SHIFTS.items() if shifts else ())
    }
    alarms = _alarms_in_fields(find, negatives, detector.threshold, resamples, np.random.default_rng(seed))
    alarms += [_alarms_on_slide(detector, path) for path in negative_slides]
    result = Evaluation(rows, shifted, alarms)
    out.mkdir(parents=True, exist_ok=True)
    _write_tables(result, matched, detector, out)
    _write_pictures(matched, detector.threshold, out)
    return result


def _match_all(find: Find, fields: Sequence[Field], what: str) -> list[Matched]:
    result = []
    for number, field in enumerate(fields, 1):
        result.append(match_field(field, *find(field)))
        if number % 20 == 0 or number == len(fields):
            log.info("%s: %d of %d", what, number, len(fields))
    return result


def _alarms_in_fields(
    find: Find, fields: Sequence[Field], threshold: float, resamples: int, rng: np.random.Generator
) -> list[FalseAlarms]:
    by_dataset: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for field in fields:
        slides = by_dataset.setdefault(field.dataset, {})
        called = int((find(field)[1] >= threshold).sum())
        slides.setdefault(field.slide, []).append((called, field.area_mm2))
    return [_alarms(name, list(slides.values()), resamples, rng) for name, slides in by_dataset.items()]


def _alarms(
    name: str, slides: Sequence[Sequence[tuple[int, float]]], resamples: int, rng: np.random.Generator
) -> FalseAlarms:
    each = np.array([np.sum(fields, axis=0) for fields in slides])
    count, mm2 = int(each[:, 0].sum()), float(each[:, 1].sum())
    if len(slides) == 1:
        interval = garwood_interval(count, mm2)
        low, high = interval.low, interval.high
    else:
        drawn = each[rng.integers(len(each), size=(resamples, len(each)))].sum(axis=1)
        low, high = np.quantile(drawn[:, 0] / drawn[:, 1], (0.025, 0.975))
    return FalseAlarms(name, count, mm2, float(low), float(high))


def _alarms_on_slide(detector: Detector, path: Path) -> FalseAlarms:
    with open_slide(path) as slide:
        info, area = slide.info, scan_area(slide, ScanConfig())
    frame = info.frame(detector.card.mpp)
    with ReaderPool(lambda: open_slide(path), 2) as pool:
        found = detector.run(detector.plan(frame, info.width_l0, info.height_l0, area), frame, pool)
    p = keep_inside(area, found).p
    called = int((p >= detector.threshold).sum())
    return _alarms(path.name, [[(called, area_mm2(area, info.known_mpp()))]], 0, np.random.default_rng(0))


def _write_tables(result: Evaluation, matched: Sequence[Matched], detector: Detector, out: Path) -> None:
    card = detector.card
    records = as_records(result.rows)
    whole = {
        "model": card.name,
        "sha256": card.sha256,
        "threshold": detector.threshold,
        "rows": records,
        "f1_under_shift": {k: round(v, 4) for k, v in result.shifts.items()},
        "false_alarms": [
            {k: round(v, 3) if isinstance(v, float) else v for k, v in asdict(a).items()}
            | {"per_mm2": round(a.per_mm2, 3)}
            for a in result.false_alarms
        ],
    }
    write_atomically(out / "evaluation.json", (json.dumps(whole, indent=2) + "\n").encode())
    write_atomically(out / "rows.csv", pd.DataFrame(records).to_csv(index=False).encode())
    parts = [
        pd.DataFrame(
            {
                "field": m.field.name,
                "slide": m.field.slide,
                "x": m.xy[:, 0],
                "y": m.xy[:, 1],
                "p_mitosis": m.p,
                "figure": m.figure,
                "ignored": m.ignored,
            }
        )
        for m in matched
    ]
    write_atomically(out / "detections.csv", pd.concat(parts).to_csv(index=False).encode())
    write_atomically(out / "evaluation.md", markdown(result, card.name).encode())


def markdown(result: Evaluation, model: str) -> str:
    """Give the tables as Markdown."""
    lines = [
        f"## {model} at threshold {result.rows[-1].threshold:.4f}\n",
        "| part | figures | mm² | precision | recall | F1 (95 %) | AP (95 %) | best F1 "
        "| F1, threshold of the others | FP/mm² | recall at 1, 2, 4, 8 FP/mm² |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in result.rows:
        foreign = "" if r.f1_of_others is None else f"{r.f1_of_others:.3f}"
        froc = ", ".join(f"{v:.2f}" for v in (r.recall_at_1, r.recall_at_2, r.recall_at_4, r.recall_at_8))
        lines.append(
            f"| {r.part} | {r.figures} | {r.area_mm2:.1f} | {r.precision:.3f} | {r.recall:.3f} "
            f"| {r.f1:.3f} ({r.low.f1:.2f}–{r.high.f1:.2f}) | {r.ap:.3f} ({r.low.ap:.2f}–{r.high.ap:.2f}) "
            f"| {r.best_f1:.3f} | {foreign} | {r.fp_per_mm2:.1f} | {froc} |"
        )
    if result.shifts:
        base = result.rows[-1].f1
        lines += ["", "| shift | F1 | change |", "|---|---|---|"]
        lines += [f"| {name} | {f1:.3f} | {f1 - base:+.3f} |" for name, f1 in result.shifts.items()]
    if result.false_alarms:
        lines += ["", "| negative tissue | called | mm² | per mm² (95 %) |", "|---|---|---|---|"]
        lines += [
            f"| {a.name} | {a.count} | {a.mm2:.1f} | {a.per_mm2:.2f} ({a.low:.1f}–{a.high:.1f}) |"
            for a in result.false_alarms
        ]
    return "\n".join(lines) + "\n"


def _write_pictures(matched: Sequence[Matched], threshold: float, out: Path) -> None:
    slides = {m.field.slide: [n for n in matched if n.field.slide == m.field.slide] for m in matched}
    parts = {"all": pooled(matched)} | {name: pooled(ms) for name, ms in slides.items() if len(slides) <= 12}
    plots.precision_recall(parts, threshold, out / "precision_recall.png")
    plots.froc(parts, out / "froc.png")
    every = parts["all"]
    plots.reliability(every.p, every.hit, "p_mitosis", out / "reliability.png")
    false = [(m, i) for m in matched for i in np.flatnonzero((m.figure < 0) & ~m.ignored)]
    false.sort(key=lambda pair: -pair[0].p[pair[1]])
    worst = [(f"{m.field.slide} {m.p[i]:.2f}", _crop(m.field, m.xy[i])) for m, i in false[:GALLERY]]
    plots.contact_sheet(worst, out / "false_positives.png")
    plots.contact_sheet(_missed(matched, threshold), out / "misses.png")


def _missed(matched: Sequence[Matched], threshold: float) -> list[tuple[str, npt.NDArray[np.uint8]]]:
    """Figures not called, those scored lowest first."""
    found = []
    for m in matched:
        scores = np.zeros(len(m.field.figures))
        hits = m.figure >= 0
        scores[m.figure[hits]] = m.p[hits]
        found += [(float(scores[j]), m.field, j) for j in np.flatnonzero(scores < threshold)]
    found.sort(key=lambda item: item[0])
    return [(f"{f.slide} {p:.2f}", _crop(f, f.figures[j])) for p, f, j in found[:GALLERY]]


def _crop(field: Field, centre: npt.NDArray[np.float64]) -> npt.NDArray[np.uint8]:
    return field.pixels.cut(np.round(centre), CROP_PX)
