"""What users of himalaya expect of a ridge toolbox, asked of ours.

The expectations are himalaya's: agreement with scipy and scikit-learn over shapes and penalties, no trace of batches,
one band as plain ridge, scores that split. The questions and the code are our own.
"""

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
from himalaya.kernel_ridge import KernelRidge as HimalayaKernelRidge
from himalaya.ridge import ColumnTransformerNoStack, GroupRidgeCV
from himalaya.ridge import RidgeCV as HimalayaRidgeCV
from himalaya.scoring import correlation_score
from sklearn.linear_model import Ridge
from sklearn.metrics import make_scorer
from sklearn.model_selection import GridSearchCV, KFold

from vidbrain.encoding.ridge.banded import BandedRidgeEncoder
from vidbrain.encoding.ridge.bands import draw_gammas
from vidbrain.encoding.ridge.metrics import correlation
from vidbrain.encoding.ridge.plain import RidgeEncoder, solve
from vidbrain.encoding.ridge.search import fit_ridge

SHAPES = [(30, 10, 3), (10, 5, 20), (12, 40, 3), (25, 24, 1), (25, 25, 2), (25, 26, 40), (60, 1, 5)]


def make_data(n, p, t, offset=0.0, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, p)) + offset
    return X, X @ rng.standard_normal((p, t)) + rng.standard_normal((n, t)) + 10 * offset


