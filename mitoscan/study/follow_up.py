"""Survival questions of a study: which members, which cut, and what is too little to compute."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from mitoscan.study.comparisons import MAX_GROUPS, NO, YES, Column
from mitoscan.study.join import Exclusion
from mitoscan.study.measures import Measure
from mitoscan.study.statistics import FloatArray
from mitoscan.study.survival import MIN_EVENTS, BoolArray, Curve, Hazard, cox, kaplan_meier, log_rank
from mitoscan.study.tables import Table
from mitoscan.study.tested import Tested

SUSPECT_P = 0.05
"""Below, the test of proportional hazards is told as a doubt."""


@dataclass(frozen=True)
class FollowUp:
    """Times and events of those who have both."""

    time_name: str
    event_name: str
    time: FloatArray
    """Shape (N,); nan for members without."""
    event: BoolArray
    known: BoolArray
    lost: tuple[Exclusion, ...]

    @property
    def variable(self) -> str:
        """The name under which the tests are listed."""
        return f"{self.time_name} / {self.event_name}"


@dataclass(frozen=True)
class ChosenCut:
    """Where a measure is divided for survival, and who chose it."""

    value: float
    origin: str
    optimistic: bool
    """Chosen on the data that it is tested on."""


@dataclass(frozen=True)
class Curves:
    """The curves of one figure."""

    title: str
    curves: tuple[Curve, ...]
    p: float
    """Of the log-rank test; nan: not computed."""
    note: str
    name: str


def read_follow_up(time: Column, event: Column, table: Table, ids: Sequence[str], by: str) -> FollowUp:
    """Read follow-up times and events; what cannot be read is left out with its reason.

    Events are 1, yes or true against 0, no or false. Times are numbers, 0 or more, of any unit.
    """
    times, events, lost = np.full(len(ids), np.nan), np.zeros(len(ids), dtype=bool), []
    for i, (name, at, ended) in enumerate(zip(ids, time.cells, event.cells, strict=True)):
        number, state = table.number(at), ended.casefold()
        reason, cell = "", ""
        if not at or not ended:
            reason, cell = "not in survival: time or event missing", ""
        elif number is None or number < 0:
            reason, cell = "not in survival: time is no number of 0 or more", at
        elif state not in YES | NO:
            reason, cell = "not in survival: event is neither 1 nor 0", ended
        if reason:
            lost.append(Exclusion(by, name, reason, cell))
        else:
            times[i], events[i] = number or 0.0, state in YES
    return FollowUp(time.name, event.name, times, events, np.isfinite(times), tuple(lost))


def study_measure(
    follow: FollowUp, values: FloatArray, measure: Measure, cut: ChosenCut | None
) -> tuple[list[Tested], Curves | None]:
    """Ask how a measure goes with survival: Cox per standard deviation, then divided at a cut.

    Parameters
    ----------
    follow
        Times and events, N members.
    values
        The measure, shape (N,), nan where undefined.
    measure
        What ``values`` are.
    cut
        Where to divide. None: at the median, which looks at no event.
    """
    used = follow.known & np.isfinite(values)
    x, time, event = values[used], follow.time[used], follow.event[used]
    reason = _why_not(event, x)
    detail = f"{int(event.sum())} events"
    if reason:
        missing = Tested("survival", follow.variable, measure, "Cox, per sd", len(x), detail, note=reason)
        if not len(x) or np.ptp(x) == 0:
            return [missing], None
    tests = (
        [missing]
        if reason
        else [_cox(follow, time, event, (x - x.mean()) / x.std(ddof=1), measure, "Cox, per sd")]
    )
    cut = cut or _median_cut(x)
    above = x >= cut.value
    if above.all() or not above.any():
        note = f"not computed: all values lie on one side of the cut at {measure.show(cut.value)}"
        at_cut = Tested("survival", follow.variable, measure, "Cox, at the cut", len(x), detail, note=note)
        return [*tests, at_cut], None
    names = (f"below {measure.show(cut.value)}", f"{measure.show(cut.value)} or more")
    group = [names[int(flag)] for flag in above]
    curves = tuple(kaplan_meier(time, event, group, names))
    tests += list(_at_cut(follow, time, event, above, measure, cut, curves, reason))
    p = tests[-1].p
    return tests, Curves(
        f"{measure.label}, cut at {measure.show(cut.value)}", curves, p, cut.origin, f"km-{measure.name}"
    )


def study_groups(follow: FollowUp, column: Column) -> tuple[Tested, Curves | None]:
    """Compare the survival of a column's groups: Kaplan–Meier and log-rank."""
    cells = np.array(column.cells, dtype=object)
    used = follow.known & (cells != "")
    time, event, group = follow.time[used], follow.event[used], [str(cell) for cell in cells[used]]
    levels = [level for level in column.levels() if level in set(group)]
    detail = f"{int(event.sum())} events; " + ", ".join(
        f"{name}: {group.count(name)}" for name in levels[:12]
    )
    variable = f"{column.name}; {follow.variable}"
    reason = ""
    if not 2 <= len(levels) <= MAX_GROUPS:
        reason = f"not computed: {len(levels)} groups"
        return Tested("survival", variable, None, "log-rank", len(group), detail, note=reason), None
    curves = tuple(kaplan_meier(time, event, group, levels))
    if event.sum() < MIN_EVENTS:
        reason = _too_few(event)
        tested = Tested("survival", variable, None, "log-rank", len(group), detail, note=reason)
    else:
        chi2, p = log_rank(time, event, group)
        tested = Tested("survival", variable, None, "log-rank", len(group), detail, chi2, p=p)
    return tested, Curves(f"by {column.name}", curves, tested.p, reason, f"km-by-{column.name}")


