"""One shard: a plain tar of deterministic bytes, and the commit marker that says it is whole."""

from __future__ import annotations

import hashlib
import io
import json
import math
import tarfile
import zlib
from collections.abc import Iterable, Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, BinaryIO

from vidbrain.errors import ShardError
from vidbrain.sharding.manifest import Marker, marker_path, shard_path
from vidbrain.storage.atomic import remove, replacing, write_bytes
from vidbrain.storage.roots import safe_name

Sample = tuple[str, str, bytes, list[int], dict[str, Any]]
"""Key, extension of the data member, data, lengths of its parts, facts for the member ``key.json``."""


def write_shard(root: Path, shard: int, samples: Iterable[Sample], *, sha256: str | None = None) -> Marker:
    """Write one tar, then its commit marker, and return that.

    Parameters
    ----------
    root
        Folder of the data set.
    shard
        Its number.
    samples
        Iterable of ``(key, extension, data, parts, facts)``: two members each, ``key.extension`` with the data and
        ``key.json`` with the facts that a foreign reader needs.
    sha256
        That the tar must have, where it is made again; what is there stays if it has another.

    Raises
    ------
    ShardError
        If it has another.
    """
    path = shard_path(root, shard)
    places: list[dict[str, Any]] = []
    keys: list[str] = []
    with replacing(path) as part:
        with part.open("wb") as handle:
            hashed = _Hashed(handle)
            with tarfile.open(fileobj=hashed, mode="w", format=tarfile.GNU_FORMAT) as tar:
                for key, extension, data, parts, facts in samples:
                    tar.addfile(_member(f"{safe_name(key)}.{extension}", len(data)), io.BytesIO(data))
                    # The stream stands behind the padded data: the member's bytes began this far before.
                    padded = math.ceil(len(data) / tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
                    offset = tar.offset - padded
                    note = json.dumps(facts, separators=(",", ":")).encode()
                    tar.addfile(_member(f"{key}.json", len(note)), io.BytesIO(note))
                    keys.append(key)
                    places.append(
                        {
                            "offset": offset,
                            "n_bytes": len(data),
                            "parts": list(parts),
                            "crc32": zlib.crc32(data),
                            "part_crc32": part_checksums(data, parts),
                        }
                    )
        n_bytes, digest = hashed.n_bytes, hashed.sha256.hexdigest()
        if sha256 not in (None, digest):
            raise ShardError(
                f"shard {shard} made again has other bytes than the root record says",
                where=path,
                likely="a recording has changed since, or another version made the data set",
                hint="give `vidbrain shard` another output",
            )
        remove(marker_path(root, shard))  # a marker never stands beside a tar that it does not describe
    marker = Marker(shard, n_bytes, digest, keys, places)
    write_bytes(marker_path(root, shard), marker.to_bytes())
    return marker


def part_checksums(data: bytes, parts: Sequence[int]) -> list[int]:
    """CRC-32 of each part, so that a reader need not fetch the whole member to trust a part of it."""
    bounds = [0, *accumulate(parts)]
    if bounds[-1] != len(data):  # a member of codes: its one number counts clips
        bounds = [0, len(data)]
    return [zlib.crc32(data[first:past]) for first, past in pairwise(bounds)]


def _member(name: str, n_bytes: int) -> tarfile.TarInfo:
    # Equal content gives equal bytes: no time, no owner.
    member = tarfile.TarInfo(name)
    member.size, member.mtime, member.mode, member.uid, member.gid = n_bytes, 0, 0o644, 0, 0
    return member


class _Hashed(io.RawIOBase):
    """A file that counts and hashes what passes through."""

    def __init__(self, handle: BinaryIO) -> None:
        self._handle, self.sha256, self.n_bytes = handle, hashlib.sha256(), 0

    def write(self, data: Any) -> int:  # noqa: ANN401 -- any buffer
        self.sha256.update(data)
        self.n_bytes += len(data)
        return self._handle.write(data)

    def tell(self) -> int:
        return self.n_bytes

    def writable(self) -> bool:
        return True
