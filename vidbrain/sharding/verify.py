"""Checks every byte of a data set of shards and says what is damaged."""

from __future__ import annotations

import hashlib
import zlib
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from vidbrain.cluster import Client
from vidbrain.errors import ShardError, StorageError
from vidbrain.progress import SILENT, Progress
from vidbrain.sharding.codecs import decode_segment, get_codec
from vidbrain.sharding.manifest import marker_path, open_manifest, shard_path
from vidbrain.storage.atomic import read_json


@dataclass(frozen=True)
class Damage:
    """One thing that is wrong: the shard, the segment where it is known, and what."""

    shard: int
    key: str
    what: str


@dataclass(frozen=True)
class _Work:
    root: str
    shard: int
    rows: pd.DataFrame
    codec: str | None
    height: int
    width: int


def verify(
    root: str | Path, *, kind: str = "shards", client: Client | None = None, progress: Progress = SILENT
) -> list[Damage]:
    """Check sizes, checksums, offsets, counts and decodability of every segment.

    Parameters
    ----------
    root
        Data set.
    kind
        ``"shards"`` or ``"codes"``.
    client
        Runs shards in parallel.

    Returns
    -------
    list of Damage
        Empty if the data set is whole.

    Raises
    ------
    StorageError
        If it has no root record at all.
    """
    manifest = open_manifest(root, kind=kind)
    facts = manifest.info
    work = [
        _Work(str(root), int(shard), rows, facts.get("codec"), facts.get("height", 0), facts.get("width", 0))
        for shard, rows in manifest.segments.groupby("shard")
    ]
    progress.start("verify", len(work), "shards")
    found: list[Damage] = []
    for _, damage in (client or Client()).run(_verify_one, work):
        found += damage
        progress.advance(1, damaged=len(found))
    progress.finish()
    return sorted(found, key=lambda d: (d.shard, d.key))


def _verify_one(work: _Work) -> list[Damage]:
    path = shard_path(work.root, work.shard)
    try:
        marker = read_json(marker_path(work.root, work.shard))
        data = path.read_bytes()
    except (OSError, StorageError) as error:
        return [Damage(work.shard, "", f"cannot be read: {str(error).splitlines()[0]}")]
    found = []
    if len(data) != marker["n_bytes"]:
        found.append(Damage(work.shard, "", f"has {len(data)} bytes, the marker says {marker['n_bytes']}"))
    if hashlib.sha256(data).hexdigest() != marker["sha256"]:
        found.append(Damage(work.shard, "", "its checksum differs from the marker's"))
    for row in work.rows.itertuples():
        member = data[row.offset : row.offset + row.n_bytes]
        if len(member) != row.n_bytes:
            found.append(Damage(work.shard, row.key, "is cut off"))
        elif zlib.crc32(member) != row.crc32:
            found.append(Damage(work.shard, row.key, "its checksum differs from the index's"))
        elif work.codec is not None:
            try:
                frames = decode_segment(get_codec(work.codec), member, list(row.parts), work.height, work.width)
            except ShardError as error:
                found.append(Damage(work.shard, row.key, error.message))
            else:
                if len(frames) != row.n_stored:
                    found.append(
                        Damage(work.shard, row.key, f"decodes to {len(frames)} frames, the index says {row.n_stored}")
                    )
    return found
