"""Held-out predictions of every fold from one decomposition of all rows.

For ridge regression with an intercept, the residuals of rows f by a model that was fitted without them are
``(I - H_ff)^-1 (y_f - yhat_f)``, where yhat and the hat matrix H are those of the model that was fitted with them
(Cook & Weisberg 1982, for one row: the PRESS residual). The prediction without them is therefore
``yhat_f - B (y_f - yhat_f)`` with ``B = (I - H_ff)^-1 - I``, which keeps its digits where predictions are small. With
many small folds this is cheaper than decomposing each training set; columns are scaled once, by all rows of the outer
training set, not fold by fold.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]


def corrections(scores: F64, eigenvalues: F64, alphas: F64, n_rows: int) -> F64:
    """Compute ``B = (I - H_ff)^-1 - I = (I - H_ff)^-1 H_ff`` for every alpha.

    Parameters
    ----------
    scores : (n_f, q)
        ``X_f V`` of the fold's rows, with the mean of all fitted rows removed.
    eigenvalues : (q,)
        Of the centred ``X' X`` of all fitted rows, the fold among them.
    alphas : (r,)
    n_rows
        Rows that were fitted: the intercept's share of H is one over it.

    Returns
    -------
    (r, n_f, n_f) float64
    """
    n_fold = len(scores)
    out = np.empty((len(alphas), n_fold, n_fold))
    for position, alpha in enumerate(alphas):
        hat = (scores / (eigenvalues + alpha)) @ scores.T + 1.0 / n_rows
        out[position] = np.linalg.solve(np.eye(n_fold) - hat, hat)
    return out
