"""Clips -> frames: reads only the parts that they touch, decodes each once, straight to where it is wanted."""

from __future__ import annotations

import threading
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from vidbrain.errors import ShardError, VidbrainError
from vidbrain.records import ClipSpec
from vidbrain.sharding.codecs import get_codec
from vidbrain.sharding.manifest import Manifest
from vidbrain.sharding.parts import PART_FRAMES
from vidbrain.stream.kept import AT_ONCE, KeptFrames
from vidbrain.stream.layout import (
    UNKNOWN,
    VERIFY,
    PartRead,
    Reads,
    Span,
    Use,
    check_stored,
    layout_of,
    plan_reads,
    reads_of,
)
from vidbrain.stream.shards import Shards, open_shards

Batch = NDArray[np.uint8] | Sequence[NDArray[np.uint8]]
"""Of equal shapes in one array, or one by one."""

N_TRIES = 3
"""How often a part that was found damaged is read again from its store."""

_mine = threading.local()  # a part that several clips share is unpacked once, here


class SegmentReader:
    """Reads frames of segments by position in the manifest; any number of threads may read at once.

    Parameters
    ----------
    manifest
        Of frames.
    shards
        Where the bytes come from; by default the manifest's root.
    kept
        Where decoded frames are kept that are needed again.

    Raises
    ------
    ShardError
        If this version does not know the codec.
    """

    def __init__(self, manifest: Manifest, shards: Shards | None = None, kept: KeptFrames | None = None) -> None:
        self._codec = get_codec(str(manifest.info["codec"]))
        self._size = (manifest.height, manifest.width, 3)
        self._layout = layout_of(manifest.segments)
        self._shards = shards or open_shards(manifest)
        self._kept = kept

    @property
    def n_bytes(self) -> int:
        """Stored bytes read so far."""
        return int(self._shards.stats()["n_bytes"])

    def stored_bytes(self, spec: ClipSpec, n_clips: int) -> int:
        """Most stored bytes that are in memory together to read so many clips."""
        n_parts = (spec.span - 2) // PART_FRAMES + 2 if spec.span > 1 else 1
        ends = np.concatenate([[0], np.cumsum(self._layout.n_bytes)])
        n_parts = min(n_parts, len(ends) - 1)
        of_clips = n_clips * int((ends[n_parts:] - ends[:-n_parts]).max())
        first = ends[self._layout.first_part]
        return max(of_clips, AT_ONCE * int(np.diff(first).max())) if self._kept else of_clips

    def read_clips(
        self,
        segments: NDArray[np.int64],
        starts: NDArray[np.int64],
        spec: ClipSpec,
        out: NDArray[np.uint8],
        n_clips: int = 0,
    ) -> None:
        """Decode clips into a batch.

        A part that several of them touch is decoded once.

        Parameters
        ----------
        segments : (B,) int64
            Position of each clip's segment in the manifest.
        starts : (B,) int64
            First frame of each clip in its recording.
        spec
            Frames and step of the clips.
        out : (B, T, H, W, 3) uint8
            Where they are written.
        n_clips
            How many of the clips that were announced to `shards` these are.

        Raises
        ------
        ValueError
            If a frame is not stored in its segment.
        ShardError
            If bytes are damaged, at their origin too; names shard and key.
        StorageError
            If they cannot be read.
        """
        if self._kept is not None:
            self._read_kept(self._kept, segments, starts, spec, out, n_clips)
        else:
            self._read(plan_reads(self._layout, segments, starts, spec), out, n_clips)

    def _read(self, planned: Iterable[Reads], out: Batch, n_clips: int) -> None:
        for reads in planned:
            blocks = self._shards.read(reads.spans, n_clips)
            n_clips = 0
            for read in self._read_runs(reads.parts, blocks, out):
                part = memoryview(blocks[read.span])[read.begin : read.past]
                try:
                    self._decode(part, read, out)
                except ShardError as error:
                    self._decode_again(reads.spans[read.span], read, out, error)
        if n_clips:  # nothing was wanted of them, but they are over
            self._shards.read([], n_clips)

    def _read_runs(self, parts: Sequence[PartRead], blocks: Sequence[bytes], out: Batch) -> Iterable[PartRead]:
        """Decode together what is wanted whole and side by side; give the rest.

        So are all parts of batches of disjoint clips, and those of segments that are kept.
        """
        if isinstance(out, np.ndarray) and not out.flags.c_contiguous:
            return parts
        # Clips of one array lie side by side too.
        arrays, length = ([out.reshape(-1, *self._size)], out.shape[1]) if isinstance(out, np.ndarray) else (out, 0)
        whole: dict[tuple[int, int], PartRead] = {}
        rest: list[PartRead] = []
        for read in parts:
            use = read.uses[0]
            if len(read.uses) == 1 and use.keep == range(read.n_frames):
                whole[(0, use.clip * length + use.first) if length else (use.clip, use.first)] = read
            else:
                rest.append(read)
        for array, place, run in _adjoining(whole):
            data = [memoryview(blocks[read.span])[read.begin : read.past] for read in run]
            n_frames = [read.n_frames for read in run]
            is_sound = all(read.crc32 in (UNKNOWN, zlib.crc32(part)) for read, part in zip(run, data, strict=True))
            if len(run) > 1 and is_sound:
                try:
                    self._codec.decode_run(data, n_frames, arrays[array][place : place + sum(n_frames)])
                except ShardError:
                    is_sound = False
            if len(run) == 1 or not is_sound:
                rest += run  # one by one: which of them is damaged is found, read again and named
        return rest

    def _read_kept(
        self,
        kept: KeptFrames,
        segments: NDArray[np.int64],
        starts: NDArray[np.int64],
        spec: ClipSpec,
        out: NDArray[np.uint8],
        n_clips: int,
    ) -> None:
        """Copy clips of segments that are kept, once they are decoded; read the others by themselves."""
        first, wanted = check_stored(self._layout, segments, starts, spec), segments.tolist()
        shared = set(wanted) - kept.meet(wanted)
        while claimed := kept.claim(shared):
            self._decode_claimed(kept, claimed)
        apart = [i for i, segment in enumerate(wanted) if not (segment in shared and kept.is_here(segment))]
        if shared and not apart:
            kept.copy(segments, first, spec, out)
            self._shards.read([], n_clips)
            return
        here = np.setdiff1d(np.arange(len(out)), apart)
        for i in here.tolist():
            kept.copy(segments[i : i + 1], first[i : i + 1], spec, out[i : i + 1])
        planned = plan_reads(self._layout, segments[apart], starts[apart], spec)
        self._read(planned, out if len(apart) == len(out) else [out[i] for i in apart], n_clips)

    def _decode_claimed(self, kept: KeptFrames, claimed: list[int]) -> None:
        left, groups = set(claimed), [claimed]
        try:
            while groups:
                group = groups.pop()
                try:
                    self._decode_segments(kept, group)
                except VidbrainError:
                    # What is damaged is for those clips to say that touch it; neighbours are tried one by one.
                    groups += [[segment] for segment in group] if len(group) > 1 else []
                else:
                    kept.settle(group, decoded=True)
                    left.difference_update(group)
        finally:
            kept.settle(list(left), decoded=False)

    def _decode_segments(self, kept: KeptFrames, segments: Sequence[int]) -> None:
        frames = [kept.frames(segment) for segment in segments]
        parts: list[int] = []
        uses: list[list[Use]] = []
        for i, segment in enumerate(segments):
            whole = ClipSpec(len(frames[i]), 1, 1)
            check_stored(self._layout, np.array([segment]), self._layout.start_frame[[segment]], whole)
            before = int(self._layout.first_part[segment])
            for number, at in enumerate(range(0, whole.n_frames, PART_FRAMES)):
                past = min(at + PART_FRAMES, whole.n_frames)
                parts.append(before + number)
                uses.append([Use(i, at, past, range(past - at))])
        self._read(reads_of(self._layout, np.array(parts, np.int64), uses), frames, 0)

    def frames(self, segment: int, first: int, past: int) -> NDArray[np.uint8]:
        """Return frames ``[first, past)`` of the recording, all stored in this segment: uint8 (n, H, W, 3).

        Raises
        ------
        ValueError, ShardError, StorageError
            As `read_clips`.
        """
        return self.clip(segment, first, ClipSpec(past - first, 1, 1))

    def clip(self, segment: int, start: int, spec: ClipSpec) -> NDArray[np.uint8]:
        """Return a clip that begins at frame `start` of the recording: uint8 (T, H, W, 3)."""
        out = np.empty((1, spec.n_frames, *self._size), np.uint8)
        self.read_clips(np.array([segment]), np.array([start]), spec, out)
        return out[0]

    def _decode(self, data: memoryview, read: PartRead, out: Batch) -> None:
        """Check a part before any decoder sees it, and write its frames to all who use it."""
        if read.crc32 not in (UNKNOWN, zlib.crc32(data)):
            number = self._layout.number(read.part)
            raise ShardError(f"part {number} of the segment is damaged: its checksum differs from the index's")
        if len(read.uses) == 1:
            clip, first, past, keep = read.uses[0]
            n_frames = self._codec.decode_into(data, out[clip][first:past], keep)
        else:
            frames = self._scratch()
            wanted = range(max(use.keep[-1] for use in read.uses) + 1)
            n_frames = self._codec.decode_into(data, frames[: len(wanted)], wanted)
            for clip, first, past, keep in read.uses:
                out[clip][first:past] = frames[keep.start : keep.stop : keep.step]
        if n_frames != read.n_frames:
            number = self._layout.number(read.part)
            raise ShardError(f"part {number} of the segment holds {n_frames} frames, the index says {read.n_frames}")

    def _decode_again(self, span: Span, read: PartRead, out: Batch, error: ShardError) -> None:
        """Try the origin, where the damage may be that of a copy, or of its way here."""
        wanted = (span[0], span[1] + read.begin, span[1] + read.past)
        for _ in range(N_TRIES):
            data = self._shards.read_again(wanted)
            if data is None:
                break
            try:
                self._decode(memoryview(data), read, out)
            except ShardError as last:
                error = last
            else:
                return
        raise ShardError(
            error.message,
            where=f"{self._shards.where(span[0])} {self._layout.key[self._layout.segment[read.part]]}",
            hint=VERIFY,
        ) from error

    def _scratch(self) -> NDArray[np.uint8]:
        found: NDArray[np.uint8] | None = getattr(_mine, "frames", None)
        if found is None or found.shape[1:] != self._size:
            found = _mine.frames = np.empty((PART_FRAMES, *self._size), np.uint8)
        return found

    def close(self) -> None:
        """Close the files."""
        self._shards.close()

    def __enter__(self) -> SegmentReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _adjoining(reads: Mapping[tuple[int, int], PartRead]) -> Iterator[tuple[int, int, list[PartRead]]]:
    """Group reads by the array and the frame at which they are wanted: each group fills a stretch without a gap."""
    run: list[PartRead] = []
    first = past = (-1, -1)
    for place, read in sorted(reads.items(), key=lambda item: item[0]):
        if place != past and run:
            yield *first, run
            run = []
        first = first if run else place
        run.append(read)
        past = (place[0], place[1] + read.n_frames)
    if run:
        yield *first, run
