from __future__ import annotations

import math
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image
from slides import TISSUE, centroid, generic_tiff, leica, ngff, with_marks, with_missing_tiles

from mitoscan.errors import (
    MissingExtraError,
    MppError,
    SlideNotFoundError,
    SlideOpenError,
    SlideReadError,
)
from mitoscan.slide import base
from mitoscan.slide.reader import open_slide
from mitoscan.slide.write import TILE_PX, write_mosaic, write_pyramid
from mitoscan.units import Box, Mpp

WIDTH, HEIGHT = 4211, 3103
MARKS = [(60.3, 70.8), (4120.7, 81.2), (2105.5, 1600.25), (75.9, 3010.4), (4101.1, 3020.6)]


@pytest.fixture(
    scope="module",
    params=[(0.2273, 0.2273), (0.25, 0.25), (0.263, 0.263), (0.499, 0.499), (0.25, 0.325), (0.5, 0.21)],
    ids=str,
)
def marked(request, tmp_path_factory):
    """A slide with marks far apart, square pixels as a pyramid and others as single-level TIFF."""
    x, y = mpp = request.param
    folder = tmp_path_factory.mktemp("marked")
    picture = with_marks(WIDTH, HEIGHT, MARKS, mpp=mpp)
    if x != y:
        path = generic_tiff(folder / "a.tif", picture, mpp=mpp)
    else:
        path = folder / "a.svs"
        write_pyramid(path, picture, x)
    with open_slide(path) as slide:
        yield slide


@pytest.mark.parametrize("work_mpp", [0.25, 0.5, 1.0, 2.0])
def test_marks_are_found_where_they_are_everywhere_on_the_slide(marked, work_mpp):
    frame = marked.info.frame(work_mpp)
    for x, y in MARKS:
        work_x, work_y = frame.from_l0(x, y)
        size = round(24 / work_mpp)
        left, top = math.floor(work_x - size / 2) + 1, math.floor(work_y - size / 2) - 1
        found = centroid(marked.read(frame.box_to_l0(left, top, size, size), size, size))
        found_x, found_y = frame.to_l0(left + found[0], top + found[1])
        error_um = math.hypot((found_x - x) * marked.info.mpp.x, (found_y - y) * marked.info.mpp.y)
        assert error_um < 0.5 * max(1, work_mpp / 2)


def test_neighbouring_boxes_join_without_a_seam(marked):
    frame = marked.info.frame(0.25)
    whole = marked.read(frame.box_to_l0(37, 51, 400, 200), 400, 200)
    parts = [marked.read(frame.box_to_l0(37 + x, 51, 100, 200), 100, 200) for x in range(0, 400, 100)]
    difference = np.abs(whole.astype(int) - np.concatenate(parts, axis=1))
    assert difference.max() <= 1


