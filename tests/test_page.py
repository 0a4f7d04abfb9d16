"""The page of a slide in a real browser: what a reader sees, counts, decides and saves."""

from __future__ import annotations

import csv
import io
import re
from dataclasses import replace

import browser
import numpy as np
import pytest
from geojson_check import faults, load
from PIL import Image
from results import findings, info, result

from mitoscan.report.page import page_bytes
from mitoscan.report.review import read_review
from mitoscan.scan import gallery
from mitoscan.scan.qc import Quality
from mitoscan.scan.score import wilson_interval

HOSTILE = '</script><img src=x onerror="document.title=1"><script>document.title=2</script>{{ 7*7 }}'


@pytest.fixture(scope="module")
def chromium():
    with browser.chromium() as running:
        yield running


@pytest.fixture
def context(chromium):
    made = chromium.new_context(viewport={"width": 1440, "height": 900}, accept_downloads=True)
    yield made
    made.close()


class Opened:
    """A page in a tab, with what it complained of and what it asked for."""

    def __init__(self, context, path):
        self.tab = context.new_page()
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.tab.on("console", lambda m: self.complaints.append(m.text))
        self.tab.on("pageerror", lambda e: self.complaints.append(str(e)))
        self.tab.on("request", lambda r: self.requests.append(r.url))
        self.tab.goto(path.as_uri())

    def text(self, selector: str) -> str:
        return self.tab.locator(selector).inner_text()

    def choose(self, selector: str, value: str) -> None:
        self.tab.select_option(selector, value)

    def shown(self) -> list[str]:
        """What the cards say, in order."""
        return self.tab.locator(".card").evaluate_all("cards => cards.map(c => c.getAttribute('aria-label'))")

    def saved(self, button: str) -> str:
        with self.tab.expect_download() as download:
            self.tab.click(button)
        return download.value.path().read_text(encoding="utf-8")


@pytest.fixture
def open_page(context, tmp_path):
    def open_(whole, name="report.html"):
        path = tmp_path / name
        path.write_bytes(page_bytes(whole))
        return Opened(context, path)

    return open_


def jpeg(seed: int) -> bytes:
    """A picture that compresses like one of tissue."""
    coarse = np.random.default_rng(seed).integers(120, 240, (64, 64, 3), np.uint8)
    return gallery.jpeg(np.asarray(Image.fromarray(coarse).resize((256, 256))))


def with_crops(whole):
    data = jpeg(0)
    return replace(whole, crops=dict.fromkeys(gallery.choose(whole.findings)["id"], data))


@pytest.fixture
def whole():
    return with_crops(result(findings(90, subtypes=True)))


def figures_of(whole):
    return whole.findings[whole.findings["is_mf"]]


def p_of(label: str) -> tuple[float, float]:
    """p_atypical and p_mitosis of a card's words."""
    atypical, mitosis = re.findall(r"p (?:atypical|mitosis) (\d\.\d+)", label)
    return float(atypical), float(mitosis)


def test_it_opens_from_disk_without_a_complaint_or_the_network(open_page, whole):
    page = open_page(whole)
    page.tab.wait_for_function("[...document.images].every(i => i.hidden || i.naturalWidth > 0)")
    assert len(page.shown()) == whole.summary.mf_count
    assert page.complaints == []
    assert [url for url in page.requests if not url.startswith("data:")] == [page.tab.url]


def test_the_top_says_the_numbers_in_words(open_page, whole):
    page, summary = open_page(whole), whole.summary
    low, high = (f"{100 * end:.1f}" for end in wilson_interval(summary.amf_count, summary.mf_count))
    assert (
        f"{summary.amf_count} of {summary.mf_count} mitotic figures atypical: {summary.amf_rate:.1%}".replace(
            "%", " %"
        )
        in (text := page.text(".lead"))
    )
    assert f"95 % interval {low}–{high} %" in text
    assert f"Corrected for the classifier's errors: {summary.amf_rate_corrected * 100:.1f} %" in text
    numbers = page.text(".numbers")
    assert f"in the densest {summary.hotspot_mm2:.3g} mm²" in numbers
    assert f"{summary.tissue_mm2:.3g} mm²" in numbers
    about = page.text(".about")
    for said in ("fake-detector", "fake-classifier", "numpy", "Research use only"):
        assert said in about


