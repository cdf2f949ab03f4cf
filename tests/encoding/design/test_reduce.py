"""Principal components of training rows and random projections, against scikit-learn on the explicit design."""

import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from vidbrain.encoding.design.assembly import build_design
from vidbrain.encoding.design.reduce import Reduction, pca_basis, random_basis
from vidbrain.encoding.ridge.gram import moments
from vidbrain.errors import ConfigError, EncodingError
from vidbrain.testing.brains import TR_S, ToyFeatures

DELAYS = (2, 0, 3)


def toy(seed=0, n_trs=(70, 60, 80), sizes=(8, 5)):
    """Layers of correlated features of very different scale and offset."""
    rng = np.random.default_rng(seed)
    layers = {}
    for number, size in enumerate(sizes):
        mixing = rng.standard_normal((size, size)) * 10.0 ** rng.integers(-2, 3, size)
        layers[f"layer-{number}"] = {
            f"run-{r}": (rng.standard_normal((n, size)) @ mixing + 30).astype(np.float32) for r, n in enumerate(n_trs)
        }
    return ToyFeatures(layers)


def make(features, **more):
    kept = {run: np.ones(len(v), bool) for run, v in next(iter(features.values.values())).items()}
    return build_design(features, features.layers, kept, tr_s=TR_S, delays=DELAYS, nuisance={}, **more)


def test_basis_is_that_of_sklearn():
    X = np.concatenate(list(toy().values["layer-0"].values()))[:90]
    pipeline = make_pipeline(StandardScaler(), PCA(4, svd_solver="full")).fit(X.astype(np.float64))
    expected = pipeline.transform(X.astype(np.float64))
    shifted = (X - X.mean(axis=0)).astype(np.float32)
    got = (X - X.mean(axis=0, dtype=np.float64)) @ pca_basis(moments(shifted), 4)
    signs = np.sign(np.sum(got * expected, axis=0))
    np.testing.assert_allclose(got, expected * signs, atol=2e-4)


def test_ridge_on_reduced_moments_is_ridge_on_explicit_components():
    """sklearn: scaler and PCA of each layer fitted on training TRs, then delayed, then ridge."""
    features = toy()
    design = make(features)
    train, test = np.flatnonzero(design.run < 2), np.flatnonzero(design.run == 2)
    rng = np.random.default_rng(1)
    Y = rng.standard_normal((design.shape[0], 4)).astype(np.float32)
    alpha, k = 30.0, 3

    blocks = []
    for layer in features.layers:
        runs = [v.astype(np.float64) for v in features.values[layer].values()]
        # Every TR of the training runs but the last of the shortest delay is seen; with delay 0 all are.
        pca = make_pipeline(StandardScaler(), PCA(k, svd_solver="full")).fit(np.concatenate(runs[:2]))
        blocks.append([pca.transform(run) for run in runs])
    X = np.array(
        [
            np.concatenate([blocks[b][r][t - lag] for lag in DELAYS for b in range(2)])
            for r, t in zip(design.run, design.tr, strict=True)
        ]
    )
    expected = Ridge(alpha).fit(X[train], Y[train]).predict(X[test])

    reduction = design.pca(train, k)
    assert reduction.band.tolist() == [0, 0, 0, 1, 1, 1] * 3
    sums = reduction.moments(design.moments(train))
    products = np.zeros((design.shape[1], 4), np.float32)
    centred = Y[train] - Y[train].mean(axis=0)
    design.cross(train, centred, products)
    gram = sums.gram - np.outer(sums.total, sums.total) / sums.n
    weights = np.linalg.solve(gram + alpha * np.eye(len(gram)), reduction.cross(products))
    held = reduction.rows(design.rows(test)) - sums.total / sums.n
    np.testing.assert_allclose(held @ weights + Y[train].mean(axis=0), expected, atol=2e-5)


def test_reduced_moments_are_those_of_reduced_rows():
    design = make(toy())
    rows = np.flatnonzero(design.run == 1)
    reduction = design.pca(np.flatnonzero(design.run != 1), 2)
    dense = np.zeros((design.shape[1], 12))
    for position in range(3):
        dense[13 * position : 13 * position + 13, 4 * position : 4 * position + 4] = reduction.blocks[position]
    X = design.rows(rows).astype(np.float64)
    np.testing.assert_allclose(reduction.rows(design.rows(rows)), X @ dense, atol=1e-4)
    got = reduction.moments(moments(design.rows(rows)))
    np.testing.assert_allclose(got.gram, (X @ dense).T @ (X @ dense), rtol=1e-9, atol=1e-8)
    np.testing.assert_allclose(got.total, X.sum(axis=0) @ dense, rtol=1e-9, atol=1e-8)


