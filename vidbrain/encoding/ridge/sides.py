"""The two sides of a ridge search over arrays in memory: features, decomposed for each fold, and tiles of targets.

Rows are sorted by fold, so that a fold is a slice. A tile of targets is reduced once to what every fold and every
candidate weighting of the features needs of it:

* primal (few columns): ``C_f = X_f' Y_f`` of each fold, of which training sets are sums. Weights only rescale:
  ``V' (D C_f)``, ``D G D``. A fold with more rows than columns is represented by the R of its QR factors, one with
  fewer by its rows.
* dual (few rows): its rows. ``K_gamma = sum_b gamma_b K_b``, and folds are parts of it.

Products with targets are float32: X and Y were centred and scaled before. The feature side is float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial, reduce
from itertools import combinations_with_replacement
from operator import add
from typing import Any, TypeVar

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from vidbrain.encoding.ridge import gram
from vidbrain.encoding.ridge.bands import Columns, column_weights
from vidbrain.encoding.ridge.smoothers import Smoothers, is_worth, make_smoothers

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
Floats = NDArray[Any]
Pick = slice | NDArray[np.int64]
Sums = TypeVar("Sums", gram.Moments, F32)


class Targets:
    """Targets, read a tile at a time: centred, scaled to unit variance, with rows sorted by fold.

    Attributes
    ----------
    dtype
        float32 where the targets are, else float64.
    mean, scale : (t,) float64
        Filled as tiles are read; the scale of a constant target is 1.
    """

    def __init__(self, Y: Floats, order: NDArray[np.int64] | None) -> None:
        self.Y, self.order = Y, order
        self.dtype: np.dtype[np.floating[Any]] = np.dtype(np.float32 if Y.dtype == np.float32 else np.float64)
        self.mean, self.scale = np.zeros(Y.shape[1]), np.ones(Y.shape[1])

    def read(self, columns: Pick) -> Floats:
        """Read a tile, (n, w); constant targets are 0."""
        tile = self.Y[:, columns]
        y = np.array(tile if self.order is None else np.take(tile, self.order, axis=0), self.dtype, order="C")
        first = y[0].copy()
        y -= first  # an exact shift first: the float32 mean of raw BOLD would round
        shift = y.mean(axis=0, dtype=np.float64)
        y -= shift.astype(self.dtype)
        size = np.abs(y).max(axis=0)
        varies = size > 8 * np.finfo(self.dtype).eps * np.abs(first)
        y *= np.where(varies, 1 / np.where(varies, size, 1), 0).astype(self.dtype)
        scale = np.sqrt(np.mean(y * y, axis=0, dtype=np.float64))
        scale[~varies] = 1
        y *= (1 / scale).astype(self.dtype)
        self.mean[columns] = first.astype(np.float64) + shift
        self.scale[columns] = np.where(varies, scale * size, 1)
        return y


@dataclass(frozen=True)
class Tile:
    """What a search needs of w targets.

    Attributes
    ----------
    rows : (n, w) float32, or None where `products` say all
    products, total : (n_folds, p, w) and (p, w) float32, or None in the dual form
    sums, squares : (n_folds, w) float32
        Of each fold's rows; squares are about the fold's mean.
    """

    rows: F32 | None
    products: F32 | None
    total: F32 | None
    sums: F32
    squares: F32


@dataclass(frozen=True)
class Weights:
    """A candidate: the weight of each column (p,), and the weighted kernel (n, n) in the dual form."""

    columns: F64
    kernel: F64 | None


@dataclass(frozen=True)
class FoldBasis:
    """A training set in its eigenbasis, and the rows that it is validated on.

    Attributes
    ----------
    to_z, to_w : (q, m) float32
        Turn the training and the held-out part of a `Tile` into ``Z = V' X_t' Y_t`` and ``W = T' Y_v``.
    factor : (k, q) float32
        R of the held-out scores T.
    eigenvalues : (q,) float64
    """

    to_z: F32
    to_w: F32
    factor: F32
    eigenvalues: F64


@dataclass(frozen=True)
class Solution:
    """All rows in their eigenbasis: ``vectors (lambda + alpha)^-1 vectors'`` turns a statistic into coefficients.

    Attributes
    ----------
    vectors : (m, q)
        In the precision of the targets.
    eigenvalues : (q,) float64
    lift : (p, n) or None
        Turns dual into primal coefficients.
    """

    vectors: Floats
    eigenvalues: F64
    lift: Floats | None

    def coefficients(self, statistic: Floats, alpha: F64) -> Floats:
        """Solve for targets whose statistic (m, w) and alphas (w,) are given: (p, w)."""
        inner = self.vectors.T @ statistic
        inner /= (self.eigenvalues[:, None] + alpha).astype(inner.dtype)
        outer = self.vectors @ inner
        return outer if self.lift is None else self.lift @ outer


class Primal:
    """Feature side from Gram matrices of the columns.

    Parameters
    ----------
    X : (n, p) float64
        Centred; rows sorted by fold.
    folds
        Rows of each fold; none where there is nothing to search.
    bands
        Columns of each band.
    dtype
        Of the last fit.
    pool
        Threads to work in.
    """

    def __init__(
        self, X: F64, folds: Sequence[slice], bands: Sequence[Columns], dtype: np.dtype[Any], pool: ThreadPoolExecutor
    ) -> None:
        self.X32 = X.astype(np.float32)
        self.X = self.X32 if dtype == np.float32 else X
        self.folds, self.bands = folds, bands
        self.cells = list(pool.map(_moments, [X[rows] for rows in folds]))
        self.all = reduce(add, self.cells) if folds else _moments(X)
        self.most = [2 * cell.n > self.all.n for cell in self.cells]
        self.train = [_others(self.cells, self.all, f, self.most[f]) for f in range(len(folds))]
        self.means = [(sums.total / sums.n).astype(np.float32) for sums in self.train]
        self.by_rows = [rows.stop - rows.start <= X.shape[1] for rows in folds]
        self.held = list(pool.map(_held_rows, [X[rows] for rows in folds]))

    def weigh(self, gamma: F64) -> Weights:
        """Prepare a candidate."""
        return Weights(column_weights(gamma, self.bands, self.X.shape[1]), None)

    def basis(self, weights: Weights, fold: int) -> FoldBasis:
        """Decompose the training set without one fold."""
        basis = gram.primal_basis(self.train[fold], None, weight=weights.columns)
        scores = self.held[fold] @ basis.loadings
        to_z = np.ascontiguousarray(basis.loadings.T, np.float32)
        to_w = np.ascontiguousarray(scores.T, np.float32) if self.by_rows[fold] else to_z
        return FoldBasis(to_z, to_w, gram.triangle(scores), basis.eigenvalues)

    def solution(self, weights: Weights) -> Solution:
        """Decompose all rows."""
        basis = gram.primal_basis(self.all, None, weight=weights.columns)
        return Solution(basis.loadings.astype(self.X.dtype), basis.eigenvalues, None)

    def reduce(self, y: Floats) -> Tile:
        """Reduce a tile of targets."""
        rows: F32 = y.astype(np.float32, copy=False)
        products = np.zeros((len(self.folds), self.X.shape[1], y.shape[1]), np.float32)
        for number, fold in enumerate(self.folds):
            for start in range(fold.start, fold.stop, gram.CHUNK_ROWS):
                part = slice(start, min(start + gram.CHUNK_ROWS, fold.stop))
                products[number] += self.X32[part].T @ rows[part]
        total = np.asarray(products.sum(axis=0))
        return Tile(rows if any(self.by_rows) else None, products, total, *fold_sums(rows, self.folds))

    def train_part(self, tile: Tile, fold: int) -> F32:
        """Centred ``X_t' Y_t``, (p, w)."""
        assert tile.products is not None
        assert tile.total is not None
        y_sum = _others(tile.sums, tile.sums.sum(axis=0), fold, self.most[fold])
        return _others(tile.products, tile.total, fold, self.most[fold]) - np.outer(self.means[fold], y_sum)

    def held_part(self, tile: Tile, fold: int) -> F32:
        """Rows of the fold, or its centred ``X_v' Y_v``."""
        if self.by_rows[fold]:
            assert tile.rows is not None
            return tile.rows[self.folds[fold]]
        assert tile.products is not None
        mean = (self.cells[fold].total / self.cells[fold].n).astype(np.float32)
        return tile.products[fold] - np.outer(mean, tile.sums[fold])

    def statistic(self, y: Floats, tile: Tile) -> Floats:
        """``X'Y`` over all rows, (p, w), in the precision of the targets."""
        assert tile.total is not None
        return tile.total if y.dtype == np.float32 else np.asarray(self.X.T @ y)


