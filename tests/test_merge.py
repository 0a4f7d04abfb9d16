from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mitoscan.scan.merge import merge

RADIUS = 3.0
candidate = st.tuples(st.integers(0, 20), st.integers(0, 20), st.integers(0, 5))
"""On a coarse grid with few scores, so that ties and exact distances are common."""


def arrays(rows):
    return (
        (np.array(column, dtype=float) for column in zip(*rows, strict=True)) if rows else (np.empty(0),) * 3
    )


@given(st.lists(candidate, max_size=40))
@settings(deadline=None)
def test_kept_lie_apart_and_dropped_lie_by_a_better_one(rows):
    x, y, p = arrays(rows)
    kept = merge(x, y, p, RADIUS)
    distance = np.hypot(x[:, None] - x[kept], y[:, None] - y[kept])
    between = distance[kept] + np.where(np.eye(len(kept)), np.inf, 0)
    assert (between > RADIUS).all()
    for i in set(range(len(rows))) - set(kept.tolist()):
        assert ((distance[i] <= RADIUS) & (p[kept] >= p[i])).any()


@given(st.lists(candidate, max_size=40), st.randoms(use_true_random=False))
@settings(deadline=None)
def test_the_order_of_the_input_has_no_effect(rows, random):
    shuffled = random.sample(rows, len(rows))
    chosen = [[ordered[i] for i in merge(*arrays(ordered), RADIUS)] for ordered in (rows, shuffled)]
    assert chosen[0] == chosen[1]


def test_the_best_first_and_a_chain_is_not_one_clump():
    x, p = np.array([0.0, 2.0, 4.0, 6.0]), np.array([0.5, 0.9, 0.4, 0.8])
    assert merge(x, np.zeros(4), p, RADIUS).tolist() == [1, 3]


@pytest.mark.parametrize("side", [20_000, 300, 20, 0])
def test_many_candidates_take_well_under_a_second_however_dense(side):
    rng = np.random.default_rng(0)
    x, y, p = rng.random((3, 20_000))
    start = time.perf_counter()
    merge(x * side, y * side, p, 30.0)
    assert time.perf_counter() - start < 1


def test_arrays_of_different_length_are_refused():
    with pytest.raises(ValueError, match="2, 2, 1"):
        merge(np.zeros(2), np.zeros(2), np.zeros(1), RADIUS)
