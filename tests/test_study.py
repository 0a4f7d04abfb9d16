"""A study from the command line: the planted effects are found, everyone is accounted for."""

from __future__ import annotations

import csv
import json
import math
import re
import sys
from pathlib import Path

import cohorts
import numpy as np
import pytest
from cohorts import CARD, summary, write_csv, write_out
from scipy import stats

from mitoscan import cli
from mitoscan.scan.score import corrected_rate, garwood_interval, wilson_interval

pytest.importorskip("matplotlib", reason="the extra `study` is not installed")
pytest.importorskip("lifelines", reason="the extra `study` is not installed")


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def study(monkeypatch, capsys):
    """Run `mitoscan study`; give exit code, standard output and error."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["mitoscan", "study", *map(str, arguments)])
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    return cohorts.simulate(tmp_path_factory.mktemp("cohort"))


@pytest.fixture(scope="module")
def done(simulated, tmp_path_factory):
    """One whole study of the simulated cohort; its folder."""
    folder = tmp_path_factory.mktemp("study") / "made"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            sys,
            "argv",
            [
                "mitoscan", "study", str(simulated.out), "-o", str(folder),
                "--clinical", str(simulated.clinical),
                "--group", "arm", "--group", "noise", "--correlate", "grade", "--correlate", "blood",
                "--outcome", "relapse", "--bootstrap", "300",
            ],
        )  # fmt: skip
        with pytest.raises(SystemExit) as stop:
            cli.main()
    assert not stop.value.code
    return folder


def answers(folder: Path) -> dict[tuple[str, str, str], dict[str, str]]:
    return {(r["column"], r["measure"], r["test"]): r for r in read(folder / "tables" / "tests.csv")}


def test_planted_effects_are_found_and_null_ones_are_not(done):
    rows = answers(done)
    for key in (
        ("arm", "amf_rate", "Mann–Whitney"),
        ("grade", "amf_rate", "Spearman"),
        ("relapse", "amf_rate", "Mann–Whitney"),
        ("time / event", "amf_rate", "Cox, per sd"),
    ):
        assert float(rows[key]["p_adjusted"]) < 0.01, key
    null = [
        row for (column, measure, _), row in rows.items()
        if column in {"noise", "blood"} or measure in {"mf_per_mm2", "hotspot_count"}
    ]  # fmt: skip
    assert len(null) > 10
    assert all(float(row["p_adjusted"]) > 0.05 for row in null if row["p_adjusted"])
    assert float(rows["arm", "amf_rate", "Mann–Whitney"]["value"]) > 0.6
    hazard = rows["time / event", "amf_rate", "Cox, per sd"]
    # exp(0.8) is the hazard of the true logit; the measured rate is noisier, so its ratio is nearer 1.
    assert 1.4 < float(hazard["value"]) < math.exp(0.8) * 1.2


def test_cases_are_put_together_from_their_slides(done, simulated):
    slides = {s.slide_id: s for s in simulated.truth.slides}
    rows = read(done / "tables" / "cases.csv")
    assert len(rows) == 160
    assert CARD.validation is not None
    for row in rows[:20]:
        own = [slides[name] for name in row["slide_ids"].split("; ")]
        mf, amf = sum(s.mf_count for s in own), sum(s.amf_count for s in own)
        tissue = sum(s.tissue_mm2 for s in own)
        weighted = sum(s.mf_per_mm2 * s.tissue_mm2 for s in own) / tissue
        assert float(row["mf_per_mm2"]) == pytest.approx(weighted)
        assert float(row["amf_rate"]) == pytest.approx(amf / mf)
        assert float(row["amf_rate_low"]) == pytest.approx(wilson_interval(amf, mf).low)
        assert float(row["amf_per_mm2_high"]) == pytest.approx(garwood_interval(amf, tissue).high)
        corrected = corrected_rate(amf, mf, CARD.validation)
        assert float(row["amf_rate_corrected"]) == pytest.approx(corrected.value)
        assert float(row["amf_rate_corrected_high"]) == pytest.approx(corrected.high)
        assert float(row["hotspot_count"]) == max(s.hotspot_count or 0 for s in own)


def test_p_values_are_corrected_by_holm_over_all_counted_tests(done):
    rows = [row for row in read(done / "tables" / "tests.csv") if row["counted"] == "True"]
    p = np.array([float(row["p"]) for row in rows])
    order = np.argsort(p)
    by_hand, worst = {}, 0.0
    for rank, at in enumerate(order):
        worst = max(worst, min(1.0, p[at] * (len(p) - rank)))
        by_hand[at] = worst
    for at, row in enumerate(rows):
        assert float(row["p_adjusted"]) == pytest.approx(by_hand[at])


def test_the_numbers_are_those_of_scipy(done):
    cases, rows = read(done / "tables" / "cases.csv"), answers(done)
    rate = np.array([float(row["amf_rate"]) for row in cases])
    grade = np.array([float(row["clinical: grade"]) for row in cases])
    arm = np.array([row["clinical: arm"] for row in cases])
    noise = np.array([row["clinical: noise"] for row in cases])
    rho = stats.spearmanr(rate, grade)
    row = rows["grade", "amf_rate", "Spearman"]
    assert float(row["value"]) == pytest.approx(rho.statistic)
    assert float(row["p"]) == pytest.approx(rho.pvalue)
    u = stats.mannwhitneyu(rate[arm == "B"], rate[arm == "A"])
    row = rows["arm", "amf_rate", "Mann–Whitney"]
    assert float(row["statistic"]) == u.statistic
    assert float(row["p"]) == pytest.approx(u.pvalue)
    assert float(row["value"]) == pytest.approx(u.statistic / ((arm == "A").sum() * (arm == "B").sum()))
    h = stats.kruskal(*(rate[noise == level] for level in "xyz"))
    row = rows["noise", "amf_rate", "Kruskal–Wallis"]
    assert float(row["statistic"]) == pytest.approx(h.statistic)
    assert float(row["p"]) == pytest.approx(h.pvalue)


def test_survival_is_that_of_a_direct_computation(done):
    cases, rows = read(done / "tables" / "cases.csv"), answers(done)
    rate = np.array([float(row["amf_rate"]) for row in cases])
    time = np.array([float(row["clinical: time"]) for row in cases])
    event = np.array([row["clinical: event"] == "1" for row in cases])
    x = (rate - rate.mean()) / rate.std(ddof=1)

    def score(beta: float) -> float:  # Cox's partial score; times have no ties here
        total = 0.0
        for i in np.flatnonzero(event):
            risk = time >= time[i]
            weight = np.exp(beta * x[risk])
            total += x[i] - (weight * x[risk]).sum() / weight.sum()
        return total

    assert len(np.unique(time[event])) == event.sum()
    low, high = -3.0, 3.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if score(middle) > 0 else (low, middle)
    hazard = rows["time / event", "amf_rate", "Cox, per sd"]
    assert math.log(float(hazard["value"])) == pytest.approx(low, abs=1e-4)
    assert int(re.match(r"(\d+) events", hazard["groups"])[1]) == event.sum()

    arm = np.array([row["clinical: arm"] for row in cases])
    observed = expected = variance = 0.0
    for at in np.unique(time[event]):
        risk, died = time >= at, (time == at) & event
        n, n1, d = risk.sum(), (risk & (arm == "A")).sum(), died.sum()
        observed += (died & (arm == "A")).sum()
        expected += d * n1 / n
        variance += d * (n1 / n) * (1 - n1 / n) * (n - d) / (n - 1) if n > 1 else 0
    row = rows["arm; time / event", "", "log-rank"]
    assert float(row["statistic"]) == pytest.approx((observed - expected) ** 2 / variance)

    curve = [
        r for r in read(done / "tables" / "survival.csv") if r["group"] == "A" and r["curves"] == "by arm"
    ]
    alive, by_hand = 1.0, {0.0: 1.0}
    for at in np.unique(time[arm == "A"]):
        risk = ((time >= at) & (arm == "A")).sum()
        alive *= 1 - ((time == at) & event & (arm == "A")).sum() / risk
        by_hand[at] = alive
    assert {float(r["time"]): float(r["survival"]) for r in curve} == pytest.approx(by_hand)


def test_the_page_says_all_and_loads_nothing(done):
    page = (done / "study.html").read_text(encoding="utf-8")
    assert "160 cases from 320 slides" in page
    for said in (
        "seed 0",
        "300 resamples",
        "Holm",
        "lifelines",
        "106 events",
        "optimistic",
        "--outcome relapse",
    ):
        assert said in page, said
    assert not re.search(r"(src|href)=\"(?!data:|#)", page)
    assert "<script" not in page
    images = re.findall(r"<img ([^>]*)>", page)
    assert len(images) >= 10
    assert all(re.search(r'alt="[^"]{20,}"', image) for image in images)
    record = json.loads((done / "study.json").read_text())
    written = {path.relative_to(done).as_posix() for path in done.rglob("*") if path.is_file()}
    assert written == {*record["files"], "study.json"}
    assert "noise" in record["config"]["groups"]


def small(folder: Path, n: int = 12, **columns) -> tuple[Path, list[dict[str, object]]]:
    """A cohort of n slides without cases, and a clinical row for each."""
    slides = [summary(f"S{i}", 40 + 3 * i, 4 + i) for i in range(n)]
    rows = [{"slide_id": f"S{i}"} | {name: cells[i] for name, cells in columns.items()} for i in range(n)]
    return write_out(folder / "out", slides), rows


def test_all_that_falls_out_is_accounted_for(study, tmp_path):
    slides = [summary(f"S{i}", 30 + i, 5 + i % 7) for i in range(14)]
    slides += [summary("zero", 0, 0), summary("nocase", 30, 3), summary("torn", 30, 3)]
    cases = {f"S{i}": f"C{i // 2}" for i in range(14)} | {"zero": "C zero", "torn": "C7"}
    out = write_out(tmp_path / "out", slides, cases)
    rows = read(out / "slides.csv")
    rows.append(rows[0])  # the same again
    rows += [rows[1] | {"slide_id": "twin"}, rows[2] | {"slide_id": "twin"}]  # one id, two results
    rows.append(rows[3] | {"slide_id": "dry", "tissue_mm2": "0"})
    rows[16] = rows[16] | {"mf_count": "31"}
    write_csv(out / "slides.csv", rows)
    write_csv(
        out / "failures.csv",
        [
            {
                "path": "/x/lost.svs",
                "error": "SlideOpenError",
                "message": "empty",
                "remedy": "",
                "exit_code": 11,
            }
        ],
    )
    clinical = [{"case_id": f"C{i}", "arm": "AB"[i % 2]} for i in range(6)]  # none for C6
    clinical += [{"case_id": "C0", "arm": "A"}, {"case_id": "C1", "arm": "A"}]  # again; and another arm
    clinical += [
        {"case_id": "C zero", "arm": "B"},
        {"case_id": "stranger", "arm": "B"},
        {"case_id": "", "arm": "A"},
    ]
    code, shown, _ = study(
        out, "--clinical", write_csv(tmp_path / "c.csv", clinical), "-o", tmp_path / "s", "--group", "arm"
    )
    assert code == 0
    found = {(r["what"], r["id"]): r["reason"] for r in read(tmp_path / "s" / "tables" / "exclusions.csv")}
    assert found == {
        ("slide", "lost"): "failed in the scan",
        ("slide", "torn"): "numbers contradict each other",
        ("slide", "S0"): "the same row again",
        ("slide", "twin"): "slide id occurs twice with different numbers",
        ("slide", "dry"): "no tissue",
        ("slide", "nocase"): "no case id",
        ("clinical row", "row 11"): "clinical row without a known id",
        ("clinical row", "stranger"): "clinical row without results: no such case",
        ("case", "C6"): "no clinical row",
        ("case", "C1"): "clinical rows contradict each other",
    }
    assert "cases in the study: 6" in shown
    assert "'C0': more than one clinical row" in shown
    assert "1 of 6 cases have no mitotic figure" in shown
    row = answers(tmp_path / "s")["arm", "amf_rate", "Mann–Whitney"]
    assert row["n"] == "5"  # the case without figures has no rate
    assert answers(tmp_path / "s")["arm", "amf_per_mm2", "Mann–Whitney"]["n"] == "6"