class Dual:
    """Feature side from kernels, a matrix (n, n) for each band; parameters as for `Primal`."""

    def __init__(
        self, X: F64, folds: Sequence[slice], bands: Sequence[Columns], dtype: np.dtype[Any], pool: ThreadPoolExecutor
    ) -> None:
        self.X = X.astype(dtype, copy=False)
        self.folds, self.bands = folds, bands
        self._last: tuple[F64, F64, F64] | None = None
        self.kernels = np.empty((len(bands), len(X), len(X)))
        places = list(combinations_with_replacement(folds or [slice(0, len(X))], 2))
        for kernel, columns in zip(self.kernels, bands, strict=True):
            part = X if len(columns) == X.shape[1] else X[:, columns]
            for _ in pool.map(partial(_fill_kernel, part, kernel), places):
                pass

    def weigh(self, gamma: F64) -> Weights:
        """Prepare a candidate."""
        kernel = self.kernels[0] if len(gamma) == 1 else np.tensordot(gamma, self.kernels, axes=1)
        return Weights(column_weights(gamma, self.bands, self.X.shape[1]), kernel)

    def smoothers(self, weights: Weights, alphas: F64, pool: ThreadPoolExecutor) -> Smoothers | None:
        """Predict every fold from one decomposition of all rows; None where it does not serve."""
        if not is_worth(len(self.X), self.folds, len(alphas), len(self.X) - 1):
            return None
        vectors, eigenvalues = self._decomposed(weights)
        if not is_worth(len(self.X), self.folds, len(alphas), len(eigenvalues)):
            return None
        return make_smoothers(vectors, eigenvalues, self.folds, alphas, pool)

    def basis(self, weights: Weights, fold: int) -> FoldBasis:
        """Decompose the training set without one fold."""
        held = np.arange(self.folds[fold].start, self.folds[fold].stop)
        train = np.delete(np.arange(len(self.X)), held)
        assert weights.kernel is not None
        kernel = weights.kernel[:, train]
        # Rows relative to the training mean, as x - m for every x: k(a, b) - k(a, m) - k(m, b) + k(m, m).
        offset = kernel[train].mean(axis=0)
        kernel = kernel - kernel.mean(axis=1, keepdims=True) - (offset - offset.mean())
        eigenvalues, vectors = gram.positive_part(kernel[train], len(train))
        root = np.sqrt(eigenvalues)
        scores = kernel[held] @ (vectors / root)
        scores -= scores.mean(axis=0)
        to_z = np.ascontiguousarray((vectors * root).T, np.float32)
        return FoldBasis(to_z, np.ascontiguousarray(scores.T, np.float32), gram.triangle(scores), eigenvalues)

    def solution(self, weights: Weights) -> Solution:
        """Decompose all rows."""
        vectors, eigenvalues = self._decomposed(weights)
        scaled = self.X if (weights.columns == 1).all() else self.X * (weights.columns**2).astype(self.X.dtype)
        return Solution(vectors.astype(self.X.dtype), eigenvalues, scaled.T)

    def _decomposed(self, weights: Weights) -> tuple[F64, F64]:
        """Eigenvectors (n, q) and eigenvalues (q,) of all rows; those of the last candidate are kept."""
        if self._last is None or not np.array_equal(self._last[0], weights.columns):
            assert weights.kernel is not None
            eigenvalues, vectors = gram.positive_part(weights.kernel, len(self.X))
            self._last = weights.columns, vectors, eigenvalues
        return self._last[1], self._last[2]

    def reduce(self, y: Floats) -> Tile:
        """Reduce a tile of targets."""
        rows: F32 = y.astype(np.float32, copy=False)
        return Tile(rows, None, None, *fold_sums(rows, self.folds))

    def train_part(self, tile: Tile, fold: int) -> F32:
        """Rows of the other folds: eigenvectors of a centred kernel centre them."""
        assert tile.rows is not None
        rows = self.folds[fold]
        return np.concatenate([tile.rows[: rows.start], tile.rows[rows.stop :]])

    def held_part(self, tile: Tile, fold: int) -> F32:
        """Rows of the fold."""
        assert tile.rows is not None
        return tile.rows[self.folds[fold]]


