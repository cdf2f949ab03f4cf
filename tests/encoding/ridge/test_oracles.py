"""The ridge search against solvers that share nothing with it: a naive one in float64, himalaya, scikit-learn."""

import himalaya.kernel_ridge
import himalaya.ridge
import numpy as np
import pytest
from himalaya.scoring import correlation_score
from sklearn.linear_model import Ridge
from sklearn.model_selection import PredefinedSplit
from threadpoolctl import threadpool_limits

from vidbrain.encoding.ridge import search
from vidbrain.encoding.ridge.plain import RidgeEncoder, solve
from vidbrain.encoding.ridge.search import TILE, fit_ridge
from vidbrain.encoding.ridge.sides import Dual, Primal
from vidbrain.errors import ConfigError

ALPHAS = np.logspace(-2, 5, 8)


def make_data(n=120, p=20, t=60, signal=1.0, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, p)) @ np.diag(np.logspace(0, -1, p)) + 0.3 * rng.standard_normal((n, 1))
    Y = signal * X @ rng.standard_normal((p, t)) * rng.uniform(0, 1, t) + rng.standard_normal((n, t))
    return X, Y + 5


def naive_scores(X, Y, fold, alphas):
    """Mean over folds of r, for every alpha and target, each solved by itself; r of what does not vary is 0."""
    scores = np.zeros((len(alphas), Y.shape[1]))
    for number in np.unique(fold):
        train, held = fold != number, fold == number
        x_mean, y_mean = X[train].mean(axis=0), Y[train].mean(axis=0)
        Xc = X[train] - x_mean
        covariance = Xc.T @ Xc
        for a, alpha in enumerate(alphas):
            for v in range(Y.shape[1]):
                weights = np.linalg.solve(covariance + alpha * np.eye(X.shape[1]), Xc.T @ (Y[train, v] - y_mean[v]))
                predicted, measured = X[held] @ weights, Y[held, v]
                if np.ptp(predicted) > 0 and np.ptp(measured) > 0:
                    scores[a, v] += np.corrcoef(predicted, measured)[0, 1]
    return scores / len(np.unique(fold))


