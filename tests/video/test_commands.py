from __future__ import annotations

import json

from vidbrain.cli.app import run
from vidbrain.cli.play import play
from vidbrain.cli.replay import replay
from vidbrain.storage.locks import LOCK
from vidbrain.video.play import PlayConfig
from vidbrain.video.replay import ReplayConfig
from vidbrain.video.sources import REPLAY

SHORT = PlayConfig(n_sessions=1, n_runs=1, run_s=5.0)


def test_play_and_replay_from_the_command_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("VIDBRAIN_DATA", str(tmp_path))

    def said() -> dict:
        return json.loads(capsys.readouterr().out)

    play(config=SHORT, dry_run=True, json=True)
    assert said() == {"n_runs": 1, "n_done": 0, "n_frames_at_most": 300, "n_bytes_about": 500_000}
    assert not (tmp_path / "game").exists()
    play(config=SHORT, scheduler="inline", json=True)
    played = said()
    replay(dry_run=True, json=True)
    planned = said()
    assert (planned["n_done"], planned["n_frames"]) == (0, played["n_frames"])
    assert not (tmp_path / "game/derivatives").exists()
    replay(config=ReplayConfig(), scheduler="inline", json=True)
    assert said()["n_frames"] == played["n_frames"] > 250
    replay(dry_run=True, json=True)
    assert said()["n_done"] == 1


def test_a_second_process_is_refused(tmp_path, holding, capsys):
    game = tmp_path / "game"
    playing = ["play", str(game), "--n-sessions", "1", "--n-runs", "1", "--run-s", "5", "--scheduler", "inline"]
    replaying = ["replay", str(game), "--scheduler", "inline"]
    for words, where, out in ((playing, "play._play_run", game), (replaying, "replay._replay_one", game / REPLAY)):
        with holding(f"vidbrain.video.{where}", *words):
            assert run(words) == 1
            assert "another process writes here" in " ".join(capsys.readouterr().err.split())
        assert not (out / LOCK).exists()
        assert run(words) == 0
