"""The page of a study: every n, exclusion, test and setting in one self-contained HTML file."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from mitoscan.report import html
from mitoscan.scan.score import Estimate
from mitoscan.study.analyse import Study
from mitoscan.study.figures import Picture, plain
from mitoscan.study.measures import MEASURES, Measure
from mitoscan.study.roc import MIN_PER_CLASS
from mitoscan.study.samplesize import SampleSize
from mitoscan.study.survival import MIN_EVENTS
from mitoscan.study.tested import CORRECTIONS, Tested, show_p

_SHOWN = 200
"""Exclusions on the page; the table has all."""


@dataclass(frozen=True)
class PageTable:
    """A table as text, ready to be shown."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numeric: frozenset[int] = frozenset()
    more: bool = False


@dataclass(frozen=True)
class Part:
    """A chapter of the page."""

    anchor: str
    title: str
    texts: tuple[str, ...] = ()
    tables: tuple[PageTable, ...] = ()
    pictures: tuple[dict[str, str], ...] = ()
    kind: str = ""
    """Class of the pictures."""


@dataclass(frozen=True)
class Made:
    """What made the study."""

    command: str
    facts: tuple[tuple[str, str], ...]
    tables: tuple[str, ...] = field(default=())


def render(study: Study, pictures: Sequence[Picture], made: Made) -> bytes:
    """Give the page as UTF-8 HTML; all text is escaped.

    Parameters
    ----------
    study
        What was found.
    pictures
        Of ``figures.draw``.
    made
        Command, versions, inputs; and the names of the tables written beside the page.
    """
    parts = [part for part in _parts(study, pictures) if part is not None]
    contents = [("flow", "Who is in"), *((part.anchor, part.title) for part in parts), ("made", "How made")]
    context = {
        "title": "Study of atypical mitotic figures",
        "lead": _lead(study),
        "contents": contents,
        "tiles": _tiles(study),
        "warnings": study.warnings,
        "flow": study.cohort.flow,
        "exclusions": _exclusions(study),
        "parts": parts,
        "command": made.command,
        "made": PageTable("", ("what", "value"), made.facts),
        "tables": made.tables,
    }
    return html.render("study.html.j2", scripts=(), styles=("study.css",), data={}, context=context)


def _parts(study: Study, pictures: Sequence[Picture]) -> Iterable[Part | None]:
    drawn = {picture.name: _embedded(picture) for picture in pictures}

    def those(prefix: str) -> tuple[dict[str, str], ...]:
        return tuple(picture for name, picture in drawn.items() if name.startswith(prefix))

    yield Part("measures", "Distributions", _MEASURES_TEXT, (_descriptions(study),), those("distributions"))
    yield Part(
        "corrected", "Raw and corrected rate", _CORRECTED_TEXT, (_pooled(study),), those("raw_and_corrected")
    )
    yield _groups(study, those("groups_"))
    yield _section(
        study, "correlation", "Correlations", ("Spearman's ρ with the interval of Bonett & Wright (2000).",),
        pictures=those("correlation_"),
    )  # fmt: skip
    yield _section(study, "outcome", "Outcome", _OUTCOME_TEXT, extra=_cuts(study), pictures=those("roc"))
    yield _section(study, "survival", "Survival", _SURVIVAL_TEXT, pictures=those("km-"), kind="km")
    if study.tests:
        yield Part("tests", "Number of tests", (_family(study),))
    if study.sample is not None:
        yield Part("size", "Sample size", _sample_texts(study, study.sample))


