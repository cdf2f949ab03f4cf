"""One source with two games: input of a flat one that the emulator replays, and video of a textured one."""

from dataclasses import replace

import numpy as np
import pytest

from vidbrain import cluster
from vidbrain.sharding.codecs import decode_segment, get_codec
from vidbrain.sharding.manifest import open_manifest, shard_path
from vidbrain.sharding.plan import ShardConfig
from vidbrain.sharding.verify import verify
from vidbrain.sharding.writer import write_shards
from vidbrain.video.decode import read_frames
from vidbrain.video.emulator import Emulator, read_movie
from vidbrain.video.play import PlayConfig, play
from vidbrain.video.sources import find_recordings

CONFIG = ShardConfig(frame_size=32, segment_frames=64, shard_frames=512, codec="zstd")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    root = tmp_path_factory.mktemp("two") / "games"
    shape = {"n_subjects": 2, "n_sessions": 1, "n_runs": 1}
    play(root, PlayConfig(run_s=12.0, **shape))
    play(root, PlayConfig(game="freedoom1", task="doom", levels=("e1m1", "e1m2"), run_s=20.0, **shape))
    return root


@pytest.fixture(scope="module")
def whole(source, tmp_path_factory):
    root = tmp_path_factory.mktemp("whole") / "data"
    write_shards(source, root, CONFIG)
    return root


def tars(root):
    return {path.name: path.read_bytes() for path in sorted((root / "shards").iterdir())}


def segment(root, row):
    data = shard_path(root, row.shard).read_bytes()[row.offset : row.offset + row.n_bytes]
    return decode_segment(get_codec("zstd"), data, row.parts, 32, 32)


def test_both_games_are_in_one_data_set(source, whole):
    rows = open_manifest(whole).segments
    assert verify(whole) == []
    found = {r.key: r for r in find_recordings(source)}
    assert set(rows["recording"]) == set(found)
    assert set(rows["task"]) == {"airstriker", "doom"}
    assert set(rows["level"]) >= {"1-0", "e1m1"}
    rates = rows.groupby("task")["fps"].mean()
    assert rates["airstriker"] == pytest.approx(60, rel=0.01)
    assert rates["doom"] == pytest.approx(35, rel=0.01)


def test_frames_are_those_of_the_video_and_of_the_screen(source, whole):
    rows = open_manifest(whole).segments
    found = {r.key: r for r in find_recordings(source)}
    for task in ("doom", "airstriker"):
        row = next(r for r in rows.itertuples() if r.task == task and r.start_frame == 64)
        stored, recording = segment(whole, row), found[row.recording]
        if task == "doom":
            decoded = np.concatenate(list(read_frames(recording.video, size=(32, 32))))
            np.testing.assert_array_equal(stored, decoded[64 : 64 + row.n_stored])
            continue
        movie = read_movie(recording.movie, with_state=True)
        with Emulator(movie.game, empty=True) as console:
            masks = console.masks(movie)[int(recording.skip_first_step) :]
            console.reset(movie.state)
            for mask in masks[: 64 + row.n_stored]:
                console.step(mask)
            last = console.screen()
        # 224 by 320 pixels to 32 by 32: each is the mean of 7 by 10.
        mean = last.reshape(32, 7, 32, 10, 3).astype(float).mean(axis=(1, 3))
        assert np.abs(stored[-1] - mean).max() <= 2


def test_a_prefix_by_two_workers_is_the_beginning_of_the_whole(source, whole, tmp_path):
    small = tmp_path / "small"
    with cluster.client("local", 2) as client:
        write_shards(source, small, replace(CONFIG, size="512"), client=client)
        first = tars(small)
    write_shards(source, tmp_path / "at-once", replace(CONFIG, size="1024"))
    assert first.keys() < tars(tmp_path / "at-once").keys()
    assert first.items() <= tars(tmp_path / "at-once").items()
    assert first.items() <= tars(whole).items()


def test_an_early_prefix_holds_both_subjects_and_both_games(whole):
    rows = open_manifest(whole).segments
    prefix = rows[rows["n_frames"].cumsum() <= 1024]
    for name in ("subject", "task"):
        shares = rows.groupby(name)["n_frames"].sum() / rows["n_frames"].sum()
        mine = prefix.groupby(name)["n_frames"].sum() / prefix["n_frames"].sum()
        assert set(mine.index) == set(shares.index)
        assert (mine - shares).abs().max() < 0.1
