"""A measure against an outcome of two values: ROC, AUC, and a cut with its optimism."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from mitoscan.scan.score import Estimate, Interval, wilson_interval
from mitoscan.study.statistics import NAN, FloatArray, superiority

BoolArray = npt.NDArray[np.bool_]

MIN_PER_CLASS = 5
"""Members needed with and without the outcome."""


class Cut(NamedTuple):
    """Where to divide a measure: positive at or above ``value``, or at or below where ``above`` is false."""

    value: float
    above: bool
    youden: float
    """Sensitivity + specificity − 1 on the data that chose the cut."""


@dataclass(frozen=True)
class Roc:
    """The ROC curve of a measure, and its best cut by Youden's index."""

    positives: int
    negatives: int
    auc: Estimate
    false_positive: FloatArray
    """Share of false positives at each threshold, ascending from 0 to 1, shape (K,)."""
    true_positive: FloatArray
    cut: Cut
    cut_interval: Interval
    """Middle 95 % of the cuts that the resamples chose."""
    sensitivity: Estimate
    specificity: Estimate
    resamples: int
    """Bootstrap samples that could be used."""
    oob_sensitivity: float
    oob_specificity: float
    oob_youden: float
    """Mean over the members that did not choose the cut."""
    optimism: float
    """By how much Youden's index is lower on members that did not choose the cut."""


def roc(values: FloatArray, positive: BoolArray, rng: np.random.Generator, draws: int) -> Roc:
    """ROC, AUC with Newcombe's interval, and the cut of the greatest Youden index (Cancer 1950).

    A cut is best on the data that chose it. How much is lost elsewhere is shown by the out-of-bag bootstrap
    (Efron & Tibshirani, JASA 1997): each resample chooses cut and direction anew, and is judged by the
    members that it did not draw. It chooses with 63 % of the members, so the loss is overstated a little.

    Parameters
    ----------
    values
        Finite, shape (N,).
    positive
        Who has the outcome, bool (N,); ``MIN_PER_CLASS`` at least with and without.
    rng, draws
        Of the bootstrap.
    """
    auc = superiority(values[~positive], values[positive])
    _, tpr, fpr = _rates(values, positive)
    cut = best_cut(values, positive)
    called = apply_cut(cut, values)
    hits, rejections = int((called & positive).sum()), int((~called & ~positive).sum())
    with_it, without = int(positive.sum()), int((~positive).sum())
    cuts, inside, outside = _resample(values, positive, rng, draws)
    low, high = np.quantile(cuts, (0.025, 0.975)) if len(cuts) else (NAN, NAN)
    sensitivity, specificity = outside.mean(axis=0) if len(outside) else (NAN, NAN)
    oob = float(sensitivity + specificity - 1)
    return Roc(
        positives=with_it,
        negatives=without,
        auc=auc,
        false_positive=np.concatenate([[0.0], fpr[::-1]]),
        true_positive=np.concatenate([[0.0], tpr[::-1]]),
        cut=cut,
        cut_interval=Interval(float(low), float(high)),
        sensitivity=Estimate(hits / with_it, *wilson_interval(hits, with_it)),
        specificity=Estimate(rejections / without, *wilson_interval(rejections, without)),
        resamples=len(cuts),
        oob_sensitivity=float(sensitivity),
        oob_specificity=float(specificity),
        oob_youden=oob,
        optimism=float(inside.mean()) - oob if len(inside) else NAN,
    )


def best_cut(values: FloatArray, positive: BoolArray) -> Cut:
    """Give the cut of the greatest Youden index, in the better direction; of equal ones the lowest.

    Cuts lie half-way between neighbouring values, so that none hangs on the last digit of a member.
    """
    thresholds, tpr, fpr = _rates(values, positive)
    if len(thresholds) == 1:
        return Cut(float(thresholds[0]), True, 0.0)
    middles = (thresholds[1:] + thresholds[:-1]) / 2
    youden = tpr[1:] - fpr[1:]
    at = int(np.abs(youden).argmax())
    return Cut(float(middles[at]), bool(youden[at] >= 0), float(abs(youden[at])))


def apply_cut(cut: Cut, values: FloatArray) -> BoolArray:
    """Who is called positive, bool (N,)."""
    return values >= cut.value if cut.above else values <= cut.value


def _rates(values: FloatArray, positive: BoolArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Give the distinct values, ascending, and the shares of positives and negatives at or above each."""
    thresholds = np.unique(values)
    with_it, without = np.sort(values[positive]), np.sort(values[~positive])
    tpr = 1 - np.searchsorted(with_it, thresholds, side="left") / len(with_it)
    fpr = 1 - np.searchsorted(without, thresholds, side="left") / len(without)
    return thresholds, tpr, fpr


def _resample(
    values: FloatArray, positive: BoolArray, rng: np.random.Generator, draws: int
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Give the cuts that resamples choose, their Youden index, and (sensitivity, specificity) out of bag."""
    cuts, inside, outside = [], [], []
    n = len(values)
    for _ in range(draws):
        drawn = rng.integers(n, size=n)
        out = np.ones(n, dtype=bool)
        out[drawn] = False
        if any(len(np.unique(positive[part])) < 2 for part in (drawn, out)):
            continue
        cut = best_cut(values[drawn], positive[drawn])
        called, truth = apply_cut(cut, values[out]), positive[out]
        cuts.append(cut.value)
        inside.append(cut.youden)
        outside.append((called[truth].mean(), (~called[~truth]).mean()))
    return np.array(cuts), np.array(inside), np.array(outside)
