"""Detectors that tiatoolbox publishes, for mitoscan's own tiling and merging; needs ``mitoscan[tiatoolbox]``.

``tiatoolbox:KongNet_Det_MIDOG_1`` is KongNet (Lv et al. 2025, arXiv:2510.23559), first in the MIDOG 2025
challenge. Taken over from tiatoolbox 2.1: architecture, normalisation, 0.5 mpp, tiles of 512 px, threshold
0.99 on the sigmoid of the only channel. Other than there, tiles overlap by 64 px instead of 20; and as with
every detector here, figures are merged within 7.5 µm instead of 10.5, and lower scores stay in the table.

tiatoolbox's weights are ``.pth`` files, which are pickles: they are read with ``weights_only``, which refuses
every detector here, figures merge within 7.5 µm instead of 10.5, and lower scores stay in the table.
"""

from __future__ import annotations

import importlib.util
import logging
import pickle
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mitoscan.config import Device
from mitoscan.errors import MissingExtraError, ModelError
from mitoscan.models.card import ModelCard, sha256_cached
from mitoscan.models.runtime import Runtime, TorchRuntime, cache_folder, pick_backend

if TYPE_CHECKING:
    from torch import nn

log = logging.getLogger(__name__)

PREFIX = "tiatoolbox:"
MODELS = ("KongNet_Det_MIDOG_1",)
_HUB = "https://huggingface.co/TIACentre/KongNet_pretrained_weights"
_LICENCE = f"weights by the TIA Centre, University of Warwick; terms of use: {_HUB}"
_CITE = "Cite Lv et al., arXiv:2510.23559."
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def is_tiatoolbox(name: str | Path | None) -> bool:
    """Whether a model's name is one of tiatoolbox's, ``tiatoolbox:NAME``."""
    return str(name or "").startswith(PREFIX)


def find_tiatoolbox_model(name: str) -> tuple[Path, ModelCard]:
    """Give the weights file of ``tiatoolbox:NAME``, fetched where it is not there yet, and its card.

    Looked for in ``tiatoolbox/`` of mitoscan's cache folder, then in tiatoolbox's own,
    ``~/.tiatoolbox/models``. The licence is said at the first use.

    Raises
    ------
    ModelError
        When there is no such model, or its weights are not here and cannot be fetched.
    MissingExtraError
        When tiatoolbox is not installed.
    """
    model = name.removeprefix(PREFIX)
    if model not in MODELS:
        raise ModelError(
            f"no detector of tiatoolbox is named {model!r}",
            remedy=f"Known: {', '.join(PREFIX + known for known in MODELS)}.",
        )
    if importlib.util.find_spec("tiatoolbox") is None:
        raise MissingExtraError(
            f"{name} needs tiatoolbox, which is not installed",
            remedy='Install it with: pip install "mitoscan[tiatoolbox]"',
        )
    path = _weights(model)
    _say_licence(model)
    return path, _card(model, sha256_cached(path))


def load_tiatoolbox_runtime(weights: Path, card: ModelCard, device: Device = "auto") -> Runtime:
    """Build the network with its weights: tiles, uint8 (N, S, S, 3), to p_mitosis, float32 (N, S, S).

    S is a multiple of 32.

    Raises
    ------
    ModelError
        When the file is no plain weights, or not of this network.
    ConfigError
        When the device is not available.
    """
    backend = pick_backend(device)
    network = build_kongnet(card.name)
    _load(network, weights)
    return TorchRuntime(heat_of(network), backend)


def heat_of(network: nn.Module) -> nn.Module:
    """Wrap a network of normalised pictures, (N, 3, S, S) to logits (N, 1, S, S), as a runtime wants it."""
    import torch
    from torch.nn import functional

    from mitoscan.models.networks import Normalise

    class Heat(torch.nn.Module):
        """Normalisation, network, sigmoid."""

        def __init__(self) -> None:
            super().__init__()
            self.normalise, self.network = Normalise(_MEAN, _STD), network

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            p = self.network(self.normalise(images)).float().sigmoid()
            # The sigmoid saturates: its plateaus get a peak in their middle, at the cost of 0.001 at most.
            around = p
            for _ in range(2):
                around = functional.avg_pool2d(around, 17, stride=1, padding=8, count_include_pad=False)
            flat = ((p - 0.999) / 0.001).clamp(0, 1)
            heat: torch.Tensor = (p - 0.001 * flat * (1 - around))[:, 0]
            return heat

    return Heat().eval()


