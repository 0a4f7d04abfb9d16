"""The pictures of the figures: cut at the right places, limited in number, and back from their file."""

from __future__ import annotations

import io
import zipfile
from dataclasses import replace

import fakes
import numpy as np
import pytest
import slides
from PIL import Image
from results import findings, result

from mitoscan.config import ScanConfig
from mitoscan.errors import DataError
from mitoscan.report.pictures import pictures_bytes, read_pictures
from mitoscan.scan import gallery
from mitoscan.scan.pipeline import scan_slide
from mitoscan.slide.write import write_pyramid

MARKS = [(300.0, 400.0), (900.0, 700.0), (1190.0, 30.0)]


@pytest.mark.parametrize("mpp", [0.25, 0.5])
def test_a_scan_pictures_each_figure_in_its_middle(tmp_path, mpp):
    spots = [(x * 0.25 / mpp, y * 0.25 / mpp) for x, y in MARKS]
    width, height = round(1300 * 0.25 / mpp), round(1000 * 0.25 / mpp)
    write_pyramid(tmp_path / "s.svs", slides.with_marks(width, height, spots, mpp=(mpp, mpp)), mpp)
    whole = scan_slide(tmp_path / "s.svs", ScanConfig(), models=fakes.models())
    assert set(whole.crops) == set(whole.findings["id"][whole.findings["is_mf"]])
    for data in whole.crops.values():
        crop = np.asarray(Image.open(io.BytesIO(data)))
        assert crop.shape == (256, 256, 3)
        assert slides.centroid(crop[64:-64, 64:-64]) == pytest.approx((64, 64), abs=3)
    last = whole.findings.set_index("id")["y_l0"].idxmin()
    beyond = np.asarray(Image.open(io.BytesIO(whole.crops[last])))[:80]
    assert beyond.mean() > 250  # the mark at the slide's upper edge: white above it


def test_figures_come_first_then_what_a_reviewer_may_miss(monkeypatch):
    table = findings(300)
    chosen = gallery.choose(table)
    figures = int(table["is_mf"].sum())
    assert chosen["is_mf"][:figures].all()
    assert (chosen["p_atypical"].notna()).all()
    assert set(chosen["id"]) == set(table["id"][table["p_atypical"].notna()])
    monkeypatch.setattr(gallery, "MAX_FIGURES", 10)
    monkeypatch.setattr(gallery, "MAX_BELOW", 5)
    chosen = gallery.choose(table)
    assert list(chosen["is_mf"]) == [True] * 10 + [False] * 5
    assert chosen["p_mitosis"].iloc[9] == table["p_mitosis"].nlargest(10).iloc[-1]


def test_pictures_come_back_from_their_file(tmp_path):
    thumbnail = slides.with_marks(400, 300, [(100, 100)])
    crops = {name: gallery.jpeg(np.full((256, 256, 3), 200, np.uint8)) for name in findings(5)["id"]}
    whole = replace(result(thumbnail=thumbnail), crops=crops)
    path = tmp_path / "pictures.zip"
    path.write_bytes(pictures_bytes(whole))
    read, back = read_pictures(path)
    assert back == crops
    assert list(back) == list(crops)
    assert np.abs(read.astype(int) - thumbnail).mean() < 3
    assert pictures_bytes(whole) == path.read_bytes()


def test_a_file_that_is_no_such_archive_is_refused_by_name(tmp_path):
    path = tmp_path / "pictures.zip"
    with pytest.raises(DataError, match=r"pictures\.zip"):
        read_pictures(path)
    path.write_bytes(b"no zip")
    with pytest.raises(DataError):
        read_pictures(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("../../slide.jpg", b"x")
    with pytest.raises(DataError, match=r"slide\.jpg"):
        read_pictures(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("slide.jpg", b"no jpeg")
    with pytest.raises(DataError):
        read_pictures(path)
