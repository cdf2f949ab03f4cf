"""Block bootstrap: resamples against concatenated blocks, intervals against their definitions and their coverage."""

import numpy as np
import pytest
import scipy.stats

from vidbrain.encoding.inference import bootstrap
from vidbrain.errors import EncodingError
from vidbrain.testing.brains import ar1


def series(n_trs, t, seed=0):
    rng = np.random.default_rng(seed)
    predicted = [rng.standard_normal((n, t)).astype(np.float32) for n in n_trs]
    return predicted, [p + rng.standard_normal(p.shape).astype(np.float32) for p in predicted]


def moments_of(predicted, measured, block):
    return [bootstrap.block_moments(p, y, block) for p, y in zip(predicted, measured, strict=True)]


@pytest.mark.parametrize("how", ["mean", "pooled"])
def test_resamples_equal_the_r_of_concatenated_blocks(how):
    n_trs, t = (53, 41), 4
    predicted, measured = series(n_trs, t)
    measured = [y * 30 + 1e4 for y in measured]
    moments = moments_of(predicted, measured, 10)
    lengths = [[11, 11, 10, 11, 10], [11, 10, 10, 10]]
    assert [m.n_trs.tolist() for m in moments] == lengths
    weights = bootstrap.draw_weights([5, 4], 20, seed=2)
    assert [w.sum(axis=1).tolist() for w in weights] == [[5] * 20, [4] * 20]
    got = bootstrap.correlations(moments, weights, slice(0, t), how)
    for b in range(20):
        taken = []
        for p, y, w, length in zip(predicted, measured, weights, lengths, strict=True):
            p, y = ((s - s.mean(axis=0, dtype=np.float64)) / s.std(axis=0, dtype=np.float64) for s in (p, y))
            parts = np.split(np.arange(len(p)), np.cumsum(length)[:-1])
            rows = np.concatenate([parts[i] for i, times in enumerate(w[b]) for _ in range(int(times))])
            taken.append((p[rows] - p[rows].mean(axis=0), y[rows] - y[rows].mean(axis=0)))
        for v in range(t):
            if how == "mean":
                expected = np.mean([scipy.stats.pearsonr(p[:, v], y[:, v]).statistic for p, y in taken])
            else:
                x, z = (np.concatenate([pair[side][:, v] for pair in taken]) for side in (0, 1))
                expected = x @ z / np.sqrt((x @ x) * (z @ z))
            assert got[b, v] == pytest.approx(expected, abs=2e-6)


def test_intervals_are_quantiles_of_the_resamples():
    predicted, measured = series((200, 150), 600)
    moments = moments_of(predicted, measured, 15)
    weights = bootstrap.draw_weights([13, 10], 300, seed=0)
    got = bootstrap.intervals(moments, weights, level=0.9)
    draws = bootstrap.correlations(moments, weights, slice(0, 600)).astype(np.float64)
    r = np.mean(
        [scipy.stats.pearsonr(p, y, axis=0).statistic for p, y in zip(predicted, measured, strict=True)], axis=0
    )
    np.testing.assert_allclose(got.estimate, r, atol=1e-6)
    factor = np.sqrt(23 / 21)
    np.testing.assert_allclose(got.standard_error, factor * draws.std(axis=0, ddof=1), atol=1e-6)
    tail = 100 * scipy.stats.norm.cdf(factor * scipy.stats.t.ppf(0.05, df=21))
    assert 3 < tail < 5
    low, high = np.percentile(draws, [tail, 100 - tail], axis=0)
    np.testing.assert_allclose([got.percentile_low, got.percentile_high], [low, high], atol=1e-6)
    np.testing.assert_allclose([got.basic_low, got.basic_high], [2 * r - high, 2 * r - low], atol=3e-6)


def test_expansion_makes_the_interval_of_a_normal_mean_that_of_student():
    # Of m numbers, resamples of the mean are nearly normal with variance s^2 (m - 1) / m^2.
    wider = bootstrap.expansion([10], 0.95)
    half_width = -scipy.stats.norm.ppf(wider.tail) / np.sqrt(10) * np.sqrt(9 / 10)
    assert half_width == pytest.approx(scipy.stats.t.ppf(0.975, df=9) / np.sqrt(10))
    assert wider.tail == pytest.approx(0.0086, abs=5e-5)
    values = np.random.default_rng(0).standard_normal(10) + 0.5
    plain = 2 * scipy.stats.norm.sf(abs(values.mean()) / (values.std() / np.sqrt(10)))
    assert wider.widened_p(np.array(plain)) == pytest.approx(scipy.stats.ttest_1samp(values, 0).pvalue)


