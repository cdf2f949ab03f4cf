"""Choose penalties by the r of held-out folds, and fit: arrays in memory, tiles of targets, in threads."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_info, threadpool_limits

from vidbrain.encoding.ridge import gram
from vidbrain.encoding.ridge.bands import Columns
from vidbrain.encoding.ridge.sides import Dual, FoldBasis, Primal, Solution, Targets, Tile
from vidbrain.encoding.ridge.smoothers import Smoothers
from vidbrain.errors import ConfigError

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
Floats = NDArray[Any]
Side = Primal | Dual

TILE = 512
"""Targets in the innermost products."""


@dataclass(frozen=True)
class RidgeFit:
    """Penalties chosen for each target, and the fit with them.

    Attributes
    ----------
    coef : (p, t), float32 where the targets are, else float64
    intercept : (t,) float64
    alpha_index, candidate : (t,) int64
        The choice.
    alpha_scores : (r, t) float32
        Mean validation r of every alpha, with the chosen candidate.
    candidate_scores : (n_candidates, t) float32
        Mean validation r of every candidate, with its best alpha.
    """

    coef: Floats
    intercept: F64
    alpha_index: I64
    candidate: I64
    alpha_scores: F32
    candidate_scores: F32


def fit_ridge(
    X: Floats,
    Y: Floats,
    fold: I64,
    alphas: F64,
    *,
    gammas: F64 | None = None,
    bands: Sequence[Columns] = (),
    alpha_per_target: bool = True,
) -> RidgeFit:
    """Choose alpha, and weights of bands where there are any, by the mean r over folds left out in turn; fit all rows.

    Every target is reduced to its products with X once, before the search; a candidate touches neither X nor Y. With
    one candidate these products are dropped tile by tile; with more they stay: ``n_folds p t`` float32. Uses as many
    threads as BLAS may. A tie goes to the larger alpha, and to the earlier candidate.

    Parameters
    ----------
    X : (n, p) float32 or float64
    Y : (n, t) float32 or float64
        Never copied as a whole, unless rows stand for it (fewer rows than columns) and there are many candidates.
    fold : (n,) int64
        Fold of each row, from 0.
    alphas : (r,)
        Ascending, positive.
    gammas : (n_candidates, n_bands), optional
        Candidate weights of bands; default plain ridge.
    bands : sequence of (p_b,) int64
        Columns of each band; needed with `gammas`.
    alpha_per_target
        Whether each target has an alpha of its own; else all share the one with the best mean r over targets.

    Raises
    ------
    ConfigError
        If alphas are not positive, or a fold holds fewer than 2 rows or leaves fewer than 2.
    """
    if gammas is None:
        gammas, bands = np.ones((1, 1)), [np.arange(X.shape[1])]
    check_alphas(alphas)
    folds, order = _sort(fold)
    targets = Targets(Y, order)
    n_bases = (len(folds) + 1) * len(gammas)
    side_of = cheaper_side(len(X), len(X) - len(X) // len(folds), X.shape[1], Y.shape[1], n_bases)
    X, x_mean, x_scale = standardise(X if order is None else X[order])
    alphas = alphas / x_scale**2
    coef = np.empty((X.shape[1], Y.shape[1]), targets.dtype)
    with blas_threads() as pool:
        side = side_of(X, folds, bands, targets.dtype, pool)
        # One candidate is known to be the choice: its last decomposition need not wait for the search.
        known = pool.submit(side.solution, side.weigh(gammas[0])) if len(gammas) == 1 and side_of is Primal else None
        chosen = _search(side, targets, alphas, gammas, alpha_per_target, coef, pool)
        _fit(side, targets, alphas[chosen[0]], gammas, chosen[1], coef, pool, known)
        intercept = _restore(targets, x_mean, x_scale, coef, pool)
    return RidgeFit(coef, intercept, *chosen)


def cheaper_side(n: int, n_train: int, p: int, t: int, n_bases: int) -> type[Primal | Dual]:
    """Choose the side by counting floating-point operations.

    Primal: Gram ``n p^2``, eigenvectors ``9 p^3`` a training set, ``X'Y`` once, and ``2 p^2`` a target and set.
    Dual: kernel ``n_t^2 p``, eigenvectors ``9 n_t^3``, and ``2 n_t^2`` a target and set.
    """
    primal = n * p**2 + 2.0 * n * p * t + n_bases * (9.0 * p**3 + 2.0 * p**2 * t)
    dual = n_bases * (3.0 * n_train**2 * p + 9.0 * n_train**3 + 2.0 * n_train**2 * t)
    return Dual if dual < primal else Primal


def solve_ridge(X: Floats, Y: Floats, alphas: F64) -> tuple[Floats, F64]:
    """Fit ridge with given alphas, through one decomposition.

    Parameters
    ----------
    X : (n, p) float32 or float64
    Y : (n, t) float32 or float64
    alphas : (t,)

    Returns
    -------
    coef : (p, t), float32 where the targets are, else float64
    intercept : (t,) float64
    """
    targets = Targets(Y, None)
    side_of = cheaper_side(len(X), len(X), X.shape[1], Y.shape[1], 1)
    X, x_mean, x_scale = standardise(X)
    coef = np.empty((X.shape[1], Y.shape[1]), targets.dtype)
    with blas_threads() as pool:
        side = side_of(X, [], [np.arange(X.shape[1])], targets.dtype, pool)
        if isinstance(side, Primal):

            def reduce_tile(at: slice) -> None:
                coef[:, at] = side.X.T @ targets.read(at)

            _run(pool, reduce_tile, tiles(Y.shape[1]))
        _fit(side, targets, alphas / x_scale**2, np.ones((1, 1)), np.zeros(Y.shape[1], np.int64), coef, pool)
        return coef, _restore(targets, x_mean, x_scale, coef, pool)


def check_alphas(alphas: F64) -> None:
    """Refuse an empty grid, and alphas that are not positive numbers.

    Raises
    ------
    ConfigError
        With the first alpha that cannot be.
    """
    wrong = alphas[~(np.isfinite(alphas) & (alphas > 0))]
    if len(wrong) or not len(alphas):
        raise ConfigError(
            f"alphas must be positive, got {wrong[0] if len(wrong) else 'none'}",
            where="alphas",
            likely="0 asks for least squares, which many columns or duplicates leave undefined",
            hint="use a small positive alpha: directions without variance get coefficient 0",
        )


@contextmanager
def blas_threads() -> Iterator[ThreadPoolExecutor]:
    """Take over the threads of BLAS: a pool of as many, in each of which BLAS is single-threaded.

    Tiles then stay in the cache of one core, element-wise work is shared out too, and no thread of BLAS waits in a
    loop for another.
    """
    n_threads = max((int(lib["num_threads"]) for lib in threadpool_info() if lib["user_api"] == "blas"), default=1)
    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(n_threads) as pool:
        yield pool


def standardise(X: Floats) -> tuple[F64, F64, float]:
    """Centre columns, and divide all by one number, so that units do not matter to float32: X, mean (p,), scale."""
    first = X[0].astype(np.float64)
    X = X - first  # constant columns become 0 exactly, which a rounded mean would miss
    shift = X.mean(axis=0)
    X -= shift
    # Not by BLAS, whose threads would decide the last bits.
    scale = float(np.sqrt(np.einsum("ij,ij->i", X, X).sum() / X.size)) or 1.0
    X /= scale
    return X, first + shift, scale


def tiles(n_targets: int) -> list[slice]:
    """Cut targets into tiles."""
    return [slice(start, min(start + TILE, n_targets)) for start in range(0, n_targets, TILE)]


def score_tile(side: Side, bases: Sequence[FoldBasis], tile: Tile, alphas: F64) -> F32:
    """Mean validation r over folds of every alpha, (r, w)."""
    total = np.zeros((len(alphas), tile.sums.shape[1]), np.float32)
    for fold, basis in enumerate(bases):
        if not len(basis.eigenvalues):
            continue  # columns do not vary here: r is 0
        # r does not depend on the size of a prediction: this keeps the squares of strongly shrunk ones in float32.
        size = 1 + alphas[:, None] / basis.eigenvalues[0]
        shrinkage = (size / (basis.eigenvalues + alphas[:, None])).astype(np.float32)
        part = (basis.factor, basis.to_w @ side.held_part(tile, fold), tile.squares[fold])
        total += gram.inner_correlations(basis.to_z @ side.train_part(tile, fold), [part], shrinkage)[0]
    total /= len(bases)
    return total


def _search(
    side: Side,
    targets: Targets,
    alphas: F64,
    gammas: F64,
    alpha_per_target: bool,
    coef: Floats,
    pool: ThreadPoolExecutor,
) -> tuple[I64, I64, F32, F32]:
    """Try every candidate; leave ``X'Y`` in `coef` on the way (primal)."""
    n_targets = coef.shape[1]
    places = tiles(n_targets)
    scores = np.empty((len(alphas), n_targets), np.float32)
    kept: dict[int, Tile] = {}

    def reduced(at: slice) -> Tile:
        if at.start in kept:
            return kept[at.start]
        y = targets.read(at)
        tile = side.reduce(y)
        if isinstance(side, Primal):
            coef[:, at] = side.statistic(y, tile)
        if len(gammas) > 1:
            kept[at.start] = tile
        return tile

    best = np.full(n_targets, -np.inf, np.float32)
    index, candidate = np.zeros(n_targets, np.int64), np.zeros(n_targets, np.int64)
    alpha_scores = np.zeros_like(scores)
    candidate_scores = np.empty((len(gammas), n_targets), np.float32)
    for number, gamma in enumerate(gammas):
        weights = side.weigh(gamma)
        smoothers = side.smoothers(weights, alphas, pool) if isinstance(side, Dual) else None
        if smoothers is not None:

            def smooth(at: slice, smoothers: Smoothers = smoothers) -> None:
                tile = reduced(at)
                assert tile.rows is not None
                scores[:, at] = smoothers.score(tile.rows, tile.squares)

            _run(pool, smooth, places)
        else:
            bases = list(pool.map(partial(side.basis, weights), range(len(side.folds))))

            def score(at: slice, bases: list[FoldBasis] = bases) -> None:
                scores[:, at] = score_tile(side, bases, reduced(at), alphas)

            _run(pool, score, places)
        if alpha_per_target:
            found = gram.best_alpha(scores)
        else:
            found = np.full(n_targets, gram.best_alpha(scores.mean(axis=1, keepdims=True, dtype=np.float64))[0])
        candidate_scores[number] = np.take_along_axis(scores, found[None], axis=0)[0]
        better = candidate_scores[number] > best
        best[better], index[better], candidate[better] = candidate_scores[number, better], found[better], number
        alpha_scores[:, better] = scores[:, better]
    return index, candidate, alpha_scores, candidate_scores


