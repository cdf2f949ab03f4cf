"""What was taken out of the BOLD is taken out of the features too.

Cleaned BOLD is the part of the signal that is orthogonal to the confounds. To predict it from features that still hold
their share of drift and of what correlates with head motion is to predict with an error that no weight can undo. By the
theorem of Frisch, Waugh and Lovell the regression on both, cleaned alike, gives the weights of the regression with the
confounds in it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]

GONE = 1e-6
"""A column that keeps a smaller share of its norm was a mixture of the confounds: what is left is float32 rounding."""


@dataclass(frozen=True)
class Nuisance:
    """What is taken out of the delayed columns of each run: ``X - Q B``.

    Attributes
    ----------
    basis : (n, c) float64
        Q, row by row: the orthonormal basis of the row's run over its used rows. Runs with fewer than c directions,
        or none, have columns of 0.
    loadings : (n_runs, c, p) float64
        B = Q'X by run.
    gone : (n_runs, p) bool
        Columns of which nothing is left in the run: they are exactly 0 there, lest rounding be scaled up.
    """

    basis: F64
    loadings: F64
    gone: NDArray[np.bool_]

    def take_out(self, values: F64, rows: NDArray[np.int64], run: NDArray[np.int64], columns: slice) -> None:
        """Clean values, (len(rows), n_columns), in place; `run` holds each row's run."""
        for number in np.unique(run):
            mine = np.flatnonzero(run == number)
            values[mine] -= self.basis[rows[mine]] @ self.loadings[number, :, columns]
            gone = np.flatnonzero(self.gone[number, columns])
            if len(gone):
                values[np.ix_(mine, gone)] = 0.0


def nuisance_columns(confounds: F64, *, centred: bool = True, detrended: bool = True) -> F64:
    """Put beside the confounds of a run what else was taken from its BOLD: a constant, and a linear trend.

    Parameters
    ----------
    confounds : (n_trs, n)
        As they were regressed out of the BOLD, centred.
    centred, detrended
        Whether the BOLD has no mean, and no trend, in this run. Detrended series have no mean either.

    Returns
    -------
    (n_trs, n to n + 2) float64
    """
    n_trs = len(confounds)
    columns = [np.ones(n_trs)] * (centred or detrended) + [np.linspace(-1, 1, n_trs)] * detrended
    return np.column_stack([*columns, confounds])


def orthonormal(nuisance: F64) -> F64:
    """Orthonormal basis of the nuisance columns, (n, c) to (n, rank); collinear columns are harmless."""
    scale = np.linalg.norm(nuisance, axis=0)
    basis, singular, _ = np.linalg.svd(nuisance / np.where(scale > 0, scale, 1), full_matrices=False)
    return basis[:, singular > 1e-10 * max(nuisance.shape) * singular[:1].max(initial=0.0)]


def partial_out(X: NDArray[np.float32], nuisance: F64) -> NDArray[np.float32]:
    """Residuals of the columns of X after least squares on the nuisance columns, over the rows that are given.

    Parameters
    ----------
    X : (n, p)
        Rows of one run that are used.
    nuisance : (n, c)
        The same rows; collinear columns are harmless.

    Returns
    -------
    (n, p) float32
    """
    basis = orthonormal(nuisance)
    values = X.astype(np.float64)
    before = np.linalg.norm(values, axis=0)
    values -= basis @ (basis.T @ values)
    values[:, np.linalg.norm(values, axis=0) <= GONE * before] = 0.0
    return values.astype(np.float32)