_MEASURES_TEXT = (
    "Counts and tissue of a case's slides are summed; its hot spot is the fullest of its slides'. The "
    "interval of "
    "the median is distribution-free (Thompson 1936) and does not exist below 6 values.",
)
_CORRECTED_TEXT = (
    "A raw rate holds the classifier's errors: some normal figures are called atypical, which overstates low "
    "rates. The corrected rate (Rogan & Gladen 1978) uses sensitivity and specificity of the "
    "classifier's held-out "
    "validation. It is right only if the classifier errs on these slides as often as there. Intervals of "
    "the rates of all figures together resample whole cases, because figures of one tumour are alike.",
)
_OUTCOME_TEXT = (
    "AUC is the chance that a case with the outcome has the higher value; interval by method 5 of "
    "Newcombe (2006). "
    "The cut maximises sensitivity + specificity − 1 (Youden 1950) on these very data, so it looks "
    "better here than "
    "it will elsewhere. Out of bag: resamples choose the cut, and the cases they did not draw judge it; the "
    "optimism is the difference. Report the out-of-bag figures, and test the cut on other cases. "
    f"Fewer than {MIN_PER_CLASS} cases with or without the outcome: not computed.",
)
_SURVIVAL_TEXT = (
    "Hazard ratios are from Cox models of one variable, per standard deviation and at a cut; "
    "proportional hazards "
    "are tested on scaled Schoenfeld residuals (Grambsch & Therneau 1994). A cut that was chosen on "
    "these data "
    "makes ratio and p optimistic: such p-values are shown but not counted as tests. Nothing is adjusted "
    f"for other variables. Fewer than {MIN_EVENTS} events: not computed.",
)


def _lead(study: Study) -> str:
    slides = sum(case.slides for case in study.cases)
    mf = sum(case.mf for case in study.cases)
    amf = sum(case.amf for case in study.cases)
    by = study.cohort.by
    members = f"{len(study.cases)} {by}{'' if len(study.cases) == 1 else 's'}"
    of = f" from {slides} slides" if by == "case" else ""
    return f"{members}{of}: {mf} mitotic figures (MF), of which {amf} were called atypical (AMF)."


def _tiles(study: Study) -> list[dict[str, str]]:
    by = study.cohort.by
    out = sum(step.n for step in study.cohort.flow if step.removed)
    tiles = [
        {
            "label": f"{by}s in the study",
            "value": str(len(study.cases)),
            "detail": f"left out, listed below: {out}",
        }
    ]
    tiles += [
        {
            "label": f"{pooled.name}, all figures",
            "value": f"{pooled.rate.value:.1%}",
            "detail": _range(MEASURES["amf_rate"], pooled.rate) or pooled.note,
        }
        for pooled in study.pooled
    ]
    counted = [test for test in study.tests if test.p_adjusted == test.p_adjusted]
    if counted:
        found = sum(test.p_adjusted < 0.05 for test in counted)
        detail = f"below 0.05 after {CORRECTIONS[study.config.correction][0]}'s correction"
        tiles.append({"label": "tests", "value": f"{found} of {len(counted)}", "detail": detail})
    return tiles


def _range(measure: Measure | None, estimate: Estimate) -> str:
    """Give an interval in words; empty where there is none."""
    if not (estimate.low == estimate.low and estimate.high == estimate.high):
        return ""
    show = measure.show if measure else _effect
    return f"95 % interval {show(estimate.low)} to {show(estimate.high)}"


def _with_range(estimate: Estimate | None, measure: Measure | None = None) -> str:
    if estimate is None or estimate.value != estimate.value:
        return "–"
    show = measure.show if measure else _effect
    if estimate.low != estimate.low or estimate.high != estimate.high:
        return show(estimate.value)
    return f"{show(estimate.value)} ({show(estimate.low)} to {show(estimate.high)})"


def _effect(value: float) -> str:
    """Two decimals, or two digits where these would be noughts: hazard ratios may be small."""
    return f"{value:.2g}" if 0.001 <= abs(value) < 0.095 else f"{value:.2f}"


def _exclusions(study: Study) -> PageTable:
    rows = tuple((e.what, e.id, e.reason, e.detail) for e in study.exclusions[:_SHOWN])
    more = len(study.exclusions) > _SHOWN
    return PageTable("", ("what", "id", "reason", "detail"), rows, more=more)