def fold_sums(rows: F32, folds: Sequence[slice]) -> tuple[F32, F32]:
    """Sum of each fold's rows, and their squares about the fold's mean: (n_folds, w) float32 each."""
    sums = np.stack([rows[fold].sum(axis=0, dtype=np.float64) for fold in folds])
    squares = np.empty_like(sums)
    for number, fold in enumerate(folds):
        mean = (sums[number] / (fold.stop - fold.start)).astype(np.float32)
        squares[number] = np.sum((rows[fold] - mean) ** 2, axis=0, dtype=np.float64)
    return sums.astype(np.float32), squares.astype(np.float32)


def _fill_kernel(X: F64, kernel: F64, place: tuple[slice, slice]) -> None:
    rows, columns = place
    kernel[rows, columns] = X[rows] @ X[columns].T
    kernel[columns, rows] = kernel[rows, columns].T


def _held_rows(X: F64) -> F64:
    """Rows about their mean, or the R of their QR factors where that is smaller."""
    centred = X - X.mean(axis=0)
    if len(X) <= X.shape[1]:
        return centred
    factor: F64 = scipy.linalg.qr(centred, mode="r", overwrite_a=True, check_finite=False)[0]
    return factor[: X.shape[1]]


def _moments(X: F64) -> gram.Moments:
    return gram.Moments(len(X), X.sum(axis=0), X.T @ X)


def _others(cells: Sequence[Sums] | F32, total: Sums, fold: int, most: bool) -> Sums:
    """Sum of all cells but one: the total less that one, unless it holds most rows and digits would be lost."""
    return reduce(add, [cell for f, cell in enumerate(cells) if f != fold]) if most else total - cells[fold]
