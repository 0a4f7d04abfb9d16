"""``mitoscan run`` and ``mitoscan demo``."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from mitoscan.cli.options import (
    CandidatesOption,
    ClassifierOption,
    DetectorOption,
    DeviceName,
    DeviceOption,
    MppOption,
    OutOption,
)

if TYPE_CHECKING:
    from mitoscan.config import ScanConfig

log = logging.getLogger("mitoscan")

DEMO_HOTSPOT_MM2 = 0.25
"""The synthetic slide has 1.8 mm²: the usual 2 mm² would be all of it."""


def run(
    slides: Annotated[list[str], typer.Argument(help="Slides, folders or globs.")],
    out: OutOption,
    mpp: MppOption = None,
    device: DeviceOption = DeviceName.auto,
    detector: DetectorOption = None,
    candidates: CandidatesOption = None,
    classifier: ClassifierOption = None,
    subtypes: Annotated[
        bool, typer.Option("--subtypes/--no-subtypes", help="Report the eight subtypes too.")
    ] = False,
    threshold: Annotated[
        float | None, typer.Option(help="p_mitosis of a mitotic figure; default: the detector's card.")
    ] = None,
    hotspot_mm2: Annotated[float, typer.Option(help="Area of the 4:3 hot-spot window.")] = 2.0,
    roi: Annotated[
        Path | None, typer.Option(help="GeoJSON with polygons: scan and count only inside them.")
    ] = None,
    tissue_mask: Annotated[
        bool, typer.Option("--tissue-mask/--no-tissue-mask", help="Scan only where there is tissue.")
    ] = True,
    qupath_crop: Annotated[
        bool,
        typer.Option(
            "--qupath-crop/--no-qupath-crop",
            help="GeoJSON in and out relative to QuPath's origin where a slide has bounds.",
        ),
    ] = True,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace results that are there.")] = False,
    readers: Annotated[int, typer.Option(help="Threads that read pixels.")] = 2,
    batch_size: Annotated[int, typer.Option(help="Tiles that the detector takes at once.")] = 1,
) -> None:
    """Find the mitotic figures of slides, tell AMF from NMF, and write tables, GeoJSON and pictures."""
    config = _scan_config(
        mpp=mpp,
        device=device.value,
        detector=detector,
        candidates=candidates,
        classifier=classifier,
        subtypes=subtypes,
        threshold=threshold,
        hotspot_mm2=hotspot_mm2,
        roi=roi,
        tissue_mask=tissue_mask,
        qupath_crop=qupath_crop,
        readers=readers,
        batch_size=batch_size,
    )
    _run(slides, config, out, overwrite)


def _scan_config(**values: object) -> ScanConfig:
    from mitoscan.config import ScanConfig, build

    return build(ScanConfig, values)


def _run(slides: list[str], config: ScanConfig, out: Path, overwrite: bool) -> None:
    """Do the main job and end with its exit code."""
    from mitoscan.cohort.batch import run_batch
    from mitoscan.console import Display, closing_table
    from mitoscan.scan.candidates import check_place
    from mitoscan.scan.pipeline import load_models
    from mitoscan.slide.discover import find_slides

    paths = find_slides(slides)
    check_place(config.candidates, paths)
    log.info("%d slide%s; loading the models", len(paths), "" if len(paths) == 1 else "s")
    models = load_models(config)
    with Display(len(paths)) as display:
        batch = run_batch(paths, config, out, models, overwrite=overwrite, progress_of=display.progress_of)
    console = Console()
    if batch.done:
        console.print(closing_table(batch.done))
        console.print(f"Results: {out}", soft_wrap=True)
    if batch.failures:
        console.print(
            f"{len(batch.failures)} of {len(paths)} slides failed: {out / 'failures.csv'}", soft_wrap=True
        )
        raise typer.Exit(batch.exit_code)


def demo(
    out: OutOption = Path("mitoscan-demo"),
    device: DeviceOption = DeviceName.auto,
) -> None:
    """Draw a synthetic slide with planted mitotic figures and do the main job on it."""
    from mitoscan.demo import write_demo_slide

    slide = out / "synthetic.svs"
    out.mkdir(parents=True, exist_ok=True)
    log.info("drawing a synthetic slide: %s", slide)
    truth = write_demo_slide(slide)
    config = _scan_config(device=device.value, subtypes=True, hotspot_mm2=DEMO_HOTSPOT_MM2)
    _run([str(slide)], config, out / "results", overwrite=True)
    folder = out / "results" / "synthetic"
    console = Console()
    console.print(
        f"{len(truth)} synthetic mitotic figures were planted, and look-alikes beside them. Look at:"
    )
    for name in ("overview.png", "findings.csv", "summary.json", "findings.geojson"):
        console.print(f"  {folder / name}", soft_wrap=True)
    console.print(f"In QuPath: open {slide}, then drag findings.geojson onto it.", soft_wrap=True)
