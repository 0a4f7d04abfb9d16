"""How good a classifier is: binary and by subtype, with intervals by slide, beside the experts themselves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mitoscan.learn.data import CropSet
from mitoscan.learn.metrics import binary_metrics
from mitoscan.models.card import SUBTYPES

Float = npt.NDArray[np.float64]
Bool = npt.NDArray[np.bool_]

ATYPICAL_FROM = SUBTYPES.index("bipolar_asymmetric")
"""The subtypes from here on are atypical."""


@dataclass(frozen=True)
class Figure:
    """A measured value with its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        """Value and interval, four and two digits."""
        return f"{self.value:.4f} ({self.low:.2f}–{self.high:.2f})"


def binary_figures(p: Float, atypical: Bool, threshold: float) -> dict[str, float]:
    """Measure p_atypical against the truth.

    Balanced accuracy, sensitivity and specificity at ``threshold``, AUROC, average precision, Brier score,
    and the expected calibration error over ten bins of equal width (Naeini et al. 2015).
    """
    from sklearn.metrics import average_precision_score, brier_score_loss

    at = binary_metrics(p, atypical, threshold)
    return {
        "balanced_accuracy": at.balanced_accuracy,
        "auroc": at.auroc,
        "average_precision": float(average_precision_score(atypical, p)),
        "sensitivity": at.sensitivity,
        "specificity": at.specificity,
        "brier": float(brier_score_loss(atypical, p)),
        "calibration_error": calibration_error(p, atypical),
    }


def calibration_error(p: Float, true: Bool) -> float:
    """Mean distance of score and frequency over ten bins, weighted by their size."""
    which = np.clip((p * 10).astype(int), 0, 9)
    gaps = [
        abs(p[which == i].mean() - true[which == i].mean()) * (which == i).mean() for i in np.unique(which)
    ]
    return float(np.sum(gaps))


def with_intervals(
    measure: Callable[[npt.NDArray[np.int64]], dict[str, float]],
    crops: CropSet,
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Figure]:
    """Give what ``measure`` gives for all crops, with percentile intervals of a bootstrap.

    Parameters
    ----------
    measure
        Indices of crops to figures.
    crops
        Resampled by slide where slides are known, else by crop; samples with one class only are drawn again.
    resamples, seed
        Of the bootstrap.
    """
    rng = np.random.default_rng(seed)
    value = measure(np.arange(len(crops)))
    drawn = [measure(index) for index in resampled(crops, resamples, rng)]
    return {
        name: Figure(v, *(float(np.nanquantile([d[name] for d in drawn], q)) for q in (0.025, 0.975)))
        for name, v in value.items()
    }


def resampled(crops: CropSet, resamples: int, rng: np.random.Generator) -> list[npt.NDArray[np.int64]]:
    """Draw bootstrap samples of whole slides, as indices of crops."""
    names, slide = np.unique(crops.slide, return_inverse=True)
    order = np.argsort(slide, kind="stable")
    members = np.split(order, np.cumsum(np.bincount(slide))[:-1])
    samples: list[npt.NDArray[np.int64]] = []
    while len(samples) < resamples:
        index = np.concatenate([members[i] for i in rng.integers(len(names), size=len(names))])
        if 0 < crops.atypical[index].sum() < len(index):
            samples.append(index)
    return samples


def paired_difference(
    p: Float,
    other: Float,
    thresholds: tuple[float, float],
    crops: CropSet,
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Figure]:
    """Compare two models on the same crops: differences of balanced accuracy and AUROC (first − second).

    Both see the same bootstrap samples, so that what is hard for both does not widen the interval.
    """

    def measure(index: npt.NDArray[np.int64]) -> dict[str, float]:
        truth = crops.atypical[index]
        a = binary_metrics(p[index], truth, thresholds[0])
        b = binary_metrics(other[index], truth, thresholds[1])
        return {
            "balanced_accuracy": a.balanced_accuracy - b.balanced_accuracy,
            "auroc": a.auroc - b.auroc,
        }

    return with_intervals(measure, crops, resamples=resamples, seed=seed)


