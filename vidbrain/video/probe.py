"""What a video file holds, found by reading it packet by packet; headers are not believed."""

from __future__ import annotations

from dataclasses import dataclass
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
        Frames that the file holds.
    fps
        Frames per second of the file's own clock (a recording's time on the scanner's clock is another matter).
    height, width
        In pixels.
    """

    n_frames: int
    fps: float
    height: int
    width: int


def probe(path: str | Path) -> VideoFacts:
    """Count the frames of a video without decoding them.

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
            context = stream.codec_context
            promised, rate = stream.frames, stream.average_rate or stream.guessed_rate
            height, width = context.height, context.width
            n_frames, last_s = 0, 0.0
            for packet in container.demux():  # sound too: it may run on after the last frame
                if packet.size and packet.stream_index == stream.index:
                    n_frames += 1
                if packet.size and packet.pts is not None:
                    last_s = max(last_s, float(packet.pts * packet.time_base))
            length_s = (container.duration or 0) / av.time_base
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise VideoError(
            f"the video cannot be read: {error}", where=path, likely="the file is truncated or is no video"
        ) from error
    if not n_frames or not height or not width or not rate:
        raise VideoError("the video holds no frame", where=path, likely="the recording was stopped before it began")
    # Some containers count their frames, the others state when they end.
    if n_frames < promised or last_s < length_s - _SLACK_S:
        wanted = promised or round(length_s * float(rate))
        raise VideoError(
            f"the video holds {n_frames} of about {wanted} frames",
            where=path,
            likely="the file is truncated",
            hint="fetch or copy it again",
        )
    return VideoFacts(n_frames, float(rate), height, width)
