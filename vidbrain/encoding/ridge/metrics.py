"""How well predictions fit, for each target: r, R squared, and both split over the bands of a joint model.

Everything is float64. What does not vary scores 0; what is not a number stays so, in its own target.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike, NDArray

F64 = NDArray[np.float64]

TILE = 1024
"""Targets whose float64 copies are in memory at once."""


def correlation(Y: ArrayLike, predicted: ArrayLike) -> F64:
    """Pearson r of each target; 0 where the target or its prediction does not vary.

    Parameters
    ----------
    Y, predicted : (n, t)

    Returns
    -------
    (t,) float64
    """
    return correlation_split(Y, np.asarray(predicted)[None])[0]


def r2(Y: ArrayLike, predicted: ArrayLike) -> F64:
    """One less the squared errors over the squares of Y about its mean; 0 where the target does not vary.

    Parameters
    ----------
    Y, predicted : (n, t)

    Returns
    -------
    (t,) float64
    """
    Y, predicted = _pair(Y, np.asarray(predicted)[None])
    found = np.zeros(Y.shape[1])
    for at in _tiles(Y.shape[1]):
        squares = np.sum(_centre(Y[:, at]) ** 2, axis=0)
        errors = np.sum((Y[:, at].astype(np.float64) - predicted[0][:, at]) ** 2, axis=0)
        found[at] = _ratio(squares - errors, squares)
    return found


def r2_split(Y: ArrayLike, predicted: ArrayLike) -> F64:
    """Share of each band in the R squared of the sum of all bands' predictions: the product measure.

    With measured y and the prediction f = sum of f_b, all centred, band b has ``(2 y'f_b - f'f_b) / y'y``. Shares add
    up to the R squared of f exactly. A band can have a negative share: it then hurts more than it helps, or works
    against another band. (Product measure: Pratt 1987; for banded ridge: Dupre la Tour et al. 2022, NeuroImage.)

    Parameters
    ----------
    Y : (n, t)
    predicted : (n_bands, n, t)
        Each band's part of the prediction. Both are centred over the given rows: an offset belongs to no band.

    Returns
    -------
    (n_bands, t) float64
        0 where the target does not vary.
    """
    Y, predicted = _pair(Y, predicted)
    found = np.zeros((len(predicted), Y.shape[1]))
    for at in _tiles(Y.shape[1]):
        measured, parts = _centre(Y[:, at]), _centre(predicted[:, :, at])
        products = np.einsum("nt,bnt->bt", 2 * measured - parts.sum(axis=0), parts)
        found[:, at] = _ratio(products, np.sum(measured**2, axis=0))
    return found


def correlation_split(Y: ArrayLike, predicted: ArrayLike) -> F64:
    """Share of each band in the r of the sum of all bands' predictions, ``y'f_b / (|y| |f|)``.

    Parameters
    ----------
    Y : (n, t)
    predicted : (n_bands, n, t)

    Returns
    -------
    (n_bands, t) float64
        Adds up to r over bands; 0 where the target or the whole prediction does not vary.
    """
    Y, predicted = _pair(Y, predicted)
    found = np.zeros((len(predicted), Y.shape[1]))
    for at in _tiles(Y.shape[1]):
        measured, parts = _centre(Y[:, at]), _centre(predicted[:, :, at])
        norm = np.sqrt(np.sum(measured**2, axis=0) * np.sum(parts.sum(axis=0) ** 2, axis=0))
        found[:, at] = _ratio(np.einsum("nt,bnt->bt", measured, parts), norm)
    return found


def _pair(Y: ArrayLike, predicted: ArrayLike) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    Y, predicted = np.asarray(Y), np.asarray(predicted)
    if Y.ndim != 2 or predicted.shape[1:] != Y.shape:
        raise ValueError(f"measured {Y.shape} and predicted {predicted.shape[1:]} must be equal (rows, targets)")
    return Y, predicted


def _tiles(n_targets: int) -> Iterator[slice]:
    for start in range(0, n_targets, TILE):
        yield slice(start, start + TILE)


def _centre(A: NDArray[np.floating]) -> F64:
    """Remove the mean over rows, (..., n, t), in float64; a constant becomes 0 exactly."""
    moved = A.astype(np.float64)
    moved -= moved[..., :1, :].copy()
    moved -= moved.mean(axis=-2, keepdims=True)
    return moved


def _ratio(product: F64, norm: F64) -> F64:
    return np.divide(product, norm, out=np.zeros_like(product), where=np.broadcast_to(norm != 0, product.shape))
