"""Bands of columns and candidate weights."""

import numpy as np
import pytest
import scipy.stats

from vidbrain.encoding.ridge import gram
from vidbrain.encoding.ridge.bands import column_weights, draw_gammas, resolve_bands
from vidbrain.errors import ConfigError


def test_candidates_lie_on_the_simplex_and_begin_with_equal_weights():
    gammas = draw_gammas(40, 3, seed=1)
    assert gammas.shape == (40, 3)
    np.testing.assert_allclose(gammas.sum(axis=1), 1)
    assert (gammas >= 0).all()
    np.testing.assert_allclose(gammas[0], 1 / 3)
    np.testing.assert_array_equal(gammas, draw_gammas(40, 3, seed=1))
    assert not np.array_equal(gammas, draw_gammas(40, 3, seed=2))


def test_corners_come_second_if_asked():
    gammas = draw_gammas(7, 3, corners=True)
    np.testing.assert_array_equal(gammas[1:4], np.eye(3))
    assert (gammas[4:].max(axis=1) < 1).all()


@pytest.mark.parametrize("concentration", [0.1, 1.0, 5.0])
def test_weights_have_the_marginals_of_a_dirichlet(concentration):
    gammas = draw_gammas(2001, 4, concentration=[concentration])[1:]
    for band in range(4):
        # A Dirichlet's weight is Beta(c, (b - 1) c); the least values underflow for small c.
        found = scipy.stats.kstest(
            np.clip(gammas[:, band], 1e-12, 1), scipy.stats.beta(concentration, 3 * concentration).cdf
        )
        assert found.statistic < 0.06


def test_concentrations_take_turns():
    gammas = draw_gammas(1001, 3, concentration=[0.01, 100.0])[1:]
    assert np.median(gammas[::2].max(axis=1)) > 0.95
    assert np.median(gammas[1::2].max(axis=1)) < 0.5


def test_one_band_has_one_candidate():
    np.testing.assert_array_equal(draw_gammas(30, 1, corners=True), [[1.0]])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_candidates": 0}, "at least 1"),
        ({"n_candidates": 3, "corners": True}, "at least 4"),
        ({"n_candidates": 9, "concentration": [1.0, 0.0]}, "positive"),
    ],
)
def test_candidates_that_cannot_be_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        draw_gammas(n_bands=3, **arguments)


def test_bands_are_slices_numbers_or_names():
    found = resolve_bands({"motion": slice(0, 2), "pixels": [4, 2], "rest": 3}, 5)
    assert {name: columns.tolist() for name, columns in found.items()} == {
        "motion": [0, 1],
        "pixels": [4, 2],
        "rest": [3],
    }
    assert list(resolve_bands([slice(0, 1), slice(1, None)], 3)) == ["band0", "band1"]
    assert resolve_bands(None, 3)["all"].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("bands", "message"),
    [
        ([slice(0, 2)], "column 2 is in 0 bands"),
        ([slice(0, 2), slice(1, 3)], "column 1 is in 2 bands"),
        ([slice(0, 3), slice(3, 5)], "band1 has no columns"),
        ([[0, 1, 2, 3]], "not among 3"),
        ([], "column 0 is in 0 bands"),
    ],
)
def test_bands_that_do_not_cut_the_columns_are_refused(bands, message):
    with pytest.raises(ConfigError, match=message):
        resolve_bands(bands, 3)


def test_weights_scale_both_forms_as_scaled_columns_would():
    rng = np.random.default_rng(0)
    weight = column_weights(np.array([0.7, 0.3]), [np.array([0, 2, 4]), np.array([1, 3])], 5)
    np.testing.assert_allclose(weight**2, [0.7, 0.3, 0.7, 0.3, 0.7])
    X = (rng.standard_normal((30, 5)) + 2).astype(np.float32)
    scaled = (X * weight).astype(np.float32)
    for got, expected in [
        (gram.primal_basis(gram.moments(X), None, weight=weight), gram.primal_basis(gram.moments(scaled), None)),
        (gram.dual_basis(X[:4], None, weight=weight), gram.dual_basis(scaled[:4], None)),
    ]:
        np.testing.assert_allclose(got.eigenvalues, expected.eigenvalues, rtol=1e-5)
        # Eigenvectors have no sign; scores of rows are compared by their products.
        ours, theirs = got.scores_of(X), expected.scores_of(scaled)
        np.testing.assert_allclose(ours @ ours.T, theirs @ theirs.T, atol=1e-4)


def test_weights_multiply_columns_that_were_scaled():
    rng = np.random.default_rng(0)
    X = (rng.standard_normal((40, 3)) * [1, 50, 0.02]).astype(np.float32)
    reference, weight = gram.mean_squares(X - X.mean(axis=0)), np.array([1.0, 0.5, 0.0])
    basis = gram.primal_basis(gram.moments(X), reference, weight=weight)
    np.testing.assert_allclose(np.sqrt(np.var(X.astype(np.float64), axis=0)) * basis.inverse_scale, weight, rtol=1e-5)
    assert len(basis.eigenvalues) == 2
    np.testing.assert_array_equal(basis.loadings[2], 0)
