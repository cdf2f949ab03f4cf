"""Is r above chance? Circular shifts of whole runs for each voxel, then the false discovery rate over voxels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy.fft
from numpy.typing import NDArray

SPREAD = 2.0**0.5
"""Widens the null of the fold-mean r, see `shift_p_values`."""


def circular_products(predicted: NDArray[np.float32], measured: NDArray[np.float32]) -> NDArray[np.float32]:
    """Inner products of a prediction with every circular shift of what was measured.

    Parameters
    ----------
    predicted, measured : (n_trs, n_voxels) float32

    Returns
    -------
    (n_trs, n_voxels) float32
        Row s is ``sum_t predicted[t] * measured[(t + s) % n_trs]``; row 0 is the observed product.
    """
    n_trs = len(predicted)
    spectrum = scipy.fft.rfft(predicted.T).conj()
    spectrum *= scipy.fft.rfft(measured.T)
    return np.ascontiguousarray(scipy.fft.irfft(spectrum, n=n_trs).T)


def draw_shifts(n_trs: Sequence[int], n_permutations: int, seed: int) -> NDArray[np.int64]:
    """Draw one shift for each run and permutation, each from 0 (included) to the run's length.

    Returns
    -------
    (n_permutations, n_runs) int64
    """
    rng = np.random.default_rng(seed)
    return np.stack([rng.integers(0, n, n_permutations) for n in n_trs], axis=1)


def shift_p_values(
    products: Sequence[NDArray[np.float32]], shifts: NDArray[np.int64], *, spread: float = SPREAD
) -> NDArray[np.float64]:
    """One-sided p of a sum over runs, by shifting each run circularly against its frozen prediction.

    Shifts keep the autocorrelation of the signal, which a parametric p of r ignores. Zero shift is a member of the
    group and is counted: ``p = (1 + #{null >= observed}) / (1 + n)``.

    **Why the null is widened.** Run f's r uses predictions learned from run g, and run g's r predictions learned from
    run f. In ridge regression both hold nearly the same bilinear form ``y_f' A y_g`` (exactly the same one as alpha
    grows), so the r of different folds are positively correlated even under the null. Independent shifts with frozen
    predictions break that tie and give a null that is too narrow. Terms of different pairs of runs are uncorrelated,
    and within a pair Cauchy-Schwarz gives ``Var(b_fg + b_gf) <= 2 (Var b_fg + Var b_gf)``; hence the true variance is
    at most twice that of the shifted null, whatever A is. Deviations are therefore multiplied by sqrt(2), which is
    tight for strong regularisation and conservative otherwise.

    Parameters
    ----------
    products : one (n_trs, n_voxels) array a run
        As `circular_products` gives them, scaled so that the sum over runs is the statistic.
    shifts : (n_permutations, n_runs) int64
    spread
        Factor of the null's deviations; 1 where runs were predicted by a model that saw none of them.

    Returns
    -------
    (n_voxels,) float64
    """
    observed = np.sum([p[0] for p in products], axis=0, dtype=np.float32)
    centre = np.sum([p.mean(axis=0, dtype=np.float64) for p in products], axis=0).astype(np.float32)
    # null_b: centre + spread * (sum - centre) >= observed, solved for the sum, so that each draw costs additions only.
    threshold = centre + (observed - centre) / np.float32(spread)
    count = np.zeros(observed.shape, np.int64)
    for row in shifts:
        total = products[0][row[0]].copy()
        for run, shift in enumerate(row[1:], start=1):
            total += products[run][shift]
        count += total >= threshold
    return np.asarray((1.0 + count) / (1.0 + len(shifts)), np.float64)


def benjamini_hochberg(p: NDArray[np.float64]) -> NDArray[np.float64]:
    """Adjust p-values for the false discovery rate (Benjamini & Hochberg 1995).

    Parameters
    ----------
    p : (n,) float64

    Returns
    -------
    (n,) float64
        q: the smallest rate at which each would be called a discovery.
    """
    n = len(p)
    if n == 0:
        return p.copy()
    order = np.argsort(p, kind="stable")
    ranked = p[order] * n / np.arange(1, n + 1)
    q = np.empty(n)
    q[order] = np.minimum(np.minimum.accumulate(ranked[::-1])[::-1], 1.0)
    return q
