"""Pictures of training and evaluation; the only user of matplotlib in ``learn``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pandas as pd
from PIL import Image, ImageDraw

from mitoscan.errors import MissingExtraError
from mitoscan.report.atomic import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from mitoscan.learn.metrics import Detections

Float = npt.NDArray[np.float64]
UInt8 = npt.NDArray[np.uint8]

CELL_PX, LABEL_PX, COLUMNS = 128, 14, 10


def _axes(title: str, x: str, y: str) -> tuple[Figure, Axes]:
    try:
        from matplotlib.figure import Figure
    except ImportError as exc:
        raise MissingExtraError(
            "pictures need matplotlib", remedy='Run: pip install "mitoscan[train]".'
        ) from exc
    figure = Figure(figsize=(5, 4), layout="constrained")
    axes = figure.subplots()
    axes.set(title=title, xlabel=x, ylabel=y)
    axes.grid(alpha=0.3)
    return figure, axes


def _save(figure: Figure, path: Path) -> None:
    data = BytesIO()
    figure.savefig(data, format="png", dpi=130)
    write_atomically(path, data.getvalue())


def learning_curve(log: Path, path: Path, figures: Sequence[str]) -> None:
    """Draw the loss and the validation ``figures`` (columns) of a training's log.csv over its steps."""
    rows = pd.read_csv(log)
    figure, axes = _axes("Training", "step", "validation")
    for name in figures:
        axes.plot(rows["step"], rows[name], marker="o", label=name)
    axes.set_ylim(0, 1)
    loss = axes.twinx()
    loss.plot(rows["step"], rows["loss"], color="grey", linestyle=":")
    loss.set_ylabel("training loss (dotted)")
    if figures:
        axes.legend(loc="lower right")
    _save(figure, path)


def precision_recall(parts: Mapping[str, Detections], threshold: float, path: Path) -> None:
    """Draw a precision–recall curve a part; the dot is the operating point."""
    figure, axes = _axes("Precision and recall, 7.5 µm", "recall", "precision")
    for name, found in parts.items():
        _, precision, recall = found.curve()
        (line,) = axes.plot(recall, precision, label=f"{name}, AP {found.average_precision():.2f}")
        at = found.at(threshold)
        axes.plot(at[1], at[0], "o", color=line.get_color())
    axes.set(xlim=(0, 1), ylim=(0, 1))
    axes.legend(fontsize="small")
    _save(figure, path)


def froc(parts: Mapping[str, Detections], path: Path) -> None:
    """Draw recall over false positives per mm²."""
    figure, axes = _axes("FROC", "false positives per mm²", "recall")
    for name, found in parts.items():
        hits = np.cumsum(found.hit[np.argsort(-found.p, kind="stable")])
        false = np.arange(1, len(hits) + 1) - hits
        axes.plot(false / found.area_mm2, hits / max(found.figures, 1), label=name)
    axes.set(xscale="symlog", xlim=(0, 64), ylim=(0, 1))
    axes.legend(fontsize="small")
    _save(figure, path)


def reliability(p: Float, true: npt.NDArray[np.bool_], title: str, path: Path) -> None:
    """Draw how often a score is right, in ten bins of equal width, with the number in each."""
    figure, axes = _axes(title, "score", "share that is true")
    which = np.clip((p * 10).astype(int), 0, 9)
    for i in np.unique(which):
        members = which == i
        share = true[members].mean()
        spread = 1.96 * np.sqrt(max(share * (1 - share), 1e-9) / members.sum())
        axes.errorbar(p[members].mean(), share, yerr=spread, fmt="o", color="C0", capsize=3)
        axes.annotate(str(members.sum()), (p[members].mean(), share), (4, 6), textcoords="offset points")
    axes.plot([0, 1], [0, 1], color="grey", linestyle=":")
    axes.set(xlim=(0, 1), ylim=(0, 1))
    _save(figure, path)


def roc(curves: Mapping[str, tuple[Float, npt.NDArray[np.bool_]]], title: str, path: Path) -> None:
    """Draw a ROC curve a model from its scores and the truth."""
    from sklearn.metrics import roc_auc_score, roc_curve

    figure, axes = _axes(title, "1 − specificity", "sensitivity")
    for name, (p, true) in curves.items():
        fpr, tpr, _ = roc_curve(true, p)
        axes.plot(fpr, tpr, label=f"{name}, AUROC {roc_auc_score(true, p):.3f}")
    axes.plot([0, 1], [0, 1], color="grey", linestyle=":")
    axes.set(xlim=(0, 1), ylim=(0, 1))
    axes.legend(fontsize="small", loc="lower right")
    _save(figure, path)


def confusion_matrix(counts: npt.NDArray[np.int64], names: Sequence[str], path: Path) -> None:
    """Draw counts, (K, K), rows the truth; shaded by the share of the row."""
    figure, axes = _axes("Subtypes", "called", "true (expert 1)")
    axes.grid(visible=False)
    axes.imshow(counts / np.maximum(counts.sum(axis=1, keepdims=True), 1), cmap="Blues", vmin=0, vmax=1)
    ticks = [name.replace("_", " ") for name in names]
    axes.set_xticks(range(len(names)), ticks, rotation=45, ha="right", fontsize="small")
    axes.set_yticks(range(len(names)), ticks, fontsize="small")
    for (row, column), count in np.ndenumerate(counts):
        dark = count > 0.5 * max(counts[row].sum(), 1)
        axes.text(column, row, str(count), ha="center", va="center", color="white" if dark else "black")
    _save(figure, path)


def contact_sheet(crops: Sequence[tuple[str, UInt8]], path: Path) -> None:
    """Put captioned crops, uint8 (S, S, 3), on one sheet."""
    rows = max(1, -(-len(crops) // COLUMNS))
    sheet = Image.new("RGB", (COLUMNS * CELL_PX, rows * (CELL_PX + LABEL_PX)), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (caption, crop) in enumerate(crops):
        left, top = i % COLUMNS * CELL_PX, i // COLUMNS * (CELL_PX + LABEL_PX)
        sheet.paste(Image.fromarray(crop).resize((CELL_PX - 2, CELL_PX - 2)), (left, top))
        draw.text((left, top + CELL_PX - 1), caption, fill="black")
    data = BytesIO()
    sheet.save(data, "PNG")
    write_atomically(path, data.getvalue())
