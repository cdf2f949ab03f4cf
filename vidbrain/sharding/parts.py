"""What a codec is: it turns the frames of a segment into parts, of which each is decoded without the others.

A clip then decodes only the parts that it touches. The member of a tar is the concatenation of its parts, and is one
plain file of the codec's format.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from vidbrain.errors import ShardError

PART_FRAMES = 16
"""Frames in a part; the last one of a segment may hold fewer."""

Frames = NDArray[np.uint8]


class Codec(ABC):
    """Frames <-> parts. Without state: one object serves any number of threads.

    Attributes
    ----------
    name
        As ``--codec`` takes it and ``dataset.json`` keeps it.
    extension
        Of the member.
    lossless
        Whether the frames that leave are those that entered.
    decode_us, decode_ns_per_pixel
        What one core takes to decode a frame on the way to a clip of every fourth, about: microseconds a frame, and
        nanoseconds a pixel beyond them. Fixed numbers, not the local machine's, so that ``--codec auto`` chooses alike
        everywhere.
    """

    name: ClassVar[str]
    extension: ClassVar[str]
    lossless: ClassVar[bool]
    decode_us: ClassVar[float]
    decode_ns_per_pixel: ClassVar[float]

    @abstractmethod
    def check(self, height: int, width: int) -> None:
        """Refuse, before anything is encoded, what cannot be written.

        Raises
        ------
        ConfigError
            If the format cannot hold frames of this size.
        MissingExtraError
            If this installation has no encoder.
        """

    @abstractmethod
    def encode(self, frames: Frames) -> list[bytes]:
        """Encode frames (T, H, W, 3), RGB, into one part for each `PART_FRAMES` of them, with one thread."""

    @abstractmethod
    def count_frames(self, data: bytes | memoryview, height: int, width: int) -> int:
        """Count the frames of a part by what it says of itself, without decoding it.

        Raises
        ------
        ShardError
            If it is damaged, or says that it holds no frame, frames of another size, or more than `PART_FRAMES`.
        """

    @abstractmethod
    def decode_into(self, data: bytes | memoryview, out: Frames, keep: range) -> int:
        """Decode frames of a part straight to where they are wanted.

        Parameters
        ----------
        data
            The part.
        out : (len(keep), H, W, 3) uint8
            Where frame ``keep[i]`` of the part is written at i, in RGB.
        keep
            Numbers of frames in the part, ascending.

        Returns
        -------
        int
            How many frames the part holds.

        Raises
        ------
        ShardError
            If the part is damaged, or does not hold these frames at this size.
        """

    def decode_run(self, parts: Sequence[bytes | memoryview], n_frames: Sequence[int], out: Frames) -> None:
        """Decode whole parts into adjoining memory.

        Parameters
        ----------
        parts
            One after the other.
        n_frames
            What each of them holds.
        out : (sum of n_frames, H, W, 3) uint8, C order
            Where their frames are written.

        Raises
        ------
        ShardError
            If one is damaged, or holds another number of frames; `out` then holds anything.
        """
        at = 0
        for part, n in zip(parts, n_frames, strict=True):
            found = self.decode_into(part, out[at : at + n], range(n))
            if found != n:
                raise ShardError(f"a part holds {found} frames, not {n}")
            at += n

    def decode_part(self, data: bytes | memoryview, height: int, width: int) -> Frames:
        """Decode a whole part to frames (n, H, W, 3).

        Raises
        ------
        ShardError
            If it is damaged.
        """
        out = np.empty((self.count_frames(data, height, width), height, width, 3), np.uint8)
        self.decode_into(data, out, range(len(out)))
        return out


def cut(frames: range) -> Iterator[tuple[int, range]]:
    """Yield (part, frames of it) for frames of a segment; parts that hold none of them are passed over."""
    for part in range(frames[0] // PART_FRAMES, frames[-1] // PART_FRAMES + 1):
        first = part * PART_FRAMES
        before = max(0, -(-(first - frames.start) // frames.step))  # frames in the parts before this one
        inside = range(frames[before] - first, min(frames[-1] + 1 - first, PART_FRAMES), frames.step)
        if inside:
            yield part, inside


def check_count(n_frames: int) -> int:
    """Return the number of frames that a part claims, or refuse it before anything is allocated for it."""
    if not 1 <= n_frames <= PART_FRAMES:
        raise ShardError(f"a part is damaged: it claims {n_frames} frames, parts hold 1 to {PART_FRAMES}")
    return n_frames
