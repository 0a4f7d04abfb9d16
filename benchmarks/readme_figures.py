"""Bring the README up to date with the shipped models: its table of accuracy and its pictures.

    python benchmarks/readme_figures.py

Run it after the weights, their cards or the demo slide have changed. The table comes from the model cards,
the picture from a scan of the synthetic slide; nothing in either is typed by hand.
"""

from __future__ import annotations

import io
import shutil
import tempfile
from pathlib import Path

from PIL import Image

from mitoscan import ScanConfig, scan_slide
from mitoscan.demo import write_demo_slide
from mitoscan.models.card import Counts, Metric, ModelCard, load_card
from mitoscan.models.zoo import shipped_models
from mitoscan.report.figures import overview
from mitoscan.report.page import page_bytes
from mitoscan.scan.result import SlideResult
from mitoscan.scan.score import wilson_interval

REPO = Path(__file__).parents[1]
BEGIN, END = "<!-- accuracy: begin -->", "<!-- accuracy: end -->"
WIDTH_PX = 1000


def accuracy_table() -> str:
    """Give the cards' held-out figures as a Markdown table."""
    cards = [load_card(folder) for folder in shipped_models().values()]
    lines = ["| model | measure | value | measured on |", "|---|---|---|---|"]
    for card in sorted(cards, key=lambda card: (card.task != "detector", card.name)):
        lines += [
            f"| {card.name} | {metric.name} | {_value(metric, card.validation)} | {_where(metric, card)} |"
            for metric in card.metrics
        ]
    return "\n".join(lines)


def _value(metric: Metric, counts: Counts | None) -> str:
    """Write a figure; shares of counted crops with the counts and their Wilson interval."""
    shares = {}
    if counts is not None:
        shares = {
            "sensitivity": (counts.tp, counts.tp + counts.fn),
            "specificity": (counts.tn, counts.tn + counts.fp),
        }
    if metric.name not in shares:
        return f"{metric.value:.2f}"
    k, n = shares[metric.name]
    low, high = wilson_interval(k, n)
    return f"{k / n:.2f} ({low:.2f} to {high:.2f}; {k} of {n})"


def _where(metric: Metric, card: ModelCard) -> str:
    unit = "mitotic figures" if card.task == "detector" else "crops"
    return f"{metric.dataset}; {metric.n} {unit}"


def with_table(readme: str) -> str:
    """Put the table of today's cards into a README."""
    before, rest = readme.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n{accuracy_table()}\n{END}{after}"


def scan_synthetic() -> SlideResult:
    """Scan the synthetic slide as ``mitoscan demo`` does."""
    with tempfile.TemporaryDirectory() as folder:
        slide = Path(folder) / "synthetic.svs"
        write_demo_slide(slide)
        return scan_slide(slide, ScanConfig(device="cpu", hotspot_mm2=0.25, subtypes=True))


def picture_of_page(result: SlideResult) -> Image.Image | None:
    """Open the slide's page in a Chromium of the system; None, and a word about it, where there is none."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        print("no Chromium found: docs/report.png stays as it is")
        return None
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as folder, sync_playwright() as driver:
        page = Path(folder) / "report.html"
        page.write_bytes(page_bytes(result))
        chromium = driver.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        tab = chromium.new_page(viewport={"width": 1440, "height": 900}, color_scheme="light")
        tab.goto(page.as_uri())
        tab.wait_for_function("[...document.images].every(i => i.hidden || i.naturalWidth > 0)")
        below = tab.locator("#threshold-section").bounding_box() or {"y": 1200}
        clip = {"x": 0, "y": 0, "width": 1440, "height": below["y"]}
        shot = tab.screenshot(full_page=True, clip=clip)
        chromium.close()
    return Image.open(io.BytesIO(shot)).convert("RGB")


def write_picture(picture: Image.Image, path: Path) -> None:
    """Save a picture small enough for a repository."""
    height = round(picture.height * WIDTH_PX / picture.width)
    small = picture.resize((WIDTH_PX, height), Image.Resampling.LANCZOS)
    # This method keeps the few px of the markers' colours; the default would spend all 256 on the tissue.
    small.quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(path, optimize=True)


def main() -> None:
    """Rewrite README.md and its pictures in docs/."""
    readme = REPO / "README.md"
    readme.write_text(with_table(readme.read_text(encoding="utf-8")), encoding="utf-8")
    docs = REPO / "docs"
    docs.mkdir(exist_ok=True)
    result = scan_synthetic()
    for name, picture in {"overview.png": overview(result), "report.png": picture_of_page(result)}.items():
        if picture is not None:
            write_picture(picture, docs / name)
            print(f"{docs / name}, {(docs / name).stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
