"""A study from the command line: the planted effects are found, everyone is accounted for."""

from __future__ import annotations

import contextlib
import csv
import json
import math
import re
import sys
from pathlib import Path
from xml.etree import ElementTree

import cohorts
import numpy as np
import pytest
from cohorts import CARD, summary, write_csv, write_out
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import stats

from mitoscan import cli
from mitoscan.errors import ConfigError, DataError, MitoscanError
from mitoscan.models.card import save_card
from mitoscan.scan.score import corrected_rate, garwood_interval, wilson_interval
from mitoscan.study.analyse import analyse
from mitoscan.study.config import StudyConfig
from mitoscan.study.figures import draw
from mitoscan.study.slides import COLUMNS
from mitoscan.study.write import write_study

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


def analysed(folder: Path, rows, slides=None, cases=None, **config):
    """A study in memory."""
    slides = slides or [summary(f"S{i}", 30 + i, 5 + i % 7) for i in range(len(rows))]
    out = write_out(folder / "out", slides, cases)
    clinical = write_csv(folder / "clinical.csv", rows) if rows else None
    return analyse(out, clinical, StudyConfig(bootstrap=200, **config))


def rows_of(n: int, **columns) -> list[dict[str, object]]:
    return [{"slide_id": f"S{i}"} | {name: cells[i] for name, cells in columns.items()} for i in range(n)]


def test_what_cannot_be_computed_says_why(tmp_path):
    n = 30
    study = analysed(
        tmp_path,
        rows_of(
            n,
            same=["x"] * n,
            rare=["a"] * (n - 1) + ["b"],
            name=[f"person {i}" for i in range(n)],
            text=["high"] * n,
            three=list("abc" * 10),
            few=[1] * 4 + [0] * 26,
            time=list(range(n)),
            event=[1] * 9 + [0] * 21,
        ),
        groups=("same", "rare", "name"),
        correlate=("text",),
        outcome="few",
        measures=("amf_rate",),
    )
    notes = {(t.variable, t.measure.name if t.measure else "", t.method): t.note for t in study.tests}
    assert "fewer than two groups" in notes["same", "amf_rate", "Kruskal–Wallis"]
    assert "left out, fewer than 2 values: b" in notes["rare", "amf_rate", "Kruskal–Wallis"]
    assert "too many for groups" in notes["name", "amf_rate", "Kruskal–Wallis"]
    assert "30 cells are not numbers" in notes["text", "amf_rate", "Spearman"]
    assert "fewer than 5 with or without" in notes["few", "amf_rate", "Mann–Whitney"]
    assert "9 events are too few, 10 are needed" in notes["time / event", "amf_rate", "Cox, per sd"]
    assert not any(test.computed for test in study.tests)
    pictures = draw(study)
    assert "log-rank" in next(p for p in pictures if p.name.startswith("km-")).alt
    three = analysed(tmp_path, rows_of(n, three=list("abc" * 10)), outcome="three")
    assert "3 different values, not 2" in three.tests[0].note
    one = analysed(tmp_path, rows_of(n, three=list("abc" * 10)), outcome="three", positive="b")
    assert one.tests[0].detail == "b: 10, other: 20"
    with pytest.raises(ConfigError, match="'d' does not occur"):
        analysed(tmp_path, rows_of(n, three=list("abc" * 10)), outcome="three", positive="d")


def test_follow_up_that_cannot_be_read_is_named(tmp_path):
    n = 40
    times = [*range(1, n - 3), -5, "soon", "", 3]
    events = [i % 2 for i in range(n - 1)] + ["maybe"]
    study = analysed(tmp_path, rows_of(n, time=times, event=events))
    lost = {e.id: e.reason for e in study.exclusions}
    assert lost == {
        "S36": "not in survival: time is no number of 0 or more",
        "S37": "not in survival: time is no number of 0 or more",
        "S38": "not in survival: time or event missing",
        "S39": "not in survival: event is neither 1 nor 0",
    }
    assert {t.n for t in study.tests} == {n - len(lost)}


