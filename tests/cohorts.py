"""Simulated cohorts with known effects: slides.csv by the real writer, and a clinical table beside it."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from mitoscan.models.card import load_card
from mitoscan.models.zoo import find_model
from mitoscan.report.tables import write_slides_csv
from mitoscan.scan.score import (
    Estimate,
    SlideSummary,
    corrected_rate,
    garwood_interval,
    wilson_interval,
)

CARD = load_card(find_model("classifier-lite0", "classifier")[0])


def summary(slide_id: str, mf: int, amf: int, tissue_mm2: float = 50.0, **changes) -> SlideSummary:
    """A slide's numbers as the scan writes them; the hot spot holds a third of the figures."""
    rate = Estimate(amf / mf, *wilson_interval(amf, mf)) if mf else (None, None, None)
    assert CARD.validation is not None
    corrected = corrected_rate(amf, mf, CARD.validation) or (None, None, None)
    density = garwood_interval(mf, tissue_mm2)
    values = {
        "slide_id": slide_id,
        "path": f"slides/{slide_id}.svs",
        "mpp_x": 0.25,
        "mpp_y": 0.25,
        "mpp_source": "openslide.mpp-x",
        "tissue_mm2": tissue_mm2,
        "mf_count": mf,
        "mf_per_mm2": mf / tissue_mm2,
        "mf_per_mm2_low": density.low,
        "mf_per_mm2_high": density.high,
        "amf_count": amf,
        "nmf_count": mf - amf,
        "amf_rate": rate[0],
        "amf_rate_low": rate[1],
        "amf_rate_high": rate[2],
        "amf_rate_flag": "" if mf >= 20 else "fewer than 20 mitotic figures",
        "amf_rate_corrected": corrected[0],
        "amf_rate_corrected_low": corrected[1],
        "amf_rate_corrected_high": corrected[2],
        "amf_nmf_ratio": amf / (mf - amf) if mf > amf else None,
        "amf_per_mm2": amf / tissue_mm2,
        "hotspot_count": -(-mf // 3) if mf else None,
        "hotspot_mm2": 2.0 if mf else None,
        "hotspot_x_l0": 0.0 if mf else None,
        "hotspot_y_l0": 0.0 if mf else None,
        "hotspot_width_l0": 6532.0 if mf else None,
        "hotspot_height_l0": 4899.0 if mf else None,
        "subtype_counts": None,
        "qc_flags": () if mf >= 20 else ("few mitotic figures",),
        "detector": "detector-lite0",
        "detector_threshold": 0.4,
        "detector_sha256": "d" * 12,
        "classifier": CARD.name,
        "classifier_threshold": CARD.operating_point.threshold,
        "classifier_sha256": CARD.sha256[:12],
        "mitoscan_version": "0.1.0",
        "seconds": 1.0,
    }
    return SlideSummary.model_validate(values | changes)


def write_out(folder: Path, slides: Sequence[SlideSummary], cases: dict[str, str] | None = None) -> Path:
    """Write slides.csv as a batch does; ``cases`` adds the column case_id of a manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "slides.csv"
    write_slides_csv(slides, path)
    if cases is not None:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        write_csv(path, [row | {"case_id": cases.get(row["slide_id"], "")} for row in rows])
    return folder


def write_csv(path: Path, rows: Sequence[dict[str, object]], delimiter: str = ",") -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return path


@dataclass(frozen=True)
class Simulated:
    """A cohort on disk, and its truth."""

    out: Path
    clinical: Path
    truth: SimpleNamespace


def simulate(folder: Path, cases: int = 160, *, seed: int = 0, slides_per_case: int = 2) -> Simulated:
    """A cohort in which the AMF rate differs between arms and grades, and hastens the event.

    Rates are drawn on the logit scale (sd 0.6); arm B has +0.9, each grade +0.4. The hazard is
    exp(0.8 × standardised logit); a sixth are censored early. ``noise`` and ``blood`` are independent of all.
    """
    rng = np.random.default_rng(seed)
    arm, grade = rng.integers(2, size=cases), rng.integers(1, 4, size=cases)
    logit = -1.6 + 0.6 * rng.standard_normal(cases) + 0.9 * arm + 0.4 * (grade - 1)
    rate = 1 / (1 + np.exp(-logit))
    standard = (logit - logit.mean()) / logit.std()
    time = rng.exponential(40 / np.exp(0.8 * standard))
    censored = rng.uniform(5, 120, cases)
    event = time <= censored
    slides, case_of, rows = [], {}, []
    for i in range(cases):
        for j in range(slides_per_case):
            mf = int(rng.poisson(rng.gamma(4, 12)))
            name = f"S{i:03d}-{j}"
            tissue = float(rng.uniform(20, 120))
            slides.append(summary(name, mf, int(rng.binomial(mf, rate[i])), tissue))
            case_of[name] = f"C{i:03d}"
        rows.append(
            {
                "case_id": f"C{i:03d}",
                "arm": "AB"[arm[i]],
                "noise": "xyz"[rng.integers(3)],
                "grade": int(grade[i]),
                "blood": round(float(rng.normal()), 4),
                "relapse": int(rng.random() < 1 / (1 + np.exp(-1.5 * standard[i]))),
                "time": round(float(min(time[i], censored[i])), 3),
                "event": int(event[i]),
            }
        )
    out = write_out(folder / "out", slides, case_of)
    truth = SimpleNamespace(rate=rate, standard=standard, rows=rows, slides=slides, case_of=case_of)
    return Simulated(out, write_csv(folder / "clinical.csv", rows), truth)
