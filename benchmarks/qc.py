"""The QC flags on real material: false alarms on what is good, detection of what is made bad on purpose.

    python benchmarks/qc.py [--data ../shared/data]

Focus: blocks of fields and crops, by slide, against the limit in the detector's card. Likeness: crops about
labelled figures and look-alikes, by slide, against the limit in the classifier's card. The training part of
AMi-Br made the references; the false alarms on it, cross-fitted, are in the cards. Blur sigmas are px at 0.25
mpp. Prints Markdown tables, and first what the check of focus costs.
"""

from __future__ import annotations

import argparse
import io
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage

from mitoscan import load_classifier, load_detector
from mitoscan.demo import draw_field
from mitoscan.learn.data import load_amibr, read_table
from mitoscan.learn.fields import load_fields
from mitoscan.scan.focus import BLOCK_PX, blocks_of, sharpness

Pictures = np.ndarray
FIELDS_A_SLIDE, CROPS_A_SLIDE, RIM_PX = 4, 20, 8
SIDE = BLOCK_PX + 2 * RIM_PX


def blurred(sigma: float) -> Callable[[Pictures], Pictures]:
    """Blur as a lens out of focus does, roughly."""
    return lambda p: ndimage.gaussian_filter(p.astype(np.float32), (0, sigma, sigma, 0)).round().astype("u1")


def jpeg(quality: int) -> Callable[[Pictures], Pictures]:
    """Compress and decompress."""

    def one(picture: np.ndarray) -> np.ndarray:
        data = io.BytesIO()
        Image.fromarray(picture).save(data, "JPEG", quality=quality)
        return np.asarray(Image.open(data))

    return lambda pictures: np.stack([one(p) for p in pictures])


def hue_turned(degrees: float) -> Callable[[Pictures], Pictures]:
    """Turn the hue of every pixel."""

    def one(picture: np.ndarray) -> np.ndarray:
        hsv = np.array(Image.fromarray(picture).convert("HSV"))
        hsv[..., 0] = (hsv[..., 0].astype(int) + round(degrees / 360 * 256)) % 256
        return np.asarray(Image.fromarray(hsv, "HSV").convert("RGB"))

    return lambda pictures: np.stack([one(p) for p in pictures])


CHANGES: dict[str, Callable[[Pictures], Pictures]] = {
    "as it is": lambda p: p,
    "blur 0.5": blurred(0.5),
    "blur 1": blurred(1),
    "blur 2": blurred(2),
    "blur 1, then JPEG 80": lambda p: jpeg(80)(blurred(1)(p)),
    "JPEG 50": jpeg(50),
    "hue +20°": hue_turned(20),
    "hue −20°": hue_turned(-20),
    "hue +40°": hue_turned(40),
    "hue −40°": hue_turned(-40),
    "hue +90°": hue_turned(90),
    "hue 180°": hue_turned(180),
}


