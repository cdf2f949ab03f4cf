"""Segments as columns: millions of them cost bytes, not objects, and travel to workers in small pieces."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
from numpy.typing import NDArray

from vidbrain.records import SegmentRef


@dataclass(frozen=True, eq=False)
class Segments(Sequence[SegmentRef]):
    """A list of segments.

    Attributes
    ----------
    names
        Keys of recordings; those of some may be unused.
    recording : (n_segments,) int32
        Position of each segment's recording in `names`.
    start_frame, n_frames, n_stored : (n_segments,) int64
        As in `SegmentRef`.
    """

    names: tuple[str, ...]
    recording: NDArray[np.int32]
    start_frame: NDArray[np.int64]
    n_frames: NDArray[np.int64]
    n_stored: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.recording)

    @overload
    def __getitem__(self, index: int) -> SegmentRef: ...
    @overload
    def __getitem__(self, index: slice) -> Segments: ...
    def __getitem__(self, index: int | slice) -> SegmentRef | Segments:
        if isinstance(index, slice):
            return Segments(
                self.names,
                self.recording[index],
                self.start_frame[index],
                self.n_frames[index],
                self.n_stored[index],
            )
        return SegmentRef(
            self.names[self.recording[index]],
            int(self.start_frame[index]),
            int(self.n_frames[index]),
            int(self.n_stored[index]),
        )

    def __iter__(self) -> Iterator[SegmentRef]:
        columns = (self.recording, self.start_frame, self.n_frames, self.n_stored)
        for name, start, owned, stored in zip(*(column.tolist() for column in columns), strict=True):
            yield SegmentRef(self.names[name], start, owned, stored)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Segments) and self.digest() == other.digest()

    __hash__ = None  # type: ignore[assignment]

    def take(self, positions: NDArray[np.intp]) -> Segments:
        """Return the segments at these positions, with the names that they need and no others."""
        used, renamed = np.unique(self.recording[positions], return_inverse=True)
        return Segments(
            tuple(self.names[i] for i in used.tolist()),
            renamed.astype(np.int32),
            self.start_frame[positions],
            self.n_frames[positions],
            self.n_stored[positions],
        )

    def digest(self) -> str:
        """SHA-256 of what the segments are, in order; unused names do not count."""
        whole = self.take(np.arange(len(self)))
        hashed = hashlib.sha256("\x1f".join(whole.names).encode())
        for column in (whole.recording, whole.start_frame, whole.n_frames, whole.n_stored):
            hashed.update(column.astype("<i8").tobytes())
        return hashed.hexdigest()


def by_recording(segments: Segments) -> dict[str, Segments]:
    """Take segments apart by recording; of each in the order of its frames."""
    order = np.lexsort((segments.start_frame, segments.recording))
    bounds = np.searchsorted(segments.recording[order], np.arange(len(segments.names) + 1))
    parts = ((name, order[bounds[i] : bounds[i + 1]]) for i, name in enumerate(segments.names))
    return {name: segments.take(positions) for name, positions in parts if len(positions)}
