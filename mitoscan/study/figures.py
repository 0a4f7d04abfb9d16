"""The figures of a study as PNG and SVG. The only importer of matplotlib in this package.

Text of the clinical table is drawn as it stands: ``$`` starts no formula, control characters are replaced.
"""

from __future__ import annotations

import io
import re
import unicodedata
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mitoscan.errors import MissingExtraError
from mitoscan.study.analyse import Study
from mitoscan.study.comparisons import MAX_GROUPS, split
from mitoscan.study.follow_up import Curves
from mitoscan.study.measures import MEASURES, CaseValues, Measure
from mitoscan.study.tested import Tested, show_p

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANEL_IN = (3.1, 2.7)
_COLUMNS = 4
_PNG_DPI, _PAGE_DPI = 160, 88
_INK, _MUTED = "#222222", "#5f5f5f"
_CYCLE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F", "#000000")
"""Okabe & Ito's palette (2008), without its yellow, which is too light for lines."""
_DASHES = ("-", "--", "-.", ":")
_NEW_LINE = "\n"
_MOST_POINTS = 3000
"""Above, points are drawn as one picture inside the SVG, which else grows too large to open."""

_STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 8.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": _MUTED,
    "axes.labelcolor": _INK,
    "figure.constrained_layout.h_pad": 0.09,
    "figure.constrained_layout.w_pad": 0.08,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "svg.fonttype": "path",
    "svg.hashsalt": "mitoscan",
    "text.parse_math": False,
    "axes.formatter.use_mathtext": False,
}


@dataclass(frozen=True)
class Picture:
    """A figure, ready to be written."""

    name: str
    title: str
    alt: str
    """What there is to see, for those who cannot."""
    width: int
    """On a page, CSS px."""
    png: bytes
    svg: bytes


