"""Who is in the study: slides to cases, cases to clinical rows, and an account of all that falls out."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from mitoscan.errors import ConfigError, DataError
from mitoscan.study.config import By
from mitoscan.study.slides import SlideRow, Unusable
from mitoscan.study.tables import Table

CASES_FROM = (
    "Give the case of each slide: a column case_id in the manifest of `mitoscan run`, or the columns "
    "slide_id and case_id in the clinical table."
)


@dataclass(frozen=True)
class Member:
    """One case (or slide) of the study."""

    id: str
    slides: tuple[SlideRow, ...]
    clinical: dict[str, str]
    """The columns that the study uses; empty strings are missing values."""


@dataclass(frozen=True)
class Exclusion:
    """Something that is not in the study as it stood, and why."""

    what: str
    """slide, case, or clinical row."""
    id: str
    reason: str
    detail: str = ""


@dataclass(frozen=True)
class Step:
    """A line of the flow table."""

    text: str
    n: int
    removed: bool = False
    """The n were taken out at this step; else they are what there is."""


@dataclass(frozen=True)
class Cohort:
    """The members of a study, and the account."""

    by: str
    """case or slide."""
    members: tuple[Member, ...]
    flow: tuple[Step, ...]
    exclusions: tuple[Exclusion, ...]
    warnings: tuple[str, ...]


@dataclass
class _Account:
    flow: list[Step] = field(default_factory=list)
    exclusions: list[Exclusion] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def count(self, text: str, n: int) -> None:
        self.flow.append(Step(text, n))

    def remove(self, exclusions: Sequence[Exclusion]) -> None:
        """Write down what falls out at this step, a line of the flow a reason."""
        self.exclusions += exclusions
        self.flow += [Step(reason, n, True) for reason, n in Counter(e.reason for e in exclusions).items()]


def join(
    slides: Sequence[SlideRow],
    unusable: Sequence[Unusable],
    failed: Sequence[Unusable],
    clinical: Table | None,
    columns: Sequence[str],
    by: By = "auto",
) -> Cohort:
    """Group slides into cases and give each case its clinical row.

    Parameters
    ----------
    slides, unusable
        The rows of slides.csv.
    failed
        The rows of failures.csv.
    clinical
        The clinical table, with ``case_id`` or ``slide_id`` or both. None: everyone is in, without values.
    columns
        The columns of ``clinical`` that the study uses; only these are compared and kept.
    by
        ``case``, ``slide``, or ``auto``: cases where case ids are known.

    Raises
    ------
    ConfigError
        When cases are asked for and no case ids are known.
    DataError
        When nobody is left.
    """
    account = _Account()
    done = {slide.slide_id for slide in slides}
    again = sorted({row.slide_id for row in failed if row.slide_id in done})
    if again:
        account.warnings.append(
            f"{_some(again)}: failed in the last run; the result of an earlier run is used."
        )
    failed = [row for row in failed if row.slide_id not in done]
    account.count("slides: results and failures", len(slides) + len(unusable) + len(failed))
    account.remove([Exclusion("slide", row.slide_id, row.reason, row.detail) for row in (*failed, *unusable)])

    case_of, contradictory = _cases(slides, clinical)
    chosen = _choose(by, case_of, clinical)
    if chosen == "case":
        slides = _with_case(slides, case_of, contradictory, account)
    account.count("slides used", len(slides))
    key = case_of.__getitem__ if chosen == "case" else str
    grouped: dict[str, list[SlideRow]] = {}
    for slide in slides:
        grouped.setdefault(key(slide.slide_id), []).append(slide)
    if chosen == "case":
        account.count("cases with at least one slide", len(grouped))

    lost = {row.case_id or case_of.get(row.slide_id, "") if chosen == "case" else row.slide_id: row.reason
            for row in (*failed, *unusable)}  # fmt: skip
    partial = sorted(name for name in lost if name in grouped) if chosen == "case" else []
    if partial:
        account.warnings.append(f"{_some(partial)}: in the study, though slides of theirs were lost.")
    values = _clinical_values(clinical, columns, chosen, case_of, grouped, lost, account)
    members = tuple(
        Member(name, tuple(found), values[name]) for name, found in grouped.items() if name in values
    )
    account.count(f"{chosen}s in the study", len(members))
    if not members:
        raise DataError(
            f"nobody is left to study: {'; '.join(f'{s.text}: {s.n}' for s in account.flow)}",
            path=clinical.path if clinical else None,
            remedy=" ".join(account.warnings[-1:])
            or "Compare the ids in slides.csv with those of the table.",
        )
    return Cohort(chosen, members, tuple(account.flow), tuple(account.exclusions), tuple(account.warnings))


def _cases(slides: Sequence[SlideRow], clinical: Table | None) -> tuple[dict[str, str], set[str]]:
    """Give the case of each slide whose case is known, and the slides with contradictory ones."""
    named: dict[str, set[str]] = {}
    for slide in slides:
        named.setdefault(slide.slide_id, set()).add(slide.case_id)
    if clinical is not None and {"slide_id", "case_id"} <= set(clinical.columns):
        for row in clinical.rows:
            named.setdefault(row["slide_id"], set()).add(row["case_id"])
    for cases in named.values():
        cases.discard("")
    one = {name: next(iter(cases)) for name, cases in named.items() if len(cases) == 1 and name}
    return one, {name for name, cases in named.items() if len(cases) > 1}


def _choose(by: By, case_of: dict[str, str], clinical: Table | None) -> str:
    if by != "auto":
        if by == "case" and not case_of:
            raise ConfigError("no case ids are known", remedy=CASES_FROM)
        return by
    if clinical is not None and "slide_id" not in clinical.columns and not case_of:
        raise ConfigError(
            "the clinical table has case ids, and no slide has one", path=clinical.path, remedy=CASES_FROM
        )
    return "case" if case_of else "slide"


def _with_case(
    slides: Sequence[SlideRow], case_of: dict[str, str], contradictory: set[str], account: _Account
) -> list[SlideRow]:
    """Leave out the slides that belong to no case."""
    account.remove(
        [
            Exclusion(
                "slide",
                slide.slide_id,
                "case ids contradict each other" if slide.slide_id in contradictory else "no case id",
            )
            for slide in slides
            if slide.slide_id not in case_of
        ]
    )
    return [slide for slide in slides if slide.slide_id in case_of]


def _clinical_values(
    clinical: Table | None,
    columns: Sequence[str],
    by: str,
    case_of: dict[str, str],
    grouped: dict[str, list[SlideRow]],
    lost: dict[str, str],
    account: _Account,
) -> dict[str, dict[str, str]]:
    """Give the clinical values of each member that has them; write down who has none, and rows left over."""
    if clinical is None:
        return {name: {} for name in grouped}
    account.count("rows of the clinical table", len(clinical.rows))
    rows: dict[str, list[dict[str, str]]] = {}
    nameless = []
    for number, row in enumerate(clinical.rows, start=1):
        keys = _keys(row, by, case_of)
        if not keys:
            nameless.append(
                Exclusion("clinical row", row_name(row, number), "clinical row without a known id")
            )
        for name in keys:
            rows.setdefault(name, []).append(row)
    account.remove(nameless)
    account.count(f"{by}s in the clinical table", len(rows))
    account.remove(
        [
            Exclusion(
                "clinical row", name, f"clinical row without results: {lost.get(name, 'no such ' + by)}"
            )
            for name in rows
            if name not in grouped
        ]
    )
    account.remove([Exclusion(by, name, "no clinical row") for name in grouped if name not in rows])
    account.warnings += _near_misses(set(rows) - set(grouped), set(grouped) - set(rows))
    return _agreed({name: rows[name] for name in grouped if name in rows}, columns, by, clinical, account)


def row_name(row: dict[str, str], number: int) -> str:
    """Name a clinical row by its id, else by its place."""
    return row.get("case_id") or row.get("slide_id") or f"row {number}"


def _keys(row: dict[str, str], by: str, case_of: dict[str, str]) -> list[str]:
    """Give the members that a clinical row speaks of."""
    slide, case = row.get("slide_id", ""), row.get("case_id", "")
    if by == "case":
        name = case or case_of.get(slide, "")
        return [name] if name else []
    if slide or "slide_id" in row:
        return [slide] if slide else []
    return [name for name, of in case_of.items() if of == case]


def _agreed(
    rows: dict[str, list[dict[str, str]]], columns: Sequence[str], by: str, clinical: Table, account: _Account
) -> dict[str, dict[str, str]]:
    """Bring several rows of one member together where they agree; leave the member out where they do not."""
    values: dict[str, dict[str, str]] = {}
    contradictory = []
    for name, found in rows.items():
        variants = {column: {row[column] for row in found} - {""} for column in columns}
        differing = [column for column, cells in variants.items() if len(cells) > 1]
        if differing:
            detail = f"in {', '.join(differing)}"
            contradictory.append(Exclusion(by, name, "clinical rows contradict each other", detail))
        else:
            values[name] = {column: "".join(cells) for column, cells in variants.items()}
    account.remove(contradictory)
    per_slide = by == "case" and "slide_id" in clinical.columns
    several = sorted(name for name, found in rows.items() if len(found) > 1 and name in values)
    if several and not per_slide:
        account.warnings.append(
            f"{_some(several)}: more than one clinical row; they agree in what is used and are taken as one."
        )
    if by == "slide" and "slide_id" not in clinical.columns:
        account.warnings.append(
            "Slides of one case share its clinical values and are counted as if independent: "
            "intervals are too narrow and p-values too small. Prefer --by case."
        )
    return values


def _near_misses(rows: set[str], members: set[str]) -> list[str]:
    """Say which ids without a partner would have one but for case, blanks, signs or a file suffix."""
    by_loose = {_loose(name): name for name in sorted(members)}
    pairs = [f"{name!r} and {by_loose[_loose(name)]!r}" for name in sorted(rows) if _loose(name) in by_loose]
    if not pairs:
        return []
    return [
        f"Ids that nearly match were not joined: {_some(pairs, quote=False)}. Correct them if they are one."
    ]


def _loose(name: str) -> str:
    stem = re.sub(r"\.[a-z]{3,5}$", "", name.casefold())
    return re.sub(r"(?<!\d)0+(?=\d)", "", re.sub(r"[\W_]+", "", stem))


def _some(names: Iterable[str], *, quote: bool = True) -> str:
    listed = [repr(name) if quote else name for name in names]
    return ", ".join(listed[:5]) + (f" and {len(listed) - 5} more" if len(listed) > 5 else "")
