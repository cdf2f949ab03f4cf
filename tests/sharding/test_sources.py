"""What enters: unreadable files, odd names, lists, filters, and game play straight from its recorded input."""

import shutil
import zipfile
from dataclasses import replace

import av
import numpy as np
import pytest

from vidbrain.errors import ConfigError, ShardError, VideoError
from vidbrain.sharding.codecs import decode_segment, get_codec
from vidbrain.sharding.filters import Filter, chosen
from vidbrain.sharding.listing import list_source
from vidbrain.sharding.manifest import open_manifest, shard_path
from vidbrain.sharding.plan import ShardConfig
from vidbrain.sharding.writer import write_shards
from vidbrain.testing.videos import toy_frames, write_video
from vidbrain.video.decode import read_frames
from vidbrain.video.play import PlayConfig, play
from vidbrain.video.replay import ReplayConfig, replay
from vidbrain.video.screens import recording_frames
from vidbrain.video.sources import find_recordings


def files_of(root):
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def frames_in(root):
    """Every stored frame, by recording and number."""
    manifest = open_manifest(root)
    found = {}
    for row in manifest.segments.itertuples():
        with shard_path(root, row.shard).open("rb") as handle:
            handle.seek(row.offset)
            data = handle.read(row.n_bytes)
        codec = get_codec(manifest.info["codec"])
        for i, frame in enumerate(decode_segment(codec, data, list(row.parts), manifest.height, manifest.width)):
            found[row.recording, row.start_frame + i] = frame
    return found


def spoil(path):
    """Keep a video's headers, tables and first pictures, and so its count of frames, but no later picture."""
    data = bytearray(path.read_bytes())
    at = data.index(b"mdat") + 4
    n_bytes = int.from_bytes(data[at - 8 : at - 4], "big")
    half = n_bytes // 2
    data[at + half : at - 8 + n_bytes] = bytes(n_bytes - 8 - half)
    path.write_bytes(data)