def _fit(
    side: Side,
    targets: Targets,
    alpha: F64,
    gammas: F64,
    candidate: I64,
    coef: Floats,
    pool: ThreadPoolExecutor,
    known: Future[Solution] | None = None,
) -> None:
    """Write coefficients of the standardised problem, where `coef` holds ``X'Y`` (primal)."""
    for number in np.unique(candidate):
        solution = side.solution(side.weigh(gammas[number])) if known is None else known.result()
        columns = np.flatnonzero(candidate == number)
        whole = len(columns) == len(candidate)
        places = tiles(len(columns))

        def solve(at: slice, solution: Solution = solution, places: I64 = columns, whole: bool = whole) -> None:
            at_targets = at if whole else places[at]
            statistic = coef[:, at_targets] if isinstance(side, Primal) else targets.read(at_targets)
            coef[:, at_targets] = solution.coefficients(statistic, alpha[at_targets])

        _run(pool, solve, places)


def _restore(targets: Targets, x_mean: F64, x_scale: float, coef: Floats, pool: ThreadPoolExecutor) -> F64:
    """Give coefficients the units of the data, in place, and return intercepts (t,)."""
    intercept = np.empty(coef.shape[1])

    def restore(at: slice) -> None:
        coef[:, at] *= (targets.scale[at] / x_scale).astype(coef.dtype)
        intercept[at] = targets.mean[at] - x_mean @ coef[:, at]

    _run(pool, restore, tiles(coef.shape[1]))
    return intercept


def _run(pool: ThreadPoolExecutor, work: Callable[[slice], None], places: Sequence[slice]) -> None:
    """Do all the work, and raise what it raised."""
    for _ in pool.map(work, places):
        pass


def _sort(fold: I64) -> tuple[list[slice], I64 | None]:
    """Slices of the folds once rows are sorted by them, and that order; None where they are sorted."""
    n_rows = np.bincount(fold)
    small = np.flatnonzero((n_rows < 2) | (len(fold) - n_rows < 2))
    if len(small):
        raise ConfigError(
            f"fold {small[0]} holds {n_rows[small[0]]} of {len(fold)} rows: r needs 2 rows, and a fit 2 others",
            where="folds",
            likely="more folds than pairs of rows, or one group only",
            hint="use fewer folds, or more rows or groups",
        )
    ends = np.cumsum(n_rows)
    folds = [slice(int(end - n), int(end)) for n, end in zip(n_rows, ends, strict=True)]
    return folds, None if (np.diff(fold) >= 0).all() else np.argsort(fold, kind="stable")
