"""Stage 2: crops about the candidates to p_atypical and subtypes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mitoscan.config import Device
from mitoscan.errors import ModelError
from mitoscan.models.card import ModelCard
from mitoscan.models.likeness import Likeness, load_likeness
from mitoscan.models.runtime import EmbeddingRuntime, Floats, Runtime, load_runtime
from mitoscan.models.zoo import find_model
from mitoscan.scan.readers import ReaderPool, Region
from mitoscan.units import WorkFrame

Float = npt.NDArray[np.float64]

BATCH = 32
CLASSIFY_SHARE = 0.5
"""Candidates below this share of the detector's operating point are not worth a look."""


class Classifier:
    """An AMF classifier ready to run. Made by ``mitoscan.load_classifier``."""

    def __init__(self, card: ModelCard, runtime: Runtime, likeness: Likeness | None = None) -> None:
        self.card = card
        self.likeness = likeness
        """What crops of the training data look like; None where the card has no reference."""
        self.threshold = card.operating_point.threshold
        """p_atypical from which a mitotic figure counts as atypical."""
        self._runtime = runtime

    def predict(self, crops: npt.NDArray[np.uint8]) -> Float:
        """Give p_atypical, (N,), of ``crops``, uint8 (N, S, S, 3) at the card's mpp (128 px at 0.25 µm).

        Raises
        ------
        ValueError
            When ``crops`` is not such an array.
        """
        return self._probabilities(crops)[:, 0]

    def predict_subtypes(self, crops: npt.NDArray[np.uint8]) -> Float:
        """Give the subtypes' probabilities, (N, K), in the order of ``card.subtypes``.

        Raises
        ------
        ValueError
            When ``crops`` is not as in ``predict``.
        ModelError
            When this classifier knows no subtypes.
        """
        self.require_subtypes()
        return self._probabilities(crops)[:, 1:]

    def require_subtypes(self) -> None:
        """Raise a ModelError when this classifier knows no subtypes."""
        if not self.card.subtypes:
            raise ModelError(
                f"classifier {self.card.name} knows no subtypes",
                remedy="Leave --subtypes away or choose another classifier.",
            )

    def run(
        self,
        x_l0: Float,
        y_l0: Float,
        frame: WorkFrame,
        pool: ReaderPool,
        on_crops: Callable[[int], None] = lambda _: None,
        on_embeddings: Callable[[Floats], None] = lambda _: None,
    ) -> Float:
        """Cut and classify the crops about these positions.

        Parameters
        ----------
        x_l0, y_l0
            (N,) level-0 px.
        frame
            The work frame of this classifier's mpp.
        pool
            Reads the pixels.
        on_crops
            Told how many crops are done after each batch.
        on_embeddings
            Given each batch's stem embeddings, (n, D), in order, by runtimes that have them.

        Returns
        -------
        float64 (N, 1 + K)
            p_atypical and the subtypes' probabilities.
        """
        side = self.card.input_px
        x, y = frame.from_l0(x_l0, y_l0)
        # Whole work px: where the slide's pixels are the model's, crops are copied and not resampled.
        left, top = np.round(x) - side // 2, np.round(y) - side // 2
        crops = pool.read(
            Region(frame.box_to_l0(a, b, side, side), side) for a, b in zip(left, top, strict=True)
        )
        return self._of_crops(crops, on_crops, on_embeddings)

    def run_inside(
        self,
        image: npt.NDArray[np.uint8],
        x: Float,
        y: Float,
        on_embeddings: Callable[[Floats], None] = lambda _: None,
    ) -> Float:
        """Classify what lies in a picture that is already in memory, with the same result as ``run``.

        Parameters
        ----------
        image
            uint8 (H, W, 3) at the card's mpp, its corner on whole work px of the slide.
        x, y
            (N,) px of ``image``, at least ``reach_px`` from its borders.
        on_embeddings
            As in ``run``.

        Returns
        -------
        float64 (N, 1 + K)
            p_atypical and the subtypes' probabilities.
        """
        side = self.card.input_px
        corners = np.stack([np.round(x), np.round(y)], axis=1).astype(np.intp) - side // 2
        crops = (image[top : top + side, left : left + side] for left, top in corners)
        return self._of_crops(crops, on_embeddings=on_embeddings)

    @property
    def reach_px(self) -> int:
        """How far about a position its crop may reach, px."""
        return self.card.input_px // 2 + 1

    def _of_crops(
        self,
        crops: Iterator[npt.NDArray[np.uint8]],
        on_crops: Callable[[int], None] = lambda _: None,
        on_embeddings: Callable[[Floats], None] = lambda _: None,
    ) -> Float:
        parts: list[Float] = [np.empty((0, 1 + len(self.card.subtypes)))]
        while batch := list(islice(crops, BATCH)):
            probabilities, embeddings = self.look(np.stack(batch))
            parts.append(probabilities.astype(np.float64))
            if embeddings is not None:
                on_embeddings(embeddings)
            on_crops(len(batch))
        return np.concatenate(parts)

    def _probabilities(self, crops: npt.NDArray[np.uint8]) -> Float:
        side = self.card.input_px
        if crops.dtype != np.uint8 or crops.ndim != 4 or crops.shape[1:] != (side, side, 3):
            raise ValueError(f"expected uint8 (N, {side}, {side}, 3), got {crops.dtype} {crops.shape}")
        return self._of_crops(iter(crops))

    def look(self, crops: npt.NDArray[np.uint8]) -> tuple[Floats, Floats | None]:
        """Give a batch's probabilities, and its stem embeddings where the runtime has them."""
        if isinstance(self._runtime, EmbeddingRuntime):
            return self._runtime.with_embedding(crops)
        return self._runtime(crops), None


def load_classifier(
    name_or_folder: str | Path | None = None, device: Device = "auto", weights_dir: Path | None = None
) -> Classifier:
    """Load an AMF classifier.

    Parameters
    ----------
    name_or_folder
        Name of a shipped one, or a folder with a card.json. None: the shipped default.
    device
        ``auto``, ``cpu`` (OpenVINO), ``cuda`` or ``mps`` (torch).
    weights_dir
        Folder with the weights of foundation models, for classifiers that adapt one. None: the hub.

    Raises
    ------
    ModelError
        When the model is not found or its files are faulty.
    ConfigError
        When the device is not available.
    """
    folder, card = find_model(name_or_folder, "classifier")
    runtime = load_runtime(folder, card, device, weights_dir)
    return Classifier(card, runtime, load_likeness(folder, card))
