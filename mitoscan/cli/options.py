"""Options that several commands share."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class EngineName(StrEnum):
    """What runs the slides."""

    local = "local"
    ray = "ray"


class DeviceName(StrEnum):
    """Where the networks run."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"
    mps = "mps"


class OperatingPointName(StrEnum):
    """Which threshold of a detector's card."""

    balanced = "balanced"
    sensitive = "sensitive"


MppOption = Annotated[float | None, typer.Option(help="µm per level-0 pixel; overrides the file's.")]
DeviceOption = Annotated[DeviceName, typer.Option(help="cpu runs OpenVINO, cuda and mps run torch.")]
DetectorOption = Annotated[
    str | None,
    typer.Option(
        help="Shipped name, folder with card.json, or tiatoolbox:KongNet_Det_MIDOG_1.",
        show_default="by device",
    ),
]
CandidatesOption = Annotated[
    Path | None,
    typer.Option(
        help="Detections of another program instead of a detector: file, or folder with <slide>.csv."
    ),
]
ClassifierOption = Annotated[str | None, typer.Option(help="Shipped name, or folder with card.json.")]
EngineWorkers = Annotated[
    int, typer.Option(min=0, help="Slides at once, each in a process. 0: one, in this process, to debug.")
]
WeightsDirOption = Annotated[
    Path | None,
    typer.Option(envvar="MITOSCAN_WEIGHTS_DIR", help="Weights of foundation models; default: the hub."),
]
OutOption = Annotated[Path, typer.Option("--out", "-o", help="Folder for the results.")]
DataOption = Annotated[Path, typer.Option(envvar="MITOSCAN_DATA", help="Folder with amf/ and detection/.")]
RayAddressOption = Annotated[
    str, typer.Option(help="host:port of a Ray cluster, auto for this machine's, local to start one here.")
]
RayCpusOption = Annotated[float, typer.Option(min=0.1, help="CPUs that a slide occupies on the cluster.")]
RayGpusOption = Annotated[
    float | None,
    typer.Option(min=0, help="GPUs that a slide occupies; default: 1 with --device cuda, else 0."),
]
