"""One writer a folder: a lock that the system itself lets go when its holder dies, however it dies."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import os
from collections.abc import Iterator
from pathlib import Path

from vidbrain.errors import StorageError
from vidbrain.storage.atomic import as_storage_error

LOCK = ".lock"
N_ATTEMPTS = 1000
_NO_LOCKS = {errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK, errno.EINVAL}


@contextlib.contextmanager
def locked(folder: str | Path) -> Iterator[bool]:
    """Be the only writer of a folder for the duration of the block; the folder is made if it is not there.

    Yields
    ------
    bool
        False where the file system has no locks (some cluster disks): the block runs all the same.

    Raises
    ------
    StorageError
        If another process holds it, or the folder cannot be written.
    """
    path = Path(folder) / LOCK
    try:
        handle = _acquire(path)
    except BlockingIOError:
        raise StorageError(
            "another process writes here",
            where=folder,
            likely="the same command runs a second time",
            hint="wait until the other one has ended, then give the command again",
        ) from None
    except OSError as error:
        raise as_storage_error(error, folder) from error
    try:
        yield handle is not None
    finally:
        if handle is not None:
            # Removed while it is held: who waits for the old file finds that it has no name any more.
            path.unlink(missing_ok=True)
            os.close(handle)


def sweep_lock(folder: str | Path) -> None:
    """Remove the file that a killed writer left in a finished folder; that of a living one stays."""
    if (Path(folder) / LOCK).exists():
        with contextlib.suppress(StorageError), locked(folder):
            pass


def _acquire(path: Path) -> int | None:
    for attempt in itertools.count():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except (FileNotFoundError, FileExistsError):
            # Its last holder has removed the folder too, at this moment; or a dead link is in the way, and stays there.
            if attempt == N_ATTEMPTS:
                raise
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Its last holder may have removed the file after we opened it: then it locks nothing.
            if os.fstat(handle).st_ino == path.stat().st_ino:
                return handle
        except FileNotFoundError:
            pass
        except OSError as error:
            os.close(handle)
            if error.errno not in _NO_LOCKS:
                raise
            path.unlink(missing_ok=True)
            return None
        os.close(handle)
    raise AssertionError
