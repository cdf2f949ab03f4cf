"""Orphans: what killed or abandoned work left in a data set's place, and what nothing reads."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vidbrain.errors import StorageError
from vidbrain.sharding.claims import SKIPPED, read_claim
from vidbrain.sharding.describe import kind_of
from vidbrain.sharding.manifest import SHARDS, SPOOL, open_manifest
from vidbrain.sharding.record import DATASET
from vidbrain.sharding.spooled import clear_spool, is_spool
from vidbrain.sharding.target import Target, target_of
from vidbrain.storage.atomic import PART, remove
from vidbrain.storage.locks import LOCK
from vidbrain.storage.objects import Root

_SHARD = re.compile(rf"{SHARDS}/(\d{{6,}})\.(tar|json)")


def find_orphans(root: str | Path | Root, work: str | Path | None = None) -> list[Path | Root]:
    """List what `collect` would remove: files, folders and objects, sorted.

    Of a URL that is a finished data set, this machine's work folder is one of them. Parts of uploads that were killed
    cannot be seen: a store lists them by a request of its own, which the client library does not make.

    Parameters
    ----------
    root
        Data set, in a folder or at a URL.
    work
        For a URL: where its work folder was made, if not in the default place; see `target_of`.

    Raises
    ------
    StorageError
        If there is no data set, finished or not, or the place cannot be listed: HTTP servers cannot.
    ShardError
        If its root record or index is damaged: they say what belongs to it.
    """
    target = target_of(root, work)
    finished = _finished(target.root)
    claim = read_claim(target.root) if finished is None or finished.get("vidbrain") == "shards" else None
    if finished is None and claim is None:
        raise StorageError("there is no data set of shards", where=target.root, hint="check the path")
    growing = finished is not None and claim is not None and claim.config != finished["config"]
    # What belongs to no shard of the root record will not be asked for.
    n_shards = finished["n_shards"] if finished is not None and not growing else None
    orphans = _objects(target.root, n_shards) if target.is_remote else _files(target.work, n_shards)
    if target.is_remote and n_shards is not None and target.work.is_dir():
        orphans.append(target.work)
    return sorted(orphans, key=str)


def _files(folder: Path, n_shards: int | None) -> list[Path | Root]:
    folders = [place for place in (folder, folder / SHARDS) if place.is_dir()]
    orphans: list[Path | Root] = [path for place in folders for path in place.iterdir() if PART in path.name]
    if n_shards is not None:
        orphans += [folder / SPOOL] if is_spool(folder / SPOOL) else []
        orphans += [folder / SKIPPED] if (folder / SKIPPED).exists() else []
        beside = (folder / SHARDS).iterdir() if (folder / SHARDS).is_dir() else ()
        orphans += [path for path in beside if _is_beyond(f"{SHARDS}/{path.name}", n_shards)]
    return orphans


def _objects(root: Root, n_shards: int | None) -> list[Path | Root]:
    if n_shards is None:
        return []
    keys = [found.key for found in root.list(SHARDS) if _is_beyond(found.key, n_shards)]
    return [root / key for key in [*keys, *([SKIPPED] if root.exists(SKIPPED) else [])]]


def _is_beyond(key: str, n_shards: int) -> bool:
    named = _SHARD.fullmatch(key)
    return named is not None and int(named[1]) >= n_shards


def _finished(root: Root) -> dict[str, Any] | None:
    # It is opened as a reader would: what no sound record and index name may still be theirs.
    return open_manifest(root, kind=kind_of(root)).info if root.exists(DATASET) else None


def collect(root: str | Path | Root, work: str | Path | None = None) -> list[Path | Root]:
    """Remove orphans and return them.

    What an unfinished data set needs to go on is kept: its spool, and shards beyond the finished ones.

    Parameters
    ----------
    root, work
        As in `find_orphans`.

    Raises
    ------
    StorageError
        If there is no data set, or a process of this machine writes there now.
    ShardError
        If its root record or index is damaged.
    """
    target = target_of(root, work)
    find_orphans(root, work)  # what is no data set gets no lock
    with _alone(target) as lock:
        orphans = find_orphans(root, work)
        for place in orphans:
            if isinstance(place, Root):
                place.parent.delete(place.name)
            elif place == target.work:
                target.tidy()
            elif place == target.work / SPOOL:
                clear_spool(place)
            else:
                remove(place)
    return sorted([*orphans, *lock], key=str)


@contextlib.contextmanager
def _alone(target: Target) -> Iterator[list[Path | Root]]:
    """Hold the lock of a folder; give the file that a killed holder left, which goes with it."""
    if target.is_remote and not target.work.is_dir():
        yield []  # nobody of this machine works there
        return
    was_locked = (target.work / LOCK).exists()
    with target.alone():
        yield [target.work / LOCK] if was_locked and not target.is_remote else []
