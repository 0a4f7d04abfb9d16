"""One shape for the result of every test, so that all of them are corrected and listed together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from mitoscan.scan.score import Estimate
from mitoscan.study.config import Correction
from mitoscan.study.measures import Measure
from mitoscan.study.statistics import NAN, benjamini_hochberg, holm

CORRECTIONS = {
    "holm": ("Holm", "the chance of even one false finding among all tests stays below 5 %"),
    "bh": ("Benjamini–Hochberg", "of the findings, no more than 5 % are expected to be false"),
}


@dataclass(frozen=True)
class Tested:
    """A question asked of the data, and the answer, or why there is none."""

    section: str
    """groups, correlation, outcome, or survival."""
    variable: str
    """Column of the clinical table."""
    measure: Measure | None
    """None: the question is about the column alone."""
    method: str
    n: int
    detail: str = ""
    """Sizes of the groups, numbers of events."""
    statistic: float = NAN
    effect_name: str = ""
    effect: Estimate | None = None
    p: float = NAN
    p_adjusted: float = NAN
    in_family: bool = True
    """False: p is not valid as it stands (the cut was chosen on these data) and corrects nothing."""
    note: str = ""
    """What to mind; or why nothing was computed."""

    @property
    def computed(self) -> bool:
        """Whether there is a p-value."""
        return self.p == self.p


def show_p(p: float) -> str:
    """Give a p-value as people read it."""
    return "–" if p != p else "< 0.0001" if p < 0.0001 else f"{p:.2g}" if p < 0.1 else f"{p:.2f}"


def adjusted(tests: Sequence[Tested], correction: Correction) -> list[Tested]:
    """Fill in ``p_adjusted`` over the family: all tests computed whose p-values are valid."""
    at = [i for i, test in enumerate(tests) if test.computed and test.in_family]
    correct = holm if correction == "holm" else benjamini_hochberg
    found = list(tests)
    for i, p in zip(at, correct(np.array([tests[i].p for i in at], dtype=np.float64)), strict=True):
        found[i] = replace(tests[i], p_adjusted=float(p))
    return found
