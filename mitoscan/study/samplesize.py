"""How many figures, and how many cases, an interval of a wanted width needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from mitoscan.models.card import Counts
from mitoscan.scan.score import corrected_rate, wilson_interval

MOST_FIGURES = 10_000_000
"""Stands for any number of figures: the slide's own chance is gone, only the classifier's remains."""


@dataclass(frozen=True)
class SampleSize:
    """What a width takes; None: no number suffices, or it is not known."""

    rate: float
    width: float
    figures: int
    """MF in a case for its raw rate."""
    figures_at_half: int
    """The same at a rate of one half, the worst."""
    figures_corrected: int | None
    """MF in a case for its corrected rate."""
    width_floor: float | None
    """Width of the corrected rate's interval with any number of figures: what the validation leaves."""
    cases: int | None
    """Members for the pooled raw rate of a cohort like this one."""


def figures_for_width(rate: float, width: float) -> int:
    """Least number of figures whose Wilson interval at ``rate`` is no wider than ``width``.

    Found by search on the interval itself, with the nearest whole count of AMF.
    """
    return _least(lambda n: _wilson_width(rate, n) <= width) or MOST_FIGURES


def sample_size(
    rate: float, width: float, counts: Counts | None, members: int, pooled_width: float
) -> SampleSize:
    """Work out what an interval of full width ``width`` takes.

    Parameters
    ----------
    rate
        The AMF rate expected: here the cohort's pooled raw rate.
    width
        Full width wanted of the 95 % interval, 0 to 1.
    counts
        Of the classifier; None: nothing is said of the corrected rate.
    members, pooled_width
        Size of this cohort and the width of its pooled rate's interval; nan: not known. Widths shrink as
        one over the root of the number of members.
    """
    corrected, floor = None, None
    if counts is not None and (floor := _corrected_width(rate, MOST_FIGURES, counts)) is not None:
        limit = floor
        if limit < width:
            corrected = _least(lambda n: (_corrected_width(rate, n, counts) or 1.0) <= width)
    known = pooled_width == pooled_width and pooled_width > 0
    return SampleSize(
        rate=rate,
        width=width,
        figures=figures_for_width(rate, width),
        figures_at_half=figures_for_width(0.5, width),
        figures_corrected=corrected,
        width_floor=floor,
        cases=max(2, round(members * (pooled_width / width) ** 2 + 0.5)) if known else None,
    )


def _wilson_width(rate: float, n: int) -> float:
    interval = wilson_interval(round(rate * n), n)
    return interval.high - interval.low


def _corrected_width(rate: float, n: int, counts: Counts) -> float | None:
    estimate = corrected_rate(round(rate * n), n, counts)
    return None if estimate is None else estimate.high - estimate.low


def _least(enough: Callable[[int], bool]) -> int | None:
    """Double until enough, then halve the gap; widths fall with n but for the rounding of counts."""
    high = 1
    while not enough(high):
        high *= 2
        if high > MOST_FIGURES:
            return None
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high
