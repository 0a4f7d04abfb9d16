"""Where the time of a run goes, and how far it is from what the machine allows.

    python benchmarks/speed.py [SLIDE ...] [--mm2 12] [--compare] [--json FILE]

Without a slide it draws one of ``--mm2`` of synthetic tissue. For each slide it prints, after a pass over the
first that warms all caches:

- two floors: decoding each stored tile of tissue once, with as many threads as cores; and the network's
  multiply-adds over the tissue's pixels, at the rate that the runtime reaches on its largest tile alone;
- wall time by stage, CPU time, mm²/s, peak memory, and the ratio of the whole to the larger floor;
- with ``--compare``: the same scan with the same weights in eager PyTorch, in turns with ours, and
  tiatoolbox's own engine with its detector's architecture (random weights, a small part of the tissue).

Seconds are this machine's at that moment; ratios are taken side by side.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import shapely

from mitoscan.config import ScanConfig
from mitoscan.demo import draw_field
from mitoscan.models.card import checked_weights
from mitoscan.models.runtime import TorchRuntime, load_network
from mitoscan.models.zoo import find_model
from mitoscan.report.writer import write_slide
from mitoscan.scan import detect, pipeline
from mitoscan.scan.classify import Classifier
from mitoscan.scan.detect import Detector
from mitoscan.scan.pipeline import Models, load_models, scan_slide
from mitoscan.scan.readers import ReaderPool
from mitoscan.scan.result import SlideResult
from mitoscan.slide.base import Slide
from mitoscan.slide.reader import open_slide
from mitoscan.slide.write import TILE_PX, write_mosaic
from mitoscan.units import Box

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
FIELD_PX = 2048


class Clock:
    """Seconds of wall and CPU time (of the calling thread) within named functions, over all threads."""

    def __init__(self) -> None:
        self.wall: dict[str, float] = defaultdict(float)
        self.cpu: dict[str, float] = defaultdict(float)
        self.calls: dict[str, int] = defaultdict(int)
        self._lock = threading.Lock()

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Give ``function`` with its time noted under ``name``."""

        def run(*args: Any, **kwargs: Any) -> Any:
            wall, cpu = time.perf_counter(), time.thread_time()
            try:
                return function(*args, **kwargs)
            finally:
                with self._lock:
                    self.wall[name] += time.perf_counter() - wall
                    self.cpu[name] += time.thread_time() - cpu
                    self.calls[name] += 1

        return run

    @contextlib.contextmanager
    def on(self, places: list[tuple[str, Any, str]]) -> Iterator[None]:
        """Time attributes, each (name, owner, attribute), as long as the context lasts."""
        before = [(owner, attribute, getattr(owner, attribute)) for _, owner, attribute in places]
        for name, owner, attribute in places:
            setattr(owner, attribute, self.timed(name, getattr(owner, attribute)))
        try:
            yield
        finally:
            for owner, attribute, function in before:
                setattr(owner, attribute, function)


def draw_slide(folder: Path, mm2: float, figures: int) -> Path:
    """Write a slide of ``mm2`` of synthetic tissue, with ``figures`` in each field of 0.26 mm²."""
    field = draw_field(0, FIELD_PX, FIELD_PX, figures, glass=False).image
    steps = range(0, FIELD_PX, TILE_PX)
    tiles = [field[y : y + TILE_PX, x : x + TILE_PX] for y in steps for x in steps]
    side = max(1, round((mm2 * 16e6) ** 0.5 / TILE_PX))
    path = folder / f"synthetic-{mm2:g}mm2-{figures}.svs"
    write_mosaic(path, tiles, side, side, 0.25)
    return path


def decode_floor(path: Path, result: SlideResult) -> float:
    """Seconds to decode each stored tile that meets the tissue once, with a thread a core."""
    level = result.info.levels[0]
    width, height = level.tile_width or 256, level.tile_height or 256
    x, y = (
        g.ravel() for g in np.meshgrid(np.arange(0, level.width, width), np.arange(0, level.height, height))
    )
    shapely.prepare(result.tissue)
    meets = shapely.intersects(result.tissue, shapely.box(x, y, x + width, y + height))
    places = list(zip(x[meets].tolist(), y[meets].tolist(), strict=True))
    local = threading.local()

    def decode(place: tuple[int, int]) -> None:
        if not hasattr(local, "slide"):
            local.slide = open_slide(path, mpp=result.info.known_mpp().x)
        local.slide.read(Box(*place, width, height), width, height)

    with ThreadPoolExecutor(CORES) as pool:
        began = time.perf_counter()
        for _ in pool.map(decode, places):
            pass
        return time.perf_counter() - began