def test_a_cut_fixed_beforehand_counts_as_a_test_and_a_chosen_one_does_not(tmp_path):
    n = 60
    rng = np.random.default_rng(0)
    slides = [summary(f"S{i}", 100, int(a)) for i, a in enumerate(rng.integers(5, 60, n))]
    rows = rows_of(
        n, time=rng.exponential(10, n).round(3).tolist(), event=[1] * n, sick=[i % 2 for i in range(n)]
    )

    def at_cut(**config):
        study = analysed(tmp_path, rows, slides, measures=("amf_rate",), **config)
        return {t.method: t for t in study.tests}["Cox, at the cut"]

    chosen, given, median = at_cut(outcome="sick"), at_cut(outcome="sick", cut=0.25), at_cut()
    assert not chosen.in_family
    assert "optimistic" in chosen.note
    assert math.isnan(chosen.p_adjusted)
    assert given.in_family
    assert "below 25.0%" in given.detail
    assert "given beforehand" in given.note
    assert median.in_family
    assert "median" in median.note


def test_different_detectors_are_refused_and_other_differences_are_said(tmp_path):
    slides = [summary(f"S{i}", 30, 5) for i in range(8)]
    odd = [
        summary("S8", 30, 5, detector_threshold=0.5, mitoscan_version="0.0.9", hotspot_mm2=2.37),
        summary("S9", 30, 5, classifier="mine", classifier_sha256="f" * 12),
    ]
    study = analysed(tmp_path, [], [*slides, *odd])
    said = " ".join(study.warnings)
    for part in (
        "Thresholds of the detector",
        "Versions of mitoscan",
        "Hot-spot areas",
        "Classifiers",
        "mine",
    ):
        assert part in said, part
    assert "not all labels are of one origin" in said.lower()
    assert [p.name for p in study.pooled] == ["AMF rate"]
    with pytest.raises(DataError, match="different detectors"):
        analysed(tmp_path, [], [*slides, summary("S8", 30, 5, detector_sha256="e" * 12)])


def test_without_the_card_a_corrected_rate_is_taken_or_left_but_never_made_up(tmp_path):
    unknown = {"classifier": "mine", "classifier_sha256": "f" * 12}
    slides = [summary(f"S{i}", 60, 20, **unknown) for i in range(3)]
    study = analysed(tmp_path, [], slides, cases={"S0": "A", "S1": "A", "S2": "B"})
    two, one = (case.estimates["amf_rate_corrected"] for case in study.cases)
    assert math.isnan(two.value)
    assert one.value == slides[2].amf_rate_corrected
    assert any("card was not found" in warning for warning in study.warnings)
    moved = [summary("S0", 60, 20, classifier_threshold=0.7)]
    assert any("validated at threshold" in w for w in analysed(tmp_path, [], moved).warnings)
    own = CARD.model_copy(update={"name": "mine", "sha256": "f" * 64})
    (tmp_path / "mine").mkdir()
    save_card(own, tmp_path / "mine")
    study = analysed(
        tmp_path, [], slides, cases={"S0": "A", "S1": "A", "S2": "B"}, classifiers=(tmp_path / "mine",)
    )
    assert study.cases[0].estimates["amf_rate_corrected"].value == pytest.approx(
        corrected_rate(40, 120, CARD.validation).value
    )


def test_a_reviewers_labels_are_not_corrected_for_a_classifiers_errors(tmp_path):
    whole = {"amf_rate_corrected": 1 / 3, "amf_rate_corrected_low": 0.2, "amf_rate_corrected_high": 0.5}
    part = dict.fromkeys(whole)
    slides = [
        summary("S0", 60, 20, reviewed_count=60, **whole),
        summary("S1", 30, 10, reviewed_count=30, **whole),
        summary("S2", 60, 20, reviewed_count=7, **part),
        summary("S3", 60, 20),
        summary("S4", 60, 20),
        summary("S5", 60, 20, reviewed_count=2),  # two false alarms rejected, no label of an MF given
    ]
    cases = {"S0": "all", "S1": "all", "S2": "some", "S3": "some", "S4": "rejected", "S5": "rejected"}
    study = analysed(tmp_path, [], slides, cases=cases)
    found = {case.id: case.estimates["amf_rate_corrected"] for case in study.cases}
    assert found["all"] == pytest.approx((30 / 90, *wilson_interval(30, 90)))
    assert math.isnan(found["some"].value)
    assert found["rejected"].value == pytest.approx(corrected_rate(40, 120, CARD.validation).value)
    assert len(study.pooled) == 1


