"""The lossless codec: raw frames in zstd."""

from __future__ import annotations

import threading

import numpy as np
import zstandard

from vidbrain.errors import ShardError
from vidbrain.sharding.parts import PART_FRAMES, Codec, Frames, check_count

LEVEL = 3

_mine = threading.local()  # a decompressor serves one thread, and costs time to make


class Zstd(Codec):
    """Each part is one zstd frame of raw uint8 (n, H, W, 3), in C order.

    On flat console graphics it is smaller than H.264 and decoded many times faster. Any zstd tool reads the whole
    member as one stream.
    """

    name = "zstd"
    extension = "frames.zst"
    lossless = True
    decode_us = 1
    decode_ns_per_pixel = 0.5

    def check(self, height: int, width: int) -> None:
        """Any size."""

    def encode(self, frames: Frames) -> list[bytes]:
        """Compress frames (T, H, W, 3)."""
        compressor = zstandard.ZstdCompressor(level=LEVEL)
        return [
            compressor.compress(np.ascontiguousarray(frames[start : start + PART_FRAMES]).tobytes())
            for start in range(0, len(frames), PART_FRAMES)
        ]

    def count_frames(self, data: bytes | memoryview, height: int, width: int) -> int:
        """Read the length in the header of the zstd frame."""
        try:
            n_bytes = zstandard.frame_content_size(data)
        except zstandard.ZstdError as error:
            raise ShardError(f"a part is damaged: {error}") from error
        if n_bytes < 0 or n_bytes % (height * width * 3):
            raise ShardError(f"a part holds {n_bytes} bytes, not whole frames of {height * width * 3}")
        return check_count(n_bytes // (height * width * 3))

    def decode_into(self, data: bytes | memoryview, out: Frames, keep: range) -> int:
        """Unpack the part and copy the frames that are wanted."""
        height, width = out.shape[1:3]
        n_frames = self.count_frames(data, height, width)
        try:
            # Bounded by what was just checked: a part does not unpack to more than it says.
            raw = _decompressor().decompress(data)
        except zstandard.ZstdError as error:
            raise ShardError(f"a part is damaged: {error}") from error
        if len(raw) != n_frames * height * width * 3 or keep[-1] >= n_frames:
            raise ShardError(f"a part unpacks to {len(raw)} bytes, it says {n_frames} frames")
        out[:] = np.frombuffer(raw, np.uint8).reshape(-1, height, width, 3)[keep.start : keep.stop : keep.step]
        return n_frames


def _decompressor() -> zstandard.ZstdDecompressor:
    if not hasattr(_mine, "decompressor"):
        _mine.decompressor = zstandard.ZstdDecompressor()
    found: zstandard.ZstdDecompressor = _mine.decompressor
    return found
