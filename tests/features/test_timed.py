"""Arrays with times and buttons, against naive sums over rows and volumes."""

from __future__ import annotations

import json
import pickle
import shutil

import numpy as np
import pandas as pd
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from vidbrain.cli.app import run
from vidbrain.errors import AlignmentError, ModelError, ResumeError, StorageError
from vidbrain.features.arrays import LAYER, ArraySource, intervals
from vidbrain.features.buttons import ButtonSource
from vidbrain.features.extract import ExtractConfig
from vidbrain.features.runs import plan_runs
from vidbrain.features.store import open_features
from vidbrain.features.timed import extract_timed, overlap_weights, plan_timed
from vidbrain.sharding.manifest import open_manifest

RUN = "sub-01_ses-001_task-toy_run-1"
OTHER = "sub-01_ses-001_task-toy_run-2"
TR = ExtractConfig(tr_s=1.49)


def naive(values, times_s, tr_s, n_trs):
    """Mean over the seconds of each row in each volume, by two loops."""
    means, seconds = np.zeros((n_trs, values.shape[1])), np.zeros(n_trs)
    for volume in range(n_trs):
        for row, (begin, end) in enumerate(times_s):
            held = max(0.0, min(end, (volume + 1) * tr_s) - max(begin, volume * tr_s))
            means[volume] += held * values[row]
            seconds[volume] += held
    return means / np.where(seconds > 1e-9, seconds, np.inf)[:, None], seconds > 1e-9


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(st.floats(-3, 12), st.floats(0.01, 4)), min_size=1, max_size=12),
    st.sampled_from([0.5, 1.0, 1.49]),
    st.integers(1, 8),
)
def test_overlaps_agree_with_two_loops(rows, tr_s, n_trs):
    times = np.array([(begin, begin + length) for begin, length in rows])
    weights = overlap_weights(times, tr_s, n_trs).toarray()
    edges = np.arange(n_trs + 1) * tr_s
    expected = np.minimum(times[:, 1], edges[1:, None]) - np.maximum(times[:, 0], edges[:-1, None])
    np.testing.assert_allclose(weights, np.maximum(expected, 0.0), atol=2e-9)


def test_a_gap_between_times_stays_a_gap():
    found = intervals([0.0, 0.5, 1.0, 9.0, 9.5], "x")
    np.testing.assert_allclose(found, [[0, 0.5], [0.5, 1], [1, 1.5], [9, 9.5], [9.5, 10]])


def write(folder, kind, run, values, times):
    folder.mkdir(exist_ok=True)
    if kind == "npy":
        np.save(folder / f"{run}.npy", values)
        np.save(folder / f"{run}.times.npy", times)
    elif kind == "npz":
        np.savez(folder / f"{run}.npz", features=values, times_s=times)
    elif kind == "zarr":
        group = zarr.create_group(folder / f"{run}.zarr")
        group["features"], group["times_s"] = values, times
    else:
        clock = {"time_s": times} if times.ndim == 1 else {"time_s": times[:, 0], "end_s": times[:, 1]}
        columns = {f"feature_{k}": column for k, column in enumerate(values.T)}
        pd.DataFrame({**clock, **columns}).to_parquet(folder / f"{run}.parquet")


@pytest.mark.parametrize("kind", ["npy", "npz", "zarr", "parquet"])
def test_arrays_of_every_kind_become_volumes(kind, tmp_path, rng):
    rows = {}
    # Faster than the scanner with a pause, and slower than it with ends of their own.
    fast = np.concatenate([np.arange(0.3, 4.0, 0.2), np.arange(9.0, 13.0, 0.2)])
    slow = np.stack([np.arange(0.0, 20.0, 4.0), np.arange(0.0, 20.0, 4.0) + 3.0], axis=1)
    for run_label, times in ((RUN, fast), (OTHER, slow)):
        rows[run_label] = rng.normal(size=(len(times), 3)).astype(np.float32), times
        write(tmp_path / "in", kind, run_label, *rows[run_label])
    extract_timed(ArraySource(tmp_path / "in"), tmp_path / "out", TR)
    store = open_features(tmp_path / "out")
    assert (store.layers, store.runs) == ([LAYER], [RUN, OTHER])
    for run_label, (values, times) in rows.items():
        found = store.read(LAYER, run_label)
        pairs = times if times.ndim == 2 else intervals(times, "x")
        expected, valid = naive(values.astype(np.float64), pairs, 1.49, found.sizes["tr"])
        assert found.sizes["tr"] == np.ceil(pairs.max() / 1.49)
        np.testing.assert_array_equal(found["valid"], valid)
        np.testing.assert_allclose(found["features"], expected, rtol=1e-5, atol=1e-6)
    assert not store.read(LAYER, RUN)["valid"].values.all()


