"""Nulls of r: every draw against rearranged time series, p against plain counts, validity under autocorrelation."""

import numpy as np
import pytest
import scipy.stats

from vidbrain.encoding.blocks import EncodeConfig, fit_encoding
from vidbrain.encoding.inference import null
from vidbrain.errors import EncodingError
from vidbrain.testing.brains import ar1, toy_world


def noise(n_trs, t, seed=0):
    rng = np.random.default_rng(seed)
    return [[rng.standard_normal((n, t)).astype(np.float32) for n in n_trs] for _ in range(2)]


def naive_p(observed, values):
    return (1 + np.sum(np.asarray(values) >= observed - 1e-9, axis=0)) / (1 + len(values))


@pytest.mark.parametrize("n", [31, 40])
def test_circular_products_equal_rolled_inner_products(n):
    (a,), (b,) = noise([n], 3)
    expected = np.stack([(a * np.roll(b, -shift, axis=0)).sum(axis=0) for shift in range(n)])
    np.testing.assert_allclose(null.circular_products(a, b), expected, atol=1e-5)


@pytest.mark.parametrize("pooled", [False, True])
def test_unit_series_give_the_mean_or_pooled_r_of_scipy(pooled):
    predicted, measured = noise([40, 55, 30], 6)
    for run, offset in enumerate((5, -3, 0)):
        measured[run] += offset
    p, y = null.unit_series(predicted, measured, pooled=pooled)
    got = np.sum([(a * b).sum(axis=0) for a, b in zip(p, y, strict=True)], axis=0)
    for v in range(6):
        series = [(a[:, v], b[:, v]) for a, b in zip(predicted, measured, strict=True)]
        if pooled:
            x, z = (np.concatenate([s[side] - s[side].mean() for s in series]) for side in (0, 1))
            expected = scipy.stats.pearsonr(x, z).statistic
        else:
            expected = np.mean([scipy.stats.pearsonr(a, b).statistic for a, b in series])
        assert got[v] == pytest.approx(expected, abs=1e-6)


def test_unit_series_of_constants_are_zero():
    predicted, measured = noise([20, 30], 2)
    predicted[0][:, 0] = 7
    p, _ = null.unit_series(predicted, measured)
    assert (p[0][:, 0] == 0).all()
    assert np.isfinite(p[1]).all()


def test_shift_p_equals_correlations_of_rolled_series():
    n_trs, t = (40, 55), 5
    predicted, measured = noise(n_trs, t)
    drawn = null.draw_shifts(n_trs, 99, seed=3)
    got = null.p_values(drawn, null.products(drawn, *null.unit_series(predicted, measured)), spread=1)
    first = np.array([0, 40])
    shifts = drawn.draws.indices.reshape(99, 2) - first
    assert shifts.min() == 0
    assert (shifts < n_trs).all()

    def mean_r(shift):
        return np.mean(
            [
                [scipy.stats.pearsonr(p[:, v], np.roll(y[:, v], -s)).statistic for v in range(t)]
                for p, y, s in zip(predicted, measured, shift, strict=True)
            ],
            axis=0,
        )

    values = np.array([mean_r(s) for s in shifts])
    np.testing.assert_allclose(got.observed, mean_r([0, 0]), atol=1e-6)
    np.testing.assert_allclose(got.maxima, values.max(axis=1), atol=1e-6)
    np.testing.assert_array_equal(got.p, naive_p(mean_r([0, 0]), values))


@pytest.mark.parametrize("between", [False, True])
def test_block_p_equals_products_of_permuted_series(between):
    n_trs, length, t = (43, 58), 10, 5  # 4 and 5 blocks; 3 and 8 TRs stay
    p, y = null.unit_series(*noise(n_trs, t))
    drawn = null.draw_block_permutations(n_trs, length, 150, seed=1, between_runs=between)
    got = null.p_values(drawn, null.products(drawn, p, y), spread=1)

    rng = np.random.default_rng(1)
    counts = [9] if between else [4, 5]
    orders = [rng.permuted(np.tile(np.arange(m), (150, 1)), axis=1) for m in counts]

    def statistic(*order):
        blocks = [list(s[: length * m].reshape(m, length, t)) for s, m in zip(y, (4, 5), strict=True)]
        if between:
            pool = blocks[0] + blocks[1]
            pool = [pool[i] for i in order[0]]
            blocks = [pool[:4], pool[4:]]
        else:
            blocks = [[b[i] for i in o] for b, o in zip(blocks, order, strict=True)]
        moved = [np.concatenate([*b, s[length * len(b) :]]) for b, s in zip(blocks, y, strict=True)]
        return np.sum([(a * b).sum(axis=0, dtype=np.float64) for a, b in zip(p, moved, strict=True)], axis=0)

    observed = statistic(*[np.arange(m) for m in counts])
    values = np.array([statistic(*order) for order in zip(*orders, strict=True)])
    np.testing.assert_allclose(got.observed, observed, atol=1e-6)
    np.testing.assert_allclose(got.maxima, values.max(axis=1), atol=1e-6)
    np.testing.assert_array_equal(got.p, naive_p(observed, values))


@pytest.mark.parametrize("kind", ["shift", "block", "block-between"])
def test_expected_is_the_mean_over_the_whole_group(kind):
    n_trs = (8, 7)
    tables = null.products(make(kind, n_trs, 3, 0), *noise(n_trs, 4))
    drawn = make(kind, n_trs, 3, 40_000)
    table = np.concatenate(tables).astype(np.float64)
    spread = (drawn.draws @ table).std(axis=0)
    np.testing.assert_allclose(
        drawn.expected @ table, (drawn.draws @ table).mean(axis=0), atol=5 * spread.max() / np.sqrt(40_000)
    )