@pytest.fixture
def damaged(tmp_path):
    """Five good videos and four bad ones; `spoilt` is found only when it is decoded."""
    source = tmp_path / "source"
    for i in range(5):
        write_video(source / f"good-{i}.mp4", toy_frames(60, seed=i))
    write_video(source / "cut.mp4", toy_frames(60, seed=7))
    data = (source / "cut.mp4").read_bytes()
    (source / "cut.mp4").write_bytes(data[: len(data) // 2])
    (source / "empty.mp4").write_bytes(b"")
    (source / "text.mkv").write_bytes(b"not a video")
    write_video(source / "spoilt.mp4", toy_frames(60, seed=8))
    spoil(source / "spoilt.mp4")
    return source


def test_everything_that_cannot_be_read_is_listed_at_once_before_work_starts(damaged, config, tmp_path):
    with pytest.raises(VideoError, match=r"3 recording\(s\) cannot be read") as caught:
        write_shards(damaged, tmp_path / "d", config)
    assert all(name in caught.value.message for name in ("cut", "empty", "text"))
    assert not (tmp_path / "d").exists()


def test_what_decoding_finds_ends_the_work_by_default(damaged, config, tmp_path):
    for name in ("cut.mp4", "empty.mp4", "text.mkv"):
        (damaged / name).unlink()
    with pytest.raises(VideoError, match="decode"):
        write_shards(damaged, tmp_path / "d", config)
    assert not (tmp_path / "d" / "dataset.json").exists()


def test_skipped_recordings_are_recorded_and_the_count_stays_exact(damaged, config, tmp_path, monkeypatch):
    monkeypatch.setattr("vidbrain.sharding.plan.LANDMARKS", (96, 200))
    skip = replace(config, on_error="skip", size="200")
    record = write_shards(damaged, tmp_path / "d", skip)
    assert set(record["skipped"]) == {"cut", "empty", "text", "spoilt"}
    rows = open_manifest(tmp_path / "d").segments
    assert rows["n_frames"].sum() == 200
    assert set(rows["recording"]) <= {f"good-{i}" for i in range(5)}
    before = files_of(tmp_path / "d")
    write_shards(damaged, tmp_path / "d", skip)
    assert files_of(tmp_path / "d") == before
    # Growing meets the same faults.
    write_shards(damaged, tmp_path / "grown", replace(skip, size="96"))
    write_shards(damaged, tmp_path / "grown", skip)
    assert files_of(tmp_path / "grown") == before
    with pytest.raises(ShardError, match="the source holds 300"):
        write_shards(damaged, tmp_path / "e", replace(skip, size="301"))


def test_a_killed_skip_goes_on_to_the_same_bytes(damaged, config, tmp_path, monkeypatch):
    skip = replace(config, on_error="skip", size="200")
    write_shards(damaged, tmp_path / "whole", skip)

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("vidbrain.sharding.writer._assemble", stop)
        with pytest.raises(KeyboardInterrupt):
            write_shards(damaged, tmp_path / "d", skip)
    assert (tmp_path / "d" / "skipped.json").is_file()
    write_shards(damaged, tmp_path / "d", skip)
    assert files_of(tmp_path / "d") == files_of(tmp_path / "whole")


def test_too_large_a_size_says_the_maximum(videos, config, tmp_path):
    with pytest.raises(ShardError, match=r"asks for 10,000 frames, the source holds 451"):
        write_shards(videos, tmp_path / "d", replace(config, size="10k"))
    assert not (tmp_path / "d").exists()


@pytest.mark.parametrize("frame_size", [0, -4, 7, 5000])
def test_a_resolution_that_cannot_be(config, frame_size):
    with pytest.raises(ConfigError, match="not between 8 and 4096"):
        replace(config, frame_size=frame_size)


def test_odd_names_become_keys_that_are_safe(config, tmp_path):
    names = ["a.b c.mp4", "été/plage 1.mp4", "日本/ゲーム.mkv", "..twice..mp4", "x" * 120 + ".mp4"]
    for i, name in enumerate(names):
        write_video(tmp_path / "source" / name, toy_frames(12, seed=i))
    write_video(tmp_path / "aside.mp4", toy_frames(12, seed=9))
    (tmp_path / "source" / "all.txt").write_text("\n".join([*names, "../aside.mp4", "# a comment", ""]))
    write_shards(tmp_path / "source" / "all.txt", tmp_path / "d", config)
    found = set(open_manifest(tmp_path / "d").segments["recording"])
    assert found == {"a-b-c", "été_plage-1", "日本_ゲーム", "-twice-", "x" * 120, "aside"}
    stored = frames_in(tmp_path / "d")
    for name, key in (("日本/ゲーム.mkv", "日本_ゲーム"), ("../aside.mp4", "aside")):
        (decoded,) = read_frames(tmp_path / "source" / name, size=(32, 32))
        assert all(np.array_equal(stored[key, i], frame) for i, frame in enumerate(decoded))
    assert {p.name for p in tmp_path.iterdir()} == {"source", "aside.mp4", "d"}


def test_filters_take_labels_with_or_without_prefix():
    entities = {
        "subject": ["01", "02", "01", ""],
        "session": ["001", "001", "002", ""],
        "task": ["game"] * 3 + [""],
        "level": ["1-0", "4-1", "1", "10"],
        "run": [1, 2, 3, -1],
    }
    assert chosen(Filter(subject=("sub-01",)), entities).tolist() == [True, False, True, False]
    assert chosen(Filter(level=("1",)), entities).tolist() == [True, False, True, False]
    assert chosen(Filter(level=("level-1-0",)), entities).tolist() == [True, False, False, False]
    assert chosen(Filter(run=(2, 3), session=("ses-002",)), entities).tolist() == [False, False, True, False]
    assert chosen(Filter(), entities).all()
    with pytest.raises(ShardError, match=r"no recording has session 003[\s\S]*there are: 001, 002"):
        chosen(Filter(session=("003",)), entities)
    with pytest.raises(ShardError, match="together leave no recording"):
        chosen(Filter(subject=("02",), run=(1,)), entities)


# -- straight from recorded input ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def game(tmp_path_factory):
    """Three really played runs, as .bk2 only."""
    root = tmp_path_factory.mktemp("game") / "bids"
    play(root, PlayConfig(n_sessions=1, n_runs=3, run_s=4.0))
    return root


def write_lossless(path, frames):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=60)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "bgr0"
        for image in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))


