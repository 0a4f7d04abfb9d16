"""How far from a tile's border the detector's answer still depends on what lies beyond it.

    python benchmarks/borders.py [--detector NAME_OR_FOLDER] [--data ../shared/data]

Runs the detector on fields and on squares cut from them, and compares the heat maps by distance from the
square's border: the card's margin must lie where the difference no longer moves a figure over the threshold.
Prints a Markdown table; uses the validation slides' fields, else the synthetic slide.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from mitoscan.demo import draw_field
from mitoscan.learn.fields import load_fields
from mitoscan.scan.detect import load_detector

SQUARE, STRIDE = 512, 8
DISTANCES = (0, 16, 32, 48, 64, 96, 128)


def pictures(data: Path) -> list[np.ndarray]:
    """Pictures of at least 1024 px a side, uint8."""
    if (data / "detection").is_dir():
        return [field.image for field in load_fields(data / "detection", slides={"H10", "H17"})]
    return [draw_field(seed, 1280, 1280).image for seed in range(8)]


def differences(heat, picture: np.ndarray) -> np.ndarray:
    """Absolute difference of p on a square, cut out or not: (cells, cells)."""
    whole = picture[:1024, :1024]
    top = (1024 - SQUARE) // 2
    alone = heat(whole[None, top : top + SQUARE, top : top + SQUARE])[0]
    first = top // STRIDE
    inside = heat(whole[None])[0][first : first + len(alone), first : first + len(alone)]
    return np.abs(alone - inside)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--detector")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    options = parser.parse_args()
    detector = load_detector(options.detector, "cpu")
    all_differences = np.stack([differences(detector.heat, p) for p in pictures(options.data)])
    cells = np.arange(SQUARE // STRIDE)
    from_border = np.minimum(cells, cells[::-1]) * STRIDE
    distance = np.minimum(from_border[:, None], from_border)
    print(f"{detector.card.name}, margin {detector.card.margin_px} px, {len(all_differences)} pictures\n")
    print("| distance from the border, px | largest difference of p | 99.9th percentile |\n|---|---|---|")
    for low, high in zip(DISTANCES, (*DISTANCES[1:], SQUARE), strict=True):
        part = all_differences[:, (distance >= low) & (distance < high)]
        print(f"| {low} to {high} | {part.max():.4f} | {np.percentile(part, 99.9):.4f} |")


if __name__ == "__main__":
    main()
