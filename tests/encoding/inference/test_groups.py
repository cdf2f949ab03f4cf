"""Few subjects: counts, parcels, sign-flips and partial conjunctions against SciPy and pandas."""

import itertools

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from vidbrain.encoding.inference import groups


def test_replication_count():
    q = np.array([[0.01, 0.2, 0.05], [0.04, 0.01, 0.9]])
    assert groups.replication_count(q, 0.05).tolist() == [2, 1, 1]


def test_mean_map_leaves_out_voxels_that_a_subject_lacks():
    values = np.random.default_rng(0).standard_normal((4, 30)).astype(np.float32)
    values[1, ::3], values[:, 5] = np.nan, np.nan
    mean, count = groups.mean_map(values)
    frame = pd.DataFrame(values.astype(np.float64))
    np.testing.assert_allclose(mean, frame.mean().to_numpy())
    assert count.tolist() == frame.count().tolist()


def test_parcel_means_equal_pandas():
    rng = np.random.default_rng(0)
    values, parcel = rng.standard_normal((3, 60)), rng.choice([0, 2, 5, 9], 60)
    values[0, ::7] = np.nan
    values[1, parcel == 5] = np.nan
    labels, got = groups.parcel_means(values, parcel)
    expected = pd.DataFrame(values.T).groupby(parcel).mean().drop(index=0)
    assert labels.tolist() == expected.index.tolist() == [2, 5, 9]
    np.testing.assert_allclose(got, expected.to_numpy().T)
    np.testing.assert_allclose(groups.parcel_means(values[2], parcel)[1], expected.to_numpy()[:, 2])


def test_sign_flip_equals_scipy_and_a_plain_maximum():
    rng = np.random.default_rng(0)
    values = rng.standard_normal((5, 8)) + 0.5
    p, family_wise = groups.sign_flip(values)
    expected = scipy.stats.permutation_test(
        (values,), np.mean, permutation_type="samples", alternative="greater", n_resamples=np.inf, axis=0
    ).pvalue
    np.testing.assert_allclose(p, expected)
    maxima = np.array([np.max(np.array(s) @ values / 5) for s in itertools.product([1, -1], repeat=5)])
    np.testing.assert_allclose(family_wise, [np.mean(maxima >= m - 1e-12) for m in values.mean(axis=0)])


@pytest.mark.parametrize("n", [4, 6])
def test_sign_flip_reaches_its_floor_and_no_further(n):
    p, family_wise = groups.sign_flip(np.full((n, 3), 100.0, np.float32) + np.arange(3, dtype=np.float32))
    assert p.tolist() == [groups.smallest_sign_flip_p(n)] * 3 == [1 / 2**n] * 3
    assert family_wise[-1] == 1 / 2**n
    with pytest.raises(ValueError, match="finite"):
        groups.sign_flip(np.array([[1.0, np.nan], [1.0, 2.0]]))
    with pytest.raises(ValueError, match="too many"):
        groups.sign_flip(np.zeros((17, 2)))


def test_partial_conjunction_equals_scipy():
    p = np.random.default_rng(0).random((5, 20))
    for n_true in range(1, 6):
        expected = [
            scipy.stats.combine_pvalues(np.sort(column)[n_true - 1 :], method="fisher").pvalue for column in p.T
        ]
        np.testing.assert_allclose(groups.partial_conjunction(p, n_true), expected)
    np.testing.assert_allclose(groups.partial_conjunction(p, 5), p.max(axis=0))
    with pytest.raises(ValueError, match="from 1 to 5"):
        groups.partial_conjunction(p, 6)


def test_partial_conjunction_holds_its_level_where_too_few_subjects_have_the_effect():
    rng = np.random.default_rng(0)
    p = rng.random((5, 20_000))
    p[:2] = 1e-12  # two have it: "at least three" is false
    assert np.mean(groups.partial_conjunction(p, 3) <= 0.05) == pytest.approx(0.05, abs=0.006)
    assert np.mean(groups.partial_conjunction(p, 2) <= 0.05) > 0.9