def test_whole_pixels_at_scale_one_are_copied_not_resampled(tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    Image.fromarray(picture).save(tmp_path / "a.png")
    with open_slide(tmp_path / "a.png", mpp=0.25) as slide:
        box = slide.info.frame(0.25).box_to_l0(33, 44, 128, 96)
        assert np.array_equal(slide.read(box, 128, 96), picture[44 : 44 + 96, 33 : 33 + 128])


def test_shrinking_averages_over_the_area(tmp_path):
    lines = np.zeros((256, 256, 3), np.uint8)
    lines[:, ::2] = 200
    Image.fromarray(lines).save(tmp_path / "a.png")
    with open_slide(tmp_path / "a.png", mpp=0.25) as slide:
        inner = slide.read(Box(32, 32, 192, 192), 48, 48)
    assert np.abs(inner.astype(int) - 100).max() <= 2


def test_large_boxes_are_read_in_parts_of_bounded_size_with_the_same_result(tmp_path, monkeypatch):
    picture = with_marks(1500, 1100, [(300, 300), (1200, 900)])
    Image.fromarray(picture).save(tmp_path / "a.png")
    with open_slide(tmp_path / "a.png", mpp=0.25) as slide:
        box = Box(-20.5, 10.25, 1500, 1100)
        expected = slide.read(box, 187, 140)
        monkeypatch.setattr(base, "_MAX_SOURCE_PX", 200 * 200)
        sizes = []
        region = slide._region
        slide._region = lambda level, x, y, w, h: sizes.append(w * h) or region(level, x, y, w, h)
        assert np.abs(slide.read(box, 187, 140).astype(int) - expected).max() <= 1
        assert max(sizes) < 4 * 200 * 200


def test_the_nearest_finer_level_is_read(tmp_path):
    write_pyramid(tmp_path / "a.svs", with_marks(2051, 1027, []), 0.25)
    with open_slide(tmp_path / "a.svs") as slide:
        used = []
        region = slide._region
        slide._region = lambda level, *rest: used.append(level) or region(level, *rest)
        for mpp in (0.25, 0.9, 1.0, 3.9, 4.0, 8.0):
            slide.read(slide.info.frame(mpp).box_to_l0(0, 0, 8, 8), 8, 8)
    assert used == [0, 0, 1, 1, 2, 2]


def test_levels_that_lost_odd_pixels_keep_their_whole_downsample(tmp_path):
    write_pyramid(tmp_path / "a.svs", with_marks(2051, 1027, []), 0.25)
    with open_slide(tmp_path / "a.svs") as slide:
        assert [(v.width, v.downsample) for v in slide.info.levels] == [(2051, 1), (512, 4), (128, 16)]


def test_off_the_slide_is_white(tmp_path):
    write_pyramid(tmp_path / "a.svs", with_marks(300, 300, []), 0.25)
    with open_slide(tmp_path / "a.svs") as slide:
        assert (slide.read(Box(-500, -500, 100, 100), 100, 100) == 255).all()
        corner = slide.read(Box(-50, -50, 100, 100), 100, 100)
        assert (corner[:49] == 255).all()
        assert (corner[:, :49] == 255).all()
        assert np.abs(corner[52:, 52:].astype(int) - TISSUE).max() < 6
        far = slide.read(Box(280, 280, 100, 100), 87, 87)
        assert (far[20:] == 255).all()


def test_transparent_pixels_are_white(tmp_path):
    with open_slide(with_missing_tiles(tmp_path / "a.svs", 3, 3, {(0, 0), (2, 0), (0, 2), (2, 2)})) as slide:
        pixels = slide.read(Box(0, 0, 768, 768), 768, 768)
        assert (pixels[:256, :256] == 255).all()
        assert (pixels[600:, 600:] == 255).all()
        assert np.abs(pixels[256:512].astype(int) - TISSUE).max() < 6
        small = slide.read(Box(0, 0, 768, 768), 96, 96)
        assert (small[:30, :30] == 255).all()


def test_leica_bounds_come_from_the_file_and_level_0_keeps_its_own_origin(tmp_path):
    picture = with_marks(1000, 700, [(400.5, 300.25)])
    with open_slide(leica(tmp_path / "a.scn", picture, canvas=(2000, 1504), offset=(300, 200))) as slide:
        assert slide.info.bounds == Box(300, 200, 1000, 700)
        assert (slide.info.width_l0, slide.info.height_l0) == (2000, 1504)
        assert slide.info.mpp == Mpp(0.25, 0.25)
        x, y = centroid(slide.read(Box(650, 450, 100, 100), 100, 100))
        assert (650 + x, 450 + y) == pytest.approx((700.5, 500.25), abs=0.3)
        assert (slide.read(Box(0, 0, 2000, 200), 500, 50)[:49] == 255).all()


def test_slides_without_bounds_say_so(tmp_path):
    write_pyramid(tmp_path / "a.svs", with_marks(300, 300, []), 0.25)
    with open_slide(tmp_path / "a.svs") as slide:
        assert slide.info.bounds is None


def test_a_handle_for_each_thread_reads_the_same(tmp_path):
    path = tmp_path / "a.svs"
    write_pyramid(path, with_marks(1200, 900, [(300, 300), (900, 600)]), 0.2273)

    def read_all(_):
        with open_slide(path) as slide:
            frame = slide.info.frame(0.25)
            return [slide.read(frame.box_to_l0(x, y, 200, 200), 200, 200) for x in (0, 400) for y in (0, 300)]

    first = read_all(0)
    with ThreadPoolExecutor(4) as pool:
        for other in pool.map(read_all, range(4)):
            assert all(np.array_equal(a, b) for a, b in zip(first, other, strict=True))


def test_identity_is_that_of_the_content_not_the_place(tmp_path):
    for name, colour in (("a.svs", 0), ("b.svs", 0), ("c.svs", 90)):
        picture = with_marks(300, 300, [])
        picture[:50] = colour
        write_pyramid(tmp_path / name, picture, 0.25)
        Image.fromarray(picture).save((tmp_path / name).with_suffix(".png"))
    for suffix in (".svs", ".png"):
        a, b, c = (open_slide((tmp_path / n).with_suffix(suffix), mpp=0.25).info.identity for n in "abc")
        assert a == b != c


# --- pixel size


def test_pixel_size_and_its_source(tmp_path):
    write_pyramid(tmp_path / "a.svs", with_marks(300, 300, []), 0.2273)
    info = open_slide(tmp_path / "a.svs").info
    assert (info.mpp, info.mpp_source) == (Mpp(0.2273, 0.2273), "openslide.mpp-x")
    info = open_slide(tmp_path / "a.svs", mpp=0.5).info
    assert (info.mpp, info.mpp_source) == (Mpp(0.5, 0.5), "--mpp")


def test_pixels_need_not_be_square(tmp_path):
    info = open_slide(generic_tiff(tmp_path / "a.tif", with_marks(300, 300, []), mpp=(0.25, 0.5))).info
    assert (info.mpp.x, info.mpp.y) == pytest.approx((0.25, 0.5))


@pytest.mark.parametrize("mpp", [0, -0.25, 50, math.nan, math.inf, 0.01])
def test_absurd_mpp_from_the_user(tmp_path, mpp):
    write_pyramid(tmp_path / "a.svs", with_marks(300, 300, []), 0.25)
    with pytest.raises(MppError, match=rf"a\.svs: --mpp {mpp:g} .*0\.05 to 20 µm"):
        open_slide(tmp_path / "a.svs", mpp=mpp)


def test_missing_mpp_names_the_remedy(tmp_path):
    write_pyramid(tmp_path / "a.svs", with_marks(300, 300, []), None)
    with pytest.raises(MppError, match=r"a\.svs: .*--mpp 0\.25") as caught:
        open_slide(tmp_path / "a.svs")
    assert "\n" not in str(caught.value)
    slide = open_slide(tmp_path / "a.svs", require_mpp=False)
    assert slide.info.mpp is None
    with pytest.raises(MppError, match="--mpp"):
        slide.info.frame(0.25)


def test_print_resolutions_are_no_pixel_size(tmp_path):
    generic_tiff(tmp_path / "a.tif", with_marks(300, 300, []), dpi=72)
    with pytest.raises(MppError, match=r"352\.778 .*openslide\.mpp-x.*--mpp"):
        open_slide(tmp_path / "a.tif")
    assert open_slide(tmp_path / "a.tif", mpp=0.25).info.mpp_source == "--mpp"


# --- plain pictures


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".webp", ".bmp"])
def test_plain_pictures_need_mpp_and_open_with_it(tmp_path, suffix):
    path = tmp_path / f"field{suffix}"
    Image.fromarray(with_marks(200, 150, [])).save(path)
    with pytest.raises(MppError, match="--mpp"):
        open_slide(path)
    with open_slide(path, mpp=0.25) as slide:
        assert (slide.info.reader, slide.info.width_l0, slide.info.height_l0) == ("image", 200, 150)
        assert np.abs(slide.read(Box(0, 0, 200, 150), 200, 150).astype(int) - TISSUE).max() < 6


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "CMYK", "I;16", "1"])
def test_pixel_modes_become_rgb(tmp_path, mode):
    suffix = ".tif" if mode == "CMYK" else ".png"
    if mode == "I;16":
        picture = Image.fromarray(np.full((64, 64), 0x8000, np.uint16))
    else:
        picture = Image.new("RGB", (64, 64), (128, 128, 128)).convert(mode)
    if mode in {"RGBA", "LA"}:
        picture.putalpha(0)
    picture.save(tmp_path / f"a{suffix}")
    with open_slide(tmp_path / f"a{suffix}", mpp=0.25) as slide:
        pixels = slide.read(Box(0, 0, 64, 64), 64, 64)
    assert pixels.shape == (64, 64, 3)
    expected = 255 if mode in {"RGBA", "LA"} else 128
    assert abs(float(pixels.mean()) - expected) < 3


