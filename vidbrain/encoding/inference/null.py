"""Is r above chance? Nulls of r from cross-products: circular shifts and block permutations of frozen predictions.

Held-out r is a sum of products of predicted and measured. Every draw of a null takes some rows of a table of
cross-products and adds them up, so that no draw touches a time series again::

    shifts   row s of run f:       sum_t predicted[t] measured[(t + s) mod n]   one row a run and draw, by FFT
    blocks   row (i, j) of run f:  block i predicted . block j measured         one row a block and draw

Draws are the same for every voxel (they are keyed by the seed), so that maxima over blocks of voxels combine to the
maximum over the brain.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import scipy.fft
import scipy.sparse
import scipy.special
from numpy.typing import NDArray

from vidbrain.errors import EncodingError

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

SPREAD = 2.0**0.5
"""Widens the null of r of cross-validated predictions, see `p_values`; use 1 for runs that trained nothing."""

TILE = 512
"""Voxels whose cross-products are added up at once, and draws at once: they bound memory."""
DRAWS = 1024


@dataclass(frozen=True)
class Null:
    """Draws from a group of rearrangements of the measured series, as sums of rows of a table of cross-products.

    Attributes
    ----------
    kind
        ``"shift"``: each run turned in a circle. ``"block"``: blocks permuted within each run. ``"block-between"``:
        blocks permuted over all runs.
    n_trs
        Length of each run.
    block_trs
        Length of a block; 0 for shifts. The last ``n % block_trs`` TRs of a run stay where they are.
    draws : (n_permutations, n_rows) sparse float32
        Ones at the rows that each draw adds up. The identity may be drawn.
    identity : (1, n_rows) sparse float32
        What was measured.
    expected : (n_rows,) float64
        Mean of the draws over the whole group.
    """

    kind: Literal["shift", "block", "block-between"]
    n_trs: tuple[int, ...]
    block_trs: int
    draws: scipy.sparse.csr_array
    identity: scipy.sparse.csr_array
    expected: F64


@dataclass(frozen=True)
class NullTest:
    """What a null says of one block of t voxels.

    Attributes
    ----------
    observed : (t,) float32
        The statistic: fold-mean r or pooled r, as the series were scaled.
    p : (t,) float64
        One-sided, ``(1 + #{null >= observed}) / (1 + n_permutations)``; 1 where r is NaN.
    maxima : (n_permutations,) float32
        Greatest null value over these voxels in each draw, NaN left out; see `multiple.max_statistic`.
    """

    observed: F32
    p: F64
    maxima: F32


def unit_series(
    predicted: Sequence[F32], measured: Sequence[F32], *, pooled: bool = False
) -> tuple[list[F32], list[F32]]:
    """Centre and scale series in each run, so that their products add up to the statistic.

    Parameters
    ----------
    predicted, measured : one (n_f, t) array a run
    pooled
        False: the mean over runs of each run's r. True: covariance over standard deviations, each summed over runs,
        about the run's own mean.

    Returns
    -------
    predicted, measured : one (n_f, t) float32 array a run
        0 where either does not vary.
    """
    p_unit, y_unit = ([np.empty(s.shape, np.float32) for s in side] for side in (predicted, measured))
    for start in range(0, predicted[0].shape[1], TILE):
        at = slice(start, start + TILE)
        for given, unit in ((predicted, p_unit), (measured, y_unit)):
            series = [centred(s[:, at]) for s in given]
            squares = [np.einsum("it,it->t", s, s) for s in series]
            total = np.sum(squares, axis=0)
            for out, s, own in zip(unit, series, squares, strict=True):
                norm = np.sqrt(total if pooled else own * len(series))
                np.multiply(s, np.divide(1, norm, out=np.zeros_like(norm), where=norm > 0), out=out[:, at])
    return p_unit, y_unit


def centred(series: F32) -> F32:
    """Subtract the mean over rows, and once more what rounding left of it: float32 then bears any offset."""
    series = series - series.mean(axis=0)
    series -= series.mean(axis=0)
    return series


def circular_products(predicted: F32, measured: F32) -> F32:
    """Inner products of a prediction with every circular shift of what was measured.

    Parameters
    ----------
    predicted, measured : (n_trs, n_voxels) float32

    Returns
    -------
    (n_trs, n_voxels) float32
        Row s is ``sum_t predicted[t] * measured[(t + s) % n_trs]``; row 0 is the observed product.
    """
    n_trs, t = predicted.shape
    out = np.empty((n_trs, t), np.float32)
    for start in range(0, t, TILE):
        at = slice(start, start + TILE)
        spectrum = scipy.fft.rfft(predicted[:, at].T).conj()
        spectrum *= scipy.fft.rfft(measured[:, at].T)
        out[:, at] = scipy.fft.irfft(spectrum, n=n_trs).T
    return out


def block_products(predicted: F32, measured: F32, block_trs: int) -> F32:
    """Inner products of every block of a prediction with every block of what was measured.

    Parameters
    ----------
    predicted, measured : (n_trs, n_voxels) float32
    block_trs
        Length of a block.

    Returns
    -------
    (m * m + 1, n_voxels) float32
        With ``m = n_trs // block_trs``: row ``i * m + j`` is block i of the prediction with block j of what was
        measured; the last row is the product of the TRs that are left over.
    """
    m, t = len(predicted) // block_trs, predicted.shape[1]
    whole = m * block_trs
    out = np.empty((m * m + 1, t), np.float32)
    for start in range(0, t, TILE):
        at = slice(start, start + TILE)
        p, y = (
            np.ascontiguousarray(series[:whole, at].T).reshape(-1, m, block_trs) for series in (predicted, measured)
        )
        out[:-1, at] = (p @ y.transpose(0, 2, 1)).reshape(len(p), m * m).T
    out[-1] = np.einsum("it,it->t", predicted[whole:], measured[whole:])
    return out


def products(null: Null, predicted: Sequence[F32], measured: Sequence[F32]) -> list[F32]:
    """Tabulate the cross-products that a null draws from; its rows are those of ``null.draws``, table after table.

    Parameters
    ----------
    predicted, measured : one (n_f, t) float32 array a run
        Centred in each run and scaled, see `unit_series`.
    """
    if null.kind == "shift":
        return [circular_products(p, y) for p, y in zip(predicted, measured, strict=True)]
    if null.kind == "block":
        return [block_products(p, y, null.block_trs) for p, y in zip(predicted, measured, strict=True)]
    whole = [n - n % null.block_trs for n in null.n_trs]
    pairs = list(zip(predicted, measured, whole, strict=True))
    table = block_products(
        np.concatenate([p[:n] for p, _, n in pairs]), np.concatenate([y[:n] for _, y, n in pairs]), null.block_trs
    )
    for p, y, n in pairs:
        table[-1] += np.einsum("it,it->t", p[n:], y[n:])
    return [table]


def draw_shifts(n_trs: Sequence[int], n_permutations: int, seed: int) -> Null:
    """Draw a circular shift for each run, from 0 (included) to the run's length.

    Parameters
    ----------
    n_trs
        Length of each run.
    n_permutations
        Draws; the smallest p is ``1 / (1 + n_permutations)``.
    seed
        The same for every block of voxels.
    """
    rng = np.random.default_rng(seed)
    first = np.concatenate([[0], np.cumsum(n_trs)])
    shifts = np.stack([rng.integers(0, n, n_permutations) for n in n_trs], axis=1)
    expected = np.concatenate([np.full(n, 1 / n) for n in n_trs])
    n_rows = int(first[-1])
    return Null(
        "shift", tuple(n_trs), 0, adding(shifts + first[:-1], n_rows), adding(first[None, :-1], n_rows), expected
    )


def draw_block_permutations(
    n_trs: Sequence[int], block_trs: int, n_permutations: int, seed: int, *, between_runs: bool = False
) -> Null:
    """Draw permutations of the blocks of each run, the identity included.

    Blocks have `block_trs` TRs, counted from the start of each run; what is left over at its end stays in place. Blocks
    must be much longer than the noise remembers: 10 to 20 TRs at least.

    Parameters
    ----------
    n_trs
        Length of each run.
    between_runs
        Permute over all runs; asks for noise that is exchangeable between them. Series keep the scale of the run that
        they come from.

    Raises
    ------
    EncodingError
        If a run holds fewer than 2 blocks, or there are fewer arrangements than 20.
    """
    m = [n // block_trs for n in n_trs]
    groups = [sum(m)] if between_runs else m
    if min(groups) < 2 or np.sum(scipy.special.gammaln(np.array(groups) + 1)) < np.log(20):
        raise EncodingError(
            f"runs of {', '.join(map(str, n_trs))} TRs hold {', '.join(map(str, m))} blocks of {block_trs} TRs: "
            "too few arrangements for a p below 0.05",
            hint="use shorter blocks (10 TRs or more), or circular shifts",
        )
    rng = np.random.default_rng(seed)
    rows: list[NDArray[np.int64]] = []
    identity: list[NDArray[np.int64]] = []
    expected: list[F64] = []
    first = 0
    for count in groups:
        order = rng.permuted(np.tile(np.arange(count), (n_permutations, 1)), axis=1)
        place = first + count * np.arange(count)
        left_over = first + count * count
        rows += [place + order, np.full((n_permutations, 1), left_over)]
        identity += [place + np.arange(count), np.array([left_over])]
        expected += [np.full(count * count, 1 / count), np.ones(1)]
        first = left_over + 1
    return Null(
        "block-between" if between_runs else "block",
        tuple(n_trs),
        block_trs,
        adding(np.concatenate(rows, axis=1), first),
        adding(np.concatenate(identity)[None], first),
        np.concatenate(expected),
    )


def adding(rows: NDArray[np.int64], n_rows: int) -> scipy.sparse.csr_array:
    """Sparse matrix whose product with a table adds up its given rows, (n_sums, k) of `n_rows`."""
    n_sums, k = rows.shape
    return scipy.sparse.csr_array(
        (np.ones(rows.size, np.float32), rows.ravel().astype(np.int32), np.arange(0, rows.size + 1, k or 1)),
        shape=(n_sums, n_rows),
    )


def p_values(null: Null, tables: Sequence[F32], *, spread: float = SPREAD) -> NullTest:
    """One-sided p of a sum of products, by rearranging what was measured against its frozen prediction.

    Shifts and block permutations keep the autocorrelation of the signal, which a parametric p of r ignores. The
    identity is a member of the group and is counted: ``p = (1 + #{null >= observed}) / (1 + n)``.

    **Why the null is widened.** Run f's r uses predictions learned from run g, and run g's r predictions learned from
    run f. In ridge regression both hold nearly the same bilinear form ``y_f' A y_g`` (exactly the same one as alpha
    grows), so the r of different folds are positively correlated even under the null. Independent rearrangements with
    frozen predictions break that tie and give a null that is too narrow. Terms of different pairs of runs are
    uncorrelated, and within a pair Cauchy-Schwarz gives ``Var(b_fg + b_gf) <= 2 (Var b_fg + Var b_gf)``; hence the true
    variance is at most twice that of the null, whatever A is. Deviations are therefore multiplied by sqrt(2), which is
    tight for strong regularisation and conservative otherwise. The same holds for every weighted sum over voxels, so
    the widened null bounds their joint covariance too, which the maxima need.

    Parameters
    ----------
    tables
        As `products` gives them: (n_rows, t) in all.
    spread
        Factor of the null's deviations; 1 where runs were predicted by a model that saw none of them.
    """
    n_draws, t = null.draws.shape[0], tables[0].shape[1]
    observed, count = np.empty(t, np.float32), np.zeros(t, np.int64)
    maxima = np.full(n_draws, -np.inf, np.float32)
    for start in range(0, t, TILE):
        at = slice(start, start + TILE)
        table = np.concatenate([part[:, at] for part in tables])
        observed[at] = (null.identity @ table)[0]
        centre = (null.expected @ table).astype(np.float32)
        # centre + spread * (sum - centre) >= observed, solved for the sum; with spread 1 it is the observed bit by bit.
        threshold = observed[at] + (observed[at] - centre) * np.float32(1 / spread - 1)
        shift = centre * np.float32(1 - spread)
        for first in range(0, n_draws, DRAWS):
            draws = slice(first, first + DRAWS)
            sums = null.draws[draws] @ table
            count[at] += len(sums) - np.count_nonzero(sums < threshold, axis=0)  # NaN counts: its p is 1
            sums *= np.float32(spread)
            sums += shift
            np.fmax(maxima[draws], np.fmax.reduce(sums, axis=1), out=maxima[draws])
    return NullTest(observed, (1.0 + count) / (1.0 + n_draws), maxima)


def evaluate(null: Null, predicted: Sequence[F32], measured: Sequence[F32], *, spread: float = SPREAD) -> NullTest:
    """Tabulate and test `TILE` voxels at a time, so that tables never stand in memory for all of them.

    Parameters
    ----------
    predicted, measured : one (n_f, t) float32 array a run
        Centred in each run and scaled, see `unit_series`.
    spread
        As in `p_values`.
    """
    parts = []
    for start in range(0, predicted[0].shape[1], TILE):
        at = slice(start, start + TILE)
        tables = products(null, [p[:, at] for p in predicted], [y[:, at] for y in measured])
        parts.append(p_values(null, tables, spread=spread))
    return NullTest(
        np.concatenate([part.observed for part in parts]),
        np.concatenate([part.p for part in parts]),
        np.fmax.reduce([part.maxima for part in parts]),
    )
