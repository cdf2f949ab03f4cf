"""Spans of shards, read by ranges: neighbours in one request, requests side by side."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

from vidbrain.errors import StorageError
from vidbrain.sharding.manifest import shard_path
from vidbrain.storage.clients import PART_BYTES
from vidbrain.storage.files import ObjectMissingError
from vidbrain.storage.objects import N_THREADS, Root, coalesce
from vidbrain.stream.layout import VERIFY, Span


class Ranges:
    """Reads spans of a data set's shards; any number of threads may ask.

    Parameters
    ----------
    root
        The data set, at a URL.
    """

    def __init__(self, root: Root) -> None:
        self._root, self._lock = root, threading.Lock()
        self._pool: ThreadPoolExecutor | None = None

    def read(self, spans: Sequence[Span]) -> dict[Span, bytes]:
        """Read spans from the store; neighbours in one request, requests side by side."""
        by_shard: dict[int, list[tuple[int, int]]] = {}
        for shard, begin, end in spans:
            by_shard.setdefault(shard, []).append((begin, end))
        jobs = [
            (shard, begin, min(last, begin + PART_BYTES))
            for shard, wanted in by_shard.items()
            for first, last in coalesce(wanted)
            for begin in range(first, last, PART_BYTES)
        ]
        blocks = dict(zip(jobs, self._side_by_side(jobs), strict=True))
        return {span: _cut(span, blocks) for span in spans}

    def _side_by_side(self, jobs: Sequence[Span]) -> Iterable[bytes]:
        if len(jobs) < 2:
            return [self._range(job) for job in jobs]
        with self._lock:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(N_THREADS, "vidbrain-range")
            pool = self._pool
        return pool.map(self._range, jobs)

    def _range(self, span: Span) -> bytes:
        place = shard_path(self._root, span[0])
        try:
            return place.parent.get_range(place.name, span[1], span[2])
        except StorageError as error:
            raise with_cure(error) from error

    def close(self) -> None:
        """Let go of threads; what they are at, they end."""
        with self._lock:
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(wait=False)


def with_cure(error: StorageError) -> StorageError:
    """Say what to do about a shard that is missing or too short: its URL follows from the data set's."""
    if error.hint is None or isinstance(error, ObjectMissingError):
        return StorageError(error.message, where=error.where, likely=error.likely, hint=VERIFY)
    return error


def _cut(span: Span, blocks: dict[Span, bytes]) -> bytes:
    """Find a span in the blocks that hold it."""
    shard, begin, end = span
    pieces = []
    for (of, first, past), data in blocks.items():
        if of == shard and first < end and begin < past:
            pieces.append(data[max(begin, first) - first : min(end, past) - first])
    return b"".join(pieces)
