import numpy as np
import pytest

from vidbrain.errors import AlignmentError, ResumeError, ShardError, StorageError
from vidbrain.records import ClipSpec, World
from vidbrain.sharding.codes import write_codes
from vidbrain.sharding.manifest import open_manifest, shard_path
from vidbrain.sharding.writer import write_shards
from vidbrain.stream.batch import ClipBatch, CodesBatch
from vidbrain.stream.clips import clip_table
from vidbrain.stream.codes import codes_stream, load_codes
from vidbrain.stream.loader import stream
from vidbrain.stream.sequential import clip_starts, clips_of, frames_of
from vidbrain.video.decode import read_frames

CLIP = ClipSpec(8, 2, 3)


@pytest.fixture
def data(videos, config, tmp_path):
    write_shards(videos, tmp_path / "data", config)
    return tmp_path / "data"


def decoded(videos, recording):
    return np.concatenate(list(read_frames(videos / f"{recording}.mp4", size=(32, 32))))


def test_every_clip_of_an_epoch_is_the_right_frames_once(data, videos):
    table = open_manifest(data).segments
    frames = {key: decoded(videos, key) for key in table["recording"].unique()}
    loader = stream(data, clip=CLIP, batch_size=7, seed=3, tail="mask")
    seen = []
    for batch in map(ClipBatch.unmasked, loader):
        for video, segment, start in zip(batch.video, batch.segment, batch.start_frame, strict=True):
            recording = table["recording"].iloc[segment]
            np.testing.assert_array_equal(video, frames[recording][start : start + CLIP.span : CLIP.step])
            seen.append((recording, int(start)))
    expected = [(key, s) for key, f in frames.items() for s in range(0, len(f) - CLIP.span + 1, CLIP.stride)]
    assert sorted(seen) == sorted(expected)
    assert loader.stats()["clips_per_s"] > 0


def test_stats_hold_from_the_first_batch_on(data):
    import time

    loader = stream(data, clip=CLIP, batch_size=8)
    assert {v for k, v in loader.stats().items() if k != "threads"} == {0}
    for n, _ in enumerate(loader):
        stats = loader.stats()
        assert 0 < stats["stall_share"] <= 1
        assert 0 < stats["clips_per_s"] < 1e6
        if n == 3:
            break
        time.sleep(0.05)
    assert loader.stats()["stall_share"] < 1


def indices(loader, n=None):
    out = []
    for batch in loader:
        out.append(batch.index.tolist())
        if n is not None and len(out) == n:
            break
    return out


@pytest.mark.parametrize("stop", [0, 1, 5])
@pytest.mark.parametrize("size", [1, 2, 4])
def test_resume_continues_exactly_for_any_world(data, stop, size):
    whole = stream(data, clip=CLIP, batch_size=8, seed=1, split="train")
    first_epoch, second_epoch = indices(whole), indices(whole)
    begun = stream(data, clip=CLIP, batch_size=8, seed=1, split="train")
    taken = indices(begun, stop) if stop else []
    state = begun.state_dict()
    parts = []
    for rank in range(size):
        again = stream(data, clip=CLIP, batch_size=8, seed=1, split="train", world=World(rank, size))
        again.load_state_dict(state)
        parts.append((indices(again), indices(again)))
    rest, following = (
        [[i for part in parts for i in part[epoch][b]] for b in range(len(parts[0][epoch]))] for epoch in (0, 1)
    )
    assert taken + rest == first_epoch
    assert following == second_epoch
    assert first_epoch != second_epoch


def test_a_state_of_another_stream_is_refused(data):
    state = stream(data, clip=CLIP, batch_size=8, seed=1).state_dict()
    for other in ({"seed": 2}, {"batch_size": 4}, {"clip": ClipSpec(4, 2, 3)}, {"split": "train"}):
        loader = stream(data, **{"clip": CLIP, "batch_size": 8, "seed": 1, **other})
        with pytest.raises(ResumeError, match="belongs to another stream"):
            loader.load_state_dict(state)


