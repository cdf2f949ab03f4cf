"""Pooling, time and memory, the same for every source; sets that grow; work that is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import tracemalloc
from dataclasses import dataclass, field

import numpy as np
import pytest
from sklearn.metrics.pairwise import euclidean_distances
from sklearn.random_projection import SparseRandomProjection, johnson_lindenstrauss_min_dim

from vidbrain.cli.app import run
from vidbrain.errors import ConfigError, ResumeError
from vidbrain.features import extract as extract_module
from vidbrain.features.controls import LuminanceSource, PixelSource
from vidbrain.features.extract import ExtractConfig, estimate_memory, extract
from vidbrain.features.pooled import Pooled
from vidbrain.features.pooling import Pooling
from vidbrain.features.projection import project, projection_error, projection_matrix
from vidbrain.features.runs import plan_runs
from vidbrain.features.sources import Layer, receptive_field_s
from vidbrain.features.store import open_features
from vidbrain.features.windows import Window
from vidbrain.sharding.manifest import open_manifest
from vidbrain.sharding.plan import ShardConfig
from vidbrain.sharding.writer import write_shards
from vidbrain.stream.sequential import frames_of

TR = ExtractConfig(tr_s=0.7)
RUN = "sub-01_ses-001_task-toy_run-1"


@dataclass(frozen=True)
class Strips:
    """Mean colour of four quarters of a clip in time, in a 2 x 2 grid; each may see the whole clip."""

    name: str = "strips"
    in_process: bool = False
    clips_at_once: int = 3
    stride: int | None = None
    made_from: dict = field(default_factory=dict)
    settings: dict = field(default_factory=dict)

    @property
    def window(self):
        return Window(n_frames=8, step=4, n_slices=4, stride=self.stride)

    @property
    def layers(self):
        return (Layer(name="strips", grid=(2, 2), n_channels=3, sees_before=24, sees_after=24),)

    def extract(self, video):
        n = len(video)
        quarters = video.reshape(n, 4, 2, 2, 16, 2, 16, 3).mean(axis=(2, 4, 6))
        return {"strips": quarters.astype(np.float32)}


def test_rows_at_the_end_of_clips_see_nothing_after_their_frames(world, tmp_path):
    source = Pooled(Strips(stride=10), Pooling(kind="mean"), "end")
    assert (source.window.n_slices, source.window.row_frames) == (1, 10)
    assert receptive_field_s(source.layers[0], source.window, 60.0) == pytest.approx((22 / 60, 10 / 60, 0.0))
    extract(source, world.data, tmp_path / "out", TR)
    found = open_features(tmp_path / "out").read("strips", RUN)
    assert (found.attrs["time"], found.attrs["sees_after_s"]) == ("end", 0.0)
    manifest = open_manifest(world.data)
    n_trs = found.sizes["tr"]
    sums, counts = np.zeros((n_trs, 3)), np.zeros(n_trs)
    for key, onset_s, n_frames, duration_s in world.clocks[RUN]:
        frames = np.concatenate([block for _, block in frames_of(manifest, key)]).astype(float)
        ends = [*range(32, n_frames, 10), n_frames]
        for frame in range(n_frames):
            clips = [frames[end - 32 : end : 4].mean((0, 1, 2)) for end in ends if end - 10 <= frame < end]
            volume = int((onset_s + frame / n_frames * duration_s) // 0.7)
            if clips:
                sums[volume] += np.mean(clips, axis=0)
                counts[volume] += 1
    np.testing.assert_array_equal(found["n_frames"], counts)
    valid = counts > 0
    np.testing.assert_array_equal(found["valid"], valid)
    np.testing.assert_allclose(found["features"][valid], sums[valid] / counts[valid, None], rtol=1e-4)
    centre = tmp_path / "centre"
    extract(Pooled(Strips(stride=10), Pooling(kind="mean")), world.data, centre, TR)
    assert open_features(centre).read("strips", RUN)["n_frames"].values.sum() == 441  # every frame has a row
    assert counts.sum() == 441 - 2 * 22  # but those before the first clip of each recording ends


def test_the_last_of_a_clip_is_its_last_slice(rng):
    video = rng.integers(0, 256, (5, 8, 32, 32, 3), np.uint8)
    last = Pooled(Strips(stride=8), Pooling(kind="last"), "end").rows(video)["strips"]
    np.testing.assert_allclose(last[:, 0], video[:, 6:, 16:, 16:].mean((1, 2, 3)), rtol=1e-5)
    grid = Pooled(Strips(stride=8), Pooling(kind="grid", grid=2), "end").rows(video)["strips"]
    expected = video.reshape(5, 8, 2, 16, 2, 16, 3).mean(axis=(1, 3, 5)).reshape(5, 1, 12)
    np.testing.assert_allclose(grid, expected, rtol=1e-5)


def test_rows_that_have_a_time_of_their_own_keep_it():
    for source in (PixelSource(), LuminanceSource()):
        with pytest.raises(ConfigError, match="have a time of their own"):
            Pooled(source, None, "end")
    with pytest.raises(ConfigError, match="one row a clip, no margin, and a stride"):
        Window(n_frames=8, step=4, n_slices=4, stride=4, time="end")


def test_projections_have_the_moments_of_scikit_learns():
    ours = projection_matrix(2500, 300, 0)
    theirs = SparseRandomProjection(300, random_state=0).fit(np.zeros((1, 2500))).components_
    np.testing.assert_allclose(np.unique(np.abs(ours.data)), np.unique(np.abs(theirs.data)), rtol=1e-6)
    for matrix in (ours, theirs):
        assert matrix.nnz == pytest.approx(2500 * 300 / 50, rel=0.05)
        assert abs(np.sign(matrix.data).mean()) < 0.05
        assert (matrix.multiply(matrix)).sum() == pytest.approx(2500, rel=0.05)  # squared lengths are kept on average
    assert (projection_matrix(2500, 300, 0) != ours).nnz == 0
    assert (projection_matrix(2500, 300, 1) != ours).nnz > 0


def test_distances_stay_within_the_stated_error():
    for n_points, n_out in ((200, 512), (10_000, 2000)):
        error = projection_error(n_points, n_out)
        assert johnson_lindenstrauss_min_dim(n_points, eps=error) == pytest.approx(n_out, abs=1)
    assert projection_error(10_000, 100) is None
    points = np.random.default_rng(1).normal(size=(200, 4096)).astype(np.float32)
    made = project(points, 512, 0)
    pairs = np.triu_indices(200, 1)
    before, after = (euclidean_distances(rows, squared=True)[pairs] for rows in (points, made))
    assert np.abs(after / before - 1).max() < projection_error(200, 512)
    assert np.abs(after / before - 1).max() > 0.05  # so that the check above says something


def test_a_projected_set_states_its_error(world, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ["features", "pixels", "--shards", str(world.data), "--out", str(out), "--pool", "projection"]
    assert run([*arguments, "--n-out", "200", "--json"]) == 0
    store = open_features(out)
    assert store.read("pixels.rgb", RUN)["features"].shape[1] == 200
    assert store.info["projection_error"] == {"pixels.rgb": projection_error(sum(store.info["n_trs"]), 200)}
    extract(Pooled(PixelSource()), world.data, tmp_path / "all", ExtractConfig())
    everything = open_features(tmp_path / "all").read("pixels.rgb", RUN)["features"].values
    expected = everything @ projection_matrix(432, 200, 0).toarray().T
    np.testing.assert_allclose(store.read("pixels.rgb", RUN)["features"], expected, rtol=1e-3, atol=1e-5)


def test_a_set_grows_by_layers_and_keeps_what_it_has(world, tmp_path, monkeypatch):
    out = tmp_path / "out"
    one = extract(Pooled(PixelSource(layer_names=("pixels.grey",))), world.data, out, TR)
    before = (out / "pixels.grey" / f"{RUN}.zarr" / "zarr.json").stat()
    both = extract(Pooled(PixelSource(layer_names=("pixels.rgb", "pixels.grey"))), world.data, out, TR)
    after = (out / "pixels.grey" / f"{RUN}.zarr" / "zarr.json").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
    assert open_features(out).layers == ["pixels.grey", "pixels.rgb"]
    assert both["n_features"] == {"pixels.grey": 400, "pixels.rgb": 432}
    assert both["fingerprint"] != one["fingerprint"]
    monkeypatch.setattr(extract_module, "_extract_run", lambda *_: pytest.fail("worked again"))
    assert extract(Pooled(PixelSource(layer_names=("pixels.rgb",))), world.data, out, TR) == both
    with pytest.raises(ResumeError, match="pooling"):
        extract(Pooled(PixelSource(), Pooling(kind="mean")), world.data, out, TR)
    with pytest.raises(ResumeError, match="step"):
        extract(Pooled(PixelSource(step=2)), world.data, out, TR)


def test_runs_whose_video_is_the_same_are_kept_in_a_data_set_that_changed(world, tmp_path, monkeypatch):
    out = tmp_path / "out"
    extract(Pooled(PixelSource()), world.data, out, TR)
    again = tmp_path / "again"
    write_shards(world.game, again, ShardConfig(frame_size=32, segment_frames=64, shard_frames=128, seed=3))
    assert open_manifest(again).fingerprint != open_manifest(world.data).fingerprint
    with pytest.raises(ResumeError, match="data was"):
        extract(Pooled(PixelSource()), again, out, TR)
    (out / "info.json").unlink()
    monkeypatch.setattr(extract_module, "_extract_run", lambda *_: pytest.fail("worked again"))
    extract(Pooled(PixelSource()), again, out, TR)
    monkeypatch.undo()
    smaller = tmp_path / "smaller"
    write_shards(world.game, smaller, ShardConfig(frame_size=16, segment_frames=64))
    (out / "info.json").unlink()
    extract(Pooled(PixelSource()), smaller, tmp_path / "new", TR)
    extract(Pooled(PixelSource()), smaller, out, TR)
    found, fresh = (open_features(place).read("pixels.rgb", RUN) for place in (out, tmp_path / "new"))
    np.testing.assert_array_equal(found["features"], fresh["features"])


def test_memory_stays_below_what_is_stated_however_long_a_recording_is(make_game, tmp_path, monkeypatch):
    n_frames = 6000
    game, _ = make_game(tmp_path / "game", {"run-01": [("rep-01", 0.5, n_frames, 100.0)]}, side=16)
    write_shards(game, tmp_path / "data", ShardConfig(frame_size=16, segment_frames=256, codec="zstd"))
    monkeypatch.setattr(extract_module, "BATCH_BYTES", 2**16)
    manifest = open_manifest(tmp_path / "data")
    source = Pooled(PixelSource(layer_names=("pixels.rgb", "pixels.grey")))
    stated = estimate_memory(source, manifest, plan_runs(manifest, TR.tr_s))
    extract(source, tmp_path / "data", tmp_path / "warm", TR)
    tracemalloc.start()
    extract(source, tmp_path / "data", tmp_path / "out", TR)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # The rows of the recording would not fit.
    assert peak < stated < n_frames / 4 * (432 + 400) * 8


SLOW = """
import os, pathlib, time
import torch

