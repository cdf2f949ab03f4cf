"""The balanced order: arrays of segments enter, a permutation leaves in which every prefix is a fair sample.

Subjects take turns by their share of frames (Webster's divisor rule: whose next segment is due first). Within a
subject's turn the level goes next that lacks most frames, over all subjects and within this one; this is minimisation,
as trials balance their arms over several factors (Pocock and Simon 1975). Within a subject and level the sessions are
merged by quantiles: the j-th of n segments stands at (j + u) / n, with u one keyed number a session. Within a session
segments are permuted by a keyed hash.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


class Stratum(NamedTuple):
    """What prefixes are balanced over; empty where a recording has none."""

    subject: str
    level: str
    session: str


def keyed(seed: int, *parts: object) -> float:
    """A number in [0, 1) that depends on the seed and the parts alone, equal on every machine."""
    return _digest(seed, *parts) / 2**64


def _digest(seed: int, *parts: object) -> int:
    digest = hashlib.sha256("\x1f".join([str(seed), *map(str, parts)]).encode()).digest()
    return int.from_bytes(digest[:8], "big")


def segment_noise(
    names: Sequence[str], recording: NDArray[np.int32], start_frame: NDArray[np.int64], seed: int
) -> NDArray[np.uint64]:
    """A keyed hash of each segment: SHA-256 of its recording's name, mixed with its first frame.

    The mixing is SplitMix64 (Steele, Lea and Flood 2014), which takes millions of segments at once.

    Returns
    -------
    (n_segments,) uint64
    """
    own = np.array([_digest(seed, "segment", name) for name in names], np.uint64)
    with np.errstate(over="ignore"):
        z = own[recording] + (start_frame.astype(np.uint64) + np.uint64(1)) * _GOLDEN
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(z ^ (z >> np.uint64(31)), np.uint64)


def balanced(
    strata: Sequence[Stratum],
    recording: NDArray[np.int32],
    n_frames: NDArray[np.int64],
    noise: NDArray[np.uint64],
    *,
    taken: NDArray[np.bool_],
    enough: int,
    seed: int,
) -> NDArray[np.intp]:
    """Order segments so that every prefix is balanced over subject, level and session, in frames.

    Parameters
    ----------
    strata
        Of each recording.
    recording : (n_segments,) int32
        Position of each segment's recording in `strata`.
    n_frames : (n_segments,) int64
        Frames that each segment owns.
    noise : (n_segments,) uint64
        Keyed hash of each segment.
    taken : (n_segments,) bool
        False for segments that the result leaves out; they do not change the order of the others.
    enough
        Stop when the result holds this many frames; the rest of the order is not asked for.
    seed
        Key of ties and offsets.

    Returns
    -------
    (n_ordered,) intp
        Positions of segments.
    """
    queues = _queues(strata, recording, noise, seed)
    levels = sorted({level for _, level in queues})
    frames_of = {group: int(n_frames[members].sum()) for group, members in queues.items()}
    total = sum(frames_of.values())
    level_share = {level: sum(n for (_, of), n in frames_of.items() if of == level) / total for level in levels}
    # A mutable record for each subject and level: queue, place in it, frames so far, share of all frames, level.
    cells: dict[str, list[_Cell]] = {}
    for group in sorted(queues, key=lambda group: keyed(seed, "group", *group)):
        subject, level = group
        members = queues[group]
        cells.setdefault(subject, []).append(
            _Cell(members.tolist(), n_frames[members].tolist(), level, frames_of[group] / total)
        )
    subject_frames = {subject: sum(sum(cell.sizes) for cell in own) for subject, own in cells.items()}
    half, step = n_frames.max() / 2, int(n_frames.max())
    due = [(half / subject_frames[s], keyed(seed, "subject", s), s, 0) for s in cells]
    heapq.heapify(due)
    level_frames = dict.fromkeys(levels, 0)
    order: list[int] = []
    seen = held = 0
    while due and held < enough:
        _, tie, subject, mine = heapq.heappop(due)
        ahead = seen + step
        best, least = None, np.inf
        for cell in cells[subject]:
            lead = level_frames[cell.level] + cell.frames - (level_share[cell.level] + cell.share) * ahead
            if lead < least:
                best, least = cell, lead
        assert best is not None
        position, size = best.queue[best.at], best.sizes[best.at]
        best.at, best.frames = best.at + 1, best.frames + size
        level_frames[best.level] += size
        seen, mine = seen + size, mine + size
        if best.at == len(best.queue):
            cells[subject].remove(best)
        if cells[subject]:
            heapq.heappush(due, ((mine + half) / subject_frames[subject], tie, subject, mine))
        if taken[position]:
            order.append(position)
            held += size
    return np.array(order, np.intp)


class _Cell:
    """One subject's segments of one level, in the order in which they are taken."""

    __slots__ = ("at", "frames", "level", "queue", "share", "sizes")

    def __init__(self, queue: list[int], sizes: list[int], level: str, share: float) -> None:
        self.queue, self.sizes, self.level, self.share = queue, sizes, level, share
        self.at = self.frames = 0


def _queues(
    strata: Sequence[Stratum], recording: NDArray[np.int32], noise: NDArray[np.uint64], seed: int
) -> dict[tuple[str, str], NDArray[np.intp]]:
    """For each subject and level its segments, sessions merged by quantile."""
    known = sorted(set(strata))
    number = {stratum: i for i, stratum in enumerate(known)}
    stratum = np.array([number[s] for s in strata], np.intp)[recording]
    order = np.lexsort((noise, stratum))
    counts = np.bincount(stratum, minlength=len(known))
    offset = np.array([keyed(seed, "stratum", *s) for s in known])
    member = stratum[order]
    place = np.arange(len(order)) - (np.cumsum(counts) - counts)[member]
    quantile = (place + offset[member]) / counts[member]
    groups = sorted({(s.subject, s.level) for s in known})
    group_number = {group: i for i, group in enumerate(groups)}
    group = np.array([group_number[s.subject, s.level] for s in known], np.intp)[member]
    merged = np.lexsort((noise[order], quantile, group))
    bounds = np.searchsorted(group[merged], np.arange(len(groups) + 1))
    queues = {name: order[merged[bounds[i] : bounds[i + 1]]] for i, name in enumerate(groups)}
    return {name: members for name, members in queues.items() if len(members)}
