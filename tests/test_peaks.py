from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mitoscan.scan.peaks import find_peaks


def gaussian(height: int, width: int, x: float, y: float, sigma: float = 1.25) -> np.ndarray:
    rows, columns = np.mgrid[0:height, 0:width] + 0.5
    return np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * sigma**2)).astype(np.float32)


@settings(deadline=None, max_examples=60)
@given(st.floats(2, 28), st.floats(2, 18))
def test_a_gaussian_is_found_where_it_is(x, y):
    found_x, found_y, p = find_peaks(gaussian(20, 30, x, y), 0.5)
    best = np.argmax(p)
    assert found_x[best] == pytest.approx(x, abs=0.02)
    assert found_y[best] == pytest.approx(y, abs=0.02)


def test_peaks_on_the_border_count():
    for x, y in ((0.5, 0.5), (29.5, 19.5), (15.0, 0.4)):
        found_x, found_y, _ = find_peaks(gaussian(20, 30, x, y), 0.5)
        assert len(found_x) >= 1
        assert abs(found_x[0] - x) < 1
        assert abs(found_y[0] - y) < 1


def test_the_floor_is_kept_and_an_empty_map_gives_nothing():
    heat = np.maximum(gaussian(20, 30, 5.3, 5.2), 0.3 * gaussian(20, 30, 20.3, 12.4))
    assert len(find_peaks(heat, 0.5)[0]) == 1
    assert len(find_peaks(heat, 0.2)[0]) == 2
    assert len(find_peaks(np.zeros((8, 8), np.float32), 0.1)[0]) == 0