def test_what_is_unchanged_is_left_alone(tmp_path, rng):
    for run_label in (RUN, OTHER):
        write(tmp_path / "in", "npz", run_label, rng.normal(size=(30, 2)), np.arange(30.0))
    source = ArraySource(tmp_path / "in")
    assert len(pickle.dumps(source)) < 2000
    record = extract_timed(source, tmp_path / "out", TR)
    assert extract_timed(ArraySource(tmp_path / "in"), tmp_path / "out", TR) == record
    kept = (tmp_path / "out" / LAYER / f"{RUN}.zarr" / "zarr.json").stat().st_ino
    gone = (tmp_path / "out" / LAYER / f"{OTHER}.zarr" / "zarr.json").stat().st_ino
    write(tmp_path / "in", "npz", OTHER, rng.normal(size=(30, 2)), np.arange(30.0))
    with pytest.raises(ResumeError, match="rows was"):
        extract_timed(ArraySource(tmp_path / "in"), tmp_path / "out", TR)
    (tmp_path / "out" / "info.json").unlink()
    extract_timed(ArraySource(tmp_path / "in"), tmp_path / "out", TR)
    assert (tmp_path / "out" / LAYER / f"{RUN}.zarr" / "zarr.json").stat().st_ino == kept
    assert (tmp_path / "out" / LAYER / f"{OTHER}.zarr" / "zarr.json").stat().st_ino != gone


def test_bad_arrays_are_refused(tmp_path, rng):
    values, times = rng.normal(size=(20, 2)), np.arange(20.0)
    folder = tmp_path / "in"

    def refused(error, message, *, kind="npz", name=RUN, values=values, times=times):
        shutil.rmtree(folder, ignore_errors=True)
        write(folder, kind, name, values, times)
        with pytest.raises(error, match=message):
            extract_timed(ArraySource(folder), tmp_path / "out", TR)

    refused(AlignmentError, "names no run", name="film")
    refused(AlignmentError, "20 rows have 19 times", times=times[:19])
    refused(
        AlignmentError,
        "times do not ascend: row 10 begins at 0 s, the one before it at 9 s",
        times=np.concatenate([times[:10], times[:10]]),
    )
    backwards = np.stack([times, times + np.where(times == 5, -1.0, 1.0)], axis=1)
    refused(AlignmentError, "row 5 ends at 4 s, before it begins at 5 s", times=backwards)
    refused(AlignmentError, "time 3 is not a number", times=np.where(times == 3, np.nan, times))
    refused(AlignmentError, r"times have the shape \(20, 3\)", times=np.zeros((20, 3)))
    refused(ModelError, r"shape \(20,\), not \(n, n_features\)", values=values[:, 0])
    refused(ModelError, r"arrays\.values is not finite in 1 of 20 rows of sub-01\S+; the first is row 7, at 7\.000 s",
            values=np.where(np.arange(20)[:, None] == 7, np.inf, values))  # fmt: skip
    refused(ModelError, "of type <U1, not numbers", values=np.full((20, 2), "a"))
    (folder / f"{RUN}.npz").write_bytes(b"no archive")
    with pytest.raises(StorageError, match="the rows cannot be read"):
        extract_timed(ArraySource(folder), tmp_path / "out", TR)
    shutil.rmtree(folder)
    write(folder, "npy", RUN, values, times)
    (folder / f"{RUN}.times.npy").unlink()
    with pytest.raises(AlignmentError, match="these rows have no times") as told:
        extract_timed(ArraySource(folder), tmp_path / "out", TR)
    assert f"{RUN}.times.npy beside it" in told.value.hint
    write(folder, "npy", RUN, values, times)
    write(folder, "npz", "sub-01_ses-001_task-toy_run-01", values, times)
    with pytest.raises(AlignmentError, match=f"two files are of {RUN}"):
        extract_timed(ArraySource(folder), tmp_path / "out", TR)
    (folder / "sub-01_ses-001_task-toy_run-01.npz").unlink()
    write(folder, "npz", OTHER, values[:, :1], times)
    with pytest.raises(ModelError, match=f"{OTHER} has 1 features, {RUN} has 2"):
        extract_timed(ArraySource(folder), tmp_path / "out", TR)
    assert not (tmp_path / "out" / "info.json").exists()


