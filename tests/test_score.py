from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from results import findings, info, result

from mitoscan.errors import MppError
from mitoscan.models.card import SUBTYPES, Counts
from mitoscan.scan.score import (
    SlideSummary,
    corrected_rate,
    find_hotspot,
    garwood_interval,
    summarise,
    wilson_interval,
)
from mitoscan.units import Mpp

GOOD = Counts(tp=80, fn=20, tn=285, fp=15)


@pytest.mark.parametrize(
    ("count", "low", "high"),
    [(0, 0, 3.6889), (1, 0.0253, 5.5716), (10, 4.7954, 18.3904), (100, 81.3640, 121.6268)],
)
def test_garwood_gives_the_published_limits(count, low, high):
    assert garwood_interval(count, 1.0) == pytest.approx((low, high), abs=1e-4)
    assert garwood_interval(count, 2.5) == pytest.approx((low / 2.5, high / 2.5), abs=1e-4)


@pytest.mark.parametrize(
    ("k", "n", "low", "high"),
    [(0, 10, 0, 0.2775), (10, 10, 0.7225, 1), (15, 148, 0.0624, 0.1605), (81, 263, 0.2553, 0.3662)],
)
def test_wilson_gives_the_published_limits(k, n, low, high):
    assert wilson_interval(k, n) == pytest.approx((low, high), abs=1e-4)


@given(st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_holds_the_proportion_and_stays_in_bounds(pair):
    k, n = pair
    low, high = wilson_interval(k, n)
    assert 0 <= low <= k / n <= high <= 1


@pytest.mark.parametrize(("count", "exposure"), [(-1, 1.0), (1, 0.0), (1, -2.0), (1, float("nan"))])
def test_no_density_without_an_area(count, exposure):
    with pytest.raises(ValueError, match="exposure"):
        garwood_interval(count, exposure)


@pytest.mark.parametrize(("k", "n"), [(0, 0), (3, 2), (-1, 2)])
def test_no_proportion_of_nothing(k, n):
    with pytest.raises(ValueError, match="no proportion"):
        wilson_interval(k, n)


def test_correction_undoes_the_classifiers_errors():
    """Of 1000 figures 200 are atypical: 0.8 × 200 + 0.05 × 800 = 200 are called so, by chance the same."""
    assert corrected_rate(200, 1000, GOOD).value == pytest.approx(0.2)
    assert corrected_rate(125, 1000, GOOD).value == pytest.approx(0.1)
    assert corrected_rate(30, 1000, GOOD).value == 0
    assert corrected_rate(900, 1000, GOOD).value == 1


def test_a_perfect_classifier_corrects_nothing():
    assert corrected_rate(30, 100, Counts(tp=500, fn=0, tn=500, fp=0)).value == pytest.approx(0.3)


@pytest.mark.parametrize(
    "counts",
    [
        Counts(tp=50, fn=50, tn=50, fp=50),
        Counts(tp=10, fn=90, tn=50, fp=50),
        Counts(tp=0, fn=0, tn=50, fp=0),
        Counts(tp=5, fn=0, tn=0, fp=0),
    ],
)
def test_no_correction_by_a_classifier_that_knows_nothing(counts):
    assert corrected_rate(5, 20, counts) is None


def test_no_correction_without_figures():
    assert corrected_rate(0, 0, GOOD) is None


@given(
    st.integers(1, 300).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))),
    *[st.integers(1, 60)] * 4,
)
@settings(max_examples=50, deadline=None)
def test_corrected_interval_holds_its_value_and_stays_in_bounds(pair, tp, fn, tn, fp):
    estimate = corrected_rate(*pair, Counts(tp=tp, fn=fn, tn=tn, fp=fp), draws=500)
    if estimate is None:
        assert tp / (tp + fn) + tn / (tn + fp) <= 1
    else:
        assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1


def test_corrected_interval_carries_both_errors_and_never_collapses():
    few_figures, few_crops = corrected_rate(4, 20, GOOD), corrected_rate(200, 1000, GOOD)
    sure = corrected_rate(200, 1000, Counts(tp=8000, fn=2000, tn=28500, fp=1500))
    widths = [estimate.high - estimate.low for estimate in (few_figures, few_crops, sure)]
    assert widths[0] > 2 * widths[1] > 2 * widths[2]
    for sure, unsure in (
        ({"tp": 800, "fn": 200}, {"tp": 8, "fn": 2}),
        ({"tn": 900, "fp": 100}, {"tn": 9, "fp": 1}),
    ):
        rest = {"tp": 800, "fn": 200, "tn": 900, "fp": 100}
        narrow, wide = (corrected_rate(300, 1000, Counts(**(rest | part))) for part in (sure, unsure))
        assert wide.high - wide.low > 2 * (narrow.high - narrow.low)
    assert corrected_rate(0, 5, Counts(tp=9, fn=0, tn=9, fp=0)).high > 0.3
    assert (
        corrected_rate(4, 20, GOOD)
        == corrected_rate(4, 20, GOOD, seed=0)
        != corrected_rate(4, 20, GOOD, seed=1)
    )


