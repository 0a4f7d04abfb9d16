"""What slides are compared with for their QC flags: computed from the training data, kept in the cards."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mitoscan.errors import DataError
from mitoscan.learn.data import CropSet, Float, load_amibr, read_table
from mitoscan.learn.fields import Field, load_fields
from mitoscan.models.card import FocusReference, LikenessReference, ModelCard, Reference, load_card, save_card
from mitoscan.models.likeness import Likeness
from mitoscan.models.runtime import EmbeddingRuntime, load_runtime
from mitoscan.scan.focus import BLOCK_PX, sharpness

log = logging.getLogger(__name__)

MAX_SHARE = 0.25
"""A slide is flagged when more of its tissue is out of focus."""
_FOCUS_QUANTILE = 0.01
_FEW_BLOCKS = 5
_LIKENESS_QUANTILE = 0.975
MIN_CROPS = 5
_FEW_SLIDES = 10
"""With fewer slides there is no telling how slides differ."""
_FOLDS = 5
_SHRINKAGE = 0.2
_BATCH = 64

Names = npt.NDArray[np.str_]


def add_reference(folder: Path, data: Path) -> ModelCard:
    """Compute the reference of the model in ``folder`` from ``data`` and write it to its card.

    The weights and all else in the card stay as they are.

    Raises
    ------
    ModelError, DataError
        When the model is faulty, or the data are missing, faulty or too few.
    """
    card = load_card(folder)
    if card.task == "detector":
        reference = Reference(focus=focus_reference(*_sharpness_by_slide(data)))
    else:
        reference = Reference(likeness=_likeness_reference(folder, card, load_amibr(data / "amf", "train")))
    changed = card.model_copy(update={"reference": reference})
    save_card(changed, folder)
    return changed


def add_reference_if_possible(folder: Path, data: Path) -> ModelCard:
    """Like ``add_reference``; where the data do not allow it, say so and leave the card without one."""
    try:
        return add_reference(folder, data)
    except DataError as error:
        log.warning("no reference for the QC flags: %s", error)
        return load_card(folder)


def _sharpness_by_slide(data: Path) -> tuple[Float, Names]:
    """Measure nine blocks of each labelled field, and the training crops of AMi-Br, a block each."""
    values: list[float] = []
    slides: list[str] = []
    if (data / "detection").is_dir():
        for field in _fields(data / "detection"):
            measured = [sharpness(block) for block in _blocks(field)]
            values += measured
            slides += [field.slide] * len(measured)
    if (data / "amf").is_dir():
        crops = load_amibr(data / "amf", "train")
        values += [sharpness(image) for image in crops.images]
        slides += list(crops.slide)
    return np.array(values), np.array(slides)


def _fields(folder: Path) -> Iterator[Field]:
    """Give the labelled fields, one slide's at a time, since all of them are large."""
    table = read_table(folder / "fields.csv", {"slide", "dataset"})
    for slide in table[~table["dataset"].str.endswith("_unlabelled")]["slide"].unique():
        yield from load_fields(folder, [str(slide)])


def _blocks(field: Field) -> list[npt.NDArray[np.uint8]]:
    shares = (np.arange(3) + 0.5) / 3
    centres = [np.array([x * field.pixels.width, y * field.pixels.height]) for y in shares for x in shares]
    return [field.pixels.cut(centre, BLOCK_PX) for centre in centres]


def focus_reference(values: Float, slides: Names) -> FocusReference:
    """Choose the limit of focus: 1 % of the tissue of an average slide measures less.

    Parameters
    ----------
    values
        (N,): sharpness of blocks in focus; nan where there was no tissue.
    slides
        (N,): their slides.

    Raises
    ------
    DataError
        When these are too few slides.
    """
    values, slides = values[~np.isnan(values)], slides[~np.isnan(values)]
    names, counts = np.unique(slides, return_counts=True)
    enough(names)
    tested = names[counts >= _FEW_BLOCKS]
    alarms = 0
    for name in tested:
        own = slides == name
        limit = _slide_quantile(values[~own], slides[~own], _FOCUS_QUANTILE)
        alarms += bool((values[own] < limit).mean() > MAX_SHARE)
    return FocusReference(
        limit=round(_slide_quantile(values, slides, _FOCUS_QUANTILE), 4),
        max_share=MAX_SHARE,
        blocks=len(values),
        slides=len(names),
        tested=len(tested),
        false_alarms=alarms,
        dataset="fields and crops that the detector learnt from or was validated on",
    )


def _slide_quantile(values: Float, slides: Names, share: float) -> float:
    """Quantile in which each slide weighs the same."""
    _, index, counts = np.unique(slides, return_inverse=True, return_counts=True)
    order = np.argsort(values)
    weight = np.cumsum(1 / counts[index][order])
    return float(values[order][np.searchsorted(weight, share * weight[-1])])


