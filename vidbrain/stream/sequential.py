"""Recordings in time order, across segments and shards: for feature extraction."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from vidbrain.errors import AlignmentError
from vidbrain.records import ClipSpec
from vidbrain.sharding.manifest import Manifest
from vidbrain.stream.reader import SegmentReader
from vidbrain.stream.shards import Shards, open_shards

N_AHEAD = 8
AHEAD_BYTES = 64 << 20
"""Most segments, and about the most bytes of frames, that are read ahead."""


def check_complete(manifest: Manifest, recordings: list[str]) -> None:
    """Refuse before work starts where the shards hold only a part of a recording.

    Raises
    ------
    AlignmentError
        Naming the recordings and how many of their frames are there.
    """
    table = manifest.recordings
    partial = [
        f"{key} ({table.loc[key, 'frames_held'] if key in table.index else 0} frames)"
        for key in recordings
        if key not in table.index or table.loc[key, "frames_held"] != table.loc[key, "recording_frames"]
    ]
    if partial:
        raise AlignmentError(
            f"{len(partial)} of {len(recordings)} recordings are only partly in the shards: {', '.join(partial[:3])}",
            where=manifest.root,
            likely="the data set is a prefix of its source",
            hint="shard with --size all for feature extraction",
        )


def frames_of(
    manifest: Manifest, recording: str, shards: Shards | None = None
) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Yield ``(first frame, frames (n, H, W, 3))`` of a recording, every frame once, in order.

    Segments are read ahead by threads. Of shards at a URL only what is asked for is read, unless they are in the cache.

    Parameters
    ----------
    manifest
        Of frames.
    recording
        Its key.
    shards
        Where the bytes come from; by default the manifest's root.

    Raises
    ------
    AlignmentError
        If frames are missing.
    """
    check_complete(manifest, [recording])
    rows = manifest.segments[manifest.segments["recording"] == recording].sort_values("start_frame")
    starts, owned = rows["start_frame"].tolist(), rows["n_frames"].tolist()
    segment_bytes = int(rows["n_stored"].max()) * manifest.height * manifest.width * 3
    n_ahead = max(1, min(N_AHEAD, AHEAD_BYTES // segment_bytes))
    own = None if shards is not None else open_shards(manifest)
    reader = SegmentReader(replace(manifest, segments=rows), shards or own)
    pool = ThreadPoolExecutor(n_ahead, "vidbrain-sequential")
    try:
        waiting: deque[tuple[int, Future[NDArray[np.uint8]]]] = deque()
        for i, (first, n_frames) in enumerate(zip(starts, owned, strict=True)):
            waiting.append((first, pool.submit(reader.frames, i, first, first + n_frames)))
            if len(waiting) > n_ahead:
                first, frames = waiting.popleft()
                yield first, frames.result()
        while waiting:
            first, frames = waiting.popleft()
            yield first, frames.result()
    finally:
        pool.shutdown(cancel_futures=True)
        if own is not None:
            own.close()


def clip_starts(n_frames: int, clip: ClipSpec) -> NDArray[np.int64]:
    """Starts of the clips that cover a recording: every stride, and a last one that ends with the recording.

    Empty if the recording is shorter than a clip.
    """
    if n_frames < clip.span:
        return np.empty(0, np.int64)
    starts = np.arange(0, n_frames - clip.span + 1, clip.stride)
    last = n_frames - clip.span
    return starts if starts[-1] == last else np.append(starts, last)


def clips_of(
    manifest: Manifest, recording: str, clip: ClipSpec, batch_size: int = 32, shards: Shards | None = None
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.uint8]]]:
    """Yield ``(starts (B,), video (B, T, H, W, 3))`` in time order; see `clip_starts`.

    Frames are decoded once, whatever the stride.
    """
    n_frames = int(manifest.recordings.loc[recording, "recording_frames"])
    starts = clip_starts(n_frames, clip)
    held, held_from = np.empty((0, manifest.height, manifest.width, 3), np.uint8), 0
    clips: list[NDArray[np.uint8]] = []
    done = 0
    for _, frames in frames_of(manifest, recording, shards):
        held = np.concatenate([held, frames])
        while done + len(clips) < len(starts) and starts[done + len(clips)] + clip.span <= held_from + len(held):
            at = int(starts[done + len(clips)]) - held_from
            clips.append(held[at : at + clip.span : clip.step])
            if len(clips) == batch_size:
                yield starts[done : done + len(clips)], np.stack(clips)
                done, clips = done + len(clips), []
        following = int(starts[done + len(clips)]) if done + len(clips) < len(starts) else held_from + len(held)
        drop = max(0, min(following - held_from, len(held)))
        held, held_from = held[drop:], held_from + drop
    if clips:
        yield starts[done:], np.stack(clips)


def clips_of_run(
    manifest: Manifest, run: str, clip: ClipSpec, batch_size: int = 32, shards: Shards | None = None
) -> Iterator[tuple[str, NDArray[np.int64], NDArray[np.uint8]]]:
    """Yield ``(recording, starts (B,), video (B, T, H, W, 3))`` for all clips of a BOLD run, in the order of its clock.

    Parameters
    ----------
    manifest
        Of frames.
    run
        Its label; see ``manifest.runs``.
    clip, batch_size, shards
        As for `clips_of`.

    Raises
    ------
    AlignmentError
        If no recording belongs to the run, or frames of one are missing.
    """
    table = manifest.recordings
    recordings = table[table["run"] == run].sort_values("onset_s").index.tolist() if run else []
    if not recordings:
        raise AlignmentError(
            f"no recording belongs to run {run!r}",
            where=manifest.root,
            hint=f"there are: {', '.join(manifest.runs[:12]) or 'none'}",
        )
    check_complete(manifest, recordings)
    for recording in recordings:
        for starts, video in clips_of(manifest, recording, clip, batch_size, shards):
            yield recording, starts, video
