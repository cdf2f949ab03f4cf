"""The codec of stills: the frames of a part side by side on one JPEG sheet."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from vidbrain.errors import ConfigError, ShardError
from vidbrain.sharding.parts import PART_FRAMES, Codec, Frames, check_count

QUALITY = 95
SIDE = 4
"""A full sheet has four rows of four frames, read like a page; the last part of a segment may be one row of fewer."""
_MOST_PIXELS = 89_478_485  # a larger picture is a bomb to Pillow
_LONGEST_SIDE = 65_500  # of libjpeg


class JpegSheet(Codec):
    """Each part is one JPEG of quality 95 in 4:4:4; the member is a stream of motion JPEG, which FFmpeg plays.

    It keeps no frame from its neighbours in time: for video that changes so much that H.264 cannot predict it.
    """

    name = "jpeg"
    extension = "mjpeg"
    lossless = False
    decode_us = 5
    decode_ns_per_pixel = 4

    def check(self, height: int, width: int) -> None:
        """Refuse frames of which sixteen make a sheet too large for JPEG or for Pillow."""
        if SIDE * SIDE * height * width > _MOST_PIXELS or (PART_FRAMES - 1) * width > _LONGEST_SIDE:
            raise ConfigError(
                f"{PART_FRAMES} frames of {height} by {width} pixels do not fit on one JPEG sheet "
                f"of {_MOST_PIXELS:,} pixels",
                hint="use --codec h264, or smaller frames",
            )

    def encode(self, frames: Frames) -> list[bytes]:
        """Compress frames (T, H, W, 3) sheet by sheet."""
        _, height, width, _ = frames.shape
        parts = []
        for start in range(0, len(frames), PART_FRAMES):
            part = frames[start : start + PART_FRAMES]
            rows, columns = _grid(len(part))
            sheet = part.reshape(rows, columns, height, width, 3).swapaxes(1, 2)
            buffer = io.BytesIO()
            Image.fromarray(sheet.reshape(rows * height, columns * width, 3)).save(
                buffer, "JPEG", quality=QUALITY, subsampling="4:4:4"
            )
            parts.append(buffer.getvalue())
        return parts

    def count_frames(self, data: bytes | memoryview, height: int, width: int) -> int:
        """Read the size of the sheet in the header of the JPEG."""
        return _count(_open(data), height, width)

    def decode_into(self, data: bytes | memoryview, out: Frames, keep: range) -> int:
        """Decode the sheet and cut out the frames that are wanted."""
        height, width = out.shape[1:3]
        image = _open(data)
        n_frames = _count(image, height, width)
        if keep[-1] >= n_frames:
            raise ShardError(f"a part holds {n_frames} frames, frame {keep[-1]} is wanted")
        try:
            sheet = np.asarray(image)
        except (OSError, ValueError, SyntaxError) as error:
            raise ShardError(f"a part is damaged: {error}") from error
        _, columns = _grid(n_frames)
        for i, number in enumerate(keep):
            top, left = number // columns * height, number % columns * width
            out[i] = sheet[top : top + height, left : left + width]
        return n_frames


def _grid(n_frames: int) -> tuple[int, int]:
    """Rows and columns of a sheet; never a blank place, so that the size tells the number of frames."""
    return (SIDE, SIDE) if n_frames == PART_FRAMES else (1, n_frames)


def _open(data: bytes | memoryview) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data), formats=("JPEG",))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ShardError(f"a part is damaged: {error}") from error


def _count(image: Image.Image, height: int, width: int) -> int:
    for n_frames in (PART_FRAMES, image.width // width):
        rows, columns = _grid(n_frames)
        if image.size == (columns * width, rows * height) and image.mode == "RGB":
            return check_count(n_frames)
    raise ShardError(
        f"a part is damaged: its sheet of {image.width} by {image.height} pixels ({image.mode}) "
        f"holds no frames of {width} by {height}"
    )
