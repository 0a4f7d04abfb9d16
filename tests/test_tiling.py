from __future__ import annotations

import time

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from shapely import MultiPolygon, Point

from mitoscan.slide.tiling import plan_tiles
from mitoscan.units import Mpp, WorkFrame

MPPS = st.floats(0.1, 1.0)
FRAMES = st.builds(lambda x, y, work: WorkFrame(Mpp(x, y), work), MPPS, MPPS, st.sampled_from([0.25, 0.5]))


@st.composite
def areas(draw):
    """A slide's size and an area of some boxes and discs that may leave it."""
    width, height = draw(st.integers(1, 4000)), draw(st.integers(1, 4000))
    number = st.floats(-500, 4500)
    discs = [
        Point(draw(number), draw(number)).buffer(draw(st.floats(0.5, 900)), quad_segs=draw(st.integers(1, 8)))
        for _ in range(draw(st.integers(1, 4)))
    ]
    joined = shapely.union_all(discs)
    return width, height, MultiPolygon(list(shapely.get_parts(joined)))


CORES = st.integers(24, 112).map(lambda quarter: 4 * quarter)
HALVINGS = st.integers(0, 2)


def planned(frame, slide, core, margin_px, shift_px, halvings):
    width, height, area = slide
    tile_px = core + 2 * margin_px
    how = {"tile_px": tile_px, "margin_px": margin_px, "shift_px": shift_px, "halvings": halvings}
    return plan_tiles(frame, width, height, area, **how)


@given(FRAMES, areas(), CORES, st.integers(0, 32), st.integers(0, 1000), HALVINGS, st.integers(0, 2**32 - 1))
@settings(max_examples=150, deadline=None)
def test_every_point_of_the_area_is_in_exactly_one_core(
    frame, slide, core, margin_px, shift_px, halvings, seed
):
    width, height, area = slide
    tiles = planned(frame, slide, core, margin_px, shift_px, halvings)
    rng = np.random.default_rng(seed)
    left, top, right, bottom = area.bounds
    x, y = rng.uniform(left, right, 300), rng.uniform(top, bottom, 300)
    kept = shapely.contains_xy(area, x, y) & (x >= 0) & (x < width) & (y >= 0) & (y < height)
    work_x, work_y = frame.from_l0(x[kept], y[kept])
    owners = np.zeros(len(work_x), int)
    for tile in tiles:
        owners += tile.owns(work_x, work_y)
    assert (owners == 1).all()


@given(FRAMES, areas(), CORES, st.integers(0, 32), st.integers(0, 1000), HALVINGS)
@settings(max_examples=60, deadline=None)
def test_cores_lie_on_the_grid_and_none_is_idle(frame, slide, core, margin_px, shift_px, halvings):
    area = slide[2]
    tiles = planned(frame, slide, core, margin_px, shift_px, halvings)
    for tile in tiles:
        x0, y0, x1, y1 = tile.core
        side = x1 - x0
        assert y1 - y0 == side
        assert side in [core >> n for n in range(halvings + 1)]
        assert (x0 + shift_px % core) % side == 0
        assert (y0 + shift_px % core) % side == 0
        box = frame.box_to_l0(x0, y0, side, side)
        near = shapely.box(box.x - 1e-6, box.y - 1e-6, box.right + 1e-6, box.bottom + 1e-6)
        assert area.intersects(near)


def pixels_a_tissue_px(area: MultiPolygon, halvings: int) -> float:
    tiles = plan_tiles(
        WorkFrame(Mpp(0.25, 0.25), 0.25), 40_000, 40_000, area, tile_px=2048, margin_px=96, halvings=halvings
    )
    return sum(tile.size**2 for tile in tiles) / area.area


def test_small_tiles_save_pixels_at_the_edge_and_cost_none_inside():
    whole = MultiPolygon([shapely.box(0, 0, 1856 * 20 - 1, 1856 * 20 - 1)])
    assert (
        pixels_a_tissue_px(whole, 2)
        == pixels_a_tissue_px(whole, 0)
        == pytest.approx((2048 / 1856) ** 2, rel=1e-3)
    )
    needle = MultiPolygon([shapely.box(4000, 1000, 4300, 39_000)])
    assert pixels_a_tissue_px(needle, 2) < 0.6 * pixels_a_tissue_px(needle, 0)
    lump = MultiPolygon([Point(20_000, 20_000).buffer(9000)])
    assert 1.2 < pixels_a_tissue_px(lump, 2) < 0.9 * pixels_a_tissue_px(lump, 0)


def test_a_point_on_a_border_belongs_to_the_tile_right_and_below():
    frame = WorkFrame(Mpp(0.25, 0.25), 0.25)
    whole = MultiPolygon([shapely.box(0, 0, 400, 400)])
    tiles = plan_tiles(frame, 400, 400, whole, tile_px=120, margin_px=10)
    owner = [t for t in tiles if t.owns(np.array([100.0]), np.array([200.0]))[0]]
    assert [t.core for t in owner] == [(100, 200, 200, 300)]
    assert (owner[0].x, owner[0].y, owner[0].size) == (90, 190, 120)


def test_an_empty_area_has_no_tiles():
    frame = WorkFrame(Mpp(0.25, 0.25), 0.25)
    assert plan_tiles(frame, 5000, 5000, MultiPolygon(), tile_px=512, margin_px=64) == []


@pytest.mark.parametrize(
    ("tile", "margin", "halvings", "why"),
    [(100, 50, 0, "100 px"), (100, 60, 0, "100 px"), (100, -1, 0, "100 px"), (100, 5, 2, "halved 2 times")],
)
def test_tiles_without_a_core_or_whole_halves_are_refused(tile, margin, halvings, why):
    frame = WorkFrame(Mpp(0.25, 0.25), 0.25)
    with pytest.raises(ValueError, match=why):
        plan_tiles(frame, 500, 500, MultiPolygon(), tile_px=tile, margin_px=margin, halvings=halvings)


def test_large_slides_with_ragged_tissue_are_planned_quickly():
    rng = np.random.default_rng(0)
    angle = np.linspace(0, 2 * np.pi, 40_000, endpoint=False)
    radius = 1 + 0.02 * rng.standard_normal(40_000).cumsum() / 200
    outline = np.column_stack(
        [50_000 + 45_000 * radius * np.cos(angle), 40_000 + 35_000 * radius * np.sin(angle)]
    )
    hole = Point(50_000, 40_000).buffer(5_000, quad_segs=2000).exterior
    parts = shapely.get_parts(shapely.make_valid(shapely.Polygon(outline, [hole.coords])))
    area = MultiPolygon([p for p in parts if p.geom_type == "Polygon"])
    started = time.perf_counter()
    tiles = plan_tiles(
        WorkFrame(Mpp(0.25, 0.25), 0.25), 100_000, 80_000, area, tile_px=2048, margin_px=96, halvings=2
    )
    assert time.perf_counter() - started < 5
    assert len(tiles) > 1500
