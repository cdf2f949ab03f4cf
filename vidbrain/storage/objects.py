"""Roots that are URLs, and roots that are paths, by one small handle.

A `Root` holds a URL and two patience settings: it pickles, and a worker process makes its own client when
it first reads. Every request is repeated after what passes (a busy server, a broken connection, a body cut short), with
growing, random pauses, until a deadline; what does not pass is one clear error. Credentials come from the environment
and appear in no message: of a server's answer only the status and the error code are shown.
"""

from __future__ import annotations

import functools
import itertools
import random
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from vidbrain.errors import StorageError
from vidbrain.storage.answers import Answer, error_of, read_answer
from vidbrain.storage.atomic import as_storage_error
from vidbrain.storage.clients import (
    FIRST_PAUSE_S,
    LONGEST_PAUSE_S,
    client_of,
    copy,
    delete,
    fetch,
    fetch_view,
    head,
    list_below,
    put,
    put_parts,
)
from vidbrain.storage.files import (
    Files,
    Found,
    NoRangesError,
    ObjectExistsError,
    ObjectMissingError,
)
from vidbrain.storage.meter import Meter
from vidbrain.storage.urls import READ_ONLY, check_key, is_url, parse_url

Result = TypeVar("Result")

GAP_BYTES = 256 << 10
"""Ranges that are nearer than this are one request: about what a request's latency is worth."""
WHOLE_BYTES = 64 << 20
"""Largest object that is read whole where a server gives no ranges."""
N_THREADS = 8
"""Requests at once of one call."""
N_CONNECTS = 4
"""How often a server that cannot be reached is tried."""
FIRST_BUSY_PAUSE_S = 0.5


