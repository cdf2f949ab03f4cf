"""Many alphas from few products: shrinkages ``1 / (lambda + alpha)`` of all alphas are nearly mixtures of a few.

As a function of lambda and alpha the shrinkage is a Cauchy kernel, whose numerical rank over eight decades is about ten
whatever the number of alphas. Predictions of every alpha are then mixtures of the predictions of a few terms, so that
the products that dominate the choice of alpha are formed for the terms alone.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]


def compress(shrinkage: F64, energy: F64, tolerance: float) -> tuple[F64, F64]:
    """Write all rows of a shrinkage matrix as mixtures of the fewest terms.

    The error of a row is measured in what it does to predictions: the root of the energy of ``error * x`` over that of
    ``row * x``, for x with the energies given. With ``energy_j = |T_j|^2 lambda_j`` (T the validation scores) this is
    the relative error, in expectation, of the prediction of a voxel of white noise, over directions that are
    orthogonal in the validation set too.

    Parameters
    ----------
    shrinkage : (r, q)
    energy : (q,)
        Not negative.
    tolerance
        Largest error of any row.

    Returns
    -------
    mixture : (r, m), terms : (m, q)
        ``mixture @ terms`` is `shrinkage` within the tolerance; m is at most the smaller of r and q.
    """
    weight = np.sqrt(energy)
    weighed = shrinkage * weight
    size = np.linalg.norm(weighed, axis=1)
    rows = weighed / np.where(size > 0, size, 1)[:, None]
    left, singular, right = np.linalg.svd(rows, full_matrices=False)
    for m in range(1, len(singular) + 1):
        error = np.linalg.norm(rows - (left[:, :m] * singular[:m]) @ right[:m], axis=1)
        if error.max() <= tolerance:
            break
    # Terms in the scale of the shrinkage itself: least squares of each direction on the mixture.
    mixture = left[:, :m] * singular[:m] * size[:, None]
    terms = right[:m] / np.where(weight > 0, weight, 1)
    return mixture, np.where(weight > 0, terms, 0.0)