@pytest.mark.parametrize("form", ["primal", "dual"])
@pytest.mark.parametrize("folds", ["contiguous", "interleaved", "one of nine tenths", "more rows than columns"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_search_equals_the_naive_solver(form, folds, dtype, monkeypatch):
    monkeypatch.setattr(search, "cheaper_side", lambda *_: {"primal": Primal, "dual": Dual}[form])
    X, Y = (a.astype(dtype) for a in make_data())
    n = len(X)
    fold = {
        "contiguous": np.repeat(np.arange(6), n // 6),
        "interleaved": np.random.default_rng(3).permutation(np.repeat(np.arange(8), n // 8)),
        "one of nine tenths": np.repeat([0, 1], [9 * n // 10, n // 10]),
        "more rows than columns": np.repeat([0, 1, 2], n // 3),
    }[folds]
    found = fit_ridge(X, Y, fold, ALPHAS)
    expected = naive_scores(X.astype(np.float64), Y.astype(np.float64), fold, ALPHAS)
    np.testing.assert_allclose(found.alpha_scores, expected, atol=1e-5)
    # Where two alphas are nearly as good, either is right.
    ours, best = (expected[found.alpha_index, np.arange(60)], expected.max(axis=0))
    np.testing.assert_allclose(ours, best, atol=2e-5)
    reference = Ridge(alpha=ALPHAS[found.alpha_index], solver="cholesky").fit(X.astype(np.float64), Y)
    tolerance = 2e-5 if dtype == np.float32 else 1e-9
    np.testing.assert_allclose(found.coef, reference.coef_.T, atol=tolerance)
    np.testing.assert_allclose(found.intercept, reference.intercept_, atol=tolerance)


def test_alphas_are_those_of_the_naive_solver_for_a_thousand_targets():
    X, Y = make_data(n=90, p=12, t=2000)
    fold = np.repeat([0, 1, 2], 30)
    found = fit_ridge(X.astype(np.float32), Y.astype(np.float32), fold, ALPHAS[::2])
    expected = naive_scores(X, Y, fold, ALPHAS[::2])
    assert np.abs(found.alpha_scores - expected).max() < 1e-5
    assert np.mean(found.alpha_index == expected.argmax(axis=0)) >= 0.999
    assert len(np.unique(found.alpha_index)) == 4


@pytest.mark.parametrize("p", [25, 400])
def test_search_equals_himalaya_with_an_alpha_per_target(p):
    X, Y = make_data(n=150, p=p, t=1000, signal=0.5)
    fold = np.repeat([0, 1, 2], 50)
    ours = RidgeEncoder(ALPHAS).fit(X, Y, groups=fold)
    options = {"score_func": correlation_score, "local_alpha": True}
    if p < 150:
        theirs = himalaya.ridge.RidgeCV(
            ALPHAS, fit_intercept=True, cv=PredefinedSplit(fold), solver_params=options | {"warn": False}
        ).fit(X, Y)
        coef = theirs.coef_
    else:
        theirs = himalaya.kernel_ridge.KernelRidgeCV(
            ALPHAS, fit_intercept=True, cv=PredefinedSplit(fold), solver_params=options
        ).fit(X, Y)
        coef = theirs.get_primal_coef(X)
    same = np.isclose(ours.alpha_, theirs.best_alphas_)
    assert same.mean() >= 0.999
    np.testing.assert_allclose(ours.cv_scores_.max(axis=0), theirs.cv_scores_, atol=1e-5)
    np.testing.assert_allclose(ours.coef_.T[:, same], coef[:, same], atol=1e-8)
    np.testing.assert_allclose(ours.intercept_[same], theirs.intercept_[same], atol=1e-7)


def test_one_alpha_for_all_targets_is_himalayas():
    X, Y = make_data(n=120, p=60, t=40, signal=0.3)
    fold = np.repeat([0, 1, 2], 40)
    ours = RidgeEncoder(ALPHAS, alpha_per_target=False).fit(X, Y, groups=fold)
    options = {"score_func": correlation_score, "local_alpha": False, "warn": False}
    theirs = himalaya.ridge.RidgeCV(ALPHAS, fit_intercept=True, cv=PredefinedSplit(fold), solver_params=options).fit(
        X, Y
    )
    assert len(np.unique(RidgeEncoder(ALPHAS).fit(X, Y, groups=fold).alpha_)) > 1
    np.testing.assert_allclose(ours.alpha_, theirs.best_alphas_)
    np.testing.assert_allclose(ours.coef_.T, theirs.coef_, atol=1e-8)


@pytest.mark.parametrize("p", [30, 300])
def test_float32_gives_what_float64_gives(p):
    X, Y = make_data(n=150, p=p, t=200)
    fold = np.repeat([0, 1, 2], 50)
    X, Y = X.astype(np.float32), Y.astype(np.float32)
    single = fit_ridge(X, Y, fold, ALPHAS)
    double = fit_ridge(X.astype(np.float64), Y.astype(np.float64), fold, ALPHAS)
    assert (single.coef.dtype, double.coef.dtype) == (np.float32, np.float64)
    np.testing.assert_allclose(single.alpha_scores, double.alpha_scores, atol=1e-5)
    same = single.alpha_index == double.alpha_index
    assert same.mean() >= 0.99
    np.testing.assert_allclose(single.coef[:, same], double.coef[:, same], atol=2e-5 * np.abs(double.coef).max())


@pytest.mark.parametrize("p", [20, 200])
def test_offsets_change_nothing(p):
    X, Y = make_data(p=p)
    fold = np.repeat(np.arange(4), 30)
    plain, moved = fit_ridge(X, Y, fold, ALPHAS), fit_ridge(X + 1e4, Y + 1e4, fold, ALPHAS)
    np.testing.assert_allclose(moved.alpha_scores, plain.alpha_scores, atol=1e-6)
    np.testing.assert_array_equal(moved.alpha_index, plain.alpha_index)
    np.testing.assert_allclose(moved.coef, plain.coef, atol=1e-8)


def test_an_offset_of_raw_bold_costs_float32_no_more_than_its_rounding():
    X, Y = make_data()
    fold = np.repeat(np.arange(4), 30)
    raw = (Y + 1e4).astype(np.float32)
    found = fit_ridge(X.astype(np.float32), raw, fold, ALPHAS)
    np.testing.assert_allclose(found.alpha_scores, naive_scores(X, raw.astype(np.float64), fold, ALPHAS), atol=1e-5)


@pytest.mark.parametrize("p", [20, 200])
@pytest.mark.parametrize(("x_unit", "y_unit"), [(1e9, 1e-9), (1e-9, 1e12)])
def test_units_change_nothing(p, x_unit, y_unit):
    X, Y = make_data(p=p)
    fold = np.repeat(np.arange(4), 30)
    alphas = np.logspace(-12, 12, 9)
    plain = fit_ridge(X, Y, fold, alphas)
    scaled = fit_ridge((X * x_unit).astype(np.float32), (Y * y_unit).astype(np.float32), fold, alphas * x_unit**2)
    np.testing.assert_allclose(scaled.alpha_scores, plain.alpha_scores, atol=2e-5)
    same = scaled.alpha_index == plain.alpha_index
    assert same.mean() > 0.9
    back = scaled.coef.astype(np.float64) * x_unit / y_unit
    np.testing.assert_allclose(back[:, same], plain.coef[:, same], atol=1e-4 * np.abs(plain.coef).max())


@pytest.mark.parametrize("form", ["primal", "dual"])
def test_duplicate_and_constant_columns(form, monkeypatch):
    monkeypatch.setattr(search, "cheaper_side", lambda *_: {"primal": Primal, "dual": Dual}[form])
    X, Y = make_data()
    X = np.column_stack([X, X[:, 0], np.full(120, 7.0)])
    fold = np.repeat(np.arange(4), 30)
    found = fit_ridge(X, Y, fold, ALPHAS)
    np.testing.assert_allclose(found.alpha_scores, naive_scores(X, Y, fold, ALPHAS), atol=1e-5)
    np.testing.assert_allclose(found.coef[0], found.coef[20], atol=1e-9)
    np.testing.assert_allclose(found.coef[21], 0, atol=1e-9)


@pytest.mark.parametrize("form", ["primal", "dual"])
def test_a_column_that_varies_in_one_fold_only(form, monkeypatch):
    monkeypatch.setattr(search, "cheaper_side", lambda *_: {"primal": Primal, "dual": Dual}[form])
    X, Y = make_data()
    fold = np.repeat(np.arange(4), 30)
    X[fold != 2, 3] = 1.5
    found = fit_ridge(X, Y, fold, ALPHAS)
    np.testing.assert_allclose(found.alpha_scores, naive_scores(X, Y, fold, ALPHAS), atol=1e-5)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("p", [20, 200])
def test_targets_that_do_not_vary(p, dtype):
    X, Y = make_data(p=p, t=4)
    fold = np.repeat(np.arange(4), 30)
    Y[:, 0], Y[fold == 1, 1] = 1234.1, 5.3
    Y = Y.astype(dtype)
    found = fit_ridge(X.astype(dtype), Y, fold, ALPHAS)
    np.testing.assert_allclose(found.alpha_scores, naive_scores(X, Y.astype(np.float64), fold, ALPHAS), atol=1e-5)
    assert (found.alpha_scores[:, 0] == 0).all()
    assert found.alpha_index[0] == len(ALPHAS) - 1
    np.testing.assert_array_equal(found.coef[:, 0], 0)
    np.testing.assert_allclose(found.intercept[0], 1234.1, rtol=1e-6)


@pytest.mark.parametrize("value", [0.0, 0.1, 1e6 / 3])
@pytest.mark.parametrize("p", [3, 300])
def test_features_that_do_not_vary_predict_the_mean(p, value):
    Y = make_data(t=5)[1]
    found = RidgeEncoder(ALPHAS).fit(np.full((120, p), value), Y)
    assert (found.cv_scores_ == 0).all()
    np.testing.assert_array_equal(found.coef_, 0)
    np.testing.assert_allclose(found.predict(np.ones((2, p))), [Y.mean(axis=0)] * 2)
    np.testing.assert_array_equal(solve(np.full((120, p), value), Y, 1.0)[0], 0)


def test_one_alpha_is_scored_and_used():
    X, Y = make_data()
    fold = np.repeat(np.arange(4), 30)
    found = RidgeEncoder([10.0]).fit(X, Y, groups=fold)
    np.testing.assert_allclose(found.cv_scores_, naive_scores(X, Y, fold, [10.0]), atol=1e-5)
    np.testing.assert_allclose(found.coef_, Ridge(alpha=10.0).fit(X, Y).coef_, atol=1e-9)


@pytest.mark.parametrize("form", ["primal", "dual"])
def test_a_tiny_alpha_with_deficient_rank_is_the_shortest_least_squares_solution(form, monkeypatch):
    monkeypatch.setattr(search, "cheaper_side", lambda *_: {"primal": Primal, "dual": Dual}[form])
    rng = np.random.default_rng(0)
    X = rng.standard_normal((60, 6)) @ rng.standard_normal((6, 90))
    Y = rng.standard_normal((60, 7))
    coef, intercept = solve(X, Y, 1e-9)
    shortest = np.linalg.pinv(X - X.mean(axis=0)) @ (Y - Y.mean(axis=0))
    np.testing.assert_allclose(coef, shortest, atol=1e-8)
    fold = np.repeat(np.arange(3), 20)
    found = fit_ridge(X, Y, fold, np.array([1e-9, 1.0]))
    kernel_scores = np.zeros(7)
    for number in range(3):
        train, held = fold != number, fold == number
        predicted = X[held] @ np.linalg.pinv(X[train] - X[train].mean(axis=0)) @ (Y[train] - Y[train].mean(axis=0))
        kernel_scores += [np.corrcoef(predicted[:, v], Y[held, v])[0, 1] / 3 for v in range(7)]
    np.testing.assert_allclose(found.alpha_scores[0], kernel_scores, atol=1e-5)
    np.testing.assert_allclose(intercept, Y.mean(axis=0) - X.mean(axis=0) @ shortest, atol=1e-8)


@pytest.mark.parametrize("alphas", [[0.0, 1.0], [-1.0], [np.nan], [np.inf], []])
def test_alphas_must_be_positive_numbers(alphas):
    X, Y = make_data(t=2)
    with pytest.raises(ConfigError, match="alphas must be positive"):
        RidgeEncoder(alphas).fit(X, Y)
    with pytest.raises(ConfigError, match="alphas must be positive"):
        solve(X, Y, alphas if len(alphas) == 2 else np.full(2, (alphas or [0.0])[0]))


@pytest.mark.parametrize(
    ("n", "options", "groups", "message"),
    [
        (9, {}, None, "5 folds of 9 rows"),
        (30, {"n_folds": 1}, None, "1 folds of 30 rows"),
        (30, {}, np.zeros(30), "groups hold one label"),
        (30, {}, np.repeat([0, 1, 2], [15, 14, 1]), "fold 2 holds 1 of 30 rows"),
        (30, {}, np.repeat([0, 1], [29, 1]), "fold 0 holds 29 of 30 rows"),
    ],
)
def test_folds_that_cannot_be_are_refused(n, options, groups, message):
    X, Y = make_data(n=n, t=3)
    with pytest.raises(ConfigError, match=message) as error:
        RidgeEncoder(ALPHAS, **options).fit(X, Y, groups=groups)
    assert "try" in str(error.value)


def test_as_few_rows_as_can_be():
    X, Y = make_data(n=10, t=30)
    found = RidgeEncoder(ALPHAS).fit(X, Y)
    np.testing.assert_allclose(found.cv_scores_, naive_scores(X, Y, np.repeat(np.arange(5), 2), ALPHAS), atol=1e-5)


@pytest.mark.parametrize("p", [40, 300])
def test_threads_change_no_bit(p):
    X, Y = (a.astype(np.float32) for a in make_data(n=200, p=p, t=2 * TILE + 9))
    fold = np.repeat(np.arange(4), 50)
    with threadpool_limits(1):
        one = fit_ridge(X, Y, fold, ALPHAS)
    with threadpool_limits(2):
        two = fit_ridge(X, Y, fold, ALPHAS)
    for name in ("coef", "intercept", "alpha_index", "alpha_scores"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))


@pytest.mark.parametrize("p", [40, 300])
def test_batches_of_targets_change_nothing(p):
    X, Y = (a.astype(np.float32) for a in make_data(n=200, p=p, t=2 * TILE + 9))
    fold = np.repeat(np.arange(4), 50)
    whole = fit_ridge(X, Y, fold, ALPHAS)
    aligned = fit_ridge(X, Y[:, TILE : 2 * TILE], fold, ALPHAS)
    np.testing.assert_array_equal(aligned.alpha_scores, whole.alpha_scores[:, TILE : 2 * TILE])
    odd = fit_ridge(X, Y[:, 5:100], fold, ALPHAS)
    np.testing.assert_allclose(odd.alpha_scores, whole.alpha_scores[:, 5:100], atol=1e-6)


def test_the_order_of_rows_changes_nothing():
    X, Y = make_data()
    fold = np.repeat(np.arange(4), 30)
    order = np.random.default_rng(1).permutation(120)
    whole, mixed = fit_ridge(X, Y, fold, ALPHAS), fit_ridge(X[order], Y[order], fold[order], ALPHAS)
    np.testing.assert_allclose(mixed.alpha_scores, whole.alpha_scores, atol=1e-6)
    np.testing.assert_allclose(mixed.coef, whole.coef, atol=1e-9)


def test_inputs_are_left_as_they_were():
    X, Y = (a.astype(np.float32) for a in make_data())
    before = X.copy(), Y.copy()
    fit_ridge(X, Y, np.repeat(np.arange(4), 30), ALPHAS)
    np.testing.assert_array_equal(X, before[0])
    np.testing.assert_array_equal(Y, before[1])


@pytest.mark.parametrize("p", [20, 300])
def test_planted_signal_is_found_and_noise_is_not(p):
    rng = np.random.default_rng(0)
    X = rng.standard_normal((400, p))
    Y = rng.standard_normal((400, 300))
    Y[:, :150] += X @ rng.standard_normal((p, 150)) / np.sqrt(p)
    model = RidgeEncoder().fit(X[:300], Y[:300], groups=np.repeat([0, 1, 2], 100))
    r = [np.corrcoef(a, b)[0, 1] for a, b in zip(model.predict(X[300:]).T, Y[300:].T, strict=True)]
    assert np.median(r[:150]) > 0.3
    assert abs(np.median(r[150:])) < 0.03


def test_targets_are_read_once_in_tiles(monkeypatch):
    # The search reads each target once, a tile at a time.
    widths = []
    read = search.Targets.read
    monkeypatch.setattr(search.Targets, "read", lambda self, at: widths.append(read(self, at)) or widths[-1])
    X, Y = make_data(t=2 * TILE + 3)
    fit_ridge(X, Y, np.repeat(np.arange(4), 30), ALPHAS)
    assert sorted(y.shape[1] for y in widths) == [3, TILE, TILE]
