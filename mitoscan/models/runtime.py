"""The seam to whatever executes a network: OpenVINO on CPUs, torch on GPUs.

A runtime is a callable: uint8 (N, H, W, 3) in, float32 probabilities out (see ``networks.Probabilities``).
Those of classifiers give the stem embeddings of the same pass too, when asked by ``with_embedding``.
Both are made from the same safetensors file and agree within 1e-2.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import platformdirs

from mitoscan.config import Device
from mitoscan.errors import ConfigError, ModelError
from mitoscan.models.card import ModelCard, checked_weights
from mitoscan.models.weights import Shapes, check_weights

if TYPE_CHECKING:
    from torch import nn

_OPENVINO = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
"""float32, so that the findings do not depend on what the CPU offers."""

_BYTES_A_PX = 400
"""Memory of a pass for each pixel of a tile: twice what the widest layers hold in bfloat16."""
_MOST_AT_ONCE = 8
"""Larger batches gain nothing: a tile alone has work for a whole GPU."""

_GRAPH = 5
"""Raised when the graph made from the same card changes, so that no old one is taken from the cache."""
_IN_GRAPH = {"backbone", "task", "centre_px", "resize_px", "views", "mean", "std", "subtypes", "sha256"}
"""What of the card the graph depends on."""

Images = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Runtime = Callable[[Images], Floats]
Backend = Literal["cpu", "cuda", "mps"]


@runtime_checkable
class EmbeddingRuntime(Protocol):
    """A runtime that can give the stem embeddings too (see ``networks.ProbabilitiesAndStain``)."""

    def __call__(self, images: Images) -> Floats:
        """See the module."""
        ...

    def with_embedding(self, images: Images) -> tuple[Floats, Floats | None]:
        """Give the probabilities and the embeddings, (N, D); None where the network has none."""
        ...


def cache_folder() -> Path:
    """Give the user's cache folder of mitoscan (``MITOSCAN_CACHE`` overrides)."""
    return Path(os.environ.get("MITOSCAN_CACHE") or platformdirs.user_cache_dir("mitoscan"))


def pick_backend(device: Device) -> Backend:
    """Resolve ``auto``, and refuse a device that is not there.

    Raises
    ------
    ConfigError
        When ``device`` names an accelerator that torch cannot use here.
    """
    if device == "cpu" or (device == "auto" and not _has_driver()):
        return "cpu"
    import torch

    usable: dict[str, bool] = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if device == "auto":
        return "cuda" if usable["cuda"] else "mps" if usable["mps"] else "cpu"
    if not usable[device]:
        raise ConfigError(
            f"device {device} is not available here", remedy="Use --device auto or --device cpu."
        )
    return device


def _has_driver() -> bool:
    """Whether there may be an accelerator here: only then is torch, which takes seconds, imported to ask."""
    if sys.platform == "darwin" or Path("/dev/kfd").exists():  # Metal; AMD's kernel driver
        return True
    with contextlib.suppress(OSError):
        ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
        return True
    return False


def load_runtime(
    folder: Path, card: ModelCard, device: Device = "auto", weights_dir: Path | None = None
) -> Runtime:
    """Make the runtime for a model folder on ``device``.

    ``weights_dir`` is where an adapter looks for its backbone; see ``foundation.find_weights``.

    Raises
    ------
    ModelError
        When the weights are missing, damaged or do not fit the card's architecture.
    ConfigError
        When the device is not available.
    """
    weights = checked_weights(folder, card)
    backend = pick_backend(device)
    # OpenVINO would leave a converted copy in the cache folder: for a backbone that belongs to somebody else,
    # and takes gigabytes, torch does on the CPU too.
    if backend == "cpu" and card.adaptation is None:
        return OpenVinoRuntime(weights, card)
    return TorchRuntime(load_network(weights, card, weights_dir), backend)


def load_network(weights: Path, card: ModelCard, weights_dir: Path | None = None) -> nn.Module:
    """Build the card's network in torch, with its weights, in evaluation mode.

    It gives probabilities; that of a classifier gives the stem embeddings as its second output.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from mitoscan.models.networks import build_network, runnable

    if card.adaptation is not None:
        from mitoscan.models.adapter import load_adapted

        return runnable(load_adapted(weights, card, weights_dir))
    check_weights(weights, _shapes_of(card, weights.parent))
    network = build_network(card)
    try:
        network.load_state_dict(load_file(weights))
    except (SafetensorError, RuntimeError) as exc:
        raise ModelError(f"the weights do not fit {card.backbone}: {exc}", path=weights) from exc
    return runnable(network)


def _shapes_of(card: ModelCard, folder: Path) -> Shapes:
    """Give the shapes of the tensors of the card's network, which takes no memory yet, whatever its size."""
    import torch

    from mitoscan.models.networks import build_network

    try:
        if {":", "/"} & set(card.backbone):  # timm would fetch what such names stand for
            raise ValueError("it is not the name of a timm model")
        with torch.device("meta"):
            network = build_network(card)
    except (RuntimeError, ValueError, AttributeError, TypeError, LookupError) as exc:
        raise ModelError(
            f"no {card.task} can be built on the backbone {card.backbone!r:.100}: {exc}",
            path=folder,
            remedy="Correct the card.",
        ) from exc
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


