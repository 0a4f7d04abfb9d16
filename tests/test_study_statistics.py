"""The statistics of a study against hand computation, other libraries' answers, and simulated coverage."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats

from mitoscan.models.card import Counts
from mitoscan.scan.score import wilson_interval
from mitoscan.study.measures import pooled_rates
from mitoscan.study.roc import Cut, apply_cut, best_cut, roc
from mitoscan.study.samplesize import figures_for_width, sample_size
from mitoscan.study.statistics import (
    benjamini_hochberg,
    epsilon_squared,
    h_statistic,
    holm,
    kruskal_wallis,
    mann_whitney,
    median_estimate,
    spearman,
    stream,
    superiority,
)

RNG = np.random.default_rng


def covered(intervals, truth: float) -> float:
    return float(np.mean([low <= truth <= high for _, low, high in intervals]))


def test_superiority_counts_pairs():
    x, y = np.array([1.0, 2.0, 2.0, 5.0]), np.array([2.0, 3.0, 9.0])
    pairs = [(b > a) + (b == a) / 2 for a in x for b in y]
    assert superiority(x, y).value == pytest.approx(np.mean(pairs))


def test_superiority_interval_covers_and_survives_the_ends():
    rng = RNG(1)
    truth = float(stats.norm.cdf(1 / math.sqrt(2)))  # P(N(1,1) > N(0,1))
    found = [superiority(rng.normal(size=25), rng.normal(1, 1, 18)) for _ in range(400)]
    assert 0.92 <= covered(found, truth) <= 0.99
    apart = superiority(np.arange(10.0), np.arange(20.0, 30.0))
    assert apart.value == apart.high == 1.0
    assert 0.6 < apart.low < 0.95


def test_median_interval_covers_at_least_and_needs_six():
    rng = RNG(2)
    found = [median_estimate(rng.exponential(size=30)) for _ in range(600)]
    assert 0.94 <= covered(found, math.log(2)) <= 0.99
    assert math.isnan(median_estimate(np.arange(5.0)).low)
    assert median_estimate(np.arange(6.0))[1:] == (0.0, 5.0)


def test_spearman_interval_covers():
    rng = RNG(3)
    pearson = 0.6
    truth = 6 / math.pi * math.asin(pearson / 2)
    found = []
    for _ in range(400):
        x = rng.normal(size=60)
        y = pearson * x + math.sqrt(1 - pearson**2) * rng.normal(size=60)
        found.append(spearman(x, y, rng, 1)[0])
    assert 0.92 <= covered(found, truth) <= 0.98


def test_epsilon_squared_interval_covers_an_effect_and_none():
    rng = RNG(4)

    def groups(shift: float, n: int) -> list[np.ndarray]:
        return [rng.normal(i * shift, 1, n) for i in range(3)]

    truth = epsilon_squared(groups(0.5, 40_000)).value
    assert 0.91 <= covered([epsilon_squared(groups(0.5, 25)) for _ in range(400)], truth) <= 0.99
    assert covered([epsilon_squared(groups(0.0, 25)) for _ in range(400)], 0.0) >= 0.95


def test_h_is_that_of_scipy_with_ties():
    groups = [np.array([1.0, 2, 2, 3]), np.array([2.0, 3, 3, 4, 4]), np.array([1.0, 4, 5])]
    assert h_statistic(groups) == pytest.approx(stats.kruskal(*groups).statistic)


def test_tiny_groups_get_a_permutation_p():
    x, y, z = np.array([1.0, 2.0]), np.array([3.0, 4.0]), np.array([5.0, 6.0])
    _, p = kruskal_wallis([x, y, z], RNG(0), 4000)
    # 6 orders of the groups, times 8 orders within them, of 720 reach the largest H.
    assert p == pytest.approx(48 / 720, abs=0.02)
    rho, p = spearman(np.arange(5.0), np.arange(5.0), RNG(0), 4000)
    assert rho.value == pytest.approx(1.0)
    assert math.isnan(rho.low)
    assert p == pytest.approx(2 / 120, abs=0.008)
    assert mann_whitney(np.arange(3.0), np.arange(3.0, 6.0))[1] == pytest.approx(2 / 20)


def test_corrections_are_the_published_ones():
    p = np.array([0.01, 0.04, 0.03, 0.005])
    assert holm(p) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert benjamini_hochberg(p) == pytest.approx([0.02, 0.04, 0.04, 0.02])
    assert benjamini_hochberg(p) == pytest.approx(stats.false_discovery_control(p))
    assert len(holm(np.array([]))) == 0


def test_streams_do_not_depend_on_each_other():
    assert stream(1, "a", "b").random() == stream(1, "a", "b").random()
    assert stream(1, "a", "b").random() != stream(1, "ab").random()
    assert stream(1, "a").random() != stream(2, "a").random()


def test_the_best_cut_is_the_best_of_all_and_may_point_down():
    rng = RNG(5)
    values, positive = rng.integers(0, 12, 40).astype(float), rng.random(40) < 0.4
    cut = best_cut(values, positive)

    def youden(candidate: Cut) -> float:
        called = apply_cut(candidate, values)
        return float(called[positive].mean() + (~called[~positive]).mean() - 1)

    others = [youden(Cut(at - 0.5, above, 0)) for at in range(13) for above in (True, False)]
    assert youden(cut) == pytest.approx(cut.youden)
    assert cut.youden == pytest.approx(max(others))
    down = best_cut(-values, positive)
    assert down.above != cut.above
    assert down.youden == pytest.approx(cut.youden)


def test_optimism_is_shown_where_nothing_is_to_be_found():
    rng = RNG(6)
    apparent, outside = [], []
    for _ in range(25):
        found = roc(rng.normal(size=60), np.arange(60) < 25, rng, 60)
        apparent.append(found.cut.youden)
        outside.append(found.oob_youden)
    assert np.mean(apparent) > 0.2
    assert abs(np.mean(outside)) < 0.05
    assert found.optimism > 0.15
    true = roc(np.r_[rng.normal(size=200), rng.normal(2, 1, 200)], np.arange(400) >= 200, rng, 60)
    assert abs(true.optimism) < 0.06
    assert true.oob_youden == pytest.approx(2 * stats.norm.cdf(1) - 1, abs=0.1)


def test_roc_area_is_the_auc():
    rng = RNG(7)
    values, positive = rng.integers(0, 9, 80).astype(float), rng.random(80) < 0.5
    found = roc(values, positive, rng, 5)
    area = np.trapezoid(found.true_positive, found.false_positive)
    assert area == pytest.approx(found.auc.value)


def test_pooled_interval_holds_the_differences_between_cases():
    """Figures of one tumour are alike: an interval that takes them for independent is far too narrow."""
    rng = RNG(8)
    truth, pooled, naive = 0.3, [], []
    for i in range(120):
        rates = rng.beta(3, 7, 40)
        cases = [SimpleNamespace(mf=60, amf=int(rng.binomial(60, rate))) for rate in rates]
        pooled.append(pooled_rates(cases, None, i, 250)[0].rate)
        naive.append((0, *wilson_interval(sum(c.amf for c in cases), 60 * 40)))
    assert 0.88 <= covered(pooled, truth) <= 0.99
    assert covered(naive, truth) < 0.75


def test_pooled_corrected_rate_finds_the_true_one():
    rng = RNG(9)
    counts = Counts(tp=8300, fn=1700, tn=8100, fp=1900)
    called = 0.83 * 0.1 + 0.19 * 0.9
    cases = [SimpleNamespace(mf=100, amf=int(rng.binomial(100, called))) for _ in range(80)]
    raw, corrected = pooled_rates(cases, counts, 0, 400)
    assert raw.rate.low > 0.2
    assert corrected.rate.low < 0.1 < corrected.rate.high
    assert corrected.rate.high - corrected.rate.low < 0.1


def test_sample_size_reaches_the_width_and_not_with_fewer():
    for rate, width in ((0.2, 0.1), (0.5, 0.05), (0.03, 0.1)):
        n = figures_for_width(rate, width)
        interval = wilson_interval(round(rate * n), n)
        assert interval.high - interval.low <= width
        fewer = wilson_interval(round(rate * n * 0.95), round(n * 0.95))
        assert fewer.high - fewer.low > width
    found = sample_size(0.3, 0.1, Counts(tp=104, fn=22, tn=360, fp=84), 50, 0.2)
    assert found.figures_corrected is None  # this validation alone leaves more than 0.1
    assert found.width_floor is not None
    assert found.width_floor > 0.1
    assert found.cases == 200
    better = sample_size(0.3, 0.1, Counts(tp=9000, fn=1000, tn=9000, fp=1000), 50, 0.2)
    assert better.figures_corrected is not None
    assert better.figures_corrected > better.figures
