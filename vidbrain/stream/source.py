"""What a loader draws from: numbered clips, grouped in shards, read from segments."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from vidbrain.records import ClipSpec
from vidbrain.sharding.manifest import open_manifest
from vidbrain.storage.cache import CACHE, CACHE_BYTES
from vidbrain.storage.objects import Root
from vidbrain.stream.buffers import Buffers
from vidbrain.stream.clips import ClipTable, clip_table
from vidbrain.stream.reader import SegmentReader
from vidbrain.stream.shards import open_shards

KEPT_BYTES = 2 << 30
"""Default memory for decoded frames that are needed again."""

Batch_co = TypeVar("Batch_co", covariant=True)


class Source(Protocol[Batch_co]):
    """What a loader draws from: numbered clips, grouped in shards."""

    clips_per_shard: NDArray[np.int64]
    dataset: str
    clip: ClipSpec

    def begin(self, clips: NDArray[np.int64]) -> None:
        """Hear which clips this process will read next, in order: what is known can be fetched ahead."""

    def read(self, clips: NDArray[np.int64]) -> Batch_co:
        """Return the batch of these clips. Several threads may ask at once."""

    def stats(self) -> dict[str, float]:
        """Counts so far: stored bytes read (n_bytes), requests to a store (n_requests), cache_hits, retries."""

    def close(self) -> None:
        """Let go of files and threads."""


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
    """Clips of frames from a data set of shards. Any number of threads may read; each decodes its own batch.

    Parameters
    ----------
    root
        Folder or URL of the data set, or of a subset; a `Root` may carry its own deadline.
    clip
        The clip specification.
    split
        ``"train"``, ``"val"`` or None for all recordings.
    cache, cache_bytes
        Folder and limit of what is kept of shards at a URL; see `vidbrain.storage.cache`.
    kept_bytes
        Memory for decoded frames that are needed again, 0 for none; see `vidbrain.stream.kept`.

    Raises
    ------
    StorageError, ShardError
        If the data set is unfinished or damaged, or cannot give such clips.
    ConfigError
        If the limit is no number of bytes.
    """

    def __init__(
        self,
        root: str | Path | Root,
        clip: ClipSpec,
        split: str | None,
        *,
        cache: str | Path = CACHE,
        cache_bytes: int | str = CACHE_BYTES,
        kept_bytes: int = KEPT_BYTES,
    ) -> None:
        manifest = open_manifest(root)
        self.clip = clip
        # The order is a function of the split too, so a state must not pass from one to another.
        self.dataset = f"{manifest.fingerprint}/{split or 'all'}"
        self.table: ClipTable = clip_table(manifest.segments, manifest.select(split), clip, manifest.margin)
        self._shard = manifest.segments["shard"].to_numpy(np.int64)
        self.clips_per_shard = np.bincount(self._shard[self.table.segments], weights=self.table.counts).astype(np.int64)
        self.shape = (clip.n_frames, manifest.height, manifest.width, 3)
        self._shards = open_shards(manifest, self.table.segments, cache=cache, cache_bytes=cache_bytes)
        self._reader, self._buffers = SegmentReader(manifest, self._shards, kept_bytes), Buffers(self.shape)

    def begin(self, clips: NDArray[np.int64]) -> None:
        """Hear what will be read: it is fetched ahead from a store, and kept while it is needed again."""
        segments, _ = self.table.locate(clips)
        if self._reader.kept is not None:
            self._reader.kept.begin(segments, self.clip)
        self._shards.begin(self._shard[segments])

    def read(self, clips: NDArray[np.int64]) -> ClipBatch:
        """Read a batch. Its memory is used again when nobody holds it any more."""
        segments, starts = self.table.locate(clips)
        video = self._buffers.take(len(clips))
        self._reader.read_clips(segments, starts, self.clip, video, len(clips))
        return ClipBatch(video, clips, segments, starts)

    def stats(self) -> dict[str, float]:
        """Counts since the start: n_bytes, n_requests, cache_hits, retries."""
        return self._shards.stats()

    def close(self) -> None:
        """Let go of files and threads."""
        self._shards.close()