@pytest.mark.parametrize(("true_rate", "figures"), [(0.05, 40), (0.2, 60), (0.5, 30)])
def test_corrected_interval_covers_the_truth(true_rate, figures):
    rng = np.random.default_rng(1)
    hits, runs = 0, 300
    for _ in range(runs):
        tp, tn = rng.binomial(100, 0.8), rng.binomial(300, 0.95)
        amf = rng.binomial(figures, true_rate * 0.8 + (1 - true_rate) * 0.05)
        counts = Counts(tp=tp, fn=100 - tp, tn=tn, fp=300 - tn)
        estimate = corrected_rate(amf, figures, counts, draws=1000)
        hits += estimate.low <= true_rate <= estimate.high
    assert hits / runs > 0.92


def most_in_any_window(x, y, width, height, x_max, y_max):
    """Brute force: a best window has its left and top edge on a point or at a limit."""
    lefts = np.unique(np.clip(np.append(x, 0), 0, x_max))
    tops = np.unique(np.clip(np.append(y, 0), 0, y_max))
    return max(
        int(((x >= a) & (x < a + width) & (y >= b) & (y < b + height)).sum()) for a in lefts for b in tops
    )


SIDES = st.integers(20, 3000)
UNIT = st.floats(0, 1, exclude_max=True)


@given(
    st.lists(st.tuples(UNIT, UNIT), min_size=1, max_size=30),
    SIDES,
    SIDES,
    st.sampled_from([Mpp(1.0, 1.0), Mpp(0.5, 1.5)]),
    st.sampled_from([7.0, 97.0]),
)
@settings(max_examples=200, deadline=None)
def test_hotspot_is_the_best_of_all_windows(points, width, height, mpp, grid):
    x, y = (np.floor(np.array(values) * grid) / grid for values in zip(*points, strict=True))
    x, y = x * width, y * height
    area = 0.12
    spot = find_hotspot(x, y, mpp, area, width, height)
    box = spot.box
    assert spot.count == int(box.contains(x, y).sum())
    assert spot.count == most_in_any_window(
        x, y, box.width, box.height, width - box.width, height - box.height
    )
    assert box.x >= 0
    assert box.y >= 0
    assert box.right <= width * (1 + 1e-12)
    assert box.bottom <= height * (1 + 1e-12)
    assert spot.area_mm2 == pytest.approx(box.width * mpp.x * box.height * mpp.y / 1e6)
    assert spot.area_mm2 <= area * (1 + 1e-9)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=30), st.randoms())
@settings(deadline=None)
def test_on_a_grid_full_of_ties_hotspot_is_exact_and_the_order_has_no_effect(points, random):
    """The window is 1000 x 750 px: its right and lower edge, which are not part of it, often hit a figure."""
    x, y = np.array(points, float).T * 250
    spot = find_hotspot(x, y, Mpp(1, 1), 0.75, 2500, 2500)
    assert (spot.box.width, spot.box.height) == (1000, 750)
    assert spot.count == int(spot.box.contains(x, y).sum())
    assert spot.count == most_in_any_window(x, y, 1000, 750, 1500, 1750)
    shuffled = np.array(random.sample(points, len(points)), float).T * 250
    assert spot == find_hotspot(*shuffled, Mpp(1, 1), 0.75, 2500, 2500)


def test_hotspot_is_4_to_3_in_micrometres_and_of_the_area_asked_for():
    spot = find_hotspot(np.array([50_000.0]), np.array([40_000.0]), Mpp(0.25, 0.5), 2.0, 100_000, 100_000)
    assert spot.area_mm2 == pytest.approx(2.0)
    assert spot.box.width * 0.25 == pytest.approx(1632.993, abs=1e-3)
    assert spot.box.height * 0.5 == pytest.approx(1224.745, abs=1e-3)


def test_hotspot_is_centred_on_its_figures():
    x, y = np.array([50_000.0, 51_000.0]), np.array([40_000.0, 40_600.0])
    box = find_hotspot(x, y, Mpp(0.25, 0.25), 2.0, 100_000, 100_000).box
    assert (box.x + box.right) / 2 == pytest.approx(50_500)
    assert (box.y + box.bottom) / 2 == pytest.approx(40_300)


