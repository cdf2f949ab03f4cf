"""What was taken out of the BOLD is taken out of the features too.

Cleaned BOLD is the part of the signal that is orthogonal to the confounds. To predict it from features that still hold
their share of drift and of what correlates with head motion is to predict with an error that no weight can undo. By the
theorem of Frisch, Waugh and Lovell the regression on both, cleaned alike, gives the weights of the regression with the
confounds in it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def nuisance_columns(confounds: NDArray[np.float64]) -> NDArray[np.float64]:
    """Put a constant and a linear trend beside the confounds of a run.

    Parameters
    ----------
    confounds : (n_trs, n)
        As they were regressed out of the BOLD.

    Returns
    -------
    (n_trs, n + 2) float64
    """
    n_trs = len(confounds)
    return np.column_stack([np.ones(n_trs), np.linspace(-1, 1, n_trs), confounds])


def partial_out(X: NDArray[np.float32], nuisance: NDArray[np.float64]) -> NDArray[np.float32]:
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
    scale = np.linalg.norm(nuisance, axis=0)
    basis, singular, _ = np.linalg.svd(nuisance / np.where(scale > 0, scale, 1), full_matrices=False)
    basis = basis[:, singular > 1e-10 * max(nuisance.shape) * singular[:1].max(initial=0.0)]
    values = X.astype(np.float64)
    before = np.linalg.norm(values, axis=0)
    values -= basis @ (basis.T @ values)
    # A constant column, or a confound itself, leaves rounding: make it exactly nothing, lest it be scaled up.
    values[:, np.linalg.norm(values, axis=0) <= 1e-6 * before] = 0.0
    return values.astype(np.float32)
