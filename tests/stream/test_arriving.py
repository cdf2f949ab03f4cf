"""What of a shard has come is read while the rest is on its way, and is what the shard holds."""

import threading
import time
from dataclasses import replace

import numpy as np
import pytest

from vidbrain.errors import ShardError, StorageError
from vidbrain.sharding.manifest import open_manifest
from vidbrain.sharding.plan import ShardConfig
from vidbrain.sharding.writer import write_shards
from vidbrain.storage.cache import Cache
from vidbrain.storage.objects import Root
from vidbrain.storage.trees import upload_tree
from vidbrain.stream.arriving import Arriving
from vidbrain.stream.remote import RemoteShards
from vidbrain.testing.videos import write_video

PART = 1 << 17


def test_stretches_join_whatever_their_order(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes(range(100)))
    with path.open("r+b") as handle:
        arriving = Arriving(handle.fileno())
        assert arriving.is_of(handle.fileno())
    for begin, end in ((40, 60), (0, 20), (80, 100), (20, 40)):
        assert not arriving.holds(begin, end)
        arriving.add(begin, end)
    assert arriving.holds(0, 60)
    assert arriving.holds(10, 50)
    assert not arriving.holds(50, 61)
    assert not arriving.holds(59, 81)
    # Another file of the same name is another one; what has come is read though it went.
    path.replace(tmp_path / "moved")
    path.write_bytes(bytes(100))
    with path.open("r+b") as handle:
        assert not arriving.is_of(handle.fileno())
    (tmp_path / "moved").unlink()
    assert arriving.read(30, 50) == bytes(range(30, 50))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A shard of noise, of several parts of a download."""
    root = tmp_path_factory.mktemp("arriving")
    noise = np.random.default_rng(0).integers(0, 255, (96, 32, 32, 3), np.uint8)
    write_video(root / "videos" / "noise.mp4", noise)
    config = ShardConfig(frame_size=32, segment_frames=32, clip_frames=8, clip_step=1, codec="zstd", val_share=0)
    write_shards(root / "videos", root / "data", config)
    assert (root / "data/shards/000000.tar").stat().st_size > 2 * PART
    return root / "data"


@pytest.fixture
def remote_data(remote, data):
    upload_tree(data, remote.root)
    return remote.root


@pytest.fixture
def held_back(remote_data, monkeypatch):
    """Let the first part of a download come, and the others when they are asked for."""
    gate, view = threading.Event(), Root.view_range

    def late(self, key, start, stop, *, etag=None):
        if etag is not None and start > 0:
            assert gate.wait(30)
        return view(self, key, start, stop, etag=etag)

    monkeypatch.setattr(Root, "view_range", late)
    for module in ("storage.transfers", "stream.arriving"):
        monkeypatch.setattr(f"vidbrain.{module}.PART_BYTES", PART)
    yield gate
    gate.set()


def spans_of(manifest, row):
    at = int(row["offset"])
    for n_bytes in row["parts"]:
        yield 0, at, at + int(n_bytes)
        at += int(n_bytes)


def test_a_batch_does_not_wait_for_the_rest_of_a_shard(remote_data, data, tmp_path, held_back):
    manifest, tar = open_manifest(remote_data), (data / "shards/000000.tar").read_bytes()
    spans = [span for _, row in manifest.segments.iterrows() for span in spans_of(manifest, row)]
    shards = RemoteShards(manifest, np.arange(len(manifest.segments)), Cache(tmp_path / "cache"))
    shards.begin([np.zeros(len(spans), np.int64)])
    early = [span for span in spans if span[2] <= PART]
    assert 0 < len(early) < len(spans)
    # Nothing but the first part has come, and will until the gate opens.
    assert shards.read(early) == [tar[begin:end] for _, begin, end in early]
    assert shards.stats()["cache_hits"] == len(early)
    assert not held_back.is_set()
    held_back.set()
    assert shards.read(spans) == [tar[begin:end] for _, begin, end in spans]
    shards.close()


def test_without_checksums_of_parts_nothing_is_read_before_the_shard_is_checked(remote_data, data, tmp_path, held_back):
    manifest = open_manifest(remote_data)
    old = replace(manifest, segments=manifest.segments.assign(part_crc32=None))
    shards = RemoteShards(old, np.arange(len(old.segments)), Cache(tmp_path / "cache"))
    shards.begin([np.zeros(4, np.int64)])
    span = next(spans_of(manifest, manifest.segments.iloc[0]))
    assert len(shards.read([span])[0]) == span[2] - span[1]
    assert shards.stats()["cache_hits"] == 0  # a range
    shards.close()


def test_damage_on_the_way_is_found_before_it_is_seen(remote_data, data, tmp_path, held_back, monkeypatch):
    """Bytes that come damaged are read again by ranges; if they are damaged there too, the error names the segment."""
    from vidbrain.stream.reader import SegmentReader

    manifest, view = open_manifest(remote_data), Root.view_range

    def damaged(self, key, start, stop, *, etag=None):
        found = bytearray(view(self, key, start, stop, etag=etag))
        if key.endswith(".tar") and etag is not None:
            found[len(found) // 2] ^= 1
        return bytes(found)

    monkeypatch.setattr(Root, "view_range", damaged)
    held_back.set()
    shards = RemoteShards(manifest, np.arange(len(manifest.segments)), Cache(tmp_path / "cache"))
    shards.begin([np.zeros(4, np.int64)])
    with SegmentReader(open_manifest(data)) as local, SegmentReader(manifest, shards) as reader:
        for segment in range(len(manifest.segments)):
            start, n = manifest.segments.loc[segment, ["start_frame", "n_stored"]]
            try:
                found = reader.frames(segment, start, start + n)
            except (ShardError, StorageError) as error:
                pytest.fail(f"ranges are sound: {error}")
            np.testing.assert_array_equal(found, local.frames(segment, start, start + n))


def test_a_small_shard_that_came_too_long_is_whole_when_it_comes_again(remote_data, data, tmp_path, monkeypatch):
    manifest, get, tries = open_manifest(remote_data), Root.get, []

    def longer(self, key, *, etag=None):
        found = get(self, key, etag=etag)
        if key.endswith(".tar"):
            tries.append(key)
            return found + b"more" if len(tries) == 1 else found
        return found

    monkeypatch.setattr(Root, "get", longer)
    cache = Cache(tmp_path / "cache")
    shards = RemoteShards(manifest, np.arange(len(manifest.segments)), cache)
    shards.begin([np.zeros(4, np.int64)])
    until = time.monotonic() + 20
    while not list(cache.folder.glob("*[0-9a-f]-*")) or list(cache.folder.glob("*.part-*")):
        assert time.monotonic() < until
        time.sleep(0.01)
    tar = (data / "shards/000000.tar").read_bytes()
    assert len(tries) == 2
    assert [path.read_bytes() for path in cache.folder.iterdir() if path.stat().st_size] == [tar]
    shards.close()
