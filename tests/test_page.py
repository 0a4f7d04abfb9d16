"""The page of a slide in a real browser: what a reader sees, counts, decides and saves."""

from __future__ import annotations

import io
from dataclasses import replace

import browser
import numpy as np
import pytest
from PIL import Image
from results import findings, result

from mitoscan.report.page import page_bytes


@pytest.fixture(scope="module")
def chromium():
    with browser.chromium() as running:
        yield running


def picture(seed: int, side: int = 256) -> bytes:
    """A JPEG as large as one of tissue."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(120, 240, (side // 4, side // 4, 3), np.uint8))
    stream = io.BytesIO()
    coarse.resize((side, side)).save(stream, format="JPEG", quality=85)
    return stream.getvalue()


def with_crops(whole, number=None):
    from mitoscan.scan.gallery import choose

    data = picture(0)
    return replace(whole, crops=dict.fromkeys(choose(whole.findings)["id"][:number], data))


class Opened:
    """A page in a tab of its own, with what it complained of and asked the network for."""

    def __init__(self, context, path):
        self.tab = context.new_page()
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.tab.on("console", lambda m: self.complaints.append(m.text))
        self.tab.on("pageerror", lambda e: self.complaints.append(str(e)))
        self.tab.on("request", lambda r: self.requests.append(r.url))
        self.tab.goto(path.as_uri())


@pytest.fixture
def open_page(chromium, tmp_path):
    context = chromium.new_context(viewport={"width": 1440, "height": 900})

    def open_(whole, name="report.html"):
        path = tmp_path / name
        path.write_bytes(page_bytes(whole))
        return Opened(context, path)

    yield open_
    context.close()


def test_it_opens_from_disk_without_a_complaint_or_the_network(open_page):
    whole = with_crops(result(findings(80, subtypes=True)))
    page = open_page(whole)
    assert page.tab.locator(".card").count() == whole.summary.mf_count
    assert page.complaints == []
    assert {url.split(":")[0] for url in page.requests} <= {"file", "data"}
    assert len([url for url in page.requests if url.startswith("file")]) == 1