class Waits(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = torch.nn.Conv3d(3, 2, 4, stride=4)
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        # The first call is a probe. Of two workers the one that sees the mark first goes on; the other waits.
        hold = pathlib.Path(os.environ["HOLD"])
        if self.calls == 2 and hold.exists():
            try:
                (hold.parent / "first").touch(exist_ok=False)
            except FileExistsError:
                while hold.exists():
                    time.sleep(0.05)
        return self.inner(x)

def make():
    torch.manual_seed(0)
    return Waits()
"""


def test_a_killed_extraction_goes_on_to_the_same_bytes(world, tmp_path, monkeypatch):
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "slow_network.py").write_text(SLOW)
    monkeypatch.syspath_prepend(tmp_path / "code")
    hold = tmp_path / "hold"
    monkeypatch.setenv("HOLD", str(hold))

    def arguments(out):
        return ["features", "module:slow_network.make", "--trust", "--layers", "inner", "--pool", "mean",
                "--clip-frames", "4", "--shards", str(world.data), "--out", str(tmp_path / out), "--json"]  # fmt: skip

    assert run(arguments("whole")) == 0
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    hold.touch()
    path = os.pathsep.join([str(tmp_path / "code"), os.environ.get("PYTHONPATH", "")])
    child = subprocess.Popen(
        [sys.executable, "-m", "vidbrain", *arguments("killed"), "--workers", "2"], start_new_session=True,
        env={**os.environ, "PYTHONPATH": path}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    for _ in range(2400):
        if list(killed.glob("inner/*.zarr")) or child.poll() is not None:
            break
        time.sleep(0.05)
    assert child.poll() is None
    os.killpg(child.pid, signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    assert not (killed / "info.json").exists()
    done = {path.name: path.stat().st_ino for path in (killed / "inner").glob("*.zarr")}
    assert len(done) == 1
    hold.unlink()
    assert run(arguments("killed")) == 0
    files = {path.relative_to(whole) for path in whole.rglob("*") if path.is_file()}
    assert files == {path.relative_to(killed) for path in killed.rglob("*") if path.is_file()}
    assert all((whole / path).read_bytes() == (killed / path).read_bytes() for path in files)
    assert all((killed / "inner" / name).stat().st_ino == inode for name, inode in done.items())
