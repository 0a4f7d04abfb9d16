"""Pretrained backbones as data: how each is built, where its weights are, and what may be done with them.

Nothing is downloaded unless a model that needs it is loaded. Weights come from the user's own folder
(``weights_dir``) or from the Hugging Face hub, where most of these models ask for their licence to be
accepted first. The construction arguments are those of the model cards as the loaders of TRIDENT
(github.com/mahmoodlab/TRIDENT, ``patch_encoder_models/load.py``), LazySlide
(github.com/rendeirolab/LazySlide, ``models/vision``) and tiatoolbox (``models/architecture/vanilla.py``)
have them.
"""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import timm
import torch
from timm.layers.mlp import SwiGLUPacked
from torch import Tensor, nn

from mitoscan.errors import ModelError

Pooling = Literal["class", "class+mean"]
"""The class token, or the class token beside the mean of the picture's own tokens."""
Triple = tuple[float, float, float]

IMAGENET_MEAN: Triple = (0.485, 0.456, 0.406)
IMAGENET_STD: Triple = (0.229, 0.224, 0.225)
BIOPTIMUS_MEAN: Triple = (0.707223, 0.578729, 0.703617)
BIOPTIMUS_STD: Triple = (0.211883, 0.230117, 0.177517)

WEIGHTS_NAMES = ("model.safetensors", "pytorch_model.bin")
"""What the hub calls a model's weights, the better format first."""


@dataclass(frozen=True, kw_only=True)
class Pretrained:
    """Weights that somebody else published."""

    name: str
    hub_id: str
    architecture: str
    """timm name."""
    mean: Triple
    std: Triple
    feature_width: int
    parameters: int
    """Without any head."""
    licence: str
    gated: bool
    """Whether the hub asks for the licence to be accepted."""
    sources: tuple[str, ...]
    """Where the entry was taken from, beside the model's page."""
    input_px: int = 224

    @property
    def page(self) -> str:
        """Where the licence is read and, if gated, accepted."""
        return f"https://huggingface.co/{self.hub_id}"


@dataclass(frozen=True, kw_only=True)
class Foundation(Pretrained):
    """A vision transformer pretrained on histology."""

    arguments: Mapping[str, int | float | bool | str]
    """For ``timm.create_model``, beside the two of SwiGLU."""
    swiglu: bool
    """Packed SwiGLU with SiLU instead of timm's own choice for the architecture."""
    pooling: Pooling


@dataclass(frozen=True, kw_only=True)
class EndToEnd(Pretrained):
    """A network pretrained on ImageNet, all of whose weights are trained on."""


def _bioptimus(name: str, licence: str, gated: bool) -> Foundation:
    return Foundation(
        name=name,
        hub_id=f"bioptimus/H-optimus-{name[-1]}",
        architecture="vit_giant_patch14_reg4_dinov2",
        arguments={"img_size": 224, "num_classes": 0, "init_values": 1e-5, "dynamic_img_size": False},
        swiglu=False,
        pooling="class",
        mean=BIOPTIMUS_MEAN,
        std=BIOPTIMUS_STD,
        feature_width=1536,
        parameters=1_134_774_272,
        licence=licence,
        gated=gated,
        sources=("TRIDENT HOptimus0InferenceEncoder, HOptimus1InferenceEncoder", "LazySlide h_optimus.py"),
    )


def _virchow(name: str, registers: int, parameters: int, licence: str) -> Foundation:
    return Foundation(
        name=name,
        hub_id=f"paige-ai/{name}",
        architecture="vit_huge_patch14_224",
        arguments={
            "img_size": 224,
            "num_classes": 0,
            "init_values": 1e-5,
            "mlp_ratio": 5.3375,
            "reg_tokens": registers,
            "global_pool": "",
            "dynamic_img_size": True,
        },
        swiglu=True,
        pooling="class+mean",
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        feature_width=2560,
        parameters=parameters,
        licence=licence,
        gated=True,
        sources=("TRIDENT VirchowInferenceEncoder, Virchow2InferenceEncoder", "LazySlide virchow.py"),
    )


