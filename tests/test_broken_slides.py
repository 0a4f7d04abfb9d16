"""Slides that are broken in every way, one by one and in one batch beside a good one."""

from __future__ import annotations

import csv
import os
import struct

import batches
import fakes
import numpy as np
import pytest

from mitoscan.cohort.manifest import jobs_of
from mitoscan.config import ScanConfig
from mitoscan.errors import SlideError, SlideNotFoundError
from mitoscan.scan.pipeline import scan_slide
from mitoscan.slide.discover import find_slides
from mitoscan.slide.reader import open_slide
from mitoscan.slide.write import write_pyramid

CONFIG = ScanConfig(tissue_mask=False, readers=1)
WIDTH_TAG, HEIGHT_TAG, LONG = 256, 257, 4


def scan(path):
    return scan_slide(path, CONFIG, models=fakes.models())


def good(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    write_pyramid(path, batches.PICTURE, 0.25, downsamples=[1])
    return path


def claims(data: bytes, side: int) -> bytes:
    """The first directory of a little-endian TIFF says another size, as 32-bit numbers."""
    changed = bytearray(data)
    (at,) = struct.unpack_from("<I", data, 4)
    (entries,) = struct.unpack_from("<H", data, at)
    for n in range(entries):
        entry = at + 2 + 12 * n
        (tag,) = struct.unpack_from("<H", data, entry)
        if tag in {WIDTH_TAG, HEIGHT_TAG}:
            struct.pack_into("<HHII", changed, entry, tag, LONG, 1, side)
    return bytes(changed)


def breakages(data: bytes) -> dict[str, bytes]:
    """Name → contents; none can give a result."""
    return {
        "cut-10": data[: len(data) // 10],
        "cut-50": data[: len(data) // 2],
        "cut-90": data[: len(data) * 9 // 10],
        "header": data[:8],
        "empty": b"",
        "zeros": bytes(len(data)),
        "text": b"this is no slide",
        "huge": claims(data, 4_000_000_000),
        "large": claims(data, 100_000),
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return good(tmp_path_factory.mktemp("whole") / "good.svs").read_bytes()


@pytest.mark.parametrize("kind", [
    "cut-10", "cut-50", "cut-90", "header", "empty", "zeros", "text", "huge", "large",
])  # fmt: skip
def test_a_broken_file_is_an_error_that_names_it(tmp_path, whole, kind):
    path = tmp_path / f"{kind}.svs"
    path.write_bytes(breakages(whole)[kind])
    with pytest.raises(SlideError) as caught:
        scan(path)
    assert str(path) in str(caught.value)
    assert caught.value.remedy


@pytest.mark.parametrize("seed", range(12))
def test_flipped_bytes_give_an_error_or_a_result(tmp_path, whole, seed):
    rng = np.random.default_rng(seed)
    data = np.frombuffer(whole, np.uint8).copy()
    where = rng.integers(16, len(data), 40 if seed % 2 else 3)
    data[where] ^= rng.integers(1, 256, len(where), dtype=np.uint8)
    path = tmp_path / "flipped.svs"
    path.write_bytes(data.tobytes())
    try:
        result = scan(path)
    except SlideError as error:
        assert error.remedy  # noqa: PT017  (either outcome is right)
    else:
        assert np.isfinite(result.findings["p_mitosis"]).all()


@pytest.mark.parametrize(
    "name", ["ünï çødé 組織.svs", "two  spaces.svs", "-rf.svs", "a'b\"c.svs", "x[1].svs"]
)
def test_odd_names_are_names(tmp_path, name):
    path = good(tmp_path / name)
    assert find_slides([str(tmp_path)]) == [path]
    assert len(scan(path).findings) == len(batches.MARKS)


def test_folders_links_and_loops(tmp_path):
    slide = good(tmp_path / "in" / "good.svs")
    (tmp_path / "in" / "folder.svs").mkdir()
    (tmp_path / "in" / "loop.svs").symlink_to("loop.svs")
    (tmp_path / "in" / "again").symlink_to(tmp_path / "in")
    (tmp_path / "in" / "gone.svs").symlink_to("nowhere.svs")
    found = find_slides([str(tmp_path / "in")])
    assert slide in found
    for path in (tmp_path / "in" / name for name in ("folder.svs", "loop.svs", "gone.svs")):
        with pytest.raises(SlideError) as caught:
            scan(path)
        assert caught.value.remedy


@pytest.mark.parametrize("name", ["x" * 5000 + ".svs", "a\0b.svs"])
def test_names_that_no_file_can_have(tmp_path, name):
    with pytest.raises(SlideNotFoundError):
        open_slide(tmp_path / name)
    with pytest.raises(SlideNotFoundError):
        find_slides([str(tmp_path / name)])


def test_no_permission_to_read(tmp_path):
    path = good(tmp_path / "secret.svs")
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user reads everything; run as an ordinary one")
    with pytest.raises(SlideError, match=r"(?i)permission|cannot be read"):
        scan(path)


def test_one_batch_of_them_all(tmp_path, whole):
    folder, out = tmp_path / "slides", tmp_path / "out"
    path = good(folder / "good one ü.svs")
    for kind, content in breakages(whole).items():
        (folder / f"{kind}.svs").write_bytes(content)
    (folder / "loop.svs").symlink_to("loop.svs")
    vanishing = good(folder / "vanishes.svs")
    jobs = jobs_of(find_slides([str(folder)]), CONFIG, out)
    vanishing.unlink()
    batch = batches.run_jobs(jobs, out)
    assert batch.exit_code == 3
    with (out / "slides.csv").open(newline="", encoding="utf-8") as file:
        assert [row["slide_id"] for row in csv.DictReader(file)] == [path.stem]
    with (out / "failures.csv").open(newline="", encoding="utf-8") as file:
        failures = {row["slide_id"]: row for row in csv.DictReader(file)}
    assert set(failures) == {job.slide_id for job in jobs} - {path.stem}
    assert {*breakages(whole), "vanishes"} <= set(failures)
    assert all(row["message"] and row["remedy"] for row in failures.values())
    assert not any("report this" in row["remedy"] for row in failures.values()), failures
