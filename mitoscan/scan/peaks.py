"""From a heat map to candidate positions."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


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
        is the centre of mass of the 3 × 3 cells around the maximum.
    """
    padded = np.pad(heat, 1, constant_values=-1.0)
    shifts = [(dy, dx) for dy in (0, 1, 2) for dx in (0, 1, 2)]
    height, width = heat.shape
    around = [padded[dy : dy + height, dx : dx + width] for dy, dx in shifts]
    top = heat >= floor
    for view in around:
        top &= heat >= view
    rows, columns = np.nonzero(top)
    weights = np.stack([np.maximum(view[rows, columns], 0.0) for view in around]).astype(np.float64)
    total = weights.sum(0)
    dy, dx = (np.array(offsets) - 1.0 for offsets in zip(*shifts, strict=True))
    x = columns + 0.5 + dx @ weights / total
    y = rows + 0.5 + dy @ weights / total
    return x, y, heat[rows, columns].astype(np.float64)