def _descriptions(study: Study) -> PageTable:
    rows = tuple(
        (
            d.measure.title,
            str(d.n),
            str(len(study.cases) - d.n),
            str(d.zeros),
            _with_range(d.median, d.measure),
            f"{d.measure.show(d.quartile_low)} to {d.measure.show(d.quartile_high)}",
            f"{d.measure.show(d.mean)} ({d.measure.show(d.sd)})",
            f"{d.measure.show(d.least)} to {d.measure.show(d.most)}",
        )
        for d in study.descriptions
    )
    columns = (
        "measure", "n", "not defined", "zeros", "median (95 % interval)", "middle half", "mean (sd)", "range",
    )  # fmt: skip
    return PageTable(f"Over the {study.cohort.by}s of the study.", columns, rows, frozenset(range(1, 8)))


def _pooled(study: Study) -> PageTable:
    rows = tuple(
        (p.name, f"{p.amf} of {p.mf}", _with_range(p.rate, MEASURES["amf_rate"]), p.note)
        for p in study.pooled
    )
    medians = tuple(
        (f"{d.measure.label}, median {study.cohort.by}", f"n = {d.n}", _with_range(d.median, d.measure), "")
        for d in study.descriptions
        if d.measure.is_rate
    )
    return PageTable("", ("rate", "figures", "value (95 % interval)", ""), rows + medians, frozenset({1, 2}))


def _groups(study: Study, pictures: tuple[dict[str, str], ...]) -> Part | None:
    if not study.config.groups:
        return None
    rows = tuple(
        (
            g.column,
            g.group,
            g.measure.title,
            str(g.n),
            str(g.undefined),
            _with_range(g.median, g.measure),
            f"{g.measure.show(g.quartiles[0])} to {g.measure.show(g.quartiles[1])}" if g.quartiles else "–",
        )
        for g in study.groups
    )
    columns = ("column", "group", "measure", "n", "not defined", "median (95 % interval)", "middle half")
    text = (
        "Two groups: Mann–Whitney; the effect is the chance that a case of the second group has the "
        "higher value (0.5: no difference), interval by method 5 of Newcombe (2006). More: Kruskal–Wallis; "
        "ε² is the "
        "share of the ranks' variance between groups, interval by the non-central χ² law. With a group of "
        "fewer than 5: p by permutation.",
        *_missing(study, study.config.groups),
    )
    described = PageTable("Each group.", columns, rows, frozenset({3, 4, 5, 6}))
    return Part("groups", "Groups", text, (_tests(study, "groups"), described), pictures)


def _missing(study: Study, names: Iterable[str]) -> list[str]:
    missing = {name: study.columns[name].missing for name in dict.fromkeys(names)}
    said = ", ".join(f"{plain(name)}: {n}" for name, n in missing.items())
    return [f"Members without a value: {said}."] if missing else []


def _section(
    study: Study,
    section: str,
    title: str,
    texts: tuple[str, ...],
    *,
    extra: PageTable | None = None,
    pictures: tuple[dict[str, str], ...] = (),
    kind: str = "",
) -> Part | None:
    if not any(test.section == section for test in study.tests):
        return None
    config = study.config
    names = {
        "correlation": config.correlate,
        "outcome": (config.outcome or "",),
        "survival": (config.time or "", config.event or ""),
    }[section]
    tables = (_tests(study, section), *((extra,) if extra else ()))
    return Part(section, title, (*texts, *_missing(study, names)), tables, pictures, kind)


def _tests(study: Study, section: str) -> PageTable:
    rows = tuple(_test_row(test) for test in study.tests if test.section == section)
    corrected = f"p, {CORRECTIONS[study.config.correction][0]}"
    heads = ("column", "measure", "test", "n", "effect (95 % interval)", "p", corrected, "groups", "to mind")
    kept = [at for at in range(len(heads)) if at < 7 or any(row[at] for row in rows)]
    shown = tuple(tuple(row[at] for at in kept) for row in rows)
    return PageTable("", tuple(heads[at] for at in kept), shown, frozenset({3, 4, 5, 6}))


