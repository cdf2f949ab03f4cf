"""The solver and the estimator, against scikit-learn and himalaya."""

import numpy as np
import pytest
import scipy.stats
from himalaya.ridge import Ridge as HimalayaRidge
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from vidbrain.encoding.ridge.banded import BandedRidgeEncoder
from vidbrain.encoding.ridge.plain import RidgeEncoder, solve


@pytest.mark.parametrize("shape", [(60, 15), (30, 80)])
def test_solve_equals_sklearn_and_himalaya_with_an_alpha_per_target(shape):
    rng = np.random.default_rng(0)
    X, Y = rng.standard_normal(shape) + 3, rng.standard_normal((shape[0], 6)) - 2
    alphas = np.logspace(-2, 4, 6)
    coef, intercept = solve(X, Y, alphas)
    reference = Ridge(alpha=alphas, solver="cholesky").fit(X, Y)
    np.testing.assert_allclose(coef, reference.coef_.T, atol=1e-9)
    np.testing.assert_allclose(intercept, reference.intercept_, atol=1e-8)
    other = HimalayaRidge(alpha=alphas, fit_intercept=True, solver_params={"warn": False}).fit(X, Y)
    np.testing.assert_allclose(coef, other.coef_, atol=1e-8)
    np.testing.assert_allclose(intercept, other.intercept_, atol=1e-8)


def test_solve_survives_duplicate_and_constant_columns():
    rng = np.random.default_rng(0)
    X = rng.standard_normal((40, 5))
    X = np.column_stack([X, X[:, 0], np.full(40, 7.0)])
    Y = rng.standard_normal((40, 3))
    coef, intercept = solve(X, Y, 1.0)
    np.testing.assert_allclose(coef[0], coef[5], atol=1e-12)
    np.testing.assert_allclose(coef[6], 0, atol=1e-12)
    np.testing.assert_allclose(X @ coef + intercept, Ridge(alpha=1.0).fit(X, Y).predict(X), atol=1e-9)


def test_solve_refuses_alphas_that_are_not_positive():
    with pytest.raises(ValueError, match="positive"):
        solve(np.eye(3), np.eye(3), [1.0, 0.0, 2.0])


@parametrize_with_checks([RidgeEncoder(), BandedRidgeEncoder(n_candidates=3)])
def test_estimators_have_the_manners_of_scikit_learn(estimator, check):
    check(estimator)


@pytest.mark.parametrize("p", [5, 90])
def test_score_is_the_mean_r_over_targets(p):
    rng = np.random.default_rng(1)
    X = rng.standard_normal((60, p))
    Y = X[:, :5] @ rng.standard_normal((5, 3)) + rng.standard_normal((60, 3))
    model = RidgeEncoder().fit(X[:45], Y[:45])
    predicted = model.predict(X[45:])
    expected = [scipy.stats.pearsonr(predicted[:, v], Y[45:, v]).statistic for v in range(3)]
    assert model.score(X[45:], Y[45:]) == pytest.approx(np.mean(expected))
    single = RidgeEncoder().fit(X[:45], Y[:45, 0])
    assert single.score(X[45:], Y[45:, 0]) == pytest.approx(expected[0])


def test_estimator_fits_into_a_pipeline_and_a_search():
    rng = np.random.default_rng(1)
    X = rng.standard_normal((80, 30)) * np.logspace(0, 3, 30)
    Y = X[:, :3] @ rng.standard_normal((3, 4)) + rng.standard_normal((80, 4))
    pipeline = make_pipeline(StandardScaler(), RidgeEncoder())
    searched = GridSearchCV(pipeline, {"ridgeencoder__n_folds": [2, 4]}, cv=2).fit(X, Y)
    assert searched.best_score_ > 0.3


@pytest.mark.parametrize("p", [10, 90])
def test_estimator_chooses_the_alpha_of_a_naive_search(p):
    rng = np.random.default_rng(1)
    groups = np.repeat([3, 1, 2], 25)
    X = rng.standard_normal((75, p))
    Y = X @ rng.standard_normal((p, 20)) / np.sqrt(p) + rng.standard_normal((75, 20))
    alphas = np.logspace(-1, 4, 8)
    model = RidgeEncoder(alphas=alphas).fit(X, Y, groups=groups)
    scores = np.zeros((8, 20))
    for group in (1, 2, 3):
        train, held = groups != group, groups == group
        for a, alpha in enumerate(alphas):
            prediction = Ridge(alpha=alpha).fit(X[train], Y[train]).predict(X[held])
            scores[a] += [np.corrcoef(prediction[:, v], Y[held, v])[0, 1] / 3 for v in range(20)]
    np.testing.assert_allclose(model.cv_scores_, scores, atol=2e-6)
    np.testing.assert_allclose(model.alpha_, alphas[np.argmax(scores, axis=0)])
    np.testing.assert_allclose(model.coef_, Ridge(alpha=model.alpha_).fit(X, Y).coef_, atol=1e-6)
