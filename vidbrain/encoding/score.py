"""One block of voxels: choose each voxel's alpha, predict the held-out runs, and test r against shifts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vidbrain.encoding import gram
from vidbrain.encoding.columns import CONSTANT
from vidbrain.encoding.design import TILE
from vidbrain.encoding.inference import circular_products, draw_shifts, shift_p_values
from vidbrain.encoding.plan import Plan, TrainingSet, Validation, downdate

F32 = NDArray[np.float32]


@dataclass(frozen=True)
class BlockScores:
    """What one block of t voxels gives.

    Attributes
    ----------
    r : (n_folds, t) float32
        Correlation in each held-out run; 0 where the voxel or its prediction does not vary.
    r2 : (t,) float32
        One less the squared errors over the squares about each run's mean, both summed over runs.
    alpha_index : (n_folds, t) int16
    p : (t,) float64
    dead : (t,) bool
        Voxels that are constant or not finite in at least one run; they have r = 0, r2 = 0 and p = 1: a NaN would
        spread into medians, the false discovery rate and maps.
    """

    r: F32
    r2: F32
    alpha_index: NDArray[np.int16]
    p: NDArray[np.float64]
    dead: NDArray[np.bool_]


def score_block(plan: Plan, Y: F32, *, n_permutations: int, seed: int) -> BlockScores:
    """Fit and test a block of voxels.

    Parameters
    ----------
    plan
        The feature side.
    Y : (n, t) float32
        BOLD of the plan's rows; any offset and scale.
    n_permutations, seed
        Of the circular shifts.
    """
    Y, dead = standardise(Y, plan.run)
    cross = cross_products(plan, Y) if plan.form == "primal" else None
    chosen = choose_alphas(plan, Y, cross)
    n_folds = len(plan.runs)
    r = np.zeros((n_folds, Y.shape[1]), np.float32)
    errors, squares = np.zeros(Y.shape[1]), np.zeros(Y.shape[1])
    products: dict[int, F32] = {}
    for number in range(plan.n_sets):
        training = plan.training_set(number)
        for test in training.tests:
            measured = Y[test.rows]
            predicted = predict(plan, training, test.scores, Y, cross, chosen[test.fold])
            errors += np.sum((measured - predicted) ** 2, axis=0, dtype=np.float64)
            measured -= measured.mean(axis=0)
            predicted -= predicted.mean(axis=0)
            y_squares = np.sum(measured**2, axis=0, dtype=np.float64)
            norm = np.sqrt(np.sum(predicted**2, axis=0, dtype=np.float64) * y_squares)
            squares += y_squares
            scale = np.divide(1.0, norm, out=np.zeros_like(norm), where=norm > 0)
            r[test.fold] = np.sum(predicted * measured, axis=0, dtype=np.float64) * scale
            predicted *= scale.astype(np.float32)
            products[test.fold] = circular_products(predicted, measured)
    by_fold = [products[fold] for fold in range(n_folds)]
    shifts = draw_shifts([len(product) for product in by_fold], n_permutations, seed)
    p = shift_p_values(by_fold, shifts)
    r[:, dead] = 0
    p[dead] = 1
    r2 = 1 - np.divide(errors, squares, out=np.ones_like(errors), where=squares > 0)
    r2[dead] = 0
    return BlockScores(r, r2.astype(np.float32), chosen.astype(np.int16), p, dead)


def standardise(Y: F32, run: NDArray[np.int64]) -> tuple[F32, NDArray[np.bool_]]:
    """Centre and scale voxels, so that float32 products lose nothing to an offset; mark those that cannot be.

    Parameters
    ----------
    Y : (n, t) float32
    run : (n,) int64
        Run of each row.

    Returns
    -------
    Y : (n, t) float32
        A copy; dead voxels are 0.
    dead : (t,) bool
        Not finite, or constant in at least one run.
    """
    dead: NDArray[np.bool_] = np.logical_not(np.isfinite(Y).all(axis=0))
    Y = np.where(dead, np.float32(0), Y)
    size = np.abs(Y).max(axis=0)
    for number in np.unique(run):
        dead |= np.ptp(Y[run == number], axis=0) <= CONSTANT * size
    Y -= Y[:1].copy()  # an exact shift first: the float32 mean of raw BOLD would round
    Y -= Y.mean(axis=0, dtype=np.float64).astype(np.float32)
    scale = np.sqrt(np.mean(Y**2, axis=0, dtype=np.float64))
    Y *= np.where(dead, 0, 1 / np.where(dead, 1, scale)).astype(np.float32)
    return Y, dead


def tiles(n_voxels: int) -> Iterator[slice]:
    """Cut a block into tiles."""
    for start in range(0, n_voxels, TILE):
        yield slice(start, min(start + TILE, n_voxels))


def cross_products(plan: Plan, Y: F32) -> tuple[F32, gram.F64]:
    """Sum X'Y and Y over each cell of rows: (n_cells, p, t) float32 and (n_cells, t) float64."""
    X = plan.design()
    n_cells = int(plan.cell.max()) + 1
    products = np.zeros((n_cells, X.shape[1], Y.shape[1]), np.float32)
    sums = np.zeros((n_cells, Y.shape[1]))
    for cell in range(n_cells):
        rows = np.flatnonzero(plan.cell == cell)
        sums[cell] = Y[rows].sum(axis=0, dtype=np.float64)
        for start in range(0, len(rows), gram.CHUNK_ROWS):
            chunk = rows[start : start + gram.CHUNK_ROWS]
            Xt, Yc = np.ascontiguousarray(X[chunk].T), Y[chunk]
            for tile in tiles(Y.shape[1]):
                products[cell, :, tile] += Xt @ Yc[:, tile]
    return products, sums


