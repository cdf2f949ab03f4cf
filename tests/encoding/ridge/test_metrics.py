"""Scores of predictions, against scipy, scikit-learn and himalaya."""

import himalaya.scoring
import numpy as np
import pytest
import scipy.stats
import sklearn.metrics

from vidbrain.encoding.ridge.metrics import TILE, correlation, correlation_split, r2, r2_split


@pytest.fixture(params=[np.float32, np.float64])
def data(request):
    rng = np.random.default_rng(0)
    measured = rng.standard_normal((20, 30)) + 100
    parts = rng.standard_normal((4, 20, 30)) + 3
    return measured.astype(request.param), parts.astype(request.param)


def test_correlation_is_pearsons(data):
    measured, (predicted, *_) = data
    expected = [scipy.stats.pearsonr(measured[:, v].astype(float), predicted[:, v]).statistic for v in range(30)]
    np.testing.assert_allclose(correlation(measured, predicted), expected, atol=1e-12)
    np.testing.assert_allclose(correlation(measured, -5 * predicted + 7), -np.array(expected), atol=1e-6)


def test_r2_is_that_of_sklearn(data):
    measured, (predicted, *_) = data
    expected = sklearn.metrics.r2_score(measured.astype(float), predicted, multioutput="raw_values")
    np.testing.assert_allclose(r2(measured, predicted), expected, rtol=1e-9)


def test_splits_equal_himalayas_and_add_up_to_the_joint_score(data):
    measured, parts = (a.astype(np.float64) for a in data)
    centred, parts = measured - measured.mean(axis=0), parts - parts.mean(axis=1, keepdims=True)
    found = r2_split(measured, parts)
    np.testing.assert_allclose(found, himalaya.scoring.r2_score_split(centred, parts), rtol=1e-9)
    np.testing.assert_allclose(found.sum(axis=0), r2(centred, parts.sum(axis=0)), rtol=1e-9)
    found = correlation_split(measured, parts)
    np.testing.assert_allclose(found, himalaya.scoring.correlation_score_split(centred, parts), rtol=1e-9)
    np.testing.assert_allclose(found.sum(axis=0), correlation(measured, parts.sum(axis=0)), atol=1e-12)


def test_an_offset_belongs_to_no_band(data):
    measured, parts = data
    moved = parts + np.arange(4)[:, None, None].astype(parts.dtype)
    np.testing.assert_allclose(r2_split(measured + 1, moved), r2_split(measured, parts), atol=1e-4)


def test_a_band_that_works_against_another_has_a_negative_share():
    rng = np.random.default_rng(0)
    y = rng.standard_normal((50, 1))
    shares = r2_split(y, np.stack([2 * y, -y]))
    np.testing.assert_allclose(shares, [[2.0], [-1.0]])


@pytest.mark.parametrize("value", [0.0, 0.1, 1e8])
def test_what_does_not_vary_scores_zero(value):
    rng = np.random.default_rng(0)
    constant, varying = np.full((3000, 2), value), rng.standard_normal((3000, 2))
    for score in (correlation, r2):
        assert (score(constant, varying) == 0).all()
    for split in (correlation_split, r2_split):
        assert (split(constant, np.stack([varying, varying])) == 0).all()
    assert (correlation(varying, constant) == 0).all()


def test_nan_is_not_hidden_and_stays_in_its_target():
    measured, predicted = np.random.default_rng(0).standard_normal((2, 20, 3))
    predicted[4, 1] = np.nan
    for found in (correlation(measured, predicted), r2(measured, predicted), r2_split(measured, predicted[None])[0]):
        np.testing.assert_array_equal(np.isnan(found), [False, True, False])


def test_tiles_change_nothing():
    measured, predicted = np.random.default_rng(0).standard_normal((2, 9, TILE + 3))
    np.testing.assert_array_equal(
        correlation(measured, predicted)[-3:], correlation(measured[:, -3:], predicted[:, -3:])
    )
    np.testing.assert_array_equal(r2(measured, predicted)[-3:], r2(measured[:, -3:], predicted[:, -3:]))


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"\(5, 2\).*\(5, 3\)"):
        correlation(np.zeros((5, 2)), np.zeros((5, 3)))
