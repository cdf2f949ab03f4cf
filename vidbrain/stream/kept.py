"""Decoded frames that are needed again soon, kept where all of them fit into a stated memory.

Overlapping clips use every frame many times, and a copy from memory costs less than decoding it again. What is read is
known before, so this is no cache that guesses: a segment is kept from its first use to its last, if the segments that
are so kept at any one time fit. Where they do not, nothing is kept: in a shuffle that reaches further than the memory a
part would mostly be gone when it is needed again, and keeping it costs more than unpacking flat frames does.
"""

from __future__ import annotations

import threading

import numpy as np
from numpy.typing import NDArray

from vidbrain.records import ClipSpec
from vidbrain.sharding.parts import PART_FRAMES
from vidbrain.stream.layout import Layout

FEWEST_USES = 2
"""Memory that is new to a process costs about as much as the frames that are decoded into it."""
LATE_CLIPS = 8192
"""A segment is kept this much longer than its last use: threads are not in step."""


class KeptSegment:
    """A segment's frames (n_stored, H, W, 3) uint8, and which of its parts are decoded already."""

    def __init__(self, n_frames: int, size: tuple[int, ...]) -> None:
        self.frames = np.empty((n_frames, *size), np.uint8)
        self.is_decoded = bytearray(-(-n_frames // PART_FRAMES))


class KeptFrames:
    """Segments in memory, shared by the threads of a process.

    Parameters
    ----------
    layout
        Of the manifest.
    size
        Height, width and channels of a frame.
    n_bytes
        Most bytes of frames that may be kept.
    """

    def __init__(self, layout: Layout, size: tuple[int, ...], n_bytes: int) -> None:
        self._made_of = (layout, size, n_bytes)
        self._size, self._limit = size, n_bytes
        self._segment_frames = layout.n_stored
        self._held: dict[int, KeptSegment] = {}
        self._ending: list[tuple[int, int]] = []
        self._lock = threading.Lock()
        self._now = 0
        self.is_on = False

    def __reduce__(self) -> tuple[type[KeptFrames], tuple[Layout, tuple[int, ...], int]]:
        return KeptFrames, self._made_of

    def begin(self, segments: NDArray[np.int64], spec: ClipSpec) -> None:
        """Hear the segment of every clip that will be read, in order, and decide whether their frames are kept.

        They are if that fits, and if clips overlap so much that a frame is decoded `FEWEST_USES` times or more.
        """
        place = np.arange(len(segments))
        first, last = np.full((2, len(self._segment_frames)), -1, np.int64)
        first[segments[::-1]] = place[::-1]
        last[segments] = place
        used = np.flatnonzero(first >= 0)
        n_bytes = self._segment_frames[used] * int(np.prod(self._size))
        pays = len(segments) * spec.span >= FEWEST_USES * int(self._segment_frames[used].sum())
        all_fit = int(n_bytes.sum()) <= self._limit
        ends = last[used] + LATE_CLIPS
        with self._lock:
            self.is_on = pays and (all_fit or most_at_once(first[used], ends, n_bytes) <= self._limit)
            # All of it stays for the next epoch; the end of the list is the first to go.
            order = [] if all_fit else np.argsort(-ends).tolist()
            self._ending = [(int(ends[i]), int(used[i])) for i in order]
            stays = set(used.tolist()) if self.is_on and all_fit else set()
            self._held = {segment: kept for segment, kept in self._held.items() if segment in stays}
            self._now = 0

    def segment(self, segment: int) -> KeptSegment:
        """Give a segment, with what is decoded of it so far; the caller's to fill and to read, also after its end."""
        kept = self._held.get(segment)
        if kept is None:
            with self._lock:
                kept = self._held.get(segment)
                if kept is None:
                    kept = self._held[segment] = KeptSegment(int(self._segment_frames[segment]), self._size)
        return kept

    def count(self, n_clips: int) -> None:
        """Hear that clips were read, and let go of segments that are needed no more."""
        with self._lock:
            self._now += n_clips
            while self._ending and self._ending[-1][0] < self._now:
                self._held.pop(self._ending.pop()[1], None)

    @property
    def n_bytes(self) -> int:
        """Bytes of the frames that are kept now."""
        with self._lock:
            return sum(kept.frames.nbytes for kept in self._held.values())


def most_at_once(first: NDArray[np.int64], last: NDArray[np.int64], n_bytes: NDArray[np.int64]) -> int:
    """Most bytes that are held at any time, where item i is held from ``first[i]`` to ``last[i]``."""
    # Of equal places, those that end come before those that begin.
    order = np.argsort(np.concatenate([last + 1, first]), kind="stable")
    return int(np.concatenate([-n_bytes, n_bytes])[order].cumsum().max(initial=0))
