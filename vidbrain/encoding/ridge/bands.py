"""Banded ridge, the pure part: bands of columns, candidate weights on the simplex, and weights of columns.

In banded ridge band b of the features has its own penalty. It is written as one alpha and weights gamma on the
simplex: columns of band b are multiplied by ``sqrt(gamma_b)``, so that its penalty is ``alpha / gamma_b``
(Nunez-Elizalde et al. 2019; Dupre la Tour et al. 2022, both NeuroImage). Scaling columns scales Gram matrices:
with D the diagonal of square roots, ``G_gamma = D G D`` and ``C_gamma = D C``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vidbrain.errors import ConfigError

F64 = NDArray[np.float64]
Columns = NDArray[np.int64]


def resolve_bands(
    bands: Mapping[str, slice | ArrayLike] | Sequence[slice | ArrayLike] | None, n_columns: int
) -> dict[str, Columns]:
    """Name the columns of each band.

    Parameters
    ----------
    bands
        Slices or column numbers, in order or by name; None is one band of all columns.
    n_columns
        In all: every column must be in one band.

    Raises
    ------
    ConfigError
        If a band is empty, or a column is in no band, in two, or does not exist.
    """
    if bands is None:
        bands = {"all": slice(None)}
    named = bands.items() if isinstance(bands, Mapping) else ((f"band{i}", band) for i, band in enumerate(bands))
    every = np.arange(n_columns)
    resolved: dict[str, Columns] = {}
    for name, band in named:
        try:
            resolved[name] = np.atleast_1d(every[band if isinstance(band, slice) else np.asarray(band)])
        except IndexError as error:
            raise ConfigError(f"band {name} asks for a column that is not among {n_columns}", where="bands") from error
        if not len(resolved[name]):
            raise ConfigError(f"band {name} has no columns", where="bands")
    times = np.bincount(np.concatenate([*resolved.values(), every[:0]]), minlength=n_columns)
    if (times != 1).any():
        first = int(np.flatnonzero(times != 1)[0])
        raise ConfigError(
            f"column {first} is in {times[first]} bands", where="bands", hint="put every column in one band"
        )
    return resolved


def draw_gammas(
    n_candidates: int,
    n_bands: int,
    *,
    concentration: Sequence[float] = (0.1, 1.0),
    corners: bool = False,
    seed: int = 0,
) -> F64:
    """Draw candidate weights of bands on the simplex.

    The first is the point of equal weights, which is plain ridge; then, if asked, the corners, which are each band
    alone; the others come from Dirichlet distributions.

    Parameters
    ----------
    n_candidates
        In all. Corners that do not fit are not dropped but refused.
    n_bands
        Weights in each candidate.
    concentration
        Of the Dirichlet distributions, taken in turn: 1 is uniform, less prefers corners.
    corners
        Whether to try each band alone.
    seed
        Of the draws.

    Returns
    -------
    (n_candidates, n_bands) float64
        Rows add up to 1.

    Raises
    ------
    ConfigError
        With too few candidates or a concentration that is not positive.
    """
    fixed = [np.full((1, n_bands), 1.0 / n_bands)]
    if n_bands == 1:
        return fixed[0]
    if corners:
        fixed.append(np.eye(n_bands))
    n_drawn = n_candidates - sum(map(len, fixed))
    if n_drawn < 0:
        raise ConfigError(
            f"{n_candidates} candidates cannot hold the equal weights{' and every corner' if corners else ''} "
            f"of {n_bands} bands",
            where="n_candidates",
            hint=f"use at least {n_candidates - n_drawn}",
        )
    if not len(concentration) or min(concentration) <= 0:
        raise ConfigError(f"concentrations must be positive, got {tuple(concentration)}", where="concentration")
    rng = np.random.default_rng(seed)
    drawn = [rng.dirichlet([concentration[i % len(concentration)]] * n_bands) for i in range(n_drawn)]
    return np.concatenate([*fixed, np.reshape(drawn, (n_drawn, n_bands))])


def column_weights(gamma: F64, bands: Iterable[Columns], n_columns: int) -> F64:
    """Square root of its band's gamma for each column, (n_columns,)."""
    weights = np.zeros(n_columns)
    for value, columns in zip(gamma, bands, strict=True):
        weights[columns] = np.sqrt(value)
    return weights
