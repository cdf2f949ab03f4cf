"""Delays, masks and alignment of features with BOLD."""

import dataclasses

import numpy as np
import pytest

from vidbrain.encoding.design import build_design, choose_layers, choose_runs, delay, standardised_columns, usable
from vidbrain.encoding.prepare import prepare
from vidbrain.encoding.settings import EncodeConfig
from vidbrain.errors import AlignmentError, ConfigError, EncodingError, ModelError
from vidbrain.testing.brains import TR_S, ToyBold, ToyFeatures, toy_world


def all_kept(n_trs):
    return {run: np.ones(n, bool) for run, n in n_trs.items()}


def test_delay_equals_explicit_loops():
    x = np.arange(15, dtype=np.float32).reshape(5, 3) + 1
    got = delay(x, (0, 2, 7)).reshape(5, 3, 3)
    for t in range(5):
        for position, lag in enumerate((0, 2, 7)):
            expected = x[t - lag] if t >= lag else np.zeros(3)
            np.testing.assert_array_equal(got[t, position], expected)


def test_usable_equals_explicit_loops():
    rng = np.random.default_rng(0)
    valid = rng.random(40) > 0.2
    for n_trs in (40, 46):
        got = usable(valid, (1, 3), n_trs)
        for t in range(n_trs):
            expected = all(0 <= t - lag < 40 and valid[t - lag] for lag in (1, 3))
            assert got[t] == expected


def test_rows_never_cross_runs_and_follow_masks():
    values = {"a": np.arange(30, dtype=np.float32)[:, None], "b": 100 + np.arange(25, dtype=np.float32)[:, None] ** 1.5}
    valid = {"a": np.ones(30, bool), "b": np.ones(25, bool)}
    valid["a"][10] = False
    kept = all_kept({"a": 33, "b": 25})
    kept["b"][:4] = False
    features = ToyFeatures({"x": values}, valid)
    design = build_design(features, ("x",), kept, tr_s=TR_S, delays=(1, 2), nuisance={})
    a, b = design.tr[design.run == 0], design.tr[design.run == 1]
    # a: 0 and 1 lack delays; 11 and 12 look at TR 10; of the tail only 30 is reached by both delays (29 and 28).
    assert a.tolist() == [t for t in range(2, 31) if t not in (11, 12)]
    assert b.tolist() == list(range(4, 25))
    raw = np.array(
        [[values["ab"[r]][t - lag, 0] for lag in (1, 2)] for r, t in zip(design.run, design.tr, strict=True)]
    )
    np.testing.assert_allclose(design.X, (raw - raw.mean(0)) / raw.std(0), atol=1e-5)


def test_columns_that_never_change_or_are_not_finite_are_left_out():
    rng = np.random.default_rng(0)
    X = rng.standard_normal((50, 6)).astype(np.float32)
    X[:, 1] = 3
    X[7, 2] = np.nan
    X[8, 3] = np.inf
    X[:, 4] = 1e6 + 0.05 * rng.integers(0, 2, 50)
    kept, n_constant, n_invalid = standardised_columns(X, chunk=2)
    assert (kept.shape[1], n_constant, n_invalid) == (2, 2, 2)
    np.testing.assert_allclose(kept[:, 0], (X[:, 0] - X[:, 0].mean()) / X[:, 0].std(), atol=1e-5)


def test_a_run_that_confounds_would_use_up_is_refused():
    runs = {"a": np.random.default_rng(0).standard_normal((40, 2)).astype(np.float32)}
    features = ToyFeatures({"x": runs})
    with pytest.raises(EncodingError, match=r"39 of 40 TRs with video; 30 confounds"):
        build_design(features, ("x",), all_kept({"a": 40}), tr_s=TR_S, delays=(1,), nuisance={"a": np.ones((40, 30))})


def test_layers_are_concatenated_and_checked():
    rng = np.random.default_rng(0)
    runs = {"a": rng.standard_normal((40, 2)).astype(np.float32), "b": rng.standard_normal((40, 2)).astype(np.float32)}
    features = ToyFeatures({"one": runs, "two": {r: 2 * v[:, :1] ** 2 for r, v in runs.items()}})
    design = build_design(features, ("one", "two"), all_kept({"a": 40, "b": 40}), tr_s=TR_S, delays=(1,), nuisance={})
    assert design.X.shape == (78, 3)
    with pytest.raises(ModelError, match="did you mean 'two'"):
        choose_layers(features, "tow")
    with pytest.raises(ConfigError, match="2 layers: one, two"):
        choose_layers(features, None)
    with pytest.raises(ConfigError, match="different names"):
        choose_layers(features, ("one", "one"))


def test_features_longer_than_bold_give_both_numbers():
    features, bold = toy_world((60, 50, 55))
    short = dataclasses.replace(bold, values={run: v[:-7] for run, v in bold.values.items()})
    with pytest.raises(AlignmentError, match=r"60 TRs of features but 53 of BOLD"):
        prepare(features, short, EncodeConfig())


def test_tr_must_agree():
    features, bold = toy_world((60, 50, 55))
    with pytest.raises(AlignmentError, match=r"TR of 2 s, BOLD of 1.49 s"):
        prepare(dataclasses.replace(features, tr_s=2.0), bold, EncodeConfig())


def test_missing_runs_are_listed_and_can_be_allowed():
    assert choose_runs(("c", "a", "b"), ("a", "b", "d"), shared_runs_only=True) == ("a", "b")
    with pytest.raises(AlignmentError, match=r"c \(features only\); d \(BOLD only\)"):
        choose_runs(("c", "a", "b"), ("a", "b", "d"))
    with pytest.raises(AlignmentError, match="share no run"):
        choose_runs(("a",), ("b",), shared_runs_only=True)


def test_a_run_without_video_and_features_without_variation_are_refused():
    features, bold = toy_world((60, 50, 55))
    run = features.runs[1]
    dark = dataclasses.replace(features, valid={run: np.zeros(50, bool)})
    with pytest.raises(EncodingError, match=r"keeps 0 of 50 TRs"):
        prepare(dark, bold, EncodeConfig())
    flat = ToyFeatures({"toy": {r: np.ones_like(v) for r, v in features.values["toy"].items()}})
    with pytest.raises(EncodingError, match="60 columns are constant"):
        prepare(flat, bold, EncodeConfig())


@pytest.mark.parametrize("delays", [(), (-1, 2), (1, 1)])
def test_impossible_delays_are_refused(delays):
    with pytest.raises(ConfigError, match="delays must be"):
        EncodeConfig(delays=delays)


def test_single_run_is_refused():
    features, bold = toy_world((60,))
    with pytest.raises(EncodingError, match="at least 2 runs"):
        prepare(features, bold, EncodeConfig())


def test_toy_bold_without_kept_uses_every_volume():
    features, bold = toy_world((60, 50, 55))
    assert isinstance(bold, ToyBold)
    assert prepare(features, bold, EncodeConfig(delays=(0,))).design.X.shape == (165, 12)


def test_runs_with_other_numbers_of_features_are_refused():
    rng = np.random.default_rng(0)
    values = {"a": rng.standard_normal((30, 4), np.float32), "b": rng.standard_normal((30, 3), np.float32)}
    features = ToyFeatures({"x": values}, {run: np.ones(30, bool) for run in values})
    with pytest.raises(AlignmentError, match="b has 3 features, the runs before it 4"):
        build_design(features, ("x",), all_kept({"a": 30, "b": 30}), tr_s=TR_S, delays=(1, 2), nuisance={})
