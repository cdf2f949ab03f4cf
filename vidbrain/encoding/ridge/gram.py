"""Ridge for many voxels and many alphas from Gram matrices alone: plain NumPy and SciPy.

One training set is decomposed once, ``X_t' X_t = V diag(lambda) V'`` (X centred and scaled by the training rows).
With ``Z = V' X_t' Y_t`` the prediction of validation rows at alpha is ``T D Z``, where ``T = X_v V`` and
``D = diag(1 / (lambda + alpha))``. Hence, for every alpha at once and without forming a prediction::

    <prediction, y> = sum_j D_j Z_j W_j          with W = T' Y_v
    |prediction|^2  = | R D Z |^2                with T = Q R

The p side is float64; products with Y are float32, which is safe because X and Y were centred first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
Form = Literal["primal", "dual", "hat"]
"""Which matrix is decomposed: the covariance of each training set, its kernel, or the covariance of all of an outer
fold's training rows, from which inner folds follow by their hat blocks."""

CONSTANT_IN_FOLD = 1e-10
"""A column whose training variance is below this share of its variance over all rows is constant in that fold: its
coefficient is 0 there."""

CHUNK_ROWS = 2048
"""Rows per float32 product; longer sums are added up in float64."""


@dataclass(frozen=True)
class Moments:
    """Sums over rows from which a fold's covariance follows: ``n``, ``sum x`` (p,) and ``X'X`` (p, p), in float64."""

    n: int
    total: F64
    gram: F64

    def __add__(self, other: Moments) -> Moments:
        return Moments(self.n + other.n, self.total + other.total, self.gram + other.gram)

    def __sub__(self, other: Moments) -> Moments:
        return Moments(self.n - other.n, self.total - other.total, self.gram - other.gram)


@dataclass(frozen=True)
class Basis:
    """A training set in its eigenbasis.

    Attributes
    ----------
    eigenvalues : (q,) float64
        Descending, all positive: directions without variance are left out.
    mean, inverse_scale : (p,) float64
        Of the training rows; `inverse_scale` includes the columns' weights, and is 0 for columns that are constant
        there.
    loadings : (p, q) float64
        ``scale^-1 V``: scores of new rows are ``(x - mean) @ loadings``.
    scores : (n_t, q) float64 or None
        ``X_t V`` of the training rows; None in the primal form, which does not need them.
    """

    eigenvalues: F64
    mean: F64
    inverse_scale: F64
    loadings: F64
    scores: F64 | None

    def scores_of(self, X: F32, columns: NDArray[np.bool_] | slice = slice(None)) -> F64:
        """Project rows, (n, p) to (n, q), with the training mean removed; only the share of some columns, if given."""
        return (X[:, columns].astype(np.float64) - self.mean[columns]) @ self.loadings[columns]


def moments(X: F32) -> Moments:
    """Sum rows and their outer products in float64, `CHUNK_ROWS` at a time."""
    total, gram = np.zeros(X.shape[1]), np.zeros((X.shape[1], X.shape[1]))
    for start in range(0, len(X), CHUNK_ROWS):
        part = X[start : start + CHUNK_ROWS].astype(np.float64)
        total += part.sum(axis=0)
        gram += part.T @ part
    return Moments(len(X), total, gram)


def mean_squares(X: F32) -> F64:
    """Mean square of each column in float64, `CHUNK_ROWS` at a time."""
    total = np.zeros(X.shape[1])
    for start in range(0, len(X), CHUNK_ROWS):
        total += np.sum(X[start : start + CHUNK_ROWS].astype(np.float64) ** 2, axis=0)
    return total / len(X)


def inverse_scales(variance: F64, reference: F64 | None) -> F64:
    """One over the standard deviation, and 0 where the column is constant in the fold; 1 without a reference."""
    if reference is None:
        return np.ones(len(variance))
    varies = variance > CONSTANT_IN_FOLD * reference
    return np.where(varies, 1.0 / np.sqrt(np.where(varies, variance, 1.0)), 0.0)


def weighted(inverse: F64, weight: F64 | None) -> F64:
    """Inverse scales times the columns' weights, where there are any."""
    return inverse if weight is None else inverse * weight


def primal_basis(sums: Moments, reference: F64 | None, *, weight: F64 | None = None) -> Basis:
    """Decompose the covariance of a training set (p <= n).

    Parameters
    ----------
    sums
        Of the training rows.
    reference : (p,) float64 or None
        Variance of the columns over all rows; None leaves columns as they are.
    weight : (p,) float64 or None
        Multiplies the scaled columns: the square root of a band's gamma. Loadings include it.
    """
    mean = sums.total / sums.n
    gram = sums.gram - np.outer(mean, sums.total)
    inverse = weighted(inverse_scales(np.diag(gram) / sums.n, reference), weight)
    gram *= inverse[:, None]
    gram *= inverse
    eigenvalues, vectors = positive_part(gram, sums.n)
    return Basis(eigenvalues, mean, inverse, inverse[:, None] * vectors, None)


def dual_basis(X: F32, reference: F64 | None, *, weight: F64 | None = None) -> Basis:
    """Decompose the kernel of a training set (p > n).

    Parameters
    ----------
    X : (n_t, p) float32
        Training rows.
    reference : (p,) float64 or None
        Variance of the columns over all rows; None leaves columns as they are.
    weight : (p,) float64 or None
        Multiplies the scaled columns: the square root of a band's gamma. Loadings include it.
    """
    centred = X.astype(np.float64)
    mean = centred.mean(axis=0)
    centred -= mean
    inverse = weighted(inverse_scales(np.mean(centred**2, axis=0), reference), weight)
    centred *= inverse
    eigenvalues, vectors = positive_part(centred @ centred.T, len(X))
    root = np.sqrt(eigenvalues)
    loadings = inverse[:, None] * (centred.T @ (vectors / root))
    return Basis(eigenvalues, mean, inverse, loadings, vectors * root)


