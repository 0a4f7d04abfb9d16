"""Look at a weights file before it is loaded: safetensors, whole, and of the network that the card names."""

from __future__ import annotations

import json
import math
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mitoscan.errors import ModelError

Shapes = Mapping[str, tuple[int, ...]]

_REMEDY = "Use weights that were made for this card, as safetensors."
_MAX_HEADER_BYTES = 2**24
"""Names, types and shapes of some hundred thousand tensors; no network here comes near it."""
_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
_SHOWN = 3


def check_weights(path: Path, wanted: Shapes) -> None:
    """Compare a safetensors file with what a network needs, reading only its header.

    Parameters
    ----------
    path
        The weights.
    wanted
        Shape of each tensor of the network, by name.

    Raises
    ------
    ModelError
        When the file is no safetensors, is not whole, or holds other tensors.
    """
    found = tensor_shapes(path)
    other = [
        *(f"{name} is missing" for name in wanted if name not in found),
        *(f"{name:.100} is not in it" for name in found if name not in wanted),
        *(
            f"{name} is {_size(found[name])}, not {_size(shape)}"
            for name, shape in wanted.items()
            if name in found and found[name] != shape
        ),
    ]
    if other:
        more = f" and {len(other) - _SHOWN} more" if len(other) > _SHOWN else ""
        raise ModelError(
            f"the weights do not fit the card's network: {', '.join(other[:_SHOWN])}{more}",
            path=path,
            remedy=_REMEDY,
        )


def tensor_shapes(path: Path) -> Shapes:
    """Read the names and shapes of the tensors of a safetensors file, and check that it is whole.

    Raises
    ------
    ModelError
        When it is a pickle or something else, or its header claims more than the file holds.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(8)
            length = int.from_bytes(head, "little")
            if head[:2] == b"PK" or head[:1] == b"\x80":
                raise _refused(path, "is a pickle, which can run code when loaded, and not safetensors")
            if length > min(size - 8, _MAX_HEADER_BYTES):
                raise _refused(path, f"is no safetensors file, or is cut off: a header of {length} bytes")
            header = json.loads(file.read(length))
    except OSError as exc:
        raise _refused(path, f"cannot be read: {exc.strerror or exc}") from exc
    except (ValueError, RecursionError) as exc:
        raise _refused(path, f"is no safetensors file: {exc}") from exc
    if not isinstance(header, dict):
        raise _refused(path, "is no safetensors file: its header is no table")
    entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
    return {name: _shape(name, entry, size - 8 - length, path) for name, entry in entries.items()}


def _shape(name: str, entry: Any, data_bytes: int, path: Path) -> tuple[int, ...]:
    """Give a tensor's shape when type, shape and place in the file agree."""
    try:
        shape, (begin, end) = tuple(entry["shape"]), entry["data_offsets"]
        needs = math.prod(shape) * _BYTES[entry["dtype"]]
        whole = all(type(n) is int and n >= 0 for n in (*shape, begin, end))
    except (KeyError, TypeError, ValueError) as exc:
        raise _refused(path, f"tensor {name:.100} is badly described: {reprlib.repr(entry)}") from exc
    if not whole or end - begin != needs or end > data_bytes:
        raise _refused(
            path,
            f"tensor {name:.100} claims {_size(shape)}, {needs} bytes at {begin} to {end}, "
            f"of {data_bytes} that there are",
        )
    return shape


def _size(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "a single number"


def _refused(path: Path, reason: str) -> ModelError:
    return ModelError(reason, path=path, remedy=_REMEDY)