def slides_of_fields(folder: Path, *, labelled: bool) -> Iterator[tuple[str, Pictures, Pictures]]:
    """Give each slide's name, blocks (with a rim) and crops."""
    table = read_table(folder / "fields.csv", {"slide", "dataset"})
    for name in table[table["dataset"].str.endswith("_unlabelled") != labelled]["slide"].unique():
        fields = load_fields(folder, [str(name)], labelled=labelled)
        shares = (np.arange(3) + 0.5) / 3
        blocks = [
            f.pixels.cut(np.array([x * f.pixels.width, y * f.pixels.height]), SIDE)
            for f in fields[:: max(1, len(fields) // FIELDS_A_SLIDE)]
            for x in shares
            for y in shares
        ]
        centres = [(f, xy) for f in fields for xy in (*f.figures, *f.hard_negatives)]
        chosen = centres[:: max(1, len(centres) // CROPS_A_SLIDE)]
        crops = [f.pixels.cut(xy, BLOCK_PX) for f, xy in chosen]
        yield str(name), np.stack(blocks), np.array(crops)


def slides_of_amibr(folder: Path, part: str) -> Iterator[tuple[str, Pictures, Pictures]]:
    """Give each slide's name and crops, which are its blocks too."""
    crops = load_amibr(folder, part)
    for name in np.unique(crops.slide):
        own = crops.images[crops.slide == name][:CROPS_A_SLIDE]
        yield str(name), np.pad(own, ((0, 0), (RIM_PX, RIM_PX), (RIM_PX, RIM_PX), (0, 0)), "reflect"), own


class Check:
    """The shipped models' own limits."""

    def __init__(self) -> None:
        self.detector, self.classifier = load_detector(device="cpu"), load_classifier(device="cpu")
        focus, likeness = self.detector.card.reference, self.classifier.card.reference
        if not (focus and focus.focus and likeness and likeness.likeness and self.classifier.likeness):
            raise SystemExit("the shipped cards have no references")
        self.focus, self.likeness = focus.focus, likeness.likeness
        self.reference = self.classifier.likeness

    def out_of_focus(self, blocks: Pictures) -> bool | None:
        """Whether the slide of these blocks is flagged; None: too few to say."""
        inner = blocks[:, RIM_PX:-RIM_PX, RIM_PX:-RIM_PX]
        values = np.array([sharpness(block) for block in inner])
        values = values[~np.isnan(values)]
        return (
            bool((values < self.focus.limit).mean() > self.focus.max_share)
            if len(values) >= self.likeness.min_crops
            else None
        )

    def unlike(self, crops: Pictures) -> bool | None:
        """Whether the slide of these crops is flagged; None: too few to say."""
        if len(crops) < self.likeness.min_crops:
            return None
        embeddings = np.concatenate(
            [self.classifier.look(crops[i : i + 32])[1] for i in range(0, len(crops), 32)]
        )
        return self.reference.distance(embeddings.astype(np.float64)) > self.likeness.limit


def print_flags(data: Path, check: Check) -> None:
    """Print how many slides of each set are flagged, change by change."""
    sets = {
        "fields (MITOS-ATYPIA-14, ICPR 2012)": slides_of_fields(data / "detection", labelled=True),
        "MoNuSeg tiles": slides_of_fields(data / "detection", labelled=False),
        "AMi-Br, test part": slides_of_amibr(data / "amf", "test"),
    }
    focus: dict[tuple[str, str], list[bool]] = {}
    unlike: dict[tuple[str, str], list[bool]] = {}
    for where, slides in sets.items():
        for _, blocks, crops in slides:
            for change, make in CHANGES.items():
                answers = (
                    (focus, check.out_of_focus(make(blocks))),
                    (unlike, check.unlike(make(crops)) if len(crops) else None),
                )
                for table, answer in answers:
                    if answer is not None:
                        table.setdefault((where, change), []).append(answer)
    for title, table in (("out of focus", focus), ("unlike the training data", unlike)):
        names = [name for name in sets if (name, "as it is") in table]
        print(f"\nSlides flagged as {title}, of those with enough tissue or crops:\n")
        print("| change | " + " | ".join(names) + " |\n|---|" + "---|" * len(names))
        for change in CHANGES:
            cells = [f"{sum(table[name, change])} of {len(table[name, change])}" for name in names]
            print(f"| {change} | {' | '.join(cells)} |", flush=True)


def print_cost(check: Check) -> None:
    """Print the time of the checks beside that of the networks, alternately, median of ten."""
    picture = draw_field(0, 1024, 1024, 3, glass=False).image
    crops = np.stack([picture[:128, i : i + 128] for i in range(0, 832, 26)])
    jobs: dict[str, Callable[[], object]] = {
        "detector on a tile": lambda: check.detector.heat(picture[None]),
        "focus of the tile": lambda: [sharpness(b) for b in blocks_of(picture, 96)],
    }
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(11):
        for name, job in jobs.items():
            began = time.perf_counter()
            job()
            seconds[name].append(time.perf_counter() - began)
    embeddings = check.classifier.look(crops)[1].astype(np.float64)
    began = time.perf_counter()
    check.reference.distance(embeddings)
    print("\n| what | ms |\n|---|---|")
    for name, values in seconds.items():
        print(f"| {name} | {1000 * np.median(values[1:]):.1f} |")
    print(f"| distance of a slide, once | {1000 * (time.perf_counter() - began):.1f} |")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    options = parser.parse_args()
    check = Check()
    print_cost(check)
    print_flags(options.data, check)


if __name__ == "__main__":
    main()