def _test_row(test: Tested) -> tuple[str, ...]:
    effect = f"{test.effect_name} {_with_range(test.effect)}" if test.effect else "–"
    return (
        test.variable,
        test.measure.label if test.measure else "–",
        test.method,
        str(test.n),
        effect,
        show_p(test.p),
        show_p(test.p_adjusted) if test.in_family else "not counted",
        test.detail,
        test.note,
    )


def _cuts(study: Study) -> PageTable | None:
    if not study.rocs:
        return None
    rows = []
    for name, found in study.rocs.items():
        measure, rate = MEASURES[name], MEASURES["amf_rate"]
        rows.append(
            (
                measure.title,
                f"{'≥' if found.cut.above else '≤'} {measure.show(found.cut.value)}",
                f"{measure.show(found.cut_interval.low)} to {measure.show(found.cut_interval.high)}",
                _with_range(found.sensitivity, rate),
                _with_range(found.specificity, rate),
                f"{found.cut.youden:.2f}",
                f"{rate.show(found.oob_sensitivity)} / {rate.show(found.oob_specificity)}",
                f"{found.oob_youden:.2f}",
                f"{found.optimism:.2f}",
            )
        )
    columns = (
        "measure", "cut", "cuts of resamples (middle 95 %)", "sensitivity, apparent", "specificity, apparent",
        "Youden, apparent", "sens. / spec., out of bag", "Youden, out of bag", "optimism",
    )  # fmt: skip
    resamples = min(found.resamples for found in study.rocs.values())
    caption = f"Optimal cuts; {resamples} or more usable resamples each."
    return PageTable(caption, columns, tuple(rows), frozenset(range(1, 9)))


def _family(study: Study) -> str:
    computed = [test for test in study.tests if test.computed]
    family = [test for test in computed if test.in_family]
    name, meaning = CORRECTIONS[study.config.correction]
    text = (
        f"{len(study.tests)} questions were asked; {len(computed)} tests could be computed, and "
        f"{len(family)} are "
        f"corrected together by {name}'s method: {meaning}. The others are named above with the reason."
    )
    return text + " Tests of related measures are related, so the correction is on the safe side." * bool(
        family
    )


def _sample_texts(study: Study, sample: SampleSize) -> tuple[str, ...]:
    percent = MEASURES["amf_rate"].show
    enough = sum(case.mf >= sample.figures for case in study.cases)
    by = study.cohort.by
    texts = [
        f"For an AMF rate with a 95 % interval no wider than {percent(sample.width)} in all:",
        f"One {by}: {sample.figures} mitotic figures at this cohort's rate of {percent(sample.rate)} "
        f"(Wilson interval), {sample.figures_at_half} at a rate of one half, the worst. "
        f"{enough} of {len(study.cases)} {by}s reach the former.",
    ]
    if sample.width_floor is None:
        texts.append("Corrected rate: not known, because the classifier's validation is not.")
    elif sample.figures_corrected is None:
        texts.append(
            f"Corrected rate of one {by}: no number of figures suffices. The limited validation of the "
            f"classifier "
            f"alone leaves a width of {percent(sample.width_floor)}; a larger validation is what narrows it."
        )
    else:
        texts.append(
            f"Corrected rate of one {by}: {sample.figures_corrected} figures; the classifier's "
            f"validation alone "
            f"leaves a width of {percent(sample.width_floor)}."
        )
    if sample.cases is not None:
        texts.append(
            f"The raw rate of a whole cohort like this one: about {sample.cases} {by}s; the interval "
            f"narrows with "
            f"the root of their number. It stands for differences between {by}s as seen here."
        )
    return tuple(texts)


def _embedded(picture: Picture) -> dict[str, str]:
    return {
        "name": picture.name,
        "title": picture.title,
        "alt": picture.alt,
        "width": str(picture.width),
        "base64": base64.b64encode(picture.png).decode(),
    }
