"""The order of an epoch: a pure function of (clips per shard, seed, epoch, batch size). No torch, no disk.

The clips, numbered shard after shard, are cut into C equal pieces, the canonical streams; they are the same in every
epoch and for every world. Batch b takes the next G / C clips of each stream, so that a process which owns streams needs
the shards of those alone. In each epoch a stream permutes its shards, and every clip draws a place, uniformly within
half a window of the middle of its shard (within its shard, where that is longer than the window); clips are visited by
place. This is the windowed shuffle of MosaicML's ``py1e`` in one draw. It is a full permutation where the window holds
the whole stream, and otherwise a shard of n clips is open for no longer than max(n, window) places: no more than
window / n + 1 shards of n clips are open in a stream at once.

Places are hashes of clip numbers, so that any stretch of the order is found without the rest: the first batch of six
million clips costs no more than that of ten thousand, and a resume at the end no more than a start. Nothing depends on
numpy's random streams, which may change between its versions.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vidbrain.errors import ConfigError
from vidbrain.records import World

ORDER_VERSION = 2
"""Of the algorithm below: a stream's state names it, and states of another are refused."""
WINDOW = 65_536
"""Reach of the shuffle in clips, over all streams."""
STREAMS = 16
"""Most canonical streams."""
CHUNK = 16_384
"""Fewest places that are sorted at a time."""
BLOCK = 32
"""Batches that are put together at a time."""

Tail = Literal["drop", "mask"]
ALONE = World()
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def n_streams_of(batch_size: int) -> int:
    """Canonical streams of a global batch: the largest number up to `STREAMS` that divides it."""
    return next(n for n in range(min(STREAMS, batch_size), 0, -1) if batch_size % n == 0)


def check_world(batch_size: int, world: World) -> None:
    """Refuse a world that cannot share a batch evenly, and name those that can.

    Raises
    ------
    ConfigError
        If the world's size does not divide the batch size.
    """
    if batch_size < 1:
        raise ConfigError(f"a batch holds at least one clip, not {batch_size}", where="batch_size")
    if batch_size % world.size:
        fitting = [str(n) for n in range(1, batch_size + 1) if batch_size % n == 0]
        raise ConfigError(
            f"a global batch of {batch_size} cannot be shared by {world.size} processes",
            hint=f"use {', '.join(fitting[:12])} processes, or another batch size",
        )


