"""Where models are found: by the name of a shipped one, as the user's own folder, or from tiatoolbox."""

from __future__ import annotations

from pathlib import Path

from mitoscan.config import Device
from mitoscan.errors import ModelError
from mitoscan.models.card import CARD_NAME, ModelCard, Task, load_card
from mitoscan.models.runtime import pick_backend
from mitoscan.models.tiatoolbox_models import find_tiatoolbox_model, is_tiatoolbox
from mitoscan.resources import shipped

DEFAULTS: dict[Task, str] = {"detector": "detector-lite0", "classifier": "classifier-lite0"}
DEFAULT_DETECTOR_ON_GPU = "detector-lite0-accurate"
"""Its second view costs time that only a CPU is short of."""


def shipped_models() -> dict[str, Path]:
    """Give the shipped models' folders by name."""
    return {path.parent.name: path.parent for path in sorted(shipped("weights").glob(f"*/{CARD_NAME}"))}


def default_model(task: Task, device: Device) -> str:
    """Name the shipped model that is used on ``device`` where none is named."""
    # A device that is named may be another machine's: whether it is there is seen when weights are loaded.
    backend = pick_backend("auto") if device == "auto" else device
    return DEFAULT_DETECTOR_ON_GPU if task == "detector" and backend != "cpu" else DEFAULTS[task]


def find_model(
    name_or_folder: str | Path | None, task: Task, device: Device = "cpu"
) -> tuple[Path, ModelCard]:
    """Find a model and read its card.

    Parameters
    ----------
    name_or_folder
        Name of a shipped model, a folder with a ``card.json``, or ``tiatoolbox:NAME`` (a detector; the path
        given is then its weights file). None: the default for ``task`` on ``device``.
    task
        What the model must be for.
    device
        Where it is to run.

    Raises
    ------
    ModelError
        When there is no such model, its card is faulty, or it is for the other task.
    """
    wanted = str(name_or_folder or default_model(task, device))
    if task == "detector" and is_tiatoolbox(wanted):
        return find_tiatoolbox_model(wanted)
    known = shipped_models()
    folder = Path(wanted)
    if wanted in known:
        if folder.is_dir() and folder.resolve() != known[wanted].resolve():
            raise ModelError(
                f"{wanted!r} is both a shipped {task} and a folder here",
                remedy=f"Say ./{wanted} for the folder, or run from elsewhere for the shipped one.",
            )
        folder = known[wanted]
    elif not folder.is_dir():
        raise ModelError(
            f"no model named {wanted!r}, and no such folder",
            remedy=f"Give a folder with a {CARD_NAME} or one of: {', '.join(known) or 'none shipped'}.",
        )
    card = load_card(folder)
    if card.task != task:
        raise ModelError(f"is a {card.task}, not a {task}", path=folder, remedy="See `mitoscan models`.")
    return folder, card
