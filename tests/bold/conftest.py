"""A tiny game-play tree with real video, a simulation of it, and its BOLD store; made once for all tests."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pandas as pd
import pytest

from vidbrain.bold.ingest import ingest
from vidbrain.bold.simulation.experiment import SimulateConfig
from vidbrain.bold.simulation.simulate import DERIVATIVE, simulate
from vidbrain.bold.store import BoldStore, open_bold

FRAMES = 700
REPETITIONS = ((0.5, 70.0), (76.4, 72.5))
CONFIG = SimulateConfig(resolution_mm=12, ceiling=0.65, seed=3)


def write_game_video(path: Path, frames: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=60)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv444p"
        stream.options = {"crf": "12", "preset": "ultrafast"}
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def game_frames(rng: np.random.Generator, n: int = FRAMES, height: int = 48, width: int = 64) -> np.ndarray:
    """Two bright squares that wander over a background whose corners brighten and darken."""
    frames = np.zeros((n, height, width, 3), np.uint8)
    glow = np.cumsum(rng.normal(size=(n, 4, 4)), axis=0)
    glow = 70 + 25 * np.sin(glow / 6)
    frames[:] = np.repeat(np.repeat(glow, height // 4, axis=1), width // 4, axis=2)[..., None].astype(np.uint8)
    for _ in range(2):
        walk = np.cumsum(rng.normal(scale=1.5, size=(n, 2)), axis=0) + rng.uniform(0, 40, size=2)
        for frame, (y, x) in zip(frames, walk, strict=True):
            top, left = int(abs(y)) % (height - 8), int(abs(x)) % (width - 8)
            frame[top : top + 8, left : left + 8] = 235
    return frames


def write_game_tree(root: Path, runs: tuple[str, ...] = ("run-01", "run-02"), frames: int = FRAMES) -> Path:
    """Events, replayed videos and their tables, laid out as `vidbrain replay` leaves them."""
    rng = np.random.default_rng(11)
    root.mkdir(parents=True, exist_ok=True)
    (root / "dataset_description.json").write_text(json.dumps({"Name": "tiny", "BIDSVersion": "1.8.0"}))
    for run in runs:
        rows = []
        for repetition, (onset_s, duration_s) in enumerate(REPETITIONS, start=1):
            stem = f"sub-01_ses-001_task-toy_{run}_level-1_rep-{repetition:02d}"
            video = root / "derivatives" / "replay" / "sub-01" / "ses-001" / f"{stem}.mp4"
            write_game_video(video, game_frames(rng, frames))
            presses = {name: rng.random(frames) < 0.5 * (1 + np.sin(np.arange(frames) / 40)) for name in ("B", "LEFT")}
            score = np.cumsum(rng.random(frames) < 0.02) * 100
            lives = 3 - np.searchsorted([frames // 3, frames // 2], np.arange(frames))
            pd.DataFrame({"frame": np.arange(frames), **presses, "score": score, "lives": lives}).to_parquet(
                video.with_suffix(".parquet")
            )
            movie = f"sub-01/ses-001/gamelogs/{stem}.bk2"
            rows.append(("gym-retro_game", onset_s, duration_s, frames / 60, "1-0", movie))
        columns = ["trial_type", "onset", "duration", "duration_bk2", "level", "stim_file"]
        events = root / "sub-01" / "ses-001" / "func" / f"sub-01_ses-001_task-toy_{run}_events.tsv"
        events.parent.mkdir(parents=True, exist_ok=True)
        pd.DataFrame(rows, columns=columns).to_csv(events, sep="\t", index=False)
    return root


@pytest.fixture(scope="session")
def make_video() -> Callable[[Path, int], Path]:
    def make(path: Path, n: int) -> Path:
        write_game_video(path, game_frames(np.random.default_rng(0), n))
        return path

    return make


@pytest.fixture(scope="session")
def make_tree() -> Callable[..., Path]:
    return write_game_tree


@pytest.fixture(scope="session")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_game_tree(tmp_path_factory.mktemp("game") / "tree")


@pytest.fixture(scope="session")
def derivatives(tree: Path) -> Path:
    simulate(tree, config=CONFIG)
    return tree / DERIVATIVE


@pytest.fixture(scope="session")
def store_root(derivatives: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("store") / "bold"
    ingest(derivatives, out)
    return out


@pytest.fixture
def copied_store(store_root: Path, tmp_path: Path) -> BoldStore:
    """A store that a test may change."""
    return open_bold(shutil.copytree(store_root, tmp_path / "bold"))
