from __future__ import annotations

import os

import pytest

from mitoscan.errors import SlideNotFoundError
from mitoscan.slide.discover import find_slides


@pytest.fixture
def folder(tmp_path):
    for name in (
        "b.svs",
        "a.SVS",
        "sub/c.ndpi",
        "sub/deep/d.tiff",
        "thumb.png",
        "notes.txt",
        "._a.svs",
        ".h/e.svs",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    return tmp_path


def names(paths, folder):
    return [p.relative_to(folder).as_posix() for p in paths]


ALL = ["a.SVS", "b.svs", "sub/c.ndpi", "sub/deep/d.tiff"]


def test_folders_are_searched_for_slides_only(folder):
    assert names(find_slides([str(folder)]), folder) == ALL


def test_files_are_taken_whatever_their_suffix(folder):
    assert names(find_slides([str(folder / "thumb.png")]), folder) == ["thumb.png"]


def test_globs(folder):
    assert names(find_slides([f"{folder}/*.svs"]), folder) == ["b.svs"]
    assert names(find_slides([f"{folder}/**/*.tiff"]), folder) == ["sub/deep/d.tiff"]
    assert names(find_slides([f"{folder}/*.png"]), folder) == ["thumb.png"]
    assert names(find_slides([f"{folder}/su[ab]"]), folder) == ["sub/c.ndpi", "sub/deep/d.tiff"]


def test_a_name_with_brackets_is_a_name(folder):
    (folder / "x[1].svs").write_bytes(b"x")
    assert names(find_slides([str(folder / "x[1].svs")]), folder) == ["x[1].svs"]


def test_each_slide_once(folder):
    os.symlink(folder / "b.svs", folder / "sub" / "same.svs")
    found = find_slides([str(folder), str(folder / "b.svs"), f"{folder}/*.svs"])
    assert len(found) == len(ALL)


def test_links_are_followed_and_cannot_loop(folder, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "z.svs").write_bytes(b"z")
    os.symlink(folder, folder / "sub" / "up")
    os.symlink(elsewhere, folder / "more")
    assert names(find_slides([str(folder)]), folder) == sorted([*ALL, "more/z.svs"])


def test_a_dicom_series_is_one_slide(tmp_path):
    for name, series, size in (
        ("1.dcm", b"1.2.3.4", 10),
        ("2.dcm", b"1.2.3.4", 500),
        ("3.dcm", b"1.2.9.9", 10),
    ):
        uid = b"\x20\x00\x0e\x00UI" + len(series).to_bytes(2, "little") + series
        (tmp_path / name).write_bytes(b"\0" * 128 + b"DICM" + uid + b"\0" * size)
    assert names(find_slides([str(tmp_path)]), tmp_path) == ["2.dcm", "3.dcm"]


def test_a_folder_format_is_one_slide(tmp_path):
    (tmp_path / "a.zarr" / "0").mkdir(parents=True)
    (tmp_path / "a.zarr" / "0" / "x.tif").write_bytes(b"")
    assert names(find_slides([str(tmp_path)]), tmp_path) == ["a.zarr"]
    assert names(find_slides([str(tmp_path / "a.zarr")]), tmp_path) == ["a.zarr"]


@pytest.mark.parametrize("entry", ["none.svs", "*.mrxs", "empty"])
def test_nothing_found_is_an_error_that_names_it(tmp_path, entry):
    (tmp_path / "empty").mkdir()
    with pytest.raises(SlideNotFoundError) as caught:
        find_slides([str(tmp_path / entry)])
    assert entry in str(caught.value)
    assert caught.value.remedy


def test_no_input_at_all():
    with pytest.raises(SlideNotFoundError, match="no slides given"):
        find_slides([])


def test_one_bad_entry_among_good_ones_is_not_hidden(folder):
    with pytest.raises(SlideNotFoundError, match=r"none\.svs"):
        find_slides([str(folder), str(folder / "none.svs")])
