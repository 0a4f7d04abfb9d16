"""MIDOG's two formats: the Grand-Challenge JSON of a slide's points, and the COCO table of a set's labels.

Both as the challenge's own files and evaluation have them (MIDOG 2021, 2022 and 2025).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from typing import Any

from mitoscan.scan.findings import BY_REVIEWER
from mitoscan.scan.result import SlideResult

FIGURE, NON_FIGURE = "mitotic figure", "non-mitotic figure"
BOX_UM = 12.5
"""Side of a label's box: MIDOG's are 50 px at 0.25 µm."""


def points_bytes(result: SlideResult) -> bytes:
    """Give a slide's "Multiple points": all findings, in mm from the slide's level-0 corner.

    ``probability`` is the detector's score; what a reviewer added has none.
    """
    points = []
    for row in result.findings.to_dict("records"):
        point: dict[str, Any] = {
            "name": FIGURE if row["is_mf"] else NON_FIGURE,
            "point": [round(row["x_um"] / 1000, 5), round(row["y_um"] / 1000, 5), 0],
        }
        if math.isfinite(row["p_mitosis"]):
            point["probability"] = row["p_mitosis"]
        points.append(point)
    content = {
        "name": "Points of interest",
        "type": "Multiple points",
        "points": points,
        "version": {"major": 1, "minor": 0},
    }
    return (json.dumps(content, allow_nan=False, ensure_ascii=False) + "\n").encode()


def coco_bytes(results: Iterable[SlideResult]) -> bytes:
    """Give the labels of a set of slides: mitotic figures, and as hard negatives what a reviewer rejected.

    ``bbox`` is [x1, y1, x2, y2] in whole level-0 px, as in MIDOG and unlike COCO. Findings below the
    operating point that nobody looked at are no labels, and left out.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, result in enumerate(results, start=1):
        info, mpp = result.info, result.info.known_mpp()
        size = {"width": info.width_l0, "height": info.height_l0}
        images.append({"id": number, "file_name": info.path.name, **size})
        half_x, half_y = BOX_UM / 2 / mpp.x, BOX_UM / 2 / mpp.y
        for row in result.findings.to_dict("records"):
            rejected = not row["is_mf"] and row.get("label_source", "") == BY_REVIEWER
            if not (row["is_mf"] or rejected):
                continue
            x, y = row["x_l0"], row["y_l0"]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": 1 if row["is_mf"] else 2,
                    "bbox": [round(v) for v in (x - half_x, y - half_y, x + half_x, y + half_y)],
                    "finding": row["id"],
                }
            )
    content = {
        "info": {"description": "Labels exported by mitoscan; bbox is [x1, y1, x2, y2]"},
        "licenses": [],
        "images": images,
        "categories": [{"id": 1, "name": "mitotic figure"}, {"id": 2, "name": "hard negative"}],
        "annotations": annotations,
    }
    return (json.dumps(content, allow_nan=False, ensure_ascii=False) + "\n").encode()