@pytest.mark.parametrize("slides", [
    [summary("a", 0, 0)],
    [summary("a", 1, 1)],
    [summary(f"{i}", 0, 0) for i in range(9)],
    [summary(f"{i}", 25, 25) for i in range(9)],
], ids=["one without figures", "one with one", "none anywhere", "all atypical"])  # fmt: skip
def test_degenerate_cohorts_give_a_page(study, tmp_path, slides):
    out = write_out(tmp_path / "out", slides)
    rows = [{"slide_id": s.slide_id, "arm": "AB"[i % 2], "age": i, "sick": i % 2, "time": i, "event": 1}
            for i, s in enumerate(slides)]  # fmt: skip
    clinical = write_csv(tmp_path / "c.csv", rows)
    options = ("--group", "arm", "--correlate", "age", "--outcome", "sick", "--bootstrap", 200)
    code, _, error = study(out, "--clinical", clinical, "-o", tmp_path / "s", *options)
    assert code == 0, error
    page = (tmp_path / "s" / "study.html").read_text(encoding="utf-8")
    assert ">nan" not in page
    assert " nan" not in page
    assert "not computed" in page


def test_text_of_users_stays_text(study, tmp_path):
    evil = "<img src=x onerror=alert(1)>\"'&$x^2$"
    names = [f"Ωμέγα {i} 日本 {evil}" for i in range(12)]
    slides = [summary(name, 30 + i, 5 + i % 5) for i, name in enumerate(names)]
    rows = [{"slide_id": name, evil: [evil, "\x01$\\frac{$", "𝒳🙂"][i % 3]} for i, name in enumerate(names)]
    out, clinical = write_out(tmp_path / "out", slides), write_csv(tmp_path / "c.csv", rows)
    code, _, error = study(
        out, "--clinical", clinical, "-o", tmp_path / "s", "--group", evil, "--bootstrap", 200
    )
    assert code == 0, error
    page = (tmp_path / "s" / "study.html").read_text(encoding="utf-8")
    assert "<img src=x" not in page
    assert "&lt;img src=x" in page
    for svg in (tmp_path / "s" / "figures").glob("*.svg"):
        ElementTree.parse(svg)  # noqa: S314  (our own file)
    assert read(tmp_path / "s" / "tables" / "cases.csv")[0][f"clinical: {evil}"] == evil


@pytest.mark.parametrize(("text", "said"), [
    ("", "is empty"),
    ("slide_id,arm\n", "no rows"),
    ("id,arm\nS0,A\n", "no column slide_id or case_id; the first line reads 'id', 'arm'"),
    ("slide_id|arm\nS0|A\n", "separate columns by commas"),
    ("slide_id,arm,arm\nS0,A,B\n", "'arm' occurs twice"),
    ("slide_id,arm\nS0,A,B\n", "line 2 has 3 fields, the header 2"),
    ('slide_id,arm\nS0,"A\n', "line 2"),
    ("slide_id,age\nS0,7\n", "no column 'arm'; the columns are 'slide_id', 'age'"),
    ("slide_id,arm\ns-0,A\nS 1.svs,B\n", "Ids that nearly match"),
    ("case_id,arm\nC,A\n", "no slide has one"),
])  # fmt: skip
def test_a_bad_clinical_table_is_one_line_with_its_remedy(study, tmp_path, text, said):
    out = write_out(tmp_path / "out", [summary(f"S{i}", 30, 5) for i in range(3)])
    (tmp_path / "c.csv").write_text(text, encoding="utf-8")
    code, _, error = study(out, "--clinical", tmp_path / "c.csv", "-o", tmp_path / "s", "--group", "arm")
    assert code in {2, 50}
    assert said in error
    assert len(error.strip().splitlines()) == 1
    assert not list((tmp_path / "s").rglob("*.*"))


def test_tables_from_elsewhere_are_read(tmp_path):
    n = 12
    slides = [summary(f"Größe {i}", 30 + i, 5) for i in range(n)]
    out = write_out(tmp_path / "out", slides)
    lines = ["slide_id;alter;;"] + [f"  Gro\u0308ße {i} ;{i},5;;" for i in range(n)]
    path = tmp_path / "c.csv"
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    study = analyse(out, path, StudyConfig(correlate=("alter",), measures=("mf_count",), bootstrap=200))
    assert study.tests[0].n == n
    assert study.tests[0].effect.value == pytest.approx(1.0)


