"""Survival: Kaplan–Meier, log-rank and Cox. The only importer of lifelines."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mitoscan.errors import MissingExtraError
from mitoscan.scan.score import Estimate
from mitoscan.study.statistics import NAN, FloatArray

BoolArray = npt.NDArray[np.bool_]

MIN_EVENTS = 10
"""Events below which no hazard ratio is given (Peduzzi et al., J Clin Epidemiol 1995: ten per variable)."""

_MARKS = 6
"""Times at which the numbers at risk are given."""


@dataclass(frozen=True)
class Curve:
    """The Kaplan–Meier curve of a group."""

    name: str
    n: int
    events: int
    times: FloatArray
    """Shape (K,), from 0; the curve is a staircase that falls at them."""
    survival: FloatArray
    low: FloatArray
    high: FloatArray
    median: float
    """Inf: more than half outlast the observation."""
    marks: FloatArray
    at_risk: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Hazard:
    """What a Cox model with one variable says."""

    n: int
    events: int
    ratio: Estimate
    p: float
    concordance: float
    p_proportional: float
    """Of the test of proportional hazards; small: the ratio changes with time."""
    doubt: str = ""
    """What the fit complained about."""


def require_lifelines() -> None:
    """Say at once when the extra is missing.

    Raises
    ------
    MissingExtraError
        When lifelines is not installed.
    """
    try:
        import lifelines  # noqa: F401
    except ImportError as exc:
        raise MissingExtraError(
            "survival needs lifelines", remedy='Install it: pip install "mitoscan[study]".'
        ) from exc


@contextmanager
def _quiet() -> Iterator[list[warnings.WarningMessage]]:
    """Collect what lifelines and the libraries below it warn of, so that it can be told where it matters."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield caught


def kaplan_meier(
    time: FloatArray, event: BoolArray, group: Sequence[str], order: Sequence[str]
) -> list[Curve]:
    """Kaplan–Meier curves (JASA 1958) with Greenwood's interval on the log-log scale, a curve a group.

    Parameters
    ----------
    time, event, group
        Follow-up time (0 or more), whether it ended with the event, and the group, each of length N.
    order
        The groups, in the order wanted.
    """
    from lifelines import KaplanMeierFitter

    marks = np.linspace(0, float(time.max()), _MARKS)
    names = np.array(group, dtype=object)
    curves = []
    for name in order:
        member = names == name
        with _quiet():
            fitted = KaplanMeierFitter().fit(time[member], event[member])
        interval = fitted.confidence_interval_.to_numpy(dtype=np.float64)
        curves.append(
            Curve(
                name=name,
                n=int(member.sum()),
                events=int(event[member].sum()),
                times=fitted.survival_function_.index.to_numpy(dtype=np.float64),
                survival=fitted.survival_function_.to_numpy(dtype=np.float64)[:, 0],
                low=interval[:, 0],
                high=interval[:, 1],
                median=float(fitted.median_survival_time_),
                marks=marks,
                at_risk=(time[member][:, None] >= marks[None, :]).sum(axis=0),
            )
        )
    return curves


def log_rank(time: FloatArray, event: BoolArray, group: Sequence[str]) -> tuple[float, float]:
    """χ² and p of the log-rank test between all groups (Mantel, Cancer Chemother Rep 1966)."""
    from lifelines.statistics import multivariate_logrank_test

    with _quiet():
        result = multivariate_logrank_test(time, np.array(group, dtype=str), event)
    return float(result.test_statistic), float(result.p_value)


def cox(time: FloatArray, event: BoolArray, variable: FloatArray) -> Hazard | None:
    """Fit a Cox model (J R Stat Soc B 1972; Efron's ties) with one variable, and test proportional hazards.

    The test is that of Grambsch & Therneau (Biometrika 1994) on the ranks of time.

    Parameters
    ----------
    time, event
        As for ``kaplan_meier``.
    variable
        Shape (N,); the ratio is per unit of it.

    Returns
    -------
    Hazard or None
        None when the fit does not converge or its interval has no end.
    """
    import pandas as pd
    from lifelines import CoxPHFitter
    from lifelines.exceptions import ConvergenceError
    from lifelines.statistics import proportional_hazard_test

    table = pd.DataFrame({"time": time, "event": event.astype(np.int64), "x": variable})
    try:
        with _quiet() as caught:
            fitted = CoxPHFitter().fit(table, "time", "event")
            proportional = proportional_hazard_test(fitted, table, time_transform="rank")
    except (ConvergenceError, np.linalg.LinAlgError, ValueError):
        return None
    row = fitted.summary.loc["x"]
    ends = [math.exp(min(float(row[name]), 700.0)) for name in ("coef", "coef lower 95%", "coef upper 95%")]
    if not all(map(math.isfinite, ends)) or ends[2] > 1e6 * max(ends[0], 1e-9):
        return None
    doubtful = any("onverge" in warning.category.__name__ for warning in caught)
    return Hazard(
        n=len(time),
        events=int(event.sum()),
        ratio=Estimate(*ends),
        p=float(row["p"]),
        concordance=float(fitted.concordance_index_),
        p_proportional=float(np.ravel(proportional.p_value)[0]) if len(time) else NAN,
        doubt="the variable nearly orders the events by itself: do not trust the ratio" if doubtful else "",
    )
