"""Very sparse random projections, and the error that the lemma of Johnson and Lindenstrauss allows them."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.sparse import csr_array


@lru_cache(maxsize=32)
def projection_matrix(n_in: int, n_out: int, seed: int) -> csr_array:
    """Draw a very sparse random projection.

    Entries are ``±sqrt(s / n_out)`` with probability ``1 / (2 s)`` each, and 0 otherwise, ``s = sqrt(n_in)`` (Li,
    Hastie & Church 2006, KDD, eq. 4), so that squared lengths are kept on average. It depends on its arguments alone:
    trained and untrained models of one shape share it.

    Parameters
    ----------
    n_in, n_out
        Length of a vector before and after.
    seed
        Of the draw.

    Returns
    -------
    (n_out, n_in) float32, sparse
    """
    rng = np.random.default_rng([seed, n_in, n_out])
    density = 1 / math.sqrt(n_in)
    counts = rng.binomial(n_in, density, n_out)
    columns = [np.sort(rng.choice(n_in, count, replace=False, shuffle=False)) for count in counts]
    signs = rng.integers(0, 2, counts.sum()) * 2 - 1
    values = (signs / math.sqrt(density * n_out)).astype(np.float32)
    return csr_array((values, np.concatenate(columns), np.concatenate([[0], np.cumsum(counts)])), shape=(n_out, n_in))


def project(vectors: Any, n_out: int, seed: int) -> Any:  # noqa: ANN401 -- a NumPy array or a torch tensor, and the same out
    """Project (..., n_in) to (..., n_out) float32, on the device that holds the vectors."""
    n_in = vectors.shape[-1]
    flat = vectors.reshape(-1, n_in)
    if isinstance(flat, np.ndarray):
        found: NDArray[np.float32] = projection_matrix(n_in, n_out, seed) @ flat.T.astype(np.float32)
        return np.ascontiguousarray(found.T).reshape(*vectors.shape[:-1], n_out)
    matrix = _tensor(n_in, n_out, seed, str(flat.device))
    return (matrix @ flat.float().T).T.reshape(*vectors.shape[:-1], n_out)


@lru_cache(maxsize=32)
def _tensor(n_in: int, n_out: int, seed: int, device: str) -> Any:  # noqa: ANN401 -- a tensor; see below
    import torch  # workers without a network start without it

    found = projection_matrix(n_in, n_out, seed).tocoo()
    places = torch.from_numpy(np.stack([found.row, found.col]).astype(np.int64))
    values = torch.from_numpy(found.data)
    return torch.sparse_coo_tensor(places, values, (n_out, n_in), is_coalesced=True, check_invariants=False).to(device)


def projection_error(n_points: int, n_out: int) -> float | None:
    """Relative error of squared distances that `n_points` points keep under a projection to `n_out` numbers.

    The smallest e below 1 with ``n_out >= 4 ln(n_points) / (e^2/2 - e^3/3)`` (Dasgupta & Gupta 2003, Random Struct.
    Algorithms 22, 60, theorem 2.1): some projection keeps all distances within 1 ± e, and one draw does with
    probability at least ``1 / n_points``. The theorem is for dense projections; very sparse ones come near it for
    vectors without a few dominant entries.

    Returns
    -------
    float or None
        None where `n_out` is too small for any error below 1.
    """
    wanted = 4 * math.log(max(n_points, 2)) / n_out
    if wanted >= 1 / 6:
        return None
    return float(brentq(lambda e: e**2 / 2 - e**3 / 3 - wanted, 0.0, 1.0))
