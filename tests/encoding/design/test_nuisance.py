import numpy as np

from vidbrain.encoding.design.nuisance import nuisance_columns, partial_out


def test_residuals_are_those_of_least_squares_whatever_the_collinearity():
    rng = np.random.default_rng(0)
    confounds = rng.standard_normal((60, 5)) * [1, 1e4, 1e-3, 1, 1]
    confounds[:, 4] = confounds[:, 0] + confounds[:, 3]
    nuisance = nuisance_columns(confounds)
    X = (rng.standard_normal((60, 7)) + 100).astype(np.float32)
    weights = np.linalg.lstsq(nuisance / np.abs(nuisance).max(0), X.astype(float), rcond=None)[0]
    expected = X - (nuisance / np.abs(nuisance).max(0)) @ weights
    np.testing.assert_allclose(partial_out(X, nuisance), expected, atol=2e-5)


def test_weights_are_those_of_the_full_regression():
    rng = np.random.default_rng(1)
    confounds = rng.standard_normal((80, 4))
    nuisance = nuisance_columns(confounds)
    X = (confounds @ rng.standard_normal((4, 3)) + rng.standard_normal((80, 3))).astype(np.float32)
    y = X @ [1.0, -2.0, 0.5] + confounds @ rng.standard_normal(4) * 5 + rng.standard_normal(80)
    full = np.linalg.lstsq(np.column_stack([X, nuisance]), y, rcond=None)[0][:3]
    cleaned = y - nuisance @ np.linalg.lstsq(nuisance, y, rcond=None)[0]
    np.testing.assert_allclose(np.linalg.lstsq(partial_out(X, nuisance), cleaned, rcond=None)[0], full, rtol=1e-4)


def test_only_what_was_taken_from_the_bold_is_taken_from_features():
    confounds = np.random.default_rng(0).standard_normal((20, 2))
    assert np.linalg.matrix_rank(nuisance_columns(confounds)) == 4
    assert np.linalg.matrix_rank(nuisance_columns(confounds, detrended=False)) == 3
    assert np.array_equal(nuisance_columns(confounds, centred=False, detrended=False), confounds)
