"""Scan one slide, then use the two models on pictures of your own.

    python examples/one_slide.py [SLIDE]

Without a slide, a synthetic one is drawn first.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

import mitoscan
from mitoscan.demo import draw_field, write_demo_slide


def scan(slide: Path) -> None:
    """From a slide to its numbers and its table of findings."""
    result = mitoscan.scan_slide(slide, mitoscan.ScanConfig(subtypes=True, hotspot_mm2=0.25))
    summary = result.summary
    print(f"{summary.slide_id}: {summary.mf_count} mitotic figures in {summary.tissue_mm2:.2f} mm² of tissue")
    print(f"{summary.mf_per_mm2:.1f} per mm², {summary.mf_per_mm2_low:.1f} to {summary.mf_per_mm2_high:.1f}")
    if summary.amf_rate is not None:
        low, high = summary.amf_rate_low, summary.amf_rate_high
        print(f"AMF rate {summary.amf_rate:.0%}, {low:.0%} to {high:.0%}")
    figures = result.findings[result.findings["is_mf"]]
    print(
        figures[["x_l0", "y_l0", "p_mitosis", "p_atypical", "label", "subtype"]].head().to_string(index=False)
    )


def crops_around(image: np.ndarray, points: pd.DataFrame, side: int) -> np.ndarray:
    """Cut uint8 (N, side, side, 3) centred on ``x``, ``y`` of ``points``; white beyond the picture."""
    half = side // 2
    padded = np.pad(image, ((half, half), (half, half), (0, 0)), constant_values=255)
    corners = points[["x", "y"]].round().astype(int).to_numpy()
    return np.stack([padded[y : y + side, x : x + side] for x, y in corners])


def detect_and_classify(image: np.ndarray, mpp: float) -> None:
    """Both stages on a picture in memory; it is at the classifier's 0.25 µm per pixel."""
    detector, classifier = mitoscan.load_detector(), mitoscan.load_classifier()
    found = detector.detect(image, mpp)
    figures = found[found["is_mf"]]
    print(f"{len(figures)} of {len(found)} findings reach p_mitosis {detector.threshold:.2f}")
    if figures.empty:
        return
    crops = crops_around(image, figures, classifier.card.input_px)
    p_atypical = classifier.predict(crops)
    subtypes = [classifier.card.subtypes[i] for i in classifier.predict_subtypes(crops).argmax(axis=1)]
    for p, subtype in zip(p_atypical, subtypes, strict=True):
        print(f"  p_atypical {p:.2f} ({'AMF' if p >= classifier.threshold else 'NMF'}), {subtype}")


def main() -> None:
    """Do both."""
    with tempfile.TemporaryDirectory() as folder:
        slide = Path(folder) / "synthetic.svs"
        if len(sys.argv) > 1:
            slide = Path(sys.argv[1])
        else:
            write_demo_slide(slide, width_mm=0.8, height_mm=0.6, figures=12)
        scan(slide)
    field = draw_field(seed=1, width_px=1200, height_px=900, figures=5, glass=False)
    detect_and_classify(field.image, field.mpp)


if __name__ == "__main__":
    main()