def _likeness_reference(folder: Path, card: ModelCard, crops: CropSet) -> LikenessReference:
    runtime = load_runtime(folder, card, "cpu")
    if not isinstance(runtime, EmbeddingRuntime):
        raise DataError("this classifier gives no embeddings", path=folder)
    parts = [runtime.with_embedding(crops.images[i : i + _BATCH])[1] for i in range(0, len(crops), _BATCH)]
    known = [part for part in parts if part is not None]
    if len(known) < len(parts) or not known:
        raise DataError("this classifier gives no embeddings", path=folder)
    embeddings = np.concatenate(known).astype(np.float64)
    limit, tested, alarms = cross_fitted(embeddings, crops.slide)
    return LikenessReference(
        limit=round(limit, 3),
        min_crops=MIN_CROPS,
        crops=len(crops),
        slides=len(np.unique(crops.slide)),
        tested=tested,
        false_alarms=alarms,
        dataset="AMi-Br, published training part",
        sha256=fit_likeness(embeddings, crops.slide).save(folder),
    )


def cross_fitted(embeddings: Float, slides: Names) -> tuple[float, int, int]:
    """Choose the limit of likeness on slides that the reference was not made from.

    Slides are dealt to five folds; each fold's distances come from a reference of the other folds. The limit
    is their 97.5 % quantile; the false alarms are counted fold by fold with the limit of the other folds.

    Returns
    -------
    limit, tested, false_alarms
        ``tested`` slides have enough crops.
    """
    names = np.unique(slides)
    enough(names)
    fold_of = dict(zip(names, np.random.default_rng(0).permutation(len(names)) % _FOLDS, strict=True))
    folds = np.array([fold_of[slide] for slide in slides])
    distances: list[Float] = []
    for fold in range(_FOLDS):
        rest = folds != fold
        reference = fit_likeness(embeddings[rest], slides[rest])
        distances.append(distances_by_slide(reference, embeddings[~rest], slides[~rest]))
    pooled = np.concatenate(distances)
    if len(pooled) < _FEW_SLIDES:
        raise DataError(f"only {len(pooled)} slides with {MIN_CROPS} crops; {_FEW_SLIDES} are needed")
    alarms = 0
    for fold, own in enumerate(distances):
        others = np.concatenate(distances[:fold] + distances[fold + 1 :])
        alarms += int((own > np.quantile(others, _LIKENESS_QUANTILE)).sum()) if len(others) else 0
    return float(np.quantile(pooled, _LIKENESS_QUANTILE)), len(pooled), alarms


def distances_by_slide(reference: Likeness, embeddings: Float, slides: Names) -> Float:
    """Distances of the slides that have ``MIN_CROPS`` crops."""
    names, counts = np.unique(slides, return_counts=True)
    wanted = names[counts >= MIN_CROPS]
    return np.array([reference.distance(embeddings[slides == name]) for name in wanted])


def fit_likeness(embeddings: Float, slides: Names) -> Likeness:
    """Estimate how stem embeddings vary within slides and between them.

    ``within`` is the pooled covariance of crops about their slide's mean. ``between`` is the covariance of
    the means of slides with three crops or more, less what is due to few crops (method of moments). Along the
    principal axes of all crops it is shrunk towards its diagonal, and its eigenvalues are kept away from 0.
    """
    scale = embeddings.std(axis=0) + 1e-6
    _, turn = np.linalg.eigh(np.cov((embeddings / scale).T))
    scaled = embeddings / scale @ turn
    names, index, counts = np.unique(slides, return_inverse=True, return_counts=True)
    means = np.zeros((len(names), scaled.shape[1]))
    np.add.at(means, index, scaled)
    means /= counts[:, None]
    apart = scaled - means[index]
    within = apart.T @ apart / max(1, len(scaled) - len(names))
    trusted = counts >= 3
    raw = np.cov(means[trusted].T) - within * (1 / counts[trusted]).mean()
    floor = 0.005 * float(np.trace(within)) / len(within)
    diagonal = np.diag(np.clip(np.diag(raw), floor, None))
    values, axes = np.linalg.eigh((1 - _SHRINKAGE) * raw + _SHRINKAGE * diagonal)
    between = (axes * np.clip(values, floor, None)) @ axes.T
    back = turn.T * scale
    return Likeness(means[trusted].mean(axis=0) @ back, back.T @ between @ back, back.T @ within @ back)


def enough(names: Names) -> None:
    """Refuse to learn from too few slides."""
    if len(names) < _FEW_SLIDES:
        raise DataError(f"only {len(names)} slides with tissue; {_FEW_SLIDES} are needed")
