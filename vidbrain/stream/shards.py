"""The bytes of shards, by spans: where they come from is hidden from those who decode them."""

from __future__ import annotations

import os
import stat
import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from vidbrain.errors import ShardError, StorageError
from vidbrain.sharding.manifest import Manifest, shard_path
from vidbrain.storage.atomic import as_storage_error
from vidbrain.storage.cache import CACHE, CACHE_BYTES, Cache, parse_bytes
from vidbrain.storage.objects import Root
from vidbrain.stream.layout import VERIFY, Span
from vidbrain.stream.remote import RemoteShards

OPEN_SHARDS = 128


class Shards(Protocol):
    """The stored bytes of a data set; any number of threads may read."""

    def begin(self, pieces: Iterable[NDArray[np.int64]]) -> None:
        """Hear the shard of every clip that will be read next, in order, piece after piece."""

    def end(self) -> None:
        """Hear that nobody waits any more for what was announced: nothing more of it is fetched ahead."""

    def read(self, spans: Sequence[Span], n_clips: int = 0) -> list[bytes]:
        """Return the bytes of each span; `n_clips` counts those clips announced by `begin` that end with this read."""

    def read_again(self, span: Span) -> bytes | None:
        """Return the bytes of a span that was found damaged from where they came first; None if that was there."""

    def where(self, shard: int) -> str:
        """Name a shard, for errors."""

    def stats(self) -> dict[str, float]:
        """Counts since the start: n_bytes, n_requests, cache_hits, retries."""

    def close(self) -> None:
        """Let go of files and threads."""


class LocalShards:
    """Tars in a folder, read by position.

    Files are opened when first needed and stay open, at most `OPEN_SHARDS` of them.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._start()

    def _start(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._files: OrderedDict[int, OpenFile] = OrderedDict()
        self._n_bytes = 0

    def __reduce__(self) -> tuple[type[LocalShards], tuple[Path]]:
        return LocalShards, (self._root,)

    def begin(self, pieces: Iterable[NDArray[np.int64]]) -> None:
        """Nothing is fetched ahead from a disk."""

    def end(self) -> None:
        """Nothing is fetched ahead from a disk."""

    def read(self, spans: Sequence[Span], n_clips: int = 0) -> list[bytes]:
        """Read spans of tars.

        Raises
        ------
        StorageError
            If a tar cannot be opened.
        ShardError
            If one ends too early.
        """
        self._check_process()
        found, at = [], -1
        for shard, begin, end in spans:
            if shard != at:
                at, file = shard, self._open(shard)
            found.append(file.read(begin, end))
        with self._lock:
            self._n_bytes += sum(map(len, found))
        return found

    def read_again(self, span: Span) -> bytes | None:
        """There is no other copy."""
        return None

    def where(self, shard: int) -> str:
        """Path of the tar."""
        return str(shard_path(self._root, shard))

    def stats(self) -> dict[str, float]:
        """Count bytes; a disk has no requests."""
        return {"n_bytes": self._n_bytes, "n_requests": 0, "cache_hits": 0, "retries": 0}

    def close(self) -> None:
        """Close the files."""
        self._check_process()
        with self._lock:
            self._files.clear()

    def _check_process(self) -> None:
        if os.getpid() != self._pid:  # a lock of the parent may be closed for ever in its child
            self._start()

    def _open(self, shard: int) -> OpenFile:
        with self._lock:
            file = self._files.get(shard)
            if file is None:
                file = self._files[shard] = OpenFile(shard_path(self._root, shard))
                if len(self._files) > OPEN_SHARDS:
                    self._files.popitem(last=False)
            else:
                self._files.move_to_end(shard)
            return file


class OpenFile:
    """A file open for reading by position. It closes when nobody holds it any more, so that no reader is cut off.

    Raises
    ------
    StorageError
        If it cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.handle = path, -1
        try:
            self.handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise StorageError("a shard is missing", where=path, hint=VERIFY) from None
        except OSError as error:
            raise as_storage_error(error, path) from error
        found = os.fstat(self.handle)
        if not stat.S_ISREG(found.st_mode):
            raise StorageError("there is a folder, or something else, in the place of a shard", where=path, hint=VERIFY)
        self.n_bytes = found.st_size

    def read(self, begin: int, end: int) -> bytes:
        """Read the bytes from `begin` to before `end`.

        Raises
        ------
        ShardError
            If the file ends before.
        StorageError
            If the disk gives none.
        """
        try:
            # Asked before reading: an absurd length in an index must not be allocated.
            data = os.pread(self.handle, end - begin, begin) if end <= self.n_bytes else b""
        except OSError as error:
            raise as_storage_error(error, self.path) from error
        if len(data) != end - begin:
            raise ShardError(
                f"the shard ends {end - self.n_bytes} bytes too early"
                if end > self.n_bytes
                else f"the shard was cut short while it was read: {end - begin - len(data)} bytes are missing",
                where=self.path,
                hint=VERIFY,
            )
        return data

    def __del__(self) -> None:
        if self.handle >= 0:
            os.close(self.handle)


def open_shards(
    manifest: Manifest,
    positions: NDArray[np.int64] | None = None,
    *,
    cache: str | Path = CACHE,
    cache_bytes: int | str = CACHE_BYTES,
) -> Shards:
    """Give access to a manifest's shards.

    Parameters
    ----------
    manifest
        In a folder or at a URL.
    positions : (n,) int64
        The segments that may be wanted; by default all. It decides what is fetched of each shard.
    cache, cache_bytes
        Folder and limit of what is kept of shards at a URL; see `vidbrain.storage.cache`.

    Raises
    ------
    ConfigError
        If the limit is no number of bytes, for a folder too, or the cache's folder is none.
    """
    if not isinstance(manifest.root, Root):
        parse_bytes(cache_bytes)
        return LocalShards(manifest.root)
    positions = np.arange(len(manifest.segments)) if positions is None else positions
    return RemoteShards(manifest, positions, Cache(cache, cache_bytes))
