"""Delays of features within runs: which rows they leave usable, and Gram matrices of all delays from lagged products.

A delayed design holds the same numbers once a delay. Hence its Gram matrix needs no delayed design: over a stretch of
consecutive rows, the block of two delays depends on their difference alone, but for a few rows at the two ends.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from vidbrain.encoding.ridge.gram import CHUNK_ROWS, F32, F64
from vidbrain.errors import ConfigError

Indices = NDArray[np.int64]


def check_delays(delays: Sequence[int]) -> None:
    """Refuse delays that are empty, negative or repeated.

    Raises
    ------
    ConfigError
        If they are.
    """
    if not delays or min(delays) < 0 or len(set(delays)) != len(delays):
        raise ConfigError(f"delays must be different TRs of at least 0, not {tuple(delays)}", hint="--delays 1 2 3 4 5")


def delay(features: F32, delays: Sequence[int]) -> F32:
    """Put delayed copies side by side (finite impulse response model).

    Parameters
    ----------
    features : (n_trs, n_features)
        One run: delays never reach into another.
    delays
        In TRs, not negative.

    Returns
    -------
    (n_trs, len(delays) * n_features) float32
        Delay by delay. What would come from before the run is 0; `usable` marks those rows.
    """
    n_trs, n_features = features.shape
    out = np.zeros((n_trs, len(delays), n_features), np.float32)
    for position, lag in enumerate(delays):
        if lag < n_trs:
            out[lag:, position] = features[: n_trs - lag]
    return out.reshape(n_trs, -1)


def usable(valid: NDArray[np.bool_], delays: Sequence[int], n_trs: int) -> NDArray[np.bool_]:
    """Mark the TRs of BOLD whose features are valid at every delay.

    Parameters
    ----------
    valid : (n_feature_trs,) bool
        Whether there was video during the TR.
    delays
        In TRs.
    n_trs
        TRs of BOLD; those beyond the features can be used only if every delay reaches back into them.

    Returns
    -------
    (n_trs,) bool
    """
    padded = np.zeros(n_trs, bool)
    padded[: len(valid)] = valid[:n_trs]
    use = np.ones(n_trs, bool)
    for lag in delays:
        shifted = np.zeros(n_trs, bool)
        shifted[lag:] = padded[: max(n_trs - lag, 0)]
        use &= shifted
    return use


def stretches(places: Indices) -> tuple[Indices, Indices]:
    """First and one past the last of each stretch of consecutive numbers, from ascending numbers."""
    cuts = np.flatnonzero(np.diff(places) != 1) + 1
    if not len(places):
        return places, places
    return places[np.concatenate([[0], cuts])], places[np.concatenate([cuts - 1, [-1]])] + 1


def lagged_gain(delays: Sequence[int]) -> tuple[float, float]:
    """Count what lagged products save over products of delayed rows.

    In units of one block's products, d delays and their D different lags: a row costs d^2 when delayed, 1 + 2 (D - 1)
    when lagged (the product of lag 0 is symmetric and costs half), and the ends of a stretch cost their rows once more.

    Returns
    -------
    share : float
        Share of the operations of a row that is saved; 0 where nothing is, as with one delay.
    shortest : float
        Rows from which on a stretch makes up for its ends; infinity where nothing is saved.
    """
    by_lag = _pairs_by_lag(delays)
    saved = len(delays) ** 2 - sum(2 if lag else 1 for lag in by_lag)
    ends = sum((2 if lag else 1) * 2 * (pairs[-1][0] - pairs[0][0]) for lag, pairs in by_lag.items())
    return saved / len(delays) ** 2, ends / saved if saved else math.inf


def lagged_blocks(
    features: F32, first: Indices, stop: Indices, delays: Sequence[int]
) -> Iterator[tuple[int, int, F64]]:
    """Compute the Gram matrix of delayed features block by block, without delaying them.

    With ``b = t - delay``, the sum over a stretch of ``f(b) f(b - lag)'`` is computed once for every lag. For the next
    pair of delays with this lag the window moves back: what enters at its start is added, what leaves at its end is
    subtracted.

    Parameters
    ----------
    features : (m, p) float32
        Undelayed; finite everywhere.
    first, stop : (n_stretches,) int64
        Stretches of rows of `features`. Each must lie within a run, from ``max(delays)`` on after its start.
    delays
        In TRs, in any order.

    Yields
    ------
    i, j : int
        Positions in `delays`, with ``delays[i] <= delays[j]``; every pair comes once.
    block : (p, p) float64
        ``sum_t f(t - delays[i]) f(t - delays[j])'`` over the rows of all stretches.
    """
    for lag, pairs in _pairs_by_lag(delays).items():
        here, i, j = pairs[0]
        block = _product(features, _spans(first - here, stop - here), lag)
        yield i, j, block
        for earlier, i, j in pairs[1:]:
            block = block + _product(features, _spans(first - earlier, first - here), lag)
            block -= _product(features, _spans(stop - earlier, stop - here), lag)
            here = earlier
            yield i, j, block


def _pairs_by_lag(delays: Sequence[int]) -> dict[int, list[tuple[int, int, int]]]:
    """List (delay, its position, position of the longer delay) by difference of the two, by ascending delay."""
    found: dict[int, list[tuple[int, int, int]]] = defaultdict(list)
    order = sorted(range(len(delays)), key=lambda position: delays[position])
    for place, i in enumerate(order):
        for j in order[place:]:
            found[delays[j] - delays[i]].append((delays[i], i, j))
    return found


def _spans(first: Indices, stop: Indices) -> Indices:
    """Put the ranges from `first` to `stop` one after another."""
    lengths = stop - first
    begins = np.cumsum(lengths) - lengths
    return np.arange(int(lengths.sum())) + np.repeat(first - begins, lengths)


def _product(features: F32, rows: Indices, lag: int) -> F64:
    """Sum ``f(b) f(b - lag)'`` over rows b in float64."""
    total = np.zeros((features.shape[1], features.shape[1]))
    for start in range(0, len(rows), CHUNK_ROWS):
        chunk = rows[start : start + CHUNK_ROWS]
        left = features[chunk].astype(np.float64)
        right = left if lag == 0 else features[chunk - lag].astype(np.float64)
        total += left.T @ right
    return total