def test_standard_error_of_white_noise_is_that_of_theory():
    predicted, measured = series((4000,), 50)
    moments = moments_of(predicted, measured, 10)
    got = bootstrap.intervals(moments, bootstrap.draw_weights([400], 500, seed=0))
    theory = (1 - 0.5) / np.sqrt(4000)  # (1 - r^2) / sqrt(n), bivariate normal
    np.testing.assert_allclose(got.standard_error.mean(), theory, rtol=0.05)


def test_intervals_cover_the_true_r_of_autocorrelated_series_and_independent_trs_do_not():
    rng = np.random.default_rng(0)
    n, t, phi = 600, 600, 0.8
    predicted = ar1(rng, n, t, phi)
    measured = predicted + ar1(rng, n, t, phi)
    true_r = 1 / np.sqrt(2)
    covered = {}
    for block in (1, 30):
        moments = [bootstrap.block_moments(predicted, measured, block)]
        found = bootstrap.intervals(moments, bootstrap.draw_weights([n // block], 400, seed=0))
        covered[block] = np.mean((found.percentile_low < true_r) & (true_r < found.percentile_high))
    assert 0.9 < covered[30] < 0.98
    assert covered[1] < 0.75


def test_paired_difference_equals_its_resamples_and_is_surer_than_unpaired():
    rng = np.random.default_rng(1)
    n, t = 300, 40
    signal, noise = ar1(rng, n, t, 0.4), ar1(rng, n, t, 0.4)
    measured = signal + noise
    a, b = signal, signal + 0.3 * ar1(rng, n, t, 0.4)
    weights = bootstrap.draw_weights([20], 500, seed=0)
    one, other = ([bootstrap.block_moments(p, measured, 15)] for p in (a, b))
    got = bootstrap.paired_difference(one, other, weights)
    draws = bootstrap.correlations(one, weights, slice(0, t)) - bootstrap.correlations(other, weights, slice(0, t))
    observed = scipy.stats.pearsonr(a, measured, axis=0).statistic - scipy.stats.pearsonr(b, measured, axis=0).statistic
    np.testing.assert_allclose(got.estimate, observed, atol=1e-6)
    wider = bootstrap.expansion([20], 0.95)
    np.testing.assert_allclose(got.percentile_high, np.quantile(draws, 1 - wider.tail, axis=0), atol=1e-6)
    beyond = np.sum(np.abs(draws - got.estimate) >= np.abs(got.estimate), axis=0)
    quantile = scipy.stats.norm.isf((1 + beyond) / 501 / 2) * np.sqrt(19 / 20)
    np.testing.assert_allclose(got.p, 2 * scipy.stats.t.sf(quantile, df=19))
    unpaired = np.hypot(*(bootstrap.intervals(m, weights).standard_error for m in (one, other)))
    assert np.median(got.standard_error) < 0.6 * np.median(unpaired)


def test_p_of_no_difference_is_near_its_level_and_a_planted_difference_is_found():
    rng = np.random.default_rng(2)
    n, t = 400, 1500
    signal = ar1(rng, n, t, 0.5)
    measured = signal + ar1(rng, n, t, 0.5)
    same = [signal + 0.7 * ar1(rng, n, t, 0.5) for _ in range(2)]
    weights = bootstrap.draw_weights([20], 300, seed=0)
    moments = [[bootstrap.block_moments(p, measured, 20)] for p in (*same, signal)]
    p = bootstrap.paired_difference(moments[0], moments[1], weights).p
    assert 0.03 < np.mean(p <= 0.05) < 0.07
    assert np.median(bootstrap.paired_difference(moments[2], moments[1], weights).p) < 0.05


def test_constants_have_r_0_and_one_block_is_refused():
    predicted, measured = series((60,), 3)
    predicted[0][:, 1] = 4
    moments = moments_of(predicted, measured, 10)
    found = bootstrap.intervals(moments, bootstrap.draw_weights([6], 50, seed=0))
    assert found.estimate[1] == found.standard_error[1] == 0
    nil = bootstrap.paired_difference(moments, moments, bootstrap.draw_weights([6], 50, seed=0))
    assert (nil.p == 1).all()
    with pytest.raises(EncodingError, match="holds 1 blocks"):
        bootstrap.block_moments(predicted[0], measured[0], 40)
