"""Features of a frozen backbone, computed once and kept on disk.

A crop's features are found again by the crop's pixels; they lie in a folder that is named after all else
they depend on: the backbone, the fingerprint of its weights, the preprocessing and the precision. They are
written in whole shards, so that an interrupted extraction goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.numpy import load, save

from mitoscan.config import Device
from mitoscan.models.adapter import Adapted
from mitoscan.models.runtime import Backend, pick_backend
from mitoscan.report.atomic import write_atomically

log = logging.getLogger(__name__)

UInt8 = npt.NDArray[np.uint8]
Float32 = npt.NDArray[np.float32]

SHARD = 256
"""Crops in a file: what an interruption can cost."""
FORMAT = 1
"""Raised when the same settings would give other features."""


def cached_features(
    crops: UInt8,
    adapted: Adapted,
    folder: Path,
    *,
    device: Device = "auto",
    batch: int = 32,
    on_crops: Callable[[int], None] = lambda _: None,
) -> Float32:
    """Give what the head of a probe sees of ``crops``, from the cache or from one pass through the backbone.

    Augmented crops are cached like any others: draw them from a fixed seed to find them again.

    Parameters
    ----------
    crops
        uint8 (N, S, S, 3) at the classifier's mpp.
    adapted
        A probe from ``models.adapter.adapt``.
    folder
        The cache; several models may share one.
    device
        Where the backbone runs. CUDA computes in bfloat16, and its features are kept apart.
    batch
        Crops in one pass.
    on_crops
        Told how many crops have just been computed; those found in the cache are not told.

    Returns
    -------
    float32 (N, F)
        In the order of ``crops``; F is the foundation model's ``feature_width``.

    Raises
    ------
    ValueError
        When the backbone is not frozen (LoRA): its features change with every step.
    OutputError
        When the cache cannot be written.
    """
    if adapted.lora is not None:
        raise ValueError("features of a backbone with LoRA change with every step: not cached")
    backend = pick_backend(device)
    space = folder / space_name(adapted, backend)
    keys = [_key(crop) for crop in crops]
    known = _read(space, set(keys))
    first = {key: i for i, key in reversed(list(enumerate(keys))) if key not in known}
    missing = sorted(first.items(), key=lambda item: item[1])
    for start in range(0, len(missing), SHARD):
        part = missing[start : start + SHARD]
        index = [i for _, i in part]
        computed = np.concatenate(list(_compute(crops, index, adapted, backend, batch, on_crops)))
        _write(space, [key for key, _ in part], computed)
        known.update(zip((key for key, _ in part), computed, strict=True))
    width = adapted.foundation.feature_width
    return np.stack([known[key] for key in keys]) if keys else np.empty((0, width), np.float32)


def space_name(adapted: Adapted, backend: Backend) -> str:
    """Name the folder of one setting's features: the model, and a checksum of all that they depend on."""
    settings = adapted.card_fields | {
        "pooling": adapted.foundation.pooling,
        "precision": "bfloat16" if backend == "cuda" else "float32",
        "format": FORMAT,
    }
    checksum = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    return f"{adapted.foundation.name}-{checksum[:16]}"


def _key(crop: UInt8) -> bytes:
    return hashlib.sha256(f"{crop.shape}".encode() + np.ascontiguousarray(crop).tobytes()).digest()


def _compute(
    crops: UInt8,
    index: list[int],
    adapted: Adapted,
    backend: Backend,
    batch: int,
    on_crops: Callable[[int], None],
) -> Iterator[Float32]:
    network = adapted.network.to(backend)
    network.backbone.eval()
    half = torch.autocast(backend, dtype=torch.bfloat16, enabled=backend == "cuda")
    for start in range(0, len(index), batch):
        images = torch.from_numpy(crops[index[start : start + batch]]).to(backend)
        with torch.inference_mode(), half:
            features: Float32 = network.features(images).float().cpu().numpy()
        yield features
        on_crops(len(features))


def _read(space: Path, wanted: set[bytes]) -> dict[bytes, Float32]:
    found: dict[bytes, Float32] = {}
    for path in sorted(space.glob("*.safetensors")):
        try:
            shard = load(path.read_bytes())
            keys, features = shard["keys"], shard["features"]
        except (SafetensorError, KeyError) as exc:
            log.warning("%s: passed over, cannot be read: %s", path, exc)
            continue
        found.update((k.tobytes(), f) for k, f in zip(keys, features, strict=True) if k.tobytes() in wanted)
    return found


def _write(space: Path, keys: Iterable[bytes], features: Float32) -> None:
    space.mkdir(parents=True, exist_ok=True)
    rows = np.stack([np.frombuffer(key, np.uint8) for key in keys])
    name = hashlib.sha256(rows.tobytes()).hexdigest()[:32]
    write_atomically(space / f"{name}.safetensors", save({"keys": rows, "features": features}))
