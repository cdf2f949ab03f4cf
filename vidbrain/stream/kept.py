"""Decoded frames that are needed again, kept where all of them fit into a stated memory.

Overlapping clips use every frame many times, and a copy from memory costs less than decoding it again. A data set of
which everything fits is decoded once. Of a larger one nothing is kept: in a shuffle that reaches further than the
memory, a part would mostly be gone when it is needed again, and what is won by keeping some is lost by the rest, since
memory that is new to a process costs about as much as the frames that are decoded into it.

The clip that meets a segment first is read by itself, so that the first batch is soon there. The next one has the whole
segment decoded, in one call, by the thread that claims it, and all others copy.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vidbrain.records import ClipSpec
from vidbrain.sharding.manifest import Manifest
from vidbrain.sharding.parts import PART_FRAMES
from vidbrain.stream.buffers import fresh_pages
from vidbrain.stream.clips import ClipTable

FEWEST_USES = 2
"""Frames are kept if clips overlap so much that an epoch uses each of them so often, in the mean."""
AT_ONCE = 8
"""Segments that a thread decodes before others see them: their bytes are read together."""
_MET, _CLAIMED, _HERE, _APART = range(4)
"""States of a segment that some clip asked for: to be decoded, being decoded, decoded, or not to be kept."""


class KeptFrames:
    """Segments in memory, shared by the threads of a process.

    Parameters
    ----------
    segments : (n,) int64
        Positions in the manifest of those that will be asked for.
    n_stored : (n,) int64
        Frames of each.
    size
        Height, width and channels of a frame.
    """

    def __init__(self, segments: NDArray[np.int64], n_stored: NDArray[np.int64], size: tuple[int, ...]) -> None:
        self._made_of = (segments, n_stored, size)
        self.n_bytes = int(n_stored.sum()) * int(np.prod(size))
        past = np.cumsum(n_stored)
        places = zip((past - n_stored).tolist(), past.tolist(), strict=True)
        self._places = dict(zip(segments.tolist(), places, strict=True))
        self._frames: NDArray[np.uint8] | None = None
        self._states: dict[int, int] = {}
        self._start()

    def _start(self) -> None:
        """Begin anew in this process: nobody here decodes what threads of the parent were about to."""
        self._pid, self._change = os.getpid(), threading.Condition()
        self._states = {segment: _MET if state == _CLAIMED else state for segment, state in self._states.items()}

    @classmethod
    def of(cls, table: ClipTable, manifest: Manifest, limit: int) -> KeptFrames | None:
        """Make it for the clips of a table, or give None where it does not fit into `limit` bytes or does not pay."""
        segments = table.segments[table.counts > 0]
        n_stored = manifest.segments["n_stored"].to_numpy(np.int64)[segments]
        size = (manifest.height, manifest.width, 3)
        pays = len(table) * table.spec.span >= FEWEST_USES * n_stored.sum() and table.spec.step <= PART_FRAMES
        return cls(segments, n_stored, size) if pays and int(n_stored.sum()) * int(np.prod(size)) <= limit else None

    def meet(self, segments: Sequence[int]) -> set[int]:
        """Hear of the segments of a batch; return those whose clips are read by themselves this time."""
        if os.getpid() != self._pid:  # a lock of the parent may be closed for ever in its child
            self._start()
        with self._change:
            wanted = set(segments)
            apart = {segment for segment in wanted if self._states.get(segment, _APART) == _APART}
            for segment in apart:
                self._states.setdefault(segment, _MET)
            if apart != wanted and self._frames is None:
                self._frames = fresh_pages(self.n_bytes).reshape(-1, *self._made_of[2])
            return apart

    def claim(self, segments: set[int]) -> list[int]:
        """Say which of some segments the caller is to decode next, and then to `settle`; none when all are there.

        It waits for those that other threads have claimed, when there is nothing else to do.
        """
        with self._change:
            while True:
                lacking = sorted(segment for segment in segments if self._states[segment] == _MET)[:AT_ONCE]
                if lacking:
                    self._states.update(dict.fromkeys(lacking, _CLAIMED))
                    return lacking
                if not any(self._states[segment] == _CLAIMED for segment in segments):
                    return []
                self._change.wait()

    def settle(self, segments: Sequence[int], *, decoded: bool) -> None:
        """Hear that segments that were claimed are decoded, or that one of them is damaged: they are not kept."""
        with self._change:
            self._states.update(dict.fromkeys(segments, _HERE if decoded else _APART))
            self._change.notify_all()

    def is_here(self, segment: int) -> bool:
        """Whether a segment is decoded."""
        return self._states.get(segment) == _HERE

    def frames(self, segment: int) -> NDArray[np.uint8]:
        """Give the place of a segment's frames, (n_stored, H, W, 3) uint8: anything, unless it is here."""
        assert self._frames is not None
        first, past = self._places[segment]
        return self._frames[first:past]

    def copy(
        self, segments: NDArray[np.int64], first: NDArray[np.int64], spec: ClipSpec, out: NDArray[np.uint8]
    ) -> None:
        """Copy clips of segments that are here, in one call: threads take turns at the interpreter once, not per clip.

        Parameters
        ----------
        segments : (B,) int64
            Position of each clip's segment in the manifest.
        first : (B,) int64
            First frame of each clip in its segment.
        spec
            Frames and step of the clips.
        out : (B, T, H, W, 3) uint8
            Where they are written.
        """
        assert self._frames is not None
        begins = np.array([self._places[segment][0] for segment in segments.tolist()])
        rows = (begins + first)[:, None] + np.arange(spec.n_frames) * spec.step
        # All are there. With "raise" numpy would copy by way of other memory.
        np.take(self._frames, rows, axis=0, out=out, mode="clip")

    def __reduce__(self) -> tuple[type[KeptFrames], tuple[NDArray[np.int64], NDArray[np.int64], tuple[int, ...]]]:
        # Frames stay in their process.
        return KeptFrames, self._made_of
