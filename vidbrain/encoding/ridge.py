"""Ridge regression with an alpha for each target: a solver on arrays, and an estimator with scikit-learn's manners."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, MultiOutputMixin, RegressorMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from vidbrain.encoding import gram
from vidbrain.encoding.folds import Rows

F64 = NDArray[np.float64]


def solve(X: ArrayLike, Y: ArrayLike, alphas: ArrayLike) -> tuple[F64, F64]:
    """Minimise ``|Y - X B - b|^2 + alpha |B|^2`` for each target, with one decomposition for all.

    Parameters
    ----------
    X : (n, p)
    Y : (n, t)
    alphas : scalar or (t,)
        Positive; one for all targets, or one each.

    Returns
    -------
    coef : (p, t) float64
    intercept : (t,) float64

    Raises
    ------
    ValueError
        If an alpha is not positive, or shapes do not fit.
    """
    X, Y = np.asarray(X, np.float64), np.asarray(Y, np.float64)
    alphas = np.broadcast_to(np.asarray(alphas, np.float64), (Y.shape[1],))
    if (alphas <= 0).any():
        raise ValueError("alphas must be positive")
    x_mean, y_mean = X.mean(axis=0), Y.mean(axis=0)
    Xc, Yc = X - x_mean, Y - y_mean
    n, p = X.shape
    coef: F64
    if p <= n:
        eigenvalues, vectors = gram.positive_part(Xc.T @ Xc, n)
        coef = vectors @ (vectors.T @ (Xc.T @ Yc) / (eigenvalues[:, None] + alphas))
    else:
        eigenvalues, vectors = gram.positive_part(Xc @ Xc.T, n)
        coef = Xc.T @ (vectors @ (vectors.T @ Yc / (eigenvalues[:, None] + alphas)))
    return coef, y_mean - x_mean @ coef


def score_alphas(X: F64, Y: F64, folds: list[tuple[Rows, Rows]], alphas: F64) -> NDArray[np.float32]:
    """Mean over folds of the validation r of every alpha and target, (r, t), by the same products as `fit_encoding`.

    Parameters
    ----------
    X : (n, p), Y : (n, t)
    folds
        Training and validation rows.
    alphas : (r,)
    """
    X32 = np.asarray(X - X.mean(axis=0), np.float32)
    total = np.zeros((len(alphas), Y.shape[1]), np.float32)
    for train, validation in folds:
        basis = gram.decompose(X32[train])
        Y_train = Y[train] - Y[train].mean(axis=0)
        Y_held = Y[validation] - Y[validation].mean(axis=0)
        scores = basis.scores_of(X32[validation])
        scores -= scores.mean(axis=0)
        squares = np.sum(Y_held**2, axis=0).astype(np.float32)
        part = (gram.triangle(scores), (scores.T @ Y_held).astype(np.float32), squares)
        Z = (basis.scores_of(X32[train]).T @ Y_train).astype(np.float32)
        shrinkage = (1 / (basis.eigenvalues + alphas[:, None])).astype(np.float32)
        total += gram.inner_correlations(Z, [part], shrinkage)[0] / np.float32(len(folds))
    return total


class RidgeEncoder(MultiOutputMixin, RegressorMixin, BaseEstimator):
    """Ridge regression that chooses an alpha for each target by the r of held-out groups.

    Parameters
    ----------
    alphas : array of float, optional
        Penalties to choose from; default `n_alphas` over `alpha_decades` powers of ten around the mean eigenvalue.
    n_alphas, alpha_decades
        Of the default grid.
    n_folds
        Contiguous folds, where `fit` gets no groups.

    Attributes
    ----------
    coef_ : (n_targets, n_features), or (n_features,) for one-dimensional y
    intercept_ : (n_targets,) or float
    alphas_ : (r,)
        The grid.
    alpha_ : (n_targets,) or float
        The choice.
    cv_scores_ : (r, n_targets)
        Mean validation r.
    """

    def __init__(
        self,
        alphas: ArrayLike | None = None,
        *,
        n_alphas: int = 20,
        alpha_decades: float = 8.0,
        n_folds: int = 5,
    ) -> None:
        self.alphas = alphas
        self.n_alphas = n_alphas
        self.alpha_decades = alpha_decades
        self.n_folds = n_folds

    def fit(self, X: ArrayLike, y: ArrayLike, groups: ArrayLike | None = None) -> Self:
        """Choose alphas and fit.

        Parameters
        ----------
        X : (n, p)
        y : (n, t) or (n,)
        groups : (n,), optional
            Run of each row; each is left out once.
        """
        features, targets = validate_data(
            self, X, y, dtype=np.float64, multi_output=True, y_numeric=True, ensure_min_samples=2
        )
        Y = targets.reshape(len(targets), -1)
        n, p = features.shape
        if self.alphas is None:
            varies = float(np.mean(np.var(features, axis=0))) or 1.0
            grid = gram.alpha_grid(varies * n * p / min(p, n - 1), self.n_alphas, self.alpha_decades)
        else:
            grid = np.sort(np.asarray(self.alphas, np.float64))
        if groups is None:
            parts = [b for b in np.array_split(np.arange(n), min(self.n_folds, n)) if len(b)]
        else:
            parts = [np.flatnonzero(np.asarray(groups) == g) for g in np.unique(np.asarray(groups))]
        folds = [(np.setdiff1d(np.arange(n), part), part) for part in parts if 0 < len(part) < n]
        scored = [fold for fold in folds if len(fold[0]) > 1]
        self.alphas_ = grid
        self.cv_scores_ = score_alphas(features, Y, scored, grid)
        alpha = grid[gram.best_alpha(self.cv_scores_)]
        coef, intercept = solve(features, Y, alpha)
        flat = targets.ndim == 1
        self.coef_ = coef[:, 0] if flat else coef.T
        self.intercept_ = intercept[0] if flat else intercept
        self.alpha_ = alpha[0] if flat else alpha
        return self

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """Predict (n, t), or (n,) where y was one-dimensional."""
        check_is_fitted(self)
        features = validate_data(self, X, dtype=np.float64, reset=False)
        return np.asarray(features @ self.coef_.T + self.intercept_)
