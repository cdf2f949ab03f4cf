"""Where the parts of segments lie, and which of them some clips need. Pure: arrays in, lists of reads out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from vidbrain.errors import ShardError
from vidbrain.records import ClipSpec
from vidbrain.sharding.parts import PART_FRAMES

Span = tuple[int, int, int]
"""Shard, first byte and past the last one."""

VERIFY = "run `vidbrain verify` on the data set"
"""What to do about shards that are not what their index says."""
UNKNOWN = -1
"""In the place of a checksum that the index does not have."""
SPANS_AT_ONCE = 64
"""Spans that are read before any of them is decoded: it bounds the stored bytes in memory."""


@dataclass(frozen=True)
class Layout:
    """The parts of all segments of a manifest, numbered through in plan order.

    Attributes
    ----------
    key : (n_segments,) str
    shard, start_frame, n_stored : (n_segments,) int64
        As in the index.
    first_part : (n_segments + 1,) int64
        Number of each segment's first part, and the total.
    begin, n_bytes : (n_parts,) int64
        Place of each part in its shard.
    crc32 : (n_parts,) int64
        Checksum of each part, or `UNKNOWN`.
    segment : (n_parts,) int64
        The segment that each part belongs to.
    """

    key: NDArray[Any]
    shard: NDArray[np.int64]
    start_frame: NDArray[np.int64]
    n_stored: NDArray[np.int64]
    first_part: NDArray[np.int64]
    begin: NDArray[np.int64]
    n_bytes: NDArray[np.int64]
    crc32: NDArray[np.int64]
    segment: NDArray[np.int64]

    def number(self, part: int) -> int:
        """Place of a part in its segment."""
        return part - int(self.first_part[self.segment[part]])


class Use(NamedTuple):
    """Frames `keep` of a part, wanted as frames ``[first, past)`` of clip `clip` of a batch."""

    clip: int
    first: int
    past: int
    keep: range


class PartRead(NamedTuple):
    """A part to be decoded once: its bytes in the span `span` of its reads, what they must be, and all who use it."""

    part: int
    span: int
    begin: int
    past: int
    crc32: int
    n_frames: int
    uses: list[Use]


class Reads(NamedTuple):
    """Spans to be read together, and the parts in them."""

    spans: list[Span]
    parts: list[PartRead]


def layout_of(segments: pd.DataFrame) -> Layout:
    """Number the parts of an index's rows."""
    parts = segments["parts"].tolist()
    counts = np.fromiter((len(sizes) for sizes in parts), np.int64, len(parts))
    first_part = np.concatenate([[0], np.cumsum(counts)])
    n_bytes = np.concatenate([np.empty(0, np.int64), *parts]).astype(np.int64)
    segment = np.repeat(np.arange(len(parts)), counts)
    # Each part begins where those before it in its member end.
    ends = np.concatenate([[0], np.cumsum(n_bytes)])
    begin = segments["offset"].to_numpy(np.int64)[segment] + ends[:-1] - ends[first_part[:-1]][segment]
    known = segments["part_crc32"].tolist()
    sums = [np.full(n, UNKNOWN) if found is None else found for n, found in zip(counts.tolist(), known, strict=True)]
    return Layout(
        key=segments["key"].to_numpy(),
        shard=segments["shard"].to_numpy(np.int64),
        start_frame=segments["start_frame"].to_numpy(np.int64),
        n_stored=segments["n_stored"].to_numpy(np.int64),
        first_part=first_part,
        begin=begin,
        n_bytes=n_bytes,
        crc32=np.concatenate([np.empty(0, np.int64), *sums]).astype(np.int64),
        segment=segment,
    )


