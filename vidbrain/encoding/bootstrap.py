"""How sure is r? A block bootstrap of r, and of the difference of two r, from five moments of each block.

The sums p, y, pp, yy, py of a block of TRs are all that a resampled r needs: 1000 resamples of a run are one product of
their weights (1000, m) with its moments (m, t). Blocks are resampled within runs (Kuensch 1989, without overlap).
Predictions are frozen: intervals speak of new data of the same runs' length under the same model. They hold for runs
that trained nothing; r of cross-validated folds depend on one another, which frozen predictions cannot show.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from vidbrain.errors import EncodingError

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

TILE = 512
"""Voxels resampled at once."""


@dataclass(frozen=True)
class BlockMoments:
    """Sums over the blocks of one run.

    Attributes
    ----------
    n_trs : (m,) float32
        Length of each block.
    sums : (m, 5, t) float32
        ``sum p, sum y, sum pp, sum yy, sum py`` of predicted p and measured y, both with mean 0 and variance 1 over
        the run, so that float32 loses nothing to an offset.
    """

    n_trs: F32
    sums: F32


@dataclass(frozen=True)
class Interval:
    """Estimate of one number a voxel, with its uncertainty; all (t,) float64.

    Attributes
    ----------
    estimate
        Of the data as they are.
    standard_error
        Standard deviation over resamples.
    percentile_low, percentile_high
        Quantiles of the resamples (Efron 1979).
    basic_low, basic_high
        Those quantiles reflected at the estimate, ``2 estimate - quantile`` (Davison & Hinkley 1997, eq. 5.6).
    """

    estimate: F64
    standard_error: F64
    percentile_low: F64
    percentile_high: F64
    basic_low: F64
    basic_high: F64


@dataclass(frozen=True)
class Difference(Interval):
    """Difference of two r.

    Attributes
    ----------
    p : (t,) float64
        Two-sided: ``(1 + #{|resample - estimate| >= |estimate|}) / (1 + n_resamples)``.
    """

    p: F64


def block_moments(predicted: F32, measured: F32, block_trs: int) -> BlockMoments:
    """Sum one run over blocks.

    Parameters
    ----------
    predicted, measured : (n, t) float32
        Of one run; any offset and scale.
    block_trs
        The run is cut into ``n // block_trs`` blocks whose lengths differ by at most 1 TR, none shorter than this.

    Raises
    ------
    EncodingError
        If there are fewer than 2 blocks.
    """
    n, t = predicted.shape
    m = n // block_trs
    if m < 2:
        raise EncodingError(
            f"a run of {n} TRs holds {m} blocks of {block_trs} TRs; a bootstrap needs 2 or more",
            hint="use shorter blocks (10 TRs or more)",
        )
    first = np.arange(m) * n // m
    sums = np.empty((m, 5, t), np.float32)
    for at in tiles(t):
        p, y = (standard(series[:, at]) for series in (predicted, measured))
        for row, values in enumerate((p, y, p * p, y * y, p * y)):
            sums[:, row, at] = np.add.reduceat(values, first, axis=0, dtype=np.float64)
    return BlockMoments(np.diff(first, append=n).astype(np.float32), sums)


def standard(series: F32) -> F64:
    """Scale to mean 0 and variance 1 over rows; a constant column becomes 0."""
    centred = np.asarray(series, np.float64) - series.mean(axis=0, dtype=np.float64)
    scale = centred.std(axis=0)
    return np.asarray(centred * np.divide(1.0, scale, out=np.zeros_like(scale), where=scale > 0), np.float64)


def tiles(t: int) -> Iterator[slice]:
    """Cut voxels into tiles."""
    for start in range(0, t, TILE):
        yield slice(start, min(start + TILE, t))


def draw_weights(n_blocks: Sequence[int], n_resamples: int, seed: int) -> list[F32]:
    """Draw how often each block is taken, with replacement within runs.

    Parameters
    ----------
    n_blocks
        Of each run.
    seed
        The same for every block of voxels, and for both sides of a paired difference.

    Returns
    -------
    one (n_resamples, m) float32 array a run
        Rows sum to m.
    """
    rng = np.random.default_rng(seed)
    return [rng.multinomial(m, np.full(m, 1 / m), size=n_resamples).astype(np.float32) for m in n_blocks]


def correlations(
    moments: Sequence[BlockMoments], weights: Sequence[F32], voxels: slice, how: Literal["mean", "pooled"] = "mean"
) -> F32:
    """Compute r of weighted blocks.

    Parameters
    ----------
    moments
        Of each run.
    weights : one (b, m) float32 array a run
    voxels
        Which.
    how
        ``"mean"``: mean over runs of each run's r. ``"pooled"``: covariance over standard deviations, each summed over
        runs about the run's own weighted mean, with predictions and voxels standardised in each run.

    Returns
    -------
    (b, len(voxels)) float32
        0 where the resample does not vary.
    """
    total = np.zeros(())
    covariance = p_variance = y_variance = total.astype(np.float32)
    for run, w in zip(moments, weights, strict=True):
        sums = np.ascontiguousarray(run.sums[:, :, voxels])
        p, y, pp, yy, py = (w @ sums.reshape(len(sums), -1)).reshape(len(w), 5, -1).transpose(1, 0, 2)
        inverse = 1 / (w @ run.n_trs)[:, None]
        py -= p * y * inverse
        pp -= p * p * inverse
        yy -= y * y * inverse
        if how == "mean":
            total = total + ratio(py, pp, yy)
        else:
            covariance, p_variance, y_variance = covariance + py, p_variance + pp, y_variance + yy
    if how == "mean":
        return np.asarray(total / np.float32(len(moments)), np.float32)
    return ratio(covariance, p_variance, y_variance)


def ratio(product: F32, p_squares: F32, y_squares: F32) -> F32:
    """``product / sqrt(p_squares * y_squares)``, and 0 where one of them is not positive."""
    squares = p_squares * y_squares
    varies = (p_squares > 0) & (y_squares > 0)
    return np.divide(product, np.sqrt(squares, where=varies, out=squares), out=np.zeros_like(product), where=varies)


def intervals(
    moments: Sequence[BlockMoments],
    weights: Sequence[F32],
    *,
    level: float = 0.95,
    how: Literal["mean", "pooled"] = "mean",
) -> Interval:
    """Bound r of each voxel.

    Parameters
    ----------
    moments
        `block_moments` of each run.
    weights
        Of `draw_weights`.
    level
        Coverage that the intervals aim at.
    how
        As in `correlations`.
    """
    found = [summary(*resample(moments, weights, at, how), level) for at in tiles(moments[0].sums.shape[2])]
    return Interval(*np.concatenate(found, axis=1))


def paired_difference(
    a: Sequence[BlockMoments],
    b: Sequence[BlockMoments],
    weights: Sequence[F32],
    *,
    level: float = 0.95,
    how: Literal["mean", "pooled"] = "mean",
    spread: float = 1.0,
) -> Difference:
    """Bound r of feature set a less r of feature set b, both resampled with the same blocks.

    What both share, the voxel's noise above all, cancels in the difference.

    Parameters
    ----------
    a, b
        `block_moments` of each run, of two predictions of the same BOLD.
    weights, level, how
        As in `intervals`.
    spread
        Factor of the resamples' deviations: `null.SPREAD` for cross-validated predictions, whose folds depend on one
        another (`null.p_values` says why it bounds that), 1 for runs that trained nothing.
    """
    found = []
    for at in tiles(a[0].sums.shape[2]):
        (one, ones), (other, others) = resample(a, weights, at, how), resample(b, weights, at, how)
        estimate = one - other
        resamples: F32 = np.asarray(estimate + np.float32(spread) * (ones - others - estimate), np.float32)
        beyond = np.count_nonzero(np.abs(resamples - estimate) >= np.abs(estimate), axis=0)
        p = (1.0 + beyond) / (1.0 + len(resamples))
        found.append(np.concatenate([summary(estimate, resamples, level), p[None]]))
    return Difference(*np.concatenate(found, axis=1))


def resample(
    moments: Sequence[BlockMoments], weights: Sequence[F32], voxels: slice, how: Literal["mean", "pooled"]
) -> tuple[F32, F32]:
    """R of the data as they are, (t,), and of each resample, (b, t)."""
    once = [np.ones((1, len(run.n_trs)), np.float32) for run in moments]
    return correlations(moments, once, voxels, how)[0], correlations(moments, weights, voxels, how)


def summary(estimate: F32, resamples: F32, level: float) -> F64:
    """Rows of an `Interval`, (6, t)."""
    low, high = np.quantile(resamples, [(1 - level) / 2, (1 + level) / 2], axis=0)
    deviation = resamples.std(axis=0, ddof=1, dtype=np.float64)
    return np.stack([estimate, deviation, low, high, 2 * estimate - high, 2 * estimate - low]).astype(np.float64)