def _why_not(event: BoolArray, x: FloatArray) -> str:
    if event.sum() < MIN_EVENTS:
        return _too_few(event)
    return "not computed: all values are equal" if np.ptp(x) == 0 else ""


def _too_few(event: BoolArray) -> str:
    return f"not computed: {int(event.sum())} events are too few, {MIN_EVENTS} are needed"


def _median_cut(x: FloatArray) -> ChosenCut:
    median = float(np.median(x))
    if median == x.min():  # half or more are at the least value: divide above it
        above = x[x > median]
        median = float(above.min()) if len(above) else median
        return ChosenCut(median, "cut above the least value, which half or more have", False)
    return ChosenCut(median, "cut at the median, chosen without looking at events", False)


def _at_cut(
    follow: FollowUp,
    time: FloatArray,
    event: BoolArray,
    above: BoolArray,
    measure: Measure,
    cut: ChosenCut,
    curves: Sequence[Curve],
    reason: str,
) -> Iterator[Tested]:
    """Give Cox and log-rank between the two sides of a cut."""
    detail = ", ".join(f"{curve.name}: {curve.events} events of {curve.n}" for curve in curves)
    n, note = len(time), cut.origin
    if reason:
        for method in ("Cox, at the cut", "log-rank, at the cut"):
            yield Tested("survival", follow.variable, measure, method, n, detail, note=reason)
        return
    if min(curve.events for curve in curves) == 0:
        why = "not computed: one side has no event, so a ratio does not exist"
        yield Tested("survival", follow.variable, measure, "Cox, at the cut", n, detail, note=why)
    else:
        yield _cox(
            follow, time, event, above.astype(np.float64), measure, "Cox, at the cut", cut=cut, detail=detail
        )
    chi2, p = log_rank(time, event, [str(flag) for flag in above])
    yield Tested(
        "survival",
        follow.variable,
        measure,
        "log-rank, at the cut",
        n,
        detail,
        chi2,
        p=p,
        in_family=not cut.optimistic,
        note=note,
    )


def _cox(
    follow: FollowUp,
    time: FloatArray,
    event: BoolArray,
    variable: FloatArray,
    measure: Measure,
    method: str,
    *,
    cut: ChosenCut | None = None,
    detail: str = "",
) -> Tested:
    detail = detail or f"{int(event.sum())} events"
    fitted = cox(time, event, variable)
    if fitted is None:
        note = "not computed: the fit did not converge"
        return Tested("survival", follow.variable, measure, method, len(time), detail, note=note)
    return Tested(
        "survival",
        follow.variable,
        measure,
        method,
        len(time),
        detail,
        fitted.concordance,
        "HR",
        fitted.ratio,
        fitted.p,
        in_family=not (cut and cut.optimistic),
        note="; ".join(part for part in (cut.origin if cut else "", _proportional(fitted)) if part),
    )


def _proportional(fitted: Hazard) -> str:
    p = fitted.p_proportional
    verdict = (
        "hazards seem not proportional, the ratio is an average over time"
        if p < SUSPECT_P
        else "nothing against proportional hazards"
    )
    return "; ".join(part for part in (f"{verdict} (p = {p:.2g})", fitted.doubt) if part)
