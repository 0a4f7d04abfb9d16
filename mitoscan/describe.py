"""What ``mitoscan info`` and ``mitoscan models`` show."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
from rich.console import Group
from rich.table import Table

from mitoscan.errors import NoTissueError
from mitoscan.models.card import load_card
from mitoscan.models.runtime import Runtime
from mitoscan.models.zoo import DEFAULT_DETECTOR_ON_GPU, DEFAULTS, shipped_models
from mitoscan.slide.base import Slide, SlideInfo
from mitoscan.slide.reader import open_slide
from mitoscan.slide.tissue import area_mm2, find_tissue


def describe(path: Path, mpp: float | None, estimate: bool) -> Group:
    """Describe a slide: levels, pixel size and its source, bounds, tissue area and estimated time.

    Parameters
    ----------
    path, mpp
        The slide, and its pixel size where the user gives it. A slide without one is described too.
    estimate
        Measure this machine's speed on one tile to estimate the time of a run.

    Raises
    ------
    SlideError
        When the slide cannot be opened or read.
    """
    with open_slide(path, mpp=mpp, require_mpp=False) as slide:
        facts = _facts(slide.info)
        if slide.info.mpp is not None:
            _add_tissue(facts, slide, estimate)
        return Group(facts, _levels(slide.info))


def _facts(info: SlideInfo) -> Table:
    facts = Table(title=str(info.path), show_header=False, title_justify="left")
    facts.add_row("size, level-0 px", f"{info.width_l0} × {info.height_l0}")
    if info.mpp is None:
        facts.add_row("mpp", f"unknown ({info.mpp_source}): give it with --mpp")
    else:
        facts.add_row("mpp, µm per level-0 px", f"{info.mpp.x:g} × {info.mpp.y:g} (from {info.mpp_source})")
        size = info.width_l0 * info.mpp.x / 1000, info.height_l0 * info.mpp.y / 1000
        facts.add_row("size, mm", f"{size[0]:.2f} × {size[1]:.2f}")
    facts.add_row("objective, as stated", info.objective or "not stated")
    facts.add_row("vendor, reader", f"{info.vendor}, {info.reader}")
    bounds = info.bounds
    if bounds is None:
        facts.add_row("bounds", "none")
    else:
        place = f"{bounds.width:g} × {bounds.height:g} at ({bounds.x:g}, {bounds.y:g})"
        facts.add_row("bounds, level-0 px", place)
    return facts


def _add_tissue(facts: Table, slide: Slide, estimate: bool) -> None:
    from mitoscan.scan.detect import load_detector

    info = slide.info
    try:
        tissue = find_tissue(slide)
    except NoTissueError as error:
        facts.add_row("tissue", f"none found: {error.remedy}")
        return
    facts.add_row("tissue, mm²", f"{area_mm2(tissue, info.known_mpp()):.2f}, outlines: {len(tissue.geoms)}")
    if not estimate:
        return
    detector = load_detector()
    frame = info.frame(detector.card.mpp)
    tiles = detector.plan(frame, info.width_l0, info.height_l0, tissue)
    middle = tiles[len(tiles) // 2]
    field = slide.read(
        frame.box_to_l0(middle.x, middle.y, middle.size, middle.size), middle.size, middle.size
    )
    seconds = min(_seconds_of_a_tile(detector.heat, field) for _ in range(3))
    seconds *= sum(tile.size**2 for tile in tiles) / middle.size**2
    facts.add_row("estimated time", f"{_duration(seconds)} ({len(tiles)} tiles, on this machine)")


def _seconds_of_a_tile(heat: Runtime, field: npt.NDArray[np.uint8]) -> float:
    began = time.monotonic()
    heat(field[None])
    return time.monotonic() - began


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _levels(info: SlideInfo) -> Table:
    table = Table("level", "width", "height", "downsample", "mpp", "tile")
    for number, level in enumerate(info.levels):
        mpp = "–" if info.mpp is None else f"{info.mpp.x * level.downsample:.4g}"
        tile = f"{level.tile_width} × {level.tile_height}" if level.tile_width else "–"
        table.add_row(str(number), str(level.width), str(level.height), f"{level.downsample:g}", mpp, tile)
    return table


def model_table() -> Table:
    """List the shipped models with task, size, metrics and licence."""
    table = Table(title="models")
    table.add_column("name", no_wrap=True)
    for column in ("task", "parameters", "mpp", "measured on held-out data", "licence"):
        table.add_column(column)
    marks = dict.fromkeys(DEFAULTS.values(), "\n(default)")
    marks[DEFAULT_DETECTOR_ON_GPU] = "\n(default on a GPU)"
    for name, folder in shipped_models().items():
        card = load_card(folder)
        metrics = "\n".join(f"{m.name} {m.value:.3f} (n = {m.n})" for m in card.metrics)
        mark = marks.get(name, "")
        table.add_row(
            name + mark, card.task, f"{card.parameters / 1e6:.1f} M", f"{card.mpp:g}", metrics, card.licence
        )
    return table
