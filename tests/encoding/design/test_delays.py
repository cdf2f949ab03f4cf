"""Delays, masks and lagged products against explicit loops."""

import math

import numpy as np
import pytest

from vidbrain.encoding.design.delays import delay, lagged_blocks, lagged_gain, stretches, usable


def test_delay_equals_explicit_loops():
    x = np.arange(15, dtype=np.float32).reshape(5, 3) + 1
    got = delay(x, (0, 2, 7)).reshape(5, 3, 3)
    for t in range(5):
        for position, lag in enumerate((0, 2, 7)):
            expected = x[t - lag] if t >= lag else np.zeros(3)
            np.testing.assert_array_equal(got[t, position], expected)


def test_usable_equals_explicit_loops():
    rng = np.random.default_rng(0)
    valid = rng.random(40) > 0.2
    for n_trs in (40, 46):
        got = usable(valid, (1, 3), n_trs)
        for t in range(n_trs):
            expected = all(0 <= t - lag < 40 and valid[t - lag] for lag in (1, 3))
            assert got[t] == expected


def test_stretches_of_consecutive_numbers():
    first, stop = stretches(np.array([2, 3, 4, 7, 9, 10]))
    assert (first.tolist(), stop.tolist()) == ([2, 7, 9], [5, 8, 11])
    first, stop = stretches(np.zeros(0, np.int64))
    assert len(first) == len(stop) == 0


def test_operations_are_counted():
    """Delays 1 to 5: a row costs 25 delayed and 9 lagged; the ends cost 2 * 4 + 4 * (3 + 2 + 1)."""
    assert lagged_gain((1, 2, 3, 4, 5)) == (16 / 25, 32 / 16)
    assert lagged_gain((4, 2, 5, 3, 1)) == (16 / 25, 32 / 16)
    # Differences 0 (3 pairs), 2, 4 and 6: nothing is shared but the diagonal.
    assert lagged_gain((1, 3, 7)) == (2 / 9, 2 * 6 / 2)
    assert lagged_gain((3,)) == (0, math.inf)


@pytest.mark.parametrize("delays", [(0,), (3,), (1, 2, 3, 4, 5), (5, 0, 2), (1, 3, 7), (0, 40)])
@pytest.mark.parametrize("p", [1, 4])
def test_lagged_blocks_equal_products_of_delayed_features(delays, p):
    """Stretches longer and shorter than the delays, next to each other and at the very end."""
    rng = np.random.default_rng(p)
    features = (rng.standard_normal((200, p)) + 3).astype(np.float32)
    rows = np.flatnonzero(rng.random(200) < 0.7)
    rows = np.union1d(rows[rows >= max(delays)], [199, *range(100, 130)])
    X = np.stack([features[rows - lag].astype(np.float64) for lag in delays])
    seen = set()
    for i, j, block in lagged_blocks(features, *stretches(rows), delays):
        expected = X[i].T @ X[j]
        assert np.abs(block - expected).max() < 1e-12 * np.abs(expected).max()
        assert delays[i] <= delays[j]
        seen |= {(i, j), (j, i)}
    assert seen == {(i, j) for i in range(len(delays)) for j in range(len(delays))}