def test_transparent_palette_colour_is_white(tmp_path):
    picture = Image.new("P", (32, 32), 0)
    picture.putpalette([10, 10, 10] + [0] * 765)
    picture.save(tmp_path / "a.png", transparency=0)
    with open_slide(tmp_path / "a.png", mpp=0.25) as slide:
        assert (slide.read(Box(0, 0, 32, 32), 32, 32) == 255).all()


def test_numbers_are_not_colours(tmp_path):
    Image.fromarray(np.zeros((32, 32), np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(SlideOpenError, match=r"a\.tif: .*mode F"):
        open_slide(tmp_path / "a.tif", mpp=0.25)


@pytest.mark.parametrize("side", [10_100, 20_000])
def test_too_large_a_plain_picture_is_refused_with_the_remedy(tmp_path, side):
    Image.new("1", (side, side)).save(tmp_path / "a.png")
    with pytest.raises(SlideOpenError, match=r"a\.png: .*limit.*tiled TIFF"):
        open_slide(tmp_path / "a.png", mpp=0.25)


# --- faults


def test_missing_file(tmp_path):
    with pytest.raises(SlideNotFoundError, match=r"nothing\.svs"):
        open_slide(tmp_path / "nothing.svs")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("empty.svs", b""),
        ("text.svs", b"hello\n" * 50),
        ("half.png", b"\x89PNG\r\n\x1a\n"),
        ("a.csv", b"x,y\n"),
    ],
)
def test_what_is_no_slide_is_refused_on_one_line(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SlideOpenError, match=name) as caught:
        open_slide(tmp_path / name, mpp=0.25)
    assert "\n" not in str(caught.value)
    assert caught.value.remedy