@dataclass(frozen=True)
class Root:
    """A place that holds objects: a folder, or a bucket with a prefix.

    Attributes
    ----------
    url
        ``s3://bucket/prefix``, ``gs://…``, ``az://container/…``, ``http(s)://…`` (read only), or an absolute path.
    deadline_s
        No request is begun again later than this after it was first made.
    stall_s
        A server that sends nothing for this long is given up, and asked again.
    meter
        Counts the requests, if there is one.
    """

    url: str
    deadline_s: float = 120.0
    stall_s: float = 30.0
    meter: Meter | None = field(default=None, compare=False, repr=False)

    def __str__(self) -> str:
        return self.url

    def __truediv__(self, key: str) -> Root:
        """Give the place below, as `Path` does."""
        return replace(self, url=f"{self.url}/{check_key(str(key))}")

    @property
    def name(self) -> str:
        """The last part of the URL."""
        return self.url.rpartition("/")[2]

    @property
    def parent(self) -> Root:
        """The place above, as `Path` does.

        Raises
        ------
        StorageError
            If it is a whole bucket, or a whole server.
        """
        if not self.is_local and not parse_url(self.url).prefix:
            raise StorageError("there is nothing above a bucket", where=self.url, hint="check the URL")
        return replace(self, url=self.url.rpartition("/")[0] or "/")

    @property
    def is_local(self) -> bool:
        """Whether it is a folder of this machine."""
        return not is_url(self.url)

    @property
    def is_read_only(self) -> bool:
        """Whether nothing can be written there."""
        return not self.is_local and parse_url(self.url).scheme in READ_ONLY

    def get(self, key: str, *, etag: str | None = None) -> bytes:
        """Read an object.

        Parameters
        ----------
        key
            Its name below the root.
        etag
            Only this content; for another one `ObjectChangedError` is raised.

        Raises
        ------
        ObjectMissingError
            If there is none.
        StorageError
            If it cannot be read; every error of this class is one.
        """
        if self.is_local:
            return Files(Path(self.url)).get(check_key(key), etag=etag)
        return self._persist(key, lambda client, name: fetch(client, name, None, etag))

    def get_range(self, key: str, start: int, stop: int, *, etag: str | None = None) -> bytes:
        """Read the bytes from `start` to before `stop` of an object; all of them, or an error.

        Where a server gives no ranges, objects up to 64 MiB are read whole; for larger ones `NoRangesError` is raised.
        """
        return bytes(self.view_range(key, start, stop, etag=etag))

    def view_range(self, key: str, start: int, stop: int, *, etag: str | None = None) -> bytes | memoryview:
        """Read as `get_range` does, without a copy of what came: large ranges are only written elsewhere."""
        if start >= stop:
            return b""
        data: bytes | memoryview
        if self.is_local:
            data = Files(Path(self.url)).get(check_key(key), (start, stop), etag)
        else:
            try:
                data = self._persist(key, lambda client, name: fetch_view(client, name, (start, stop), etag))
            except NoRangesError:
                if self.head(key).n_bytes > WHOLE_BYTES:
                    raise
                data = self.get(key, etag=etag)[start:stop]
        if len(data) != stop - start:
            raise StorageError(
                f"the object ends before byte {stop}: {len(data)} of {stop - start} bytes came",
                where=f"{self.url}/{key}",
                likely="it is not the object that its index describes",
            )
        return data

    def get_ranges(self, key: str, spans: Sequence[tuple[int, int]], *, etag: str | None = None) -> list[bytes]:
        """Read several ``(start, stop)`` of an object; neighbours come in one request."""
        joined = coalesce(spans)
        read = functools.partial(self._get_span, key, etag)
        if len(joined) == 1:
            blocks = [read(joined[0])]
        else:
            with ThreadPoolExecutor(N_THREADS) as pool:
                blocks = list(pool.map(read, joined))
        held = list(zip(joined, blocks, strict=True))
        return [
            next(data[start - first : stop - first] for (first, last), data in held if first <= start and stop <= last)
            if start < stop
            else b""
            for start, stop in spans
        ]

    def _get_span(self, key: str, etag: str | None, span: tuple[int, int]) -> bytes:
        return self.get_range(key, *span, etag=etag)

    def get_suffix(self, key: str, n_bytes: int) -> bytes:
        """Read the last `n_bytes` of an object."""
        if not self.is_local and parse_url(self.url).scheme == "s3":
            try:
                return self._persist(key, lambda client, name: fetch(client, name, {"suffix": n_bytes}, None))
            except NoRangesError:
                pass
        size = self.head(key).n_bytes
        return self.get_range(key, max(0, size - n_bytes), size)

    def copy_to(self, key: str, handle: BinaryIO, *, etag: str | None = None) -> None:
        """Write an object into an open file, from its beginning, in one request."""
        if self.is_local:
            handle.write(self.get(key, etag=etag))
            return

        self._persist(key, lambda client, name: copy(client, name, handle, etag))

    def head(self, key: str) -> Found:
        """Size and ETag of an object.

        Raises
        ------
        ObjectMissingError
            If there is none.
        """
        if self.is_local:
            return Files(Path(self.url)).head(check_key(key))
        n_bytes, etag = self._persist(key, head)
        return Found(key, n_bytes, etag)

    def exists(self, key: str) -> bool:
        """Whether there is such an object."""
        try:
            self.head(key)
        except ObjectMissingError:
            return False
        return True

    def missing(self, keys: Sequence[str]) -> list[str]:
        """Those of the names that have no object; asked side by side."""
        with ThreadPoolExecutor(N_THREADS) as pool:
            return [key for key, there in zip(keys, pool.map(self.exists, keys), strict=True) if not there]

    def list(self, prefix: str = "", *, limit: int | None = None) -> list[Found]:
        """Every object below a prefix (whole parts of a name), or as many as `limit`; sorted by key.

        Raises
        ------
        StorageError
            If the place cannot be listed: HTTP servers cannot.
        """
        if self.is_local:
            found = itertools.islice(Files(Path(self.url)).list(prefix), limit)
            return sorted(found, key=lambda item: item.key)
        if self.is_read_only:
            raise StorageError("a web server cannot list what it holds", where=self.url, hint="use s3, gs or az")
        base = parse_url(self.url).prefix
        below = "/".join(part for part in (base, prefix) if part)

        cut = len(base) + 1 if base else 0
        listed = self._persist("", lambda client, _: list_below(client, below, limit))
        # A marker for the folder itself, as some consoles leave it, is no object of it. A server was seen to name an
        # object twice while it was replaced.
        by_key = {name[cut:]: Found(name[cut:], n_bytes, etag) for name, n_bytes, etag in listed if len(name) > cut}
        return [by_key[key] for key in sorted(by_key)]

    def put(self, key: str, data: bytes, *, if_absent: bool = False) -> None:
        """Write a small object in one request.

        Parameters
        ----------
        key
            Its name below the root.
        data
            Its content.
        if_absent
            Only where there is none. The same content there is success: an answer may have been lost. Servers that
            do not know the condition are asked before, which leaves them a race.

        Raises
        ------
        ObjectExistsError
            With `if_absent`, if another content is there.
        """
        self._refuse_writing()
        if if_absent:
            try:
                if self.get(key) == data:
                    return
            except ObjectMissingError:
                pass
            else:
                raise ObjectExistsError("there is another object already", where=f"{self.url}/{key}")
        try:
            if self.is_local:
                Files(Path(self.url)).put(check_key(key), data, if_absent=if_absent)
            else:
                self._persist(key, functools.partial(put, data, "create" if if_absent else "overwrite"))
        except ObjectExistsError:
            if self.get(key) != data:
                raise

    def put_large(self, key: str, path: Path) -> None:
        """Write a file as an object, in parts that are repeated one by one; it appears when all have arrived."""
        self._refuse_writing()
        if self.is_local:
            Files(Path(self.url)).put_file(check_key(key), path)
            return
        self._persist(key, functools.partial(put_parts, path), patient=True)

    def delete(self, key: str) -> None:
        """Remove an object if it is there."""
        self._refuse_writing()
        if self.is_local:
            Files(Path(self.url)).delete(check_key(key))
            return
        self._persist(key, delete)

    def _refuse_writing(self) -> None:
        if self.is_read_only:
            raise StorageError("a web server is read only", where=self.url, hint="write to s3, gs, az or a path")

    def _persist(self, key: str, call: Callable[[Any, str], Result], *, patient: bool = False) -> Result:
        """Ask until there is an answer, or one that will not change, or the deadline."""
        address = parse_url(self.url)
        name = "/".join(part for part in (address.prefix, check_key(key) if key else "") if part)
        where = f"{self.url}/{key}" if key else self.url
        begun, n_unreachable = time.monotonic(), 0
        for attempt in itertools.count():
            try:
                if self.meter is not None:
                    self.meter.count(again=attempt > 0)
                return call(client_of(self.url, self.deadline_s, self.stall_s, retries=patient), name)
            except StorageError:
                raise
            except Exception as error:
                if isinstance(error, OSError) and error.errno is not None:  # of this machine: a full disk
                    raise as_storage_error(error, where) from error
                # Its text may hold keys and signatures; it is read here and goes no further.
                answer = read_answer(error)
            pause = _pause_s(answer, attempt)
            over = time.monotonic() - begun + pause > self.deadline_s
            n_unreachable += answer.kind == "unreachable"
            tired = n_unreachable >= N_CONNECTS
            if not answer.passes or over or tired:
                raise error_of(answer, where, attempts=attempt + 1, waited_s=time.monotonic() - begun)
            time.sleep(pause)
        raise AssertionError