def project(plan: Plan, training: TrainingSet, Y_train: F32, cross: tuple[F32, gram.F64] | None, tile: slice) -> F32:
    """Z (q, tile): the training set's ``V' X' Y``."""
    if cross is None:
        return training.projection @ Y_train[:, tile]
    products, sums = cross
    add, subtract = downdate(plan.cell, training.rows)
    n_cells = len(products)
    signs = [(c, 1.0) for c in (add or range(n_cells))] + [(c, -1.0) for c in subtract]
    total = np.zeros((products.shape[1], Y_train[:, tile].shape[1]))
    y_total = np.zeros(total.shape[1])
    for cell, sign in signs:
        total += sign * products[cell, :, tile]
        y_total += sign * sums[cell, tile]
    total -= np.outer(training.mean, y_total)
    return training.projection @ total.astype(np.float32)


def choose_alphas(plan: Plan, Y: F32, cross: tuple[F32, gram.F64] | None) -> NDArray[np.int64]:
    """Choose the alpha with the best r over inner folds, for each outer fold and voxel: (n_folds, t) indices."""
    scores = np.zeros((len(plan.runs), len(plan.alphas), Y.shape[1]), np.float32)
    for number in range(plan.n_sets if len(plan.alphas) > 1 else 0):
        training = plan.training_set(number)
        if not training.validations:
            continue
        Y_train = Y[training.rows]
        held: list[tuple[Validation, F32, F32, F32]] = []
        for validation in training.validations:
            measured = Y[validation.rows]
            measured -= measured.mean(axis=0)
            y_squares: F32 = np.asarray(np.sum(measured**2, axis=0, dtype=np.float64), np.float32)
            held.append((validation, np.ascontiguousarray(validation.scores.T), measured, y_squares))
        for tile in tiles(Y.shape[1]):
            Z = project(plan, training, Y_train, cross, tile)
            parts = [(v.factor, scores_t @ y[:, tile], squares[tile]) for v, scores_t, y, squares in held]
            found = gram.inner_correlations(Z, parts, training.shrinkage)
            for (validation, *_), r in zip(held, found, strict=True):
                scores[validation.fold][:, tile] += r
    return np.stack([gram.best_alpha(fold) for fold in scores])


def predict(
    plan: Plan,
    training: TrainingSet,
    scores: F32,
    Y: F32,
    cross: tuple[F32, gram.F64] | None,
    chosen: NDArray[np.int64],
) -> F32:
    """Predict held-out rows with each voxel's alpha: scores (n_f, q) to (n_f, t), with the training mean added."""
    Y_train = Y[training.rows]
    predicted = np.empty((len(scores), Y.shape[1]), np.float32)
    by_direction = np.ascontiguousarray(training.shrinkage.T)
    for tile in tiles(Y.shape[1]):
        Z = project(plan, training, Y_train, cross, tile)
        Z *= by_direction[:, chosen[tile]]
        np.matmul(scores, Z, out=predicted[:, tile])
    predicted += Y_train.mean(axis=0, dtype=np.float64).astype(np.float32)
    return predicted