_FOUNDATIONS = (
    Foundation(
        name="UNI",
        hub_id="MahmoodLab/UNI",
        architecture="vit_large_patch16_224",
        arguments={"img_size": 224, "num_classes": 0, "init_values": 1e-5, "dynamic_img_size": True},
        swiglu=False,
        pooling="class",
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        feature_width=1024,
        parameters=303_350_784,
        licence="CC-BY-NC-ND-4.0",
        gated=True,
        sources=("TRIDENT UNIInferenceEncoder", "LazySlide uni.py", "tiatoolbox timm_arch_dict"),
    ),
    Foundation(
        name="UNI2-h",
        hub_id="MahmoodLab/UNI2-h",
        architecture="vit_giant_patch14_224",
        arguments={
            "img_size": 224,
            "patch_size": 14,
            "depth": 24,
            "num_heads": 24,
            "init_values": 1e-5,
            "embed_dim": 1536,
            "mlp_ratio": 2.66667 * 2,
            "num_classes": 0,
            "no_embed_class": True,
            "reg_tokens": 8,
            "dynamic_img_size": True,
        },
        swiglu=True,
        pooling="class",
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        feature_width=1536,
        parameters=681_394_176,
        licence="CC-BY-NC-ND-4.0",
        gated=True,
        sources=("TRIDENT UNIv2InferenceEncoder", "LazySlide uni.py", "tiatoolbox timm_arch_dict"),
    ),
    _virchow("Virchow", 0, 631_229_184, "Apache-2.0"),
    _virchow("Virchow2", 4, 631_239_424, "CC-BY-NC-ND-4.0"),
    Foundation(
        name="Prov-GigaPath",
        hub_id="prov-gigapath/prov-gigapath",
        architecture="vit_giant_patch14_dinov2",
        arguments={
            "img_size": 224,
            "patch_size": 16,
            "embed_dim": 1536,
            "depth": 40,
            "num_heads": 24,
            "init_values": 1e-5,
            "mlp_ratio": 5.33334,
            "num_classes": 0,
        },
        swiglu=False,
        pooling="class",
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        feature_width=1536,
        parameters=1_134_953_984,
        licence="Apache-2.0, for research use only",
        gated=True,
        sources=("github.com/prov-gigapath/prov-gigapath README", "TRIDENT GigaPathInferenceEncoder"),
    ),
    # Whether the first one is gated could not be looked up; LazySlide lists it as open, the others as gated.
    _bioptimus("H-Optimus-0", "Apache-2.0", gated=False),
    _bioptimus("H-Optimus-1", "CC-BY-NC-ND-4.0", gated=True),
    Foundation(
        name="H0-mini",
        hub_id="bioptimus/H0-mini",
        architecture="vit_base_patch14_reg4_dinov2",
        arguments={
            "img_size": 224,
            "num_classes": 0,
            "init_values": 1e-5,
            "mlp_ratio": 5.33334,
            "dynamic_img_size": False,
        },
        swiglu=True,
        pooling="class",
        mean=BIOPTIMUS_MEAN,
        std=BIOPTIMUS_STD,
        feature_width=768,
        parameters=85_739_520,
        licence="CC-BY-NC-ND-4.0",
        gated=True,
        sources=(
            "TRIDENT H0MiniInferenceEncoder",
            "LazySlide h_optimus.py",
            "doi.org/10.48550/arXiv.2501.16239",
        ),
    ),
)

FOUNDATIONS: dict[str, Foundation] = {entry.name: entry for entry in _FOUNDATIONS}
"""By name, as cards and configs have it."""

_STUDY = "github.com/DeepMicroscopy/AMi-Br_Benchmark End-to-End_DL_Baselines"
_ENDTOENDS = (
    # The study's notebook builds timm's efficientnetv2_m, for which timm has no weights; these are the
    # same network's from Google, in timm's port.
    EndToEnd(
        name="EfficientNetV2-M",
        hub_id="timm/tf_efficientnetv2_m.in21k_ft_in1k",
        architecture="tf_efficientnetv2_m",
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        feature_width=1280,
        parameters=52_858_356,
        licence="Apache-2.0",
        gated=False,
        sources=(_STUDY,),
    ),
    EndToEnd(
        name="ViT-L/16-224",
        hub_id="timm/vit_large_patch16_224.augreg_in21k_ft_in1k",
        architecture="vit_large_patch16_224",
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        feature_width=1024,
        parameters=303_301_632,
        licence="Apache-2.0",
        gated=False,
        sources=(_STUDY,),
    ),
    EndToEnd(
        name="Swin-B/4-7-224",
        hub_id="timm/swin_base_patch4_window7_224.ms_in22k_ft_in1k",
        architecture="swin_base_patch4_window7_224",
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        feature_width=1024,
        parameters=86_743_224,
        licence="MIT",
        gated=False,
        sources=(_STUDY,),
    ),
)

END_TO_END: dict[str, EndToEnd] = {entry.architecture: entry for entry in _ENDTOENDS}
"""The study's end-to-end networks by timm name, with the ImageNet weights that timm takes by default for it
(pretrained on ImageNet-21k or -22k, fine-tuned on 1k). Mean and deviation are those that the study used."""


class Backbone(nn.Module):
    """A foundation model with its pooling.

    Input normalised float (N, 3, S, S) with S the entry's ``input_px``; output float (N, ``num_features``).
    """

    def __init__(self, entry: Foundation) -> None:
        super().__init__()
        arguments: dict[str, Any] = dict(entry.arguments)
        if entry.swiglu:
            arguments |= {"mlp_layer": SwiGLUPacked, "act_layer": nn.SiLU}
        vit: Any = timm.create_model(entry.architecture, pretrained=False, **arguments)
        self.vit = vit
        self.pooling = entry.pooling
        self.num_features: int = vit.num_features * (2 if entry.pooling == "class+mean" else 1)

    def forward(self, images: Tensor) -> Tensor:
        """See the class."""
        tokens: Tensor = self.vit.forward_features(images)
        if self.pooling == "class":
            return tokens[:, 0]
        # Registers stand between the class token and the picture's, and belong to neither.
        return torch.cat([tokens[:, 0], tokens[:, self.vit.num_prefix_tokens :].mean(1)], dim=1)