def test_flags_are_put_in_words(open_page):
    flagged = result(findings(9, p_mitosis=0.9), info(width=900, height=700))
    missing = Quality(not_assessed={"pen_mm2": "no view", "fold_mm2": "no view"})
    inked = (*flagged.summary.qc_flags, "pen marks: 0.3 mm²")
    summary = flagged.summary.model_copy(update={"qc_flags": inked})
    text = open_page(replace(flagged, summary=summary, quality=missing)).text(".flags")
    assert "Pen marks: 0.3 mm²: tissue below" in text
    assert "Not assessed: pen marks and folds (no view)" in text
    assert "Few mitotic figures" in text
    assert "cut to it" in text


@pytest.mark.parametrize(
    ("order", "key"),
    [
        ("p_atypical", lambda p: -p[0]),
        ("-p_atypical", lambda p: p[0]),
        ("p_mitosis", lambda p: -p[1]),
        ("uncertainty", lambda p: round(abs(p[0] - 0.5), 3)),
    ],
)
def test_cards_can_be_sorted(open_page, whole, order, key):
    page = open_page(whole)
    page.choose("#sort", order)
    keys = [key(p_of(label)) for label in page.shown()]
    assert len(keys) == whole.summary.mf_count
    assert keys == sorted(keys)


def test_cards_can_be_filtered_and_the_filters_agree_with_the_table(open_page, whole):
    page, figures = open_page(whole), figures_of(whole)
    for label in ("AMF", "NMF"):
        page.choose("#filter-label", label)
        assert len(page.shown()) == (figures["label"] == label).sum()
        assert all(said.startswith(label) for said in page.shown())
    page.tab.check("#filter-hotspot")
    assert len(page.shown()) == ((figures["label"] == "NMF") & figures["in_hotspot"]).sum()
    page.tab.uncheck("#filter-hotspot")
    page.choose("#filter-label", "below")
    below = whole.findings[~whole.findings["is_mf"] & whole.findings["p_atypical"].notna()]
    assert len(page.shown()) == len(below) > 0


@pytest.mark.parametrize("threshold", [0.0, 0.2, 0.5, 0.7312, 1.0])
def test_the_slider_recounts_as_python_does(open_page, whole, threshold):
    page, p = open_page(whole), figures_of(whole)["p_atypical"]
    page.tab.locator("#threshold").evaluate(
        "(slider, value) => { slider.value = value; slider.dispatchEvent(new Event('input')); }", threshold
    )
    amf, mf = int((p >= threshold).sum()), len(p)
    low, high = wilson_interval(amf, mf)
    said = re.fullmatch(
        r"(\d+) of (\d+) mitotic figures atypical: ([\d.]+) %, 95 % interval ([\d.]+)–([\d.]+) %\.( This.*)?",
        page.text("#threshold-counts"),
    )
    assert said is not None
    assert (int(said[1]), int(said[2])) == (amf, mf)
    assert [float(said[i]) for i in (3, 4, 5)] == pytest.approx(
        [100 * amf / mf, 100 * low, 100 * high], abs=0.051
    )
    assert bool(said[6]) == (threshold == 0.5)
    page.choose("#filter-label", "moved")
    moved = (p >= threshold) != (p >= 0.5)
    assert len(page.shown()) == moved.sum()


def test_map_and_gallery_lead_to_each_other(open_page, whole):
    page = open_page(whole)
    page.tab.locator(".card").nth(7).click()
    expected = page.text("#detail-facts")
    page.tab.locator(".card").nth(3).click()
    assert page.text("#detail-facts") != expected
    # Zoom to a figure by the button; it is then in the middle of the map, and a click there selects it.
    page.tab.locator(".card").nth(7).click()
    page.tab.click("#zoom-figure")
    page.tab.locator(".card").nth(3).click()
    page.tab.locator(".card").nth(7).click()
    page.tab.click("#zoom-figure")
    page.tab.wait_for_timeout(100)
    page.tab.evaluate("document.querySelector('#gallery').scrollTop = 0")
    page.tab.locator("#detail [data-do=next]").click()
    box = page.tab.locator("#map").bounding_box()
    page.tab.locator(".card").nth(7).click()
    page.tab.click("#zoom-figure")
    page.tab.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    assert page.text("#detail-facts") == expected
    assert page.tab.locator(".card").nth(7).get_attribute("aria-selected") == "true"
    assert page.complaints == []


