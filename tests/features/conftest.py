"""A small data set of shards with two runs, made from real files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from vidbrain.cluster import client as open_client
from vidbrain.sharding.plan import ShardConfig
from vidbrain.sharding.writer import write_shards
from vidbrain.testing.videos import toy_frames, write_video

EVENTS = {
    # Awkward on purpose: onsets between volumes, a gap, a recording shorter than a clip, a lost one.
    "run-01": [("rep-01", 0.0107, 301, 5.02), ("rep-02", 8.33, 140, 2.33)],
    "run-02": [("rep-03", 0.9, 50, 0.835), (None, 2.0, 0, 3.0), ("rep-04", 7.1, 200, 3.34)],
}


@dataclass(frozen=True)
class World:
    """Where the shards are, and the onset, frames and duration of every recording by run label."""

    game: Path
    data: Path
    clocks: dict[str, list[tuple[str, float, int, float]]]


def buttons(n_frames: int) -> pd.DataFrame:
    """A table as a replay leaves it."""
    rng = np.random.default_rng(n_frames)
    held = {name: np.repeat(rng.random(n_frames // 7 + 1) < 0.4, 7)[:n_frames] for name in ("B", "UP", "LEFT")}
    return pd.DataFrame({"frame": np.arange(n_frames), **held, "score": np.arange(n_frames) // 50})


def write_game(game: Path, events: dict, side: int) -> tuple[Path, dict]:
    """Write replayed game play as BIDS; return its folder, and the clock of every recording by run."""
    func = game / "sub-01" / "ses-001" / "func"
    func.mkdir(parents=True)
    clocks: dict[str, list[tuple[str, float, int, float]]] = {}
    for number, (run, rows) in enumerate(events.items(), start=1):
        stem = f"sub-01_ses-001_task-toy_{run}"
        lines = ["trial_type\tonset\tduration\tduration_bk2\tlevel\tstim_file"]
        for rep, onset_s, n_frames, duration_s in rows:
            key = f"{stem}_level-1_{rep}"
            movie = "Missing file" if rep is None else f"sub-01/ses-001/gamelogs/{key}.bk2"
            lines.append(f"gym-retro_game\t{onset_s}\t{duration_s}\t{n_frames / 60}\t1-0\t{movie}")
            if rep is not None:
                video = game / "derivatives" / "replay" / "sub-01" / "ses-001" / f"{key}.mp4"
                write_video(video, toy_frames(n_frames, height=side, width=side, seed=n_frames))
                buttons(n_frames).to_parquet(video.with_suffix(".parquet"))
                clocks.setdefault(f"sub-01_ses-001_task-toy_run-{number}", []).append(
                    (key, onset_s, n_frames, duration_s)
                )
        (func / f"{stem}_events.tsv").write_text("\n".join(lines) + "\n")
    (game / "dataset_description.json").write_text('{"Name": "toy", "BIDSVersion": "1.9.0"}')
    return game, clocks


@pytest.fixture(scope="session")
def make_game():
    return write_game


@pytest.fixture(scope="session")
def world(tmp_path_factory) -> World:
    root = tmp_path_factory.mktemp("world")
    game, clocks = write_game(root / "game", EVENTS, side=32)
    write_shards(game, root / "data", ShardConfig(frame_size=32, segment_frames=64, shard_frames=256))
    return World(game, root / "data", clocks)


@pytest.fixture(scope="session")
def workers():
    """Two worker processes, started once."""
    with open_client("local", 2) as client:
        yield client


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)