def test_a_truncated_slide_is_refused(tmp_path):
    write_pyramid(tmp_path / "a.svs", with_marks(900, 900, []), 0.25)
    data = (tmp_path / "a.svs").read_bytes()
    (tmp_path / "cut.svs").write_bytes(data[: len(data) // 2])
    with pytest.raises(SlideOpenError, match=r"cut\.svs"):
        open_slide(tmp_path / "cut.svs")


def test_a_folder_is_no_slide(tmp_path):
    with pytest.raises(SlideOpenError, match="folder"):
        open_slide(tmp_path)


def test_damaged_pixels_say_where(tmp_path):
    write_pyramid(tmp_path / "a.svs", with_marks(900, 900, []), 0.25, downsamples=(1,))
    data = bytearray((tmp_path / "a.svs").read_bytes())
    for start in _jpeg_starts(data):
        data[start : start + 200] = b"\0" * 200
    (tmp_path / "b.svs").write_bytes(data)
    with open_slide(tmp_path / "b.svs") as slide, pytest.raises(SlideReadError, match=r"b\.svs: .*level 0"):
        slide.read(Box(0, 0, 256, 256), 256, 256)


def test_a_truncated_picture_says_so_when_read(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:40_000])
    with open_slide(tmp_path / "b.png", mpp=0.25) as slide, pytest.raises(SlideReadError, match=r"b\.png"):
        slide.read(Box(0, 0, 200, 200), 200, 200)


def _jpeg_starts(data: bytes) -> list[int]:
    starts, at = [], data.find(b"\xff\xd8\xff")
    while at >= 0:
        starts.append(at)
        at = data.find(b"\xff\xd8\xff", at + 1)
    return starts


# --- tiatoolbox


def test_without_the_extra_the_error_names_it(tmp_path, monkeypatch):
    (tmp_path / "a.jp2").write_bytes(b"\0\0\0\x0cjP  \r\n\x87\n")
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match=r'a\.jp2: .*pip install "mitoscan\[tiatoolbox\]"'):
        open_slide(tmp_path / "a.jp2", mpp=0.25)


