"""Peak memory of a run, whatever the slide's size.

    python benchmarks/memory.py [--sides 6000 60000] [--mm2 12]

Writes square synthetic slides (0.25 mpp, all tissue, with figures), runs ``mitoscan run`` on each in a
process of its own and prints peak resident memory, wall and CPU time as a Markdown table. With ``--mm2``
only so many squares of 1 mm², spread over the slide, are scanned; mask and thumbnail are of all of it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from mitoscan.demo import draw_field
from mitoscan.slide.write import write_mosaic

TILE = 256


def write_slide(path: Path, side: int) -> None:
    """Write a slide of about ``side`` px, patterned with synthetic tissue."""
    field = draw_field(0, 4 * TILE, 4 * TILE, 3, glass=False).image
    tiles = [field[y : y + TILE, x : x + TILE] for y in range(0, 1024, TILE) for x in range(0, 1024, TILE)]
    write_mosaic(path, tiles, round(side / TILE), round(side / TILE), 0.25)


def write_squares(path: Path, side: int, count: int) -> Path:
    """Write a GeoJSON of ``count`` squares of 1 mm² along the slide's diagonal."""
    corners = [round(i * (side - 4000) / max(count - 1, 1)) for i in range(count)]
    rings = [[[[c, c], [c + 4000, c], [c + 4000, c + 4000], [c, c + 4000], [c, c]]] for c in corners]
    path.write_text(json.dumps({"type": "MultiPolygon", "coordinates": rings}))
    return path


def measure(slide: Path, out: Path, more: list[str]) -> dict[str, float]:
    """Run the main job on ``slide``; give its figures."""
    began = time.monotonic()
    with (out.with_suffix(".log")).open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "mitoscan.cli", "run", slide, "-o", out, *more], stdout=log, stderr=log
        )
        _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"the run failed: see {out.with_suffix('.log')}")
    summary = json.loads((out / slide.stem / "summary.json").read_text())
    return {
        "peak_mb": usage.ru_maxrss / 1024,
        "wall_s": time.monotonic() - began,
        "cpu_s": usage.ru_utime + usage.ru_stime,
        "tissue_mm2": summary["tissue_mm2"],
        "figures": summary["mf_count"],
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sides", type=int, nargs="+", default=[6000, 60_000])
    parser.add_argument("--folder", type=Path, help="where the slides go; default: a temporary folder")
    parser.add_argument("--mm2", type=int, help="scan only so much")
    options = parser.parse_args()
    print("| slide, px | tissue, mm² | figures | peak memory, MB | wall, s | CPU, s |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        for side in options.sides:
            slide = Path(folder) / f"synthetic-{side}.svs"
            write_slide(slide, side)
            more = []
            if options.mm2:
                roi = write_squares(Path(folder) / f"roi-{side}.geojson", side, options.mm2)
                more = ["--roi", str(roi)]
            found = measure(slide, Path(folder) / f"out-{side}", more)
            values = " | ".join(f"{value:.0f}" for value in found.values())
            columns = values.split(" | ")
            row = [f"{side} × {side}", columns[3], columns[4], columns[0], columns[1], columns[2]]
            print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