def test_layers_can_be_switched(open_page, whole):
    page = open_page(whole)

    def painted():
        page.tab.wait_for_timeout(60)
        return page.tab.locator("#map").evaluate("c => c.toDataURL()")

    seen = {painted()}
    for layer in ("density", "figures", "tissue", "hotspot"):
        page.tab.locator(f"#layer-{layer}").click()
        seen.add(painted())
    assert len(seen) == 5
    assert "per mm²" in page.text("#density-key")


def test_a_review_by_keys_is_kept_exported_and_undone(open_page, whole):
    page = open_page(whole)
    ids = figures_of(whole).sort_values("p_atypical", ascending=False, kind="stable")["id"].tolist()
    table = whole.findings.set_index("id")
    page.tab.fill("#reviewer", 'Dr. "A", B')
    page.tab.locator("#gallery").focus()
    for key in ("Enter", "n", "x", "f", "j", "6", "a", "u"):
        page.tab.keyboard.press(key)
    # 1 confirmed, 2 NMF, 3 not a mitosis, 4 flagged only and passed over, 5 multipolar, 6 AMF and undone.
    expected = {ids[0]: table.loc[ids[0], "label"], ids[1]: "NMF", ids[2]: "not MF", ids[4]: "AMF"}
    assert page.text("#progress-text").startswith("4 of ")

    page.tab.reload()
    assert page.text("#progress-text").startswith("4 of ")
    assert page.tab.input_value("#reviewer") == 'Dr. "A", B'
    rows = {row["id"]: row for row in csv.DictReader(io.StringIO(page.saved("#export-csv")))}
    assert {name: row["label"] for name, row in rows.items()} == expected | {ids[3]: ""}
    assert {name for name, row in rows.items() if row["flag"] == "yes"} == {ids[3]}
    assert list(next(iter(rows.values()))) == [
        "id", "x_l0", "y_l0", "label", "subtype", "flag", "reviewer", "reviewed_utc",
    ]  # fmt: skip
    assert rows[ids[4]]["subtype"] == "multipolar"
    assert rows[ids[2]]["subtype"] == ""
    for name, row in rows.items():
        assert (float(row["x_l0"]), float(row["y_l0"])) == tuple(table.loc[name, ["x_l0", "y_l0"]])
        assert row["reviewer"] == 'Dr. "A", B'
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", row["reviewed_utc"])
    assert "1 flagged without a decision" in page.text("#export-note")

    labels = [expected.get(name, table.loc[name, "label"]) for name in ids]
    amf, mf = labels.count("AMF"), labels.count("AMF") + labels.count("NMF")
    assert f"{amf} of {mf} mitotic figures atypical" in page.text("#reviewed-numbers")
    assert page.complaints == []


def test_a_reviewed_geojson_is_that_of_the_slide_with_new_labels(open_page, whole, tmp_path):
    from mitoscan.report.geojson import feature_collection

    page = open_page(whole)
    page.tab.locator("#gallery").focus()
    page.tab.keyboard.press("x")
    page.tab.keyboard.press("5")
    path = tmp_path / "reviewed.geojson"
    path.write_text(page.saved("#export-geojson"), encoding="utf-8")
    collection = load(path)
    assert faults(collection) == []
    made = {feature["id"]: feature for feature in collection["features"]}
    reviewed = [f for f in made.values() if f["properties"]["metadata"].get("reviewed") == "yes"]
    assert {f["properties"]["classification"]["name"] for f in reviewed} == {
        "not MF",
        "AMF: bipolar_asymmetric",
    }
    judged = {j.finding: (j.label, j.subtype) for j in read_review(path, whole).judgements}
    assert set(judged.values()) == {("", ""), ("AMF", "bipolar_asymmetric")}
    assert set(judged) == {feature["id"] for feature in reviewed}
    for feature in feature_collection(whole)["features"]:
        if feature["properties"]["objectType"] == "detection" and feature["id"] not in {
            f["id"] for f in reviewed
        }:
            np.testing.assert_allclose(
                made[feature["id"]].pop("geometry")["coordinates"],
                feature.pop("geometry")["coordinates"],
                atol=0.011,
            )
            assert made[feature["id"]] == feature


