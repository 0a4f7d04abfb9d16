"""How good a detector is: matched by MIDOG's rule, by slide, with intervals and with others' thresholds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, replace
from io import BytesIO

import numpy as np
import numpy.typing as npt
from PIL import Image

from mitoscan.learn.fields import Field, Picture
from mitoscan.learn.metrics import MATCH_RADIUS_UM, Detections, match
from mitoscan.scan.detect import FLOOR_SHARE, Detector

Float = npt.NDArray[np.float64]
Bool = npt.NDArray[np.bool_]
UInt8 = npt.NDArray[np.uint8]

FROC_AT = (1.0, 2.0, 4.0, 8.0)
"""False positives per mm² at which recall is given."""
LOWEST_P = 0.02
"""Detections below are not looked at: they add nothing to average precision."""

Find = Callable[[Field], tuple[Float, Float]]
"""A field to what is found in it: (N, 2) px of the field, and (N,) scores."""


@dataclass(frozen=True)
class Matched:
    """What was found in one field, compared with its labels."""

    field: Field
    xy: Float
    """(N, 2): px of the field."""
    p: Float
    figure: npt.NDArray[np.int64]
    """(N,): index of the figure that each detection hits, -1 for none."""
    ignored: Bool
    """(N,): on a look-alike that may be a figure; counts neither way."""

    @property
    def missed(self) -> npt.NDArray[np.int64]:
        """Indices of the figures that nothing hits, whatever its score."""
        return np.setdiff1d(np.arange(len(self.field.figures)), self.figure)

    def detections(self) -> Detections:
        """Scores and hits that count."""
        counts = ~self.ignored
        return Detections(
            self.p[counts], self.figure[counts] >= 0, len(self.field.figures), self.field.area_mm2
        )


def match_field(field: Field, xy: Float, p: Float) -> Matched:
    """Match detections to a field's figures within 7.5 µm, one to one, the highest score first."""
    radius = MATCH_RADIUS_UM / field.mpp
    figure = match(xy, p, field.figures, radius)
    on_doubtful = match(xy, np.where(figure >= 0, -1.0, p), field.doubtful, radius) >= 0
    return Matched(field, xy, p, figure, on_doubtful & (figure < 0))


def finder(detector: Detector) -> Find:
    """Find as a scan does, tile by tile, down to a score of ``LOWEST_P``."""
    deep = Detector(detector.card, detector.heat, threshold=LOWEST_P / FLOOR_SHARE)

    def find(field: Field) -> tuple[Float, Float]:
        table = deep.detect(field.image, field.mpp)
        return table[["x", "y"]].to_numpy(np.float64), table["p_mitosis"].to_numpy(np.float64)

    return find


@dataclass(frozen=True)
class Figures:
    """The figures of merit at one threshold; those of the FROC curve and AP need none."""

    precision: float
    recall: float
    f1: float
    ap: float
    fp_per_mm2: float
    recall_at_1: float
    recall_at_2: float
    recall_at_4: float
    recall_at_8: float


@dataclass(frozen=True)
class Row(Figures):
    """The figures of merit of a slide, a data set or all of it, at one threshold."""

    part: str
    fields: int
    area_mm2: float
    figures: int
    threshold: float
    tp: int
    fp: int
    fn: int
    best_f1: float
    best_threshold: float
    threshold_of_others: float | None
    """The best threshold of all other slides (data sets, for a data set): nothing of this part chose it."""
    f1_of_others: float | None
    """F1 at that threshold."""
    low: Figures
    """Lower ends of the 95 % intervals."""
    high: Figures


def table(matched: Sequence[Matched], threshold: float, *, resamples: int = 1000, seed: int = 0) -> list[Row]:
    """Give one row a slide, one a data set and one for all.

    Parameters
    ----------
    matched
        All fields.
    threshold
        The operating point, 0 to 1.
    resamples
        Of the bootstrap: by slide where a part has at least three slides, else by field.
    seed
        Of the bootstrap.
    """
    rng = np.random.default_rng(seed)
    rows = []
    for parts in (by_slide(matched), _grouped(matched, lambda m: m.field.dataset)):
        for name, members in parts.items():
            rest = [m for other, ms in parts.items() if other != name for m in ms]
            rows.append(_row(name, members, rest, threshold, resamples, rng))
    return [*rows, _row("all", list(matched), [], threshold, resamples, rng)]


