"""Checks every byte of a data set of shards and says what is damaged."""

from __future__ import annotations

import hashlib
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import pandas as pd

from vidbrain.cluster import Client
from vidbrain.errors import ShardError, StorageError
from vidbrain.progress import SILENT, Progress
from vidbrain.sharding.codecs import decode_segment, get_codec
from vidbrain.sharding.manifest import DamagedMarkerError, Marker, open_manifest, read_marker, shard_path
from vidbrain.sharding.tars import part_checksums
from vidbrain.storage.files import ObjectMissingError
from vidbrain.storage.objects import Root
from vidbrain.storage.transfers import download


@dataclass(frozen=True)
class Damage:
    """One thing that is wrong: the shard, the segment where it is known, and what."""

    shard: int
    key: str
    what: str


@dataclass(frozen=True)
class _Work:
    root: Path | Root
    shard: int
    rows: pd.DataFrame
    codec: str | None
    height: int
    width: int


def verify(
    root: str | Path | Root, *, kind: str = "shards", client: Client | None = None, progress: Progress = SILENT
) -> list[Damage]:
    """Check sizes, checksums, offsets, counts and decodability of every segment.

    Parameters
    ----------
    root
        Data set, in a folder or at a URL: then each tar is fetched into a temporary file, one a worker.
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
    ShardError
        If its index is damaged, or it is a subset.
    """
    manifest = open_manifest(root, kind=kind)
    if manifest.subset:
        raise ShardError(
            "a subset has no bytes of its own", where=root, hint=f"vidbrain verify {manifest.root}, which holds them"
        )
    facts = manifest.info
    work = [
        _Work(manifest.root, int(shard), rows, facts.get("codec"), facts.get("height", 0), facts.get("width", 0))
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
    if isinstance(work.root, Path):
        try:
            return _verify_tar(work, shard_path(work.root, work.shard))
        except (OSError, StorageError) as error:
            return [Damage(work.shard, "", f"cannot be read: {str(error).splitlines()[0]}")]
    tar = shard_path(work.root, work.shard)
    with tempfile.TemporaryDirectory(prefix="vidbrain-verify-") as folder:
        try:
            download(tar.parent, tar.name, Path(folder) / tar.name)
            return _verify_tar(work, Path(folder) / tar.name)
        # A store that does not answer is an error, and no damage: nothing would be mended by a repair.
        except (ObjectMissingError, DamagedMarkerError) as error:
            return [Damage(work.shard, "", f"cannot be read: {error.message}")]


def _verify_tar(work: _Work, tar: Path) -> list[Damage]:
    marker = read_marker(work.root, work.shard, kind="codes" if work.codec is None else "shards")
    with tar.open("rb") as handle:
        digest = hashlib.file_digest(handle, "sha256").hexdigest()
        n_bytes = handle.tell()
        faults = _marker_faults(marker, n_bytes, digest, work.rows["key"].tolist())
        found = [Damage(work.shard, "", what) for what in faults]
        for row, place in zip(work.rows.itertuples(), marker.segments, strict=False):
            what = _segment_fault(work, handle, row, place, n_bytes)
            if what:
                found.append(Damage(work.shard, row.key, what))
    return found


def _marker_faults(marker: Marker, n_bytes: int, digest: str, keys: list[str]) -> Iterator[str]:
    if n_bytes != marker.n_bytes:
        yield f"has {n_bytes} bytes, the marker says {marker.n_bytes}"
    if digest != marker.sha256:
        yield "its checksum differs from the marker's"
    if marker.keys != keys or len(marker.segments) != len(keys):
        yield "its marker names other segments than the index"


def _segment_fault(work: _Work, handle: BinaryIO, row: Any, place: dict[str, Any], n_held: int) -> str | None:  # noqa: ANN401 -- a row of pandas
    expected = {"offset": row.offset, "n_bytes": row.n_bytes, "crc32": row.crc32}
    if work.codec is not None:  # a marker of codes keeps the number of clips there
        expected["parts"] = list(row.parts)
    if row.part_crc32 is not None:
        expected["part_crc32"] = list(row.part_crc32)
    if any(place.get(name) != value for name, value in expected.items()):
        return "stands elsewhere in the marker than in the index"
    handle.seek(row.offset)
    # No more than there is: an absurd length in an index must not be allocated.
    member = handle.read(min(row.n_bytes, n_held))
    if len(member) != row.n_bytes:
        return "is cut off"
    if zlib.crc32(member) != row.crc32:
        return "its checksum differs from the index's"
    if row.part_crc32 is not None and part_checksums(member, row.parts) != list(row.part_crc32):
        return "the checksum of a part differs from the index's"
    if work.codec is not None:
        try:
            frames = decode_segment(get_codec(work.codec), member, list(row.parts), work.height, work.width)
        except ShardError as error:
            return error.message
        if len(frames) != row.n_stored:
            return f"decodes to {len(frames)} frames, the index says {row.n_stored}"
    return None