class TorchRuntime:
    """Executes a network with torch: bf16 autocast and channels_last on CUDA, float32 elsewhere.

    A batch for which there is not enough memory is done in halves.
    """

    def __init__(self, network: nn.Module, backend: Backend) -> None:
        import torch

        self._torch = torch
        self._device = torch.device(backend)
        self._network = network.to(self._device).eval()
        if backend == "cuda":
            self._network = self._network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def __call__(self, images: Images) -> Floats:
        """See the module."""
        return self.with_embedding(images)[0]

    def with_embedding(self, images: Images) -> tuple[Floats, Floats | None]:
        """See ``EmbeddingRuntime``.

        Raises
        ------
        ConfigError
            When the memory is too small for a single picture.
        """
        try:
            return self._run(images)
        except self._torch.OutOfMemoryError as exc:
            if len(images) == 1:
                raise ConfigError(
                    f"not enough memory on {self._device} for a picture of {images.shape[1]} px",
                    remedy="End what else runs on it, or use --device cpu.",
                ) from exc
        self._torch.cuda.empty_cache()
        (first, more), (second, rest) = map(self.with_embedding, np.array_split(images, 2))
        both = None if more is None or rest is None else np.concatenate([more, rest])
        return np.concatenate([first, second]), both

    def images_at_once(self, side: int) -> int:
        """Give how many pictures of ``side`` px make a batch that fits into the free memory."""
        if self._device.type != "cuda":
            return 1
        free, _ = self._torch.cuda.mem_get_info(self._device)
        return int(np.clip(free // (side * side * _BYTES_A_PX), 1, _MOST_AT_ONCE))

    @property
    def on_accelerator(self) -> bool:
        """Whether it runs elsewhere than on the CPU."""
        return self._device.type != "cpu"

    def _run(self, images: Images) -> tuple[Floats, Floats | None]:
        torch, cuda = self._torch, self._device.type == "cuda"
        batch = torch.from_numpy(np.ascontiguousarray(images))
        batch = (batch.pin_memory() if cuda else batch).to(self._device, non_blocking=cuda)
        half = torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=cuda)
        with torch.inference_mode(), half:
            outputs = self._network(batch)
        parts = outputs if isinstance(outputs, tuple) else (outputs,)
        arrays: list[Floats] = [part.float().cpu().numpy() for part in parts]
        return arrays[0], arrays[1] if len(arrays) > 1 else None


def images_at_once(runtime: Runtime, side: int) -> int:
    """Give the batch that suits a runtime for pictures of ``side`` px: one on the CPU."""
    return runtime.images_at_once(side) if isinstance(runtime, TorchRuntime) else 1


def on_accelerator(runtime: Runtime) -> bool:
    """Whether a runtime leaves the CPU to others."""
    return isinstance(runtime, TorchRuntime) and runtime.on_accelerator


class OpenVinoRuntime:
    """Executes a network with OpenVINO on the CPU.

    The converted graph is kept in the user's cache folder under a checksum of what it was made from, so that
    torch is imported only the first time.
    """

    def __init__(self, weights: Path, card: ModelCard) -> None:
        self._model = _converted(weights, card)
        self._compiled: dict[tuple[int, ...], Any] = {}

    def __call__(self, images: Images) -> Floats:
        """See the module."""
        return self.with_embedding(images)[0]

    def with_embedding(self, images: Images) -> tuple[Floats, Floats | None]:
        """See ``EmbeddingRuntime``."""
        size = images.shape[1:]
        if size not in self._compiled:
            self._compiled[size] = self._compile(size)
        outputs = self._compiled[size]([np.ascontiguousarray(images)])
        return outputs[0], outputs[1] if len(outputs) > 1 else None

    def _compile(self, size: tuple[int, ...]) -> Any:
        import openvino as ov

        # A fixed height and width let OpenVINO plan its memory once; only the batch stays free.
        model = self._model.clone()
        model.reshape([-1, *size])
        return ov.Core().compile_model(model, "CPU", _OPENVINO)


def _converted(weights: Path, card: ModelCard) -> Any:
    """Give the OpenVINO model of these weights, converting and caching it where that is still to do."""
    import openvino as ov

    from mitoscan import __version__

    key = hashlib.sha256(card.model_dump_json(include=_IN_GRAPH).encode()).hexdigest()
    name = f"{key[:32]}-{__version__}-ov{ov.__version__.split('-')[0]}-g{_GRAPH}"
    path = cache_folder() / "openvino" / f"{name}.xml"
    if not path.is_file():
        model = _convert(weights, card)
        _save_whole(model, path)
    return ov.Core().read_model(path)


def _convert(weights: Path, card: ModelCard) -> Any:
    import openvino as ov
    import torch

    network = load_network(weights, card)
    side = min(card.input_px, 256)
    example = torch.zeros(1, side, side, 3, dtype=torch.uint8)
    with warnings.catch_warnings():
        # Padding is computed from the example's size; it is the same for every multiple of 16.
        warnings.filterwarnings(
            "ignore",
            category=torch.jit.TracerWarning,  # type: ignore[attr-defined]
        )
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        return ov.convert_model(network, example_input=example)


def _save_whole(model: Any, path: Path) -> None:
    """Write the two files under temporary names, weights first, so that no reader sees half a model."""
    import openvino as ov

    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.stem}.{os.getpid()}.xml")
    ov.save_model(model, part, compress_to_fp16=False)
    part.with_suffix(".bin").replace(path.with_suffix(".bin"))
    part.replace(path)
