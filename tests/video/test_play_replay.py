from __future__ import annotations

import dataclasses
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import av
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from vidbrain.cluster import client as open_client
from vidbrain.config import to_mapping
from vidbrain.errors import ConfigError, ResumeError, VideoError
from vidbrain.video.decode import probe, read_frames, read_table
from vidbrain.video.emulator import Emulator, read_movie
from vidbrain.video.gamelogs import read_events
from vidbrain.video.play import PlayConfig, plan_play, play
from vidbrain.video.replay import ReplayConfig, plan_replay, replay
from vidbrain.video.sources import find_recordings

SMALL = PlayConfig(n_sessions=1, n_runs=2, run_s=45.0, repetition_s=(5.0, 6.0))
TINY = PlayConfig(n_sessions=1, n_runs=2, run_s=9.0)


def contents(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def test_the_tree_has_the_shape_of_a_study(world):
    rows = read_events(world.root).rows
    assert {row.run.label for row in rows} == {f"sub-01_ses-001_task-airstriker_run-{n}" for n in (1, 2)}
    assert len(rows) == world.play_facts["n_recordings"] == 6
    events = world.root / "sub-01/ses-001/func/sub-01_ses-001_task-airstriker_run-01_events.tsv"
    table = pd.read_csv(events, sep="\t")
    assert list(table) == ["trial_type", "onset", "duration", "duration_bk2", "level", "stim_file"]
    assert set(table.trial_type) == {"gym-retro_game"}
    assert 0.005 <= table.onset[0] <= 0.021
    for stim in table.stim_file:
        assert (world.root / stim).is_file()
        assert json.loads((world.root / stim).with_suffix(".json").read_text())["end_score"] >= 0
    assert table.onset.iloc[-1] + table.duration.iloc[-1] < SMALL.run_s
    assert (world.root / "participants.tsv").read_text().startswith("participant_id\tage\tsex\tgroup\n")


def test_the_scanner_clock_disagrees_with_the_console(world):
    rows = read_events(world.root).rows
    frames = np.array([len(read_table(r)) for r in find_recordings(world.root)])
    durations = np.array([row.duration_s for row in rows])
    assert 59.92 < np.median(frames / durations) < 60.2
    excess = np.array([row.duration_bk2_s - row.duration_s for row in rows])
    firsts = np.array([row.row == 0 for row in rows])
    assert excess[firsts].min() > excess[~firsts].max() > 0
    lines = np.array([row.duration_bk2_s * 60 for row in rows])
    np.testing.assert_allclose(lines, np.round(lines), atol=1e-9)
    gaps = [b.onset_s - a.onset_s - a.duration_s for a, b in itertools.pairwise(rows) if a.run == b.run]
    np.testing.assert_allclose(gaps, 6.03, atol=0.1)


def test_a_replay_shows_exactly_what_was_on_the_screen(world):
    assert len(world.seen_at_play) == 6
    assert world.seen_at_replay == world.seen_at_play


def test_without_the_first_step_skip_the_replay_is_another_game(world, tmp_path):
    first = next(r for r in find_recordings(world.root) if r.skip_first_step)
    facts = replay(first.movie, tmp_path, ReplayConfig(first_skip="never"))
    # What it wrote has a description as BIDS wants it, no subjects, and is a source itself.
    assert [r.key for r in find_recordings(tmp_path)] == [first.key]
    wrong = np.concatenate(list(read_frames(tmp_path / f"{first.key}.mp4", size=(56, 80))))
    right = np.concatenate(list(read_frames(first.video, size=(56, 80))))
    assert facts["n_frames"] == len(wrong) == len(right) + 1
    differs = (np.abs(wrong[:-1].astype(int) - right).max(axis=(1, 2, 3)) > 60).mean()
    assert differs > 0.3


def test_the_table_holds_buttons_and_memory_frame_by_frame(world):
    for recording in find_recordings(world.root):
        table = read_table(recording)
        movie = read_movie(recording.movie)
        assert list(table.frame) == list(range(len(table)))
        assert len(table) == movie.n_lines - recording.skip_first_step == probe(recording.video).n_frames
        presses = movie.presses[int(recording.skip_first_step) :]
        np.testing.assert_array_equal(table[list(movie.buttons)].to_numpy(), presses)
        assert table[list(movie.buttons)].dtypes.eq(bool).all()
        assert (table.score.diff().dropna() >= 0).all()
        assert table.lives.between(0, 9).all()
        without_replay = read_table(dataclasses.replace(recording, video=None))
        pd.testing.assert_frame_equal(without_replay, table[without_replay.columns.tolist()])


def test_the_video_is_the_screen_to_within_the_codec(world):
    recording = next(r for r in find_recordings(world.root) if not r.skip_first_step)
    movie = read_movie(recording.movie, with_state=True)
    screens = []
    with Emulator(movie.game, empty=True) as console:
        console.reset(movie.state)
        for mask in movie.presses[:300].view(np.uint8):
            console.step(mask)
            screens.append(console.screen())
    for decoder in ("pyav", "decord"):
        seen = np.concatenate(list(read_frames(recording.video, decoder=decoder)))[: len(screens)]
        errors = ((seen.astype(float) - screens) ** 2).mean(axis=(1, 2, 3))
        assert 10 * np.log10(255**2 / errors.max()) > 38
        lit = np.stack(screens).max(axis=3) > 200  # sprites and letters, not the black sky
        assert np.abs(seen.astype(int) - screens)[lit].mean() < 6
    with av.open(recording.video) as container:
        stream = container.streams.video[0]
        assert (stream.pix_fmt, float(stream.average_rate)) == ("yuv444p", 60)
        kinds = [int(frame.pict_type) for frame in container.decode(stream)]
    assert set(kinds) == {1, 2}  # I and P
    assert set(kinds[::60]) == {1}


def test_the_player_varies(world):
    tables = [read_table(recording) for recording in find_recordings(world.root)]
    held = np.array([[table[name].mean() for name in ("B", "LEFT", "RIGHT")] for table in tables])
    assert held.std(axis=0).min() > 0.01
    assert len({table.LEFT.to_numpy().tobytes() for table in tables}) == len(tables)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    root = tmp_path_factory.mktemp("undisturbed") / "game"
    play(root, TINY)
    replay(root, None, ReplayConfig())
    return contents(root)


def test_the_same_seed_gives_the_same_bytes_on_any_number_of_workers(undisturbed, tmp_path):
    with open_client("local", 2) as client:
        play(tmp_path / "game", TINY, client=client)
        replay(tmp_path / "game", None, ReplayConfig(), client=client)
    assert contents(tmp_path / "game") == undisturbed


def test_another_seed_plays_otherwise(undisturbed, tmp_path):
    play(tmp_path, dataclasses.replace(TINY, seed=1))
    presses = [read_movie(path).presses.tobytes() for path in sorted(tmp_path.rglob("*.bk2"))]
    names = [str(path.relative_to(tmp_path)) for path in sorted(tmp_path.rglob("*.bk2"))]
    assert all(undisturbed[name] != (tmp_path / name).read_bytes() for name in names)
    assert len(set(presses)) == len(names) == 2


def test_finished_work_is_skipped_and_other_settings_are_refused(world, tmp_path):
    root = tmp_path / "game"
    shutil.copytree(world.root, root)
    before = {p: p.stat().st_mtime_ns for p in root.rglob("*") if p.suffix in (".bk2", ".mp4", ".parquet")}
    assert play(root, SMALL) == world.play_facts
    assert plan_play(root, SMALL)["n_done"] == 2
    assert replay(root, None, ReplayConfig())["n_replayed"] == 0
    assert plan_replay(root, None, ReplayConfig())["n_done"] == 6
    assert before == {p: p.stat().st_mtime_ns for p in before}
    with pytest.raises(ResumeError, match="other settings"):
        play(root, dataclasses.replace(SMALL, seed=5))
    with pytest.raises(ResumeError, match="other settings"):
        replay(root, None, ReplayConfig(crf=30))


def test_a_changed_or_half_done_recording_is_replayed_again(world, tmp_path):
    root = tmp_path / "game"
    shutil.copytree(world.root, root)
    videos = sorted(root.rglob("*.mp4"))
    videos[0].write_bytes(videos[0].read_bytes()[:-100])
    videos[1].with_suffix(".parquet").unlink()
    videos[2].with_suffix(".parquet").write_bytes(b"PAR1 cut")
    shutil.copy(videos[4].with_suffix(".parquet"), videos[3].with_suffix(".parquet"))
    assert replay(root, None, ReplayConfig())["n_replayed"] == 4
    assert contents(root) == contents(world.root)


CHILD = """
import sys
from vidbrain.config import from_mapping
from vidbrain.video.play import PlayConfig, play
from vidbrain.video.replay import ReplayConfig, replay
import json
root, settings = sys.argv[1], json.loads(sys.argv[2])
play(root, from_mapping(PlayConfig, settings))
replay(root, None, ReplayConfig())
"""


@pytest.mark.parametrize(
    "pattern", ["gamelogs/*.bk2", "func/*.tsv", "derivatives/**/*.part-*", "derivatives/**/*.parquet"]
)
def test_killed_anywhere_the_same_call_ends_with_the_same_bytes(undisturbed, tmp_path, pattern):
    root = tmp_path / "game"
    command = [sys.executable, "-c", CHILD, str(root), json.dumps(to_mapping(TINY))]
    child = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])})
    while child.poll() is None and not any(root.glob(f"**/{pattern}")):
        time.sleep(0.01)
    assert child.poll() is None, "it ended before it could be killed"
    child.send_signal(signal.SIGKILL)
    child.wait()
    unfinished = {p.name for p in root.rglob("*.mp4")} - {p.with_suffix(".mp4").name for p in root.rglob("*.parquet")}
    assert len(unfinished) <= 1
    play(root, TINY)
    replay(root, None, ReplayConfig())
    assert contents(root) == undisturbed


