"""From a config's name to a trained model folder: what ``mitoscan train`` calls."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from mitoscan.config import load_config
from mitoscan.errors import ConfigError, OutputError
from mitoscan.learn.classifier import train_classifier
from mitoscan.learn.config import ClassifierTraining, TrainFile
from mitoscan.learn.detector import train_detector
from mitoscan.learn.reference import add_reference_if_possible
from mitoscan.models.card import CARD_NAME, ModelCard


def train_from_config(
    task: str, name: str, data: Path, out: Path, on_step: Callable[[int, int], None] = lambda _, __: None
) -> ModelCard:
    """Train what a config says.

    Parameters
    ----------
    task
        ``detector`` or ``classifier``; the config must be for it.
    name
        YAML file, or name of a shipped config.
    data
        Folder with ``amf/`` and ``detection/``.
    out
        The model's folder; must not hold a model yet. An interrupted training in it goes on.
    on_step
        Told how many steps are done, of how many.

    Raises
    ------
    ConfigError, DataError, MissingExtraError, OutputError
        For a faulty config, missing data, absent starting weights, or a model that is there already.
    """
    config = load_config(TrainFile, name).train
    if config.task != task:
        raise ConfigError(
            f"{name} trains a {config.task}", remedy=f"Run: mitoscan train {config.task} {name}."
        )
    if (out / CARD_NAME).exists():
        raise OutputError("a model is there already", path=out, remedy="Choose another folder with -o.")
    command, source = f"mitoscan train {task} {Path(name).stem}", Path(name).stem

    def stepped(done: int) -> None:
        on_step(done, config.total_steps)

    if isinstance(config, ClassifierTraining):
        train_classifier(config, data, out, command, source, stepped)
    else:
        train_detector(config, data, out, command, source, stepped)
    return add_reference_if_possible(out, data)