def test_a_review_of_the_page_becomes_numbers_and_a_page_again(open_page, whole, tmp_path):
    """Page → review.csv → rescore → page, which shows the reviewer's labels at every threshold."""
    from mitoscan.report.rescored import Wanted, rescore_stored, write_rescored
    from mitoscan.report.stored import read_result
    from mitoscan.report.writer import write_slide

    stored = read_result(write_slide(whole, tmp_path / "out"))
    page = open_page(whole)
    page.tab.locator("#gallery").focus()
    for key in "xna":
        page.tab.keyboard.press(key)
    review = tmp_path / "review.csv"
    drawn = "\n,4000,3000,AMF,multipolar,,,\n"
    review.write_text(page.saved("#export-csv").strip() + drawn, encoding="utf-8")
    said = page.text("#reviewed-numbers")
    rescored = rescore_stored(stored, Wanted(review=review))
    summary = rescored.result.summary
    assert (summary.rejected_count, summary.added_count) == (1, 1)
    amf, mf = map(int, re.search(r"(\d+) of (\d+) mitotic", said).groups())
    assert (summary.amf_count, summary.mf_count) == (amf + 1, mf + 1)

    again = Opened(page.tab.context, write_rescored(rescored) / "report.html")
    assert "1 rejected, 1 added" in again.text(".top")
    assert len(again.shown()) == mf + 1
    again.tab.locator("#threshold").evaluate(
        "slider => { slider.value = 1; slider.dispatchEvent(new Event('input')); }"
    )
    assert again.text("#threshold-counts").startswith(f"2 of {mf + 1} ")  # AMF by the reviewer
    assert again.complaints == []


def test_reviewed_figures_can_be_filtered_and_forgotten(open_page, whole):
    page = open_page(whole)
    page.choose("#filter-review", "open")
    page.tab.locator("#gallery").focus()
    for _ in range(3):
        page.tab.keyboard.press("c")  # each falls out of the list, the next one is selected
    assert len(page.shown()) == whole.summary.mf_count - 3
    page.choose("#filter-review", "done")
    assert len(page.shown()) == 3
    page.choose("#filter-review", "changed")
    assert page.shown() == []
    page.tab.once("dialog", lambda dialog: dialog.accept())
    page.tab.click("#clear-review")
    assert page.text("#progress-text").startswith("0 of ")


def test_reviews_of_other_slides_stay_apart(open_page, whole):
    page = open_page(whole)
    page.tab.click("[data-do=confirm]")
    other = replace(whole, info=info(identity="another slide"))
    assert open_page(other, "other.html").text("#progress-text").startswith("0 of ")
    assert open_page(whole, "moved.html").text("#progress-text").startswith("1 of ")


def test_keys_can_be_switched_off_and_do_nothing_in_fields(open_page, whole):
    page = open_page(whole)
    page.tab.locator("#reviewer").press_sequentially("anna x")
    assert page.text("#progress-text").startswith("0 of ")
    page.tab.uncheck("#keys")
    page.tab.locator("#gallery").focus()
    page.tab.keyboard.press("a")
    assert page.text("#progress-text").startswith("0 of ")


