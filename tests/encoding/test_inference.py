"""Circular shifts and the false discovery rate."""

import numpy as np
import pytest
import scipy.stats

from vidbrain.encoding.blocks import fit_encoding
from vidbrain.encoding.inference import benjamini_hochberg, circular_products, draw_shifts, shift_p_values
from vidbrain.encoding.settings import EncodeConfig
from vidbrain.testing.brains import toy_world


@pytest.mark.parametrize("n", [31, 40])
def test_products_equal_rolled_inner_products(n):
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, n, 3)).astype(np.float32)
    got = circular_products(a, b)
    expected = np.stack([(a * np.roll(b, -shift, axis=0)).sum(axis=0) for shift in range(n)])
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_p_counts_the_observed_value_and_equals_a_plain_loop():
    rng = np.random.default_rng(0)
    products = [rng.standard_normal((n, 4)).astype(np.float32) for n in (20, 25)]
    shifts = draw_shifts((20, 25), 200, seed=3)
    assert shifts.min() == 0
    assert shifts.max(axis=0).tolist() == [19, 24]
    got = shift_p_values(products, shifts, spread=1.0)
    for v in range(4):
        observed = products[0][0, v] + products[1][0, v]
        null = [products[0][s, v] + products[1][t, v] for s, t in shifts]
        assert got[v] == (1 + sum(value >= observed for value in null)) / 201
    best = [
        np.where(np.arange(n)[:, None] == 0, 9, p).astype(np.float32) for n, p in zip((20, 25), products, strict=True)
    ]
    draws = shifts[(shifts > 0).any(axis=1)]
    assert (shift_p_values(best, draws, spread=1.0) == 1 / (1 + len(draws))).all()


def test_q_equals_scipy():
    p = np.random.default_rng(0).random(500) ** 2
    np.testing.assert_allclose(benjamini_hochberg(p), scipy.stats.false_discovery_control(p))
    assert benjamini_hochberg(np.array([])).shape == (0,)


@pytest.mark.parametrize(("n_trs", "seed"), [((120, 110, 130, 115), 0), ((200, 180), 1)])
def test_p_of_pure_noise_is_uniform_under_autocorrelation(tmp_path, n_trs, seed):
    features, bold = toy_world(n_trs, n_signal=0, n_noise=1536, phi=0.5, seed=seed)
    result = fit_encoding(features, bold, EncodeConfig(n_alphas=10), tmp_path / "out").dataset
    p = result["p"].values.astype(float)
    assert scipy.stats.kstest(p, "uniform").pvalue > 0.01
    assert np.mean(p < 0.05) < 0.06  # folds share data: a null that forgets it gives 0.11 to 0.13 here
    assert abs(np.median(result["r_mean"])) < 0.02
    assert np.mean(result["q"] < 0.05) == 0
