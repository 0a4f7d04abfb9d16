"""Does a slide look like the training data? Mahalanobis distance of its mean stem embedding."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mitoscan.errors import ModelError
from mitoscan.models.card import ModelCard, sha256_of

Float = npt.NDArray[np.float64]

REFERENCE_NAME = "reference.safetensors"


@dataclass(frozen=True)
class Likeness:
    """What the stem embeddings of the training data's slides look like.

    A slide's mean over n crops varies about ``centre`` with the covariance ``between`` (slides differ) plus
    ``within`` / n (crops of one slide differ).
    """

    centre: Float
    """(D,): mean of the slides' means."""
    between: Float
    """(D, D)."""
    within: Float
    """(D, D)."""

    def distance(self, embeddings: Float) -> float:
        """Distance of the mean of ``embeddings``, (n, D): about 1 for a slide like those of the training."""
        apart = embeddings.mean(axis=0) - self.centre
        covariance = self.between + self.within / len(embeddings)
        return float(np.sqrt(apart @ np.linalg.solve(covariance, apart) / len(apart)))

    def save(self, folder: Path) -> str:
        """Write ``reference.safetensors``; give its sha256."""
        from safetensors.numpy import save

        path = folder / REFERENCE_NAME
        part = path.with_suffix(".part")
        part.write_bytes(save({"centre": self.centre, "between": self.between, "within": self.within}))
        part.replace(path)
        return sha256_of(path)


def load_likeness(folder: Path, card: ModelCard) -> Likeness | None:
    """Load what a classifier's card refers to; None when it refers to nothing.

    Raises
    ------
    ModelError
        When the file is missing, is not the card's, or does not hold what it must.
    """
    if card.reference is None or card.reference.likeness is None:
        return None
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    path = folder / REFERENCE_NAME
    if not path.is_file():
        raise ModelError(
            f"{REFERENCE_NAME} is missing", path=folder, remedy="Restore the file or reinstall mitoscan."
        )
    if sha256_of(path) != card.reference.likeness.sha256:
        raise ModelError(
            "its sha256 is not the card's",
            path=path,
            remedy="Restore the file or reinstall mitoscan, or run: mitoscan train reference.",
        )
    try:
        arrays = load_file(path)
        found = Likeness(*(arrays[name].astype(np.float64) for name in ("centre", "between", "within")))
    except (SafetensorError, KeyError) as exc:
        raise ModelError(f"not a reference: {exc}", path=path) from exc
    size = len(found.centre)
    if found.between.shape != (size, size) or found.within.shape != (size, size):
        raise ModelError("not a reference: its arrays do not fit each other", path=path)
    return found
