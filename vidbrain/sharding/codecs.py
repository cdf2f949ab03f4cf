"""Frames <-> bytes. A segment becomes independent parts, so that a clip decodes only the parts it touches."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import zstandard
from numpy.typing import NDArray

from vidbrain.errors import ShardError

PART_FRAMES = 16
"""Frames in an independently decodable part."""
LEVEL = 3


class Zstd:
    """Lossless: each part is one zstd frame of raw uint8 (n, H, W, 3), in C order; the member is their concatenation.

    On flat console graphics it is smaller than H.264 and decoded many times faster. Any zstd tool reads the whole
    member as one stream.
    """

    name = "zstd"
    extension = "frames.zst"

    def encode(self, frames: NDArray[np.uint8]) -> list[bytes]:
        """Compress frames (T, H, W, 3) into parts of `PART_FRAMES` frames."""
        compressor = zstandard.ZstdCompressor(level=LEVEL)
        return [
            compressor.compress(np.ascontiguousarray(frames[start : start + PART_FRAMES]).tobytes())
            for start in range(0, len(frames), PART_FRAMES)
        ]

    def decode_part(self, data: bytes | memoryview, height: int, width: int) -> NDArray[np.uint8]:
        """Decompress one part to frames (n, H, W, 3).

        Raises
        ------
        ShardError
            If the bytes are not a zstd frame of whole video frames.
        """
        frame_bytes = height * width * 3
        try:
            # The bound refuses a small part that claims to unpack to gigabytes.
            raw = zstandard.ZstdDecompressor().decompress(data, max_output_size=PART_FRAMES * frame_bytes)
        except zstandard.ZstdError as error:
            raise ShardError(f"a part of a segment is damaged: {error}", hint="run `vidbrain verify`") from error
        if not raw or len(raw) % frame_bytes or len(raw) > PART_FRAMES * frame_bytes:
            raise ShardError(f"a part holds {len(raw)} bytes, not whole frames of {frame_bytes}")
        return np.frombuffer(raw, np.uint8).reshape(-1, height, width, 3)


CODECS = {codec.name: codec for codec in (Zstd(),)}


def get_codec(name: str) -> Zstd:
    """Return a codec by name.

    Raises
    ------
    ShardError
        If this version does not know it.
    """
    try:
        return CODECS[name]
    except KeyError:
        raise ShardError(f"unknown codec {name!r}", hint=f"known: {', '.join(CODECS)}; or update vidbrain") from None


def decode_segment(codec: Zstd, data: bytes, parts: Sequence[int], height: int, width: int) -> NDArray[np.uint8]:
    """Decode all frames of a segment from its member's bytes and the lengths of its parts."""
    view, frames, at = memoryview(data), [], 0
    for n_bytes in parts:
        frames.append(codec.decode_part(view[at : at + n_bytes], height, width))
        at += n_bytes
    return np.concatenate(frames)
