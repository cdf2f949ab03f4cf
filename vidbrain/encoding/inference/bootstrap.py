"""How sure is r? A block bootstrap of r, and of the difference of two r, from five moments of each block.

The sums p, y, pp, yy, py of a block of TRs are all that a resampled r needs: 1000 resamples of a run are one product of
their weights (1000, m) with its moments (m, t). Blocks are resampled within runs without overlap (Carlstein 1986).
Predictions are frozen: intervals speak of new data of the same runs' length under the same model. They hold for runs
that trained nothing; r of cross-validated folds depend on one another, which frozen predictions cannot show.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import scipy.special
from numpy.typing import NDArray

from vidbrain.encoding.inference.null import centred
from vidbrain.errors import EncodingError

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

TILE = 512
DRAWS = 128
"""Voxels and draws resampled at once: what they give stays in the processor's cache."""


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
        Standard deviation over resamples, times `Expansion.factor`.
    percentile_low, percentile_high
        Quantiles of the resamples (Efron 1979), at the tails of `Expansion`.
    basic_low, basic_high
        Those quantiles reflected at the estimate, ``2 estimate - quantile`` (Davison & Hinkley 1997, chapter 5).
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
        Two-sided, that the difference is 0: ``(1 + #{|resample - estimate| >= |estimate|}) / (1 + n_resamples)``,
        widened by `Expansion.widened_p`.
    """

    p: F64


@dataclass(frozen=True)
class Expansion:
    """How much a bootstrap of few blocks must be widened (Hesterberg 2015).

    Resamples of m blocks vary by ``(m - 1) / m`` of the variance of new data, and quantiles know nothing of the
    uncertainty of that variance, which Student's t with ``m - 1`` degrees of freedom knows.

    Attributes
    ----------
    factor
        ``sqrt(m / (m - 1))``, m and m - 1 summed over runs.
    tail
        Share of the resamples below the lower and above the upper bound: for 95 % and ten blocks 0.0086, not 0.025.
    n_free
        Degrees of freedom.
    """

    factor: float
    tail: float
    n_free: int

    def widened_p(self, p: F64) -> F64:
        """Two-sided p of Student's t from that of the resamples, which is nearly normal and too narrow."""
        return np.asarray(2 * scipy.special.stdtr(self.n_free, scipy.special.ndtri(p / 2) / self.factor), np.float64)


def expansion(n_blocks: Sequence[int], level: float) -> Expansion:
    """Widen for `n_blocks` in each run and intervals that aim at `level`."""
    free = sum(n_blocks) - len(n_blocks)
    factor = float(np.sqrt(sum(n_blocks) / free))
    return Expansion(factor, float(scipy.special.ndtr(factor * scipy.special.stdtrit(free, (1 - level) / 2))), free)


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
    block = np.arange(n) * m // n
    member = (block == np.arange(m)[:, None]).astype(np.float32)
    sums = np.empty((m, 5, t), np.float32)
    for at in tiles(t):
        p, y = standard(predicted[:, at]), standard(measured[:, at])
        for row, values in enumerate((p, y, p * p, y * y, p * y)):
            np.matmul(member, values, out=sums[:, row, at])
    return BlockMoments(member.sum(axis=1), sums)


def standard(series: F32) -> F32:
    """Scale to mean 0 and variance 1 over rows; a constant column becomes 0."""
    series = centred(series)
    variance = np.einsum("it,it->t", series, series) / np.float32(len(series))
    return series * np.divide(1, np.sqrt(variance), out=np.zeros_like(variance), where=variance > 0)


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
    sums = [np.ascontiguousarray(run.sums[:, :, voxels]) for run in moments]
    out = np.empty((len(weights[0]), sums[0].shape[2]), np.float32)
    for start in range(0, len(out), DRAWS):
        at = slice(start, start + DRAWS)
        parts = [scatter(s, run.n_trs, w[at]) for s, run, w in zip(sums, moments, weights, strict=True)]
        if how == "mean":
            out[at] = np.sum([ratio(*part) for part in parts], axis=0) / np.float32(len(parts))
        else:
            out[at] = ratio(*np.sum(parts, axis=0))
    return out


def scatter(sums: F32, n_trs: F32, weights: F32) -> tuple[F32, F32, F32]:
    """Centred sums py, pp and yy of weighted blocks of one run, each (b, t), from their moments (m, 5, t)."""
    m, _, t = sums.shape
    p, y, pp, yy, py = (weights @ sums.reshape(m, 5 * t)).reshape(len(weights), 5, t).transpose(1, 0, 2)
    p_mean, y_mean = p / (weights @ n_trs)[:, None], y / (weights @ n_trs)[:, None]
    py -= p_mean * y
    pp -= p_mean * p
    yy -= y_mean * y
    return py, pp, yy


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
    wider = expansion([len(run.n_trs) for run in moments], level)
    found = [summary(*resample(moments, weights, at, how), wider) for at in tiles(moments[0].sums.shape[2])]
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
    wider = expansion([len(run.n_trs) for run in a], level)
    found = []
    for at in tiles(a[0].sums.shape[2]):
        (one, ones), (other, others) = resample(a, weights, at, how), resample(b, weights, at, how)
        estimate = one - other
        resamples: F32 = np.asarray(estimate + np.float32(spread) * (ones - others - estimate), np.float32)
        beyond = len(resamples) - np.count_nonzero(np.abs(resamples - estimate) < np.abs(estimate), axis=0)
        p = wider.widened_p((1.0 + beyond) / (1.0 + len(resamples)))
        found.append(np.concatenate([summary(estimate, resamples, wider), p[None]]))
    return Difference(*np.concatenate(found, axis=1))


def resample(
    moments: Sequence[BlockMoments], weights: Sequence[F32], voxels: slice, how: Literal["mean", "pooled"]
) -> tuple[F32, F32]:
    """R of the data as they are, (t,), and of each resample, (b, t)."""
    once = [np.ones((1, len(run.n_trs)), np.float32) for run in moments]
    return correlations(moments, once, voxels, how)[0], correlations(moments, weights, voxels, how)


def summary(estimate: F32, resamples: F32, wider: Expansion) -> F64:
    """Rows of an `Interval`, (6, t)."""
    ordered = np.sort(np.ascontiguousarray(resamples.T), axis=1)
    low, high = between(ordered, wider.tail), between(ordered, 1 - wider.tail)
    error = wider.factor * resamples.std(axis=0, ddof=1, dtype=np.float64)
    return np.stack([estimate, error, low, high, 2 * estimate - high, 2 * estimate - low]).astype(np.float64)


def between(ordered: F32, share: float) -> F32:
    """Quantile of ordered rows, (t, b) to (t,), by linear interpolation (definition 7 of Hyndman & Fan 1996)."""
    place = share * (ordered.shape[1] - 1)
    low = int(place)
    high = min(low + 1, ordered.shape[1] - 1)
    return np.asarray(ordered[:, low] + (ordered[:, high] - ordered[:, low]) * np.float32(place - low), np.float32)
