"""The registry of codecs: frames <-> bytes. `parts` says what a codec is; each stands in a module of its own."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vidbrain.errors import ShardError
from vidbrain.sharding.h264 import H264
from vidbrain.sharding.lossless import Zstd
from vidbrain.sharding.parts import PART_FRAMES, Codec, Frames
from vidbrain.sharding.sheets import JpegSheet

__all__ = ["CODECS", "H264", "PART_FRAMES", "Codec", "JpegSheet", "Zstd", "decode_segment", "get_codec"]

CODECS: dict[str, Codec] = {codec.name: codec for codec in (Zstd(), H264(), JpegSheet())}


def get_codec(name: str) -> Codec:
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


def decode_segment(codec: Codec, data: bytes, parts: Sequence[int], height: int, width: int) -> Frames:
    """Decode all frames of a segment from its member's bytes and the lengths of its parts.

    Raises
    ------
    ShardError
        If a part is damaged.
    """
    view, frames, at = memoryview(data), [], 0
    for n_bytes in parts:
        frames.append(codec.decode_part(view[at : at + n_bytes], height, width))
        at += n_bytes
    return np.concatenate(frames)
