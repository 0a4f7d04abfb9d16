"""The statistics of a study as pure functions; each names where its method comes from."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy import optimize, stats

from mitoscan.scan.score import Estimate, Interval

FloatArray = npt.NDArray[np.float64]
NAN = float("nan")
NO_INTERVAL = Interval(NAN, NAN)

EXACT_BELOW = 5
"""With smaller groups, or fewer than twice as many pairs, p comes from permutations."""


def stream(seed: int, *names: str) -> np.random.Generator:
    """Give a random stream of its own to each analysis: its numbers do not depend on what else is asked."""
    return np.random.default_rng([seed, zlib.crc32("\x1f".join(names).encode())])


def z_of(level: float) -> float:
    """Give the two-sided normal quantile of a confidence level."""
    return float(stats.norm.ppf((1 + level) / 2))


def median_estimate(values: FloatArray, level: float = 0.95) -> Estimate:
    """Median with the distribution-free interval between two order statistics (Thompson, Ann Math Stat 1936).

    Coverage is at least ``level``; below 6 values no such interval exists and the ends are nan.

    Parameters
    ----------
    values
        Finite, shape (N,), N above 0.
    level
        Coverage, at least.
    """
    ordered = np.sort(values)
    # The interval (x_k, x_{n+1-k}) misses the median with probability 2 P(B(n, ½) < k).
    k = int(stats.binom.ppf((1 - level) / 2, len(ordered), 0.5))
    low, high = (ordered[k - 1], ordered[-k]) if k > 0 else NO_INTERVAL
    return Estimate(float(np.median(ordered)), float(low), float(high))


def superiority(x: FloatArray, y: FloatArray, level: float = 0.95) -> Estimate:
    """P(Y > X) + ½ P(Y = X), which is the AUC of Y against X, with its interval.

    The interval is method 5 of Newcombe (Stat Med 2006, 25:559): it inverts a score-like variance after
    Hanley & McNeil, and stays sensible at 0 and 1, where bootstrap and DeLong intervals collapse.

    Parameters
    ----------
    x, y
        Values of the two groups, shapes (M,) and (N,), neither empty.
    level
        Coverage, about.
    """
    m, n = len(x), len(y)
    ranks = stats.rankdata(np.concatenate([x, y]))
    value = float((ranks[m:].sum() - n * (n + 1) / 2) / (m * n))
    z2, spread = z_of(level) ** 2, (m + n) / 2 - 1

    def distance(theta: float) -> float:
        shape = (1 - theta) / (2 - theta) + theta / (1 + theta)
        return (value - theta) ** 2 - z2 * theta * (1 - theta) / (m * n) * (1 + spread * shape)

    # At 0 and 1 the distance vanishes, but that root is not the end of an interval: keep off it.
    low = float(optimize.brentq(distance, 0.0, min(value, 1 - 1e-9))) if value > 0 else 0.0
    high = float(optimize.brentq(distance, max(value, 1e-9), 1.0)) if value < 1 else 1.0
    return Estimate(value, low, high)


def mann_whitney(x: FloatArray, y: FloatArray) -> tuple[float, float]:
    """U of ``y`` and the two-sided p (Mann & Whitney, Ann Math Stat 1947).

    Exact without ties and with at most 8 values in a group, else by the normal law, corrected for ties and
    continuity.
    """
    result = stats.mannwhitneyu(y, x, alternative="two-sided", method="auto")
    return float(result.statistic), float(result.pvalue)


def kruskal_wallis(groups: Sequence[FloatArray], rng: np.random.Generator, draws: int) -> tuple[float, float]:
    """H, corrected for ties, and its p (Kruskal & Wallis, JASA 1952).

    By the χ² law; by ``draws`` permutations when a group is smaller than ``EXACT_BELOW``.

    Parameters
    ----------
    groups
        Values of each group, none empty, not all values equal.
    rng, draws
        For the permutations.
    """
    observed = h_statistic(groups)
    if min(map(len, groups)) >= EXACT_BELOW:
        return observed, float(stats.chi2.sf(observed, len(groups) - 1))
    sizes = np.cumsum([len(group) for group in groups])[:-1]
    pooled = np.concatenate(groups)
    drawn = [h_statistic(np.split(rng.permutation(pooled), sizes)) for _ in range(draws)]
    return observed, _share_as_extreme(np.array(drawn), observed)


def h_statistic(groups: Sequence[FloatArray]) -> float:
    """Kruskal & Wallis's H, corrected for ties; 0 when all values are equal."""
    pooled = np.concatenate(groups)
    n = len(pooled)
    ranks = stats.rankdata(pooled)
    spread = float(((ranks - (n + 1) / 2) ** 2).sum())
    if spread == 0:
        return 0.0
    parts = np.split(ranks, np.cumsum([len(group) for group in groups])[:-1])
    between = sum(len(part) * (float(part.mean()) - (n + 1) / 2) ** 2 for part in parts)
    return (n - 1) * between / spread