def require_matplotlib() -> None:
    """Say at once when the extra is missing.

    Raises
    ------
    MissingExtraError
        When matplotlib is not installed.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as exc:
        raise MissingExtraError(
            "figures need matplotlib", remedy='Install it: pip install "mitoscan[study]".'
        ) from exc


def draw(study: Study) -> list[Picture]:
    """Draw all figures that the study has something for, in the order of the page."""
    import matplotlib as mpl

    with mpl.rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from")  # shown as a box
        return list(_pictures(study))


def _pictures(study: Study) -> Iterator[Picture]:
    yield _distributions(study)
    if len(study.cases) and any(case.mf for case in study.cases):
        yield _raw_and_corrected(study)
    for name in dict.fromkeys(study.config.groups):
        if 0 < len(study.columns[name].levels()) <= MAX_GROUPS:
            yield _groups(study, name)
    for name in dict.fromkeys(study.config.correlate):
        yield _correlations(study, name)
    if study.rocs:
        yield _rocs(study)
    for curves in study.curves:
        yield _survival(curves)


def _panels(n: int, size: tuple[float, float] = PANEL_IN) -> tuple[Figure, list[Axes]]:
    from matplotlib.figure import Figure

    columns = min(n, _COLUMNS)
    rows = -(-n // columns)
    figure = Figure(figsize=(size[0] * columns, size[1] * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel().tolist()
    for axes in grid[n:]:
        axes.set_visible(False)
    return figure, grid[:n]


def _picture(figure: Figure, name: str, title: str, alt: str) -> Picture:
    png, svg = io.BytesIO(), io.BytesIO()
    figure.savefig(png, format="png", dpi=_PNG_DPI, metadata={"Software": None})
    figure.set_layout_engine("none")  # to lay out is slow: once is enough
    figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
    width = round(figure.get_figwidth() * _PAGE_DPI)
    return Picture(_file_name(name), title, alt, width, png.getvalue(), svg.getvalue())


def _file_name(name: str) -> str:
    """Give a name that every file system takes; different names may give the same one."""
    return re.sub(r"[^A-Za-z0-9_-]+", "_", name)[:60] or "figure"


def plain(text: str, most: int = 40) -> str:
    """Replace what cannot be drawn or may not stand in XML, and shorten."""
    kept = "".join("�" if unicodedata.category(c) in {"Cc", "Cf", "Cs", "Co", "Cn"} else c for c in text)
    return kept if len(kept) <= most else kept[: most - 1] + "…"


def _percent_axis(axis: Any, measure: Measure) -> None:
    if measure.is_rate:
        from matplotlib.ticker import PercentFormatter

        axis.set_major_formatter(PercentFormatter(1.0, decimals=None))


def _distributions(study: Study) -> Picture:
    from matplotlib.ticker import MaxNLocator

    figure, panels = _panels(len(study.descriptions))
    parts = []
    for axes, described in zip(panels, study.descriptions, strict=True):
        measure, median = described.measure, described.median
        values = study.values(measure.name)
        values = values[np.isfinite(values)]
        bins = min(30, max(5, round(2 * len(values) ** 0.5)))
        axes.hist(values, bins=bins, color=_CYCLE[0], alpha=0.75, edgecolor="white", linewidth=0.5)
        axes.axvline(median.value, color=_CYCLE[1], linewidth=1.6)
        if np.isfinite(median.low):
            axes.axvspan(median.low, median.high, color=_CYCLE[1], alpha=0.2, linewidth=0)
        axes.set_title(f"{measure.label}, n = {described.n}")
        axes.set_xlabel(measure.title)
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        _percent_axis(axes.xaxis, measure)
        parts.append(
            f"{measure.label}: median {measure.show(median.value)}, "
            f"{measure.show(described.least)} to {measure.show(described.most)}, n = {described.n}"
        )
    panels[0].set_ylabel(f"{study.cohort.by}s")
    title = "Distribution of the measures; line: median, band: its 95 % interval"
    return _picture(figure, "distributions", title, "Histograms. " + "; ".join(parts) + ".")


def _raw_and_corrected(study: Study) -> Picture:
    from matplotlib.figure import Figure

    rated = [case for case in study.cases if np.isfinite(case.estimates["amf_rate"].value)]
    rated.sort(key=lambda case: (case.estimates["amf_rate"].value, case.mf, case.id))
    figure = Figure(figsize=(_COLUMNS * PANEL_IN[0], 3.4), layout="constrained")
    axes = figure.subplots()
    corrected = [case for case in rated if np.isfinite(case.estimates["amf_rate_corrected"].value)]
    _intervals(axes, rated, rated, "amf_rate", _CYCLE[0], "o", "raw, Wilson interval")
    if corrected:
        _intervals(axes, rated, corrected, "amf_rate_corrected", _CYCLE[1], "D", "corrected, Rogan–Gladen")
    axes.set_ylabel("AMF rate")
    axes.set_xlabel(f"{study.cohort.by}s, by raw rate (n = {len(rated)})")
    axes.set_ylim(-0.02, 1.02)
    axes.set_xlim(-1, len(rated))
    _percent_axis(axes.yaxis, MEASURES["amf_rate"])
    if len(rated) <= 40:
        axes.set_xticks(range(len(rated)), [plain(case.id, 18) for case in rated], rotation=90, fontsize=7)
    else:
        axes.set_xticks([])
    axes.legend(loc="upper left")
    pooled = "; ".join(f"{p.name} of all figures {p.rate.value:.1%}" for p in study.pooled)
    alt = f"Raw and corrected AMF rate of {len(rated)} {study.cohort.by}s with 95 % intervals. {pooled}."
    return _picture(figure, "raw_and_corrected", "AMF rate, raw beside corrected", alt)


def _intervals(
    axes: Axes,
    order: Sequence[CaseValues],
    cases: Sequence[CaseValues],
    measure: str,
    colour: str,
    marker: str,
    label: str,
) -> None:
    place = {case.id: i for i, case in enumerate(order)}
    shift = 0.15 if marker == "D" else -0.15
    x = np.array([place[case.id] for case in cases]) + shift
    value, low, high = (np.array(part) for part in zip(*(c.estimates[measure] for c in cases), strict=True))
    axes.vlines(x, low, high, color=colour, alpha=0.45, linewidth=min(1.5, 220 / len(order)))
    size = min(16.0, 1600 / len(order))
    axes.scatter(x, value, s=max(size, 2), color=colour, marker=marker, linewidths=0, label=label, zorder=3)


def _tests_of(study: Study, section: str, variable: str) -> Iterator[tuple[Measure, Tested]]:
    for test in study.tests:
        if test.section == section and test.variable == variable and test.measure is not None:
            yield test.measure, test


def _verdict(test: Tested, between: str = ", ") -> str:
    if not test.computed:
        return "not computed"
    effect = f"{plain(test.effect_name, 24)} {test.effect.value:.2f}{between}" if test.effect else ""
    corrected = f"; corrected {show_p(test.p_adjusted)}" if test.p_adjusted == test.p_adjusted else ""
    return f"{effect}p {_p(test.p)}{corrected}"


def _p(p: float) -> str:
    shown = show_p(p)
    return shown if shown.startswith("<") else f"= {shown}"


def _groups(study: Study, name: str) -> Picture:
    tests = list(_tests_of(study, "groups", name))
    figure, panels = _panels(len(tests))
    said = []
    for axes, (measure, test) in zip(panels, tests, strict=True):
        parts = split(study.values(measure.name), study.columns[name])
        for at, (_, values) in enumerate(parts.items()):
            colour = _CYCLE[at % len(_CYCLE)]
            spread = np.linspace(-0.22, 0.22, max(len(values), 1))[_shuffled(len(values))]
            axes.scatter(
                at + spread, values, s=9, color=colour, alpha=0.6, linewidths=0,
                rasterized=len(values) > _MOST_POINTS,
            )  # fmt: skip
            if len(values):
                low, middle, high = np.quantile(values, (0.25, 0.5, 0.75))
                axes.vlines(at, low, high, color=_INK, linewidth=3)
                axes.plot([at - 0.3, at + 0.3], [middle, middle], color=_INK, linewidth=1.5)
        labels = [f"{plain(level, 14)}\nn = {len(values)}" for level, values in parts.items()]
        crowded = len(labels) > 5 or sum(len(plain(level, 14)) for level in parts) > 36
        axes.set_xticks(
            range(len(labels)), labels, rotation=60 if crowded else 0, fontsize=7 if crowded else 8
        )
        axes.set_title(f"{measure.label}\n{_verdict(test, _NEW_LINE)}")
        axes.set_ylabel(measure.title)
        _percent_axis(axes.yaxis, measure)
        said.append(f"{measure.label}: {_verdict(test)}")
    shown = plain(name)
    alt = f"Values by group of {shown}. " + "; ".join(said) + "."
    return _picture(
        figure, f"groups_{name}", f"By {shown}; line: median, bar: middle half of the values", alt
    )


def _shuffled(n: int) -> Any:
    return np.random.default_rng(0).permutation(n) if n else np.array([], dtype=int)


def _correlations(study: Study, name: str) -> Picture:
    tests = list(_tests_of(study, "correlation", name))
    figure, panels = _panels(len(tests))
    x = np.array([_number(study, cell) for cell in study.columns[name].cells], dtype=np.float64)
    said = []
    for axes, (measure, test) in zip(panels, tests, strict=True):
        y = study.values(measure.name)
        axes.scatter(x, y, s=10, color=_CYCLE[0], alpha=0.6, linewidths=0, rasterized=len(x) > _MOST_POINTS)
        axes.set_title(f"{measure.label}, n = {test.n}\n{_verdict(test, _NEW_LINE)}")
        axes.set_xlabel(plain(name))
        axes.set_ylabel(measure.title)
        _percent_axis(axes.yaxis, measure)
        said.append(f"{measure.label}: {_verdict(test)}, n = {test.n}")
    alt = f"Measures against {plain(name)}. " + "; ".join(said) + "."
    return _picture(figure, f"correlation_{name}", f"Against {plain(name)}", alt)


def _number(study: Study, cell: str) -> float:
    value = study.table.number(cell) if study.table else None
    return float("nan") if value is None else value


def _rocs(study: Study) -> Picture:
    figure, panels = _panels(len(study.rocs), (3.1, 3.3))
    said = []
    for axes, (name, found) in zip(panels, study.rocs.items(), strict=True):
        measure, auc = MEASURES[name], found.auc
        axes.plot([0, 1], [0, 1], color=_MUTED, linewidth=0.8, linestyle=":")
        axes.plot(found.false_positive, found.true_positive, color=_CYCLE[0], linewidth=1.8)
        sign = "≥" if found.cut.above else "≤"
        at = (1 - found.specificity.value, found.sensitivity.value)
        at = at if found.cut.above else (1 - at[0], 1 - at[1])
        axes.plot(*at, "D", color=_CYCLE[1], label=f"cut: {sign} {measure.show(found.cut.value)}")
        axes.plot([], [], " ", label=f"Youden {found.cut.youden:.2f}, out of bag {found.oob_youden:.2f}")
        axes.set_title(f"{measure.label}\nAUC {auc.value:.2f} ({auc.low:.2f} to {auc.high:.2f})")
        axes.set_xlabel(f"1 − specificity (n = {found.negatives})")
        axes.set_ylabel(f"sensitivity (n = {found.positives})")
        axes.legend(loc="lower right", handlelength=1)
        said.append(f"{measure.label}: AUC {auc.value:.2f}, {auc.low:.2f} to {auc.high:.2f}")
    column = plain(study.config.outcome or "")
    return _picture(figure, "roc", f"ROC curves for {column}", "ROC curves. " + "; ".join(said) + ".")


def _survival(curves: Curves) -> Picture:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.4 + 0.22 * len(curves.curves)), layout="constrained")
    axes, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 0.25 + 0.22 * len(curves.curves)))
    said = []
    for at, curve in enumerate(curves.curves):
        colour, dash = _CYCLE[at % len(_CYCLE)], _DASHES[at % len(_DASHES)]
        name = plain(curve.name, 30)
        axes.step(
            curve.times, curve.survival, where="post", color=colour, linestyle=dash, linewidth=1.8,
            label=f"{name}, {curve.events} of {curve.n}",
        )  # fmt: skip
        axes.fill_between(
            curve.times, curve.low, curve.high, step="post", color=colour, alpha=0.12, linewidth=0
        )
        for mark, number in zip(curve.marks, curve.at_risk, strict=True):
            below.text(float(mark), -at, str(int(number)), ha="center", va="center", color=colour, fontsize=8)
        said.append(f"{name}: {curve.events} events of {curve.n}")
    verdict = f"log-rank p {_p(curves.p)}" if curves.p == curves.p else "no log-rank test"
    axes.set_title(f"{plain(curves.title, 60)}: {verdict}")
    axes.set_ylabel("without event")
    axes.set_ylim(0, 1.03)
    axes.legend(loc="best", title="events of n", title_fontsize=8)
    below.set_ylim(-len(curves.curves) + 0.4, 0.6)
    below.set_yticks(
        [-i for i in range(len(curves.curves))], [plain(c.name, 24) for c in curves.curves], fontsize=8
    )
    below.tick_params(axis="y", length=0)
    below.spines["left"].set_visible(False)
    below.set_xlabel("time, as in the clinical table; numbers: at risk")
    alt = f"Kaplan–Meier curves. {'; '.join(said)}; {verdict}."
    note = f" ({curves.note})" if curves.note else ""
    return _picture(figure, curves.name, f"Survival, {plain(curves.title, 60)}{note}", alt)
