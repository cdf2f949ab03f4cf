"""Orphans: files that killed or abandoned work left in a data set's folder, and that nothing reads."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from vidbrain.errors import StorageError
from vidbrain.sharding.claims import SKIPPED, read_claim
from vidbrain.sharding.manifest import DATASET, SHARDS, SPOOL
from vidbrain.storage.atomic import PART, read_json, remove
from vidbrain.storage.locks import LOCK, locked

_SHARD = re.compile(r"(\d{6,})\.(tar|json)")


def find_orphans(root: str | Path) -> list[Path]:
    """List what `collect` would remove: files and folders, sorted.

    Raises
    ------
    StorageError
        If there is no data set, finished or not.
    """
    root = Path(root)
    finished = _finished(root)
    claim = read_claim(root) if finished is None or finished.get("vidbrain") == "shards" else None
    if finished is None and claim is None:
        raise StorageError("there is no data set of shards", where=root, hint="check the path")
    folders = [folder for folder in (root, root / SHARDS) if folder.is_dir()]
    orphans = [path for folder in folders for path in folder.iterdir() if PART in path.name]
    growing = finished is not None and claim is not None and claim.config != finished["config"]
    if finished is not None and not growing:
        # What belongs to no shard of the root record will not be asked for.
        orphans += [path for path in (root / SPOOL, root / SKIPPED) if path.exists()]
        for path in (root / SHARDS).iterdir() if (root / SHARDS).is_dir() else ():
            named = _SHARD.fullmatch(path.name)
            if named and int(named[1]) >= finished["n_shards"]:
                orphans.append(path)
    return sorted(orphans)


def _finished(root: Path) -> dict[str, Any] | None:
    if not (root / DATASET).is_file():
        return None
    record = read_json(root / DATASET)
    if not isinstance(record, dict) or type(record.get("n_shards")) is not int or "config" not in record:
        raise StorageError("the root record is damaged", where=root / DATASET, hint="run `vidbrain verify` first")
    return record


def collect(root: str | Path) -> list[Path]:
    """Remove orphans and return them.

    What an unfinished data set needs to go on is kept: its spool, and shards beyond the finished ones.

    Raises
    ------
    StorageError
        If there is no data set, or a process writes there now.
    """
    root = Path(root)
    find_orphans(root)  # what is no data set gets no lock
    was_locked = (root / LOCK).exists()
    with locked(root):
        orphans = find_orphans(root)
        for path in orphans:
            remove(path)
    return sorted([*orphans, *([root / LOCK] if was_locked else [])])