def find_foundation(name: str) -> Foundation:
    """Give the entry of a foundation model.

    Raises
    ------
    ModelError
        When there is none of that name.
    """
    if name not in FOUNDATIONS:
        raise ModelError(
            f"no foundation model named {name!r}", remedy=f"Give one of: {', '.join(FOUNDATIONS)}."
        )
    return FOUNDATIONS[name]


def load_backbone(entry: Foundation, weights_dir: Path | None = None) -> tuple[Backbone, str]:
    """Build a foundation model with its weights, in float32 on the CPU, frozen and in evaluation mode.

    Parameters
    ----------
    entry
        Which.
    weights_dir
        See ``find_weights``.

    Returns
    -------
    tuple
        The backbone, and ``fingerprint`` of its weights.

    Raises
    ------
    ModelError
        When the weights are not found, cannot be read, or are not this model's.
    """
    path = find_weights(entry, weights_dir)
    state = read_weights(path)
    with torch.device("meta"):  # initialising a billion numbers that are replaced at once takes a minute
        backbone = Backbone(entry)
    try:
        backbone.vit.load_state_dict({k: v.float() for k, v in state.items()}, assign=True)
    except RuntimeError as exc:
        raise ModelError(
            f"the weights are not those of {entry.name}: {exc!s:.300}",
            path=path,
            remedy=f"Take the file from {entry.page}.",
        ) from exc
    return backbone.requires_grad_(False).eval(), fingerprint(state)


def find_weights(entry: Pretrained, weights_dir: Path | None = None) -> Path:
    """Give the file with a model's weights.

    Parameters
    ----------
    entry
        Which model.
    weights_dir
        Folder with ``NAME/model.safetensors`` or ``NAME/pytorch_model.bin``, NAME being the model's name or
        its hub id (``UNI`` or ``MahmoodLab/UNI``). None: the hub, or what is in its cache on this machine.

    Raises
    ------
    ModelError
        When there is no such file, access was not granted, or the hub cannot be reached.
    """
    if weights_dir is None:
        return _from_hub(entry)
    folders = [weights_dir / name for name in (entry.name, entry.hub_id, entry.hub_id.split("/")[-1])]
    for folder in folders:
        for name in WEIGHTS_NAMES:
            if (folder / name).is_file():
                return folder / name
    raise ModelError(
        f"no weights of {entry.name} here",
        path=weights_dir,
        remedy=f"Put {' or '.join(WEIGHTS_NAMES)} from {entry.page} into {folders[0]}.",
    )


def _from_hub(entry: Pretrained) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    by_hand = f"Or say with --weights-dir where {entry.name}/{WEIGHTS_NAMES[0]} is."
    for name in WEIGHTS_NAMES:
        try:
            return Path(hf_hub_download(entry.hub_id, name))
        except RepositoryNotFoundError as exc:  # also what the hub says of a gated one
            raise ModelError(
                f"the hub refuses the weights of {entry.name}: you are not logged in, or have not accepted "
                f"its licence ({entry.licence})",
                remedy=f"Accept it on {entry.page}, then run: hf auth login. {by_hand}",
            ) from exc
        except LocalEntryNotFoundError as exc:
            raise _unreachable(entry, by_hand) from exc
        except EntryNotFoundError:
            continue
        except OSError as exc:
            raise _unreachable(entry, by_hand) from exc
    raise ModelError(f"{entry.page} has none of {', '.join(WEIGHTS_NAMES)}", remedy=by_hand)


def _unreachable(entry: Pretrained, by_hand: str) -> ModelError:
    return ModelError(
        f"the weights of {entry.name} are not on this machine and {entry.page} cannot be reached",
        remedy=f"Try again with a connection. {by_hand}",
    )


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a state dict from safetensors, or from torch's own format without running any code in it.

    Raises
    ------
    ModelError
        When the file is damaged or holds anything but named tensors.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as exc:
        said = next(iter(str(exc).splitlines()), type(exc).__name__)
        raise ModelError(
            f"not readable as weights: {said:.200}", path=path, remedy="Download it again."
        ) from exc
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise ModelError("holds other things than named tensors", path=path)
    return state


def fingerprint(state: Mapping[str, Tensor]) -> str:
    """Give a sha256 over names, types, shapes and values: the same for both file formats."""
    digest = hashlib.sha256()
    for name in sorted(state):
        value = state[name]
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
