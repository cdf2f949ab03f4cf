"""A null of r that learns anew: voxels whose runs were turned in a circle go through the whole fit.

`null.p_values` keeps predictions frozen and bounds what the folds share by a factor of sqrt(2). Here nothing is
bounded: a surrogate voxel is a real one with each run shifted by its own random amount, which keeps its autocorrelation
and breaks its tie to the features. Its score, alpha and fit are computed like any voxel's, so its r has the dependence
of the folds and of the choice of alpha in it. Ten thousand surrogates cost what as many voxels cost.

Scores are standardised by each voxel's own frozen null first. What is left is nearly the same distribution for every
voxel, so that all voxels may be compared with all surrogates.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]


def source_voxels(n_voxels: int, n_surrogates: int) -> NDArray[np.int64]:
    """Voxel that each surrogate is made of, ascending and evenly spread; more surrogates than voxels repeat them.

    A block of voxels computes the surrogates whose source it holds: together they do not depend on the blocks.

    Returns
    -------
    (n_surrogates,) int64
    """
    return np.arange(n_surrogates) * n_voxels // n_surrogates


def draw_shifts(n_trs: Sequence[int], numbers: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """Draw a circular shift for each run and surrogate, from 0 (included) to the run's length.

    Parameters
    ----------
    n_trs
        Length of each run.
    numbers : (s,) int64
        Which surrogates; each has its own stream of random numbers, whatever the others are.

    Returns
    -------
    (n_runs, s) int64
    """
    drawn = [np.random.default_rng([seed, number]).integers(0, n_trs) for number in numbers.tolist()]
    return np.array(drawn, np.int64).reshape(len(numbers), len(n_trs)).T


def shift_runs(Y: F32, run: NDArray[np.int64], shifts: NDArray[np.int64]) -> F32:
    """Turn each run of each voxel in a circle.

    Parameters
    ----------
    Y : (n, t) float32
    run : (n,) int64
        Run of each row, numbered from 0.
    shifts : (n_runs, t) int64

    Returns
    -------
    (n, t) float32
        Row i of a run holds what was measured ``shift`` rows later, around its end.
    """
    out = np.empty_like(Y)
    for number, shift in enumerate(shifts):
        rows = np.flatnonzero(run == number)
        turned = (np.arange(len(rows))[:, None] + shift) % len(rows)
        out[rows] = np.take_along_axis(Y[rows], turned, axis=0)
    return out


def standard_scores(tables: Sequence[F32]) -> F64:
    """Standardise a sum of products by the mean and deviation of all its circular shifts, drawn alone in each run.

    Parameters
    ----------
    tables
        `null.circular_products` of each run; row 0 is what was measured.

    Returns
    -------
    (t,) float64
        0 where nothing varies.
    """
    distance = np.sum([table[0] - table.mean(axis=0, dtype=np.float64) for table in tables], axis=0)
    deviation = np.sqrt(np.sum([table.var(axis=0, dtype=np.float64) for table in tables], axis=0))
    return np.divide(distance, deviation, out=np.zeros_like(deviation), where=deviation > 0)


def pooled_p_values(scores: F64, surrogate_scores: F64) -> F64:
    """One-sided p against surrogates: ``(1 + #{surrogate >= score}) / (1 + n_surrogates)``.

    Exact on average over voxels where runs are stationary; for each voxel as far as standardised scores share one
    distribution.

    Parameters
    ----------
    scores : (t,) float64
        NaN gives p = 1.
    surrogate_scores : (n_surrogates,) float64
        Of the same fit, over the whole brain; without those whose source is dead, which never exceed anything.
    """
    below = np.where(np.isnan(scores), 0, np.searchsorted(np.sort(surrogate_scores), scores, side="left"))
    n = len(surrogate_scores)
    return np.asarray((1.0 + n - below) / (1.0 + n), np.float64)