def build_kongnet(model: str) -> nn.Module:
    """Build tiatoolbox's network of this name, untrained."""
    with _quiet():
        from tiatoolbox import rcParam
        from tiatoolbox.models.architecture.kongnet import KongNet

        kwargs = rcParam["pretrained_model_info"][model]["architecture"]["kwargs"]
        network: nn.Module = KongNet(**kwargs)
    return network.eval()


def _load(network: nn.Module, weights: Path) -> None:
    import torch

    try:
        with _quiet():  # of advice on pickle protocols
            state = torch.load(weights, map_location="cpu", weights_only=True)
        network.load_state_dict(state)
    except pickle.UnpicklingError as exc:
        raise ModelError(
            "holds more than weights, and is refused: a pickle can run any program",
            path=weights,
            remedy=f"Remove it and fetch it again from {_HUB}.",
        ) from exc
    except (OSError, EOFError, RuntimeError, KeyError, TypeError, AttributeError, ValueError) as exc:
        raise ModelError(
            f"not the weights of this network: {exc!s:.300}",
            path=weights,
            remedy=f"Remove it and fetch it again from {_HUB}.",
        ) from exc


def _weights(model: str) -> Path:
    folder = cache_folder() / "tiatoolbox"
    for path in (folder / f"{model}.pth", Path.home() / ".tiatoolbox" / "models" / f"{model}.pth"):
        if path.is_file():
            return path
    log.info("fetching %s from %s", model, _HUB)
    try:
        _fetch(model, folder)
    except (
        Exception
    ) as exc:  # the hub's client raises from a dozen families, its own, httpx's and the system's
        raise ModelError(
            f"the weights are not there and could not be fetched ({type(exc).__name__}: {exc!s:.200})",
            path=folder / f"{model}.pth",
            remedy=f"Fetch {model}.pth from {_HUB} on a machine with a network and put it there "
            "(MITOSCAN_CACHE moves the folder).",
        ) from exc
    return folder / f"{model}.pth"


def _fetch(model: str, folder: Path) -> None:
    with _quiet():
        from tiatoolbox.models.architecture import fetch_pretrained_weights

        fetch_pretrained_weights(model, save_path=folder)


def _say_licence(model: str) -> None:
    """Say it once: a note beside the cached weights remembers that it was said."""
    note = cache_folder() / "tiatoolbox" / f"{model}.licence.txt"
    if not note.is_file():
        log.warning("%s: %s. %s", model, _LICENCE, _CITE)
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_text(f"{model}: {_LICENCE}. {_CITE}\n", encoding="utf-8")


@contextmanager
def _quiet() -> Iterator[None]:
    """Undo what tiatoolbox does to the root logger on import, and hide its libraries' warnings."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)


def _card(model: str, sha256: str) -> ModelCard:
    values: dict[str, Any] = {
        "name": model,
        "task": "detector",
        "description": "KongNet by tiatoolbox, first in the MIDOG 2025 challenge",
        "backbone": "tf_efficientnetv2_l.in21k_ft_in1k",
        "mpp": 0.5,
        "input_px": 512,
        "margin_px": 32,
        "mean": _MEAN,
        "std": _STD,
        "classes": ("mitotic figure",),
        "operating_point": {
            "threshold": 0.99,
            "criterion": "tiatoolbox's default",
            "dataset": "chosen by its authors",
        },
        "parameters": 126_389_027,
        "training": {
            "command": "not by mitoscan",
            "config": "not by mitoscan",
            "seed": 0,
            "data": "MIDOG and more, see arXiv:2510.23559",
            "data_use": "see the authors' terms",
        },
        "licence": _LICENCE,
        "intended_use": "research",
        "sha256": sha256,
    }
    return ModelCard.model_validate(values)
