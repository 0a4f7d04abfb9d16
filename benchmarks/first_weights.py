"""The shipped classifier on the published test sets, at its card's operating point.

    python benchmarks/first_weights.py [--data ../shared/data]

Measured, never tuned on: the card's threshold comes from held-out slides of the training part.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from mitoscan import load_classifier
from mitoscan.learn.data import load_amibr, read_image
from mitoscan.learn.metrics import binary_metrics


def atnorm(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Crops of AtNorM-Br and which of them are atypical."""
    paths = sorted(p for kind in ("Atypical", "Normal") for p in (folder / kind).glob("*.[jp][pn]g"))
    return np.stack([read_image(p) for p in paths]), np.array([p.parent.name == "Atypical" for p in paths])


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    folder = parser.parse_args().data / "amf"
    classifier = load_classifier(device="cpu")
    test = load_amibr(folder, "test")
    sets = {"AMi-Br test": (test.images, test.atypical), "AtNorM-Br": atnorm(folder / "AtNorM-Br")}
    print("| test set | crops (AMF) | balanced accuracy | AUROC | sensitivity | specificity |")
    print("|---|---|---|---|---|---|")
    for name, (images, atypical) in sets.items():
        m = binary_metrics(classifier.predict(images), atypical, classifier.threshold)
        figures = (m.balanced_accuracy, m.auroc, m.sensitivity, m.specificity)
        print(
            f"| {name} | {len(images)} ({atypical.sum()}) | " + " | ".join(f"{v:.4f}" for v in figures) + " |"
        )


if __name__ == "__main__":
    main()
