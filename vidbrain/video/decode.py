"""Decoding: a video enters, blocks of RGB frames leave, in order, at the size asked for.

Two decoders agree on every frame to within rounding: decord is faster, PyAV runs everywhere. Both use one thread,
because the workers around them already use every core.
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import av
import av.error
import numpy as np
import pandas as pd
from av.video.reformatter import Interpolation, VideoReformatter
from numpy.typing import NDArray

from vidbrain.errors import VideoError
from vidbrain.records import Recording
from vidbrain.video.emulator import read_movie
from vidbrain.video.probe import VideoFacts, probe

Fit = Literal["squash", "crop", "pad"]
Frames = NDArray[np.uint8]
Decoder = Callable[[Path, VideoFacts, int, int, int], Iterator[Frames]]
"""(path, facts, height, width, block) -> blocks of frames scaled to height × width."""


def read_frames(
    path: str | Path,
    *,
    size: tuple[int, int] | None = None,
    fit: Fit = "squash",
    block: int = 256,
    decoder: str | None = None,
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
        Every source pixel has its share in a smaller frame (the scaler's filter widens as frames shrink).
    block
        Most frames in one array.
    decoder
        A name in `DECODERS`; default the first that fits this machine and file.

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
    scaled = _scaled(facts, height, width, fit)
    chosen = DECODERS[decoder] if decoder else _default()
    n_frames = 0
    for frames in chosen(path, facts, *scaled, block):
        n_frames += len(frames)
        yield _place(frames, height, width)
    if n_frames != facts.n_frames:
        raise VideoError(f"decoded {n_frames} of {facts.n_frames} frames", where=path, likely="the file is damaged")


def _scaled(facts: VideoFacts, height: int, width: int, fit: Fit) -> tuple[int, int]:
    if fit == "squash":
        return height, width
    scales = (height / facts.height, width / facts.width)
    scale = max(scales) if fit == "crop" else min(scales)
    scaled = max(1, round(facts.height * scale)), max(1, round(facts.width * scale))
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
    import decord

    try:
        # Made here, in the process that reads: a reader does not survive a fork. One thread: see above.
        reader = decord.VideoReader(str(path), ctx=decord.cpu(0), width=width, height=height, num_threads=1)
    except (decord.DECORDError, RuntimeError) as error:
        raise VideoError(f"decord cannot open the video: {error}", where=path) from error
    if len(reader) != facts.n_frames:  # edit lists and odd clocks: PyAV reads what is there
        yield from _by_pyav(path, facts, height, width, block)
        return
    for start in range(0, facts.n_frames, block):
        try:
            yield reader.get_batch(range(start, min(start + block, facts.n_frames))).asnumpy()
        except (decord.DECORDError, RuntimeError) as error:
            raise VideoError(f"decord stops near frame {start}: {error}", where=path) from error


def _by_pyav(path: Path, facts: VideoFacts, height: int, width: int, block: int) -> Iterator[Frames]:
    reformatter = VideoReformatter()  # one for all frames: making a scaler costs more than using it
    out, filled = np.empty((block, height, width, 3), np.uint8), 0
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1
            for frame in container.decode(stream):
                out[filled] = reformatter.reformat(
                    frame, width=width, height=height, format="rgb24", interpolation=Interpolation.BICUBIC, threads=1
                ).to_ndarray()
                filled += 1
                if filled == block:
                    yield out
                    out, filled = np.empty((block, height, width, 3), np.uint8), 0
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise VideoError(f"the video cannot be decoded: {error}", where=path, likely="the file is damaged") from error
    if filled:
        yield out[:filled]


DECODERS: dict[str, Decoder] = {"decord": _by_decord, "pyav": _by_pyav}
"""Open for more: a decoder is a function."""


def _default() -> Decoder:
    if sys.platform == "linux" and platform.machine() == "x86_64":
        try:
            import decord  # noqa: F401 -- only whether it is there
        except ImportError:
            return DECODERS["pyav"]
        return DECODERS["decord"]
    return DECODERS["pyav"]


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