def test_lost_recordings_leave_rows_with_stale_numbers(tmp_path):
    config = dataclasses.replace(SMALL, n_runs=1, run_s=80.0, missing=0.5, seed=3)
    facts = play(tmp_path, config)
    rows = read_events(tmp_path).rows
    lost = [row for row in rows if row.movie is None]
    assert len(lost) == facts["n_missing"] > 0
    assert facts["n_recordings"] + facts["n_missing"] == len(rows)
    assert len(list(tmp_path.rglob("*.bk2"))) == len(list(tmp_path.rglob("gamelogs/*.json"))) == facts["n_recordings"]
    assert any(abs(row.duration_bk2_s - row.duration_s) > 0.2 for row in lost)
    assert plan_replay(tmp_path, None, ReplayConfig())["n_frames"] == facts["n_frames"]


def test_a_folder_and_a_file_replay_too(world, tmp_path):
    recording = next(r for r in find_recordings(world.root) if not r.skip_first_step)
    shutil.copy(recording.movie, tmp_path / "alone.bk2")
    assert replay(tmp_path / "alone.bk2", tmp_path / "one", ReplayConfig())["n_recordings"] == 1
    assert replay(tmp_path, tmp_path / "many", ReplayConfig())["n_recordings"] == 1
    expected = Path(recording.video).read_bytes()
    assert (tmp_path / "one/alone.mp4").read_bytes() == expected == (tmp_path / "many/alone.mp4").read_bytes()
    metadata = json.loads(pq.read_schema(tmp_path / "one/alone.parquet").metadata[b"vidbrain.replay"])
    assert metadata["game"] == "Airstriker-Genesis-v0"


