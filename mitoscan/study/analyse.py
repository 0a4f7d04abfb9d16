"""A study from its tables to all its numbers. What is done in which order, and nothing else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mitoscan.errors import ConfigError
from mitoscan.models.card import Counts
from mitoscan.study.comparisons import (
    Column,
    GroupSummary,
    compare_groups,
    correlate,
    discriminate,
    outcome_of,
    summarise_groups,
)
from mitoscan.study.config import StudyConfig
from mitoscan.study.follow_up import ChosenCut, Curves, read_follow_up, study_groups, study_measure
from mitoscan.study.join import Cohort, Exclusion, join
from mitoscan.study.measures import (
    MEASURES,
    CaseValues,
    Description,
    Pooled,
    Validation,
    case_values,
    describe,
    find_validation,
    judge,
    pooled_rates,
    values_of,
)
from mitoscan.study.roc import Roc
from mitoscan.study.samplesize import SampleSize, sample_size
from mitoscan.study.slides import check_alike, read_failures, read_slides
from mitoscan.study.statistics import FloatArray
from mitoscan.study.survival import require_lifelines
from mitoscan.study.tables import Table, read_table
from mitoscan.study.tested import Tested, adjusted

FEW_FIGURES = 20
"""Rates from fewer figures are counted in a warning; the same number as in the scan."""


@dataclass(frozen=True)
class Study:
    """All that a study found."""

    config: StudyConfig
    cohort: Cohort
    cases: tuple[CaseValues, ...]
    table: Table | None
    """The clinical table."""
    columns: dict[str, Column]
    """Of the clinical table, those used."""
    validation: Validation
    descriptions: tuple[Description, ...]
    pooled: tuple[Pooled, ...]
    sample: SampleSize | None
    groups: tuple[GroupSummary, ...]
    tests: tuple[Tested, ...]
    rocs: dict[str, Roc]
    """By measure."""
    curves: tuple[Curves, ...]
    exclusions: tuple[Exclusion, ...]
    warnings: tuple[str, ...]

    def values(self, measure: str) -> FloatArray:
        """Give a measure of all members, shape (N,), nan where it is not defined."""
        return values_of(self.cases, measure)


def analyse(out: Path, clinical: Path | None, config: StudyConfig) -> Study:
    """Make the study of the results in ``out``; nothing is written.

    Parameters
    ----------
    out
        Output folder of a batch, with slides.csv and perhaps failures.csv.
    clinical
        The clinical table, CSV. None: the slides are only described.
    config
        What to ask.

    Raises
    ------
    DataError
        When a table cannot be used, detectors differ, or nobody is left.
    ConfigError
        When a column asked for does not exist or cases are not known.
    MissingExtraError
        When survival is asked for and lifelines is not installed.
    """
    slides, unusable = read_slides(out / "slides.csv")
    table = read_table(clinical, ("slide_id", "case_id")) if clinical else None
    config = _resolved(config, table)
    names = _columns(config)
    cohort = join(slides, unusable, read_failures(out / "failures.csv"), table, names, config.by)
    used = [slide for member in cohort.members for slide in member.slides]
    warnings = [*cohort.warnings, *check_alike(used)]
    validation = find_validation([slide.classifier for slide in used], config.classifiers)
    cases = tuple(case_values(member, validation, config.min_figures) for member in cohort.members)
    columns = {
        name: Column(name, tuple(member.clinical[name] for member in cohort.members)) for name in names
    }
    alike = {(judge(slide, validation), slide.classifier) for slide in used if slide.mf}
    if len(alike) > 1:
        warnings.append("Not all labels are of one origin: no corrected rate of all figures together.")
    correctable = len(alike) == 1 and next(iter(alike))[0] == "classifier"
    counts = validation.counts[next(iter(alike))[1]] if correctable else None
    pooled = tuple(pooled_rates(cases, counts, config.seed, config.bootstrap))
    study = Study(
        config=config,
        cohort=cohort,
        cases=cases,
        table=table,
        columns=columns,
        validation=validation,
        descriptions=tuple(describe(cases)),
        pooled=pooled,
        sample=_sample(pooled, config, counts, len(cases)),
        groups=(),
        tests=(),
        rocs={},
        curves=(),
        exclusions=cohort.exclusions,
        warnings=(*warnings, *_warnings(cohort, cases, config, validation)),
    )
    return study if table is None else _tested(study, table)


def _resolved(config: StudyConfig, table: Table | None) -> StudyConfig:
    """Fill in the default columns of survival, and check that what is asked for exists."""
    asked = _columns(config)
    if table is None:
        if asked:
            raise ConfigError(f"column {asked[0]!r} is asked for", remedy="Give the table with --clinical.")
        return config
    table.require(asked, "Correct the option that names the column.")
    if config.time or config.event or {"time", "event"} <= set(table.columns):
        config = config.model_copy(update={"time": config.time or "time", "event": config.event or "event"})
        table.require(_columns(config), "Name the columns with --time and --event.")
        require_lifelines()
    return config


def _columns(config: StudyConfig) -> list[str]:
    """Give the clinical columns that the study uses, each once."""
    named = (*config.groups, config.outcome, *config.correlate, config.time, config.event)
    return list(dict.fromkeys(name for name in named if name))


def _sample(
    pooled: Sequence[Pooled], config: StudyConfig, counts: Counts | None, members: int
) -> SampleSize | None:
    if not pooled:
        return None
    raw = pooled[0].rate
    return sample_size(raw.value, config.width, counts, members, raw.high - raw.low)


def _warnings(
    cohort: Cohort, cases: tuple[CaseValues, ...], config: StudyConfig, validation: Validation
) -> list[str]:
    """Say what a reader should know of the members before the numbers."""
    many = f"{cohort.by}s"
    found = list(validation.faults)
    zero = sum(case.mf == 0 for case in cases)
    if zero:
        found.append(
            f"{zero} of {len(cases)} {many} have no mitotic figure: no AMF rate, and 0 in densities."
        )
    few = sum(0 < case.mf < config.min_figures for case in cases)
    if few:
        found.append(f"{few} {many} have fewer than {config.min_figures} mitotic figures: no AMF rate here.")
    shaky = sum(config.min_figures <= case.mf < FEW_FIGURES for case in cases)
    if shaky:
        found.append(f"The AMF rates of {shaky} {many} come from fewer than {FEW_FIGURES} mitotic figures.")
    reviewed = sum(slide.reviewed for member in cohort.members for slide in member.slides)
    if reviewed:
        found.append(
            f"{reviewed} slides carry a reviewer's labels: their rates are not made like the others'."
        )
    flags = Counter(flag for member in cohort.members for s in member.slides for flag in s.qc_flags)
    found += [f"Quality flag “{flag}”: {n} slides, all of them in the study." for flag, n in flags.items()]
    return found


def _tested(study: Study, table: Table) -> Study:
    """Ask everything of the clinical table, then correct all p-values together."""
    config, columns = study.config, study.columns
    measures = [MEASURES[name] for name in dict.fromkeys(config.measures)]
    tests: list[Tested] = []
    groups: list[GroupSummary] = []
    for name in dict.fromkeys(config.groups):
        for measure in measures:
            values = study.values(measure.name)
            groups += summarise_groups(values, columns[name], measure)
            tests.append(compare_groups(values, columns[name], measure, config.seed, config.bootstrap))
    for name in dict.fromkeys(config.correlate):
        tests += [
            correlate(study.values(m.name), columns[name], table, m, config.seed, config.bootstrap)
            for m in measures
        ]
    rocs: dict[str, Roc] = {}
    if config.outcome:
        column = columns[config.outcome]
        outcome = outcome_of(column, config.positive)
        for m in measures:
            tested, found = discriminate(
                study.values(m.name), column, outcome, m, config.seed, config.bootstrap
            )
            tests.append(tested)
            if found is not None:
                rocs[m.name] = found
    study = replace(study, groups=tuple(groups), rocs=rocs)
    survival, curves, lost = _survival(study, table)
    tests = adjusted([*tests, *survival], config.correction)
    return replace(
        study,
        tests=tuple(tests),
        curves=tuple(curves),
        exclusions=(*study.exclusions, *lost),
    )


def _survival(study: Study, table: Table) -> tuple[list[Tested], list[Curves], tuple[Exclusion, ...]]:
    config, columns = study.config, study.columns
    if not config.time or not config.event:
        return [], [], ()
    ids = [case.id for case in study.cases]
    follow = read_follow_up(columns[config.time], columns[config.event], table, ids, study.cohort.by)
    tests: list[Tested] = []
    curves: list[Curves | None] = []
    if follow.known.any():
        for measure in dict.fromkeys(config.measures):
            cut = _cut(study, measure)
            found, curve = study_measure(follow, study.values(measure), MEASURES[measure], cut)
            tests += found
            curves.append(curve)
        for name in dict.fromkeys(config.groups):
            tested, curve = study_groups(follow, columns[name])
            tests.append(tested)
            curves.append(curve)
    return tests, [curve for curve in curves if curve is not None], follow.lost


def _cut(study: Study, measure: str) -> ChosenCut | None:
    """Give the cut fixed beforehand, else that of the ROC, else none: the median will do."""
    if study.config.cut is not None and measure == study.config.measures[0]:
        return ChosenCut(study.config.cut, "cut given beforehand", False)
    if measure in study.rocs:
        origin = "cut chosen on these data by Youden's index: ratio and p are optimistic"
        return ChosenCut(study.rocs[measure].cut.value, origin, True)
    return None