def test_ngff_opens_through_tiatoolbox(tmp_path):
    pytest.importorskip("tiatoolbox", reason="the extra mitoscan[tiatoolbox] is not installed")
    path = ngff(tmp_path / "a.zarr", with_marks(900, 700, [(400.5, 300.25)]), mpp=0.263)
    with open_slide(path) as slide:
        assert (slide.info.reader, slide.info.mpp) == ("tiatoolbox", Mpp(0.263, 0.263))
        frame = slide.info.frame(0.25)
        left, top = (round(v) - 50 for v in frame.from_l0(400.5, 300.25))
        x, y = centroid(slide.read(frame.box_to_l0(left, top, 100, 100), 100, 100))
        assert frame.to_l0(left + x, top + y) == pytest.approx((400.5, 300.25), abs=0.2)
        assert (slide.read(Box(-50, -50, 40, 40), 40, 40) == 255).all()


@pytest.mark.data
def test_dicom_that_no_reader_takes_is_refused_by_name(data_dir):
    pytest.importorskip("tiatoolbox", reason="the extra mitoscan[tiatoolbox] is not installed")
    with pytest.raises(SlideOpenError, match=r"small_dicom\.dcm: neither OpenSlide nor tiatoolbox"):
        open_slide(data_dir / "slides" / "small_dicom.dcm", mpp=0.25)


def test_opening_a_slide_imports_no_tiatoolbox():
    code = (
        "import sys, mitoscan.slide.reader; sys.exit('tiatoolbox' in sys.modules or 'torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- writing


def test_a_mosaic_is_large_on_paper_and_small_in_work(tmp_path):
    colours = np.random.default_rng(0).integers(40, 220, (5, 3))
    tiles = [np.full((TILE_PX, TILE_PX, 3), c, np.uint8) for c in colours]
    write_mosaic(tmp_path / "a.svs", tiles, 40, 30, 0.25)
    with open_slide(tmp_path / "a.svs") as slide:
        assert (slide.info.width_l0, slide.info.height_l0, slide.info.mpp.x) == (40 * 256, 30 * 256, 0.25)
        for column, row in ((0, 0), (39, 29), (17, 5)):
            for size in (128, 32, 8):
                box = Box(column * 256 + 64, row * 256 + 64, 128, 128)
                middle = slide.read(box, size, size).mean(axis=(0, 1))
                assert np.abs(middle - colours[(column + row) % 5]).max() < 12


# --- real slides


@pytest.mark.data
def test_real_slides_behave_as_described(data_dir):
    slides = data_dir / "slides"
    expected = {
        "canine_region": (7215, 5412, 0.25, 3),
        "mitos14_H17_assembled": (11378, 8625, 0.2273, 3),
        "cmu-1-small-region": (2220, 2967, 0.499, 1),
    }
    for name, (width, height, mpp, levels) in expected.items():
        with open_slide(slides / f"{name}.svs") as slide:
            info = slide.info
            assert (info.width_l0, info.height_l0, len(info.levels)) == (width, height, levels)
            assert (info.mpp, info.reader) == (Mpp(mpp, mpp), "openslide")
            assert slide.read(Box(0, 0, width, height), 64, 64).std() > 5
    with pytest.raises(SlideOpenError, match=r"broken\.svs"):
        open_slide(slides / "broken.svs")
    with pytest.raises(MppError, match="--mpp"):
        open_slide(slides / "tcga-cr-7395-01a-01-ts1.svs")
    with open_slide(slides / "tcga-cr-7395-01a-01-ts1.svs", mpp=0.5) as slide:
        assert slide.read(Box(0, 0, 4443, 3567), 100, 80).std() > 5