def test_all_damaged_recordings_are_named_before_work(world, tmp_path, write_bk2):
    root = tmp_path / "game"
    shutil.copytree(world.root, root, ignore=shutil.ignore_patterns("derivatives"))
    first, second, third, *_ = sorted(root.rglob("*.bk2"))
    first.write_bytes(first.read_bytes()[:2000])
    write_bk2(second, n_lines=77)
    with pytest.raises(VideoError, match=r"2 recording\(s\) cannot be replayed") as caught:
        replay(root, None, ReplayConfig())
    assert first.name in str(caught.value)
    assert "77 input lines" in str(caught.value)
    assert third.name not in str(caught.value)
    assert not (root / "derivatives").exists()


def test_a_recording_of_another_game_is_refused_before_work(tmp_path, write_bk2):
    write_bk2(tmp_path / "in/other.bk2", game="SonicTheHedgehog-Genesis-v0")
    with pytest.raises(VideoError, match="no ROM of 'SonicTheHedgehog"):
        replay(tmp_path / "in", tmp_path / "out", ReplayConfig())
    assert not list(tmp_path.rglob("*.mp4*"))


def test_a_state_that_does_not_fit_leaves_nothing_behind(tmp_path, write_bk2):
    write_bk2(tmp_path / "in/odd.bk2", state=b"garbage")
    with pytest.raises(VideoError, match="does not fit"):
        replay(tmp_path / "in", tmp_path / "out", ReplayConfig())
    assert not [p for p in (tmp_path / "out").rglob("*") if p.is_file()]


def test_a_missing_rom_is_refused_before_the_tree_is_made(tmp_path):
    with pytest.raises(VideoError, match="no ROM"):
        play(tmp_path / "game", PlayConfig(game="SonicTheHedgehog-Genesis-v0"))
    assert not (tmp_path / "game").exists()


def test_another_data_set_is_not_overwritten(tmp_path):
    (tmp_path / "dataset_description.json").write_text('{"Name": "mine", "BIDSVersion": "1.9.0"}')
    with pytest.raises(ResumeError, match="another data set"):
        play(tmp_path, TINY)


@pytest.mark.parametrize(
    "wrong",
    [
        {"n_runs": 0},
        {"run_s": 0.5},
        {"repetition_s": (9.0, 3.0)},
        {"missing": 1.0},
        {"lives": 12},
        {"task": "air_striker"},
    ],
)
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(ConfigError):
        PlayConfig(**wrong)
    with pytest.raises(ConfigError):
        ReplayConfig(crf=99)