def test_runs_must_match_the_shards_where_these_are_given(world, tmp_path, rng, capsys):
    plans = plan_runs(open_manifest(world.data), 1.49)
    write(tmp_path / "in", "npz", RUN, rng.normal(size=(5, 2)), np.arange(5.0))
    write(tmp_path / "in", "npz", "sub-01_ses-001_task-toy_run-7", rng.normal(size=(5, 2)), np.arange(5.0))
    source = ArraySource(tmp_path / "in")
    with pytest.raises(
        AlignmentError, match=rf"1 of the shards have no rows: {OTHER}; 1 are not in the shards: \S+run-7"
    ):
        plan_timed(source, 1.49, plans)
    (tmp_path / "in" / "sub-01_ses-001_task-toy_run-7.npz").unlink()
    write(tmp_path / "in", "npz", OTHER, rng.normal(size=(5, 2)), np.arange(5.0))
    arguments = ["features", f"arrays:{tmp_path / 'in'}", "--shards", str(world.data), "--out", str(tmp_path / "out")]
    assert run([*arguments, "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["volumes"] == sum(plan.n_trs for plan in plans)
    assert run([*arguments, "--json"]) == 0
    store = open_features(tmp_path / "out")
    assert store.info["n_trs"] == [plan.n_trs for plan in plans]
    assert store.read(LAYER, RUN)["valid"].values.sum() == 4  # rows of 5 s


def test_buttons_agree_with_a_loop_over_frames(world, workers, tmp_path):
    source = ButtonSource(world.game)
    extract_timed(source, tmp_path / "alone", TR)
    extract_timed(source, tmp_path / "shared", TR, client=workers)
    store, shared = open_features(tmp_path / "alone"), open_features(tmp_path / "shared")
    assert store.layers == ["buttons.held", "buttons.pressed"]
    assert store.info["feature_names"]["buttons.held"] == ["B", "UP", "LEFT"]
    for label, recordings in world.clocks.items():
        held, pressed, times = [], [], []
        for key, onset_s, n_frames, duration_s in recordings:
            table = pd.read_parquet(world.game / "derivatives" / "replay" / "sub-01" / "ses-001" / f"{key}.parquet")
            before = np.zeros(3)
            for frame in range(n_frames):
                down = table.loc[frame, ["B", "UP", "LEFT"]].to_numpy(float)
                held.append(down)
                pressed.append(down * (1 - before))
                times.append([onset_s + frame / n_frames * duration_s, onset_s + (frame + 1) / n_frames * duration_s])
                before = down
        for layer, values in (("buttons.held", held), ("buttons.pressed", pressed)):
            found = store.read(layer, label)
            expected, valid = naive(np.array(values), times, 1.49, found.sizes["tr"])
            np.testing.assert_array_equal(found["valid"], valid)
            np.testing.assert_allclose(found["features"], expected, rtol=1e-4, atol=1e-6)
            np.testing.assert_array_equal(shared.read(layer, label)["features"], found["features"])


def test_game_play_of_two_consoles_is_refused(world, tmp_path):
    shutil.copytree(world.game, tmp_path / "game")
    path = next((tmp_path / "game" / "derivatives" / "replay").rglob("*rep-04.parquet"))
    pd.read_parquet(path).rename(columns={"UP": "X"}).to_parquet(path)
    with pytest.raises(AlignmentError, match=r"rep-04 has the buttons B, X, LEFT, others have B, UP, LEFT"):
        extract_timed(ButtonSource(tmp_path / "game"), tmp_path / "out", TR)