def test_components_of_a_cleaned_design_are_cleaned_components():
    features = toy(sizes=(8,))
    rng = np.random.default_rng(2)
    kept = {run: np.ones(len(v), bool) for run, v in features.values["layer-0"].items()}
    nuisance = {run: np.column_stack([np.ones(len(k)), rng.standard_normal((len(k), 4))]) for run, k in kept.items()}
    design = build_design(features, ("layer-0",), kept, tr_s=TR_S, delays=DELAYS, nuisance=nuisance)
    everywhere = np.arange(design.shape[0])
    runs = [v.astype(np.float64) for v in features.values["layer-0"].values()]
    pca = make_pipeline(StandardScaler(), PCA(3, svd_solver="full")).fit(np.concatenate(runs))
    expected = []
    for number, run in enumerate(kept):
        rows = design.tr[design.run == number]
        X = np.concatenate([pca.transform(runs[number])[rows - lag] for lag in DELAYS], axis=1)
        expected.append(X - nuisance[run][rows] @ np.linalg.lstsq(nuisance[run][rows], X, rcond=None)[0])
    expected = np.concatenate(expected)
    reduction = design.pca(everywhere, 3)
    got = reduction.rows(design.rows(everywhere))
    signs = np.sign(np.sum(got * expected, axis=0))
    np.testing.assert_allclose(got - got.mean(axis=0), expected * signs, atol=1e-4)
    sums = reduction.moments(design.moments(everywhere))
    gram = sums.gram - np.outer(sums.total, sums.total) / sums.n
    expected = (expected * signs).T @ (expected * signs)
    np.testing.assert_allclose(gram, expected, atol=1e-6 * np.abs(expected).max())


def test_held_out_rows_have_no_say():
    one, other = toy(), toy()
    rng = np.random.default_rng(3)
    for layer in other.values.values():
        layer["run-2"] = (5 * layer["run-2"] * rng.random(layer["run-2"].shape[1])).astype(np.float32)
    designs = [make(features) for features in (one, other)]
    train = np.flatnonzero(designs[0].run < 2)
    seen = [design.features[:130] for design in designs]
    assert np.abs(seen[0] - seen[1]).max() > 0.5
    scores = [design.pca(train, 3).rows(design.rows(train)).astype(np.float64) for design in designs]
    one, other = (score - score.mean(axis=0) for score in scores)
    rounding = np.finfo(np.float32).eps * max(np.abs(x).max() / x.std(axis=0).min() for x in seen)
    assert rounding < 1e-3
    np.testing.assert_allclose(one, other, atol=rounding)


def test_features_with_a_column_left_out_take_no_part():
    features = toy()
    features.values["layer-0"]["run-0"][69, 2] = np.nan  # the last TR of a run: seen at delay 0 alone
    for run in features.values["layer-1"].values():
        run[:, 1] = 4
    design = make(features)
    reduction = design.pca(np.arange(design.shape[0]), 2)
    parts = [design.column[(design.column // 13) == position] % 13 for position in range(3)]
    for block, members in zip(reduction.blocks, parts, strict=True):
        assert len(block) == len(members)
        assert (block[members == 2] == 0).all()
        assert np.abs(block[members != 2]).max(axis=1).min() > 0
    with pytest.raises(EncodingError, match="5 components are asked of 4 varying features"):
        design.pca(np.arange(design.shape[0]), 5)


def test_random_projection_is_fixed_by_its_seed_and_keeps_distances():
    features = toy(sizes=(300, 40))
    design = make(features, reduce="random", components=40, seed=5)
    assert design.shape[1] == 240
    assert design.band.tolist() == ([0] * 40 + [1] * 40) * 3
    rows = np.arange(design.shape[0])
    np.testing.assert_array_equal(design.rows(rows), make(features, reduce="random", components=40, seed=5).rows(rows))
    assert np.abs(design.rows(rows) - make(features, reduce="random", components=40, seed=6).rows(rows)).max() > 0.1
    x = np.random.default_rng(0).standard_normal((60, 300))
    ratio = np.linalg.norm(x @ random_basis(300, 200, 0), axis=1) / np.linalg.norm(x, axis=1)
    # The squared ratio is chi-squared over its 200 degrees of freedom.
    assert np.abs(ratio**2 - 1).max() < 4 * np.sqrt(2 / 200)


def test_random_projection_leaves_broken_features_out():
    features = toy()
    design = make(features, reduce="random", components=3)
    features.values["layer-0"]["run-0"][5] = np.nan
    with pytest.raises(EncodingError, match="no feature is left"):
        make(ToyFeatures({"layer-0": features.values["layer-0"]}), reduce="random", components=3)
    features = toy()
    features.values["layer-0"]["run-0"][5, 1] = np.inf
    for run in features.values["layer-1"].values():
        run[:, 2] = 1
    broken = make(features, reduce="random", components=3)
    assert (broken.n_invalid, broken.n_constant, broken.shape) == (3, 3, design.shape)
    assert np.isfinite(broken.rows(np.arange(design.shape[0]))).all()


def test_bad_settings_are_refused():
    for reduce, components in (("none", 3), ("pca", None), ("random", 0)):
        with pytest.raises(ConfigError, match="components"):
            make(toy(), reduce=reduce, components=components)
    for reduce in ("pca", "random"):
        with pytest.raises(EncodingError, match="layer 'layer-1' has 5 features, fewer than 6 components"):
            make(toy(), reduce=reduce, components=6)


def test_more_components_than_training_rows_are_refused():
    rng = np.random.default_rng(0)
    with pytest.raises(EncodingError, match="20 components are asked of 30 varying features over 10 training TRs"):
        pca_basis(moments(rng.standard_normal((10, 30)).astype(np.float32)), 20)


def test_a_reduction_without_reduction_changes_nothing():
    X = np.random.default_rng(0).standard_normal((20, 6)).astype(np.float32)
    same = Reduction((np.eye(4), np.eye(2)), np.zeros(6, np.int64))
    np.testing.assert_array_equal(same.rows(X), X)
    np.testing.assert_allclose(same.moments(moments(X)).gram, moments(X).gram, rtol=1e-12)
