"""Decoded frames that are needed again, kept where all of them fit into a stated memory.

Overlapping clips use every frame many times, and a copy from memory costs less than decoding it again. A data set of
which everything fits is decoded once. Of a larger one nothing is kept: in a shuffle that reaches further than the
memory, a part would mostly be gone when it is needed again, and what is won by keeping some is lost by the rest, since
memory that is new to a process costs about as much as the frames that are decoded into it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vidbrain.sharding.manifest import Manifest
from vidbrain.sharding.parts import PART_FRAMES
from vidbrain.stream.clips import ClipTable

FEWEST_USES = 2
"""Frames are kept if clips overlap so much that an epoch uses each of them so often, in the mean."""


class KeptSegment:
    """A segment's frames (n_stored, H, W, 3) uint8, and which of its parts are decoded already."""

    def __init__(self, n_frames: int, size: tuple[int, ...]) -> None:
        # Huge pages were tried here: no more clips a second with two threads, and a later first batch.
        self.frames = np.empty((n_frames, *size), np.uint8)
        self.is_decoded = bytearray(-(-n_frames // PART_FRAMES))


class KeptFrames:
    """Segments in memory, shared by the threads of a process.

    Parameters
    ----------
    n_stored
        Frames of each segment of the manifest.
    size
        Height, width and channels of a frame.
    n_bytes
        Of the frames of all segments that will be asked for.
    """

    def __init__(self, n_stored: Sequence[int], size: tuple[int, ...], n_bytes: int) -> None:
        self._n_stored, self._size, self.n_bytes = n_stored, size, n_bytes
        self._held: dict[int, KeptSegment] = {}

    @classmethod
    def of(cls, table: ClipTable, manifest: Manifest, limit: int) -> KeptFrames | None:
        """Make it for the clips of a table, or give None where it does not fit into `limit` bytes or does not pay."""
        n_stored = manifest.segments["n_stored"].to_numpy(np.int64)
        used: NDArray[np.int64] = n_stored[table.segments[table.counts > 0]]
        size = (manifest.height, manifest.width, 3)
        n_bytes = int(used.sum()) * int(np.prod(size))
        pays = len(table) * table.spec.span >= FEWEST_USES * used.sum() and table.spec.step <= PART_FRAMES
        return cls(n_stored.tolist(), size, n_bytes) if pays and n_bytes <= limit else None

    def segment(self, segment: int) -> KeptSegment:
        """Give a segment with what is decoded of it so far; the caller's to fill."""
        kept = self._held.get(segment)
        if kept is None:
            # One step of the interpreter: of two threads, both get the same. A lock would not survive a fork.
            kept = self._held.setdefault(segment, KeptSegment(self._n_stored[segment], self._size))
        return kept

    def __reduce__(self) -> tuple[type[KeptFrames], tuple[Sequence[int], tuple[int, ...], int]]:
        # Frames stay in their process.
        return KeptFrames, (self._n_stored, self._size, self.n_bytes)
