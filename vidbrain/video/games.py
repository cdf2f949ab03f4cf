"""Games that are recorded: a scripted player and a seed enter, one repetition's files leave.

A console's repetition is a `.bk2`: its input, from which the emulator makes the frames again. Doom's is a video with a
table of each frame, because a Doom engine of another version would play the same input differently.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from vidbrain.errors import ConfigError
from vidbrain.storage import atomic
from vidbrain.video import doom
from vidbrain.video.doom import Doom
from vidbrain.video.emulator import Emulator, read_movie, rewrite_deterministic
from vidbrain.video.encode import ScreenWriter
from vidbrain.video.explorer import Explorer
from vidbrain.video.player import Player
from vidbrain.video.replay import ReplayConfig

Facts = dict[str, Any]
"""What a recording's sidecar says."""


class Game(Protocol):
    """A game that runs, and records repetition after repetition. Use it in a ``with`` block.

    Attributes
    ----------
    trial_type
        As the events call a repetition.
    suffix
        Of the recorded file.
    fps
        Frames in a second of the game's own clock.
    records_reset
        Whether the first recording of a run begins with a frame that is not part of the play.
    levels
        Names of the levels that it has, as the events call them.
    """

    trial_type: str
    suffix: str
    fps: int
    records_reset: bool
    levels: tuple[str, ...]

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...

    def record(
        self, path: Path, level: str, rng: np.random.Generator, n_most: int, is_first: bool
    ) -> tuple[int, Facts]:
        """Play one repetition until it is over, at most `n_most` frames; its file appears whole.

        Parameters
        ----------
        path
            The file, with `suffix`.
        level
            One of `levels`.
        rng
            Decides the start and the player.
        n_most
            Frames.
        is_first
            Whether it is the first of a run.

        Returns
        -------
        int
            Frames.
        dict
            For the sidecar.
        """
        ...


class ConsoleGame:
    """A game of the emulator, recorded as `.bk2`."""

    trial_type = "gym-retro_game"
    suffix = ".bk2"
    fps = 60
    records_reset = True
    levels: tuple[str, ...] = ("1-0",)

    def __init__(self, game: str, lives: int, integration: str | Path | None) -> None:
        self._console = Emulator(game, integration=integration)
        variable = "lives" if "lives" in self._console.variables else None
        self._starts = [self._console.start_state(variable, n) for n in range(max(1, lives - 2), lives + 1)]

    def __enter__(self) -> ConsoleGame:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._console.close()

    def record(
        self, path: Path, level: str, rng: np.random.Generator, n_most: int, is_first: bool
    ) -> tuple[int, Facts]:
        """See `Game`."""
        console, n_frames = self._console, 0
        player = Player(console.buttons, np.random.default_rng(rng.integers(2**63)), float(rng.uniform(0.3, 1)))
        start = self._starts[rng.integers(len(self._starts))]
        with atomic.replacing(path) as part, tempfile.TemporaryDirectory() as folder:
            draft = Path(folder) / "draft.bk2"
            # A recording that begins before the reset holds one line more. Real studies have it on each run's first
            # recording, and replay discards it there and only there: so it is here.
            if is_first:
                console.load(start)
                console.start_recording(draft)
                console.reset(start)
            else:
                console.reset(start)
                console.start_recording(draft)
            while n_frames < n_most and not console.is_over():
                console.step(player.act(console.screen() if player.looks else None))
                n_frames += 1
            ram = dict(zip(console.variables, console.read_ram(), strict=True))
            console.stop_recording()
            rewrite_deterministic(draft, part)
        return n_frames, {"cleared": False, **({"end_score": ram["score"]} if "score" in ram else {})}


class DoomGame:
    """A game of Doom, recorded as a video with a table beside it: buttons and variables of each frame."""

    trial_type = "vizdoom_game"
    suffix = ".mp4"
    fps = doom.FPS
    records_reset = False

    def __init__(self, game: str) -> None:
        self._doom = Doom(game)
        self.levels = self._doom.levels

    def __enter__(self) -> DoomGame:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._doom.close()

    def record(
        self, path: Path, level: str, rng: np.random.Generator, n_most: int, is_first: bool
    ) -> tuple[int, Facts]:
        """See `Game`."""
        game, quality, skill = self._doom, ReplayConfig(), float(rng.uniform(0.3, 1))
        player = Explorer(game.buttons, np.random.default_rng(rng.integers(2**63)), skill)
        game.start(level, int(rng.integers(2**31)), int(rng.integers(1, 5)))
        presses: list[NDArray[np.uint8]] = []
        values: list[tuple[int, ...]] = []
        path.with_suffix(".parquet").unlink(missing_ok=True)
        with (
            atomic.replacing(path) as part,
            ScreenWriter(
                part,
                game.shape,
                fps=self.fps,
                crf=quality.crf,
                preset=quality.preset,
                keyframe_every=quality.keyframe_every,
            ) as video,
        ):
            while len(presses) < n_most and not game.is_over():
                presses.append(player.act(game.view() if player.looks else None))
                game.step(presses[-1])
                values.append(game.read_variables())
                video.write(game.screen())
        columns = {
            "frame": np.arange(len(presses)),
            **dict(zip(game.buttons, np.stack(presses).view(np.bool_).T, strict=True)),
            **dict(zip(game.variables, np.array(values, np.int64).T, strict=True)),
        }
        with atomic.replacing(path.with_suffix(".parquet")) as part:
            pq.write_table(pa.table(columns), part, compression="zstd")
        return len(presses), {"cleared": game.is_cleared(), "end_kills": int(columns["kills"][-1])}


def open_game(game: str, *, lives: int, integration: str | Path | None = None) -> Game:
    """Start a game by its name.

    Raises
    ------
    ConfigError
        If an integration is given for a game that takes none.
    MissingExtraError, VideoError
        If it cannot be played here.
    """
    if game not in doom.GAMES:
        return ConsoleGame(game, lives, integration)
    if integration is not None:
        raise ConfigError(f"{game} takes no integration", where=integration, hint="leave --integration out")
    return DoomGame(game)


def count_recorded(path: Path, *, is_first: bool) -> int:
    """Count the frames of a recording without decoding it, by a movie's input lines or the rows of a video's table."""
    if path.suffix == ConsoleGame.suffix:
        return read_movie(path).n_lines - is_first
    return int(pq.read_metadata(path.with_suffix(".parquet")).num_rows)