def plan_reads(
    layout: Layout, segments: NDArray[np.int64], starts: NDArray[np.int64], spec: ClipSpec
) -> Iterator[Reads]:
    """Say what must be read for some clips: every part once, whoever uses it, in the order of the shards.

    Parameters
    ----------
    layout
        Of the manifest.
    segments : (B,) int64
        Position of each clip's segment in the manifest.
    starts : (B,) int64
        First frame of each clip in its recording.
    spec
        The clip specification; its stride does not matter here.

    Yields
    ------
    Reads
        At most `SPANS_AT_ONCE` spans together. Parts of a segment that lie side by side are one span.

    Raises
    ------
    ValueError
        If a frame is not stored in its segment.
    ShardError
        If a segment has fewer parts than its frames need.
    """
    first = check_stored(layout, segments, starts, spec)
    frames = first[:, None] + np.arange(spec.n_frames) * spec.step
    number = frames // PART_FRAMES
    part = number + layout.first_part[segments][:, None]
    begins = np.ones(part.shape, np.bool_)
    begins[:, 1:] = part[:, 1:] != part[:, :-1]
    clip, at = np.nonzero(begins)
    past = np.append(at[1:], 0)
    past[past == 0] = spec.n_frames  # the next one belongs to another clip
    wanted, inside = part[clip, at], frames[clip, at] % PART_FRAMES
    order = np.argsort(wanted, kind="stable")
    uses = [
        Use(c, f, p, range(k, k + (p - f - 1) * spec.step + 1, spec.step))
        for c, f, p, k in zip(*(column[order].tolist() for column in (clip, at, past, inside)), strict=True)
    ]
    parts, first_use = np.unique(wanted[order], return_index=True)
    bounds = [*first_use.tolist(), len(uses)]
    yield from reads_of(layout, parts, [uses[low:high] for low, high in pairwise(bounds)])


def check_stored(
    layout: Layout, segments: NDArray[np.int64], starts: NDArray[np.int64], spec: ClipSpec
) -> NDArray[np.int64]:
    """Give the first frame of each clip in its segment, if all of its frames are stored there: (B,) int64.

    Raises
    ------
    ValueError, ShardError
        As `plan_reads`.
    """
    first = starts - layout.start_frame[segments]
    if (first < 0).any() or (first + spec.span > layout.n_stored[segments]).any():
        raise ValueError("some frames are not stored in the segments that are asked for them")
    n_parts = layout.first_part[segments + 1] - layout.first_part[segments]
    lacking = (first + spec.span - 1) // PART_FRAMES >= n_parts
    if lacking.any():
        at = int(lacking.argmax())
        raise ShardError(
            f"the segment stores {layout.n_stored[segments[at]]} frames in {n_parts[at]} parts of {PART_FRAMES}",
            where=layout.key[segments[at]],
            hint=VERIFY,
        )
    return first


def reads_of(layout: Layout, parts: NDArray[np.int64], uses: Sequence[list[Use]]) -> Iterator[Reads]:
    """Join parts that lie side by side into spans, and spans into reads.

    Parameters
    ----------
    layout
        Of the manifest.
    parts : (n,) int64
        Ascending, each once.
    uses
        Of each part.

    Yields
    ------
    Reads
        At most `SPANS_AT_ONCE` spans together; nothing where there are no parts.
    """
    if not len(parts):
        return
    segment, begin = layout.segment[parts], layout.begin[parts]
    shard, end = layout.shard[segment], begin + layout.n_bytes[parts]
    opens = np.ones(len(parts), np.bool_)
    opens[1:] = (begin[1:] != end[:-1]) | (shard[1:] != shard[:-1])
    first = np.flatnonzero(opens)
    span_begin, span_end = begin[first], end[np.append(first[1:], len(parts)) - 1]
    span = np.cumsum(opens) - 1
    n_frames = np.minimum(PART_FRAMES, layout.n_stored[segment] - PART_FRAMES * (parts - layout.first_part[segment]))
    offset = span_begin[span]
    columns = (parts, span % SPANS_AT_ONCE, begin - offset, end - offset, layout.crc32[parts], n_frames)
    places = zip(*(column.tolist() for column in columns), strict=True)
    reads = [PartRead._make((*place, used)) for place, used in zip(places, uses, strict=True)]
    spans = list(zip(shard[first].tolist(), span_begin.tolist(), span_end.tolist(), strict=True))
    firsts = [*first.tolist(), len(reads)]
    for low in range(0, len(spans), SPANS_AT_ONCE):
        high = min(low + SPANS_AT_ONCE, len(spans))
        yield Reads(spans[low:high], reads[firsts[low] : firsts[high]])
