"""Canonical responses against nilearn's regressors, and what they count as video."""

import numpy as np
import pytest
from nilearn.glm.first_level.hemodynamic_models import compute_regressor
from sklearn.linear_model import Ridge

from vidbrain.encoding.design.assembly import build_design
from vidbrain.encoding.design.response import MIN_SHARE, convolve, covered, kernels
from vidbrain.errors import EncodingError
from vidbrain.testing.brains import TR_S, ToyFeatures

TR = 1.49


def nilearn_regressor(values, model):
    """Boxes of a TR, sampled at the middle of each TR."""
    onsets = np.arange(len(values)) * TR
    events = np.stack([onsets, np.full(len(values), TR), values])
    return compute_regressor(events, model, onsets + TR / 2, oversampling=50)[0]


@pytest.mark.parametrize("response", ["glover", "spm"])
def test_convolved_features_equal_nilearns_regressors(response):
    values = np.random.default_rng(0).standard_normal(150).astype(np.float32)
    got = convolve(values[:, None], kernels(response, TR))[:, 0]
    expected = nilearn_regressor(values, response)[:, 0]
    # nilearn's samples lie on a grid of TR / 50: half a step, at the steepest slopes.
    assert np.abs(got - expected).max() < 0.01 * np.abs(expected).max()
    assert np.corrcoef(got, expected)[0, 1] > 0.9999


@pytest.mark.parametrize("response", ["glover", "spm"])
def test_derivatives_span_what_nilearns_do(response):
    values = np.random.default_rng(1).standard_normal(150).astype(np.float32)
    got = convolve(values[:, None], kernels(f"{response} + derivative", TR))
    expected = nilearn_regressor(values, f"{response} + derivative")  # made orthogonal to the first
    weights = np.linalg.lstsq(got, expected, rcond=None)[0]
    for column in range(2):
        assert np.corrcoef(got @ weights[:, column], expected[:, column])[0, 1] > 0.999


@pytest.mark.parametrize("tr_s", [0.8, 1.49, 2.0])
def test_kernels_are_causal_and_sum_to_one(tr_s):
    both = kernels("glover + derivative", tr_s)
    assert both.shape == (2, int(np.floor(32 / tr_s + 0.5)) + 1)
    assert both[0].sum() == pytest.approx(1)
    np.testing.assert_array_equal(both[0], kernels("glover", tr_s)[0])
    assert 3 < np.argmax(both[0]) * tr_s < 7
    # A derivative ends where it began.
    assert abs(both[1].sum()) < 0.01 * np.abs(both[1]).sum()


def test_rows_need_most_of_the_response_on_video():
    kernel = kernels("glover", TR)[0]
    valid = np.random.default_rng(0).random(90) > 0.04
    got = covered(valid, kernel, 95)
    for t in range(95):
        weight = sum(abs(w) for lag, w in enumerate(kernel) if 0 <= t - lag < 90 and valid[t - lag])
        assert got[t] == (weight >= MIN_SHARE * np.abs(kernel).sum() - 1e-9)
    assert 0 < got.sum() < 95
    assert not covered(np.ones(5, bool), kernel, 5).any()


def hrf_design(features, kept, response="glover"):
    return build_design(features, ("x",), kept, tr_s=TR_S, delays=(1, 2), nuisance={}, response=response)


def test_a_design_is_convolved_within_runs_and_missing_video_counts_as_the_mean():
    rng = np.random.default_rng(0)
    raw = {run: 5 + rng.standard_normal((n, 3)) * [1, 10, 0.1] for run, n in (("a", 80), ("b", 70))}
    values = {run: v.astype(np.float32) for run, v in raw.items()}
    valid = {run: np.ones(len(v), bool) for run, v in values.items()}
    valid["a"][[40, 41]] = False
    values["a"][[40, 41]] = np.nan
    kept = {"a": np.ones(84, bool), "b": np.ones(70, bool)}
    design = hrf_design(ToyFeatures({"x": values}, valid), kept, "glover + derivative")
    assert design.delays == (0,)
    assert design.shape[1] == 6
    weights = kernels("glover + derivative", TR_S)
    expected, mean = [], np.nanmean(np.concatenate([values["a"], values["b"]]).astype(np.float64), axis=0)
    for number, run in enumerate("ab"):
        rows = design.tr[design.run == number]
        np.testing.assert_array_equal(rows, np.flatnonzero(covered(valid[run], weights[0], len(kept[run]))))
        centred = np.nan_to_num(values[run] - mean)
        columns = [np.convolve(centred[:, g], w)[rows] for w in weights for g in range(3)]
        expected.append(np.stack(columns, axis=1))
    expected = np.concatenate(expected)
    expected = (expected - expected.mean(axis=0)) / expected.std(axis=0)
    np.testing.assert_allclose(design.rows(np.arange(design.shape[0])), expected, atol=1e-5)
    moments = design.moments(np.arange(design.shape[0]))
    np.testing.assert_allclose(moments.gram, expected.T @ expected, atol=1e-3)


def test_planted_responses_are_found_and_noise_is_not():
    """BOLD made by nilearn from the features of a run that was never trained on."""
    rng = np.random.default_rng(0)
    values = {run: rng.standard_normal((200, 4)).astype(np.float32) for run in "abc"}
    design = hrf_design(ToyFeatures({"x": values}), {run: np.ones(200, bool) for run in "abc"})
    planted = [nilearn_regressor(v @ np.array([1.0, -2.0, 0.5, 1.0]), "glover")[:, 0] for v in values.values()]
    Y = np.concatenate([np.stack([signal, rng.standard_normal(200)], axis=1) for signal in planted])
    Y = Y[design.start[design.run] + design.tr]
    train, test = np.flatnonzero(design.run < 2), np.flatnonzero(design.run == 2)
    predicted = Ridge(1.0).fit(design.rows(train), Y[train]).predict(design.rows(test))
    r = [np.corrcoef(predicted[:, voxel], Y[test, voxel])[0, 1] for voxel in range(2)]
    assert r[0] > 0.99
    assert abs(r[1]) < 0.25


def test_a_nan_under_the_kernel_leaves_the_feature_out():
    rng = np.random.default_rng(0)
    values = {"a": rng.standard_normal((80, 3)).astype(np.float32)}
    values["a"][50, 1] = np.nan
    design = hrf_design(ToyFeatures({"x": values}), {"a": np.ones(80, bool)}, "spm + derivative")
    assert (design.column.tolist(), design.n_invalid) == ([0, 2, 3, 5], 2)


def test_a_run_that_is_too_short_for_the_response_is_refused():
    values = {"a": np.random.default_rng(0).standard_normal((15, 3)).astype(np.float32)}
    with pytest.raises(EncodingError, match=r"a keeps \d of 15 TRs with video under 90% of the response"):
        hrf_design(ToyFeatures({"x": values}), {"a": np.ones(15, bool)})
