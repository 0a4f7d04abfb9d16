"""The whole circle: scan, review, rescore, export the reviewed crops, train a classifier on them, use it.

    python examples/retrain.py

On three synthetic slides, with their truth in the place of a reviewer and a training of two steps: it shows
the way, the classifier that comes out is worth nothing.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

import mitoscan
from mitoscan.demo import PlantedFigure, write_demo_slide
from mitoscan.learn.run import train_from_config
from mitoscan.report.export.common import Options
from mitoscan.report.export.formats import export
from mitoscan.report.rescored import Wanted, rescore_stored, write_rescored
from mitoscan.report.stored import read_result, result_folders
from mitoscan.report.writer import write_slide

CONFIG = """
train:
  task: classifier
  name: my-classifier
  description: Trained on my own reviewed slides
  trained_on: my slides
  validated_on: my slides
  steps: 2          # a real one: about 20 passes over the crops
  batch: 8
  learning_rate: 0.001
  weight_decay: 0.02
  validate_every: 2
  folds: 3          # slides are kept together; a third of them is held out
"""


def review(result: mitoscan.SlideResult, truth: tuple[PlantedFigure, ...], path: Path) -> None:
    """Write review.csv as a reviewer would who knows the truth: what lies on nothing is no figure."""
    figures = result.findings[result.findings["is_mf"]]
    places = np.array([(figure.x, figure.y) for figure in truth])
    rows = []
    for finding in figures.itertuples():
        distance_um = np.hypot(*(places - (finding.x_l0, finding.y_l0)).T) * result.summary.mpp_x
        nearest = truth[int(distance_um.argmin())]
        hit = distance_um.min() <= 7.5
        rows.append((finding.id, nearest.label if hit else "not MF", nearest.subtype if hit else ""))
    pd.DataFrame(rows, columns=["id", "label", "subtype"]).to_csv(path, index=False)


def main() -> None:
    """Go round once."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = mitoscan.ScanConfig(hotspot_mm2=0.05)
        for seed in (1, 2, 3):
            slide = folder / f"s{seed}.svs"
            truth = write_demo_slide(slide, seed=seed, width_mm=0.4, height_mm=0.3, figures=6)
            result = mitoscan.scan_slide(slide, config)
            stored = read_result(write_slide(result, folder / "results"))
            review(result, truth, folder / "review.csv")
            rescored = rescore_stored(stored, Wanted(review=folder / "review.csv"))
            write_rescored(rescored)
            before, after = result.summary, rescored.result.summary
            print(f"{slide.stem}: {before.mf_count} figures, {after.rejected_count} rejected;", end=" ")
            print(f"AMF {before.amf_count} called, {after.amf_count} reviewed")

        results = result_folders([folder / "results"])
        export(results, "crops", folder / "data", Options(dataset="mine"))
        (folder / "config.yaml").write_text(CONFIG)
        card = train_from_config(
            "classifier", str(folder / "config.yaml"), folder / "data", folder / "my-classifier"
        )
        print(f"trained {card.name}, {card.parameters} parameters")
        again = config.model_copy(update={"classifier": str(folder / "my-classifier")})
        print(f"scanned again with {mitoscan.scan_slide(folder / 's1.svs', again).summary.classifier}")


if __name__ == "__main__":
    main()
