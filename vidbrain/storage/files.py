"""Objects that are files below a folder: the same few operations that an object store has."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vidbrain.errors import StorageError
from vidbrain.storage.atomic import PART, as_storage_error, remove, replacing


class ObjectMissingError(StorageError):
    """There is no object of this name."""


class ObjectExistsError(StorageError):
    """There is an object of this name already, with other content."""


class ObjectChangedError(StorageError):
    """The object is no longer the one that was asked for: its ETag differs."""


class NoRangesError(StorageError):
    """The server gives whole objects only."""


@dataclass(frozen=True)
class Found:
    """An object that is there.

    Attributes
    ----------
    key
        Its name below the root.
    n_bytes
        Its size.
    etag
        What the store calls this content; None if it does not say.
    """

    key: str
    n_bytes: int
    etag: str | None


def read_at(handle: int, begin: int, end: int, where: str | Path) -> bytes:
    """Read the bytes from `begin` to before `end` of an open file; fewer where it ends.

    Raises
    ------
    StorageError
        If the disk gives none; it names `where`.
    """
    try:
        return os.pread(handle, end - begin, begin)
    except OSError as error:
        raise as_storage_error(error, where) from error


@dataclass(frozen=True)
class Files:
    """Files below a folder. Writing is atomic; unfinished files are not seen."""

    folder: Path

    def get(self, key: str, span: tuple[int, int] | None = None, etag: str | None = None) -> bytes:
        """Read a file, or the bytes from the first to before the last position of `span`."""
        path = self.folder / key
        try:
            with path.open("rb") as handle:
                if etag is not None and _etag(os.fstat(handle.fileno())) != etag:
                    raise ObjectChangedError("the file was replaced while it was read", where=path)
                if span is None:
                    return handle.read()
                handle.seek(span[0])
                return handle.read(span[1] - span[0])
        except (FileNotFoundError, IsADirectoryError):
            raise ObjectMissingError("there is no such file", where=path, hint="check the path") from None
        except OSError as error:
            raise as_storage_error(error, path) from error

    def put(self, key: str, data: bytes, *, if_absent: bool = False) -> None:
        """Write a file atomically; with `if_absent`, only where there is none."""
        path = self.folder / key
        if not if_absent:
            with replacing(path) as part:
                part.write_bytes(data)
            return
        whole = path.with_name(f"{path.name}{PART}{os.getpid()}-{os.urandom(4).hex()}")
        with replacing(whole) as part:
            part.write_bytes(data)
        try:
            # Unlike a rename, a second name never takes the place of a file.
            os.link(whole, path)
        except FileExistsError:
            raise ObjectExistsError("there is a file already", where=path) from None
        except OSError as error:
            raise as_storage_error(error, path) from error
        finally:
            remove(whole)

    def put_file(self, key: str, path: Path) -> None:
        """Copy a file atomically."""
        with replacing(self.folder / key) as part:
            shutil.copyfile(path, part)

    def head(self, key: str) -> Found:
        """Size and ETag of a file."""
        path = self.folder / key
        try:
            found = path.stat()
        except (FileNotFoundError, NotADirectoryError):
            raise ObjectMissingError("there is no such file", where=path, hint="check the path") from None
        except OSError as error:
            raise as_storage_error(error, path) from error
        if path.is_dir():
            raise ObjectMissingError("this is a folder, not a file", where=path)
        return Found(key, found.st_size, _etag(found))

    def list(self, prefix: str) -> Iterator[Found]:
        """Every finished file below a folder of the root."""
        for folder, folders, names in os.walk(self.folder / prefix):
            folders[:] = sorted(name for name in folders if PART not in name)
            for name in sorted(names):
                if PART not in name:
                    yield self.head((Path(folder) / name).relative_to(self.folder).as_posix())

    def delete(self, key: str) -> None:
        """Remove a file if it is there."""
        path = self.folder / key
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise as_storage_error(error, path) from error


def _etag(found: os.stat_result) -> str:
    return f'"{found.st_ino:x}-{found.st_mtime_ns:x}-{found.st_size:x}"'
