"""Surrogate voxels: shifts against np.roll, scores against brute force, p of a whole cross-validated fit uniform."""

import numpy as np
import pytest
import scipy.stats

from vidbrain.encoding.inference import null, surrogate
from vidbrain.encoding.ridge.plain import RidgeEncoder
from vidbrain.testing.brains import ar1


def test_runs_are_rolled_one_by_one():
    rng = np.random.default_rng(0)
    Y, run = rng.standard_normal((25, 4)).astype(np.float32), np.repeat([0, 1], [12, 13])
    shifts = surrogate.draw_shifts([12, 13], np.arange(4), seed=1)
    got = surrogate.shift_runs(Y, run, shifts)
    for number in (0, 1):
        for v in range(4):
            np.testing.assert_array_equal(got[run == number, v], np.roll(Y[run == number, v], -shifts[number, v]))


def test_surrogates_do_not_depend_on_blocks():
    n_trs = [30, 1000, 7]
    whole = surrogate.draw_shifts(n_trs, np.arange(5000), seed=2)
    assert whole.min(axis=1)[[0, 2]].tolist() == [0, 0]
    assert whole.max(axis=1)[[0, 2]].tolist() == [29, 6]
    assert scipy.stats.chisquare(np.bincount(whole[0])).pvalue > 0.001
    parts = [surrogate.draw_shifts(n_trs, np.arange(*ends), seed=2) for ends in ((0, 10), (10, 10), (10, 5000))]
    np.testing.assert_array_equal(whole, np.concatenate(parts, axis=1))
    assert surrogate.source_voxels(10, 4).tolist() == [0, 2, 5, 7]
    assert np.bincount(surrogate.source_voxels(3, 300)).tolist() == [100, 100, 100]


def test_standard_scores_equal_all_pairs_of_shifts():
    rng = np.random.default_rng(0)
    tables = [rng.standard_normal((n, 3)).astype(np.float32) for n in (9, 11)]
    tables[0][:, 2], tables[1][:, 2] = 0, 0
    got = surrogate.standard_scores(tables)
    every = (tables[0][:, None] + tables[1]).reshape(-1, 3).astype(np.float64)
    np.testing.assert_allclose(got[:2], ((every[0] - every.mean(axis=0)) / every.std(axis=0).clip(1e-9))[:2], rtol=1e-5)
    assert got[2] == 0


def test_pooled_p_counts():
    got = surrogate.pooled_p_values(np.array([0.5, 2.0, -1.0]), np.array([0.5, 1.0, -1.0, 0.0]))
    assert got.tolist() == [3 / 5, 1 / 5, 1.0]
    assert surrogate.pooled_p_values(np.array([np.nan]), np.zeros(4)) == 1


def score(X, Y, run):
    """Leave-one-run-out r with nested alphas; standardised."""
    tables = []
    for held in np.unique(run):
        train = run != held
        model = RidgeEncoder(n_alphas=6).fit(X[train], Y[train], groups=run[train])
        p, y = null.unit_series([model.predict(X[~train]).astype(np.float32)], [Y[~train]])
        tables.append(null.circular_products(p[0], y[0]))
    return surrogate.standard_scores(tables)


@pytest.mark.parametrize("p", [12, 150])
def test_p_of_cross_validated_noise_is_uniform_and_signal_is_found(p):
    n_trs, t, found, planted = [70, 80, 75], 120, [], []
    run = np.repeat(np.arange(3), n_trs)
    for seed in range(6):
        rng = np.random.default_rng(seed)
        X = np.concatenate([ar1(rng, n, p, 0.5) for n in n_trs])
        Y = np.concatenate([ar1(rng, n, t, 0.5) for n in n_trs])
        Y[:, :20] += (1.5 * X[:, :3] @ rng.standard_normal((3, 20))).astype(np.float32)
        copies = Y[:, surrogate.source_voxels(t, 480)]
        shifts = surrogate.draw_shifts(n_trs, np.arange(480), seed)
        scores = score(X, np.concatenate([Y, surrogate.shift_runs(copies, run, shifts)], axis=1), run)
        values = surrogate.pooled_p_values(scores[:t], scores[t:])
        found.append(values[20:])
        planted.append(values[:20])
    noise = np.concatenate(found)
    assert scipy.stats.kstest(noise, "uniform").pvalue > 0.01
    # Sampling errors of the surrogates' quantile and of the voxels' share, over six worlds.
    assert np.mean(noise <= 0.05) < 0.05 + 3 * np.sqrt(0.05 * 0.95 * (1 / 480 + 1 / 100) / 6)
    assert np.mean(np.concatenate(planted) <= 0.01) > 0.5
