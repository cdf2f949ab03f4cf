"""Ridge regression with an alpha for each target: a solver on arrays, and an estimator with scikit-learn's manners."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, MultiOutputMixin, RegressorMixin
from sklearn.utils.validation import check_consistent_length, check_is_fitted, validate_data

from vidbrain.encoding.ridge import gram
from vidbrain.encoding.ridge.metrics import correlation
from vidbrain.encoding.ridge.search import check_alphas, fit_ridge, solve_ridge
from vidbrain.errors import ConfigError

F64 = NDArray[np.float64]
Floats = NDArray[Any]


def solve(X: ArrayLike, Y: ArrayLike, alphas: ArrayLike) -> tuple[Floats, F64]:
    """Minimise ``|Y - X B - b|^2 + alpha |B|^2`` for each target, with one decomposition for all.

    Parameters
    ----------
    X : (n, p)
    Y : (n, t)
    alphas : scalar or (t,)
        Positive; one for all targets, or one each.

    Returns
    -------
    coef : (p, t), float32 where Y is, else float64
    intercept : (t,) float64

    Raises
    ------
    ConfigError
        If an alpha is not positive.
    ValueError
        If shapes do not fit.
    """
    X, Y = np.asarray(X), as_floats(np.asarray(Y))
    check_consistent_length(X, Y)
    alphas = np.broadcast_to(np.asarray(alphas, np.float64), (Y.shape[1],))
    check_alphas(alphas)
    return solve_ridge(X, Y, alphas)


def as_floats(Y: NDArray[Any]) -> Floats:
    """Y itself where it is float32 or float64, else as float64."""
    return Y if Y.dtype in (np.float32, np.float64) else Y.astype(np.float64)


def make_grid(X: Floats, alphas: ArrayLike | None, n_alphas: int, decades: float) -> F64:
    """Give the alphas ascending, or the default grid: `decades` powers of ten around X's mean eigenvalue."""
    if alphas is not None:
        grid = np.sort(np.atleast_1d(np.asarray(alphas, np.float64)))
        check_alphas(grid)
        return grid
    n, p = X.shape
    variance = float(np.mean(np.var(X, axis=0, dtype=np.float64))) or 1.0
    return gram.alpha_grid(variance * n * p / min(p, n - 1), n_alphas, decades)


def number_folds(n: int, groups: ArrayLike | None, n_folds: int) -> NDArray[np.int64]:
    """Fold of each row: its group, or one of `n_folds` contiguous blocks of equal length.

    Raises
    ------
    ConfigError
        If there are fewer than two folds, or fewer than two rows for each.
    """
    if groups is not None:
        check_consistent_length(np.empty(n), groups)
        labels, fold = np.unique(np.asarray(groups), return_inverse=True)
        if len(labels) < 2:
            raise ConfigError(
                "groups hold one label: nothing is left to train on when it is held out",
                where="groups",
                hint="give each run a label of its own, or no groups for contiguous folds",
            )
        return np.asarray(fold, np.int64)
    if n_folds < 2 or n < 2 * n_folds:
        raise ConfigError(
            f"{n_folds} folds of {n} rows: there must be 2 folds or more, of 2 rows or more each",
            where="n_folds",
            hint=f"use between 2 and {n // 2}" if n >= 4 else "give at least 4 rows",
        )
    return np.repeat(np.arange(n_folds), [len(part) for part in np.array_split(np.arange(n), n_folds)])


class LinearEncoder(MultiOutputMixin, RegressorMixin, BaseEstimator):
    """What encoders share once they have `coef_` and `intercept_`: predictions, and the mean r as their score."""

    coef_: Floats
    intercept_: Floats

    def predict(self, X: ArrayLike) -> Floats:
        """Predict (n, t), or (n,) where y was one-dimensional."""
        check_is_fitted(self)
        features = validate_data(self, X, dtype=(np.float64, np.float32), reset=False)
        return np.asarray(features @ self.coef_.T + self.intercept_.astype(self.coef_.dtype))

    def score(self, X: ArrayLike, y: ArrayLike) -> float:
        """Mean over targets of the r between y and its prediction.

        Parameters
        ----------
        X : (n, p)
        y : (n, t) or (n,)
        """
        predicted = self.predict(X)
        n = len(predicted)
        return float(correlation(np.asarray(y).reshape(n, -1), predicted.reshape(n, -1)).mean())


class RidgeEncoder(LinearEncoder):
    """Ridge regression that chooses an alpha for each target by the r of held-out groups.

    Columns are centred, not scaled. Where there are more columns than rows, the dual form is solved. Products with
    float32 targets are float32; with float64 targets only the search is, and the fit is float64.

    Parameters
    ----------
    alphas : array of float, optional
        Penalties to choose from; default `n_alphas` over `alpha_decades` powers of ten around the mean eigenvalue.
    n_alphas, alpha_decades
        Of the default grid.
    n_folds
        Contiguous folds, where `fit` gets no groups.
    alpha_per_target
        Whether each target has an alpha of its own; else all share the one with the best mean r over targets.

    Attributes
    ----------
    coef_ : (n_targets, n_features), or (n_features,) for one-dimensional y
    intercept_ : (n_targets,) or float
    alphas_ : (r,)
        The grid.
    alpha_ : (n_targets,) or float
        The choice.
    cv_scores_ : (r, n_targets) float32
        Mean validation r.
    """

    def __init__(
        self,
        alphas: ArrayLike | None = None,
        *,
        n_alphas: int = 20,
        alpha_decades: float = 8.0,
        n_folds: int = 5,
        alpha_per_target: bool = True,
    ) -> None:
        self.alphas = alphas
        self.n_alphas = n_alphas
        self.alpha_decades = alpha_decades
        self.n_folds = n_folds
        self.alpha_per_target = alpha_per_target

    def fit(self, X: ArrayLike, y: ArrayLike, groups: ArrayLike | None = None) -> Self:
        """Choose alphas and fit.

        Parameters
        ----------
        X : (n, p)
        y : (n, t) or (n,)
        groups : (n,), optional
            Run of each row; each is left out once.

        Raises
        ------
        ConfigError
            If alphas are not positive, or rows or groups are too few for the folds.
        """
        features, targets = validate_data(
            self, X, y, dtype=(np.float64, np.float32), multi_output=True, y_numeric=True, ensure_min_samples=2
        )
        targets = as_floats(targets)
        self.alphas_ = make_grid(features, self.alphas, self.n_alphas, self.alpha_decades)
        fold = number_folds(len(features), groups, self.n_folds)
        Y = targets.reshape(len(targets), -1)
        found = fit_ridge(features, Y, fold, self.alphas_, alpha_per_target=self.alpha_per_target)
        alpha = self.alphas_[found.alpha_index]
        flat = targets.ndim == 1
        self.cv_scores_ = found.alpha_scores
        self.coef_ = found.coef[:, 0] if flat else found.coef.T
        self.intercept_ = found.intercept[0] if flat else found.intercept
        self.alpha_ = alpha[0] if flat else alpha
        return self
