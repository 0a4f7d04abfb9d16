"""What a finished training of an adapted foundation model leaves behind."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from safetensors.torch import save

from mitoscan.config import build
from mitoscan.errors import ModelError
from mitoscan.models.adapter import Adapted, adapter_state, merged_parameters
from mitoscan.models.card import CARD_NAME, WEIGHTS_NAME, ModelCard
from mitoscan.report.atomic import write_atomically


def export_adapter(adapted: Adapted, folder: Path, make_card: Callable[[str, int], ModelCard]) -> ModelCard:
    """Write head and LoRA matrices as ``model.safetensors``, and ``card.json``; never the backbone.

    Parameters
    ----------
    adapted
        The trained classifier.
    folder
        The model's; made where needed.
    make_card
        Gets the file's sha256 and the number of parameters of the network that runs, as in ``train.export``.
        What it says of backbone, normalisation, centre and adaptation is replaced by what is so, and the
        backbone's licence is added to its own.

    Returns
    -------
    ModelCard
        As written.

    Raises
    ------
    OutputError
        When the folder cannot be written.
    ValueError
        When the card's subtypes are not the head's.
    """
    # The backbone in the header makes the file's sha256, which results are known by, that of the whole model.
    header = {"backbone": adapted.foundation.name, "backbone_sha256": adapted.backbone_sha256}
    weights = save(adapter_state(adapted), metadata=header)
    card = make_card(hashlib.sha256(weights).hexdigest(), merged_parameters(adapted))
    if adapted.network.head.out_features != 1 + len(card.subtypes):
        raise ValueError(f"the head has no output for each of the card's {len(card.subtypes)} subtypes")
    licence = f"{card.licence}; backbone {adapted.foundation.name}: {adapted.foundation.licence}"
    values = card.model_dump() | adapted.card_fields | {"licence": licence}
    card = build(ModelCard, values, folder / CARD_NAME, ModelError)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / WEIGHTS_NAME, weights)
    write_atomically(folder / CARD_NAME, (card.model_dump_json(indent=2) + "\n").encode())
    return card
