"""Streams from a store: the batches of the disk, whatever the cache holds and the network does."""

import contextlib
import fcntl
import hashlib
import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
import weakref
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from vidbrain.errors import AlignmentError, ResumeError, ShardError, StorageError
from vidbrain.records import ClipSpec
from vidbrain.sharding.codes import write_codes
from vidbrain.sharding.manifest import open_manifest, shard_path
from vidbrain.sharding.plan import ShardConfig
from vidbrain.sharding.writer import write_shards
from vidbrain.storage.cache import Cache
from vidbrain.storage.trees import upload_tree
from vidbrain.stream.clips import clip_table
from vidbrain.stream.codes import load_codes
from vidbrain.stream.loader import Loader
from vidbrain.stream.reader import SegmentReader
from vidbrain.stream.sequential import clips_of, clips_of_run, frames_of
from vidbrain.stream.shards import open_shards
from vidbrain.stream.source import ClipSource
from vidbrain.testing.servers import Fault
from vidbrain.testing.videos import toy_frames, write_video

CLIP = ClipSpec(8, 2, 3)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Seven shards of noise over game play, so that a part is worth a range."""
    root = tmp_path_factory.mktemp("remote")
    rng = np.random.default_rng(0)
    for i, n in enumerate((200, 140, 231, 90, 170)):
        frames = toy_frames(n, seed=i)
        noise = rng.integers(0, 60, frames.shape, np.uint8)
        write_video(root / "videos" / f"play-{i}.mp4", np.minimum(frames, 190) + noise)
    config = ShardConfig(
        frame_size=48, segment_frames=32, shard_frames=128, clip_frames=8, clip_step=2, codec="zstd", val_share=0.2
    )
    write_shards(root / "videos", root / "data", config)
    return root / "data"


def source_of(root, clip=CLIP, split=None, **settings):
    return ClipSource(open_manifest(root), clip, split, kept_bytes=0, **settings)


def shuffled(source, seed=0):
    return np.random.default_rng(seed).permutation(int(source.clips_per_shard.sum()))


def batches_of(source, seed=0, size=16, first=0):
    """An epoch, read in its order from a batch on."""
    order = shuffled(source, seed)[first * size :]
    source.begin([order])
    return [source.read(order[at : at + size]) for at in range(0, len(order), size)]


def same(found, expected):
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one.index, other.index)
        np.testing.assert_array_equal(one.video, other.video)
        np.testing.assert_array_equal(one.start_frame, other.start_frame)


def shard_requests(remote):
    return [seen for seen in remote.proxy.seen if seen.path.split("?")[0].endswith(".tar")]


def wait_for(condition, seconds=20.0):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it never came true"
        time.sleep(0.01)


def test_whole_shards_come_once_and_a_second_reader_finds_them(remote, data, tmp_path):
    upload_tree(data, remote.root)
    remote.proxy.clear()
    local = source_of(data, CLIP, None)
    n_shards, n_bytes = len(local.clips_per_shard), sum(p.stat().st_size for p in data.glob("shards/*.tar"))
    expected = batches_of(local)
    source = source_of(remote.root, CLIP, None, cache=tmp_path / "cache")
    same(batches_of(source), expected)
    cache = Cache(tmp_path / "cache")
    wait_for(lambda: len(cache.held()) == n_shards and not any(cache.folder.glob("*.part-*")))
    assert sum(cache.held().values()) == n_bytes
    sums = {hashlib.sha256(path.read_bytes()).hexdigest() for path in data.glob("shards/*.tar")}
    assert {name.partition("-")[0] for name in cache.held()} == sums
    remote.proxy.clear()
    same(batches_of(source, seed=1), batches_of(local, seed=1))
    source.close()
    again = source_of(remote.root, CLIP, None, cache=tmp_path / "cache")
    same(batches_of(again, first=3), expected[3:])
    assert shard_requests(remote) == []
    stats = again.stats()
    assert stats["cache_hits"] > 0
    assert stats["n_requests"] == 0
    assert stats["n_bytes"] > 0
    again.close()


def test_of_a_shard_of_which_little_is_wanted_little_is_fetched(honest, data, tmp_path, monkeypatch):
    """Held-out recordings lie in all shards."""
    monkeypatch.setattr("vidbrain.storage.objects.GAP_BYTES", 0)
    monkeypatch.setattr("vidbrain.storage.objects.coalesce.__defaults__", (0,))
    monkeypatch.setattr("vidbrain.stream.remote.DENSE", 0.6)
    upload_tree(data, honest.root)
    expected = batches_of(source_of(data, CLIP, "val"))
    manifest = open_manifest(data)
    rows = manifest.segments[manifest.segments["split"] == "val"]
    honest.proxy.clear()
    source = source_of(honest.root, CLIP, "val", cache=tmp_path / "cache")
    same(batches_of(source), expected)
    cache, n_shards = Cache(tmp_path / "cache"), rows["shard"].nunique()
    wait_for(lambda: len(cache.held()) == n_shards and not any(cache.folder.glob("*.part-*")))
    assert any("." in name for name in cache.held()), "every shard was fetched whole"
    whole = sum(path.stat().st_size for path in data.glob("shards/*.tar"))
    assert sum(cache.held().values()) < 0.6 * whole
    honest.proxy.clear()
    same(batches_of(source), expected)
    assert shard_requests(honest) == []
    source.close()


def test_a_cache_without_room_costs_requests_and_nothing_else(honest, data, tmp_path):
    upload_tree(data, honest.root)
    expected = batches_of(source_of(data, CLIP, "train"))
    source = source_of(honest.root, CLIP, "train", cache=tmp_path / "cache", cache_bytes=1000)
    same(batches_of(source), expected)
    assert Cache(tmp_path / "cache").held() == {}
    assert source.stats()["cache_hits"] == 0
    source.close()


def test_a_limit_below_the_data_set_is_held(honest, data, tmp_path):
    upload_tree(data, honest.root)
    sizes = sorted(path.stat().st_size for path in data.glob("shards/*.tar"))
    limit = sizes[-1] + sizes[-2]
    expected = batches_of(source_of(data, CLIP, None))
    source = source_of(honest.root, CLIP, None, cache=tmp_path / "cache", cache_bytes=limit)
    order = shuffled(source)
    source.begin([order])
    for at, wanted in zip(range(0, len(order), 16), expected, strict=True):
        same([source.read(order[at : at + 16])], [wanted])
        assert sum(Cache(tmp_path / "cache").held().values()) <= limit
    source.close()


KINDS = [
    Fault("status", "GET", ".tar", status=503, code="SlowDown"),
    Fault("status", "GET", ".tar", status=500, code="InternalError"),
    Fault("drop", "GET", ".tar"),
    Fault("reset", "GET", ".tar", after_bytes=2000),
    Fault("truncate", "GET", ".tar", after_bytes=2000),
    Fault("stale-etag", "GET", ".tar"),
    Fault("latency", "GET", ".tar", delay_s=0.05),
    Fault("flip", "GET", ".tar"),
    Fault("stall", "GET", ".tar", after_bytes=100),
]


@pytest.mark.parametrize("limit", ["1G", "1000"], ids=["cached", "by ranges"])
def test_batches_are_the_same_while_answers_of_every_kind_are_spoilt(honest, data, tmp_path, limit):
    upload_tree(data, honest.root)
    expected = batches_of(source_of(data, CLIP, None))
    source = source_of(honest.patient_for(20.0, 0.4), CLIP, None, cache=tmp_path / "cache", cache_bytes=limit)
    order = shuffled(source)
    honest.proxy.clear()
    for i, at in enumerate(range(0, len(order), 16)):
        honest.proxy.inject(replace(KINDS[i % len(KINDS)], times=1))
        if i == 0:
            source.begin([order])
        same([source.read(order[at : at + 16])], [expected[i]])
    assert source.stats()["retries"] > 0
    source.close()


@pytest.mark.parametrize("limit", ["1G", "1000"], ids=["cached", "by ranges"])
def test_an_epoch_is_the_same_while_a_share_of_all_answers_is_spoilt(remote, data, tmp_path, limit):
    """5 % of each kind, over a whole epoch of a loader with several threads."""
    upload_tree(data, remote.root)
    local = Loader(source_of(data), batch_size=16, seed=5)
    # Opened before anything is spoilt: manifests have tests of their own.
    source = source_of(remote.patient_for(20.0), cache=tmp_path / "cache", cache_bytes=limit)
    loader = Loader(source, batch_size=16, seed=5, workers=6)
    remote.proxy.clear()
    often = {"stall": 3}  # the others are as good as free
    remote.proxy.inject(*(replace(fault, times=often.get(fault.kind), share=0.05) for fault in KINDS))
    same(list(loader), list(local))
    source.close()
    wait_for(lambda: not source._shards._on_the_way)  # what is on its way arrives, and is counted
    seen, stats = shard_requests(remote), loader.stats()
    spoilt = Counter(each.fault for each in seen)
    n_broken = sum(spoilt[kind] for kind in ("drop", "reset", "truncate", "stall"))
    # An HTTP client may send a request again by itself, where a connection that it used before is gone.
    n_silent = len(seen) - stats["n_requests"]
    assert 0 <= n_silent <= n_broken
    # Flipped bits and false names fail no request. Of a server that knows no ranges, not all answers are read.
    n_not_read = sum(each.range is not None and each.status == 200 for each in seen)
    n_failed = n_broken + spoilt["status"]
    assert n_failed - n_not_read - n_silent <= stats["retries"] <= n_failed
    if limit == "1000":
        assert spoilt.keys() - {None} == {fault.kind for fault in KINDS}
        assert spoilt.total() - spoilt[None] > 0.3 * sum(each.method == "GET" for each in seen)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (Fault("status", "GET", ".tar", times=None), "too busy"),
        (Fault("stall", "GET", ".tar", times=None), "does not answer"),
        (Fault("drop", "GET", ".tar", times=None), "connection breaks"),
        (Fault("reset", "GET", ".tar", times=None, after_bytes=500), "connection breaks"),
        (Fault("truncate", "GET", ".tar", times=None, after_bytes=500), "connection breaks"),
    ],
    ids=["busy", "stalled", "dropped", "broken", "cut"],
)
def test_a_store_that_never_answers_is_an_error_within_the_deadline(honest, data, tmp_path, fault, said):
    upload_tree(data, honest.root)
    source = source_of(honest.patient_for(3.0, 1.0), CLIP, None, cache=tmp_path / "cache")
    honest.proxy.inject(fault)
    with pytest.raises(StorageError, match=said) as caught:
        next(iter(Loader(source, batch_size=16)))
    assert ".tar" in str(caught.value)
    # As it says itself: asked again and again, and not later than the deadline.
    n_times, waited_s = re.search(r", (\d+) times in (\d+) s", str(caught.value)).groups()
    assert int(n_times) > 1
    assert int(waited_s) <= 3
    source.close()


def test_a_store_that_garbles_all_that_it_sends_is_an_error_that_names_shard_and_key(honest, data, tmp_path):
    upload_tree(data, honest.root)
    source = source_of(honest.patient_for(5.0), CLIP, None, cache=tmp_path / "cache")
    honest.proxy.inject(Fault("flip", "GET", ".tar", times=None))
    # The middle byte of every answer: the parts around it are damaged, however often they are asked for.
    with pytest.raises(ShardError, match=r"part .* is damaged") as caught:
        list(Loader(source, batch_size=16))
    assert re.search(r"\.tar play-\d", str(caught.value))
    source.close()


def test_what_is_damaged_in_the_store_is_an_error_that_names_it_and_the_rest_is_read(honest, data, tmp_path):
    upload_tree(data, honest.root)
    manifest, bad = open_manifest(data), bytearray(shard_path(data, 1).read_bytes())
    row = manifest.segments.query("shard == 1 and n_stored == 46").iloc[0]
    bad[row["offset"] + 10] ^= 1
    honest.root.put("shards/000001.tar", bytes(bad))
    local, source = (source_of(root, CLIP, None, cache=tmp_path / "cache") for root in (data, honest.root))
    order = shuffled(source)
    source.begin([order])
    hit = []
    for clip in order:
        wanted = local.read(np.array([clip]))
        touches = manifest.segments["key"].iloc[wanted.segment[0]] == row["key"]
        if touches and wanted.start_frame[0] < row["start_frame"] + 16:
            hit.append(clip)
            with pytest.raises(ShardError, match="part 0 of the segment is damaged") as caught:
                source.read(np.array([clip]))
            assert f"000001.tar {row['key']}" in str(caught.value)
        else:
            same([source.read(np.array([clip]))], [wanted])
    assert hit
    source.close()


def test_what_is_damaged_in_the_store_is_an_error_where_parts_have_no_checksums(honest, data, tmp_path):
    """As earlier versions wrote them: the shard's own checksum is all there is."""
    upload_tree(data, honest.root)
    bad = bytearray(shard_path(data, 1).read_bytes())
    bad[len(bad) // 2] ^= 1
    honest.root.put("shards/000001.tar", bytes(bad))
    manifest = open_manifest(honest.root)
    old = replace(manifest, segments=manifest.segments.assign(part_crc32=None))
    shards = open_shards(old, cache=tmp_path / "cache")
    shards.begin([old.segments["shard"].to_numpy(np.int64)])
    position = int(np.flatnonzero(old.segments["shard"] == 1)[0])
    with SegmentReader(old, shards) as reader, pytest.raises(StorageError, match="damaged, 3 times") as caught:
        reader.frames(
            position, int(old.segments["start_frame"][position]), int(old.segments["start_frame"][position]) + 46
        )
    assert "000001.tar" in str(caught.value)


def test_a_copy_that_went_bad_on_disk_is_replaced(honest, data, tmp_path):
    upload_tree(data, honest.root)
    expected = batches_of(source_of(data, CLIP, None))
    source = source_of(honest.root, CLIP, None, cache=tmp_path / "cache")
    same(batches_of(source), expected)
    cache = Cache(tmp_path / "cache")
    wait_for(lambda: len(cache.held()) == len(source.clips_per_shard) and not any(cache.folder.glob("*.part-*")))
    source.close()
    for name in cache.held():
        bad = bytearray((cache.folder / name).read_bytes())
        bad[len(bad) // 2 : len(bad) // 2 + 400] = bytes(400)
        (cache.folder / name).write_bytes(bad)
    again = source_of(honest.root, CLIP, None, cache=tmp_path / "cache")
    same(batches_of(again), expected)
    assert again.stats()["n_requests"] > 0
    again.close()


def test_recordings_come_in_time_order_by_ranges_or_from_the_cache(honest, data, tmp_path):
    upload_tree(data, honest.root)
    here, there = open_manifest(data), open_manifest(honest.root)
    recording = here.recordings.index[0]
    honest.proxy.clear()
    found = np.concatenate([frames for _, frames in frames_of(there, recording)])
    np.testing.assert_array_equal(found, np.concatenate([frames for _, frames in frames_of(here, recording)]))
    rows = here.segments[here.segments["recording"] == recording]
    assert sum(seen.n_bytes for seen in shard_requests(honest)) <= rows["n_bytes"].sum()
    clip = ClipSpec(8, 2, 10)
    for one, other in zip(clips_of(there, recording, clip), clips_of(here, recording, clip), strict=True):
        np.testing.assert_array_equal(one[0], other[0])
        np.testing.assert_array_equal(one[1], other[1])


def test_all_clips_of_a_run_come_in_the_order_of_its_clock(honest, data):
    upload_tree(data, honest.root)
    here, clip = open_manifest(data), ClipSpec(8, 2, 10)
    onset_s = {"play-0": 50.0, "play-1": 7.0, "play-2": 20.0}
    recording = here.segments["recording"]
    columns = {
        "run": np.where(recording.isin(onset_s), "sub-01_task-game_run-1", ""),
        "onset_s": recording.map(onset_s),
        "duration_s": np.where(recording.isin(onset_s), 4.0, np.nan),
    }
    there = replace(open_manifest(honest.root), segments=here.segments.assign(**columns))
    found = list(clips_of_run(there, "sub-01_task-game_run-1", clip, batch_size=5))
    assert list(dict.fromkeys(key for key, _, _ in found)) == ["play-1", "play-2", "play-0"]
    for key in onset_s:
        starts, video = (np.concatenate([part[i] for part in found if part[0] == key]) for i in (1, 2))
        expected = list(clips_of(here, key, clip))
        np.testing.assert_array_equal(starts, np.concatenate([part[0] for part in expected]))
        np.testing.assert_array_equal(video, np.concatenate([part[1] for part in expected]))
    with pytest.raises(AlignmentError, match="no recording belongs to run 'sub-02'"):
        next(clips_of_run(there, "sub-02", clip))


def test_codes_by_url_are_those_of_the_disk(remote, data, tmp_path):
    manifest, clip = open_manifest(data), ClipSpec(8, 2, 16)
    rng = np.random.default_rng(0)

    def encode(positions):
        table = clip_table(manifest.segments, np.asarray(positions), clip, manifest.margin)
        for position, n in zip(positions, table.counts, strict=True):
            yield position, rng.integers(0, 500, (n, 4, 8, 8)).astype(np.uint16)

    settings = {"clip": {"n_frames": 8, "step": 2, "stride": 16}}
    facts = {"n_codes": 512, "grid": [4, 8, 8]}
    made_from = {"shards": manifest.fingerprint}
    write_codes(tmp_path / "codes", manifest, encode, config=settings, made_from=made_from, facts=facts)
    upload_tree(tmp_path / "codes", remote.root)
    here = load_codes(tmp_path / "codes", split="train")
    remote.proxy.inject(Fault("flip", "GET", ".tar"))
    for _ in range(2):
        there = load_codes(remote.root, split="train", cache=tmp_path / "cache")
        np.testing.assert_array_equal(there.codes, here.codes)
        np.testing.assert_array_equal(there.start_frame, here.start_frame)
        assert there.recording.tolist() == here.recording.tolist()
        assert there.fingerprint == here.fingerprint
        remote.proxy.clear()
    assert shard_requests(remote) == []


WORKER = textwrap.dedent("""
    import sys
    import numpy as np
    from vidbrain.records import ClipSpec
    from vidbrain.sharding.manifest import open_manifest
    from vidbrain.stream.source import ClipSource

    url, folder, cache, limit, seed = sys.argv[1:]
    clip = ClipSpec(8, 2, 3)
    there = ClipSource(open_manifest(url), clip, None, cache=cache, cache_bytes=limit, kept_bytes=0)
    here = ClipSource(open_manifest(folder), clip, None)
    print("ready", flush=True)
    for epoch in range(3):
        rng, n = np.random.default_rng([int(seed), epoch]), int(here.clips_per_shard.sum())
        order = np.argsort(np.arange(n) + rng.uniform(0, 60, n))
        there.begin([order])
        for at in range(0, len(order), 8):
            clips = order[at : at + 8]
            assert np.array_equal(there.read(clips).video, here.read(clips).video), "corrupt"
    there.close()
    print("done", int(there.stats()["cache_hits"]), flush=True)
""")


def test_four_readers_share_a_cache_smaller_than_their_data_set(honest, data, tmp_path):
    """Each in a process of its own; one is killed while it downloads. The others read every clip right."""
    upload_tree(data, honest.root)
    sizes = [path.stat().st_size for path in data.glob("shards/*.tar")]
    limit, cache = sum(sizes) // 2, Cache(tmp_path)
    command = [sys.executable, "-c", WORKER, honest.url, str(data), str(tmp_path), str(limit)]
    workers = [subprocess.Popen([*command, str(seed)], stdout=subprocess.PIPE, text=True) for seed in range(4)]
    for process in workers:
        assert process.stdout.readline() == "ready\n"
    wait_for(lambda: is_downloading(workers[0].pid, cache.folder))
    workers[0].send_signal(signal.SIGKILL)
    reserved, on_disk, until = [], [], time.monotonic() + 60
    while any(process.poll() is None for process in workers[1:]):
        assert time.monotonic() < until, "somebody waits for ever"
        reserved.append(sum(cache.held().values()))
        on_disk.append(disk_bytes(cache.folder))
        time.sleep(0.01)
    said = [process.communicate(timeout=10)[0] for process in workers][1:]
    assert [process.returncode for process in workers[1:]] == [0, 0, 0]
    assert all(int(text.split()[1]) > 0 for text in said)
    assert max(sizes) <= max(reserved) <= limit
    # What the disk holds, by its own count: in whole blocks.
    assert max(sizes) <= max(on_disk) <= 1.05 * limit
    for name in cache.held():
        path = cache.folder / name
        assert not path.exists() or hashlib.sha256(path.read_bytes()).hexdigest() == name.partition("-")[0]


def is_downloading(pid, folder):
    """Whether a process holds the lock of one entry."""
    handles = Path(f"/proc/{pid}/fd").iterdir()
    with contextlib.suppress(FileNotFoundError):  # closed meanwhile
        return any(
            name.startswith(str(folder)) and name.endswith(".lock") and not name.endswith("/.lock")
            for name in map(os.readlink, handles)
        )
    return False


def disk_bytes(folder):
    """Room that all files take, counted while nobody evicts or makes room: a scan sees no file come and go."""
    with (folder / ".lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        n_bytes = 0
        for path in folder.iterdir():
            with contextlib.suppress(FileNotFoundError):  # what a killed process left, swept by another
                n_bytes += 512 * path.stat().st_blocks
        return n_bytes


def fetching():
    return [thread for thread in threading.enumerate() if thread.name.startswith("vidbrain-fetch")]


def test_a_loop_that_is_left_fetches_nothing_more(honest, data, tmp_path):
    """The cache is so small that fetching ahead would wait for readers for ever."""
    upload_tree(data, honest.root)
    limit = 3 * max(path.stat().st_size for path in data.glob("shards/*.tar"))
    source = source_of(honest.root, cache=tmp_path / "cache", cache_bytes=limit)
    loader = Loader(source, batch_size=8, shuffle=False, workers=1)
    for _ in loader:
        wait_for(lambda: source._shards._ahead)
        assert fetching()
        break
    wait_for(lambda: not fetching())
    n_requests = len(shard_requests(honest))
    # It goes on all the same, and fetches ahead again.
    same(list(loader), list(Loader(source_of(data), batch_size=8, shuffle=False))[1:])
    assert len(shard_requests(honest)) > n_requests
    wait_for(lambda: not fetching())


def test_shards_that_nobody_holds_are_not_kept_by_their_threads(honest, data, tmp_path):
    upload_tree(data, honest.root)
    limit = 3 * max(path.stat().st_size for path in data.glob("shards/*.tar"))

    def begun():
        source = source_of(honest.root, cache=tmp_path / "cache", cache_bytes=limit)
        source.begin([np.arange(int(source.clips_per_shard.sum()))])
        wait_for(lambda: source._shards._ahead)
        return weakref.ref(source._shards)

    shards = begun()
    wait_for(lambda: shards() is None and not fetching())


def test_a_loader_that_is_closed_lets_go_and_can_be_used_again(honest, data, tmp_path):
    upload_tree(data, honest.root)
    source = source_of(honest.root, cache=tmp_path / "cache")
    with Loader(source, batch_size=8, workers=1) as loader:
        for _ in loader:
            wait_for(lambda: source._shards._leases)
            break
    wait_for(lambda: not fetching())
    assert not source._shards._leases
    batches = iter(loader)
    assert next(batches).number == 1
    loader.close()
    with pytest.raises(ResumeError, match="was closed since"):
        next(batches)
    assert next(iter(loader)).number == 2
    loader.close()


@pytest.mark.parametrize("how", ["missing", "truncated"])
@pytest.mark.parametrize("limit", ["20G", "1K"])
def test_an_object_that_is_not_what_the_index_says_names_the_cure(honest, data, tmp_path, how, limit):
    """Fetched whole or by ranges."""
    upload_tree(data, honest.root)
    place = shard_path(honest.root, 0)
    if how == "missing":
        place.parent.delete(place.name)
    else:
        place.parent.put(place.name, place.parent.get(place.name)[:100])
    root = honest.patient_for(3.0)
    with pytest.raises(StorageError) as caught:
        batches_of(source_of(root, cache=tmp_path / "cache", cache_bytes=limit))
    assert place.name in caught.value.where
    assert "vidbrain verify" in caught.value.hint
