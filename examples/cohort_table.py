"""From finished results to a table of a cohort, with the pooled rate.

    python examples/cohort_table.py [RESULTS]

RESULTS is a folder that ``mitoscan run`` wrote to. Without it, two synthetic slides are scanned first.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import pandas as pd

import mitoscan
from mitoscan.demo import write_demo_slide
from mitoscan.report.stored import read_result, result_folders
from mitoscan.report.writer import write_slide
from mitoscan.scan.score import wilson_interval

COLUMNS = ["slide_id", "tissue_mm2", "mf_count", "mf_per_mm2", "amf_count", "amf_rate", "amf_rate_corrected"]


def scan_two(folder: Path) -> Path:
    """Draw, scan and write two small slides; give the folder of the results."""
    for seed in (1, 2):
        slide = folder / f"synthetic{seed}.svs"
        write_demo_slide(slide, seed=seed, width_mm=0.4, height_mm=0.3, figures=5)
        write_slide(mitoscan.scan_slide(slide, mitoscan.ScanConfig(hotspot_mm2=0.05)), folder / "results")
    return folder / "results"


def show(results: Path) -> None:
    """Print a row a slide and the AMF rate of all figures together."""
    summaries = [read_result(folder).result.summary for folder in result_folders([results])]
    table = pd.DataFrame([summary.model_dump() for summary in summaries])
    print(table[COLUMNS].to_string(index=False, float_format=lambda value: f"{value:.2f}", na_rep="-"))
    amf, mf = int(table["amf_count"].sum()), int(table["mf_count"].sum())
    if mf:
        # Figures of one slide are alike, so this interval is too narrow as one for patients:
        # `mitoscan study` takes slides or cases as the unit.
        low, high = wilson_interval(amf, mf)
        print(f"together: {amf} of {mf} atypical, {amf / mf:.0%} ({low:.0%} to {high:.0%})")


def main() -> None:
    """Show the folder given, or one made on the spot."""
    if len(sys.argv) > 1:
        show(Path(sys.argv[1]))
        return
    with tempfile.TemporaryDirectory() as folder:
        show(scan_two(Path(folder)))


if __name__ == "__main__":
    main()
