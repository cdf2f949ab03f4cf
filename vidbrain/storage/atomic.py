"""Nothing half-written has its final name: write beside it, flush, rename."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vidbrain.errors import StorageError

PART = ".part-"
"""Every unfinished file or folder has this in its name; readers ignore it and `sweep` removes it."""


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Give a temporary path in the same folder; on success it replaces `path` atomically, on failure it goes.

    Works for a file or a folder, whichever the body creates. An existing file is replaced; an existing folder is
    removed just before the rename. Data and folder entry are flushed to disk before the final name appears.

    Raises
    ------
    StorageError
        If the disk is full or the place cannot be written.
    """
    path = Path(path)
    part = path.with_name(f"{path.name[:200]}{PART}{uuid.uuid4().hex[:12]}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        flush(part)
        if part.is_dir() and path.is_dir():
            old = path.with_name(f"{path.name}{PART}old-{uuid.uuid4().hex[:8]}")
            path.replace(old)
            part.replace(path)
            shutil.rmtree(old)
        else:
            part.replace(path)
        _fsync(path.parent)
    except FileNotFoundError as error:
        if PART not in str(error.filename):
            raise as_storage_error(error, path) from error
        raise StorageError(
            "an unfinished file was removed while it was written",
            where=path,
            likely="the same command runs a second time on this folder",
            hint="wait until the other one has ended, then give the command again",
        ) from error
    except OSError as error:
        raise as_storage_error(error, path) from error
    finally:
        if part.exists():
            remove(part)


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write a whole file atomically."""
    with replacing(path) as part:
        part.write_bytes(data)


def write_json(path: str | Path, value: Any) -> None:  # noqa: ANN401 -- any JSON value
    """Write a JSON file atomically, indented, keys in the order given."""
    write_bytes(path, json_bytes(value))


def json_bytes(value: Any) -> bytes:  # noqa: ANN401 -- any JSON value
    """Give a value as every JSON file of ours holds it: indented, keys in the order given."""
    return (json.dumps(value, indent=2, allow_nan=False) + "\n").encode()


def read_json(path: str | Path) -> Any:  # noqa: ANN401 -- any JSON value
    """Read a JSON file.

    Raises
    ------
    StorageError
        If the file is missing or is not JSON.
    """
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise as_storage_error(error, path) from error
    except (ValueError, RecursionError) as error:
        raise StorageError(
            f"not valid JSON: {error}", where=path, likely="the file is damaged", hint="copy it again, or make it again"
        ) from error


def check_writable(folder: str | Path, n_bytes: int = 0) -> None:
    """Refuse before work starts: create the folder, write a probe, and compare free space with the estimate.

    Raises
    ------
    StorageError
        If the folder cannot be made or written, or has less than `n_bytes` free.
    """
    folder = Path(folder)
    probe = folder / f"probe{PART}{uuid.uuid4().hex[:12]}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"probe")
        probe.unlink()
    except OSError as error:
        raise as_storage_error(error, folder) from error
    free = shutil.disk_usage(folder).free
    if free < n_bytes:
        raise StorageError(
            f"needs about {_size(n_bytes)}, the disk has {_size(free)} free",
            where=folder,
            hint="free some space, or give another folder",
        )


def _size(n_bytes: int) -> str:
    return f"{n_bytes / 1e9:.2f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:.2f} MB"


def sweep(folder: str | Path) -> int:
    """Remove what killed work left behind in `folder` (not below it); return how many. Call it when alone there."""
    folder = Path(folder)
    leftovers = [p for p in folder.iterdir() if PART in p.name] if folder.is_dir() else []
    for path in leftovers:
        remove(path)
    return len(leftovers)


def remove(path: Path) -> None:
    """Remove a file or a folder tree if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Flush a file, or every file of a folder tree, to the disk."""
    if path.is_dir():
        for folder, _, names in os.walk(path):
            for name in names:
                _fsync(Path(folder) / name)
            _fsync(Path(folder))
    else:
        _fsync(path)


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def as_storage_error(error: OSError, path: str | Path) -> StorageError:
    """Turn an operating system's error into one that says what, where and what next."""
    hints = {
        errno.ENOSPC: ("the disk is full", "free some space and give the same command again"),
        errno.EDQUOT: ("the disk quota is used up", "free some space and give the same command again"),
        errno.EFBIG: ("a file may not be so large here", "raise the limit (ulimit -f) and give the same command again"),
        errno.EACCES: ("no permission", "check who owns the folder, or give another folder"),
        errno.EPERM: ("no permission", "check who owns the folder, or give another folder"),
        errno.EROFS: ("the disk is read-only", "give another folder"),
        errno.ENOENT: ("there is no such file or folder", "check the path"),
        errno.EISDIR: ("a folder stands where a file belongs", "move it away and give the same command again"),
        errno.ENAMETOOLONG: ("a name is too long for this disk", "give a shorter one"),
        errno.ENOTDIR: ("a part of the path is a file, not a folder", "check the path"),
    }
    what, hint = hints.get(error.errno or 0, (f"the system says: {error.strerror or error}", None))
    return StorageError(what, where=error.filename or path, hint=hint)