def test_damage_names_shard_and_key(data):
    row = open_manifest(data).segments.iloc[0]
    path = shard_path(data, row["shard"])
    bytes_ = bytearray(path.read_bytes())
    bytes_[row["offset"] : row["offset"] + 64] = bytes(64)
    path.write_bytes(bytes_)
    with pytest.raises(ShardError, match=row["key"]):
        indices(stream(data, clip=CLIP, batch_size=8))
    path.write_bytes(bytes_[:100])
    with pytest.raises(ShardError, match="ends"):
        indices(stream(data, clip=CLIP, batch_size=8))


def test_impossible_requests_are_refused(data, tmp_path):
    with pytest.raises(ShardError, match="do not fill"):
        stream(data, clip=CLIP, batch_size=10**6)
    with pytest.raises(StorageError, match="does not exist"):
        stream(tmp_path / "nowhere")


def test_leaving_a_loop_early_stops_the_reader(data):
    import threading

    loader = stream(data, clip=CLIP, batch_size=4)
    before = threading.active_count()
    for _ in loader:
        break
    assert threading.active_count() == before


def test_sequential_gives_every_frame_and_clip_in_time_order(data, videos):
    manifest = open_manifest(data)
    clip = ClipSpec(8, 2, 10)
    for recording in manifest.recordings.index:
        frames = decoded(videos, recording)
        np.testing.assert_array_equal(np.concatenate([f for _, f in frames_of(manifest, recording)]), frames)
        found = list(clips_of(manifest, recording, clip, batch_size=3))
        starts = np.concatenate([s for s, _ in found])
        np.testing.assert_array_equal(starts, clip_starts(len(frames), clip))
        assert starts[-1] + clip.span == len(frames)
        for start, video in zip(starts, np.concatenate([v for _, v in found]), strict=True):
            np.testing.assert_array_equal(video, frames[start : start + clip.span : clip.step])


def test_a_prefix_cannot_be_read_in_time_order(videos, config, tmp_path):
    from dataclasses import replace

    write_shards(videos, tmp_path / "part", replace(config, size="100"))
    manifest = open_manifest(tmp_path / "part")
    with pytest.raises(AlignmentError, match="only partly in the shards"):
        list(frames_of(manifest, manifest.recordings.index[0]))


def test_codes_round_trip_and_share_the_order(data, tmp_path):
    manifest = open_manifest(data)
    clip = ClipSpec(8, 2, 16)

    def encode(positions):
        table = clip_table(manifest.segments, np.asarray(positions), clip, manifest.margin)
        for position, first, n in zip(positions, table.first_start, table.counts, strict=True):
            starts = first + np.arange(n) * clip.stride
            yield position, np.broadcast_to(starts[:, None, None, None], (n, 2, 3, 4)).astype(np.uint16)

    settings = {"clip": {"n_frames": 8, "step": 2, "stride": 16}}
    kwargs = {"config": settings, "made_from": {"shards": manifest.fingerprint}, "facts": {"n_codes": 512}}
    first = write_codes(tmp_path / "codes", manifest, encode, **kwargs)
    assert write_codes(tmp_path / "codes", manifest, None, **kwargs) == first
    table = load_codes(tmp_path / "codes")
    np.testing.assert_array_equal(table.codes[:, 0, 0, 0], table.start_frame)
    lengths = manifest.recordings["recording_frames"]
    expected = [(key, s) for key, n in lengths.items() for s in range(0, n - clip.span + 1, 16)]
    assert sorted(zip(table.recording, table.start_frame.tolist(), strict=True)) == sorted(expected)
    loader = codes_stream(tmp_path / "codes", batch_size=4, seed=2, tail="mask")
    seen = np.concatenate([batch.codes[:, 0, 0, 0] for batch in map(CodesBatch.unmasked, loader)])
    assert sorted(seen.tolist()) == sorted(table.start_frame.tolist())
    with pytest.raises(StorageError, match="expected a codes artefact"):
        load_codes(data)


@pytest.mark.parametrize("instead", ["nothing", "a folder"])
def test_a_shard_that_is_no_file_names_the_cure(data, instead):
    path = shard_path(data, 0)
    path.unlink()
    if instead == "a folder":
        path.mkdir()
    with pytest.raises(StorageError) as caught:
        list(stream(data, clip=ClipSpec(8, 2, 3), batch_size=4))
    assert caught.value.where == str(path)
    assert "vidbrain verify" in caught.value.hint
