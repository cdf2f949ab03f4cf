"""What a loader draws from: numbered clips, grouped in shards, read from segments."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from vidbrain.records import ClipSpec
from vidbrain.sharding.manifest import Manifest
from vidbrain.sharding.parts import PART_FRAMES
from vidbrain.stream.batch import ClipBatch, clip_columns, clip_meta
from vidbrain.stream.clips import ClipTable, clip_table
from vidbrain.stream.reader import SegmentReader

Batch_co = TypeVar("Batch_co", covariant=True)


CACHE = "~/.cache/vidbrain"
CACHE_BYTES = "20G"


class Source(Protocol[Batch_co]):
    """What a loader draws from: numbered clips, grouped in shards."""

    clips_per_shard: NDArray[np.int64]
    dataset: str
    clip: ClipSpec
    clip_bytes: int
    """Of one clip in a batch."""
    held_bytes: int
    """Most that the source keeps in memory beside the batches that it returned."""
    fetches_ahead: bool
    """Whether `begin` is of use: where it is not, the order of a whole epoch is never made."""

    def begin(self, clips: NDArray[np.integer[Any]]) -> None:
        """Hear which clips this process will read next, in order: what is known can be fetched ahead."""

    def read(self, clips: NDArray[np.int64]) -> Batch_co:
        """Return the batch of these clips. Several threads may ask at once."""

    def stats(self) -> dict[str, float]:
        """Counts since the source was made: at least n_bytes (stored), n_requests, cache_hits, retries."""

    def close(self) -> None:
        """Let go of files and threads."""


class ClipSource:
    """Clips of frames from a data set of shards.

    Parameters
    ----------
    manifest
        Of frames.
    clip
        The clip specification.
    split
        ``"train"``, ``"val"`` or None for all recordings.
    cache, cache_bytes
        Folder and limit of what is kept of shards at a URL. Those on a disk are read where they are.
    """

    fetches_ahead = False

    def __init__(
        self,
        manifest: Manifest,
        clip: ClipSpec,
        split: str | None,
        *,
        cache: str | Path = CACHE,
        cache_bytes: int | str = CACHE_BYTES,
    ) -> None:
        self._manifest, self.clip = manifest, clip
        # The order is a function of the split too, so a state must not pass from one to another.
        self.dataset = f"{manifest.fingerprint}/{split or 'all'}"
        self.table: ClipTable = clip_table(manifest.segments, manifest.select(split), clip, manifest.margin)
        shards = manifest.segments["shard"].to_numpy()[self.table.segments]
        self.clips_per_shard = np.bincount(shards, weights=self.table.counts).astype(np.int64)
        self.shape = (clip.n_frames, manifest.height, manifest.width, 3)
        self.clip_bytes = math.prod(self.shape)
        # A part, packed and unpacked, for each of many threads.
        self.held_bytes = 2 * 32 * PART_FRAMES * math.prod(self.shape[1:])
        self._columns = clip_columns(manifest.segments)
        self._readers = _Readers(manifest)

    def begin(self, clips: NDArray[np.integer[Any]]) -> None:
        """Nothing is fetched ahead from a disk."""

    def read(self, clips: NDArray[np.int64]) -> ClipBatch:
        """Read a batch; clips of one segment are read together, in order."""
        segments, starts = self.table.locate(clips)
        video = np.empty((len(clips), *self.shape), np.uint8)
        with self._readers.one() as reader:
            for i in np.lexsort((starts, segments)):
                wanted = range(int(starts[i]), int(starts[i]) + self.clip.span, self.clip.step)
                reader.read_into(int(segments[i]), wanted, video[i])
        meta = clip_meta(self._columns, segments, starts)
        return ClipBatch(video=video, index=clips, segment=segments, start_frame=starts, meta=meta)

    def stats(self) -> dict[str, float]:
        """See `Source`."""
        return {"n_bytes": self._readers.n_bytes(), "n_requests": 0, "cache_hits": 0, "retries": 0}

    def close(self) -> None:
        """Close the files."""
        self._readers.close()

    def __getstate__(self) -> dict[str, Any]:
        # Files belong to the process that opened them.
        return {**self.__dict__, "_readers": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ = {**state, "_readers": _Readers(state["_manifest"])}


class _Readers:
    """Readers that threads take in turn: as many as there ever were threads at once."""

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest
        # One now: what cannot be read at all is refused before work starts.
        self._all = [SegmentReader(manifest)]
        self._free = list(self._all)

    @contextlib.contextmanager
    def one(self) -> Iterator[SegmentReader]:
        try:
            reader = self._free.pop()
        except IndexError:
            reader = SegmentReader(self._manifest)
            self._all.append(reader)
        try:
            yield reader
        finally:
            self._free.append(reader)

    def n_bytes(self) -> int:
        return sum(reader.n_bytes for reader in self._all)

    def close(self) -> None:
        for reader in self._all:
            reader.close()
