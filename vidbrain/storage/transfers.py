"""Whole files to and from a root: verified before either side may rely on them."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from vidbrain.errors import StorageError
from vidbrain.storage.atomic import as_storage_error, replacing
from vidbrain.storage.clients import PART_BYTES
from vidbrain.storage.files import Found, NoRangesError, ObjectChangedError, ObjectExistsError, ObjectMissingError
from vidbrain.storage.objects import Root

N_CHANGES = 3
"""How often a download or a comparison begins again because its object was replaced."""
N_RANGES = 4
"""Ranges of one download at once: 32 MiB in memory."""


@dataclass(frozen=True)
class Sums:
    """What a file's bytes are known by.

    Attributes
    ----------
    n_bytes
        Size.
    sha256
        Of all bytes.
    etags
        The ETags that a store gives which names content by MD5: that of one request, and that of parts of 8 MiB (the
        MD5 of the parts' MD5s, and their number).
    """

    n_bytes: int
    sha256: str
    etags: tuple[str, str]


def sums_of(path: Path) -> Sums:
    """Read a file once and compute its checksums."""
    sha256, whole, parts, n_bytes = hashlib.sha256(), _md5(), [], 0
    try:
        for block in _blocks(path):
            sha256.update(block)
            whole.update(block)
            parts.append(_md5(block).digest())
            n_bytes += len(block)
    except OSError as error:
        raise as_storage_error(error, path) from error
    joined = f"{_md5(b''.join(parts)).hexdigest()}-{len(parts)}"
    return Sums(n_bytes, sha256.hexdigest(), (whole.hexdigest(), joined))


def _md5(data: bytes = b"") -> hashlib._Hash:
    return hashlib.md5(data, usedforsecurity=False)


def _blocks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as handle:
        while block := handle.read(PART_BYTES):
            yield block


def holds(root: Root, found: Found, sums: Sums) -> bool:
    """Whether an object has exactly these bytes.

    Its size is compared, then its ETag. Where the ETag is no MD5 of the content, the object is read and hashed.
    """
    if found.n_bytes != sums.n_bytes:
        return False
    if (found.etag or "").strip('"').lower() in sums.etags:
        return True
    return sha256_at(root, found) == sums.sha256


def sha256_at(root: Root, found: Found) -> str:
    """Read an object in ranges of 8 MiB and compute its checksum."""
    digest = hashlib.sha256()
    for start in range(0, found.n_bytes, PART_BYTES):
        stop = min(found.n_bytes, start + PART_BYTES)
        digest.update(root.get_range(found.key, start, stop, etag=found.etag))
    return digest.hexdigest()


def upload(root: Root, key: str, path: str | Path, *, sums: Sums | None = None, if_absent: bool = False) -> Sums:
    """Write a file as an object, and make sure that the store holds its bytes.

    Parameters
    ----------
    root, key
        Where to.
    path
        The file. It may go when this returns, not before.
    sums
        Its checksums, where they are known already.
    if_absent
        Only where there is none. The same bytes there are success. The store is asked before; files of one part are
        then sent under the condition that there is still none, larger ones without it. What arrived damaged goes.

    Returns
    -------
    Sums
        Its checksums.

    Raises
    ------
    ObjectExistsError
        With `if_absent`, if another content is there.
    StorageError
        If it cannot be written, or what the store holds afterwards is something else.
    """
    path = Path(path)
    sums = sums or sums_of(path)
    if if_absent:
        try:
            if is_held(root, key, sums):
                return sums
        except ObjectMissingError:
            pass
        else:
            raise ObjectExistsError(
                "there is another object already",
                where=f"{root}/{key}",
                likely="it was damaged on its way, or another version made it",
            )
    if sums.n_bytes > PART_BYTES:
        root.put_large(key, path)
    else:
        try:
            root.put(key, path.read_bytes(), if_absent=if_absent)
        except OSError as error:
            raise as_storage_error(error, path) from error
    _check_held(root, key, sums, remove=if_absent)
    return sums


def put_checked(root: Root, key: str, data: bytes) -> None:
    """Write a small object, and make sure that the store holds its bytes; one that it garbled does not stay.

    Raises
    ------
    StorageError
        If it cannot be written, or the store held something else afterwards.
    """
    root.put(key, data)
    if root.is_local:
        return
    md5 = _md5(data).hexdigest()
    _check_held(root, key, Sums(len(data), hashlib.sha256(data).hexdigest(), (md5, md5)), remove=True)


def is_held(root: Root, key: str, sums: Sums) -> bool:
    """Whether the object that is there has these bytes; while others replace it by the same, it is asked again.

    Raises
    ------
    ObjectMissingError
        If there is none.
    """
    for _ in range(N_CHANGES - 1):
        try:
            return holds(root, root.head(key), sums)
        except ObjectChangedError:
            pass
    return holds(root, root.head(key), sums)


def _check_held(root: Root, key: str, sums: Sums, *, remove: bool) -> None:
    if is_held(root, key, sums):
        return
    if remove:
        root.delete(key)
    raise StorageError(
        "the store does not hold what was sent: size or checksum differ",
        where=f"{root}/{key}",
        likely="the network garbled it, the file changed while it was sent, or another command writes there",
        hint="give the command again; the local copy is as it was",
    )


Arrived = Callable[[int, int, int], None]
"""Hears of a file's handle, and from which to before which byte something was written."""


def download(
    root: Root,
    key: str,
    path: str | Path,
    *,
    n_bytes: int | None = None,
    sha256: str | None = None,
    arrived: Arrived | None = None,
) -> Found:
    """Copy an object into a file, which appears whole and checked, or not at all.

    It comes in ranges of 8 MiB side by side, all of them of the content that was there first (``If-Match``). If it is
    replaced meanwhile, the download begins again.

    Parameters
    ----------
    root, key
        Where from.
    path
        File to write.
    n_bytes, sha256
        What it must be, where that is known.
    arrived
        Hears of each range that is written, before it is checked; perhaps from several threads at once, and from the
        beginning again where the download begins again.

    Returns
    -------
    Found
        The object that the file now is.

    Raises
    ------
    ObjectMissingError
        If there is none.
    StorageError
        If it cannot be read, or is something else.
    """
    for attempt in range(N_CHANGES):
        found = root.head(key)
        if n_bytes is not None and found.n_bytes != n_bytes:
            raise StorageError(
                f"the object has {found.n_bytes} bytes, {n_bytes} were expected",
                where=f"{root}/{key}",
                likely="it was replaced, or its upload was of another data set",
                hint="run `vidbrain verify` on the data set, or push it again",
            )
        try:
            with replacing(path) as part:
                part.touch()
                _fetch(root, found, part, arrived)
                if sha256 is not None and sums_of(part).sha256 != sha256:
                    raise StorageError(
                        "the object is damaged: its checksum differs from what its index says",
                        where=f"{root}/{key}",
                        hint="push the data set again",
                    )
        except ObjectChangedError:
            if attempt + 1 == N_CHANGES:
                raise
        else:
            return found
    raise AssertionError


def _fetch(root: Root, found: Found, part: Path, arrived: Arrived | None) -> None:
    spans = [(at, min(found.n_bytes, at + PART_BYTES)) for at in range(0, found.n_bytes, PART_BYTES)]
    with part.open("r+b") as handle:
        if len(spans) < 2:
            handle.write(root.get(found.key, etag=found.etag) if spans else b"")
        else:
            try:
                read = functools.partial(_fetch_span, root, found, handle.fileno(), arrived)
                with ThreadPoolExecutor(N_RANGES) as pool:
                    for _ in pool.map(read, spans):
                        pass
            except NoRangesError:
                root.copy_to(found.key, handle, etag=found.etag)
        handle.flush()
        size = os.fstat(handle.fileno()).st_size
    if size != found.n_bytes:
        raise StorageError(
            f"{size} of {found.n_bytes} bytes came", where=f"{root}/{found.key}", hint="give the command again"
        )


def _fetch_span(root: Root, found: Found, handle: int, arrived: Arrived | None, span: tuple[int, int]) -> None:
    view, at = memoryview(root.view_range(found.key, *span, etag=found.etag)), span[0]
    while view:
        n_written = os.pwrite(handle, view, at)
        view, at = view[n_written:], at + n_written
    if arrived is not None:
        arrived(handle, *span)
