"""A shard on its way: what of it is on this machine already can be read, while the rest still comes."""

from __future__ import annotations

import os
from pathlib import Path

from vidbrain.storage.clients import PART_BYTES
from vidbrain.storage.files import read_at
from vidbrain.storage.objects import Root
from vidbrain.storage.transfers import Arrived, download


class Arriving:
    """Stretches of a file that is being written. Its owner holds a lock for all but `read`.

    They are not checked yet: who reads has checksums of what it reads.

    Parameters
    ----------
    handle
        Of the file; another one is opened, so that it may be closed, renamed and removed.
    """

    def __init__(self, handle: int) -> None:
        self._handle = os.dup(handle)
        self._file = os.fstat(handle)
        self._spans: list[tuple[int, int]] = []

    def is_of(self, handle: int) -> bool:
        """Whether it is the same file: one that is begun again is another."""
        return os.path.samestat(self._file, os.fstat(handle))

    def add(self, begin: int, end: int) -> None:
        """Hear that the bytes from `begin` to before `end` are written."""
        joined: list[tuple[int, int]] = []
        for first, past in sorted([*self._spans, (begin, end)]):
            if joined and first <= joined[-1][1]:
                joined[-1] = (joined[-1][0], max(past, joined[-1][1]))
            else:
                joined.append((first, past))
        self._spans = joined

    def holds(self, begin: int, end: int) -> bool:
        """Whether all of these bytes are written."""
        return any(first <= begin and end <= past for first, past in self._spans)

    def read(self, begin: int, end: int) -> bytes:
        """Read bytes that it holds.

        Raises
        ------
        StorageError
            If the disk gives none.
        """
        return read_at(self._handle, begin, end, "a shard on its way to the cache")

    def __del__(self) -> None:
        # Not before: another thread may be reading.
        os.close(self._handle)


def fetch_whole(place: Root, n_bytes: int, path: Path, arrived: Arrived | None) -> None:
    """Write a shard into a file: a small one in one request, others in ranges side by side.

    Parameters
    ----------
    place
        Of the tar.
    n_bytes
        Its size.
    path
        Of the file, which exists.
    arrived
        Hears what is written.

    Raises
    ------
    StorageError
        If it cannot be read, or has another size.
    """
    if n_bytes > PART_BYTES:
        download(place.parent, place.name, path, n_bytes=n_bytes, arrived=arrived)
        return
    with path.open("w+b") as handle:  # nothing stays of a try before that was longer
        n_written = handle.write(place.parent.get(place.name))
        handle.flush()
        if arrived is not None:
            arrived(handle.fileno(), 0, n_written)
