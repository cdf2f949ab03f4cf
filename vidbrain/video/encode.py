"""Encoding: frames of a screen enter one by one, a video file leaves."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter
from numpy.typing import NDArray


def picture_of(screen: NDArray[np.uint8]) -> av.VideoFrame:
    """Give a frame (height, width, 3) uint8 RGB to FFmpeg without a copy: the picture lies in the array's memory.

    PyAV's copy, row by row, takes as long as scaling a console's screen to 64 by 64.
    """
    return av.VideoFrame.from_numpy_buffer(np.ascontiguousarray(screen), format="rgb24")


class ScreenWriter:
    """Writes an mp4 in H.264 4:4:4 whose bytes depend on the frames and settings alone. Use it in a ``with`` block.

    Parameters
    ----------
    path
        The file.
    shape
        (height, width).
    fps
        Rate in the file's header.
    crf
        x264 quality: lower is better and larger; 0 is lossless but for the conversion of colour.
    preset
        x264 effort.
    keyframe_every
        Frames between two points where decoding can begin.
    """

    def __init__(
        self, path: str | Path, shape: tuple[int, int], *, fps: int, crf: int, preset: str, keyframe_every: int
    ) -> None:
        self._container = av.open(str(path), "w", format="mp4", options={"fflags": "+bitexact"})
        self._stream = self._container.add_stream(
            "libx264",
            rate=fps,
            options={
                "crf": str(crf),
                "preset": preset,
                "bf": "0",
                "g": str(keyframe_every),
                "threads": "1",  # the workers around this one use the other cores; and bytes must not depend on cores
                "flags": "+bitexact",
                "x264-params": "cabac=1",  # which "ultrafast" leaves out: smaller at no cost here
            },
        )
        # Colour on the screen becomes full-resolution luma and chroma: halved chroma would blur sprites of one pixel.
        # BT.601 in limited range, tagged: what every decoder assumes, or reads.
        (self._stream.height, self._stream.width), self._stream.pix_fmt = shape, "yuv444p"
        context = self._stream.codec_context
        context.color_range, context.colorspace = ColorRange.MPEG, Colorspace.ITU601
        context.color_primaries, context.color_trc = 6, 6  # SMPTE 170M
        self._reformatter, self._n_frames = VideoReformatter(), 0

    def __enter__(self) -> ScreenWriter:
        return self

    def write(self, screen: NDArray[np.uint8]) -> None:
        """Append a frame, (height, width, 3) uint8 RGB."""
        frame = self._reformatter.reformat(
            picture_of(screen),
            format="yuv444p",
            dst_colorspace=Colorspace.ITU601,
            dst_color_range=ColorRange.MPEG,
            threads=1,
        )
        frame.pts = self._n_frames
        self._n_frames += 1
        self._container.mux(self._stream.encode(frame))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            self._container.mux(self._stream.encode())
        self._container.close()