def test_shards_straight_from_bk2_hold_the_frames_of_a_lossless_replay(game, config, tmp_path):
    record = write_shards(game, tmp_path / "straight", config)
    source = list_source(game)
    assert any("replayed by the emulator" in note for note in source.notes)
    assert record["n_frames"] == sum(item.n_frames for item in source.listing)
    # The same tree with videos in the place of its recordings; the events name them all the same.
    lossless = tmp_path / "lossless"
    shutil.copytree(game, lossless)
    for item in source.listing:
        screens = np.concatenate(list(recording_frames(item.recording, size=(224, 320))))
        movie = next(lossless.rglob(f"{item.recording.key}.bk2"))
        write_lossless(movie.with_suffix(".mkv"), screens)
    write_shards(lossless, tmp_path / "via", config)
    straight, via = frames_in(tmp_path / "straight"), frames_in(tmp_path / "via")
    assert straight.keys() == via.keys()
    assert len(straight) > 300
    assert all(np.array_equal(frame, via[place]) for place, frame in straight.items())
    one, other = (open_manifest(tmp_path / name).segments.drop(columns="offset") for name in ("straight", "via"))
    assert one.equals(other)


def test_recorded_input_is_spooled_again_for_another_rom(game, config, tmp_path, monkeypatch):
    monkeypatch.setattr("vidbrain.sharding.plan.LANDMARKS", (64, 128, 256))
    decoded = []

    def spy(recording, **options):
        decoded.append(recording.key)
        return recording_frames(recording, **options)

    monkeypatch.setattr("vidbrain.sharding.spool.recording_frames", spy)
    write_shards(game, tmp_path / "d", replace(config, size="64"), keep_spool=True)
    met = set(decoded)
    del decoded[:]
    write_shards(game, tmp_path / "d", replace(config, size="128"), keep_spool=True)
    assert not met & set(decoded)
    met |= set(decoded)
    del decoded[:]
    monkeypatch.setattr("vidbrain.sharding.spool.rom_digest", lambda *_: "0" * 64)
    write_shards(game, tmp_path / "d", replace(config, size="256"), keep_spool=True)
    assert met & set(decoded)


def test_a_replay_for_human_eyes_shows_the_same_play(game, config, tmp_path):
    """Every frame of the compressed replay is nearest to its own frame, not to a neighbour's."""
    played = tmp_path / "played"
    shutil.copytree(game, played)
    replay(played, None, ReplayConfig(crf=0))
    straight = find_recordings(game)[0]
    (one,) = [np.concatenate(list(recording_frames(straight, size=(56, 80)))).astype(float)]
    video = find_recordings(played)[0].video
    other = np.concatenate(list(read_frames(video, size=(56, 80)))).astype(float)
    assert one.shape == other.shape
    own = np.abs(one - other).mean(axis=(1, 2, 3))
    assert own.max() < 3
    shifted = np.abs(one[1:] - other[:-1]).mean(axis=(1, 2, 3))
    assert (own[1:] <= shifted).all()


def test_a_half_replayed_tree_does_not_mix_what_was_compressed_with_what_was_not(game, tmp_path):
    half = tmp_path / "half"
    shutil.copytree(game, half)
    replay(half, None, ReplayConfig())
    videos = sorted(half.rglob("*.mp4"))
    assert len(videos) > 1
    videos[0].unlink()
    assert all(item.recording.video is None for item in list_source(half).listing)


def test_a_game_without_rom_is_named_before_work_starts(game, config, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(game, other)
    movies = sorted(other.rglob("*.bk2"))
    with zipfile.ZipFile(movies[0]) as old:
        members = {name: old.read(name) for name in old.namelist()}
    members["Header.txt"] = members["Header.txt"].replace(b"Airstriker-Genesis-v0", b"NoSuchGame-Genesis-v0")
    with zipfile.ZipFile(movies[0], "w") as new:
        for name, data in members.items():
            new.writestr(name, data)
    with pytest.raises(VideoError, match=r"1 recording\(s\) cannot be read[\s\S]*no ROM of 'NoSuchGame"):
        write_shards(other, tmp_path / "d", config)
    movies[1].write_bytes(movies[1].read_bytes()[:100])
    with pytest.raises(VideoError, match=r"2 recording\(s\) cannot be read"):
        write_shards(other, tmp_path / "d", config)
    assert not (tmp_path / "d").exists()
    skipped = list_source(other, config=ShardConfig(on_error="skip"))
    assert set(skipped.skipped) == {movies[0].stem, movies[1].stem}
    assert len(skipped.listing) == len(movies) - 2
