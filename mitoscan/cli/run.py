"""``mitoscan run`` and ``mitoscan demo``."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.text import Text

from mitoscan.cli.options import (
    CandidatesOption,
    ClassifierOption,
    DetectorOption,
    DeviceName,
    DeviceOption,
    EngineName,
    EngineWorkers,
    MppOption,
    OperatingPointName,
    OutOption,
    RayAddressOption,
    RayCpusOption,
    RayGpusOption,
    WeightsDirOption,
)
from mitoscan.errors import SOME_FAILED, ConfigError

if TYPE_CHECKING:
    from mitoscan.cohort.batch import Rules
    from mitoscan.cohort.job import Engine, Job
    from mitoscan.config import ScanConfig

log = logging.getLogger("mitoscan")

DEMO_HOTSPOT_MM2 = 0.25
"""The synthetic slide has 1.8 mm²: the usual 2 mm² would be all of it."""


def run(
    out: OutOption,
    slides: Annotated[list[str] | None, typer.Argument(help="Slides, folders or globs.")] = None,
    manifest: Annotated[
        Path | None, typer.Option(help="CSV instead: path, slide_id, case_id, mpp, roi, and what you like.")
    ] = None,
    mpp: MppOption = None,
    device: DeviceOption = DeviceName.auto,
    detector: DetectorOption = None,
    candidates: CandidatesOption = None,
    classifier: ClassifierOption = None,
    weights_dir: WeightsDirOption = None,
    subtypes: Annotated[
        bool, typer.Option("--subtypes/--no-subtypes", help="Report the eight subtypes too.")
    ] = False,
    threshold: Annotated[
        float | None, typer.Option(help="p_mitosis of a mitotic figure; default: the detector's card.")
    ] = None,
    operating_point: Annotated[
        OperatingPointName, typer.Option(help="Of the detector's card; sensitive misses fewer figures.")
    ] = OperatingPointName.balanced,
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
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Do finished slides again.")] = False,
    workers: EngineWorkers = 1,
    engine: Annotated[
        EngineName, typer.Option(help="local: workers of this machine; ray: a cluster's.")
    ] = EngineName.local,
    ray_address: RayAddressOption = "auto",
    ray_cpus: RayCpusOption = 1.0,
    ray_gpus: RayGpusOption = None,
    retries: Annotated[int, typer.Option(min=0, help="Further attempts when a failure may pass.")] = 1,
    slide_timeout: Annotated[
        float | None, typer.Option(min=1, help="Seconds after which a slide is given up.")
    ] = None,
    worker_memory: Annotated[
        float | None, typer.Option(min=0.1, help="GB after which a worker is ended and its slide given up.")
    ] = None,
    join: Annotated[bool, typer.Option("--join", help="Share the work of a run on the same folder.")] = False,
    shard: Annotated[str | None, typer.Option(help="i/n: do only the i-th of n parts.")] = None,
    readers: Annotated[
        int | None, typer.Option(help="Threads that read pixels.", show_default="by cores and device")
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(help="Tiles that the detector takes at once.", show_default="by device and memory"),
    ] = None,
) -> None:
    """Find the mitotic figures of slides, tell AMF from NMF, and write tables, GeoJSON and pictures."""
    config = _scan_config(
        mpp=mpp,
        device=device.value,
        detector=detector,
        candidates=candidates,
        classifier=classifier,
        weights_dir=weights_dir,
        subtypes=subtypes,
        threshold=threshold,
        operating_point=operating_point.value,
        hotspot_mm2=hotspot_mm2,
        roi=roi,
        tissue_mask=tissue_mask,
        qupath_crop=qupath_crop,
        readers=readers,
        batch_size=batch_size,
    )
    from mitoscan.cohort.batch import Rules, Shard

    part = None if shard is None else Shard.parse(shard)
    rules = Rules(retries=retries, overwrite=overwrite, join=join, shard=part)
    pool = _Pool(workers, slide_timeout, worker_memory)
    if engine is EngineName.ray:
        gpus = float(device is DeviceName.cuda) if ray_gpus is None else ray_gpus
        if device is DeviceName.auto:  # the cluster's devices count, not those of this machine
            config = config.model_copy(update={"device": "cuda" if gpus else "cpu"})
        pool = _RayPool(slide_timeout=slide_timeout, address=ray_address, cpus=ray_cpus, gpus=gpus)
    raise typer.Exit(_run(_jobs(slides or [], manifest, config, out), out, rules, pool))


@dataclass(frozen=True)
class _Pool:
    """What the engine is made of."""

    workers: int = 1
    slide_timeout: float | None = None
    worker_memory: float | None = None

    def engine(self) -> Engine:
        from mitoscan.cohort.processes import ProcessEngine, ThreadEngine
        from mitoscan.cohort.work import do_slide

        if self.workers == 0:
            return ThreadEngine(do_slide)
        return ProcessEngine(
            do_slide, self.workers, slide_timeout_s=self.slide_timeout, memory_gb=self.worker_memory
        )


@dataclass(frozen=True)
class _RayPool(_Pool):
    """A Ray cluster instead."""

    address: str = "auto"
    cpus: float = 1.0
    gpus: float = 0.0

    def engine(self) -> Engine:
        from mitoscan.cohort.ray_engine import RayEngine
        from mitoscan.cohort.work import do_slide

        return RayEngine(
            do_slide,
            self.address,
            num_cpus=self.cpus,
            num_gpus=self.gpus,
            slide_timeout_s=self.slide_timeout,
        )


def _scan_config(**values: object) -> ScanConfig:
    from mitoscan.config import ScanConfig, build

    return build(ScanConfig, values)


def _jobs(slides: list[str], manifest: Path | None, config: ScanConfig, out: Path) -> list[Job]:
    from mitoscan.cohort.manifest import jobs_of, read_manifest
    from mitoscan.slide.discover import find_slides

    if manifest is None:
        return jobs_of(find_slides(slides), config, out)
    if slides:
        raise ConfigError("slides and --manifest exclude each other", remedy="Give one of them.")
    return read_manifest(manifest, config, out)


def _run(jobs: list[Job], out: Path, rules: Rules, pool: _Pool) -> int:
    """Do the main job; give its exit code."""
    from mitoscan.cohort import resume
    from mitoscan.cohort.batch import run_batch
    from mitoscan.cohort.gather import finished
    from mitoscan.console import SHOWN_SLIDES, Display, closing_lines, closing_table
    from mitoscan.report.writer import folder_name
    from mitoscan.scan.candidates import check_place

    check_place(jobs[0].config.candidates, [job.path for job in jobs])
    cards = resume.load_cards(jobs[0].config)
    with Display() as display:
        batch = run_batch(jobs, pool.engine, out, cards, rules=rules, watcher=display)
    console = Console()
    if there := batch.done + batch.resumed:
        own = {folder_name(job.slide_id) for job in jobs}
        shown = list(islice(finished(out, own.__contains__), SHOWN_SLIDES))
        console.print(closing_table(shown, there - len(shown)))
    home = out if rules.shard is None else rules.shard.home(out)
    for line in closing_lines(batch, out, home):
        console.print(Text(line), soft_wrap=True)
    return batch.exit_code


def merge(out: Annotated[Path, typer.Argument(help="The folder given to -o.")]) -> None:
    """Join what the shards of a batch left in their folder: slides.csv, and what is still missing."""
    from mitoscan.cohort.gather import FAILURES_NAME
    from mitoscan.cohort.gather import merge as merge_tables

    merged = merge_tables(out)
    console = Console()
    console.print(Text(f"{merged.finished} slides: {out / 'slides.csv'}"), soft_wrap=True)
    for shards, state in ((merged.absent, "never started"), (merged.unfinished, "not come to its end")):
        for shard in shards:
            console.print(Text(f"shard {shard}: {state}"))
    if merged.failures:
        text = f"{len(merged.failures)} slides are missing: {out / FAILURES_NAME}"
        console.print(Text(text), soft_wrap=True)
    if merged.failures or merged.absent or merged.unfinished:
        raise typer.Exit(SOME_FAILED)


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
    results = out / "results"
    from mitoscan.cohort.batch import Rules

    code = _run(_jobs([str(slide)], None, config, results), results, Rules(overwrite=True), _Pool())
    if code:
        raise typer.Exit(code)
    folder = out / "results" / "synthetic"
    console = Console()
    console.print(
        f"{len(truth)} synthetic mitotic figures were planted, and look-alikes beside them. Look at:"
    )
    for name in ("report.html", "findings.csv", "summary.json", "findings.geojson"):
        console.print(f"  {folder / name}", soft_wrap=True)
    console.print(f"In QuPath: open {slide}, then drag findings.geojson onto it.", soft_wrap=True)
