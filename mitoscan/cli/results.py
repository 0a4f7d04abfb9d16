"""``mitoscan rescore`` and ``mitoscan export``: what is done with finished results."""

from __future__ import annotations

import logging
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from mitoscan.cli.options import OutOption
from mitoscan.errors import SOME_FAILED, ConfigError, MitoscanError

if TYPE_CHECKING:
    from rich.table import Table

    from mitoscan.scan.review import Agreement

log = logging.getLogger("mitoscan")

FoldersArgument = Annotated[list[Path], typer.Argument(help="Folders of slides (OUT/SLIDE), or OUT for all.")]


def rescore(
    folders: FoldersArgument,
    threshold: Annotated[float | None, typer.Option(help="p_mitosis of a mitotic figure.")] = None,
    amf_threshold: Annotated[float | None, typer.Option(help="p_atypical of an atypical one.")] = None,
    hotspot_mm2: Annotated[float | None, typer.Option(help="Area of the 4:3 hot-spot window.")] = None,
    review: Annotated[
        Path | None, typer.Option(help="review.csv of the page, or GeoJSON corrected in QuPath.")
    ] = None,
    complete: Annotated[
        bool,
        typer.Option(
            "--complete",
            help="The GeoJSON covers every figure: unchanged ones are confirmed, deleted ones rejected.",
        ),
    ] = False,
    forget_review: Annotated[
        bool, typer.Option("--forget-review", help="Drop the reviewer's labels of earlier rescorings.")
    ] = False,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write there; default: in place.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace results in -o.")] = False,
) -> None:
    """Score finished slides again, with other thresholds or a reviewer's labels; reads no slide."""
    from mitoscan.cohort.gather import finished
    from mitoscan.console import closing_table
    from mitoscan.report.cohort_page import write_cohort_page
    from mitoscan.report.rescored import Wanted, rescore_stored, write_rescored
    from mitoscan.report.stored import read_result, result_folders
    from mitoscan.report.tables import write_slides_csv

    found = result_folders(folders)
    if review is not None and len(found) != 1:
        raise ConfigError(
            f"--review belongs to one slide, here are {len(found)}", remedy="Give the folder of that slide."
        )
    wanted = Wanted(threshold, amf_threshold, hotspot_mm2, review, complete, forget_review)
    console, done, failures, changed = Console(), [], [], set()
    for folder in found:
        try:
            rescored = rescore_stored(read_result(folder), wanted)
            written = write_rescored(rescored, out, overwrite=overwrite)
        except MitoscanError as error:
            failures.append(error)
            log.error("%s", error)
            continue
        done.append(rescored.result.summary)
        changed.add(written.parent)
        for note in rescored.notes:
            log.warning("%s: %s", folder.name, note)
        if rescored.agreement is not None:
            console.print(agreement_table(rescored.agreement))
    for place in sorted(changed):
        write_slides_csv(list(finished(place)), place / "slides.csv")
        write_cohort_page(place)
    if done:
        console.print(closing_table(done))
    if failures:
        raise typer.Exit(SOME_FAILED if done else failures[0].exit_code)


class FormatName(StrEnum):
    """The names in ``report.export.formats``, which is too slow to import here."""

    qupath = "qupath"
    qupath_gz = "qupath-gz"
    midog = "midog"
    coco = "coco"
    tiatoolbox = "tiatoolbox"
    parquet = "parquet"
    geoparquet = "geoparquet"
    dicom = "dicom"
    crops = "crops"


def export(
    folders: FoldersArgument,
    format_: Annotated[FormatName, typer.Option("--format", "-f", help="What to write.")],
    out: OutOption,
    qupath_crop: Annotated[
        bool | None,
        typer.Option(
            "--qupath-crop/--no-qupath-crop",
            help="GeoJSON from QuPath's cropped origin or in level-0 px; default: as in the scan.",
        ),
    ] = None,
    slides: Annotated[
        Path | None, typer.Option(help="Folder of the slides, for crops and dicom, when they were moved.")
    ] = None,
    dataset: Annotated[str, typer.Option(help="Name of the data set in the tables of crops.")] = "mitoscan",
    unreviewed: Annotated[
        bool, typer.Option("--unreviewed", help="Crops with the models' labels where there is no reviewer's.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that are there.")] = False,
) -> None:
    """Write finished results in the formats of other programs."""
    from mitoscan.report.export.common import Options
    from mitoscan.report.export.formats import export as write
    from mitoscan.report.stored import result_folders

    options = Options(qupath_crop, slides, dataset, unreviewed, overwrite)
    for path in write(result_folders(folders), format_.value, out, options):
        Console().print(str(path), soft_wrap=True, markup=False, highlight=False)


def agreement_table(agreed: Agreement) -> Table:
    """Give the confusion of models and reviewer, with kappa below it."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    kappas = f"kappa {_kappa(agreed.kappa)}; AMF against NMF {_kappa(agreed.amf_kappa)} (n = {agreed.amf_n})"
    table = Table(
        title=f"Models (rows) and reviewer (columns), n = {agreed.n}",
        caption=kappas,
        title_justify="left",
        caption_justify="left",
        box=SIMPLE_HEAD,
    )
    table.add_column("")
    for label in agreed.confusion:
        table.add_column(label, justify="right")
    for label, row in agreed.confusion.items():
        table.add_row(label, *(str(count) for count in row.values()))
    return table


def _kappa(value: float | None) -> str:
    return "not defined" if value is None else f"{value:.2f}"