def test_a_study_is_replaced_only_when_asked_and_leaves_nothing_behind(study, tmp_path):
    n = 12
    out = write_out(tmp_path / "out", [summary(f"S{i}", 30 + i, 5) for i in range(n)])
    clinical = write_csv(tmp_path / "c.csv", rows_of(n, arm=list("AB" * 6)))
    folder = tmp_path / "s"
    assert study(out, "--clinical", clinical, "-o", folder, "--group", "arm")[0] == 0
    (folder / "figures" / "mine.txt").write_text("keep")
    code, _, error = study(out, "-o", folder)
    assert code == 40
    assert "--overwrite" in error
    assert (folder / "figures" / "groups_arm.png").exists()
    assert study(out, "-o", folder, "--overwrite")[0] == 0
    assert not (folder / "figures" / "groups_arm.png").exists()
    assert (folder / "figures" / "mine.txt").exists()


def test_the_same_seed_gives_the_same_tables_and_figures(tmp_path):
    simulated = cohorts.simulate(tmp_path, 40, slides_per_case=1)
    config = StudyConfig(outcome="relapse", groups=("arm",), measures=("amf_rate",), bootstrap=200, seed=3)
    for name in ("one", "two"):
        write_study(analyse(simulated.out, simulated.clinical, config), tmp_path / name)
    for path in (tmp_path / "one").rglob("*.*"):
        if path.name not in {"study.html", "study.json"}:
            assert path.read_bytes() == (tmp_path / "two" / path.relative_to(tmp_path / "one")).read_bytes()
    other = analyse(simulated.out, simulated.clinical, config.model_copy(update={"seed": 4}))
    one = analyse(simulated.out, simulated.clinical, config)
    assert other.rocs["amf_rate"].oob_youden != one.rocs["amf_rate"].oob_youden
    assert other.rocs["amf_rate"].auc == one.rocs["amf_rate"].auc


def test_slides_count_as_one_when_asked_and_that_is_said(simulated):
    config = StudyConfig(by="slide", groups=("arm",), measures=("amf_rate",), bootstrap=200)
    study = analyse(simulated.out, simulated.clinical, config)
    assert study.cohort.by == "slide"
    assert len(study.cases) == 320
    assert any("as if independent" in warning for warning in study.warnings)


CELL = st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=12)
PLAIN = CELL.map(lambda cell: cell.replace('"', "").replace("\n", ""))
IDS = st.sampled_from(["S0", "S1", "S2", "S3", "", "S1 "])
TIMES = st.sampled_from(["1", "-1", "1e999", "nan", "x", "٣", "1_0"])
EVENTS = st.sampled_from(["0", "1", "yes", "?"])
HEADER = ("slide_id", "arm", "time", "event")


def csv_of(cells, separator: str):
    """Strategy: rows of these cells under the header, as bytes."""
    return st.lists(cells, min_size=1, max_size=8).map(
        lambda rows: "\n".join(separator.join(row) for row in [HEADER, *rows]).encode()
    )


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    data=st.one_of(
        st.binary(max_size=200),
        csv_of(st.lists(CELL, min_size=1, max_size=4), ","),
        csv_of(st.tuples(IDS, PLAIN, TIMES, EVENTS), ";"),
    )
)
def test_no_clinical_table_gives_a_traceback(tmp_path, data):
    out = tmp_path / "out"
    if not out.exists():
        write_out(out, [summary(f"S{i}", 30 * i, 5 * i) for i in range(4)])
    path = tmp_path / "c.csv"
    path.write_bytes(data)
    config = StudyConfig(
        groups=("arm",), correlate=("arm",), outcome="event", measures=("amf_rate",), bootstrap=200
    )
    with contextlib.suppress(MitoscanError):
        study = analyse(out, path, config)
        assert {member.id for member in study.cohort.members} <= {"S0", "S1", "S2", "S3"}


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    column=st.sampled_from([*COLUMNS, "qc_flags", "case_id", "amf_rate_corrected", "reviewed_count"]),
    cell=st.one_of(CELL, st.sampled_from(["-1", "1e400", "9" * 5000, "0.5", "nan", "inf"])),
)
def test_no_slides_csv_gives_a_traceback(tmp_path, column, cell):
    out = write_out(tmp_path / "out", [summary(f"S{i}", 30, 5) for i in range(2)], {"S0": "A"})
    rows = read(out / "slides.csv")
    write_csv(out / "slides.csv", [rows[0] | {column: cell}, rows[1]])
    with contextlib.suppress(MitoscanError):
        study = analyse(out, None, StudyConfig(bootstrap=200, by="slide"))
        assert 1 <= len(study.cases) <= 2
