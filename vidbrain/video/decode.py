"""Decoding: a video enters, blocks of RGB frames leave, in order, at the size asked for.

Two decoders agree on every frame to within rounding. PyAV comes first: it runs everywhere and shrinks by exact area
averages while it converts colour (from 320x224 to 64x64 on one core 6,000 frames/s, decord's own scaler 3,900). Both
use one thread, because the workers around them already use every core.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Literal

import av
import av.error
import numpy as np
import pandas as pd
from av.video.reformatter import Interpolation, VideoReformatter
from numpy.typing import NDArray

from vidbrain.errors import MissingExtraError, VideoError
from vidbrain.records import Recording
from vidbrain.video.emulator import read_movie
from vidbrain.video.encode import picture_of
from vidbrain.video.probe import VideoFacts, probe

Fit = Literal["squash", "crop", "pad"]
Frames = NDArray[np.uint8]
Decoder = Callable[[Path, VideoFacts, int, int, int], Iterator[Frames]]
"""(path, facts, height, width, block) -> blocks of frames scaled to height x width."""


def read_frames(
    path: str | Path,
    *,
    size: tuple[int, int] | None = None,
    fit: Fit = "squash",
    block: int = 256,
    decoder: str = "pyav",
) -> Iterator[Frames]:
    """Decode a video from its first frame to its last.

    Parameters
    ----------
    path
        The video.
    size
        (height, width) of the frames that leave; default as stored.
    fit
        How another shape is met: ``"squash"`` changes the aspect, ``"crop"`` cuts the sides, ``"pad"`` adds black.
        A pixel of a smaller frame is the average of the area that it covers.
    block
        Most frames in one array.
    decoder
        A name in `DECODERS`.

    Yields
    ------
    (n, height, width, 3) uint8
        RGB, n <= block; together every frame once, in order.

    Raises
    ------
    VideoError
        If the video cannot be read to its end.
    """
    path = Path(path)
    facts = probe(path)  # first, and by PyAV: decord takes the whole process down on some damaged files
    height, width = size or (facts.height, facts.width)
    scaled = _scaled((facts.height, facts.width), height, width, fit)
    n_frames = 0
    for frames in DECODERS[decoder](path, facts, *scaled, block):
        n_frames += len(frames)
        yield _place(frames, height, width)
    if n_frames != facts.n_frames:
        raise VideoError(f"decoded {n_frames} of {facts.n_frames} frames", where=path, likely="the file is damaged")


def scale_frames(
    screens: Iterable[Frames], shape: tuple[int, int], size: tuple[int, int], fit: Fit, block: int = 256
) -> Iterator[Frames]:
    """Scale frames that come one by one, as `read_frames` scales those of a lossless video.

    Parameters
    ----------
    screens
        (H, W, 3) uint8 RGB each.
    shape
        (H, W).
    size, fit, block
        See `read_frames`.

    Yields
    ------
    (n, height, width, 3) uint8
    """
    reformatter, scaled = VideoReformatter(), _scaled(shape, *size, fit)
    held: list[Frames] = []
    for screen in screens:
        held.append(_to_rgb(reformatter, picture_of(screen), *scaled))
        if len(held) == block:
            yield _place(np.stack(held), *size)
            held = []
    if held:
        yield _place(np.stack(held), *size)


def _scaled(shape: tuple[int, int], height: int, width: int, fit: Fit) -> tuple[int, int]:
    if fit == "squash":
        return height, width
    scales = (height / shape[0], width / shape[1])
    scale = max(scales) if fit == "crop" else min(scales)
    scaled = max(1, round(shape[0] * scale)), max(1, round(shape[1] * scale))
    # Rounding must not leave a crop one pixel short or a pad one pixel over.
    bound = max if fit == "crop" else min
    return bound(scaled[0], height), bound(scaled[1], width)


def _place(frames: Frames, height: int, width: int) -> Frames:
    """Cut or pad frames around their centre."""
    n, h, w, channels = frames.shape
    if (h, w) == (height, width):
        return frames
    if h >= height and w >= width:
        top, left = (h - height) // 2, (w - width) // 2
        return np.ascontiguousarray(frames[:, top : top + height, left : left + width])
    out = np.zeros((n, height, width, channels), np.uint8)
    top, left = (height - h) // 2, (width - w) // 2
    out[:, top : top + h, left : left + w] = frames
    return out


def _by_decord(path: Path, facts: VideoFacts, height: int, width: int, block: int) -> Iterator[Frames]:
    try:
        import decord
    except ImportError:
        raise MissingExtraError(
            "decord is not installed", hint="its wheels are for Linux on x86-64; use pyav"
        ) from None
    try:
        # Made here, in the process that reads: a reader does not survive a fork.
        reader = decord.VideoReader(str(path), ctx=decord.cpu(0), num_threads=1)
    except (decord.DECORDError, RuntimeError) as error:
        raise VideoError(f"decord cannot open the video: {error}", where=path) from error
    if len(reader) != facts.n_frames or facts.turns:  # edit lists, odd clocks, phones: PyAV reads what is there
        yield from _by_pyav(path, facts, height, width, block)
        return
    reformatter = VideoReformatter()
    for start in range(0, facts.n_frames, block):
        try:
            frames = reader.get_batch(range(start, min(start + block, facts.n_frames))).asnumpy()
        except (decord.DECORDError, RuntimeError) as error:
            raise VideoError(f"decord stops near frame {start}: {error}", where=path) from error
        if (height, width) != (facts.height, facts.width):
            # Its own scaler is bilinear; the area average keeps what is small on the screen.
            frames = np.stack([_to_rgb(reformatter, picture_of(frame), height, width) for frame in frames])
        yield frames


def _to_rgb(reformatter: VideoReformatter, frame: av.VideoFrame, height: int, width: int) -> Frames:
    scaled = reformatter.reformat(
        frame, width=width, height=height, format="rgb24", interpolation=Interpolation.AREA, threads=1
    )
    return np.asarray(scaled.to_ndarray(), np.uint8)


def _by_pyav(path: Path, facts: VideoFacts, height: int, width: int, block: int) -> Iterator[Frames]:
    reformatter = VideoReformatter()  # one for all frames: making a scaler costs more than using it
    stored = (width, height) if facts.turns % 2 else (height, width)
    out, filled = np.empty((block, height, width, 3), np.uint8), 0
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1
            for frame in container.decode(stream):
                rgb = _to_rgb(reformatter, frame, *stored)
                out[filled] = np.rot90(rgb, facts.turns) if facts.turns else rgb
                filled += 1
                if filled == block:
                    yield out
                    out, filled = np.empty((block, height, width, 3), np.uint8), 0
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise VideoError(f"the video cannot be decoded: {error}", where=path, likely="the file is damaged") from error
    if filled:
        yield out[:filled]


DECODERS: dict[str, Decoder] = {"pyav": _by_pyav, "decord": _by_decord}
"""Open for more: a decoder is a function."""


def read_table(recording: Recording) -> pd.DataFrame:
    """Read what the player did and what the game's memory held, frame by frame.

    Parameters
    ----------
    recording
        With a replayed `video` (its table lies beside it), or with a `movie` only.

    Returns
    -------
    DataFrame
        A row a frame: ``frame`` int64, a bool column for each button (``A``, ``B``, …), and, where the recording has
        been replayed, an int64 column for each RAM variable.

    Raises
    ------
    VideoError
        If the recording has neither table nor recorded input.
    """
    path = Path(recording.video).with_suffix(".parquet") if recording.video else None
    if path is not None and path.is_file():
        try:
            return pd.read_parquet(path)
        except (OSError, ValueError) as error:
            raise VideoError(f"the table cannot be read: {error}", where=path) from error
    if recording.movie is None:
        raise VideoError(
            "the recording has no table of buttons",
            where=recording.video or recording.key,
            likely="it is a video without recorded input",
        )
    movie = read_movie(recording.movie)
    presses = movie.presses[int(recording.skip_first_step) :]
    return pd.DataFrame({"frame": np.arange(len(presses)), **dict(zip(movie.buttons, presses.T, strict=True))})
