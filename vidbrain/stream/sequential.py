"""Recordings in time order, across segments and shards: for feature extraction."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from vidbrain.errors import AlignmentError
from vidbrain.records import ClipSpec
from vidbrain.sharding.manifest import Manifest
from vidbrain.stream.reader import SegmentReader


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


def frames_of(manifest: Manifest, recording: str) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Yield ``(first frame, frames (n, H, W, 3))`` of a recording, every frame once, in order.

    Raises
    ------
    AlignmentError
        If frames are missing.
    """
    check_complete(manifest, [recording])
    positions = np.flatnonzero(manifest.segments["recording"].to_numpy() == recording)
    starts = manifest.segments["start_frame"].to_numpy()[positions]
    owned = manifest.segments["n_frames"].to_numpy()[positions]
    with SegmentReader(manifest) as reader:
        for i in np.argsort(starts):
            first = int(starts[i])
            yield first, reader.frames(int(positions[i]), first, first + int(owned[i]))


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
    manifest: Manifest, recording: str, clip: ClipSpec, batch_size: int = 32
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.uint8]]]:
    """Yield ``(starts (B,), video (B, T, H, W, 3))`` in time order; see `clip_starts`.

    Frames are decoded once, whatever the stride.
    """
    n_frames = int(manifest.recordings.loc[recording, "recording_frames"])
    starts = clip_starts(n_frames, clip)
    held, held_from = np.empty((0, manifest.height, manifest.width, 3), np.uint8), 0
    clips: list[NDArray[np.uint8]] = []
    done = 0
    for _, frames in frames_of(manifest, recording):
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