def decompose(X: F32) -> Basis:
    """Decompose training rows, (n, p), in the form that their shape asks for, without scaling the columns."""
    return primal_basis(moments(X), None) if X.shape[1] <= len(X) else dual_basis(X, None)


def positive_part(matrix: F64, n: int) -> tuple[F64, F64]:
    """Eigenvalues, descending, and eigenvectors of a symmetric matrix, without its numerical null space."""
    eigenvalues, vectors = scipy.linalg.eigh(matrix, check_finite=False, driver="evd")
    floor = max(float(eigenvalues[-1]), 0.0) * max(n, len(matrix)) * np.finfo(np.float64).eps
    keep = np.flatnonzero(eigenvalues > floor)[::-1]
    return eigenvalues[keep], vectors[:, keep]


def alpha_grid(mean_eigenvalue: float, n_alphas: int, decades: float) -> F64:
    """Alphas, ascending, evenly spaced in the logarithm around the mean eigenvalue; one alpha is that eigenvalue."""
    if n_alphas == 1:
        return np.array([mean_eigenvalue])
    return mean_eigenvalue * np.logspace(-decades / 2, decades / 2, n_alphas)


def triangle(scores: F64) -> F32:
    """Upper factor R of centred validation scores, at most q rows: ``|T x| = |R x|`` for every x.

    Parameters
    ----------
    scores : (n_v, q) float64, centred

    Returns
    -------
    (min(n_v, q), q) float32
    """
    factor: F64 = scipy.linalg.qr(scores, mode="r", check_finite=False)[0]
    return np.triu(factor[: min(scores.shape)]).astype(np.float32)


def squared_norms(factor: F32, Z: F32, out: F32, panel: int = 96) -> None:
    """Write the squared column norms of ``factor @ Z``, (t,), skipping the zeros below the diagonal panel by panel."""
    out[:] = 0
    for top in range(0, len(factor), panel):
        part = factor[top : top + panel, top:] @ Z[top:]
        out += np.einsum("ij,ij->j", part, part)


def norms_of(factor: F32, Z: F32, shrinkage: F32) -> F32:
    """Squared column norms of ``factor @ (D Z)`` for every row D of the shrinkage, (r, t)."""
    out, shrunk = np.empty((len(shrinkage), Z.shape[1]), np.float32), np.empty_like(Z)
    for weights, squares in zip(shrinkage, out, strict=True):
        np.multiply(Z, weights[:, None], out=shrunk)
        squared_norms(factor, shrunk, squares)
    return out


def inner_correlations(
    Z: F32,
    parts: Sequence[tuple[F32, F32, F32]],
    shrinkage: F32,
    mixture: F32 | None = None,
    terms: F32 | None = None,
    norms: Callable[[F32, F32, F32], F32] = norms_of,
) -> list[F32]:
    """Correlation of predicted and measured for every alpha, from products.

    Parameters
    ----------
    Z : (q, t) float32
        Training set's ``V' X' Y``.
    parts
        For each validation set of this training set: R (k, q), W (q, t) and the centred sum of squares of y (t,).
    shrinkage : (r, q) float32
        ``1 / (lambda + alpha)``.
    mixture : (r, m), terms : (m, q) float32
        If given, and m is less than r, norms of predictions come from ``mixture @ terms`` in place of `shrinkage`.
    norms
        Computes them; `norms_of`, or the same elsewhere.

    Returns
    -------
    list of (r, t) float32
        One a validation set; 0 where prediction or measurement does not vary.
    """
    if mixture is not None and terms is not None and 0 < len(terms) < len(shrinkage):
        predicted = [mixed_norms(factor, Z, mixture, terms) for factor, _, _ in parts]
    else:
        predicted = [norms(factor, Z, shrinkage) for factor, _, _ in parts]
    return [
        ratio(shrinkage @ (Z * W), squares, y_squares)
        for (_, W, y_squares), squares in zip(parts, predicted, strict=True)
    ]


def mixed_norms(factor: F32, Z: F32, mixture: F32, terms: F32, panel: int = 96) -> F32:
    """Squared column norms of ``factor @ (D Z)`` for every row D of ``mixture @ terms``, (r, t).

    The products are formed for the m terms alone; those of the r rows are mixtures of them, panel by panel.
    """
    (n_rows, n_terms), n_voxels = mixture.shape, Z.shape[1]
    scaled = np.empty((len(terms), *Z.shape), np.float32)
    for position, weights in enumerate(terms):
        np.multiply(Z, weights[:, None], out=scaled[position])
    out = np.zeros((n_rows, n_voxels), np.float32)
    for top in range(0, len(factor), panel):
        rows = factor[top : top + panel, top:]
        products = np.empty((n_terms, len(rows), n_voxels), np.float32)
        for position in range(n_terms):
            np.matmul(rows, scaled[position, top:], out=products[position])
        mixed = (mixture @ products.reshape(n_terms, -1)).reshape(n_rows, len(rows), n_voxels)
        out += np.einsum("ajt,ajt->at", mixed, mixed)
    return out


def ratio(product: F32, squares: F32, y_squares: F32) -> F32:
    """``product / sqrt(squares * y_squares)``, and 0 where one of them does not vary."""
    norm = np.sqrt(squares) * np.sqrt(y_squares)
    return np.divide(product, norm, out=np.zeros_like(product), where=norm > 0)


def best_alpha(scores: F32) -> NDArray[np.int64]:
    """Index of the best alpha of each voxel, (r, t) to (t,); a tie goes to the larger alpha."""
    return len(scores) - 1 - np.argmax(scores[::-1], axis=0)