def make(kind, n_trs, block, n, seed=0):
    if kind == "shift":
        return null.draw_shifts(n_trs, n, seed)
    try:
        return null.draw_block_permutations(n_trs, block, n, seed, between_runs=kind == "block-between")
    except EncodingError:
        return null.draw_block_permutations(n_trs, 2, n, seed, between_runs=kind == "block-between")


@pytest.mark.parametrize("kind", ["shift", "block", "block-between"])
def test_the_identity_is_counted_and_ties_with_itself(kind):
    n_trs = (44, 40)
    predicted, _ = noise(n_trs, 700)
    measured = [(p + 0.01).astype(np.float32) for p in predicted]
    drawn = make(kind, n_trs, 10, 2000, seed=5)
    got = null.p_values(drawn, null.products(drawn, *null.unit_series(predicted, measured)), spread=1)
    same = (drawn.draws != drawn.identity[[0] * 2000]).sum(axis=1) == 0
    np.testing.assert_allclose(got.p, (1 + same.sum()) / 2001)
    assert same.sum() == np.sum(got.maxima >= got.observed.max() - 1e-6)


def test_blocks_of_voxels_combine_to_the_whole():
    n_trs = (60, 70)
    p, y = null.unit_series(*noise(n_trs, 1300))
    drawn = null.draw_block_permutations(n_trs, 10, 50, seed=0)
    whole = null.p_values(drawn, null.products(drawn, p, y))
    parts = [
        null.p_values(drawn, null.products(drawn, [s[:, at] for s in p], [s[:, at] for s in y]))
        for at in (slice(0, 700), slice(700, 1300))
    ]
    tiled = null.evaluate(drawn, p, y)
    for name in ("observed", "p", "maxima"):
        np.testing.assert_array_equal(getattr(tiled, name), getattr(whole, name))
    np.testing.assert_array_equal(whole.p, np.concatenate([part.p for part in parts]))
    np.testing.assert_array_equal(whole.maxima, np.maximum.reduce([part.maxima for part in parts]))
    assert null.draw_block_permutations(n_trs, 10, 50, seed=0).draws.indices.tolist() == drawn.draws.indices.tolist()
    assert null.draw_block_permutations(n_trs, 10, 50, seed=1).draws.indices.tolist() != drawn.draws.indices.tolist()


def test_spread_widens_deviations_from_the_mean_of_the_group():
    n_trs = (50, 45)
    tables = null.products(null.draw_shifts(n_trs, 0, 0), *null.unit_series(*noise(n_trs, 4)))
    drawn = null.draw_shifts(n_trs, 300, 0)
    table = np.concatenate(tables).astype(np.float64)
    sums, centre = drawn.draws @ table, drawn.expected @ table
    wide = centre + 1.5 * (sums - centre)
    got = null.p_values(drawn, tables, spread=1.5)
    np.testing.assert_array_equal(got.p, naive_p(got.observed, wide))
    np.testing.assert_allclose(got.maxima, wide.max(axis=1), atol=1e-6)


def test_no_draws_give_p_of_one():
    drawn = null.draw_shifts((30, 30), 0, 0)
    assert (null.p_values(drawn, null.products(drawn, *noise((30, 30), 3))).p == 1).all()


def test_nan_is_never_significant_and_does_not_reach_its_neighbours():
    p, y = null.unit_series(*noise((30, 40), 4))
    y[0][:, 2] = np.nan
    drawn = null.draw_block_permutations((30, 40), 5, 99, 0)
    got = null.evaluate(drawn, p, y)
    keep = [0, 1, 3]
    clean = null.evaluate(drawn, [s[:, keep] for s in p], [s[:, keep] for s in y])
    assert got.p[2] == 1
    np.testing.assert_array_equal(got.p[keep], clean.p)
    np.testing.assert_array_equal(got.maxima, clean.maxima)


def test_blocks_that_are_too_few_are_refused():
    with pytest.raises(EncodingError, match="hold 1, 1 blocks"):
        null.draw_block_permutations((35, 38), 20, 10, 0)
    with pytest.raises(EncodingError, match="too few arrangements"):
        null.draw_block_permutations((60,), 20, 10, 0)


@pytest.mark.parametrize("kind", ["shift", "block"])
def test_p_of_a_run_that_trained_nothing_is_uniform(kind):
    n, t = 300, 4000
    rng = np.random.default_rng(2)
    p, y = null.unit_series([ar1(rng, n, t, 0.6)], [ar1(rng, n, t, 0.6)])
    drawn = make(kind, [n], 20, 499)
    got = null.p_values(drawn, null.products(drawn, p, y), spread=1).p
    assert scipy.stats.kstest(got, "uniform").pvalue > 0.01
    naive = scipy.stats.pearsonr(p[0], y[0], alternative="greater", axis=0).pvalue
    assert np.mean(naive < 0.01) > 0.03
    assert np.mean(got < 0.01) < 0.015


@pytest.mark.parametrize(("n_trs", "seed"), [((120, 110, 130, 115), 0), ((200, 180), 1)])
def test_p_of_cross_validated_noise_is_uniform_under_autocorrelation(tmp_path, n_trs, seed):
    features, bold = toy_world(n_trs, n_signal=0, n_noise=1536, phi=0.5, seed=seed)
    result = fit_encoding(features, bold, EncodeConfig(n_alphas=10), tmp_path / "out").dataset
    p = result["p"].values.astype(float)
    assert scipy.stats.kstest(p, "uniform").pvalue > 0.01
    assert np.mean(p < 0.05) < 0.06  # folds share data: a null that forgets it gives 0.11 to 0.13 here
    assert abs(np.median(result["r_mean"])) < 0.02
    assert np.mean(result["q"] < 0.05) == 0
