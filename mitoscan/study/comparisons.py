"""A measure against the clinical table: groups, correlations, an outcome. What cannot be says why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mitoscan.errors import ConfigError
from mitoscan.scan.score import Estimate
from mitoscan.study.measures import Measure
from mitoscan.study.roc import MIN_PER_CLASS, BoolArray, Roc, roc
from mitoscan.study.statistics import (
    FloatArray,
    epsilon_squared,
    kruskal_wallis,
    mann_whitney,
    median_estimate,
    spearman,
    stream,
    superiority,
)
from mitoscan.study.tables import Table, parse_number
from mitoscan.study.tested import Tested

MIN_PER_GROUP = 2
MAX_GROUPS = 12
MIN_PAIRS = 4
YES, NO = frozenset({"1", "1.0", "yes", "true"}), frozenset({"0", "0.0", "no", "false"})
"""Compared in lower case."""


@dataclass(frozen=True)
class Column:
    """A column of the clinical table, a cell a member of the study."""

    name: str
    cells: tuple[str, ...]
    """Empty: missing."""

    @property
    def missing(self) -> int:
        """How many cells are empty."""
        return sum(not cell for cell in self.cells)

    def levels(self) -> list[str]:
        """Give the distinct values, numbers by size, else by the alphabet."""
        found = {cell for cell in self.cells if cell}
        numbers = {cell: parse_number(cell) for cell in found}
        return sorted(found, key=lambda cell: (numbers[cell] is None, numbers[cell] or 0.0, cell))


@dataclass(frozen=True)
class GroupSummary:
    """A measure within one group."""

    column: str
    group: str
    measure: Measure
    n: int
    """Members of the group for which the measure is defined."""
    undefined: int
    median: Estimate | None
    quartiles: tuple[float, float] | None


def split(values: FloatArray, column: Column) -> dict[str, FloatArray]:
    """Give the finite values of each group."""
    cells = np.array(column.cells, dtype=object)
    return {level: values[(cells == level) & np.isfinite(values)] for level in column.levels()}


def summarise_groups(values: FloatArray, column: Column, measure: Measure) -> list[GroupSummary]:
    """Describe a measure group by group; none when there are more than ``MAX_GROUPS``."""
    if len(column.levels()) > MAX_GROUPS:
        return []
    found = []
    for level, part in split(values, column).items():
        of_level = column.cells.count(level)
        low, high = np.quantile(part, (0.25, 0.75)) if len(part) else (0.0, 0.0)
        median, quartiles = median_estimate(part) if len(part) else None, (float(low), float(high))
        found.append(
            GroupSummary(
                column=column.name,
                group=level,
                measure=measure,
                n=len(part),
                undefined=of_level - len(part),
                median=median,
                quartiles=quartiles if len(part) else None,
            )
        )
    return found


def compare_groups(values: FloatArray, column: Column, measure: Measure, seed: int, draws: int) -> Tested:
    """Compare the groups of a column: Mann–Whitney for two, Kruskal–Wallis for more.

    Parameters
    ----------
    values
        The measure, shape (N,), nan where undefined.
    column
        N cells.
    measure
        What ``values`` are.
    seed, draws
        Of the permutations.
    """
    groups = split(values, column)
    small = [name for name, part in groups.items() if len(part) < MIN_PER_GROUP]
    used = {name: part for name, part in groups.items() if name not in small}
    n = sum(map(len, used.values()))
    detail = ", ".join(f"{name}: {len(part)}" for name, part in groups.items())
    note = f"left out, fewer than {MIN_PER_GROUP} values: {', '.join(small)}" if small else ""
    method = "Mann–Whitney" if len(used) == 2 else "Kruskal–Wallis"
    reason = _why_not(len(groups), list(used.values()))
    if reason:
        detail = detail if len(groups) <= MAX_GROUPS else f"{len(groups)} groups"
        return Tested("groups", column.name, measure, method, n, detail, note=_joined(reason, note))
    rng = stream(seed, "groups", column.name, measure.name)
    if len(used) == 2:
        (lower, x), (upper, y) = used.items()
        statistic, p = mann_whitney(x, y)
        effect, name = superiority(x, y), f"P({upper} > {lower})"
    else:
        statistic, p = kruskal_wallis(list(used.values()), rng, draws)
        parts = list(used.values())
        effect = epsilon_squared(parts)
        name = "ε²"
    return Tested("groups", column.name, measure, method, n, detail, statistic, name, effect, p, note=note)


def _why_not(levels: int, used: Sequence[FloatArray]) -> str:
    if levels > MAX_GROUPS:
        return (
            f"not computed: {levels} different values are too many for groups; is it a number to correlate?"
        )
    if len(used) < 2:
        return f"not computed: fewer than two groups of at least {MIN_PER_GROUP} values"
    if np.ptp(np.concatenate(used)) == 0:
        return "not computed: all values are equal"
    return ""


def correlate(
    values: FloatArray, column: Column, table: Table, measure: Measure, seed: int, draws: int
) -> Tested:
    """Correlate a measure with a column of numbers, by ranks; ``table`` knows how its numbers are written."""
    numbers = np.array([_nan_if_none(table.number(cell)) for cell in column.cells])
    both = np.isfinite(values) & np.isfinite(numbers)
    x, y = numbers[both], values[both]
    foreign = sum(bool(cell) and number != number for cell, number in zip(column.cells, numbers, strict=True))
    note = f"{foreign} cells are not numbers and were left out" if foreign else ""
    method, n = "Spearman", int(both.sum())
    reason = ""
    if n < MIN_PAIRS:
        reason = f"not computed: fewer than {MIN_PAIRS} pairs"
    elif np.ptp(x) == 0 or np.ptp(y) == 0:
        reason = "not computed: all values are equal"
    if reason:
        return Tested("correlation", column.name, measure, method, n, note=_joined(reason, note))
    estimate, p = spearman(x, y, stream(seed, "correlation", column.name, measure.name), draws)
    return Tested(
        "correlation", column.name, measure, method, n, "", estimate.value, "ρ", estimate, p, note=note
    )


def outcome_of(column: Column, positive: str | None) -> tuple[BoolArray, BoolArray, str, str]:
    """Read an outcome: who has it, of whom it is known, the positive value, and why it cannot be used.

    Parameters
    ----------
    column
        N cells.
    positive
        The value that counts; all others are negative. None: one of 1, yes, true, else the last of two.

    Raises
    ------
    ConfigError
        When ``positive`` is given and does not occur.
    """
    levels = column.levels()
    if positive is not None and positive not in levels:
        raise ConfigError(
            f"{positive!r} does not occur in column {column.name!r} of those in the study",
            remedy=f"Its values are: {', '.join(levels[:12]) or 'none'}.",
        )
    reason = ""
    if positive is None:
        if len(levels) != 2:
            reason = (
                f"not computed: the column has {len(levels)} different values, not 2; choose with --positive"
            )
        clear = [level for level in levels if level.casefold() in YES]
        positive = (clear or levels or [""])[-1]
    cells = np.array(column.cells, dtype=object)
    return cells == positive, cells != "", positive, reason


def discriminate(
    values: FloatArray,
    column: Column,
    outcome: tuple[BoolArray, BoolArray, str, str],
    measure: Measure,
    seed: int,
    draws: int,
) -> tuple[Tested, Roc | None]:
    """Ask how well a measure tells the outcome; ``outcome`` is that of ``outcome_of``."""
    has, known, positive, reason = outcome
    used = known & np.isfinite(values)
    x, y = values[used], has[used]
    with_it, without, n = int(y.sum()), int((~y).sum()), int(used.sum())
    detail = f"{positive}: {with_it}, other: {without}"
    if not reason and min(with_it, without) < MIN_PER_CLASS:
        reason = f"not computed: fewer than {MIN_PER_CLASS} with or without the outcome"
    if not reason and np.ptp(x) == 0:
        reason = "not computed: all values are equal"
    if reason:
        return Tested("outcome", column.name, measure, "Mann–Whitney", n, detail, note=reason), None
    statistic, p = mann_whitney(x[~y], x[y])
    found = roc(x, y, stream(seed, "roc", column.name, measure.name), draws)
    note = "" if found.cut.above else "lower values go with the outcome"
    tested = Tested(
        "outcome", column.name, measure, "Mann–Whitney", n, detail, statistic, "AUC", found.auc, p, note=note
    )
    return tested, found


def _nan_if_none(value: float | None) -> float:
    return float("nan") if value is None else value


def _joined(*parts: str) -> str:
    return "; ".join(part for part in parts if part)