def test_hostile_names_stay_text(open_page, whole):
    slide = info(slide_id=HOSTILE, vendor=HOSTILE, mpp_source=HOSTILE)
    summary = whole.summary.model_copy(
        update={"slide_id": HOSTILE, "path": HOSTILE, "qc_flags": (HOSTILE,), "detector": HOSTILE}
    )
    table = whole.findings.assign(subtype=np.where(whole.findings["is_mf"], HOSTILE, ""))
    page = open_page(replace(whole, info=slide, summary=summary, findings=table))
    page.tab.click("[data-do=confirm]")
    page.tab.wait_for_timeout(100)
    assert page.text("h1") == HOSTILE
    assert HOSTILE in page.text(".flags")
    assert HOSTILE in page.text("#detail-called")
    assert page.tab.title() == f"{HOSTILE} · mitoscan"
    assert page.tab.locator("img[src=x]").count() == 0
    assert page.complaints == []


def test_a_script_that_got_in_would_not_run(open_page, whole):
    """The policy stands behind the escaping."""
    page = open_page(whole)
    page.tab.evaluate("document.body.append(document.createRange().createContextualFragment("
                      "'<script>document.title = 1</script>'))")  # fmt: skip
    assert page.tab.title() == "example · mitoscan"
    assert any("Content Security Policy" in said for said in page.complaints)


@pytest.mark.parametrize("n", [0, 1])
def test_a_slide_with_next_to_nothing_has_a_page_too(open_page, n):
    page = open_page(with_crops(result(findings(n, p_mitosis=0.9))))
    assert len(page.shown()) == n
    assert page.complaints == []
    if n == 0:
        assert "no AMF rate" in page.text(".lead")


def test_five_thousand_figures_stay_below_15_mb_and_the_page_says_what_is_left_out(open_page):
    table = findings(5000, 80_000, 60_000, subtypes=True, p_mitosis=np.linspace(0.5, 1, 5000))
    whole = result(table, info(80_000, 60_000), thumbnail=np.full((1200, 1600, 3), 235, np.uint8))
    noise = {seed: jpeg(seed) for seed in range(8)}
    chosen = gallery.choose(whole.findings)["id"]
    page = open_page(replace(whole, crops={name: noise[i % 8] for i, name in enumerate(chosen)}))
    size = len(page.tab.content())
    assert 5e6 < size < 15e6
    said = re.search(r"([\d,]+) of 5,000 figures have a picture", page.text(".gallery-pane"))
    assert said is not None
    assert int(said[1].replace(",", "")) > 500
    assert len(page.shown()) < 200  # the rest is made while scrolling
    page.tab.locator("#gallery").focus()
    page.tab.keyboard.press("End")
    assert len(page.shown()) == 5000
    assert page.complaints == []


def test_it_prints(open_page, whole):
    page = open_page(whole)
    pdf = page.tab.pdf(format="A4")
    assert pdf.startswith(b"%PDF")
    assert 2 <= len(re.findall(rb"/Type\s*/Page\b", pdf)) <= 6
    page.tab.emulate_media(media="print")
    assert not page.tab.locator("#detail").is_visible()
    assert page.tab.locator(".card").first.is_visible()


@pytest.mark.parametrize("width", [380, 800, 1440])
def test_nothing_sticks_out_at_any_width(open_page, whole, width):
    page = open_page(whole)
    page.tab.set_viewport_size({"width": width, "height": 800})
    assert page.tab.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast(chromium, tmp_path, whole, scheme):
    """WCAG 2: 4.5 to 1 for text."""
    context = chromium.new_context(color_scheme=scheme)
    (tmp_path / "report.html").write_bytes(page_bytes(whole))
    page = Opened(context, tmp_path / "report.html")
    variables = ("--ink", "--quiet", "--paper", "--panel", "--accent", "--warn-paper")
    colours = page.tab.evaluate(
        "names => names.map(n => getComputedStyle(document.documentElement).getPropertyValue(n).trim())",
        variables,
    )
    context.close()
    found = dict(zip(variables, map(luminance, colours), strict=True))
    for text in ("--ink", "--quiet", "--accent"):
        for ground in ("--paper", "--panel", "--warn-paper"):
            high, low = sorted((found[text], found[ground]), reverse=True)
            assert (high + 0.05) / (low + 0.05) >= 4.5, (text, ground)


def luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
