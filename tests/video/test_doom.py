from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from vidbrain.errors import ConfigError, MissingExtraError, ResumeError, VideoError
from vidbrain.sharding.listing import list_source
from vidbrain.video.decode import probe, read_frames, read_table
from vidbrain.video.doom import BUTTONS, FPS, Doom, Thing, View
from vidbrain.video.explorer import STYLES, Explorer
from vidbrain.video.gamelogs import read_events
from vidbrain.video.play import PlayConfig, plan_play, play
from vidbrain.video.sources import find_recordings

SHORT = PlayConfig(game="freedoom2", task="doom", n_sessions=1, n_runs=1, run_s=38.0, repetition_s=(3.0, 4.0))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two subjects of Doom beside one of the console, in one tree."""
    root = tmp_path_factory.mktemp("both") / "game"
    play(root, PlayConfig(n_sessions=1, n_runs=1, run_s=4.0))
    play(root, SHORT)
    return root


def held(*names: str) -> np.ndarray:
    return np.array([name in names for name in BUTTONS], np.uint8)


def frames_of(level: str, seed: int, n: int = 40) -> np.ndarray:
    with Doom("freedoom2") as game:
        game.start(level, seed)
        screens = []
        for number in range(n):
            game.step(held("MOVE_FORWARD", "TURN_LEFT" if number % 3 else "ATTACK"))
            screens.append(game.screen())
    return np.stack(screens)


def test_the_same_seed_and_buttons_give_the_same_frames_and_other_levels_others():
    first = frames_of("map01", 1)
    assert first.shape == (40, 120, 160, 3)
    assert (first == frames_of("map01", 1)).all()
    assert (first != frames_of("map02", 1)).mean() > 0.3


def test_a_game_that_went_before_leaves_no_trace():
    with Doom("freedoom2") as game:
        game.start("map03", 9)
        for _ in range(30):
            game.step(held("MOVE_FORWARD", "SPEED"))
        game.start("map01", 1)
        for number in range(40):
            game.step(held("MOVE_FORWARD", "TURN_LEFT" if number % 3 else "ATTACK"))
        assert (game.screen() == frames_of("map01", 1)[-1]).all()


def test_what_is_walked_and_turned_is_seen_in_the_variables(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with Doom("freedoom2") as game:
        game.start("map01", 1)
        before = dict(zip(game.variables, game.read_variables(), strict=True))
        for _ in range(20):
            game.step(held("MOVE_FORWARD"))
        walked = dict(zip(game.variables, game.read_variables(), strict=True))
        for _ in range(20):
            game.step(held("TURN_LEFT"))
        turned = dict(zip(game.variables, game.read_variables(), strict=True))
        view = game.view()
        assert not game.is_over()
    assert np.hypot(walked["x"] - before["x"], walked["y"] - before["y"]) > 30
    assert 30 < (turned["angle"] - walked["angle"]) % 360 < 75  # 3.5 degrees a frame, half as fast at first
    assert before["health"] == 100
    assert view.depth.shape == (120, 160)
    assert view.depth.std() > 1
    assert list(tmp_path.iterdir()) == []  # the game leaves nothing where it is called


def test_unknown_games_and_levels_and_a_missing_extra_are_refused(tmp_path, monkeypatch):
    with pytest.raises(VideoError, match="no game 'doom2'"):
        Doom("doom2")
    with pytest.raises(VideoError, match="no level map77") as error:
        play(tmp_path / "a", PlayConfig(game="freedoom2", task="doom", levels=("map01", "map77")))
    assert "map32" in str(error.value)
    with pytest.raises(ConfigError, match="takes no integration"):
        play(tmp_path / "a", SHORT, integration=tmp_path)
    with pytest.raises(ConfigError, match="no levels to choose"):
        PlayConfig(levels=("2-0",))
    monkeypatch.setitem(sys.modules, "vizdoom", None)
    with pytest.raises(MissingExtraError, match="ViZDoom") as missing:
        play(tmp_path / "a", SHORT)
    assert "vidbrain[doom]" in str(missing.value)
    assert not (tmp_path / "a").exists()


def test_one_tree_holds_two_games(root):
    rows = [row for row in read_events(root).rows if row.run.task == "doom"]
    assert [row.level for row in rows] == ["map01", "map02", "map03", "map01"][: len(rows)]
    assert len(rows) >= 2
    found = find_recordings(root)
    assert {r.run.task for r in found} == {"doom", "airstriker"}
    listing = list_source(root).listing
    for item in listing:
        recording = item.recording
        assert (recording.video is None) == (recording.run.task == "airstriker")
        assert (recording.movie is None) == (recording.run.task == "doom")
        assert recording.skip_first_step == (recording.run.task == "airstriker")
    assert "freedoom2" in (root / "dataset_description.json").read_text()
    plan = plan_play(root, SHORT)
    assert plan["n_done"] == plan["n_runs"] == 1
    with pytest.raises(ResumeError, match="other settings"):
        plan_play(root, PlayConfig(game="freedoom1", task="doom"))
    assert plan_play(root, PlayConfig(n_sessions=1, n_runs=1, run_s=4.0))["n_done"] == 1


def test_the_video_and_its_table_are_what_was_played(root):
    for recording in (r for r in find_recordings(root) if r.run.task == "doom"):
        facts, table = probe(recording.video), read_table(recording)
        assert (facts.height, facts.width, facts.fps) == (120, 160, FPS)
        assert len(table) == facts.n_frames
        assert facts.n_frames / recording.duration_s == pytest.approx(FPS, rel=0.01)
        assert set(BUTTONS) < set(table)
        assert table["MOVE_FORWARD"].dtype == bool
        # Where the table says that the player turned and walked, the picture moved; where it did neither, much less.
        frames = np.concatenate(list(read_frames(recording.video, size=(30, 40)))).astype(int)
        change = np.abs(np.diff(frames, axis=0)).mean(axis=(1, 2, 3))
        speed = np.hypot(*np.diff(table[["x", "y"]].to_numpy(), axis=0).T) + abs(np.diff(table["angle"])) % 360
        assert change[speed > 3].mean() > 2 * change[speed == 0].mean()


def test_the_bytes_depend_on_the_seed_alone(root, tmp_path):
    play(tmp_path, SHORT)
    mine = {p.name: p.read_bytes() for p in tmp_path.rglob("*task-doom*") if p.is_file()}
    theirs = {p.name: p.read_bytes() for p in root.rglob("*task-doom*") if p.is_file()}
    assert len(mine) > 6
    assert mine == theirs


def corridor(monsters: tuple[Thing, ...] = (), left: int = 20, right: int = 20, ahead: int = 60) -> View:
    depth = np.full((120, 160), ahead, np.uint8)
    depth[:, :50], depth[:, 110:] = left, right
    return View(depth, monsters)


def pressed(view: View, monkeypatch: pytest.MonkeyPatch, style: str = "hunt") -> set[str]:
    monkeypatch.setattr("vidbrain.video.explorer.STYLES", dict.fromkeys(STYLES, STYLES[style]))
    mask = Explorer(BUTTONS, np.random.default_rng(2), 1.0).act(view)
    return {name for name, down in zip(BUTTONS, mask, strict=True) if down}


def test_the_explorer_turns_to_a_monster_and_shoots_it(monkeypatch):
    assert "TURN_LEFT" in pressed(corridor((Thing("Monster", 10, 50, 10, 20),)), monkeypatch)
    assert "TURN_RIGHT" in pressed(corridor((Thing("Monster", 140, 50, 10, 20),)), monkeypatch)
    assert "ATTACK" in pressed(corridor((Thing("Monster", 76, 50, 10, 20),)), monkeypatch)
    assert "ATTACK" not in pressed(corridor((Thing("Armor", 76, 50, 10, 20),)), monkeypatch)


def test_the_explorer_walks_where_there_is_room(monkeypatch):
    monkeypatch.setitem(STYLES, "straight", STYLES["rush"].__class__(courage=0, wander=0, run=0, strafe=0))
    assert "MOVE_FORWARD" in pressed(corridor(), monkeypatch, "straight")
    assert pressed(corridor(left=90), monkeypatch, "straight") >= {"MOVE_FORWARD", "TURN_LEFT"}
    assert pressed(corridor(right=90), monkeypatch, "straight") >= {"MOVE_FORWARD", "TURN_RIGHT"}


def test_the_explorer_is_a_function_of_seed_and_view():
    def presses(seed: int) -> bytes:
        player = Explorer(BUTTONS, np.random.default_rng(seed), 0.5)
        masks = [player.act(corridor(left=n % 90) if player.looks else None) for n in range(600)]
        return np.stack(masks).tobytes()

    assert presses(1) == presses(1) != presses(2)


def test_events_of_other_trials_are_passed_over(root, tmp_path):
    events = next(root.rglob("*task-doom*_events.tsv"))
    table = pd.read_csv(events, sep="\t", dtype=str)
    table["trial_type"] = "rest"
    (tmp_path / "sub-01/ses-001/func").mkdir(parents=True)
    table.to_csv(tmp_path / "sub-01/ses-001/func" / events.name, sep="\t", index=False)
    assert read_events(tmp_path).rows == ()
