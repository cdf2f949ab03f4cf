"""What an epoch would cost: the order alone says requests, bytes, cache, and how mixed batches are. No torch, no shard.

The same `EpochOrder` that the loader follows is walked through batch by batch; nothing is read but the index.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from vidbrain.records import World
from vidbrain.sharding.parts import PART_FRAMES
from vidbrain.stream.clips import ClipTable
from vidbrain.stream.order import EpochOrder

SHARES = (0.05, 0.1, 0.25, 0.5, 1.0)
"""Cache limits that are tried, as shares of the shards' bytes."""
GAP_BYTES = 64 << 10
"""Ranges of one shard that are nearer than this are one request."""


@dataclass(frozen=True)
class Walk:
    """Which shards the batches of one process need.

    Attributes
    ----------
    batch, shard : (n,) int64
        Each shard once for each batch that needs it, batch after batch.
    n_batches
    """

    batch: NDArray[np.int64]
    shard: NDArray[np.int64]
    n_batches: int

    @classmethod
    def of(cls, shard_of_clip: NDArray[np.int64], clips_of_batch: NDArray[np.int64]) -> Walk:
        """From the shard of each clip, in the order of an epoch, and the number of clips in each batch."""
        batch = np.repeat(np.arange(len(clips_of_batch)), clips_of_batch)
        n_shards = int(shard_of_clip.max()) + 1 if len(shard_of_clip) else 1
        pairs = np.unique(batch * n_shards + shard_of_clip)
        return cls(pairs // n_shards, pairs % n_shards, len(clips_of_batch))


def open_shards(walk: Walk, shard_bytes: NDArray[np.int64]) -> tuple[int, int]:
    """Most shards that are between their first and their last use at a time, and most bytes of them.

    A cache of so many bytes downloads no shard twice.
    """
    first, last, used = _span(walk)
    opened = np.zeros((2, walk.n_batches + 1), np.int64)
    for row, weight in enumerate((np.ones(len(used), np.int64), shard_bytes[used])):
        np.add.at(opened[row], first, weight)
        np.add.at(opened[row], last + 1, -weight)
    most = np.cumsum(opened, axis=1).max(axis=1)
    return int(most[0]), int(most[1])


def downloads(walk: Walk, shard_bytes: NDArray[np.int64], limit_bytes: int) -> tuple[int, int]:
    """Whole-shard downloads, and their bytes, with a cache that evicts what is used last (Belady 1966).

    A shard that is larger than what is left when all others are evicted is downloaded for its batch alone.
    """
    next_use = _next_use(walk)
    held: dict[int, int] = {}
    queue: list[tuple[int, int]] = []
    n, n_bytes, in_use = 0, 0, 0
    for shard, following in zip(walk.shard.tolist(), next_use.tolist(), strict=True):
        size = int(shard_bytes[shard])
        if shard not in held:
            n, n_bytes = n + 1, n_bytes + size
            while in_use + size > limit_bytes and queue:
                use, victim = heapq.heappop(queue)
                if held.get(victim) != -use:
                    continue  # it was used since
                if -use <= following:
                    heapq.heappush(queue, (use, victim))
                    break  # what is new is used last itself
                in_use -= int(shard_bytes[victim])
                del held[victim]
            if in_use + size > limit_bytes:
                continue
            in_use += size
        held[shard] = following
        heapq.heappush(queue, (-following, shard))
    return n, n_bytes


def clip_ranges(
    segments: pd.DataFrame, table: ClipTable, clips: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First byte in its tar, and length, of the parts that each clip touches: (n,), (n,)."""
    sizes = segments["parts"].tolist()
    ends = np.concatenate([[0], np.cumsum(np.concatenate(sizes))])
    begun = np.concatenate([[0], np.cumsum([len(each) for each in sizes])])
    segment, start = table.locate(clips)
    inside = start - segments["start_frame"].to_numpy(np.int64)[segment]
    low = begun[segment] + inside // PART_FRAMES
    high = begun[segment] + (inside + table.spec.span - 1) // PART_FRAMES + 1
    at = segments["offset"].to_numpy(np.int64)[segment] + ends[low] - ends[begun[segment]]
    return at, ends[high] - ends[low]


def n_ranges(
    batch: NDArray[np.int64], shard: NDArray[np.int64], at: NDArray[np.int64], n_bytes: NDArray[np.int64]
) -> tuple[int, int]:
    """Requests and bytes if each batch asks for its clips' ranges, neighbours in one request, and keeps nothing."""
    if not len(batch):
        return 0, 0
    sorted_by = np.lexsort((at, shard, batch))
    batch, shard, first, past = batch[sorted_by], shard[sorted_by], at[sorted_by], (at + n_bytes)[sorted_by]
    same = (batch[1:] == batch[:-1]) & (shard[1:] == shard[:-1])
    group = np.concatenate([[0], np.cumsum(~same)])
    # Furthest end so far, within a batch and shard.
    base = np.int64(past.max() + 1)
    reached = np.maximum.accumulate(past + group * base) - group * base
    apart = np.concatenate([[True], ~same | (first[1:] > reached[:-1] + GAP_BYTES)])
    starts = np.flatnonzero(apart)
    ends = np.append(starts[1:], len(first)) - 1
    return len(starts), int((reached[ends] - first[starts]).sum())


def simulate(
    segments: pd.DataFrame,
    table: ClipTable,
    order: EpochOrder,
    *,
    world: World = World(),  # noqa: B008 -- frozen
    shares: Sequence[float] = SHARES,
) -> dict[str, Any]:
    """Walk through an epoch of one process.

    Parameters
    ----------
    segments
        Table of the manifest.
    table
        Its clips.
    order
        The epoch's order of them.
    world
        Which process.
    shares
        Cache limits to try, as shares of the bytes of this process's shards.

    Returns
    -------
    dict
        ``clips``, ``batches``, ``streams``; means over batches of ``shards_per_batch`` and ``recordings_per_batch``
        (of this process's share of a batch); ``shards`` that the process needs and their ``shard_bytes``;
        ``open_shards``, the most between first and last use, and their ``open_bytes``: with a cache of these no shard
        is downloaded twice. ``ranged``: requests and bytes without any cache, by ranges. ``cache``: for each limit
        downloads, bytes, and how often a shard is downloaded on average.
    """
    clips = np.concatenate([np.empty(0, np.int64), *order.ahead(0, world)])
    share = order.batch_size // world.size
    # All batches are whole but the last.
    clips_of_batch = np.full(order.n_batches, share)
    clips_of_batch[-1:] = len(clips) - share * (order.n_batches - 1)
    segment, _ = table.locate(clips)
    batch = np.repeat(np.arange(order.n_batches), clips_of_batch)
    shard = segments["shard"].to_numpy(np.int64)[segment]
    recording = pd.factorize(segments["recording"])[0].astype(np.int64)[segment]
    n_bytes = np.bincount(segments["shard"], weights=segments["n_bytes"]).astype(np.int64)
    walk, mixed = Walk.of(shard, clips_of_batch), Walk.of(recording, clips_of_batch)
    used = np.unique(walk.shard)
    total = int(n_bytes[used].sum())
    n_open, open_bytes = open_shards(walk, n_bytes)
    requests, ranged_bytes = n_ranges(batch, shard, *clip_ranges(segments, table, clips))
    cache = []
    for limit in sorted({*(int(total * each) for each in shares), open_bytes}):
        n, loaded = downloads(walk, n_bytes, limit)
        cache.append(
            {"limit_bytes": limit, "downloads": n, "n_bytes": loaded, "times_each": round(n / max(1, len(used)), 3)}
        )
    return {
        "clips": len(clips),
        "batches": order.n_batches,
        "streams": order.n_streams,
        "shards_per_batch": len(walk.batch) / max(1, order.n_batches),
        "recordings_per_batch": len(mixed.batch) / max(1, order.n_batches),
        "shards": len(used),
        "shard_bytes": total,
        "open_shards": n_open,
        "open_bytes": open_bytes,
        "ranged": {"requests": requests, "n_bytes": ranged_bytes},
        "cache": cache,
    }


def _span(walk: Walk) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """First and last batch of each shard that is used, and which shards these are."""
    used, first = np.unique(walk.shard, return_index=True)
    _, from_end = np.unique(walk.shard[::-1], return_index=True)
    return walk.batch[first], walk.batch[::-1][from_end], used


def _next_use(walk: Walk) -> NDArray[np.int64]:
    """Place in the walk of the next use of the same shard; past its end where there is none."""
    by_shard = np.argsort(walk.shard, kind="stable")
    following = np.full(len(by_shard), len(by_shard), np.int64)
    same = walk.shard[by_shard][1:] == walk.shard[by_shard][:-1]
    following[by_shard[:-1][same]] = by_shard[1:][same]
    return following