def open_root(url: str | Path | Root) -> Root:
    """Give a handle on a place by its URL or path. Nothing is asked of it, and it need not exist.

    Raises
    ------
    StorageError
        If the URL cannot be understood, or holds a secret.
    """
    if isinstance(url, Root):
        return url
    if is_url(url):
        return Root(str(parse_url(url)))
    return Root(str(Path(url).expanduser().absolute()))


def coalesce(spans: Sequence[tuple[int, int]], gap: int = GAP_BYTES) -> list[tuple[int, int]]:
    """Join ``(start, stop)`` that touch, overlap, or are nearer than `gap` bytes; empty ones go; sorted."""
    joined: list[tuple[int, int]] = []
    for start, stop in sorted(span for span in spans if span[0] < span[1]):
        if joined and start - joined[-1][1] <= gap:
            joined[-1] = (joined[-1][0], max(joined[-1][1], stop))
        else:
            joined.append((start, stop))
    return joined


def _pause_s(answer: Answer, attempt: int) -> float:
    """Exponential, with full jitter above a half: many clients must not come back at once."""
    first = FIRST_BUSY_PAUSE_S if answer.kind == "busy" else FIRST_PAUSE_S
    return float(min(LONGEST_PAUSE_S, first * 2 ** min(attempt, 16)) * random.uniform(0.5, 1.0))