@dataclass(frozen=True)
class ExpertFigures:
    """One expert against the majority of the others."""

    expert: int
    balanced_accuracy: float
    n: int
    ties: int
    """Crops left out because the others were divided."""


def human_ceiling(votes: Bool) -> list[ExpertFigures]:
    """Measure each expert against the majority of the others.

    Parameters
    ----------
    votes
        (N, E): who called it atypical. Fewer than three experts: nothing to compare.
    """
    found = []
    for i in range(votes.shape[1] if votes.shape[1] >= 3 else 0):
        others = np.delete(votes, i, axis=1)
        share = others.mean(axis=1)
        clear = share != 0.5
        truth, own = share[clear] > 0.5, votes[clear, i]
        if truth.all() or not truth.any():
            continue
        accuracy = (own[truth].mean() + (~own[~truth]).mean()) / 2
        found.append(ExpertFigures(i + 1, float(accuracy), int(clear.sum()), int((~clear).sum())))
    return found


@dataclass(frozen=True)
class SubtypeFigures:
    """One subtype against the rest; nan where the subtype has no crop, or none was called."""

    subtype: str
    n: int
    auc: float
    sensitivity: float
    specificity: float
    ppv: float
    npv: float


def within_label(p_atypical: Float, shares: Float, threshold: float) -> npt.NDArray[np.int64]:
    """Call subtypes as a scan does: atypical or normal first, then the likeliest subtype of that kind.

    Parameters
    ----------
    p_atypical
        (N,).
    shares
        (N, K): the subtypes' probabilities.
    threshold
        p_atypical from which a figure is atypical.

    Returns
    -------
    int64 (N,)
        Indices into ``SUBTYPES``.
    """
    called: npt.NDArray[np.int64] = shares[:, :ATYPICAL_FROM].argmax(axis=1)
    atypical = p_atypical >= threshold
    called[atypical] = ATYPICAL_FROM + shares[atypical, ATYPICAL_FROM:].argmax(axis=1)
    return called


def subtype_figures(
    p: Float, truth: npt.NDArray[np.int64], called: npt.NDArray[np.int64] | None = None
) -> list[SubtypeFigures]:
    """Measure the subtypes, one against the rest; unknown truth (-1) is left out.

    Parameters
    ----------
    p
        (N, K): the subtypes' probabilities, for the AUC.
    truth
        (N,): index of the subtype.
    called
        (N,): what each crop was called. None: the most probable.
    """
    from sklearn.metrics import roc_auc_score

    known = truth >= 0
    said_of = (p.argmax(axis=1) if called is None else called)[known]
    p, truth = p[known], truth[known]
    found = []
    for k, name in enumerate(SUBTYPES):
        yes, said = truth == k, said_of == k
        both = bool(yes.any() and not yes.all())
        found.append(
            SubtypeFigures(
                subtype=name,
                n=int(yes.sum()),
                auc=float(roc_auc_score(yes, p[:, k])) if both else float("nan"),
                sensitivity=_share(said, yes),
                specificity=_share(~said, ~yes),
                ppv=_share(yes, said),
                npv=_share(~yes, ~said),
            )
        )
    return found


def _share(of: Bool, among: Bool) -> float:
    return float(of[among].mean()) if among.any() else float("nan")


def confusion(called: npt.NDArray[np.int64], truth: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Count (K, K): rows the true subtype, columns the called one; unknown truth (-1) is left out."""
    known = truth >= 0
    counts = np.zeros((len(SUBTYPES), len(SUBTYPES)), np.int64)
    np.add.at(counts, (truth[known], called[known]), 1)
    return counts


def atypical_from_subtypes(p: Float) -> Float:
    """Sum the atypical subtypes' probabilities: p_atypical as the eight-subtype study gives it."""
    summed: Float = p[:, ATYPICAL_FROM:].sum(axis=1)
    return summed
