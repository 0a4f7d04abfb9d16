"""The shipped models at their cards' operating points: classifier on the test sets, detector by slide.

    python benchmarks/first_weights.py [--data ../shared/data]

Measured, never tuned on: the classifier's threshold comes from held-out slides of the training part. The
detector's slides are those that chose its threshold.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from mitoscan import load_classifier, load_detector
from mitoscan.learn.data import load_amibr, load_atnorm
from mitoscan.learn.detector import detect_all
from mitoscan.learn.detector_metrics import pooled
from mitoscan.learn.fields import load_fields
from mitoscan.learn.metrics import Detections, binary_metrics


def print_detector(folder: Path) -> None:
    """Print a row a validation slide."""
    detector = load_detector(device="cpu")
    slides = ("H05", "H10", "H17")
    parts = {name: pooled(detect_all(detector.heat, load_fields(folder, slides={name}))) for name in slides}
    parts["pooled"] = Detections.pool(list(parts.values()))
    print("\n| slide | AP | F1 at the card's threshold | best F1 of this slide |\n|---|---|---|---|")
    for name, found in parts.items():
        f1, best = found.at(detector.threshold)[2], found.at(found.best_threshold())[2]
        print(f"| {name} | {found.average_precision():.3f} | {f1:.3f} | {best:.3f} |")


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    data = parser.parse_args().data
    folder = data / "amf"
    classifier = load_classifier(device="cpu")
    sets = {"AMi-Br test": load_amibr(folder, "test"), "AtNorM-Br": load_atnorm(folder, "AtNorM-Br")}
    print("| test set | crops (AMF) | balanced accuracy | AUROC | sensitivity | specificity |")
    print("|---|---|---|---|---|---|")
    for name, crops in sets.items():
        m = binary_metrics(classifier.predict(crops.images), crops.atypical, classifier.threshold)
        figures = (m.balanced_accuracy, m.auroc, m.sensitivity, m.specificity)
        print(
            f"| {name} | {len(crops)} ({crops.atypical.sum()}) | "
            + " | ".join(f"{v:.4f}" for v in figures)
            + " |"
        )
    print_detector(data / "detection")


if __name__ == "__main__":
    main()