class EpochOrder:
    """The order of one epoch. What it holds at a time is bounded: it grows with the window, not with the clips.

    Parameters
    ----------
    clips_per_shard : (n_shards,)
        Clips are numbered shard after shard.
    batch_size
        Of the global batch.
    seed, epoch
        Key of the shuffle.
    window
        Reach of the shuffle in clips, over all streams; 0 keeps the numbering.
    tail
        ``"drop"`` leaves out the clips that do not fill the last batch, ``"mask"`` fills it up with -1. No clip is
        ever given twice.
    n_streams
        Canonical streams; has to divide the batch size. The default is `n_streams_of` it.
    """

    def __init__(
        self,
        clips_per_shard: NDArray[np.int64],
        *,
        batch_size: int,
        seed: int,
        epoch: int,
        window: int = WINDOW,
        tail: Tail = "drop",
        n_streams: int | None = None,
    ) -> None:
        check_world(batch_size, World())
        self.batch_size, self.tail = batch_size, tail
        # Without a shuffle there is one stream, which is the numbering.
        self.n_streams = (n_streams or n_streams_of(batch_size)) if window else 1
        if batch_size % self.n_streams:
            raise ConfigError(f"{self.n_streams} streams do not divide a batch of {batch_size}", where="n_streams")
        self.n_clips = int(clips_per_shard.sum())
        self.n_batches = self.n_clips // batch_size if tail == "drop" else -(-self.n_clips // batch_size)
        self._clips_per_shard, self._key = clips_per_shard, f"{seed}/{epoch}"
        self._window = -(-window // self.n_streams)

    @cached_property
    def _streams(self) -> list[_Stream]:
        """Made when the first of them is needed: who asks how many batches there are does not wait for them."""
        edges = np.concatenate([[0], np.cumsum(self._clips_per_shard, dtype=np.int64)])
        keys = {what: _key(self._key, what) for what in ("clips", "shards")}
        return [
            _Stream(edges, *stream_bounds(self.n_clips, self.n_streams, c), keys, self._window)
            for c in range(self.n_streams)
        ]

    def batch(self, number: int, world: World = ALONE) -> NDArray[np.int64]:
        """Return one process's part of a global batch: (G / W,) int64, -1 where masked.

        Rank r of W takes the r-th of W equal parts, stream after stream. The concatenation over ranks is the same for
        every W.

        Raises
        ------
        ConfigError
            If the world's size does not divide the batch size.
        """
        rows: NDArray[np.int64] = self._rows(number, number + 1, world)[0]
        return rows

    def batches(self, first: int, world: World = ALONE, *, step: int = 1) -> Iterator[tuple[int, NDArray[np.int64]]]:
        """Yield number and clips of every `step`-th batch from `first` on, as `batch` returns them, only faster."""
        for begin in range(first, self.n_batches, BLOCK * step):
            rows = self._rows(begin, min(begin + BLOCK * step, self.n_batches), world)[::step]
            yield from zip(range(begin, self.n_batches, step), rows, strict=False)

    @property
    def held_bytes(self) -> int:
        """Most memory that an epoch's batches take."""
        held = sum(stream.held_bytes for stream in self._streams)
        # Chunks are sorted one after the other.
        return held + max(stream.sorting_bytes for stream in self._streams) + 32 * BLOCK * self.batch_size

    def ahead(self, first: int, world: World = ALONE, *, step: int = 1) -> Iterator[NDArray[np.int64]]:
        """Yield the clips of one process in global batches `first`, `first` + `step`, …, in pieces, no masked rows."""
        for begin in range(first, self.n_batches, BLOCK * step):
            rows = self._rows(begin, min(begin + BLOCK * step, self.n_batches), world)[::step]
            yield rows[rows >= 0]

    def substitutes(self, number: int, slot: int) -> Iterator[int]:
        """Yield what may stand in for a clip: those that follow it in its stream, and then those before it.

        Parameters
        ----------
        number
            Global batch.
        slot
            Place in the global batch.
        """
        share = self.batch_size // self.n_streams
        stream, at = self._streams[slot // share], number * share + slot % share
        for position in (*range(at + 1, stream.size), *range(at)):
            yield int(stream.take(position, position + 1)[0])

    def _rows(self, first: int, past: int, world: World) -> NDArray[np.int64]:
        """One process's parts of the batches [first, past): (past - first, G / W) int64."""
        share, columns = self.batch_size // self.n_streams, []
        for c, low, high in self._slots(world):
            found = self._streams[c].take(first * share, past * share).astype(np.int64)
            lacking = (past - first) * share - len(found)
            found = np.pad(found, (0, lacking), constant_values=-1) if lacking else found
            columns.append(found.reshape(past - first, share)[:, low:high])
        return np.concatenate(columns, axis=1)

    def _slots(self, world: World) -> Iterator[tuple[int, int, int]]:
        """Streams that a process touches, and from which to which slot of the stream's share."""
        check_world(self.batch_size, world)
        share, part = self.batch_size // self.n_streams, self.batch_size // world.size
        first, past = world.rank * part, (world.rank + 1) * part
        for c in range(first // share, -(-past // share)):
            yield c, max(first - c * share, 0), min(past - c * share, share)


def stream_bounds(n_clips: int, n_streams: int, stream: int) -> tuple[int, int]:
    """First and past-the-last clip number of a canonical stream: streams differ by one clip at most."""
    return n_clips * stream // n_streams, n_clips * (stream + 1) // n_streams


class _Stream:
    """The order of the clips [low, high), a chunk at a time."""

    def __init__(self, edges: NDArray[np.int64], low: int, high: int, keys: dict[str, np.uint64], window: int) -> None:
        self.size, self._first, self._shuffled = high - low, low, window > 0
        self._at, self._number = 0, -1
        self._held: NDArray[np.integer[Any]] = np.empty(0, np.uint32)
        if not (self._shuffled and self.size):
            return
        self._key = keys["clips"]
        if window >= self.size:  # which makes one shard of the stream
            self._starts, self._lengths = np.array([low]), np.array([self.size])
        else:
            inside = edges[np.searchsorted(edges, low, "right") : np.searchsorted(edges, high, "left")]
            bounds = np.unique(np.concatenate([[low], inside, [high]]))
            shuffled = np.argsort(_hashes(bounds[:-1], keys["shards"]), kind="stable")
            self._starts, self._lengths = bounds[:-1][shuffled], np.diff(bounds)[shuffled]
        self._before = np.concatenate([[0], np.cumsum(self._lengths)])
        reach = np.maximum(self._lengths, window)
        # Both ascend: neighbours' middles are further apart than their reaches differ.
        self._low = self._before[:-1] + (self._lengths - reach) / 2
        self._high = self._low + reach
        self._span = max(4 * window, CHUNK, int(self._lengths.max()))
        self._n_chunks = max(1, -int(-(self._high[-1] - self._low[0]) // self._span))

    @property
    def held_bytes(self) -> int:
        """A sorted chunk, and the shards."""
        if not (self._shuffled and self.size):
            return 0
        return 8 * min(self._span, self.size) + 48 * len(self._lengths)

    @property
    def sorting_bytes(self) -> int:
        """The arrays that a chunk is sorted in."""
        if not (self._shuffled and self.size):
            return 0
        drawn = self._span + 2 * int((self._high - self._low).max())
        return 64 * min(drawn, self.size)

    def take(self, first: int, past: int) -> NDArray[np.integer[Any]]:
        """Clips of rank `first` to `past` in the stream, as many as there are: uint32, or int64 beyond 2^32."""
        past = min(past, self.size)
        if not self._shuffled:
            return np.arange(first, max(first, past)) + self._first
        parts = []
        while first < past:
            self._hold(first)
            parts.append(self._held[first - self._at : past - self._at])
            first += len(parts[-1])
        return np.concatenate(parts) if parts else np.empty(0, np.uint32)

    def _hold(self, rank: int) -> None:
        """Sort the chunk in which the clip of this rank lies, unless it is held already."""
        if self._at <= rank < self._at + len(self._held):
            return
        if self._number >= 0 and rank == self._at + len(self._held):
            number = self._number + 1
        else:  # near its own place: ranks and places differ by half a window or a shard at most
            number = min(int((rank - self._low[0]) // self._span), self._n_chunks - 1)
        while True:
            at, clips = self._chunk(number)
            if at <= rank < at + len(clips):
                break
            number += 1 if rank >= at else -1
        self._number, self._at = number, at
        self._held = clips.astype(np.uint32) if self._first + self.size < 2**32 else clips

    def _chunk(self, number: int) -> tuple[int, NDArray[np.int64]]:
        """Clips whose places lie in a stretch, sorted, and how many clips come before them."""
        begin, end = (float(self._low[0] + each * self._span) for each in (number, number + 1))
        if number == self._n_chunks - 1:
            end = np.inf
        # Whole shards before the stretch are counted, not looked at.
        whole = int(np.searchsorted(self._high, begin, "right"))
        clips, places = self._places(whole, int(np.searchsorted(self._low, end, "left")))
        inside = (places >= begin) & (places < end)
        before = int(self._before[whole] + (places < begin).sum())
        return before, clips[inside][np.argsort(places[inside], kind="stable")]

    def _places(self, a: int, b: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Clips of the a-th to b-th shard in shuffled order, and the places that they draw."""
        starts, lengths, low, high = (each[a:b] for each in (self._starts, self._lengths, self._low, self._high))
        if b - a == 1:
            clips = np.arange(int(starts[0]), int(starts[0] + lengths[0]))
        else:
            begun = np.cumsum(lengths) - lengths
            clips = np.arange(int(lengths.sum())) + np.repeat(starts - begun, lengths)
            low, high = np.repeat(low, lengths), np.repeat(high, lengths)
        drawn = (_hashes(clips, self._key) >> np.uint64(11)) * 2.0**-53
        # Never the upper end itself, to which the sum may be rounded: whole shards are counted by it.
        return clips, np.minimum(low + drawn * (high - low), np.nextafter(high, low))


def _key(*parts: object) -> np.uint64:
    digest = hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()
    return np.uint64(int.from_bytes(digest[:8], "big"))


def _hashes(numbers: NDArray[np.int64], key: np.uint64) -> NDArray[np.uint64]:
    """SplitMix64 (Steele, Lea and Flood 2014), at each number: 64 bits that depend on key and number alone."""
    # Arrays wrap around without a warning; numbers would warn.
    z = key + (numbers.astype(np.uint64) + np.uint64(1)) * _GOLDEN
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(z ^ (z >> np.uint64(31)), np.uint64)
