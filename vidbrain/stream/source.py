"""What a loader draws from: numbered clips, grouped in shards, read from segments."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from vidbrain.records import ClipSpec
from vidbrain.sharding.manifest import open_manifest
from vidbrain.stream.clips import ClipTable, clip_table
from vidbrain.stream.reader import SegmentReader

Batch_co = TypeVar("Batch_co", covariant=True)


class Source(Protocol[Batch_co]):
    """What a loader draws from: numbered clips, grouped in shards."""

    clips_per_shard: NDArray[np.int64]
    dataset: str
    clip: ClipSpec

    @property
    def n_bytes(self) -> int:
        """Stored bytes read so far."""

    def begin(self, clips: NDArray[np.int64]) -> None:
        """Hear which clips this process will read next, in order: what is known can be fetched ahead."""

    def read(self, clips: NDArray[np.int64]) -> Batch_co:
        """Return the batch of these clips. One thread at a time asks."""


@dataclass(frozen=True)
class ClipBatch:
    """A batch of video clips.

    Attributes
    ----------
    video : (B, T, H, W, 3) uint8
    index : (B,) int64
        Clip numbers; they key whatever randomness a user adds.
    segment : (B,) int64
        Position of each clip's segment in the manifest.
    start_frame : (B,) int64
        First frame of each clip in its recording.
    """

    video: NDArray[np.uint8]
    index: NDArray[np.int64]
    segment: NDArray[np.int64]
    start_frame: NDArray[np.int64]


class ClipSource:
    """Clips of frames from a data set of shards."""

    def __init__(self, root: str | Path, clip: ClipSpec, split: str | None) -> None:
        manifest = open_manifest(root)
        self.clip = clip
        # The order is a function of the split too, so a state must not pass from one to another.
        self.dataset = f"{manifest.fingerprint}/{split or 'all'}"
        self.table: ClipTable = clip_table(manifest.segments, manifest.select(split), clip, manifest.margin)
        shards = manifest.segments["shard"].to_numpy()[self.table.segments]
        self.clips_per_shard = np.bincount(shards, weights=self.table.counts).astype(np.int64)
        self.shape = (clip.n_frames, manifest.height, manifest.width, 3)
        self._reader = SegmentReader(manifest)

    @property
    def n_bytes(self) -> int:
        """Stored bytes read so far."""
        return self._reader.n_bytes

    def begin(self, clips: NDArray[np.int64]) -> None:
        """Nothing is fetched ahead from a disk."""

    def read(self, clips: NDArray[np.int64]) -> ClipBatch:
        """Read a batch; clips of one segment are read together, in order."""
        segments, starts = self.table.locate(clips)
        video = np.empty((len(clips), *self.shape), np.uint8)
        for i in np.lexsort((starts, segments)):
            wanted = range(int(starts[i]), int(starts[i]) + self.clip.span, self.clip.step)
            self._reader.read_into(int(segments[i]), wanted, video[i])
        return ClipBatch(video, clips, segments, starts)
