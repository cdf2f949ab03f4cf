"""What a video file holds, found by reading it packet by packet; headers are not believed."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import av.error

from vidbrain.errors import VideoError

_SLACK_S = 0.25  # a container ends with its last frame or a piece of sound after it


@dataclass(frozen=True)
class VideoFacts:
    """Size and rate of a video.

    Attributes
    ----------
    n_frames
        Frames that a player shows; those that an edit list cuts away do not count.
    fps
        Frames per second of the file's own clock, on average where its rate varies (a recording's time on the
        scanner's clock is another matter).
    height, width
        In pixels, as a player shows them.
    turns
        Quarter turns, counter-clockwise, from the stored to the shown picture: 0 to 3. Phones store turned pictures.
    """

    n_frames: int
    fps: float
    height: int
    width: int
    turns: int = 0


@dataclass(frozen=True)
class _Packets:
    """What demuxing finds: frames shown, frames stored, shown frames' first and last time, the last time of all."""

    n_shown: int
    n_stored: int
    first: Fraction
    last: Fraction
    last_s: float


def probe(path: str | Path) -> VideoFacts:
    """Count the frames of a video; only the first is decoded, which says how the picture is turned.

    Raises
    ------
    VideoError
        If the file is missing, is no video, holds no frame, or holds fewer than it promises.
    """
    path = Path(path)
    if not path.is_file():
        raise VideoError("there is no such video", where=path)
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise VideoError("the file holds no video", where=path)
            stream = container.streams.video[0]
            promised, rate = stream.frames, stream.average_rate or stream.guessed_rate
            height, width = stream.codec_context.height, stream.codec_context.width
            found = _demux(container)
            length_s = (container.duration or 0) / av.time_base
        n_stored = found.n_stored
        if n_stored < promised:  # truncated, or cut by an edit list, which hides packets from a player
            with av.open(str(path), options={"ignore_editlist": "1"}) as container:
                n_stored = _demux(container).n_stored
        turns = _turns(path) if found.n_shown else 0
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise VideoError(
            f"the video cannot be read: {error}", where=path, likely="the file is truncated or is no video"
        ) from error
    if not found.n_shown or not height or not width or not rate:
        raise VideoError("the video holds no frame", where=path, likely="the recording was stopped before it began")
    # Some containers count their frames, the others state when they end.
    if n_stored < promised or found.last_s < length_s - _SLACK_S:
        wanted = promised or round(length_s * float(rate))
        raise VideoError(
            f"the video holds {n_stored} of about {wanted} frames",
            where=path,
            likely="the file is truncated",
            hint="fetch or copy it again",
        )
    if found.last > found.first:
        rate = (found.n_shown - 1) / (found.last - found.first)
    height, width = (width, height) if turns % 2 else (height, width)
    return VideoFacts(found.n_shown, float(rate), height, width, turns)


def _demux(container: av.container.InputContainer) -> _Packets:
    n_shown = n_stored = 0
    # Whole ticks of each stream's clock: a fraction a packet would take longer than the packet.
    shown: list[int] = []
    latest: dict[int, int] = {}
    chosen = container.streams.video[0].index
    for packet in container.demux():  # sound too: it may run on after the last frame
        if not packet.size:
            continue
        index, ticks = packet.stream_index, packet.pts
        if ticks is not None:
            latest[index] = max(latest.get(index, ticks), ticks)
        if index != chosen:
            continue
        n_stored += 1
        if not packet.is_discard:
            n_shown += 1
            if ticks is not None:
                shown.append(ticks)
    bases = {stream.index: stream.time_base or Fraction(1, av.time_base) for stream in container.streams}
    first, last = (min(shown) * bases[chosen], max(shown) * bases[chosen]) if shown else (Fraction(0), Fraction(0))
    last_s = max((float(ticks * bases[index]) for index, ticks in latest.items()), default=0.0)
    return _Packets(n_shown, n_stored, first, last, max(0.0, last_s))


def _turns(path: Path) -> int:
    with av.open(str(path)) as container:
        container.streams.video[0].codec_context.thread_count = 1
        frame = next(iter(container.decode(container.streams.video[0])), None)
    return 0 if frame is None else round(frame.rotation / 90) % 4