def network_floor(detector: Detector, tissue_mm2: float) -> tuple[float, float]:
    """Seconds of the detector for the tissue's pixels, no more; and its multiply-adds, 10⁹ a second."""
    side = detector.card.input_px
    tile = draw_field(1, side, side, 3, glass=False).image[None]
    detector.heat(tile)
    seconds = statistics.median(_seconds(detector.heat, tile) for _ in range(7))
    macs_a_px = multiply_adds(detector) / 256**2
    pixels = tissue_mm2 * 1e6 / detector.card.mpp**2
    return seconds / side**2 * pixels, macs_a_px * side**2 / seconds / 1e9


def multiply_adds(detector: Detector) -> float:
    """Multiply-adds of the detector for 256 × 256 px, counted on its convolutions."""
    import torch

    folder, card = find_model(detector.card.name, "detector")
    network = load_network(checked_weights(folder, card), card)
    counts: list[float] = []

    def count(layer: Any, _: Any, output: torch.Tensor) -> None:
        counts.append(output.numel() * layer.weight[0].numel())

    for layer in network.modules():
        if isinstance(layer, torch.nn.Conv2d):
            layer.register_forward_hook(count)
    with torch.inference_mode():
        network(torch.zeros(1, 256, 256, 3, dtype=torch.uint8))
    return sum(counts)


def _seconds(function: Callable[[Any], Any], value: Any) -> float:
    began = time.perf_counter()
    function(value)
    return time.perf_counter() - began


def eager(config: ScanConfig) -> Models:
    """Give the default models in plain PyTorch, float32."""
    models = load_models(config)
    runtimes = []
    for task, card in (("detector", models.detector.card), ("classifier", models.classifier.card)):
        folder, _ = find_model(card.name, task)
        runtimes.append(TorchRuntime(load_network(checked_weights(folder, card), card), "cpu"))
    return Models(
        Detector(models.detector.card, runtimes[0]),
        Classifier(models.classifier.card, runtimes[1], models.classifier.likeness),
    )


def measure(path: Path, config: ScanConfig, models: Models, out: Path) -> dict[str, Any]:
    """Scan and write ``path``, and give its figures."""
    clock = Clock()
    places = [
        ("open", pipeline, "open_slide"),
        ("mask", pipeline, "coarse_view"),
        ("mask", pipeline, "find_tissue"),
        ("thumbnail", pipeline, "read_thumbnail"),
        ("read", ReaderPool, "_read"),
        ("resample (in read)", Slide, "_resample"),
        ("detect", models.detector, "heat"),
        ("peaks", Detector, "_candidates"),
        ("merge", detect, "merge"),
        ("crop and classify", Classifier, "_of_crops"),
        ("focus", pipeline.QualityCheck, "see_tile"),
        ("pictures", pipeline, "read_crops"),
    ]
    cpu, began = time.process_time(), time.perf_counter()
    with clock.on(places):
        result = scan_slide(path, config, models=models)
        clock.timed("write", write_slide)(result, out)
    wall, cpu = time.perf_counter() - began, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    mm2 = result.summary.tissue_mm2
    decode = decode_floor(path, result)
    network, rate = network_floor(models.detector, mm2)
    tiles = models.detector.plan(
        result.info.frame(models.detector.card.mpp),
        result.info.width_l0,
        result.info.height_l0,
        result.tissue,
    )
    return {
        "slide": path.name,
        "tissue_mm2": mm2,
        "figures": result.summary.mf_count,
        "classified": int(result.findings["p_atypical"].notna().sum()),
        "network_px_per_tissue_px": sum(t.size**2 for t in tiles) * models.detector.card.mpp**2 / 1e6 / mm2,
        "wall_s": wall,
        "cpu_s": cpu,
        "s_per_mm2": wall / mm2,
        "mm2_per_s": mm2 / wall,
        "decode_floor_s": decode,
        "network_floor_s": network,
        "network_gmac_per_s": rate,
        "ratio_to_larger_floor": wall / max(decode, network),
        "ratio_to_both_floors": wall / (decode + network),
        "peak_rss_mb": peak,
        "stages": {
            n: {"calls": clock.calls[n], "wall_s": clock.wall[n], "cpu_s": clock.cpu[n]} for n in clock.wall
        },
    }


