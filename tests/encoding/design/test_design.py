"""Undelayed features, delays and masks against explicit loops; lagged Gram matrices against the delayed matrix."""

import dataclasses
import re
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vidbrain.encoding.blocks import EncodeConfig, prepare
from vidbrain.encoding.design.align import choose_layers, choose_runs
from vidbrain.encoding.design.assembly import build_design
from vidbrain.encoding.design.matrix import Design, load_design
from vidbrain.encoding.ridge.gram import CHUNK_ROWS
from vidbrain.errors import AlignmentError, ConfigError, EncodingError, ModelError, StorageError
from vidbrain.testing.brains import TR_S, ToyBold, ToyFeatures, toy_world


def all_kept(n_trs):
    return {run: np.ones(n, bool) for run, n in n_trs.items()}


def everything(design):
    return design.rows(np.arange(design.shape[0]))


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
    np.testing.assert_allclose(everything(design), (raw - raw.mean(0)) / raw.std(0), atol=1e-5)


def test_columns_that_never_change_or_are_not_finite_are_left_out():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((50, 6)).astype(np.float32)
    x[:, 1] = 3
    x[7, 2] = np.nan
    x[8, 3] = np.inf
    x[:, 4] = 1e6 + 0.05 * rng.integers(0, 2, 50)
    features = ToyFeatures({"x": {"a": x}})
    design = build_design(features, ("x",), all_kept({"a": 50}), tr_s=TR_S, delays=(0,), nuisance={})
    assert (design.column.tolist(), design.n_constant, design.n_invalid) == ([0, 5], 2, 2)
    np.testing.assert_allclose(everything(design)[:, 0], (x[:, 0] - x[:, 0].mean()) / x[:, 0].std(), atol=1e-5)


def test_only_the_columns_that_see_a_nan_are_left_out():
    rng = np.random.default_rng(0)
    values = {run: rng.standard_normal((40, 2)).astype(np.float32) for run in "ab"}
    values["a"][10] = np.nan  # no video there: never looked at
    values["a"][20, 0] = np.nan  # its own volume is not kept: seen at delay 1 only
    values["a"][39, 1] = np.inf  # the last TR: seen at delay 0 only, for the next row is of another run
    values["b"][39, 0] = np.inf  # likewise
    valid = {run: np.ones(40, bool) for run in "ab"}
    valid["a"][10] = False
    kept = all_kept({"a": 40, "b": 40})
    kept["a"][20] = False
    features = ToyFeatures({"x": values}, valid)
    design = build_design(features, ("x",), kept, tr_s=TR_S, delays=(0, 1), nuisance={})
    assert (design.column.tolist(), design.n_constant, design.n_invalid) == ([3], 0, 3)
    assert np.isfinite(everything(design)).all()


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
    assert design.shape == (78, 3)
    assert (design.bands, design.band.tolist()) == (("one", "two"), [0, 0, 1])
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
    assert prepare(features, bold, EncodeConfig(delays=(0,))).design.shape == (165, 12)


def test_runs_with_other_numbers_of_features_are_refused():
    rng = np.random.default_rng(0)
    values = {"a": rng.standard_normal((30, 4), np.float32), "b": rng.standard_normal((30, 3), np.float32)}
    features = ToyFeatures({"x": values}, {run: np.ones(30, bool) for run in values})
    with pytest.raises(AlignmentError, match="b has 3 features, the runs before it 4"):
        build_design(features, ("x",), all_kept({"a": 30, "b": 30}), tr_s=TR_S, delays=(1, 2), nuisance={})


def world(n_trs, n_features, *, seed=0, offset=0.0, share=0.95, layers=("x",)):
    """Runs with gaps in their video and in the volumes that are kept, and 3, 4, ... confounds."""
    rng = np.random.default_rng(seed)
    names = [f"run-{number}" for number in range(len(n_trs))]
    scales = 10.0 ** rng.integers(-2, 3, n_features)
    values = {
        layer: {
            name: (np.cumsum(rng.standard_normal((n, n_features)), axis=0) * 0.2 * scales + offset).astype(np.float32)
            for name, n in zip(names, n_trs, strict=True)
        }
        for layer in layers
    }
    valid = {name: rng.random(n) < share for name, n in zip(names, n_trs, strict=True)}
    kept = {name: rng.random(n + 3) < share for name, n in zip(names, n_trs, strict=True)}  # BOLD is a little longer
    nuisance = {
        name: np.column_stack([np.ones(len(kept[name])), rng.standard_normal((len(kept[name]), 2 + number))])
        for number, name in enumerate(names)
    }
    return ToyFeatures(values, valid), kept, nuisance


