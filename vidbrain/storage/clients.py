"""Clients of object stores and their few requests: the one door to obstore.

Nothing here is repeated; every exception is obstore's own, and is understood by `vidbrain.storage.answers`.
"""

from __future__ import annotations

import functools
import itertools
import os
import threading
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

from vidbrain.errors import StorageError
from vidbrain.storage.answers import ChangedAnswer
from vidbrain.storage.urls import is_loopback, parse_url

if TYPE_CHECKING:
    from obstore import GetResult
    from obstore.store import ObjectStore

Span = tuple[int, int] | dict[str, int] | None

PART_BYTES = 8 << 20
"""Bytes of one part of a multipart upload, and of one range of a download."""
CONNECT_S = 10.0
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 20.0

_owner: int | None = None
"""The process in which obstore's threads run; they do not survive a fork."""
_lock = threading.Lock()


def client_of(url: str, deadline_s: float, stall_s: float, *, retries: bool) -> ObjectStore:
    """Give this process's client for the bucket of a URL; one serves all roots in it.

    Raises
    ------
    StorageError
        If object storage was used before this process was forked.
    """
    global _owner
    # Before the lock, which a fork may have left closed.
    if _owner not in (None, os.getpid()):
        raise StorageError(
            "object storage was used before this process was forked, and cannot be used after",
            where=url,
            hint="start worker processes by 'spawn' or 'forkserver'",
        )
    with _lock:
        _owner = os.getpid()
        address = parse_url(url)
        families = ("AWS_", "AZURE_", "GOOGLE_")
        environment = tuple(sorted((k, v) for k, v in os.environ.items() if k.startswith(families)))
        return _make_client(address.scheme, address.bucket, deadline_s, stall_s, retries, environment)


@functools.lru_cache(maxsize=32)
def _make_client(
    scheme: str, bucket: str, deadline_s: float, stall_s: float, retries: bool, environment: tuple[tuple[str, str], ...]
) -> ObjectStore:
    from obstore.store import AzureStore, GCSStore, HTTPStore, S3Store

    values = dict(environment)
    endpoint = values.get("AWS_ENDPOINT_URL_S3") or values.get("AWS_ENDPOINT_URL") or values.get("AWS_ENDPOINT") or ""
    trusted = values.get("AWS_ALLOW_HTTP", "").lower() in ("1", "true", "yes") or is_loopback(endpoint)
    client = {
        "connect_timeout": timedelta(seconds=min(CONNECT_S, stall_s)),
        "read_timeout": timedelta(seconds=stall_s),
        "timeout": timedelta(seconds=deadline_s),
        "allow_http": trusted if scheme == "s3" else scheme == "http",
    }
    # One place decides about repetition: `_persist`. Only the parts of one upload are repeated below it.
    retry = {
        "max_retries": 8 if retries else 0,
        "retry_timeout": timedelta(seconds=deadline_s),
        "backoff": {
            "init_backoff": timedelta(seconds=FIRST_PAUSE_S),
            "max_backoff": timedelta(seconds=LONGEST_PAUSE_S),
            "base": 2,
        },
    }
    options: Any = {"client_options": client, "retry_config": retry}
    if scheme == "s3":
        return S3Store(bucket, **options)
    if scheme == "gs":
        return GCSStore(bucket, **options)
    if scheme == "az":
        return AzureStore(bucket, **options)
    return HTTPStore.from_url(f"{scheme}://{bucket}", **options)


def _ask(client: ObjectStore, name: str, span: Span, etag: str | None) -> GetResult:
    import obstore

    options: Any = {"range": span} if span is not None else {}
    if etag is not None:
        options["if_match"] = etag
    answer = obstore.get(client, name, options=options)
    # Some servers do not know If-Match.
    if etag is not None and _strong(answer.meta["e_tag"]) not in (None, etag):
        raise ChangedAnswer
    return answer


def _strong(etag: str | None) -> str | None:
    """Drop a weak ETag: it names no bytes, and matches no condition."""
    return None if etag is None or etag.startswith("W/") else etag


def fetch(client: ObjectStore, name: str, span: Span, etag: str | None) -> bytes:
    """Read an object, its bytes ``(start, stop)``, or its last ``{"suffix": n}``; of this content where it is named."""
    return bytes(fetch_view(client, name, span, etag))


def fetch_view(client: ObjectStore, name: str, span: Span, etag: str | None) -> memoryview:
    """Read as `fetch` does, without a copy of what came."""
    answer = _ask(client, name, span, etag)
    data = memoryview(answer.bytes())
    first, last = answer.range
    if len(data) != last - first:
        raise ConnectionResetError
    return data


def copy(client: ObjectStore, name: str, handle: BinaryIO, etag: str | None) -> None:
    """Write an object into an open file, from its beginning."""
    handle.seek(0)
    handle.truncate()
    answer = _ask(client, name, None, etag)
    for block in answer.stream(min_chunk_size=PART_BYTES):
        handle.write(block)
    if handle.tell() != answer.meta["size"]:
        raise ConnectionResetError


def head(client: ObjectStore, name: str) -> tuple[int, str | None]:
    """Size and ETag of an object."""
    import obstore

    meta = obstore.head(client, name)
    return meta["size"], _strong(meta["e_tag"])


def list_below(client: ObjectStore, prefix: str, limit: int | None) -> list[tuple[str, int, str | None]]:
    """Name, size and ETag of every object below a prefix, or of as many as `limit`."""
    import obstore

    pages = obstore.list(client, prefix or None, chunk_size=limit or 1000)
    found = itertools.islice(itertools.chain.from_iterable(pages), limit)
    return [(meta["path"], meta["size"], _strong(meta["e_tag"])) for meta in found]


def put(data: bytes, mode: Literal["create", "overwrite"], client: ObjectStore, name: str) -> None:
    """Write an object in one request."""
    import obstore

    obstore.put(client, name, data, mode=mode, use_multipart=False)


def put_parts(path: Path, client: ObjectStore, name: str) -> None:
    """Write a file as an object, in parts."""
    import obstore

    obstore.put(client, name, path, use_multipart=True, chunk_size=PART_BYTES, max_concurrency=4)


def delete(client: ObjectStore, name: str) -> None:
    """Remove an object."""
    import obstore

    obstore.delete(client, name)
