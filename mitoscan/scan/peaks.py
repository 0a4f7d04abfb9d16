"""From a heat map to candidate positions."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_LEAST = 1e-6


def find_peaks(
    heat: npt.NDArray[np.float32], floor: float
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Local maxima of a heat map, with their positions refined below the cell.

    Parameters
    ----------
    heat
        float32 (H, W), probabilities.
    floor
        Lower maxima are left out.

    Returns
    -------
    x, y, p
        float64 (K,) each: position in cells (the first cell's centre is at 0.5) and height. The position
        is the vertex of a parabola through the logarithms along each axis: exact for the Gaussians that
        the network learns to draw.
    """
    padded = np.pad(heat, 1, mode="edge")
    height, width = heat.shape
    top = heat >= floor
    for dy in (0, 1, 2):
        for dx in (0, 1, 2):
            top &= heat >= padded[dy : dy + height, dx : dx + width]
    rows, columns = np.nonzero(top)
    logs = np.log(np.maximum(padded, _LEAST).astype(np.float64))
    r, c = rows + 1, columns + 1
    x = columns + 0.5 + _vertex(logs[r, c - 1], logs[r, c], logs[r, c + 1])
    y = rows + 0.5 + _vertex(logs[r - 1, c], logs[r, c], logs[r + 1, c])
    return x, y, heat[rows, columns].astype(np.float64)


def _vertex(
    before: npt.NDArray[np.float64], at: npt.NDArray[np.float64], after: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Offset of the vertex of the parabola through three neighbours, whose middle one is the highest."""
    bend = np.minimum(before - 2 * at + after, -_LEAST)
    return np.clip(0.5 * (before - after) / bend, -0.5, 0.5)
