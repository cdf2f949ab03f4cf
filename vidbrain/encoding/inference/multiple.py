"""Many voxels at once: the false discovery rate, and the family-wise error by the maximum over voxels."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]


def benjamini_hochberg(p: F64) -> F64:
    """Adjust p-values for the false discovery rate under independence or positive dependence.

    Benjamini & Hochberg (1995); positive dependence: Benjamini & Yekutieli (2001), theorem 1.2.

    Parameters
    ----------
    p : (n,) float64
        Between 0 and 1.

    Returns
    -------
    (n,) float64
        q: the smallest rate at which each would be called a discovery.
    """
    return step_up(p, 1.0)


def benjamini_yekutieli(p: F64) -> F64:
    """Adjust p-values for the false discovery rate under any dependence, at the price of a factor ``sum_i 1 / i``.

    Benjamini & Yekutieli (2001), theorem 1.3.

    Parameters
    ----------
    p : (n,) float64
        Between 0 and 1.

    Returns
    -------
    (n,) float64
    """
    return step_up(p, float(np.sum(1 / np.arange(1, len(p) + 1))))


def step_up(p: F64, factor: float) -> F64:
    """Step-up adjustment: the least of ``factor * n * p_(k) / k`` over all ranks k at or above each p's own.

    Raises
    ------
    ValueError
        If a p is not between 0 and 1, as NaN is not.
    """
    if not ((p >= 0) & (p <= 1)).all():
        raise ValueError("p-values must lie between 0 and 1")
    n = len(p)
    order = np.argsort(p, kind="stable")
    ranked = p[order] * (factor * n) / np.arange(1, n + 1)
    q = np.empty(n)
    q[order] = np.minimum(np.minimum.accumulate(ranked[::-1])[::-1], 1.0)
    return q


def max_statistic(observed: NDArray[np.float32], maxima: NDArray[np.float32]) -> F64:
    """Adjust for the family-wise error: p that a null draw's greatest voxel reaches each observed value.

    Westfall & Young (1993), single step; for images Nichols & Holmes (2002).

    Parameters
    ----------
    observed : (t,) float32
        Statistic of each voxel.
    maxima : (n_permutations,) float32
        Greatest null value over **all** voxels in each draw: the elementwise maximum of what `null.p_values` gives for
        each block of voxels with the same draws.

    Returns
    -------
    (t,) float64
        ``(1 + #{maxima >= observed}) / (1 + n_permutations)``; 1 where `observed` is NaN.
    """
    below = np.where(np.isnan(observed), 0, np.searchsorted(np.sort(maxima), observed, side="left"))
    return np.asarray((1.0 + len(maxima) - below) / (1.0 + len(maxima)), np.float64)