def epsilon_squared(groups: Sequence[FloatArray], level: float = 0.95) -> Estimate:
    """ε² = H / (N − 1), the share of the ranks' variance between groups (Tomczak & Tomczak, TSS 2014).

    The interval inverts the law of H: about non-central χ² with non-centrality (N − 1) ε² (Andrews, Ann Math
    Stat 1954), as Smithson (2003) does for other effect sizes. Unlike a bootstrap's, it
    reaches 0.

    Parameters
    ----------
    groups
        Values of each group, none empty, not all values equal.
    level
        Coverage, about.
    """
    h, freedom, scale = h_statistic(groups), len(groups) - 1, sum(map(len, groups)) - 1

    def noncentrality(quantile: float) -> float:
        if stats.chi2.cdf(h, freedom) <= quantile:
            return 0.0
        # h + 100 + 20 √h lies far beyond: its law is above h with certainty.
        return float(
            optimize.brentq(
                lambda centre: float(stats.ncx2.cdf(h, freedom, centre)) - quantile,
                0,
                h + 100 + 20 * math.sqrt(h),
            )
        )

    low, high = noncentrality((1 + level) / 2) / scale, noncentrality((1 - level) / 2) / scale
    return Estimate(h / scale, low, min(max(high, h / scale), 1.0))


def spearman(
    x: FloatArray, y: FloatArray, rng: np.random.Generator, draws: int, level: float = 0.95
) -> tuple[Estimate, float]:
    """Rank correlation with interval and p.

    The interval is that of Bonett & Wright (Psychometrika 2000): Fisher's z with variance (1 + ρ²/2)/(n − 3).
    p by Student's t; by ``draws`` permutations below ``2 * EXACT_BELOW`` pairs.

    Parameters
    ----------
    x, y
        Shape (N,), N at least 4, neither constant.
    rng, draws
        For the permutations.
    level
        Coverage, about. At ρ = ±1 the interval does not exist and its ends are nan.
    """
    result = stats.spearmanr(x, y)
    rho, p, n = float(result.statistic), float(result.pvalue), len(x)
    if n < 2 * EXACT_BELOW:
        drawn = np.array([float(stats.spearmanr(rng.permutation(x), y).statistic) for _ in range(draws)])
        p = _share_as_extreme(np.abs(drawn), abs(rho))
    if abs(rho) > 1 - 1e-12:
        return Estimate(rho, *NO_INTERVAL), p
    half = z_of(level) * math.sqrt((1 + rho**2 / 2) / (n - 3))
    return Estimate(rho, math.tanh(math.atanh(rho) - half), math.tanh(math.atanh(rho) + half)), p


def _share_as_extreme(drawn: FloatArray, observed: float) -> float:
    """Give p of a permutation test, the observed arrangement counted in (Phipson & Smyth, SAGMB 2010)."""
    return (1 + int(np.count_nonzero(drawn >= observed - 1e-9))) / (1 + len(drawn))


def bias_corrected(drawn: FloatArray, value: float, level: float = 0.95) -> Interval:
    """Interval from bootstrap draws, corrected for their median bias (Efron, Can J Stat 1981)."""
    below = float(np.mean(drawn < value) + np.mean(drawn == value) / 2)
    bias = float(stats.norm.ppf(min(max(below, 0.5 / len(drawn)), 1 - 0.5 / len(drawn))))
    ends = stats.norm.cdf(2 * bias + np.array([-1, 1]) * z_of(level))
    low, high = np.quantile(drawn, ends)
    return Interval(float(low), float(high))


def holm(p: FloatArray) -> FloatArray:
    """Correct p-values by Holm's step-down (Scand J Stat 1979): holds the family-wise error."""
    order = np.argsort(p, kind="stable")
    steps = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    return _back(np.minimum(steps, 1.0), order)


def benjamini_hochberg(p: FloatArray) -> FloatArray:
    """Correct p-values by Benjamini & Hochberg (J R Stat Soc B 1995): holds the false discovery rate."""
    order = np.argsort(p, kind="stable")
    ratios = p[order] * len(p) / np.arange(1, len(p) + 1)
    return _back(np.minimum(np.minimum.accumulate(ratios[::-1])[::-1], 1.0), order)


def _back(values: FloatArray, order: npt.NDArray[np.intp]) -> FloatArray:
    restored = np.empty_like(values)
    restored[order] = values
    return restored
