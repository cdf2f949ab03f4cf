"""What a loader draws from: numbered clips, grouped in shards, read from segments."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from vidbrain.errors import ConfigError
from vidbrain.records import ClipSpec
from vidbrain.sharding.manifest import Manifest
from vidbrain.sharding.parts import PART_FRAMES
from vidbrain.storage.cache import CACHE, CACHE_BYTES
from vidbrain.storage.objects import GAP_BYTES, Root
from vidbrain.stream.batch import ClipBatch, clip_columns, clip_meta
from vidbrain.stream.buffers import Buffers
from vidbrain.stream.clips import ClipTable, clip_table
from vidbrain.stream.kept import KeptFrames
from vidbrain.stream.layout import SPANS_AT_ONCE
from vidbrain.stream.reader import SegmentReader
from vidbrain.stream.remote import FETCH_BYTES
from vidbrain.stream.shards import open_shards

Batch_co = TypeVar("Batch_co", covariant=True)


KEPT_BYTES = 2 << 30
"""Default memory for decoded frames that are needed again."""
THREAD_BYTES = 2 << 20
"""What a thread takes that reads, about: its decoder, and what its allocator does not give back."""


class Source(Protocol[Batch_co]):
    """What a loader draws from: numbered clips, grouped in shards."""

    clips_per_shard: NDArray[np.int64]
    dataset: str
    clip: ClipSpec
    clip_bytes: int
    """Of one clip in a batch."""
    held_bytes: int
    """Most that the source keeps in memory between batches."""
    fetches_ahead: bool
    """Whether `begin` is of use: where it is not, the order of a whole epoch is never made."""

    def begin(self, pieces: Iterable[NDArray[np.int64]]) -> None:
        """Hear which clips this process will read next, in order: what is known can be fetched ahead."""

    def end(self) -> None:
        """Hear that nobody waits any more for what was announced: nothing more of it is fetched ahead."""

    def reading_bytes(self, n_clips: int) -> int:
        """Most memory that a thread takes to read so many clips, beside the batch itself."""

    def read(self, clips: NDArray[np.int64]) -> Batch_co:
        """Return the batch of these clips. Several threads may ask at once."""

    def stats(self) -> dict[str, float]:
        """Counts since the source was made: at least n_bytes (stored), n_requests, cache_hits, retries."""

    def close(self) -> None:
        """Let go of files and threads."""


class ClipSource:
    """Clips of frames from a data set of shards. Any number of threads may read; each decodes its own batch.

    Parameters
    ----------
    manifest
        Of frames.
    clip
        The clip specification.
    split
        ``"train"``, ``"val"`` or None for all recordings.
    cache, cache_bytes
        Folder and limit of what is kept of shards at a URL; see `vidbrain.storage.cache`. Those on a disk are read
        where they are.
    kept_bytes
        Memory for decoded frames that are needed again, 0 for none; see `vidbrain.stream.kept`.

    Raises
    ------
    ShardError
        If the data set cannot give such clips.
    ConfigError
        If the clip is none, or the limit is no number of bytes.
    """

    def __init__(
        self,
        manifest: Manifest,
        clip: ClipSpec,
        split: str | None,
        *,
        cache: str | Path = CACHE,
        cache_bytes: int | str = CACHE_BYTES,
        kept_bytes: int = KEPT_BYTES,
    ) -> None:
        if not isinstance(clip, ClipSpec):
            raise ConfigError(
                f"clip is a Clip, not {clip!r}", where="clip", hint="give vidbrain.Clip(n_frames, step, stride)"
            )
        self.clip = clip
        # The order is a function of the split too, so a state must not pass from one to another.
        self.dataset = f"{manifest.fingerprint}/{split or 'all'}"
        self.table: ClipTable = clip_table(manifest.segments, manifest.select(split), clip, manifest.margin)
        self._shard = manifest.segments["shard"].to_numpy(np.int64)
        self.clips_per_shard = np.bincount(self._shard[self.table.segments], weights=self.table.counts).astype(np.int64)
        self.shape = (clip.n_frames, manifest.height, manifest.width, 3)
        self.clip_bytes = math.prod(self.shape)
        self._columns = clip_columns(manifest.segments)
        self._shards = open_shards(manifest, self.table.segments, cache=cache, cache_bytes=cache_bytes)
        self.fetches_ahead = isinstance(manifest.root, Root)
        kept = KeptFrames.of(self.table, manifest, kept_bytes)
        self._reader, self._buffers = SegmentReader(manifest, self._shards, kept), Buffers(self.shape)
        self.held_bytes = (kept.n_bytes if kept else 0) + (FETCH_BYTES if self.fetches_ahead else 0)

    def begin(self, pieces: Iterable[NDArray[np.int64]]) -> None:
        """Hear what will be read: from a store it is fetched ahead, in this order."""
        self._shards.begin(self._shard[self.table.locate(clips)[0]] for clips in pieces)

    def end(self) -> None:
        """Fetch nothing more ahead."""
        self._shards.end()

    def reading_bytes(self, n_clips: int) -> int:
        """Two parts unpacked, what is stored of a read, and from a store that again and the gaps between."""
        stored = self._reader.stored_bytes(self.clip, n_clips)
        fetched = stored + SPANS_AT_ONCE * GAP_BYTES if self.fetches_ahead else 0
        return THREAD_BYTES + 2 * PART_FRAMES * math.prod(self.shape[1:]) + stored + fetched

    def read(self, clips: NDArray[np.int64]) -> ClipBatch:
        """Read a batch. Its memory is used again when nobody holds it any more."""
        segments, starts = self.table.locate(clips)
        video = self._buffers.take(len(clips))
        self._reader.read_clips(segments, starts, self.clip, video, len(clips))
        meta = clip_meta(self._columns, segments, starts)
        return ClipBatch(video=video, index=clips, segment=segments, start_frame=starts, meta=meta)

    def stats(self) -> dict[str, float]:
        """See `Source`."""
        return self._shards.stats()

    def close(self) -> None:
        """Let go of files and threads."""
        self._shards.close()