def test_hotspot_of_a_small_slide_is_the_slide_and_says_so():
    spot = find_hotspot(np.array([5.0]), np.array([5.0]), Mpp(0.25, 0.25), 2.0, 4000, 2000)
    assert (spot.box.x, spot.box.y, spot.box.width, spot.box.height) == (0, 0, 4000, 2000)
    assert spot.area_mm2 == pytest.approx(0.5)


def test_no_hotspot_without_figures():
    assert find_hotspot(np.empty(0), np.empty(0), Mpp(0.25, 0.25), 2.0, 4000, 2000) is None


@pytest.mark.parametrize("side", [100_000, 9_000, 3_000])
def test_hotspot_of_twenty_thousand_figures_takes_under_two_seconds(side):
    x, y = np.random.default_rng(0).random((2, 20_000)) * side
    start = time.perf_counter()
    find_hotspot(x, y, Mpp(0.25, 0.25), 2.0, side, side)
    assert time.perf_counter() - start < 2


def test_summary_counts_the_table():
    table = findings(200, subtypes=True)
    summary = result(table).summary
    mf = table[table["is_mf"]]
    assert summary.mf_count == len(mf) == summary.amf_count + summary.nmf_count
    assert summary.amf_rate == (mf["label"] == "AMF").mean()
    assert summary.amf_nmf_ratio == summary.amf_count / summary.nmf_count != summary.amf_rate
    assert summary.tissue_mm2 == pytest.approx(3.0)
    assert summary.mf_per_mm2 == pytest.approx(len(mf) / 3.0)
    assert summary.mf_per_mm2_low < summary.mf_per_mm2 < summary.mf_per_mm2_high
    assert summary.amf_per_mm2 == pytest.approx(summary.amf_count / 3.0)
    assert summary.amf_rate_low < summary.amf_rate < summary.amf_rate_high
    assert summary.amf_rate_corrected_low < summary.amf_rate_corrected < summary.amf_rate_corrected_high
    assert (summary.amf_rate_flag, summary.qc_flags) == ("", ())
    assert list(summary.subtype_counts) == list(SUBTYPES)
    assert sum(summary.subtype_counts.values()) == summary.mf_count


def test_a_slide_without_figures_has_counts_but_no_rates():
    summary = result(findings(20, p_mitosis=0.1)).summary
    undefined = {name for name, value in summary if value is None}
    assert undefined == {
        *(f"amf_rate{kind}{end}" for kind in ("", "_corrected") for end in ("", "_low", "_high")),
        "amf_nmf_ratio",
        "subtype_counts",
        *("reviewed_count", "rejected_count", "added_count", "agreement_kappa", "agreement_amf_kappa"),
        *("out_of_focus_share", "pen_mm2", "fold_mm2", "unlike_distance"),
        *(f"hotspot_{name}" for name in ("count", "mm2", "x_l0", "y_l0", "width_l0", "height_l0")),
    }
    assert (summary.mf_count, summary.mf_per_mm2, summary.amf_per_mm2) == (0, 0, 0)
    assert summary.mf_per_mm2_high > 0
    assert summary.amf_rate_flag == "no mitotic figures"


def test_rates_of_few_figures_are_flagged():
    few, enough = (result(findings(n, p_mitosis=0.9)).summary for n in (19, 20))
    assert few.amf_rate_flag == "fewer than 20 mitotic figures"
    assert "few mitotic figures" in few.qc_flags
    assert (enough.amf_rate_flag, enough.qc_flags) == ("", ())


def test_what_weakens_the_numbers_is_flagged():
    coarse = info(1000, 800, Mpp(0.499, 0.499), mpp_source="--mpp")
    flags = result(findings(30, 1000, 800, p_mitosis=0.9), coarse, mpp=0.499).summary.qc_flags
    assert flags == (
        "mpp given by hand",
        "slide coarser than the detector's mpp",
        "hot spot cut to the slide",
    )
    finer = result(findings(30, p_mitosis=0.9), info(mpp=Mpp(0.263, 0.263)), hotspot_mm2=0.5)
    assert finer.summary.qc_flags == ()


def test_summary_survives_json_and_names_models_and_thresholds():
    summary = result().summary
    assert SlideSummary.model_validate_json(summary.model_dump_json()) == summary
    for name, sha256 in (("detector", "a" * 12), ("classifier", "b" * 12)):
        assert getattr(summary, name) == f"fake-{name}"
        assert getattr(summary, f"{name}_threshold") == 0.5
        assert getattr(summary, f"{name}_sha256") == sha256


def test_no_summary_without_pixel_size():
    whole = result()
    with pytest.raises(MppError):
        summarise(
            info=info(mpp=None),
            config=whole.config,
            detector=whole.detector,
            classifier=whole.classifier,
            findings=whole.findings,
            tissue_mm2=1.0,
            hotspot=None,
            seconds=1.0,
        )
