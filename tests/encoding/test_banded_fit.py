"""Bands in the whole engine, against naive solvers over every candidate, and planted shares that must be found."""

import dataclasses

import numpy as np
import pytest
import scipy.stats

from vidbrain.encoding.blocks import fit_encoding
from vidbrain.encoding.ridge.bands import draw_gammas
from vidbrain.encoding.settings import EncodeConfig
from vidbrain.testing.brains import ToyFeatures, toy_world


def corr(a, b):
    return scipy.stats.pearsonr(a, b, axis=0).statistic


def best(scores):
    return len(scores) - 1 - np.argmax(scores[::-1], axis=0)


def two_layers(lengths=(90, 80, 100, 85), seed=0):
    """Voxels 0-29 follow the first layer, 30-59 the second, 60-89 both, the rest is noise."""
    features, bold = toy_world(lengths, n_features=20, n_signal=90, n_noise=30, snr=0.0, seed=seed)
    rng = np.random.default_rng(seed)
    weights = rng.standard_normal((20, 90)) / 3
    weights[8:, :30] = 0
    weights[:8, 30:60] = 0
    values = {}
    for label, y in bold.values.items():
        x = features.values["toy"][label]
        delayed = np.zeros_like(x)
        delayed[2:] = x[:-2]
        values[label] = y.copy()
        values[label][:, :90] += (delayed @ weights).astype(np.float32)
    layers = {
        "small": {label: v[:, :8] for label, v in features.values["toy"].items()},
        "large": {label: v[:, 8:] for label, v in features.values["toy"].items()},
    }
    return ToyFeatures(layers), dataclasses.replace(bold, values=values)


def naive_banded(features, bold, delays, alphas, gammas):
    first, X, Y, run = max(delays), [], [], []
    for number, label in enumerate(bold.runs):
        parts = [np.asarray(features.values[layer][label], np.float64) for layer in features.layers]
        X.append(np.concatenate([p[first - lag : len(p) - lag] for p in parts for lag in delays], axis=1))
        Y.append(np.asarray(bold.values[label], np.float64)[first:])
        run.append(np.full(len(Y[-1]), number))
    X, Y, run = np.concatenate(X), np.concatenate(Y), np.concatenate(run)
    band = np.repeat(np.arange(len(features.layers)), [len(delays) * p.shape[1] for p in parts])

    def predict(train, test, gamma):
        scale = np.sqrt(gamma * len(gamma))[band]
        mean, inverse = X[train].mean(0), scale / X[train].std(0)
        A, B, y_mean = (X[train] - mean) * inverse, (X[test] - mean) * inverse, Y[train].mean(0)
        G, C = A.T @ A, A.T @ (Y[train] - y_mean)
        return [B @ np.linalg.solve(G + alpha * np.eye(len(G)), C) + y_mean for alpha in alphas]

    r, picked = [], []
    for f in np.unique(run):
        score = np.zeros((len(gammas) * len(alphas), Y.shape[1]))
        for g in np.unique(run[run != f]):
            held = run == g
            train = (run != f) & ~held
            score += [corr(p, Y[held]) for gamma in gammas for p in predict(train, held, gamma)]
        where = best(score)
        everything = np.stack([p for gamma in gammas for p in predict(run != f, run == f, gamma)])
        r.append(corr(np.take_along_axis(everything, where[None, None], axis=0)[0], Y[run == f]))
        picked.append(where)
    return np.array(r), np.array(picked)


@pytest.mark.parametrize("form", ["primal", "dual"])
def test_equals_the_naive_search_over_bands(tmp_path, form):
    features, bold = two_layers((62, 55, 70))
    config = EncodeConfig(delays=(1, 2), bands=True, n_candidates=4, n_alphas=6, n_permutations=0, form=form)
    result = fit_encoding(features, bold, config, tmp_path, layer=("small", "large"))
    gammas, alphas = draw_gammas(4, 2, seed=0), result.info["alphas"]
    r, picked = naive_banded(features, bold, config.delays, alphas, gammas)
    same = np.isclose(result.dataset["fold_alpha"].values, np.array(alphas)[picked % 6], rtol=1e-5)
    assert same.mean() > 0.99
    assert np.abs(result.dataset["r"].values - r)[same].max() < 1e-5
    everywhere = same.all(axis=0)
    expected = gammas[picked // 6].mean(axis=0).T
    np.testing.assert_allclose(result.dataset["gamma"].values[:, everywhere], expected[:, everywhere], atol=1e-6)


def test_planted_bands_get_the_weight_and_the_explained_variance(tmp_path):
    features, bold = two_layers((200, 190, 210))
    config = EncodeConfig(delays=(2,), bands=True, partition=True, n_candidates=12, n_permutations=0)
    data = fit_encoding(features, bold, config, tmp_path, layer=("small", "large")).dataset
    gamma, split, unique = (data[name].values for name in ("gamma", "r2_split", "r2_unique"))
    # The shares are about each run's mean, R² is not: a wrong mean is an error that no band makes.
    assert (split.sum(axis=0) >= data["r2"].values - 1e-5).all()
    assert np.median(split.sum(axis=0) - data["r2"].values) < 0.03
    for voxels, own, other in ((slice(0, 30), 0, 1), (slice(30, 60), 1, 0)):
        assert np.median(gamma[own, voxels]) > 0.9
        assert np.median(split[own, voxels]) > 0.2
        assert abs(np.median(split[other, voxels])) < 0.02
        assert np.median(unique[own, voxels]) > 0.2
        assert abs(np.median(unique[other, voxels])) < 0.02
    assert (np.median(unique[:, 60:90], axis=1) > 0.05).all()
    assert (np.abs(np.median(unique[:, 90:], axis=1)) < 0.02).all()


def test_every_bit_is_the_same_for_any_block_size(tmp_path):
    rng = np.random.default_rng(0)
    features, bold = two_layers((50, 45, 40))
    more = {
        label: np.tile(v, (1, 12)) + rng.standard_normal((len(v), 1440)).astype("f4")
        for label, v in bold.values.items()
    }
    bold = dataclasses.replace(bold, values=more)
    results = []
    for block in (1, 4096):
        config = EncodeConfig(delays=(2,), bands=True, n_candidates=3, n_alphas=5, voxels_per_block=block)
        results.append(fit_encoding(features, bold, config, tmp_path / str(block), layer=("small", "large")).dataset)
    for name in results[0].variables:
        np.testing.assert_array_equal(results[0][name].values, results[1][name].values, err_msg=str(name))