def _row(
    name: str,
    members: Sequence[Matched],
    others: Sequence[Matched],
    threshold: float,
    resamples: int,
    rng: np.random.Generator,
) -> Row:
    found = pooled(members)
    called = found.p >= threshold
    tp = int(found.hit[called].sum())
    foreign = pooled(others).best_threshold() if any(len(m.field.figures) for m in others) else None
    samples = [astuple(figures_of(s, threshold)) for s in _resampled(members, resamples, rng)]
    low, high = np.quantile(samples, (0.025, 0.975), axis=0)
    return Row(
        **asdict(figures_of(found, threshold)),
        part=name,
        fields=len(members),
        area_mm2=found.area_mm2,
        figures=found.figures,
        threshold=threshold,
        tp=tp,
        fp=int(called.sum()) - tp,
        fn=found.figures - tp,
        best_f1=found.at(found.best_threshold())[2],
        best_threshold=found.best_threshold(),
        threshold_of_others=foreign,
        f1_of_others=None if foreign is None else found.at(foreign)[2],
        low=Figures(*low.tolist()),
        high=Figures(*high.tolist()),
    )


def figures_of(found: Detections, threshold: float) -> Figures:
    """Give the figures of merit of pooled detections."""
    precision, recall, f1 = found.at(threshold)
    false = int((~found.hit[found.p >= threshold]).sum())
    at = (recall_at(found, rate) for rate in FROC_AT)
    return Figures(precision, recall, f1, found.average_precision(), false / found.area_mm2, *at)


def pooled(matched: Iterable[Matched]) -> Detections:
    """Put the detections of several fields together."""
    return Detections.pool([m.detections() for m in matched])


def recall_at(found: Detections, fp_per_mm2: float) -> float:
    """Greatest recall at no more than so many false positives per mm² (a point of the FROC curve)."""
    order = np.argsort(-found.p, kind="stable")
    hits = np.cumsum(found.hit[order])
    allowed = np.arange(1, len(order) + 1) - hits <= fp_per_mm2 * found.area_mm2
    return float(hits[allowed].max(initial=0) / max(found.figures, 1))


def _resampled(members: Sequence[Matched], resamples: int, rng: np.random.Generator) -> Iterator[Detections]:
    """Draw bootstrap samples: of slides where there are at least three, else of fields."""
    slides = _grouped(members, lambda m: m.field.slide)
    units = list(slides.values()) if len(slides) >= 3 else [[m] for m in members]
    parts = [pooled(unit) for unit in units]
    for _ in range(resamples):
        yield Detections.pool([parts[i] for i in rng.integers(len(parts), size=len(parts))])


def by_slide(matched: Iterable[Matched]) -> dict[str, list[Matched]]:
    """Group fields by slide, named ``dataset/slide``."""
    return _grouped(matched, lambda m: f"{m.field.dataset}/{m.field.slide}")


def _grouped(matched: Iterable[Matched], key: Callable[[Matched], str]) -> dict[str, list[Matched]]:
    groups: dict[str, list[Matched]] = {}
    for m in matched:
        groups.setdefault(key(m), []).append(m)
    return groups


def as_records(rows: Sequence[Row]) -> list[dict[str, object]]:
    """Give the rows as flat dictionaries, floats to four digits; intervals end in ``_low`` and ``_high``."""
    return [{k: round(v, 4) if isinstance(v, float) else v for k, v in _flat(row).items()} for row in rows]


def _flat(row: Row) -> dict[str, object]:
    values = asdict(row)
    ends = {end: values.pop(end) for end in ("low", "high")}
    first = {"part": values.pop("part")}
    return first | values | {f"{k}_{end}": ends[end][k] for k in ends["low"] for end in ends}


def _jpeg50(image: UInt8) -> UInt8:
    file = BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=50)
    return np.asarray(Image.open(file))


def _other_scanner(image: UInt8) -> UInt8:
    """Shift the hue as another scanner's colour rendering does: the red and blue densities by a fifth."""
    density = -np.log((image.astype(np.float32) + 1) / 256) * np.array([1.2, 1.0, 0.8], np.float32)
    return np.asarray(np.clip(256 * np.exp(-density) - 1, 0, 255).round().astype(np.uint8))


SHIFTS: Mapping[str, Callable[[Field], Field]] = {
    "JPEG quality 50": lambda f: replace(f, pixels=Picture(_jpeg50(f.image))),
    "hue of another scanner": lambda f: replace(f, pixels=Picture(_other_scanner(f.image))),
    "mpp stated 10 % too large": lambda f: replace(f, mpp=f.mpp * 1.1),
    "mpp stated 10 % too small": lambda f: replace(f, mpp=f.mpp * 0.9),
}
"""What may differ at a user's: a field to the same field, shifted."""