def delayed_by_loops(features, layers, kept, delays):
    """Delay raw features row by row in float64, within runs: X, and the run and TR of each row that has video."""
    X, where = [], []
    for number, (run, mask) in enumerate(kept.items()):
        raw = np.concatenate([features.values[layer][run] for layer in layers], axis=1).astype(np.float64)
        valid = features.valid.get(run, np.ones(len(raw), bool))
        for t in np.flatnonzero(mask):
            if all(0 <= t - lag < len(raw) and valid[t - lag] for lag in delays):
                X.append(np.concatenate([raw[t - lag] for lag in delays]))
                where.append((number, t))
    return np.array(X), np.array(where)


def clean(X, where, kept, nuisance):
    """Residuals of least squares, run by run."""
    X = X - X.mean(axis=0)
    for number, run in enumerate(kept):
        mine = where[:, 0] == number
        if run in nuisance:
            N = np.linalg.qr(nuisance[run][where[mine, 1]])[0]
            X[mine] -= N @ (N.T @ X[mine])
    return X


DELAYS = [(0,), (3,), (1, 2, 3, 4, 5), (5, 0, 2), (1, 3, 7)]


@pytest.mark.parametrize("delays", DELAYS)
@pytest.mark.parametrize(("n_features", "cleaned", "offset"), [(1, False, 0), (4, True, 0), (3, True, 1e4)])
def test_rows_equal_those_delayed_and_cleaned_by_loops(delays, n_features, cleaned, offset):
    features, kept, nuisance = world((60, 45, 80), n_features, offset=offset)
    nuisance = nuisance if cleaned else {}
    design = build_design(features, ("x",), kept, tr_s=TR_S, delays=delays, nuisance=nuisance)
    X, where = delayed_by_loops(features, ("x",), kept, delays)
    np.testing.assert_array_equal(np.column_stack([design.run, design.tr]), where)
    X = clean(X, where, kept, nuisance)
    np.testing.assert_allclose(everything(design), (X - X.mean(0)) / X.std(0), atol=5e-6)
    some = np.array([5, 3, 40])
    np.testing.assert_array_equal(design.rows(some), everything(design)[some])


def explicit(design, kept, nuisance):
    """The whole matrix in float64 from the features that the design holds."""
    place = design.start[design.run] + design.tr
    X = np.concatenate([design.features[place - lag].astype(np.float64) for lag in design.delays], axis=1)
    where = np.column_stack([design.run, design.tr])
    for number, run in enumerate(kept):
        mine = design.run == number
        if run in nuisance:
            N = np.linalg.qr(nuisance[run][where[mine, 1]])[0]
            X[mine] -= N @ (N.T @ X[mine])
    X = X[:, design.column]
    return (X - X.mean(axis=0)) / X.std(axis=0)


