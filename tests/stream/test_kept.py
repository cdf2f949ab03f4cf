"""Frames that are kept are those that would be decoded, within their memory, whichever threads read."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vidbrain.records import ClipSpec
from vidbrain.sharding.codecs import CODECS
from vidbrain.sharding.plan import ShardConfig
from vidbrain.sharding.writer import write_shards
from vidbrain.stream import kept
from vidbrain.stream.buffers import Buffers
from vidbrain.stream.kept import most_at_once
from vidbrain.stream.order import epoch_order
from vidbrain.stream.source import ClipSource

CLIP = ClipSpec(8, 2, 1)


@pytest.fixture(scope="module", params=sorted(CODECS))
def data(request, videos, tmp_path_factory):
    root = tmp_path_factory.mktemp("kept") / request.param
    config = ShardConfig(frame_size=32, segment_frames=32, shard_frames=128, clip_frames=8, clip_step=2)
    write_shards(videos, root, replace(config, codec=request.param))
    return root


def read_all(source, order, size=16, n_threads=1):
    source.begin(order)
    with ThreadPoolExecutor(n_threads) as pool:
        return list(pool.map(source.read, [order[at : at + size] for at in range(0, len(order), size)]))


@pytest.mark.parametrize("n_threads", [1, 4])
def test_batches_are_the_same_with_and_without_frames_that_are_kept(data, n_threads):
    without, source = (ClipSource(data, CLIP, None, kept_bytes=n_bytes) for n_bytes in (0, 1 << 30))
    for epoch in range(2):
        order = epoch_order(source.clips_per_shard, seed=0, epoch=epoch)
        pairs = zip(read_all(without, order), read_all(source, order, n_threads=n_threads), strict=True)
        for one, other in pairs:
            np.testing.assert_array_equal(one.video, other.video)
            np.testing.assert_array_equal(one.index, other.index)
        assert source._reader.kept.is_on
    # Each part was read once for both epochs; without, once for each batch that touches it.
    assert source.stats()["n_bytes"] < without.stats()["n_bytes"] / 4


def test_only_a_window_of_segments_is_kept_and_its_memory_is_bounded(videos, tmp_path, monkeypatch):
    config = ShardConfig(frame_size=32, segment_frames=32, shard_frames=64, clip_frames=8, clip_step=2, codec="zstd")
    write_shards(videos, tmp_path / "d", config)
    monkeypatch.setattr(kept, "LATE_CLIPS", 16)
    whole = ClipSource(tmp_path / "d", CLIP, None)
    order = epoch_order(whole.clips_per_shard, seed=0, epoch=0, window=40)
    all_bytes = int(whole._reader._layout.n_stored.sum()) * 32 * 32 * 3
    limit = all_bytes // 2
    source = ClipSource(tmp_path / "d", CLIP, None, kept_bytes=limit)
    source.begin(order)
    assert source._reader.kept.is_on
    most = 0
    for at in range(0, len(order), 8):
        clips = order[at : at + 8]
        np.testing.assert_array_equal(source.read(clips).video, whole.read(clips).video)
        most = max(most, source._reader.kept.n_bytes)
    assert 0 < most <= limit
    # A shuffle over everything does not fit, and disjoint clips need nothing twice.
    source.begin(epoch_order(whole.clips_per_shard, seed=0, epoch=0))
    assert not source._reader.kept.is_on
    assert source._reader.kept.n_bytes == 0
    disjoint = ClipSource(tmp_path / "d", ClipSpec(8, 2, 16), None)
    disjoint.begin(epoch_order(disjoint.clips_per_shard, seed=0, epoch=0))
    assert not disjoint._reader.kept.is_on


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20), st.integers(1, 9)), min_size=1, max_size=12))
def test_the_most_that_is_held_at_once_is_that_of_counting(items):
    first = np.array([min(a, b) for a, b, _ in items])
    last = np.array([max(a, b) for a, b, _ in items])
    n_bytes = np.array([n for _, _, n in items])
    counted = max(sum(n_bytes[(first <= at) & (at <= last)]) for at in range(21))
    assert most_at_once(first, last, n_bytes) == counted


def test_memory_returns_when_nobody_holds_a_batch_or_a_piece_of_it():
    buffers = Buffers((4, 3))
    batch = buffers.take(5)
    address, piece = batch.ctypes.data, torch.from_numpy(batch[2:3, 1:])
    del batch
    other = buffers.take(5)
    assert other.ctypes.data != address
    piece += 1
    del piece
    again = buffers.take(5)
    assert again.ctypes.data == address
    assert again.shape == (5, 4, 3)
    assert again.flags.writeable
    # A smaller batch fits, a larger one does not.
    del again
    assert buffers.take(3).ctypes.data == address
    assert buffers.take(6).shape == (6, 4, 3)
    assert buffers.take(0).shape == (0, 4, 3)
