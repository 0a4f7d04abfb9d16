"""Figures of merit of both stages."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree
from scipy.special import expit

from mitoscan.models.card import Counts

Float = npt.NDArray[np.float64]
Bool = npt.NDArray[np.bool_]

MATCH_RADIUS_UM = 7.5
"""MIDOG's match radius."""


def match(found: Float, p: Float, truth: Float, radius: float) -> npt.NDArray[np.int64]:
    """One-to-one matching, greedy by score (MIDOG's rule).

    Parameters
    ----------
    found
        (N, 2) positions.
    p
        (N,) scores.
    truth
        (M, 2) positions, same unit.
    radius
        Greatest distance of a match, same unit.

    Returns
    -------
    int64 (N,)
        Index of the matched truth point, or -1.
    """
    matched = np.full(len(found), -1)
    if not len(truth) or not len(found):
        return matched
    near = cKDTree(truth).query_ball_point(found, radius)
    taken: set[int] = set()
    for i in np.argsort(-p, kind="stable"):
        free = [j for j in near[i] if j not in taken]
        if free:
            matched[i] = min(free, key=lambda j: float(np.hypot(*(truth[j] - found[i]))))
            taken.add(int(matched[i]))
    return matched


@dataclass(frozen=True)
class Detections:
    """Pooled detections of one or more pictures: score and truth of each, and how many figures there were."""

    p: Float
    hit: Bool
    figures: int
    area_mm2: float

    @staticmethod
    def pool(parts: list[Detections]) -> Detections:
        """Put several together."""
        return Detections(
            np.concatenate([d.p for d in parts]),
            np.concatenate([d.hit for d in parts]),
            sum(d.figures for d in parts),
            sum(d.area_mm2 for d in parts),
        )

    def at(self, threshold: float) -> tuple[float, float, float]:
        """Precision, recall and F1 of the detections with p ≥ threshold (0 where undefined)."""
        called = self.p >= threshold
        hits = int(self.hit[called].sum())
        n = int(called.sum())
        total = n + self.figures
        return (
            hits / n if n else 0.0,
            hits / self.figures if self.figures else 0.0,
            2 * hits / total if total else 0.0,
        )

    def curve(self) -> tuple[Float, Float, Float]:
        """Threshold, precision and recall after each detection, from the highest score down."""
        order = np.argsort(-self.p, kind="stable")
        hits = np.cumsum(self.hit[order])
        return self.p[order], hits / np.arange(1, len(order) + 1), hits / max(self.figures, 1)

    def best_threshold(self) -> float:
        """Give the threshold with the greatest F1, halfway to the next lower score."""
        p, precision, recall = self.curve()
        if not len(p):
            return 0.5
        f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
        best = int(np.argmax(f1))
        below = p[best + 1] if best + 1 < len(p) else 0.0
        return float((p[best] + below) / 2)

    def low_threshold(self, tolerance: float) -> float:
        """Give the lowest threshold whose F1 is within ``tolerance`` of the greatest.

        F1 is flat about its top, and on a stain not seen all scores shrink: the low end of the top holds
        there longer, at little cost here.
        """
        p, precision, recall = self.curve()
        if not len(p):
            return 0.5
        f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
        lowest = int(np.flatnonzero(f1 >= f1.max() - tolerance)[-1])
        below = p[lowest + 1] if lowest + 1 < len(p) else 0.0
        return float((p[lowest] + below) / 2)

    def threshold_at_recall(self, recall: float) -> float:
        """Give the highest threshold with at least this recall; the lowest score where none reaches it."""
        p, _, recalls = self.curve()
        reached = np.flatnonzero(recalls >= recall)
        return float(p[reached[0]] if len(reached) else p.min(initial=1.0))

    def average_precision(self) -> float:
        """Area under the precision–recall curve (precision made monotone; missed figures count)."""
        _, precision, recall = self.curve()
        envelope = np.maximum.accumulate(precision[::-1])[::-1]
        return float(np.sum(np.diff(recall, prepend=0.0) * envelope))


@dataclass(frozen=True)
class BinaryMetrics:
    """AMF (positive) against NMF."""

    balanced_accuracy: float
    auroc: float
    sensitivity: float
    specificity: float


def binary_metrics(p_atypical: Float, atypical: Bool, threshold: float) -> BinaryMetrics:
    """Balanced accuracy, AUROC, sensitivity and specificity with AMF called at p ≥ threshold."""
    from sklearn.metrics import roc_auc_score

    called = p_atypical >= threshold
    sensitivity = float(called[atypical].mean())
    specificity = float((~called[~atypical]).mean())
    auroc = float(roc_auc_score(atypical, p_atypical))
    return BinaryMetrics((sensitivity + specificity) / 2, auroc, sensitivity, specificity)


def round_down(threshold: float) -> float:
    """Give a threshold with four decimals that calls whatever ``threshold`` calls."""
    return math.floor(threshold * 1e4) / 1e4


def logits(p: Float) -> Float:
    """Give log(p / (1 - p)), finite at 0 and 1 too."""
    p = np.clip(p, 1e-7, 1 - 1e-7)
    return np.log(p / (1 - p))


def platt(p: Float, truth: npt.NDArray[np.bool_]) -> tuple[float, float]:
    """Fit what makes scores mean what they say: p' has the logit gain · logit(p) + shift.

    Method: Platt 1999; a logistic fit of the truth on the score's logit. Ranks do not change.

    Parameters
    ----------
    p, truth
        (N,) each: scores of held-out cases, and what is true.

    Returns
    -------
    gain, shift
        1 and 0, which leave the scores alone, where they are no better than chance or all cases are alike.
    """
    from sklearn.linear_model import LogisticRegression

    if len(np.unique(truth)) < 2:
        return 1.0, 0.0
    fitted = LogisticRegression(C=1e6).fit(logits(p)[:, None], truth)
    gain, shift = float(fitted.coef_[0, 0]), float(fitted.intercept_[0])
    return (gain, shift) if gain > 0 else (1.0, 0.0)


def rescaled(p: Float, gain: float, shift: float) -> Float:
    """Give the scores that ``platt``'s two numbers make of ``p``."""
    calibrated: Float = expit(gain * logits(p) + shift)
    return calibrated


def balanced_threshold(p: Float, truth: npt.NDArray[np.bool_]) -> float:
    """Give the threshold that Bayes' rule has for balanced accuracy.

    It is the score that calibration (``platt``) turns into the share of true cases. Unlike the best threshold
    of these very scores it does not follow their chance peaks.

    Parameters
    ----------
    p, truth
        (N,) each: scores of held-out cases, and what is true.
    """
    gain, shift = platt(p, truth)
    share = float(logits(truth.mean(keepdims=True))[0])
    return float(expit((share - shift) / gain))


def counts(called: npt.NDArray[np.bool_], atypical: npt.NDArray[np.bool_]) -> Counts:
    """Count how cases, (N,) each, were called and what they are."""
    return Counts(
        tp=int((called & atypical).sum()),
        fn=int((~called & atypical).sum()),
        tn=int((~called & ~atypical).sum()),
        fp=int((called & ~atypical).sum()),
    )