def row_sets(design):
    """All rows, runs, rows with a block and its purged neighbours left out, scattered rows, one row."""
    n = design.shape[0]
    rng = np.random.default_rng(0)
    yield np.arange(n)
    yield np.flatnonzero(design.run == 1)
    yield np.flatnonzero((design.run != 1) | (design.tr < 20) | (design.tr > 35))
    yield np.flatnonzero(rng.random(n) < 0.5)
    yield np.array([n // 2])


def assert_same_moments(got, X, rtol=1e-12):
    assert got.n == len(X)
    np.testing.assert_allclose(got.gram, X.T @ X, atol=rtol * np.abs(X.T @ X).max(), rtol=0)
    np.testing.assert_allclose(got.total, X.sum(axis=0), atol=rtol * np.abs(X).sum(axis=0).max(), rtol=0)


@pytest.mark.parametrize("delays", DELAYS)
@pytest.mark.parametrize(
    ("n_features", "cleaned", "offset"), [(1, True, 0), (4, False, 0), (4, True, 0), (3, True, 1e4)]
)
def test_moments_equal_those_of_the_whole_matrix(delays, n_features, cleaned, offset):
    features, kept, nuisance = world((90, 65, 80), n_features, offset=offset, share=0.98)
    nuisance = {run: nuisance[run] for run in ("run-0", "run-2")} if cleaned else {}
    design = build_design(features, ("x",), kept, tr_s=TR_S, delays=delays, nuisance=nuisance)
    X = explicit(design, kept, nuisance)
    for rows in row_sets(design):
        assert_same_moments(design.moments(rows), X[rows])


@given(
    seed=st.integers(0, 10**6),
    delays=st.lists(st.integers(0, 9), min_size=1, max_size=5, unique=True),
    share=st.floats(0.1, 1.0),
)
@settings(max_examples=40, deadline=None)
def test_moments_of_any_rows_and_delays(seed, delays, share):
    features, kept, nuisance = world((70, 60), 3, seed=seed, share=1.0)
    design = build_design(features, ("x",), kept, tr_s=TR_S, delays=delays, nuisance=nuisance)
    rows = np.flatnonzero(np.random.default_rng(seed).random(design.shape[0]) < share)
    assert_same_moments(design.moments(rows), explicit(design, kept, nuisance)[rows])


@pytest.mark.parametrize("cleaned", [True, False])
def test_long_stretches_are_never_formed_and_short_ones_are(monkeypatch, cleaned):
    features, kept, nuisance = world((120, 120), 3, share=1.0)
    nuisance = nuisance if cleaned else {}
    design = build_design(features, ("x",), kept, tr_s=TR_S, delays=(1, 2, 3, 4), nuisance=nuisance)
    formed = []
    original = Design._direct_moments
    monkeypatch.setattr(Design, "_direct_moments", lambda self, rows: (formed.append(rows), original(self, rows))[1])
    everywhere = np.arange(design.shape[0])
    first_run = np.flatnonzero(design.run == 0)
    for rows, expected in (
        (everywhere, []),
        (everywhere[::2], [everywhere[::2]]),
        (np.append(first_run, first_run[-1] + 10), [[first_run[-1] + 10]]),
    ):
        formed.clear()
        assert_same_moments(design.moments(rows), explicit(design, kept, nuisance)[rows])
        assert [some.tolist() for some in formed] == [list(some) for some in expected]


def test_moments_add_up_and_subtract():
    features, kept, nuisance = world((90, 65, 80), 4)
    design = build_design(features, ("x",), kept, tr_s=TR_S, delays=(1, 2, 3), nuisance=nuisance)
    rows = np.arange(design.shape[0])
    held = rows[design.run == 2]
    rest = design.moments(rows) - design.moments(held)
    assert_same_moments(rest, explicit(design, kept, nuisance)[design.run != 2])
    with pytest.raises(ValueError, match="ascend"):
        design.moments(np.array([3, 2]))
    none = design.moments(rows[:0])
    assert (none.n, np.abs(none.gram).max(), np.abs(none.total).max()) == (0, 0, 0)


def test_a_column_that_is_nothing_but_confounds_in_one_run_is_exactly_nothing_there():
    features, kept, nuisance = world((60, 45, 80), 3, share=1.0)
    n = len(features.values["x"]["run-0"])
    features.values["x"]["run-0"][:, 1] = 1e3 + 7 * nuisance["run-0"][:n, 1]
    design = build_design(features, ("x",), kept, tr_s=TR_S, delays=(0,), nuisance=nuisance)
    X, where = delayed_by_loops(features, ("x",), kept, (0,))
    X = clean(X, where, kept, nuisance)
    X[where[:, 0] == 0, 1] = 0
    X = (X - X.mean(axis=0)) / X.std(axis=0)
    first = everything(design)[design.run == 0, 1]
    assert (first == first[0]).all()
    # Features are float32 of standard deviation 1; cleaning a run that is far from the others leaves little of that.
    rounding = np.finfo(np.float32).eps * np.abs(design.features).max() / design.scale.min()
    assert rounding < 1e-4
    np.testing.assert_allclose(everything(design), X, atol=rounding)
    for rows in row_sets(design):
        assert_same_moments(design.moments(rows), X[rows], rtol=1e-6)
    for layer in features.values["x"].values():
        layer[:, 1] = 5
    assert build_design(features, ("x",), kept, tr_s=TR_S, delays=(0,), nuisance=nuisance).n_constant == 1


def test_columns_left_out_leave_the_others_alone():
    features, kept, nuisance = world((60, 45, 80), 5, share=1.0)
    features.values["x"]["run-1"][-1, 3] = np.nan  # BOLD is longer: delay 3 sees this TR, delay 5 does not
    for values in features.values["x"].values():
        values[:, 0] = 1
    kept["run-1"][-1] = False
    design = build_design(features, ("x",), kept, tr_s=TR_S, delays=(5, 1, 3), nuisance=nuisance)
    assert (design.n_constant, design.n_invalid) == (3, 1)
    X = explicit(design, kept, nuisance)
    np.testing.assert_allclose(everything(design), X, atol=5e-6)
    for rows in row_sets(design):
        assert_same_moments(design.moments(rows), X[rows])
    Y = np.random.default_rng(0).standard_normal((len(X), 3)).astype(np.float32)
    out = np.zeros((design.shape[1], 3), np.float32)
    design.cross(np.arange(len(X)), Y, out)
    np.testing.assert_allclose(out, X.T @ Y, atol=1e-4)


def test_cross_products_of_many_rows_add_to_what_is_there():
    features, kept, nuisance = world((CHUNK_ROWS, 900), 2, share=1.0)
    design = build_design(features, ("x",), kept, tr_s=TR_S, delays=(1, 2), nuisance=nuisance)
    rng = np.random.default_rng(0)
    rows = np.flatnonzero(rng.random(design.shape[0]) < 0.95)
    assert len(rows) > CHUNK_ROWS
    Y = rng.standard_normal((len(rows), 600)).astype(np.float32)
    out = np.ones((4, 600), np.float32)
    design.cross(rows, Y, out)
    expected = 1 + explicit(design, kept, nuisance)[rows].T @ Y
    np.testing.assert_allclose(out, expected, atol=2e-6 * len(rows) ** 0.5 * np.abs(expected).max())


def test_sums_take_less_memory_than_the_matrix():
    features, kept, nuisance = world((3000, 3000), 40, share=1.0)
    design = build_design(features, ("x",), kept, tr_s=TR_S, delays=tuple(range(1, 11)), nuisance=nuisance)
    rows = np.arange(design.shape[0])
    Y = np.ones((len(rows), 1), np.float32)
    out = np.zeros((400, 1), np.float32)
    for work in (lambda: design.moments(rows), lambda: design.cross(rows, Y, out)):
        tracemalloc.start()
        work()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 4 * design.shape[0] * design.shape[1]


@pytest.mark.parametrize("mmap", [True, False])
@pytest.mark.parametrize("cleaned", [True, False])
def test_a_saved_design_is_read_as_it_was(tmp_path, mmap, cleaned):
    features, kept, nuisance = world((60, 45), 3, layers=("x", "y"))
    design = build_design(features, ("x", "y"), kept, tr_s=TR_S, delays=(2, 1), nuisance=nuisance if cleaned else {})
    with pytest.raises(StorageError):
        load_design(tmp_path / "design")
    design.save(tmp_path / "design")
    read = load_design(tmp_path / "design", mmap=mmap)
    assert isinstance(read.features, np.memmap) == mmap
    for field in dataclasses.fields(design):
        one, other = getattr(design, field.name), getattr(read, field.name)
        if field.name != "nuisance":
            np.testing.assert_array_equal(one, other)
            assert type(one) is type(other) or isinstance(one, np.ndarray)
    rows = np.arange(design.shape[0])
    np.testing.assert_array_equal(everything(design), everything(read))
    np.testing.assert_array_equal(design.moments(rows).gram, read.moments(rows).gram)


def test_the_snippet_of_its_page_runs(capsys):
    page = Path(__file__).parents[3] / "docs" / "encoding" / "design.md"
    exec(re.search(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL)[1], {})
    assert capsys.readouterr().out == "(150, 40) (40, 40) (15, 15)\n"
