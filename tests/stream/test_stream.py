"""The interface: parts of a data set, what a batch says of its clips, devices, progress, memory."""

import subprocess
import sys
import tracemalloc
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch

from vidbrain.errors import ConfigError, ShardError
from vidbrain.records import ClipSpec
from vidbrain.sharding.manifest import open_manifest
from vidbrain.sharding.plan import ShardConfig
from vidbrain.sharding.subset import write_subset
from vidbrain.sharding.writer import write_shards
from vidbrain.stream import buffers
from vidbrain.stream.loader import Loader, stream
from vidbrain.stream.source import THREAD_BYTES, ClipSource
from vidbrain.testing.videos import write_video

CLIP = ClipSpec(8, 2, 3)


@pytest.fixture
def data(videos, config, tmp_path):
    write_shards(videos, tmp_path / "data", config)
    return tmp_path / "data"


def places(loader):
    return sorted(
        (recording, start)
        for batch in loader
        for recording, start, weight in zip(
            batch.meta["recording"].tolist(), batch.start_frame.tolist(), batch.weight, strict=True
        )
        if weight
    )


@pytest.mark.parametrize("size", ["100", "137", "0.2k", "all"])
def test_a_size_streams_the_prefix(data, size, tmp_path):
    write_subset(tmp_path / "part", open_manifest(data), size=size)
    named = stream(tmp_path / "part.json", clip=CLIP, batch_size=5, tail="mask")
    for subset in (size, tmp_path / "part.json"):
        found = places(stream(data, subset=subset, clip=CLIP, batch_size=5, tail="mask"))
        assert found == places(named)
        assert found == sorted(set(found))


def test_parts_have_names_of_their_own_and_bad_ones_are_refused(data):
    names = {
        stream(data, subset=subset, clip=CLIP, batch_size=5).state_dict()["dataset"] for subset in ("100", "200", None)
    }
    assert len(names) == 3
    with pytest.raises(ShardError, match="100,000 frames are asked for, there are 451"):
        stream(data, subset="100k", clip=CLIP)
    with pytest.raises(ConfigError, match="'much' is neither a number of frames nor the file of a subset"):
        stream(data, subset="much", clip=CLIP)


def test_a_file_of_another_data_set_is_refused(data, videos, config, tmp_path):
    write_shards(videos, tmp_path / "other", replace(config, segment_frames=64))
    write_subset(tmp_path / "part", open_manifest(tmp_path / "other"), size="137")
    with pytest.raises(ShardError, match="names other segments") as caught:
        stream(data, subset=tmp_path / "part.json", clip=CLIP, batch_size=5)
    assert "other" in caught.value.likely


def test_meta_is_the_manifests(data):
    table = open_manifest(data).segments
    for batch in stream(data, clip=CLIP, batch_size=6, tail="mask"):
        for i, segment in enumerate(batch.segment):
            if batch.weight[i]:
                row = table.iloc[segment]
                assert batch.meta["recording"][i] == row["recording"]
                assert batch.meta["split"][i] == row["split"]
                assert batch.meta["start_frame"][i] == batch.start_frame[i]
        assert {len(column) for column in batch.meta.values()} == {6}


def test_on_a_cpu_a_device_changes_the_type_alone(data):
    arrays = list(stream(data, clip=CLIP, batch_size=6, seed=3, tail="mask"))
    tensors = list(stream(data, clip=CLIP, batch_size=6, seed=3, tail="mask", device="cpu"))
    for array, tensor in zip(arrays, tensors, strict=True):
        assert tensor.video.dtype == torch.uint8
        np.testing.assert_array_equal(array.video, tensor.video.numpy())
        np.testing.assert_array_equal(array.unmasked().video, tensor.unmasked().video.numpy())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_batches_are_the_same(data):
    arrays = list(stream(data, clip=CLIP, batch_size=6, seed=3, tail="mask"))
    tensors = list(stream(data, clip=CLIP, batch_size=6, seed=3, tail="mask", device="cuda", workers=3))
    for array, tensor in zip(arrays, tensors, strict=True):
        np.testing.assert_array_equal(array.video, tensor.video.cpu().numpy())


class Listener:
    def __init__(self):
        self.calls = []

    def start(self, stage, total, unit, done=0):
        self.calls.append((stage, total, unit, done))

    def advance(self, amount=1, **numbers):
        self.calls.append(numbers)

    def finish(self):
        self.calls.append("end")


