"""The page of many slides: what it lists, links, sorts and finds, in a real browser."""

from __future__ import annotations

import browser
import pytest
from results import findings, info, result

from mitoscan.cohort.gather import merge
from mitoscan.report.cohort_page import write_cohort_page
from mitoscan.report.writer import write_slide

HOSTILE = '<img src=x onerror="document.title=1">'
COUNTS = {"b 2": 200, "b 10": 120, "a #1?": 300, HOSTILE: 60, "few": 8, "none": 0}


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    folder = tmp_path_factory.mktemp("out")
    for seed, (name, count) in enumerate(COUNTS.items()):
        write_slide(result(findings(count, seed=seed), info(slide_id=name)), folder)
    (folder / "failures.csv").write_text(
        "path,error,message,remedy,exit_code\n"
        f'"/data/{HOSTILE.replace(chr(34), chr(34) * 2)}.svs",SlideReadError,broken,Copy it again.,14\n'
    )
    write_cohort_page(folder)
    return folder


@pytest.fixture(scope="module")
def page(out):
    with browser.chromium() as chromium:
        tab = chromium.new_page(viewport={"width": 1300, "height": 900})
        complaints: list[str] = []
        tab.on("console", lambda m: complaints.append(m.text))
        tab.on("pageerror", lambda e: complaints.append(str(e)))
        tab.on("request", lambda r: complaints.append(r.url) if r.url.startswith("http") else None)
        tab.goto((out / "report.html").as_uri())
        yield tab
        assert complaints == []


def names(page) -> list[str]:
    return page.locator("tbody th:visible").all_inner_texts()


def column(page, header: str) -> list[str]:
    at = page.locator("thead th").all_inner_texts().index(header) + 1
    cells = page.locator(f"tbody tr td:nth-child({at})")
    return cells.evaluate_all("cells => cells.map(c => c.dataset.value)")


def test_all_slides_are_there_and_names_stay_text(page):
    assert sorted(names(page)) == sorted(COUNTS)
    assert page.locator("img").count() == 0
    assert page.title() == "Slides · mitoscan"


def test_failures_and_flagged_slides_come_first(page):
    look = page.locator(".look li").all_inner_texts()
    assert look[0].startswith(f"Failed: /data/{HOSTILE}.svs broken")
    assert {said.split(":")[0] for said in look[1:]} >= {"few", "none"}


def test_each_slide_links_to_its_page(page, out):
    links = page.locator("tbody th a").evaluate_all("links => links.map(a => a.href)")
    assert len(links) == len(COUNTS)
    page.locator("tbody th a", has_text="a #1?").click()
    assert page.inner_text("h1") == "a #1?"
    page.goto((out / "report.html").as_uri())


def test_the_table_can_be_sorted_by_number_and_by_name(page):
    page.click("thead button >> text=MF per mm²")
    values = [float(value) for value in column(page, "MF per mm², 95 % interval ▼".removesuffix(" ▼"))]
    assert values == sorted(values, reverse=True)
    page.click("thead button >> text=AMF rate")
    page.click("thead button >> text=AMF rate")
    values = column(page, "AMF rate, 95 % interval")
    assert values[-1] == ""  # without figures there is no rate, whichever way it is sorted
    assert [float(v) for v in values[:-1]] == sorted(float(v) for v in values[:-1])
    page.click("thead button >> text=slide")
    assert names(page).index("b 2") < names(page).index("b 10")


def test_slides_can_be_found(page):
    page.fill("#find", "b ")
    assert sorted(names(page)) == ["b 10", "b 2"]
    page.fill("#find", "")
    page.check("#only-flagged")
    assert {"few", "none"} <= set(names(page)) < set(COUNTS)
    page.uncheck("#only-flagged")
    assert "6 shown" in page.inner_text("#count")


def test_a_damaged_slide_is_listed_and_does_not_stop_the_page(tmp_path):
    folder = write_slide(result(), tmp_path)
    (folder / "summary.json").write_text("{")
    write_cohort_page(tmp_path)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "0 slides done, 1 failed" in text
    assert "not a slide summary" in text


def test_a_slide_without_a_page_has_no_link(tmp_path):
    (write_slide(result(), tmp_path) / "report.html").unlink()
    write_cohort_page(tmp_path)
    assert "example/report.html" not in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_joining_the_parts_of_a_cohort_writes_its_page(tmp_path):
    write_slide(result(), tmp_path)
    merge(tmp_path)
    assert "1 slide done, 0 failed" in (tmp_path / "report.html").read_text(encoding="utf-8")