def compare(path: Path, config: ScanConfig, ours: Models, rounds: int) -> dict[str, float]:
    """Scan in turns with our runtime and with eager PyTorch; give the medians and their ratio."""
    theirs = eager(config)
    seconds: dict[str, list[float]] = {"ours": [], "eager": []}
    for _ in range(rounds):
        for name, models in (("ours", ours), ("eager", theirs)):
            seconds[name].append(_seconds(lambda m: scan_slide(path, config, models=m), models))
    middle = {name: statistics.median(values) for name, values in seconds.items()}
    ratios = [b / a for a, b in zip(seconds["ours"], seconds["eager"], strict=True)]
    return {f"{n}_s": v for n, v in middle.items()} | {"eager_over_ours": statistics.median(ratios)}


def compare_tiatoolbox(folder: Path, config: ScanConfig, ours: Models) -> dict[str, float]:
    """Scan 0.26 mm² with tiatoolbox's engine and its MIDOG detector's architecture, and with ours."""
    import torch
    from tiatoolbox.models.engine.nucleus_detector import NucleusDetector

    from mitoscan.models.tiatoolbox_models import build_kongnet

    path = draw_slide(folder, FIELD_PX**2 / 16e6, 3)
    name = "KongNet_Det_MIDOG_1"
    torch.save({"model": build_kongnet(name).state_dict()}, folder / "random.pth")
    engine = NucleusDetector(name, batch_size=4, weights=folder / "random.pth", verbose=False)
    whole = np.ones((64, 64), np.uint8)
    began = time.perf_counter()
    engine.run([path], masks=[whole], patch_mode=False, save_dir=folder / "tiatoolbox", overwrite=True)
    theirs = time.perf_counter() - began
    everything = config.model_copy(update={"tissue_mask": False})
    scan_slide(path, everything, models=ours)
    mine = _seconds(lambda m: scan_slide(path, everything, models=m), ours)
    mm2 = FIELD_PX**2 / 16e6
    return {"tiatoolbox_s_per_mm2": theirs / mm2, "ours_s_per_mm2": mine / mm2, "ratio": theirs / mine}


def first_tile_seconds(path: Path) -> float:
    """Seconds from the start of a process to its first finished tile, caches warm."""
    code = (
        "import sys, time, os; from pathlib import Path\n"
        "from mitoscan.config import ScanConfig\n"
        "from mitoscan.scan.pipeline import scan_slide\n"
        "class Stop:\n"
        "    def start(self, *_): pass\n"
        "    def advance(self, _): print(time.time()); sys.stdout.flush(); os._exit(0)\n"
        "scan_slide(Path(sys.argv[1]), ScanConfig(device='cpu'), progress=Stop())\n"
    )
    times = []
    for _ in range(4):
        began = time.time()
        done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
        times.append(float(done.stdout) - began)
    return statistics.median(times[1:])


def show(figures: dict[str, Any]) -> None:
    """Print one slide's figures."""
    print(f"\n## {figures['slide']}\n")
    for key, value in figures.items():
        if key != "stages":
            print(f"- {key}: {value:.3g}" if isinstance(value, float) else f"- {key}: {value}")
    print("\n| stage | calls | wall, s (sum over threads) | CPU of these threads, s |\n|---|---|---|---|")
    for name, stage in figures["stages"].items():
        print(f"| {name} | {stage['calls']} | {stage['wall_s']:.2f} | {stage['cpu_s']:.2f} |")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("slides", type=Path, nargs="*")
    parser.add_argument("--mm2", type=float, nargs="*", default=[12.0], help="sizes of slides to draw")
    parser.add_argument("--figures", type=int, default=3, help="mitotic figures drawn in each 0.26 mm²")
    parser.add_argument("--compare", action="store_true", help="with eager PyTorch and tiatoolbox")
    parser.add_argument("--rounds", type=int, default=3, help="of the comparison")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    config = ScanConfig(device=options.device)
    models = load_models(config)
    print(f"{platform.machine()}, {CORES} cores, {options.device}, {platform.platform()}")
    found: dict[str, Any] = {"slides": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        slides = options.slides or [draw_slide(folder, mm2, options.figures) for mm2 in options.mm2]
        scan_slide(slides[0], config, models=models)  # warms all caches
        for number, path in enumerate(slides):
            found["slides"].append(measure(path, config, models, folder / f"out{number}"))
            show(found["slides"][-1])
        found["first_tile_s"] = first_tile_seconds(slides[0])
        print(f"\nfrom command to first tile: {found['first_tile_s']:.2f} s")
        if options.compare:
            found["eager"] = compare(slides[0], config, models, options.rounds)
            print(f"eager PyTorch: {found['eager']}")
            found["tiatoolbox"] = compare_tiatoolbox(folder, config, models)
            print(f"tiatoolbox: {found['tiatoolbox']}")
    if options.json:
        options.json.write_text(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
