"""Merge the detector's candidates: of those that lie within the merging radius, the best one stays."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree

FloatArray = npt.NDArray[np.float64]


def merge(x: FloatArray, y: FloatArray, p: FloatArray, radius: float) -> npt.NDArray[np.intp]:
    """Greedy non-maximum suppression by distance.

    The best candidate stays and drops all others at a distance of ``radius`` or less, then the best of the
    rest, and so on. Equal scores are ordered by y, then x, so that the order of the input has no effect.
    Only candidates that stay ask the tree for their neighbours: more than a handful of them cannot lie around
    one point, so dense clumps cost no more than their size.

    Parameters
    ----------
    x, y
        Positions, shape (N,), in any frame with square pixels.
    p
        Scores, shape (N,).
    radius
        Merging distance in the unit of ``x`` and ``y``.

    Returns
    -------
    numpy.ndarray
        Indices of the candidates that stay, shape (K,), best first.
    """
    if not len(x) == len(y) == len(p):
        raise ValueError(f"x, y and p differ in length: {len(x)}, {len(y)}, {len(p)}")
    if len(p) == 0:
        return np.empty(0, dtype=np.intp)
    points = np.column_stack([x, y])
    tree = cKDTree(points)
    dropped = np.zeros(len(p), dtype=bool)
    kept = []
    for index in np.lexsort((x, y, -np.asarray(p))):
        if not dropped[index]:
            kept.append(index)
            dropped[tree.query_ball_point(points[index], radius)] = True
    return np.array(kept, dtype=np.intp)