def test_a_listener_hears_the_numbers_that_diagnose(data):
    listener = Listener()
    loader = stream(data, clip=CLIP, batch_size=20, progress=listener)
    batches = iter(loader)
    next(batches)
    batches.close()
    list(loader)
    n = len(loader)
    start, first, end, again, *rest, last = listener.calls
    assert start == ("stream", n, "batches", 0)
    assert end == last == "end"
    assert again == ("stream", n, "batches", 1)
    assert len(rest) == n - 1
    assert {"clips/s", "MB/s", "stall", "cache hits", "retries"} <= first.keys()


@pytest.fixture
def mapped(monkeypatch):
    """Bytes that are mapped for batches and kept frames, now and at most: tracemalloc does not see them."""
    held, whole = {"now": 0, "peak": 0}, buffers.fresh_pages

    def count(n_bytes):
        held["now"] += n_bytes
        held["peak"] = max(held["peak"], held["now"])

    def counted(n_bytes):
        memory = whole(n_bytes)
        count(n_bytes)
        weakref.finalize(memory.base, count, -n_bytes).atexit = False
        return memory

    monkeypatch.setattr("vidbrain.stream.buffers.fresh_pages", counted)
    monkeypatch.setattr("vidbrain.stream.kept.fresh_pages", counted)
    return held


def test_memory_stays_below_what_was_stated(videos, config, tmp_path, mapped):
    write_shards(videos, tmp_path / "data", replace(config, frame_size=96))
    settings = {"clip": replace(CLIP, stride=1), "batch_size": 16, "workers": 4}
    list(stream(tmp_path / "data", **settings))  # what is imported and kept for good
    loader = stream(tmp_path / "data", **settings)
    mapped["peak"] = mapped["now"] = 0
    tracemalloc.start()
    for _ in loader:
        pass
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    n_bytes = 16 * 8 * 96 * 96 * 3
    kept = loader._source._reader._kept
    assert kept.n_bytes > 3 * n_bytes
    assert kept.n_bytes + 3 * n_bytes < mapped["peak"] < peak + mapped["peak"] < loader.memory_bytes
    # Four batches being read, two waiting, two in use, and the order.
    source = loader._source
    assert loader.memory_bytes - source.held_bytes - 4 * source.reading_bytes(16) < 10 * n_bytes


def test_memory_stays_below_what_was_stated_where_far_more_is_stored_than_a_clip_shows(tmp_path, mapped):
    """Frames that cannot be packed, of which a clip takes every eighth: its parts are ten times what it holds."""
    noise = np.random.default_rng(0).integers(0, 256, (150, 64, 64, 3), np.uint8)
    write_video(tmp_path / "videos" / "noise.mp4", noise)
    config = ShardConfig(frame_size=64, codec="zstd", segment_frames=64, clip_frames=8, clip_step=8, val_share=0)
    write_shards(tmp_path / "videos", tmp_path / "data", config)
    clip = ClipSpec(8, 8, 1)
    source = ClipSource(open_manifest(tmp_path / "data"), clip, None, kept_bytes=0)
    assert source._reader.stored_bytes(clip, 1) > 5 * source.clip_bytes
    loader = Loader(source, batch_size=8, workers=4)
    tracemalloc.start()
    for _ in loader:
        pass
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # What the allocator takes for itself is not traced.
    assert 4 * 8 * source.clip_bytes < peak < peak + mapped["peak"] < loader.memory_bytes - 4 * THREAD_BYTES


def test_large_batches_are_read_by_fewer_threads(data):
    from vidbrain.stream import loader as module

    small = stream(data, clip=CLIP, batch_size=4)
    assert small._most_threads > 1
    source = small._source
    source.clip_bytes = module.MEMORY_BYTES
    large = module.Loader(source, batch_size=4)
    assert large._most_threads == 1
    assert large.memory_bytes >= 5 * 4 * module.MEMORY_BYTES


@pytest.mark.parametrize("bad", [{"workers": 0}, {"workers": "two"}, {"tail": "keep"}, {"on_bad_clip": "skip"}])
def test_settings_that_do_not_exist_are_refused(data, bad):
    with pytest.raises(ConfigError, match=f"{next(iter(bad))} is"):
        stream(data, clip=CLIP, batch_size=4, **bad)


def test_the_name_stays_a_function_whatever_is_imported(data):
    code = f"""
import vidbrain, vidbrain.stream.order
clip = vidbrain.Clip(8, 2, 3)
for _ in range(2):
    print(next(iter(vidbrain.stream({str(data)!r}, clip=clip, batch_size=4))).video.shape)
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out == "(4, 8, 32, 32, 3)\n" * 2
