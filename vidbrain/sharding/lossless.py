"""The lossless codec: raw frames in zstd."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from typing import IO, cast

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
        """Unpack the part: straight to where it is wanted if all of it is, else aside, and copy what is wanted."""
        mine = _mine_for(out.shape[1:])
        n_frames = self.count_frames(data, out.shape[1], out.shape[2])
        if keep[-1] >= n_frames:
            raise ShardError(f"a part holds {n_frames} frames, frame {keep[-1]} is wanted")
        # Bounded by what was just checked: a part does not unpack to more than it says.
        n_bytes = n_frames * mine.frame_bytes
        whole = keep == range(n_frames) and out.flags.c_contiguous
        target = out.data.cast("B") if whole else mine.memory[:n_bytes]
        try:
            n_unpacked = mine.decompressor.stream_reader(data).readinto(target)
        except zstandard.ZstdError as error:
            raise ShardError(f"a part is damaged: {error}") from error
        if n_unpacked != n_bytes:
            raise ShardError(f"a part is damaged: it ends after {n_unpacked} of {n_bytes} bytes")
        if not whole:
            out[:] = mine.frames[keep.start : keep.stop : keep.step]
        return n_frames

    def decode_run(self, parts: Sequence[bytes | memoryview], n_frames: Sequence[int], out: Frames) -> None:
        """Unpack the parts in one call: threads that decode take turns at the interpreter once, not once a part."""
        for part, n in zip(parts, n_frames, strict=True):
            if self.count_frames(part, *out.shape[1:3]) != n:
                raise ShardError(f"a part does not hold {n} frames")
        mine, source = _mine_for(out.shape[1:]), _Joined(parts)
        reader = mine.decompressor.stream_reader(cast("IO[bytes]", source), read_across_frames=True)
        try:
            n_unpacked = reader.readinto(out.data.cast("B"))
        except zstandard.ZstdError as error:
            raise ShardError(f"a part is damaged: {error}") from error
        # One that unpacks to more than it says would push the last ones out.
        if n_unpacked != out.nbytes or source.n_left:
            raise ShardError(f"parts are damaged: they hold {n_unpacked} of {out.nbytes} bytes, or more")


class _Joined:
    """Parts as a file that gives one at each read, whatever its length: they are not copied together."""

    def __init__(self, parts: Sequence[bytes | memoryview]) -> None:
        self._parts, self.n_left = iter(parts), len(parts)

    def read(self, _n_bytes: int = -1) -> bytes | memoryview:
        self.n_left -= 1
        return next(self._parts, b"")


class _Mine:
    """What a thread keeps for frames of one size: fresh memory would cost as much as the decoding."""

    def __init__(self, size: tuple[int, ...]) -> None:
        self.size, self.frame_bytes = size, math.prod(size)
        self.decompressor = zstandard.ZstdDecompressor()
        self.frames = np.empty((PART_FRAMES, *size), np.uint8)
        self.memory = self.frames.data.cast("B")


def _mine_for(size: tuple[int, ...]) -> _Mine:
    found: _Mine | None = getattr(_mine, "held", None)
    if found is None or found.size != size:
        found = _mine.held = _Mine(size)
    return found
