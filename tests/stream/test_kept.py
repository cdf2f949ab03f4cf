"""Frames that are kept are those that would be decoded, within their memory, whichever threads read."""

import multiprocessing
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch

from vidbrain.errors import ShardError
from vidbrain.records import ClipSpec
from vidbrain.sharding.codecs import CODECS
from vidbrain.sharding.manifest import open_manifest
from vidbrain.sharding.plan import ShardConfig
from vidbrain.sharding.writer import write_shards
from vidbrain.stream.buffers import Buffers
from vidbrain.stream.clips import clip_table
from vidbrain.stream.kept import KeptFrames
from vidbrain.stream.source import ClipSource

CLIP = ClipSpec(8, 2, 1)


@pytest.fixture(scope="module", params=sorted(CODECS))
def data(request, videos, tmp_path_factory):
    root = tmp_path_factory.mktemp("kept") / request.param
    config = ShardConfig(frame_size=32, segment_frames=32, shard_frames=128, clip_frames=8, clip_step=2)
    write_shards(videos, root, replace(config, codec=request.param))
    return root


def read_all(source, order, size=16, n_threads=1):
    with ThreadPoolExecutor(n_threads) as pool:
        return list(pool.map(source.read, [order[at : at + size] for at in range(0, len(order), size)]))


def source_of(root, clip, kept_bytes):
    return ClipSource(open_manifest(root), clip, None, kept_bytes=kept_bytes)


@pytest.mark.parametrize("n_threads", [1, 4])
def test_batches_are_the_same_with_and_without_frames_that_are_kept(data, n_threads):
    without, source = (source_of(data, CLIP, n_bytes) for n_bytes in (0, 1 << 30))
    n_clips = int(source.clips_per_shard.sum())
    for epoch in range(2):
        order = np.random.default_rng(epoch).permutation(n_clips)
        pairs = zip(read_all(without, order), read_all(source, order, n_threads=n_threads), strict=True)
        for one, other in pairs:
            np.testing.assert_array_equal(one.video, other.video)
            np.testing.assert_array_equal(one.index, other.index)
    # Each part was read once or, by threads at a time, a few times; without, once for each batch that touches it.
    assert source.stats()["n_bytes"] < without.stats()["n_bytes"] / 4


def test_threads_that_want_the_same_part_at_once_see_whole_frames(videos, tmp_path):
    """A decoder's memory holds other bytes on the way to the right ones."""
    config = ShardConfig(frame_size=128, segment_frames=64, clip_frames=16, clip_step=1, codec="zstd")
    write_shards(videos, tmp_path / "d", config)
    clip, clips = ClipSpec(16, 1, 4), [np.arange(at, at + 6) for at in range(6)] * 2
    without = source_of(tmp_path / "d", clip, 0)
    expected = [without.read(each).video for each in clips]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(12):
            for batch, video in zip(
                pool.map(source_of(tmp_path / "d", clip, 1 << 30).read, clips), expected, strict=True
            ):
                np.testing.assert_array_equal(batch.video, video)


def flip(root, row, part):
    """Damage a part of a segment."""
    path = root / f"shards/{row['shard']:06d}.tar"
    damaged = bytearray(path.read_bytes())
    damaged[row["offset"] + sum(row["parts"][:part]) + int(row["parts"][part]) // 2] ^= 8
    path.write_bytes(damaged)


@pytest.mark.parametrize("n_threads", [1, 4])
def test_a_clip_is_read_though_another_part_of_its_segment_is_damaged(videos, tmp_path, n_threads):
    root = tmp_path / "d"
    write_shards(videos, root, ShardConfig(frame_size=32, segment_frames=64, clip_frames=8, clip_step=2, codec="zstd"))
    expected = source_of(root, CLIP, 0)
    rows, layout = open_manifest(root).segments, expected._reader._layout
    flip(root, rows.iloc[1], 2)
    source = source_of(root, CLIP, 1 << 30)
    clips = np.arange(int(source.clips_per_shard.sum()))
    segment, start = source.table.locate(clips)
    first = start - layout.start_frame[segment]
    hurt = (segment == 1) & (first < 48) & (first + CLIP.span > 32)
    assert 0 < hurt.sum() < (segment == 1).sum()
    whole = expected.read(clips[~hurt]).video
    for _ in range(3):
        batches = read_all(source, np.random.default_rng(0).permutation(clips[~hurt]), n_threads=n_threads)
        videos_of = {int(i): video for batch in batches for i, video in zip(batch.index, batch.video, strict=True)}
        for i, video in zip(clips[~hurt].tolist(), whole, strict=True):
            np.testing.assert_array_equal(videos_of[i], video)
        for clip in clips[hurt]:
            with pytest.raises(ShardError, match="part 2 of the segment is damaged"):
                source.read(np.array([clip]))
    # Only what is damaged is read anew each time.
    kept = source._reader._kept
    assert [i for i in np.unique(segment) if not kept.is_here(i)] == [1]


def test_each_segment_is_decoded_by_one_of_the_threads(videos, tmp_path, monkeypatch):
    root, claims = tmp_path / "d", []
    write_shards(videos, root, ShardConfig(frame_size=32, segment_frames=32, clip_frames=8, clip_step=2, codec="zstd"))
    source = source_of(root, CLIP, 1 << 30)
    decode = source._reader._decode_segments

    def decoded(kept, segments):
        claims.extend(segments)
        time.sleep(0.002)  # others want them meanwhile
        decode(kept, segments)

    monkeypatch.setattr(source._reader, "_decode_segments", decoded)
    clips = np.random.default_rng(0).permutation(int(source.clips_per_shard.sum()))
    read_all(source, clips, n_threads=6)
    assert len(claims) == len(set(claims)) > 10


def test_what_a_thread_of_the_parent_claimed_is_decoded_in_its_child():
    kept = KeptFrames(np.arange(3), np.full(3, 20), (4, 4, 3))
    assert kept.meet([0, 1]) == {0, 1}
    assert kept.meet([0, 1, 2]) == {2}
    assert kept.claim({0, 1}) == [0, 1]
    kept.frames(0)[:] = 7
    kept.settle([0], decoded=True)
    with kept._change:  # as another thread may have it when the process is forked
        child = multiprocessing.get_context("fork").Process(target=_decode_in_child, args=(kept,))
        child.start()
        child.join(20)
    assert child.exitcode == 0
    assert not kept.is_here(1)


def _decode_in_child(kept):
    assert kept.meet([0, 1]) == set()
    assert kept.claim({0, 1}) == [1]
    kept.settle([1], decoded=False)
    assert kept.claim({0, 1}) == []
    assert kept.is_here(0)
    assert (kept.frames(0) == 7).all()


def test_frames_are_kept_where_all_of_them_fit_and_are_used_again(data):
    manifest = open_manifest(data)
    table = clip_table(manifest.segments, manifest.select(None), CLIP, manifest.margin)
    stored = zip(manifest.segments["n_stored"], table.counts, strict=True)
    n_bytes = sum(n_frames for n_frames, n_clips in stored if n_clips) * 32 * 32 * 3
    assert KeptFrames.of(table, manifest, n_bytes).n_bytes == n_bytes
    assert KeptFrames.of(table, manifest, n_bytes - 1) is None
    disjoint = clip_table(manifest.segments, manifest.select(None), ClipSpec(8, 2, 16), manifest.margin)
    assert KeptFrames.of(disjoint, manifest, 1 << 40) is None
    one, other = source_of(data, CLIP, n_bytes), source_of(data, CLIP, 0)
    assert one.held_bytes - other.held_bytes == n_bytes


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
