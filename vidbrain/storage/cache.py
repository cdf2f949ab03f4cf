"""A folder of downloaded content that the processes of a machine share, within a limit of bytes.

An entry is named by its content (a SHA-256, never a URL) and its size, so that equal content is held once, whoever
wants it, and the name alone says what it costs. Locks are those of the system (flock), which ends them with a process:

* ``NAME.lease``, shared by all who use an entry or are about to. Who evicts it must have it alone.
* ``NAME.lock``, of the one who downloads it; taken with a lease in hand.
* ``.lock``, of the one who counts bytes, evicts, reserves room by creating the unfinished file, or names what is done.

A process waits for no lock while it holds ``.lock``, and for one ``NAME.lock`` at a time: no two wait for each other.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import math
import os
import re
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from vidbrain.errors import ConfigError, StorageError
from vidbrain.storage.atomic import PART, as_storage_error, flush, remove
from vidbrain.storage.files import read_at

CACHE = "~/.cache/vidbrain"
CACHE_BYTES = "20G"
N_FETCHES = 3
"""How often content is fetched that arrives damaged."""
POLL_S = 0.02
COUNT_S = 10.0
"""Longest wait for others who count."""
_ENTRY = re.compile(r"((?:[0-9a-f]{64})(?:\.[0-9a-f]{16})?-(\d+))(?:\.part-.*)?")
_NO_LOCKS = {errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK, errno.EINVAL}
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}

NextUse = Callable[[str], float | None]
"""When this process next needs an entry, by its name: any rising number, infinity for never, None where not known."""


class DamagedContentError(StorageError):
    """What a store gives is not what its index says, however often it is asked."""


@dataclass(frozen=True)
class Content:
    """What an entry holds.

    Attributes
    ----------
    digest
        SHA-256 in hexadecimal, or that and, after a dot, sixteen digits that name some of its bytes.
    n_bytes
        Room that it takes.
    """

    digest: str
    n_bytes: int

    @property
    def name(self) -> str:
        """Name of its file."""
        return f"{self.digest}-{self.n_bytes}"


class Lease:
    """An entry that nobody evicts as long as this object, or its process, lives."""

    def __init__(self, content: Content, lease: int, handle: int) -> None:
        self.content, self._lease, self._handle = content, lease, handle

    def read(self, begin: int, end: int) -> bytes:
        """Read the bytes from `begin` to before `end`; fewer where the file ends.

        Raises
        ------
        StorageError
            If the disk gives none.
        """
        return read_at(self._handle, begin, end, self.content.name)

    def __del__(self) -> None:
        # Not before: another thread may be reading.
        os.close(self._handle)
        os.close(self._lease)


class Cache:
    """A shared folder of content.

    Parameters
    ----------
    folder
        On a disk of this machine; made when something is put there.
    n_bytes
        Limit of all entries together, finished or not, of all processes.

    Raises
    ------
    ConfigError
        If the folder or the limit is not understood.
    """

    def __init__(self, folder: str | Path = CACHE, n_bytes: int | str = CACHE_BYTES) -> None:
        try:
            self.folder = Path(folder).expanduser() / "shards"
        except (RuntimeError, TypeError) as error:  # a home that nobody knows
            raise ConfigError(f"the cache cannot be {folder!r}: {error}", where="cache", hint="give a folder") from None
        self.n_bytes = parse_bytes(n_bytes)

    def open(self, content: Content) -> Lease | None:
        """Give a lease on an entry, or None if it is not there.

        Raises
        ------
        StorageError
            If the folder cannot be read.
        """
        with self._errors():
            if not (self.folder / content.name).is_file():
                return None
            lease = self._share(content)
            return None if lease is None else self._opened(content, lease)

    def fill(
        self,
        content: Content,
        fetch: Callable[[Path], None],
        check: Callable[[Path], bool],
        *,
        next_use: NextUse,
        wait_s: float,
    ) -> Lease | None:
        """Give a lease on an entry; download it if it is not there.

        Parameters
        ----------
        content
            What is wanted.
        fetch
            Writes it into the file of the path given, which exists and is empty.
        check
            Says whether a file holds it.
        next_use
            Decides who goes for it: first what this process never needs again, then what it knows nothing of, the
            longest unused first, then what it needs last, but nothing that it needs before this.
        wait_s
            How long another process that downloads the same is waited for.

        Returns
        -------
        Lease or None
            None if there is no room for it, or another process takes too long.

        Raises
        ------
        DamagedContentError
            If it arrives damaged `N_FETCHES` times.
        StorageError
            If it cannot be fetched or written.
        """
        with self._errors():
            self.folder.mkdir(parents=True, exist_ok=True)
            # Before anything else: from here on nobody evicts it.
            lease = self._share(content)
            if lease is None:
                return None
            try:
                with self._locked(f"{content.name}.lock", wait_s) as mine:
                    there = (self.folder / content.name).is_file()
                    if not mine and not there:
                        return None
                    if not there and not self._download(content, fetch, check, next_use, wait_s):
                        return None
                held, lease = lease, -1
                return self._opened(content, held)
            finally:
                if lease >= 0:
                    os.close(lease)

    def drop(self, content: Content) -> None:
        """Remove an entry that was found damaged, if nobody else holds it."""
        with self._errors():
            self._evict(content.name)

    def held(self) -> dict[str, int]:
        """Room that is taken, by entry, unfinished ones included."""
        if not self.folder.is_dir():
            return {}
        with self._errors(), self._locked(".lock", COUNT_S):
            return {name: n_bytes for name, n_bytes, _ in self._entries()}

    def _download(
        self,
        content: Content,
        fetch: Callable[[Path], None],
        check: Callable[[Path], bool],
        next_use: NextUse,
        wait_s: float,
    ) -> bool:
        # Of a process that was killed; and what is in the entry's place is no file.
        for left in (*self.folder.glob(f"{content.name}{PART}*"), self.folder / content.name):
            remove(left)
        part = self.folder / f"{content.name}{PART}{uuid.uuid4().hex[:12]}"
        with self._locked(".lock", wait_s) as mine:
            if not mine or not self._make_room(content, next_use):
                return False
            part.touch()  # the room is taken
        try:
            for _ in range(N_FETCHES):
                fetch(part)
                if check(part):
                    break
            else:
                raise DamagedContentError(
                    f"what arrives is damaged, {N_FETCHES} times: its checksum differs from what its index says",
                    where=content.digest,
                    hint="run `vidbrain verify` on the data set, and push it again",
                )
            flush(part)
            # Whoever counts while a name changes may see neither the old one nor the new one.
            with self._locked(".lock", wait_s) as mine:
                if mine:
                    part.replace(self.folder / content.name)
                return mine
        finally:
            for left in self.folder.glob(f"{part.name}*"):
                remove(left)

    def _make_room(self, content: Content, next_use: NextUse) -> bool:
        """Evict until there is room; with the lock of counting in hand."""
        kept = []
        for name, n_bytes, used_s in self._entries():
            finished = (self.folder / name).is_file()
            # Unfinished and with nobody's lease: who downloaded it was killed.
            if name != content.name and (finished or not self._evict(name)):
                kept.append((name, n_bytes, used_s, finished))
        taken, mine = sum(n_bytes for _, n_bytes, _, _ in kept), next_use(content.name)
        ranked = []
        for name, n_bytes, used_s, finished in kept:
            due = next_use(name)
            if not finished:
                continue
            if due is None or mine is None:
                ranked.append((1, used_s, name, n_bytes))
            elif due > mine:
                ranked.append((0 if due == math.inf else 2, -due, name, n_bytes))
        for _, _, name, n_bytes in sorted(ranked):
            if taken + content.n_bytes <= self.n_bytes:
                break
            if self._evict(name):
                taken -= n_bytes
        return taken + content.n_bytes <= self.n_bytes

    def _entries(self) -> list[tuple[str, int, float]]:
        """Name, room and last use of every entry; an unfinished one counts as what it will be."""
        found: dict[str, tuple[int, float]] = {}
        with contextlib.suppress(FileNotFoundError), os.scandir(self.folder) as listing:
            for item in listing:
                match = _ENTRY.fullmatch(item.name)
                if match is not None:
                    with contextlib.suppress(FileNotFoundError):
                        found[match[1]] = (int(match[2]), item.stat().st_mtime)
        return [(name, *facts) for name, facts in found.items()]

    def _evict(self, name: str) -> bool:
        """Remove an entry that nobody uses, with what a killed download left of it."""
        handle = os.open(self.folder / f"{name}.lease", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            if not _flock(handle, fcntl.LOCK_EX):
                return False
            # The lease goes last: who waits for it finds that it has no name any more.
            for path in [*self.folder.glob(f"{name}{PART}*"), *(self.folder / f"{name}{end}" for end in _ENDS)]:
                remove(path)
            return True
        finally:
            os.close(handle)

    def _share(self, content: Content) -> int | None:
        """Lock an entry's lease for sharing; it need not exist. None if its eviction takes too long."""
        path = self.folder / f"{content.name}.lease"
        for _ in range(100):
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                if _flock(handle, fcntl.LOCK_SH) and _is_at(handle, path):
                    held, handle = handle, -1
                    return held
            finally:
                if handle >= 0:
                    os.close(handle)
            time.sleep(POLL_S)
        return None

    def _opened(self, content: Content, lease: int) -> Lease | None:
        try:
            handle = os.open(self.folder / content.name, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            os.close(lease)
            return None
        os.utime(handle)
        return Lease(content, lease, handle)

    @contextlib.contextmanager
    def _locked(self, name: str, wait_s: float) -> Iterator[bool]:
        """Hold a lock for the block, or not, after waiting for `wait_s`."""
        path, until = self.folder / name, time.monotonic() + wait_s
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            while not (mine := _flock(handle, fcntl.LOCK_EX)) and time.monotonic() < until:
                time.sleep(POLL_S)
            yield mine
        finally:
            os.close(handle)

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if isinstance(error, StorageError):
                raise
            if error.errno in _NO_LOCKS:
                raise StorageError(
                    "this disk has no locks, and a cache shared by processes needs them",
                    where=self.folder,
                    hint="give a folder on a disk of this machine with --cache",
                ) from error
            raise as_storage_error(error, self.folder) from error


_ENDS = ("", ".lock", ".lease")


def _flock(handle: int, kind: int) -> bool:
    try:
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_at(handle: int, path: Path) -> bool:
    """Whether a lock that was obtained is still the one that others see."""
    try:
        return os.fstat(handle).st_ino == path.stat().st_ino
    except FileNotFoundError:
        return False


def is_sha256(path: Path, n_bytes: int, sha256: str) -> bool:
    """Whether a file has this size and checksum."""
    with path.open("rb") as handle:
        return path.stat().st_size == n_bytes and hashlib.file_digest(handle, "sha256").hexdigest() == sha256


def parse_bytes(given: int | str) -> int:
    """Read a number of bytes: 500M, 20G, 1.5T, or a plain number.

    Raises
    ------
    ConfigError
        If it is none, or not positive.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)B?", str(given).strip().upper())
    n_bytes = round(float(found[1]) * _UNITS[found[2]]) if found else 0
    if n_bytes <= 0:
        raise ConfigError(f"{given!r} is no number of bytes", hint="write it as 500M, 20G or 1.5T")
    return n_bytes
