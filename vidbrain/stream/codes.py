"""Codes -> batches: a data set of codes is small, so it is held in memory whole."""

from __future__ import annotations

import functools
import io
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from vidbrain.errors import ShardError
from vidbrain.records import ClipSpec, World
from vidbrain.sharding.manifest import Manifest, open_manifest
from vidbrain.storage.cache import CACHE, CACHE_BYTES
from vidbrain.storage.objects import Root
from vidbrain.stream.batch import CodesBatch
from vidbrain.stream.clips import clip_table
from vidbrain.stream.loader import Loader
from vidbrain.stream.order import Tail
from vidbrain.stream.shards import Shards, open_shards


@dataclass(frozen=True)
class CodesTable:
    """All codes of a split.

    Attributes
    ----------
    codes : (N, t, h, w) uint16
    recording : (N,) str
        Key of the recording of each clip.
    start_frame : (N,) int64
        First frame of each clip in its recording.
    clips_per_shard : (n_shards,) int64
    clip
        The clip specification that was encoded.
    fingerprint
        Of the data set of codes.
    info
        Its root record: `n_codes` and what it was made from.
    """

    codes: NDArray[np.uint16]
    recording: NDArray[Any]
    start_frame: NDArray[np.int64]
    clips_per_shard: NDArray[np.int64]
    clip: ClipSpec
    fingerprint: str
    info: dict[str, Any]

    def __len__(self) -> int:
        return len(self.codes)


def load_codes(
    root: str | Path | Root,
    *,
    split: Literal["train", "val"] | None = None,
    cache: str | Path = CACHE,
    cache_bytes: int | str = CACHE_BYTES,
) -> CodesTable:
    """Load the codes of a split into memory.

    Parameters
    ----------
    root
        Folder or URL of the data set.
    split
        ``"train"``, ``"val"`` or None for all recordings.
    cache, cache_bytes
        Folder and limit of what is kept of shards at a URL.

    Raises
    ------
    StorageError, ShardError
        If the data set is unfinished or damaged.
    """
    manifest = open_manifest(root, kind="codes")
    positions = manifest.select(split)
    clip = ClipSpec(**manifest.info["config"]["clip"])
    # Starts are not stored: they are the same pure function of segments and clip that the encoder used.
    table = clip_table(manifest.segments, positions, clip, margin=clip.span - 1)
    rows = manifest.segments.iloc[positions]
    if (rows["n_clips"].to_numpy() != table.counts).any():
        raise ShardError("the index does not hold the clips that its specification gives", where=root)
    shards = open_shards(manifest, positions, cache=cache, cache_bytes=cache_bytes)
    try:
        codes = _read_members(manifest, rows, table.offsets, shards)
    finally:
        shards.close()
    _, starts = table.locate(np.arange(len(table)))
    per_shard = np.bincount(rows["shard"].to_numpy(), weights=table.counts).astype(np.int64)
    return CodesTable(
        codes=codes,
        recording=np.repeat(rows["recording"].to_numpy(), table.counts),
        start_frame=starts,
        clips_per_shard=per_shard,
        clip=clip,
        fingerprint=f"{manifest.fingerprint}/{split or 'all'}",
        info=manifest.info,
    )


def _read_members(
    manifest: Manifest, rows: pd.DataFrame, offsets: NDArray[np.int64], shards: Shards
) -> NDArray[np.uint16]:
    """Read every member, shard by shard, into its clips' places: (N, t, h, w) uint16."""
    grid = tuple(manifest.info.get("grid") or ())
    shard, begin = rows["shard"].to_numpy(np.int64), rows["offset"].to_numpy(np.int64)
    end, crc32, keys = begin + rows["n_bytes"].to_numpy(np.int64), rows["crc32"].tolist(), rows["key"].tolist()
    spans = list(zip(shard.tolist(), begin.tolist(), end.tolist(), strict=True))
    shards.begin([shard])
    codes: NDArray[np.uint16] | None = None
    for number in np.unique(shard):
        members = np.flatnonzero(shard == number).tolist()
        for i, data in zip(members, shards.read([spans[i] for i in members], len(members)), strict=True):
            first, past = int(offsets[i]), int(offsets[i + 1])
            if zlib.crc32(data) != crc32[i]:
                data = shards.read_again(spans[i]) or b""
            if zlib.crc32(data) != crc32[i]:
                raise _damage("its checksum differs from the index's", shards.where(int(number)), keys[i])
            if codes is None:
                grid = grid or _array(data, shards.where(int(number)), keys[i]).shape[1:]
                codes = np.empty((int(offsets[-1]), *grid), np.uint16)
            header = _header((past - first, *grid))
            # Every writer's header is the same; one that is not is parsed.
            if data.startswith(header) and len(data) - len(header) == codes[first:past].nbytes:
                codes[first:past] = np.frombuffer(data, "<u2", offset=len(header)).reshape(-1, *grid)
            else:
                found = _array(data, shards.where(int(number)), keys[i])
                if found.shape != (past - first, *grid) and len(found):
                    raise _damage(f"it holds {found.shape}", shards.where(int(number)), keys[i])
                codes[first:past] = found.reshape(-1, *grid)
    assert codes is not None  # a split without clips was refused
    return codes


@functools.lru_cache(maxsize=64)
def _header(shape: tuple[int, ...]) -> bytes:
    """What `numpy.save` writes before codes of this shape."""
    buffer = io.BytesIO()
    described = {"descr": "<u2", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(buffer, described)
    return buffer.getvalue()


def _array(data: bytes, where: str, key: str) -> NDArray[np.uint16]:
    try:
        found: NDArray[np.uint16] = np.load(io.BytesIO(data), allow_pickle=False)
    except ValueError as error:
        raise _damage(str(error), where, key) from error
    return found


def _damage(what: str, where: str, key: str) -> ShardError:
    return ShardError(f"a member is damaged: {what}", where=f"{where} {key}", hint="tokenize again")


class CodesSource:
    """Clips of codes from memory."""

    fetches_ahead = False

    def __init__(self, table: CodesTable) -> None:
        self.table, self.clip, self.dataset = table, table.clip, table.fingerprint
        self.clips_per_shard = table.clips_per_shard
        self.held_bytes, self.clip_bytes = table.codes.nbytes, table.codes[:1].nbytes

    def begin(self, pieces: Iterable[NDArray[np.int64]]) -> None:
        """Everything is in memory already."""

    def end(self) -> None:
        """Nothing is fetched ahead."""

    def reading_bytes(self, n_clips: int) -> int:
        """A batch is gathered straight."""
        return 0

    def read(self, clips: NDArray[np.int64]) -> CodesBatch:
        """Gather a batch."""
        return CodesBatch(codes=self.table.codes[clips], index=clips)

    def stats(self) -> dict[str, float]:
        """Nothing is read any more."""
        return {"n_bytes": 0, "n_requests": 0, "cache_hits": 0, "retries": 0}

    def close(self) -> None:
        """There is nothing to let go of."""


def codes_stream(
    root: str | Path | Root,
    *,
    batch_size: int = 64,
    seed: int = 0,
    split: Literal["train", "val"] | None = None,
    world: World | None = None,
    shuffle: bool = True,
    tail: Tail = "drop",
    cache: str | Path = CACHE,
    cache_bytes: int | str = CACHE_BYTES,
) -> Loader[CodesBatch]:
    """Stream batches of codes, by the same order, state and resume as `vidbrain.stream`."""
    source = CodesSource(load_codes(root, split=split, cache=cache, cache_bytes=cache_bytes))
    return Loader(source, batch_size=batch_size, seed=seed, world=world, shuffle=shuffle, tail=tail)
