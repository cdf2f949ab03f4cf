"""Banded ridge against naive searches, scikit-learn and himalaya; what bands explain, planted and found."""

import numpy as np
import pytest
from himalaya.kernel_ridge import MultipleKernelRidgeCV
from himalaya.ridge import solve_group_ridge_random_search
from himalaya.scoring import correlation_score
from sklearn.linear_model import Ridge
from sklearn.model_selection import PredefinedSplit

from vidbrain.encoding.ridge import search, sides
from vidbrain.encoding.ridge.banded import BandedRidgeEncoder, partition_variance
from vidbrain.encoding.ridge.bands import draw_gammas
from vidbrain.encoding.ridge.metrics import r2
from vidbrain.encoding.ridge.plain import RidgeEncoder
from vidbrain.encoding.ridge.search import TILE, fit_ridge
from vidbrain.errors import ConfigError

ALPHAS = np.logspace(-2, 4, 7)


def make_data(n=150, sizes=(8, 12), t=30, seed=0):
    """Targets that follow one band, the other, or both, and noise; an offset."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, sum(sizes))) + 0.5 * rng.standard_normal((n, 1))
    columns = np.split(np.arange(sum(sizes)), np.cumsum(sizes)[:-1])
    follows = rng.integers(0, 2, (len(sizes), t))
    Y = rng.standard_normal((n, t))
    for band, use in zip(columns, follows, strict=True):
        Y += use * (X[:, band] @ rng.standard_normal((len(band), t))) / np.sqrt(len(band))
    return X, Y + 3, columns


@pytest.mark.parametrize("form", ["primal", "dual"])
@pytest.mark.parametrize("n_folds", [3, 10])
def test_search_equals_ridge_on_rescaled_columns(form, n_folds, monkeypatch):
    monkeypatch.setattr(search, "cheaper_side", lambda *_: {"primal": sides.Primal, "dual": sides.Dual}[form])
    X, Y, bands = make_data(sizes=(8, 2, 12))
    fold = np.repeat(np.arange(n_folds), len(X) // n_folds)
    gammas = draw_gammas(6, 3, corners=True, seed=4)
    found = fit_ridge(X, Y, fold, ALPHAS, gammas=gammas, bands=bands)
    scores = np.zeros((len(gammas), len(ALPHAS), Y.shape[1]))
    for c, gamma in enumerate(gammas):
        scaled = X * np.sqrt(np.repeat(gamma, [8, 2, 12]))
        for number in range(n_folds):
            train, held = fold != number, fold == number
            for a, alpha in enumerate(ALPHAS):
                predicted = Ridge(alpha=alpha).fit(scaled[train], Y[train]).predict(scaled[held])
                r = [np.corrcoef(predicted[:, v], Y[held, v])[0, 1] for v in range(Y.shape[1])]
                scores[c, a] += np.array(r) / n_folds
    np.testing.assert_allclose(found.candidate_scores, scores.max(axis=1), atol=1e-5)
    targets = np.arange(Y.shape[1])
    chosen = scores[found.candidate, found.alpha_index, targets]
    np.testing.assert_allclose(chosen, scores.max(axis=(0, 1)), atol=2e-5)
    np.testing.assert_allclose(found.alpha_scores, scores[found.candidate, :, targets].T, atol=1e-5)
    for v in targets:
        weights = np.sqrt(np.repeat(gammas[found.candidate[v]], [8, 2, 12]))
        reference = Ridge(alpha=ALPHAS[found.alpha_index[v]]).fit(X * weights, Y[:, v])
        np.testing.assert_allclose(found.coef[:, v], reference.coef_ * weights, atol=1e-8)
        np.testing.assert_allclose(found.intercept[v], reference.intercept_, atol=1e-8)


def test_search_equals_himalaya_over_the_same_candidates():
    X, Y, bands = make_data(t=200)
    fold = np.repeat([0, 1, 2], 50)
    gammas = draw_gammas(12, 2, concentration=[1.0])
    ours = fit_ridge(X, Y, fold, ALPHAS, gammas=gammas, bands=bands)
    deltas, coef, scores, intercept = solve_group_ridge_random_search(
        [X[:, band] for band in bands],
        Y,
        n_iter=gammas,
        alphas=ALPHAS,
        fit_intercept=True,
        score_func=correlation_score,
        cv=PredefinedSplit(fold),
        return_weights=True,
        progress_bar=False,
    )
    np.testing.assert_allclose(ours.candidate_scores, scores, atol=1e-5)
    mine = np.log(gammas[ours.candidate].T / ALPHAS[ours.alpha_index])
    same = np.isclose(mine, deltas).all(axis=0)
    assert same.mean() >= 0.99
    np.testing.assert_allclose(ours.coef[:, same], coef[:, same], atol=1e-8)
    np.testing.assert_allclose(ours.intercept[same], intercept[same], atol=1e-8)


def test_wide_search_equals_himalayas_multiple_kernels_over_the_same_candidates():
    X, Y, bands = make_data(n=90, sizes=(150, 100), t=40)
    # himalaya's multiple kernels have no intercept: folds are centred here, so that ours is 0 in each.
    fold = np.repeat([0, 1, 2], 30)
    for number in range(3):
        X[fold == number] -= X[fold == number].mean(axis=0)
        Y[fold == number] -= Y[fold == number].mean(axis=0)
    gammas = draw_gammas(8, 2, concentration=[1.0])
    ours = fit_ridge(X, Y, fold, ALPHAS, gammas=gammas, bands=bands)
    kernels = np.stack([X[:, band] @ X[:, band].T for band in bands])
    theirs = MultipleKernelRidgeCV(
        kernels="precomputed",
        cv=PredefinedSplit(fold),
        solver_params={
            "n_iter": gammas,
            "alphas": ALPHAS,
            "score_func": correlation_score,
            "progress_bar": False,
            "n_targets_batch": 40,
        },
    ).fit(kernels, Y)
    np.testing.assert_allclose(ours.candidate_scores, theirs.cv_scores_, atol=1e-5)
    mine = np.log(gammas[ours.candidate].T / ALPHAS[ours.alpha_index])
    same = np.isclose(mine, theirs.deltas_).all(axis=0)
    assert same.mean() > 0.95
    predicted = X @ ours.coef + ours.intercept
    np.testing.assert_allclose(predicted[:, same], theirs.predict(kernels)[:, same], atol=1e-7)


def test_one_band_is_plain_ridge():
    X, Y, _ = make_data()
    banded, plain = BandedRidgeEncoder(alphas=ALPHAS).fit(X, Y), RidgeEncoder(ALPHAS).fit(X, Y)
    np.testing.assert_array_equal(banded.alpha_, plain.alpha_)
    np.testing.assert_allclose(banded.coef_, plain.coef_, atol=1e-12)
    np.testing.assert_array_equal(banded.gamma_, 1)
    np.testing.assert_allclose(banded.cv_scores_[0], plain.cv_scores_.max(axis=0))


def test_equal_weights_are_plain_ridge_with_a_larger_alpha():
    X, Y, bands = make_data()
    banded = BandedRidgeEncoder(bands, alphas=ALPHAS, n_candidates=1).fit(X, Y)
    plain = RidgeEncoder(ALPHAS * 2).fit(X, Y)
    np.testing.assert_allclose(banded.coef_, plain.coef_, atol=1e-10)
    np.testing.assert_allclose(banded.alpha_ * 2, plain.alpha_)


@pytest.mark.parametrize("p", [20, 300])
def test_corners_are_each_band_alone(p):
    X, Y, bands = make_data(sizes=(p // 2, p // 2))
    fold = np.repeat([0, 1, 2], 50)
    found = fit_ridge(X, Y, fold, ALPHAS, gammas=np.eye(2), bands=bands)
    for number, band in enumerate(bands):
        alone = fit_ridge(X[:, band], Y, fold, ALPHAS)
        np.testing.assert_allclose(found.candidate_scores[number], alone.alpha_scores.max(axis=0), atol=1e-6)
        mine = found.candidate == number
        np.testing.assert_allclose(found.coef[band][:, mine], alone.coef[:, mine], atol=1e-8)
        others = np.setdiff1d(np.arange(p), band)
        np.testing.assert_array_equal(found.coef[others][:, mine], 0)


def test_a_search_reads_each_target_once_in_the_primal_form(monkeypatch):
    read, seen = sides.Targets.read, []
    monkeypatch.setattr(sides.Targets, "read", lambda self, at: seen.append(at) or read(self, at))
    X, Y, bands = make_data(t=TILE + 5)
    fit_ridge(X, Y, np.repeat([0, 1, 2], 50), ALPHAS, gammas=draw_gammas(9, 2), bands=bands)
    assert sorted((at.start, at.stop) for at in seen) == [(0, TILE), (TILE, TILE + 5)]


@pytest.mark.parametrize("p", [20, 300])
def test_bands_that_carry_the_signal_get_the_weight(p):
    rng = np.random.default_rng(0)
    n, half = 300, p // 2
    X = rng.standard_normal((n, p))
    Y = rng.standard_normal((n, 40))
    Y[:, :20] += 2 * X[:, :half] @ rng.standard_normal((half, 20)) / np.sqrt(half)
    Y[:, 20:] += 2 * X[:, half:] @ rng.standard_normal((half, 20)) / np.sqrt(half)
    bands = {"first": slice(0, half), "second": slice(half, None)}
    model = BandedRidgeEncoder(bands, n_candidates=20, corners=True).fit(X[:200], Y[:200])
    assert np.median(model.gamma_[0, :20]) > 0.8
    assert np.median(model.gamma_[0, 20:]) < 0.2
    assert model.score(X[200:], Y[200:]) >= RidgeEncoder().fit(X[:200], Y[:200]).score(X[200:], Y[200:])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_parts_add_up_to_the_prediction(dtype):
    X, Y, bands = make_data()
    X, Y = X.astype(dtype), Y.astype(dtype)
    model = BandedRidgeEncoder(bands, alphas=ALPHAS, n_candidates=8).fit(X[:100], Y[:100])
    parts = model.predict_bands(X[100:])
    assert parts.shape == (2, 50, 30)
    whole = parts.sum(axis=0) + Y[:100].mean(axis=0)
    np.testing.assert_allclose(whole, model.predict(X[100:]), atol=1e-4 if dtype == np.float32 else 1e-9)
    one = BandedRidgeEncoder(bands, alphas=ALPHAS, n_candidates=8).fit(X[:100], Y[:100, 0])
    np.testing.assert_allclose(one.predict_bands(X[100:]), parts[:, :, 0], atol=1e-4)
    np.testing.assert_allclose(
        one.split_scores(X[100:], Y[100:, 0]), model.split_scores(X[100:], Y[100:])[:, :1], atol=1e-4
    )
    assert one.gamma_.shape == (2,)


def test_variance_is_partitioned_as_by_hand():
    X, Y, bands = make_data(sizes=(6, 7, 8))
    groups = np.repeat([0, 1], 50)
    settings = {"alphas": ALPHAS, "n_candidates": 12, "corners": True}
    found = partition_variance(
        BandedRidgeEncoder(dict(zip("abc", bands, strict=True)), **settings), X[:100], Y[:100], X[100:], Y[100:], groups
    )
    assert found.bands == ["a", "b", "c"]
    np.testing.assert_allclose(found.split.sum(axis=0), found.joint, atol=1e-12)

    def centred_r2(model, columns):
        predicted = model.predict(X[100:, columns])
        return r2(Y[100:] - Y[100:].mean(axis=0), predicted - predicted.mean(axis=0))

    every = np.arange(21)
    joint = BandedRidgeEncoder(bands, **settings).fit(X[:100], Y[:100], groups)
    np.testing.assert_allclose(found.joint, centred_r2(joint, every), atol=1e-9)
    without = np.setdiff1d(every, bands[1])
    reduced = BandedRidgeEncoder([slice(0, 6), slice(6, 14)], **settings).fit(X[:100][:, without], Y[:100], groups)
    np.testing.assert_allclose(found.unique[1], found.joint - centred_r2(reduced, without), atol=1e-9)


def test_unique_variance_is_that_of_the_planted_band_and_shared_variance_is_nobodys():
    rng = np.random.default_rng(0)
    shared = rng.standard_normal((600, 4))
    X = np.concatenate([shared, rng.standard_normal((600, 4)), shared + 0.01 * rng.standard_normal((600, 4))], axis=1)
    Y = rng.standard_normal((600, 30))
    Y[:, :10] += X[:, 4:8] @ rng.standard_normal((4, 10))  # follows the second band, which nothing replaces
    Y[:, 10:20] += shared @ rng.standard_normal((4, 10))  # follows the first, which the third replaces
    model = BandedRidgeEncoder([slice(0, 4), slice(4, 8), slice(8, 12)], n_candidates=20, corners=True)
    found = partition_variance(model, X[:400], Y[:400], X[400:], Y[400:])
    assert np.median(found.joint[:10]) > 0.5
    assert np.median(found.joint[10:20]) > 0.5
    unique = [np.median(found.unique[:, part], axis=1) for part in (slice(0, 10), slice(10, 20), slice(20, 30))]
    np.testing.assert_allclose(unique[0], [0, np.median(found.joint[:10]), 0], atol=0.02)
    np.testing.assert_allclose(unique[1], 0, atol=0.02)
    np.testing.assert_allclose(unique[2], 0, atol=0.02)
    assert np.median(found.split[[0, 2], 10:20].sum(axis=0)) > 0.5


def test_one_band_cannot_be_partitioned():
    X, Y, _ = make_data()
    with pytest.raises(ConfigError, match="2 bands"):
        partition_variance(BandedRidgeEncoder(), X, Y, X, Y)


def test_bands_that_do_not_fit_the_features_are_refused():
    X, Y, _ = make_data()
    with pytest.raises(ConfigError, match="column 19 is in 0 bands"):
        BandedRidgeEncoder([slice(0, 10), slice(10, 19)]).fit(X, Y)