# Solvers


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("alpha", np.logspace(-2, 5, 7))
def test_weights_solve_the_normal_equations(shape, alpha):
    X, Y = make_data(*shape)
    X, Y = X - X.mean(axis=0), Y - Y.mean(axis=0)
    coef, intercept = solve(X, Y, alpha)
    assert coef.shape == (X.shape[1], Y.shape[1])
    expected = scipy.linalg.solve(X.T @ X + alpha * np.eye(X.shape[1]), X.T @ Y, assume_a="pos")
    np.testing.assert_allclose(coef, expected, atol=1e-9)
    np.testing.assert_allclose(intercept, 0, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("alpha", np.logspace(-2, 5, 7))
def test_offsets_go_into_the_intercept_as_in_sklearn(shape, alpha):
    X, Y = make_data(*shape, offset=10.0)
    coef, intercept = solve(X, Y, alpha)
    reference = Ridge(alpha=alpha).fit(X, Y)
    np.testing.assert_allclose(coef, np.atleast_2d(reference.coef_).T, atol=1e-8)
    np.testing.assert_allclose(X @ coef + intercept, reference.predict(X).reshape(Y.shape), atol=1e-7)


@pytest.mark.parametrize("shape", SHAPES)
def test_every_target_may_have_a_penalty_of_its_own(shape):
    X, Y = make_data(*shape, offset=1.0)
    alphas = np.logspace(-2, 4, Y.shape[1])
    coef, intercept = solve(X, Y, alphas)
    for v, alpha in enumerate(alphas):
        alone, constant = solve(X, Y[:, v : v + 1], alpha)
        np.testing.assert_allclose(coef[:, v], alone[:, 0], atol=1e-9)
        np.testing.assert_allclose(intercept[v], constant[0], atol=1e-8)


def test_the_dual_form_is_kernel_ridge():
    X, Y = make_data(20, 60, 8)
    X, Y = X - X.mean(axis=0), Y - Y.mean(axis=0)
    for alpha in np.logspace(-1, 3, 4):
        kernel = HimalayaKernelRidge(alpha=alpha, kernel="linear").fit(X, Y)
        np.testing.assert_allclose(solve(X, Y, alpha)[0], kernel.get_primal_coef(), atol=1e-9)


def test_single_precision_stays_single_and_near():
    X, Y = make_data(80, 20, 6, offset=3.0)
    coef, _ = solve(X.astype(np.float32), Y.astype(np.float32), 5.0)
    assert coef.dtype == np.float32
    np.testing.assert_allclose(coef, Ridge(alpha=5.0).fit(X, Y).coef_.T, atol=1e-5)


# Searches


@pytest.mark.parametrize("n_folds", [2, 5])
@pytest.mark.parametrize("offset", [0.0, 10.0])
@pytest.mark.parametrize("p", [10, 60])
def test_one_target_is_searched_as_by_sklearns_grid_search(p, offset, n_folds):
    X, Y = make_data(50, p, 1, offset=offset)
    alphas = np.logspace(-2, 3, 11)
    ours = RidgeEncoder(alphas, n_folds=n_folds).fit(X, Y[:, 0])
    pearson = make_scorer(lambda y, predicted: scipy.stats.pearsonr(y, predicted).statistic)
    theirs = GridSearchCV(Ridge(), {"alpha": alphas}, scoring=pearson, cv=KFold(n_folds)).fit(X, Y[:, 0])
    np.testing.assert_allclose(ours.cv_scores_[:, 0], theirs.cv_results_["mean_test_score"], atol=1e-5)
    assert ours.alpha_ == pytest.approx(theirs.best_params_["alpha"])
    np.testing.assert_allclose(ours.coef_, theirs.best_estimator_.coef_, atol=1e-8)
    np.testing.assert_allclose(ours.predict(X), theirs.predict(X), atol=1e-7)
    assert ours.coef_.shape == (p,)
    assert np.ndim(ours.intercept_) == 0


def test_targets_do_not_influence_each_other():
    X, Y = make_data(60, 15, 12)
    together = RidgeEncoder(np.logspace(-1, 4, 8)).fit(X, Y)
    for v in range(12):
        alone = RidgeEncoder(np.logspace(-1, 4, 8)).fit(X, Y[:, v])
        assert alone.alpha_ == together.alpha_[v]
        np.testing.assert_allclose(alone.coef_, together.coef_[v], atol=1e-10)


@pytest.mark.parametrize("n_alphas_batch", [None, 2])
@pytest.mark.parametrize("n_targets_batch", [None, 3])
def test_batches_that_himalaya_needs_and_we_do_not_give_the_same(n_alphas_batch, n_targets_batch):
    X, Y = make_data(80, 30, 8)
    alphas = np.logspace(-3, 5, 9)
    options = {"score_func": correlation_score, "n_alphas_batch": n_alphas_batch, "n_targets_batch": n_targets_batch}
    theirs = HimalayaRidgeCV(alphas, fit_intercept=True, cv=KFold(10), solver_params=options).fit(X, Y)
    ours = RidgeEncoder(alphas, n_folds=10).fit(X, Y)
    np.testing.assert_allclose(ours.alpha_, theirs.best_alphas_)
    np.testing.assert_allclose(ours.cv_scores_.max(axis=0), theirs.cv_scores_, atol=1e-5)
    np.testing.assert_allclose(ours.coef_.T, theirs.coef_, atol=1e-9)


@pytest.mark.parametrize("p", [20, 100])
def test_one_alpha_for_all_is_between_the_alphas_of_each(p):
    X, Y = make_data(60, p, 30)
    Y[:, ::2] = np.random.default_rng(1).standard_normal((60, 15))
    own, shared = (RidgeEncoder(np.logspace(-2, 5, 9), alpha_per_target=each).fit(X, Y) for each in (True, False))
    assert len(np.unique(shared.alpha_)) == 1
    assert own.alpha_.min() < own.alpha_.max()
    assert own.alpha_.min() <= shared.alpha_[0] <= own.alpha_.max()
    # cv_scores_ are of all alphas in both.
    np.testing.assert_array_equal(own.cv_scores_, shared.cv_scores_)


def test_unsorted_alphas_are_sorted_and_repeated_folds_are_the_same():
    X, Y = make_data(60, 15, 12)
    alphas = np.logspace(-1, 4, 8)
    sorted_, mixed = RidgeEncoder(alphas).fit(X, Y), RidgeEncoder(alphas[[3, 0, 7, 1, 6, 2, 5, 4]]).fit(X, Y)
    np.testing.assert_array_equal(mixed.alphas_, alphas)
    np.testing.assert_array_equal(mixed.coef_, sorted_.coef_)
    again = sorted_.fit(X, Y)
    np.testing.assert_array_equal(mixed.coef_, again.coef_)


@pytest.mark.parametrize("labels", [["a", "b", "c"], [7, 3, 5], [2.5, 0.5, 1.5]])
def test_groups_may_be_called_anything(labels):
    X, Y = make_data(60, 15, 12)
    plain = RidgeEncoder(n_folds=3).fit(X, Y)
    named = RidgeEncoder().fit(X, Y, groups=np.repeat(labels, 20))
    np.testing.assert_allclose(named.cv_scores_, plain.cv_scores_, atol=1e-6)


# Bands


def test_bands_agree_with_himalayas_estimator():
    X, Y = make_data(80, 30, 6)
    columns = [slice(0, 10), slice(10, 30)]
    gammas = draw_gammas(9, 2, seed=3)
    alphas = np.logspace(-3, 5, 9)
    theirs = GroupRidgeCV(
        groups=np.repeat([0, 1], [10, 20]),
        fit_intercept=True,
        cv=KFold(5),
        solver_params={"n_iter": gammas, "alphas": alphas, "score_func": correlation_score, "progress_bar": False},
    ).fit(X, Y)
    ours = BandedRidgeEncoder(columns, alphas=alphas, n_candidates=9, random_state=3).fit(X, Y)
    np.testing.assert_array_equal(ours.gammas_, gammas)
    np.testing.assert_allclose(np.log(ours.gamma_ / ours.alpha_), theirs.deltas_, atol=1e-9)
    np.testing.assert_allclose(ours.cv_scores_, theirs.cv_scores_, atol=1e-5)
    np.testing.assert_allclose(ours.predict(X), theirs.predict(X), atol=1e-8)


def test_order_and_interleaving_of_columns_change_nothing():
    X, Y = make_data(60, 12, 9)
    bands = [np.arange(0, 12, 2), np.arange(1, 12, 2)]
    order = np.concatenate(bands)
    settings = {"alphas": np.logspace(-1, 3, 7), "n_candidates": 10}
    mixed = BandedRidgeEncoder(bands, **settings).fit(X, Y)
    sorted_ = BandedRidgeEncoder([slice(0, 6), slice(6, 12)], **settings).fit(X[:, order], Y)
    np.testing.assert_allclose(mixed.cv_scores_, sorted_.cv_scores_, atol=1e-6)
    same = (mixed.gamma_ == sorted_.gamma_).all(axis=0) & (mixed.alpha_ == sorted_.alpha_)
    assert same.mean() > 0.8  # near ties may go either way
    np.testing.assert_allclose(mixed.coef_[same][:, order], sorted_.coef_[same], atol=1e-9)


def test_more_candidates_never_score_worse():
    X, Y = make_data(60, 12, 20)
    bands = [slice(0, 4), slice(4, 12)]
    few, many = (BandedRidgeEncoder(bands, n_candidates=n).fit(X, Y) for n in (5, 25))
    np.testing.assert_array_equal(many.gammas_[:5], few.gammas_)
    np.testing.assert_array_equal(many.cv_scores_[:5], few.cv_scores_)
    assert (many.cv_scores_.max(axis=0) >= few.cv_scores_.max(axis=0)).all()


@pytest.mark.parametrize("p", [10, 100])
def test_split_scores_add_up_to_the_score_of_the_whole(p):
    X, Y = make_data(60, p, 5)
    model = BandedRidgeEncoder([slice(0, 4), slice(4, p)], n_candidates=10).fit(X[:40], Y[:40])
    split = model.split_scores(X[40:], Y[40:])
    predicted = model.predict(X[40:])
    measured, predicted = Y[40:] - Y[40:].mean(axis=0), predicted - predicted.mean(axis=0)
    expected = 1 - ((measured - predicted) ** 2).sum(axis=0) / (measured**2).sum(axis=0)
    assert split.shape == (2, 5)
    np.testing.assert_allclose(split.sum(axis=0), expected, atol=1e-9)


def test_columns_of_a_transformer_are_bands():
    # himalaya passes a list of arrays; ours takes one array and the columns of each band.
    X, Y = make_data(50, 9, 4)
    transformer = ColumnTransformerNoStack([("a", "passthrough", slice(0, 4)), ("b", "passthrough", slice(4, 9))])
    parts = transformer.fit_transform(X)
    ends = np.cumsum([part.shape[1] for part in parts])
    bands = {
        name: slice(end - part.shape[1], end)
        for (name, _, _), part, end in zip(transformer.transformers_, parts, ends, strict=True)
    }
    model = BandedRidgeEncoder(bands, n_candidates=5).fit(np.concatenate(parts, axis=1), Y)
    assert model.band_names_ == ["a", "b"]
    np.testing.assert_array_equal(model.coef_, BandedRidgeEncoder(bands, n_candidates=5).fit(X, Y).coef_)


def test_validation_r_is_that_of_predictions():
    X, Y = make_data(60, 12, 9)
    fold = np.repeat([0, 1, 2], 20)
    alphas = np.logspace(-1, 3, 5)
    found = fit_ridge(X, Y, fold, alphas)
    r = np.zeros((5, 9))
    for number in range(3):
        for a, alpha in enumerate(alphas):
            coef, intercept = solve(X[fold != number], Y[fold != number], alpha)
            r[a] += correlation(Y[fold == number], X[fold == number] @ coef + intercept) / 3
    np.testing.assert_allclose(found.alpha_scores, r, atol=1e-5)
