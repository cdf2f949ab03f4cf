"""Held-out predictions of every fold from one decomposition of the kernel of all rows: for more columns than rows.

With the centred kernel ``K = U diag(lambda) U'`` of full rank and ``A = I - H = U diag(alpha / (lambda + alpha)) U'``,
the residuals of rows f by a model that was fitted without them are ``A_ff^-1 (A y)_f`` (Cook & Weisberg 1982). Both y
and A y are linear in ``z = U' y``, and so is the held-out prediction::

    yhat_f = T z        T = U_f - A_ff^-1 U_f diag(alpha / (lambda + alpha))

T is computed in float64, where its difference costs no digits; it is small where predictions are. One decomposition
takes the place of one a fold.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from vidbrain.encoding.ridge import gram

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

MOST_BYTES = 1 << 30
"""Of all smoothers; where they are larger, each fold is decomposed."""


@dataclass(frozen=True)
class Smoothers:
    """Held-out predictions as linear functions of ``z = U' y``.

    Attributes
    ----------
    to_z : (q, n) float32
        U'.
    folds
        Rows of each fold.
    smoothers : one (r, n_f, q) float32 a fold
        T of every alpha, centred over the fold's rows; scaled, which r does not see, so that float32 holds those of
        strong penalties.
    """

    to_z: F32
    folds: Sequence[slice]
    smoothers: Sequence[F32]

    def score(self, rows: F32, squares: F32) -> F32:
        """Mean validation r over folds of every alpha.

        Parameters
        ----------
        rows : (n, w) float32
            Centred targets.
        squares : (n_folds, w) float32
            Of the targets, about the mean of each fold.

        Returns
        -------
        (r, w) float32
        """
        Z = self.to_z @ rows
        total = np.zeros((len(self.smoothers[0]), rows.shape[1]), np.float32)
        for fold, of_alphas, y_squares in zip(self.folds, self.smoothers, squares, strict=True):
            y = rows[fold] - rows[fold].mean(axis=0)
            for T, out in zip(of_alphas, total, strict=True):
                predicted = T @ Z
                product = np.einsum("it,it->t", predicted, y)
                out += gram.ratio(product, np.einsum("it,it->t", predicted, predicted), y_squares)
        total /= len(self.folds)
        return total


def is_worth(n: int, folds: Sequence[slice], n_alphas: int, n_directions: int) -> bool:
    """Whether the kernel has full rank, folds are small against the rest, and smoothers fit in memory."""
    largest = max(fold.stop - fold.start for fold in folds)
    return n_directions == n - 1 and 2 * largest <= n and 4 * n_alphas * n * n_directions <= MOST_BYTES


def make_smoothers(
    vectors: F64, eigenvalues: F64, folds: Sequence[slice], alphas: F64, pool: ThreadPoolExecutor
) -> Smoothers:
    """Compute the smoothers of every fold and alpha.

    Parameters
    ----------
    vectors : (n, q), eigenvalues : (q,)
        Of the centred kernel, which has full rank: q is n - 1.
    folds
        Rows of each fold, contiguous.
    alphas : (r,)
        Positive.
    pool
        Where they are computed.
    """

    def of_fold(fold: slice) -> F32:
        U = vectors[fold]
        U_centred = U - U.mean(axis=0)
        out = np.empty((len(alphas), *U.shape), np.float32)
        shrunk, T = np.empty_like(U), np.empty_like(U)
        for alpha, smoother in zip(alphas, out, strict=True):
            np.multiply(U, alpha / (eigenvalues + alpha), out=shrunk)
            factor = scipy.linalg.cho_factor(shrunk @ U.T, lower=True, overwrite_a=True, check_finite=False)
            inverse = scipy.linalg.cho_solve(factor, np.eye(len(U)), check_finite=False)
            # Centring the small matrix centres the product.
            inverse -= inverse.mean(axis=0)
            np.matmul(inverse, shrunk, out=T)
            np.subtract(U_centred, T, out=T)
            np.multiply(T, 1 + alpha / eigenvalues[0], out=smoother, casting="same_kind")
        return out

    return Smoothers(np.ascontiguousarray(vectors.T, np.float32), folds, list(pool.map(of_fold, folds)))
