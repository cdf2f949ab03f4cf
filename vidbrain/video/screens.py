"""Recordings -> frames, whether they are videos or recorded input that only the emulator can show."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path

from vidbrain.errors import VideoError
from vidbrain.records import Recording
from vidbrain.video.decode import Fit, Frames, read_frames, scale_frames
from vidbrain.video.emulator import Emulator, Movie, read_movie
from vidbrain.video.probe import probe
from vidbrain.video.replay import FPS


@dataclass(frozen=True)
class Facts:
    """What a recording gives: frames, their nominal rate, bytes of its file, and the game of recorded input."""

    n_frames: int
    fps: float
    n_bytes: int
    game: str | None = None


def recording_facts(recording: Recording) -> Facts:
    """Count the frames of a recording without decoding or replaying it.

    Raises
    ------
    VideoError
        If its file is missing, damaged or empty.
    """
    if recording.video is not None:
        found = probe(recording.video)
        return Facts(found.n_frames, found.fps, Path(recording.video).stat().st_size)
    movie = read_movie(recording.movie or "")
    n_frames = movie.n_lines - recording.skip_first_step
    if n_frames < 1:
        raise VideoError("the recording holds no frame", where=recording.movie)
    return Facts(n_frames, float(FPS), Path(recording.movie or "").stat().st_size, movie.game)


def recording_frames(
    recording: Recording, *, size: tuple[int, int], fit: Fit = "squash", integration: str | Path | None = None
) -> Generator[Frames, None, None]:
    """Yield blocks of a recording's frames, from the first to the last.

    A movie cannot be sought: its frames come from one replay from its start, as they were on the screen, never
    compressed in between.

    Parameters
    ----------
    recording
        Its `video` is decoded; where it has none, its `movie` is replayed.
    size
        (height, width) of the frames that leave.
    fit
        See `vidbrain.video.decode.read_frames`.
    integration
        See `vidbrain.video.emulator.Emulator`.

    Yields
    ------
    (n, height, width, 3) uint8

    Raises
    ------
    VideoError
        If it cannot be read to its end.
    """
    if recording.video is not None:
        yield from read_frames(recording.video, size=size, fit=fit)
        return
    movie = read_movie(recording.movie or "", with_state=True)
    with Emulator(movie.game, integration=integration, empty=True) as console:
        screens = _screens(console, movie, recording.skip_first_step)
        yield from scale_frames(screens, console.shape, size, fit)


def _screens(console: Emulator, movie: Movie, skip_first_step: bool) -> Iterator[Frames]:
    masks = console.masks(movie)[int(skip_first_step) :]
    console.reset(movie.state)
    for mask in masks:
        console.step(mask)
        yield console.screen()
