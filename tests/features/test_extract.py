"""From shards to a feature store: values, clocks, resuming, and what is refused."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest
import xarray as xr
import zarr

from vidbrain.errors import AlignmentError, ConfigError, ModelError, ResumeError, StorageError
from vidbrain.features import extract as extract_module
from vidbrain.features.controls import MotionSource, PixelSource
from vidbrain.features.extract import ExtractConfig, extract
from vidbrain.features.motion import MotionConfig
from vidbrain.features.pooled import Pooled
from vidbrain.features.runs import frame_rate, plan_runs
from vidbrain.features.store import open_features, store_path
from vidbrain.features.windows import cut
from vidbrain.sharding.manifest import open_manifest
from vidbrain.sharding.plan import ShardConfig
from vidbrain.sharding.writer import write_shards
from vidbrain.storage.zarrs import write_dataset
from vidbrain.stream.sequential import frames_of
from vidbrain.testing.videos import toy_frames, write_video

TR = ExtractConfig(tr_s=1.49)
PIXELS = Pooled(PixelSource(layer_names=("pixels.rgb", "pixels.grey")))


def tree_of(root):
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def test_pixels_agree_with_a_loop_over_frames(world, tmp_path):
    extract(PIXELS, world.data, tmp_path / "pixels", TR)
    store = open_features(tmp_path / "pixels")
    assert store.layers == ["pixels.rgb", "pixels.grey"]
    assert store.runs == sorted(world.clocks)
    manifest = open_manifest(world.data)
    for run, recordings in world.clocks.items():
        found = store.read("pixels.grey", run)
        last = max(onset_s + duration_s for _, onset_s, _, duration_s in recordings)
        n_trs = int(np.ceil(last / 1.49))
        sums, counts = np.zeros((n_trs, 400)), np.zeros(n_trs, int)
        for key, onset_s, n_frames, duration_s in recordings:
            frames = np.concatenate([block for _, block in frames_of(manifest, key)])
            assert len(frames) == n_frames
            grey = frames @ np.array([0.299, 0.587, 0.114]) / 255
            fine = np.repeat(np.repeat(grey, 5, axis=1), 5, axis=2)  # 160: a multiple of the 20 cells
            cells = fine.reshape(n_frames, 20, 8, 20, 8).mean(axis=(2, 4)).reshape(n_frames, -1)
            starts = [*range(0, max(0, n_frames - 64), 64), max(0, n_frames - 64)]
            for frame in range(n_frames):
                # The sampled frames that stand for this one: one in each clip that covers it.
                stands = [s + (frame - s) // 4 * 4 for s in starts if s <= frame < s + 64]
                volume = int((onset_s + frame / n_frames * duration_s) // 1.49)
                sums[volume] += cells[stands].mean(0)
                counts[volume] += 1
        np.testing.assert_array_equal(found["n_frames"], counts)
        np.testing.assert_array_equal(found["valid"], counts > 0)
        expected = sums / np.maximum(counts, 1)[:, None]
        np.testing.assert_allclose(found["features"], expected, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(found["time_s"], (np.arange(n_trs) + 0.5) * 1.49)
    gap = store.read("pixels.rgb", "sub-01_ses-001_task-toy_run-2")
    assert not gap["valid"].values.all()
    assert gap.attrs["window_s"] == pytest.approx(4 / 60, rel=0.01)


def test_motion_does_not_depend_on_how_recordings_are_cut(rng):
    source = MotionSource(fps=60.0, config=MotionConfig(temporal_hz=(0.0, 4.0)))
    frames = rng.integers(0, 256, (512, 32, 32, 3), np.uint8)
    rows = {}
    for n_frames, batch_size in ((64, 2), (16, 3)):
        window = replace(source.window, n_frames=n_frames, n_slices=n_frames)
        batches = [source.extract(video)["motion.energy"] for video in cut([(0, frames)], 512, window, batch_size)]
        rows[n_frames] = np.concatenate([batch.reshape(-1, batch.shape[-1]) for batch in batches])
    assert rows[64].shape == (128, source.layers[0].n_channels)
    np.testing.assert_allclose(rows[16], rows[64], rtol=1e-4, atol=1e-4)


def test_vanilla_readers_open_the_store(world, tmp_path):
    extract(PIXELS, world.data, tmp_path / "p", TR)
    run = open_features(tmp_path / "p").runs[0]
    path = tmp_path / "p" / "pixels.rgb" / f"{run}.zarr"
    with xr.open_zarr(path, chunks=None) as dataset:
        assert dataset["features"].dtype == np.float32
        assert dataset["valid"].dtype == bool
        assert dataset.attrs["tr_s"] == 1.49
    assert zarr.open_group(path, mode="r")["features"].shape[1] == 432


def test_stopped_anywhere_and_begun_again_gives_the_same_bytes(world, tmp_path, monkeypatch):
    extract(PIXELS, world.data, tmp_path / "whole", TR)
    out, calls = tmp_path / "stopped", []

    def stop(*args, **kwargs):
        calls.append(args[1:3])
        if len(calls) == 4:
            raise KeyboardInterrupt
        return write_run(*args, **kwargs)

    write_run = extract_module.write_run
    monkeypatch.setattr(extract_module, "write_run", stop)
    with pytest.raises(KeyboardInterrupt):
        extract(PIXELS, world.data, out, TR)
    with pytest.raises(StorageError, match="unfinished"):
        open_features(out)
    (out / "pixels.grey" / "x.zarr.part-123").mkdir()
    monkeypatch.setattr(extract_module, "write_run", write_run)
    first = (out / "pixels.rgb" / f"{open_features(tmp_path / 'whole').runs[0]}.zarr" / "zarr.json").stat()
    extract(PIXELS, world.data, out, TR)
    assert tree_of(out) == tree_of(tmp_path / "whole")
    again = (out / "pixels.rgb" / f"{open_features(out).runs[0]}.zarr" / "zarr.json").stat()
    assert (first.st_ino, first.st_mtime_ns) == (again.st_ino, again.st_mtime_ns)  # the finished run was left alone


def test_leftovers_of_other_settings_are_not_mistaken_for_these(world, tmp_path):
    extract(PIXELS, world.data, tmp_path / "whole", TR)
    extract(PIXELS, world.data, tmp_path / "out", ExtractConfig(tr_s=2.0))
    with pytest.raises(ResumeError, match=r"tr_s was 2\.0, is 1\.49"):
        extract(PIXELS, world.data, tmp_path / "out", TR)
    (tmp_path / "out" / "info.json").unlink()
    extract(PIXELS, world.data, tmp_path / "out", TR)
    assert tree_of(tmp_path / "out") == tree_of(tmp_path / "whole")


def test_workers_give_the_same_bytes(world, workers, tmp_path):
    source = Pooled(MotionSource(fps=60.0))
    extract(source, world.data, tmp_path / "alone", TR)
    extract(source, world.data, tmp_path / "shared", TR, client=workers)
    assert tree_of(tmp_path / "shared") == tree_of(tmp_path / "alone")


def test_a_second_call_has_nothing_to_do(world, tmp_path, monkeypatch):
    record = extract(PIXELS, world.data, tmp_path / "p", TR)
    monkeypatch.setattr(extract_module, "_extract_run", lambda *_: pytest.fail("worked again"))
    assert extract(PIXELS, world.data, tmp_path / "p", TR) == record


def test_a_part_of_the_frames_is_refused_before_work(world, tmp_path):
    write_shards(world.game, tmp_path / "part", ShardConfig(frame_size=32, segment_frames=64, size="400"))
    with pytest.raises(AlignmentError, match=r"lack 291 of \d+ frames: .*run-1") as caught:
        extract(PIXELS, tmp_path / "part", tmp_path / "out", TR)
    assert "--size all" in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_video_without_a_scanner_is_refused(tmp_path):
    write_video(tmp_path / "videos" / "film.mp4", toy_frames(80, height=32, width=32))
    write_shards(tmp_path / "videos", tmp_path / "data", ShardConfig(frame_size=32, segment_frames=64))
    manifest = open_manifest(tmp_path / "data")
    with pytest.raises(AlignmentError, match="none of the 1 recordings was seen during a BOLD run"):
        plan_runs(manifest, 1.49)
    with pytest.raises(AlignmentError, match="none of the 1 recordings"):
        frame_rate(manifest)


def test_recordings_of_different_rates_are_refused(world):
    manifest = open_manifest(world.data)
    assert frame_rate(manifest) == pytest.approx(60, rel=0.01)
    rows = manifest.segments
    slow = rows.assign(duration_s=rows["duration_s"] * (1 + (rows["recording"] == rows["recording"][0])))
    with pytest.raises(AlignmentError, match="different frame rates"):
        frame_rate(replace(manifest, segments=slow))


def test_unknown_layers_and_runs_are_named(world, tmp_path):
    with pytest.raises(ModelError, match=r"did you mean 'pixels\.grey'"):
        _ = PixelSource(layer_names=("pixels.gray",)).layers
    extract(Pooled(PixelSource()), world.data, tmp_path / "p", TR)
    store = open_features(tmp_path / "p")
    with pytest.raises(ModelError, match=r"did you mean 'pixels\.rgb'"):
        store.read("pixel.rgb", store.runs[0])
    with pytest.raises(AlignmentError, match="no run"):
        store.read("pixels.rgb", "sub-01_ses-001_task-toy_run-9")


def test_damaged_and_missing_inputs(world, tmp_path):
    with pytest.raises(StorageError):
        extract(PIXELS, tmp_path / "nothing", tmp_path / "out", TR)
    with pytest.raises(ConfigError, match="TR of 1490"):
        ExtractConfig(tr_s=1490)
    shutil.copytree(world.data, tmp_path / "data")
    (tmp_path / "out").write_text("a file where the folder should be")
    with pytest.raises(StorageError):
        extract(PIXELS, tmp_path / "data", tmp_path / "out", TR)


def test_a_damaged_store_is_one_clear_error(world, tmp_path):
    extract(PIXELS, world.data, tmp_path / "out", TR)
    store = open_features(tmp_path / "out")
    path = store_path(store.root, store.layers[0], store.runs[0])
    chunk = next(path for path in (path / "features" / "c").rglob("*") if path.is_file())
    chunk.write_bytes(chunk.read_bytes()[:9])
    with pytest.raises(StorageError, match="whole chunks"):
        store.read(store.layers[0], store.runs[0])
    write_dataset(path, xr.Dataset({"features": (("tr", "feature"), np.zeros((3, 2), np.float32))}))
    with pytest.raises(StorageError, match="without valid, time_s"):
        store.read(store.layers[0], store.runs[0])
