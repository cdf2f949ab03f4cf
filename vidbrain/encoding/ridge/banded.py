"""Banded ridge with scikit-learn's manners: a penalty for each band of features, and what each band explains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import clone
from sklearn.utils.validation import check_is_fitted, validate_data

from vidbrain.encoding.ridge.bands import draw_gammas, resolve_bands
from vidbrain.encoding.ridge.metrics import r2_split
from vidbrain.encoding.ridge.plain import Floats, LinearEncoder, as_floats, make_grid, number_folds
from vidbrain.encoding.ridge.search import fit_ridge
from vidbrain.errors import ConfigError

F64 = NDArray[np.float64]


class BandedRidgeEncoder(LinearEncoder):
    """Ridge regression with a penalty for each band of features and each target, chosen by the r of held-out groups.

    Candidate weights gamma of the bands are drawn on the simplex; band b has the penalty ``alpha / gamma_b``. Each
    target takes the pair of gamma and alpha with the best mean validation r. Columns are centred, not scaled: scale
    bands before, if their units differ.

    Parameters
    ----------
    bands : mapping or sequence of slice or column numbers, optional
        Every column in one band; default one band of all, which is plain ridge.
    alphas, n_alphas, alpha_decades, n_folds
        As for `RidgeEncoder`; the default grid is centred for equal weights.
    n_candidates
        Weights to try, the point of equal weights among them.
    corners
        Whether to try each band alone.
    concentration
        Of the Dirichlet distributions that candidates are drawn from.
    random_state
        Seed of the draws.

    Attributes
    ----------
    band_names_ : list of str
    columns_ : dict of str to (p_b,) int64
    gammas_ : (n_candidates, n_bands)
    alphas_ : (r,)
    coef_ : (n_targets, n_features), or (n_features,) for one-dimensional y
    intercept_ : (n_targets,) or float
    alpha_ : (n_targets,) or float
    gamma_ : (n_bands, n_targets) or (n_bands,)
    cv_scores_ : (n_candidates, n_targets) float32
        Mean validation r of each candidate with its best alpha.
    x_mean_ : (n_features,)
        What the parts of a prediction are relative to.
    """

    def __init__(
        self,
        bands: Mapping[str, slice | ArrayLike] | Sequence[slice | ArrayLike] | None = None,
        *,
        alphas: ArrayLike | None = None,
        n_alphas: int = 20,
        alpha_decades: float = 8.0,
        n_folds: int = 5,
        n_candidates: int = 50,
        corners: bool = False,
        concentration: Sequence[float] = (0.1, 1.0),
        random_state: int = 0,
    ) -> None:
        self.bands = bands
        self.alphas = alphas
        self.n_alphas = n_alphas
        self.alpha_decades = alpha_decades
        self.n_folds = n_folds
        self.n_candidates = n_candidates
        self.corners = corners
        self.concentration = concentration
        self.random_state = random_state

    def fit(self, X: ArrayLike, y: ArrayLike, groups: ArrayLike | None = None) -> Self:
        """Choose weights and alphas, and fit.

        Parameters
        ----------
        X : (n, p)
        y : (n, t) or (n,)
        groups : (n,), optional
            Run of each row; each is left out once.

        Raises
        ------
        ConfigError
            If bands, alphas, candidates or folds cannot be.
        """
        features, targets = validate_data(
            self, X, y, dtype=(np.float64, np.float32), multi_output=True, y_numeric=True, ensure_min_samples=2
        )
        targets = as_floats(targets)
        self.columns_ = resolve_bands(self.bands, features.shape[1])
        self.band_names_ = list(self.columns_)
        self.gammas_ = draw_gammas(
            self.n_candidates,
            len(self.columns_),
            concentration=self.concentration,
            corners=self.corners,
            seed=self.random_state,
        )
        # Equal weights multiply every eigenvalue by 1 / n_bands.
        given = self.alphas is not None
        grid = make_grid(features, self.alphas, self.n_alphas, self.alpha_decades)
        self.alphas_ = grid if given else grid / len(self.columns_)
        fold = number_folds(len(features), groups, self.n_folds)
        Y = targets.reshape(len(targets), -1)
        bands = list(self.columns_.values())
        found = fit_ridge(features, Y, fold, self.alphas_, gammas=self.gammas_, bands=bands)
        alpha, gamma = self.alphas_[found.alpha_index], self.gammas_[found.candidate].T
        flat = targets.ndim == 1
        self.x_mean_ = features.mean(axis=0, dtype=np.float64)
        self.cv_scores_ = found.candidate_scores
        self.coef_ = found.coef[:, 0] if flat else found.coef.T
        self.intercept_ = found.intercept[0] if flat else found.intercept
        self.alpha_ = alpha[0] if flat else alpha
        self.gamma_ = gamma[:, 0] if flat else gamma
        return self

    def predict_bands(self, X: ArrayLike) -> Floats:
        """Predict from each band alone, relative to the mean of the training rows.

        Returns
        -------
        (n_bands, n, t), or (n_bands, n) where y was one-dimensional
            Adds up to the prediction less the mean of the training targets.
        """
        check_is_fitted(self)
        features = validate_data(self, X, dtype=(np.float64, np.float32), reset=False)
        centred = features - self.x_mean_.astype(features.dtype)
        return np.stack([centred[:, columns] @ self.coef_[..., columns].T for columns in self.columns_.values()])

    def split_scores(self, X: ArrayLike, y: ArrayLike) -> F64:
        """Share of each band in the R squared of each target, about the means of these rows; see `metrics.r2_split`.

        Parameters
        ----------
        X : (n, p)
        y : (n, t) or (n,)

        Returns
        -------
        (n_bands, t) float64
        """
        parts = self.predict_bands(X)
        return r2_split(np.asarray(y).reshape(parts.shape[1], -1), parts.reshape(*parts.shape[:2], -1))


@dataclass(frozen=True)
class VariancePartition:
    """What the bands of a joint model explain of held-out rows; every R squared is about the means of these rows.

    Attributes
    ----------
    bands
        Names.
    joint : (t,) float64
        R squared of the joint model.
    split : (n_bands, t) float64
        Shares that add up to `joint`: what a band contributes in the presence of the others.
    unique : (n_bands, t) float64
        `joint` less the R squared of a model without the band, chosen and fitted anew: what no other band can replace.
    """

    bands: list[str]
    joint: F64
    split: F64
    unique: F64


def partition_variance(
    model: BandedRidgeEncoder,
    X: ArrayLike,
    Y: ArrayLike,
    X_test: ArrayLike,
    Y_test: ArrayLike,
    groups: ArrayLike | None = None,
) -> VariancePartition:
    """Fit the joint model and one without each band, and compare them on held-out rows.

    The model without a band chooses its own weights and alphas: with those of the joint model it would be
    handicapped, and the band would look more unique than it is.

    Parameters
    ----------
    model
        Settings; left as it is.
    X : (n, p), Y : (n, t)
    X_test : (n_test, p), Y_test : (n_test, t)
        Rows that no choice may see.
    groups : (n,), optional
        As for `fit`.

    Raises
    ------
    ConfigError
        If there is one band only.
    """
    X, X_test, Y_test = np.asarray(X), np.asarray(X_test), np.asarray(Y_test)
    joint = clone(model).fit(X, Y, groups)
    if len(joint.band_names_) < 2:
        raise ConfigError("variance is partitioned over 2 bands or more", where="bands")
    split = joint.split_scores(X_test, Y_test)
    total = split.sum(axis=0)
    unique = np.empty_like(split)
    for number, left_out in enumerate(joint.band_names_):
        kept = {name: columns for name, columns in joint.columns_.items() if name != left_out}
        order = np.concatenate(list(kept.values()))
        ends = np.cumsum([len(columns) for columns in kept.values()])
        bands = {name: slice(end - len(kept[name]), end) for name, end in zip(kept, ends.tolist(), strict=True)}
        reduced = clone(model).set_params(bands=bands).fit(X[:, order], Y, groups)
        unique[number] = total - reduced.split_scores(X_test[:, order], Y_test).sum(axis=0)
    return VariancePartition(joint.band_names_, total, split, unique)
