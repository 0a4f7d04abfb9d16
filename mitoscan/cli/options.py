"""Options that several commands share."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


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
DetectorOption = Annotated[str | None, typer.Option(help="Shipped name, or folder with card.json.")]
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
OutOption = Annotated[Path, typer.Option("--out", "-o", help="Folder for the results.")]
DataOption = Annotated[Path, typer.Option(envvar="MITOSCAN_DATA", help="Folder with amf/ and detection/.")]
