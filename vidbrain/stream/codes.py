"""Codes -> batches: a data set of codes is small, so it is held in memory whole."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vidbrain.errors import ShardError
from vidbrain.records import ClipSpec, World
from vidbrain.sharding.manifest import open_manifest, shard_path
from vidbrain.storage.atomic import as_storage_error
from vidbrain.stream.clips import clip_table
from vidbrain.stream.loader import Loader, Tail


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


@dataclass(frozen=True)
class CodesBatch:
    """A batch of codes (B, t, h, w) uint16 and their clip numbers (B,)."""

    codes: NDArray[np.uint16]
    index: NDArray[np.int64]


def load_codes(root: str | Path, *, split: Literal["train", "val"] | None = None) -> CodesTable:
    """Load the codes of a split into memory.

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
    blocks = []
    for shard, members in rows.groupby("shard", sort=False):
        path = shard_path(manifest.folder, int(shard))
        try:
            with path.open("rb") as handle:
                n_held = path.stat().st_size
                for row in members.itertuples():
                    handle.seek(row.offset)
                    # No more than there is: an absurd length in an index must not be allocated.
                    data = handle.read(min(row.n_bytes, n_held))
                    blocks.append(np.load(io.BytesIO(data), allow_pickle=False))
        except OSError as error:
            raise as_storage_error(error, path) from error
        except ValueError as error:
            raise ShardError(f"a member is damaged: {error}", where=path, hint="tokenize again") from error
    _, starts = table.locate(np.arange(len(table)))
    per_shard = np.bincount(rows["shard"].to_numpy(), weights=table.counts).astype(np.int64)
    return CodesTable(
        codes=np.concatenate([block for block in blocks if len(block)]),
        recording=np.repeat(rows["recording"].to_numpy(), table.counts),
        start_frame=starts,
        clips_per_shard=per_shard,
        clip=clip,
        fingerprint=f"{manifest.fingerprint}/{split or 'all'}",
        info=manifest.info,
    )


class CodesSource:
    """Clips of codes from memory."""

    def __init__(self, table: CodesTable) -> None:
        self.table, self.clip, self.dataset = table, table.clip, table.fingerprint
        self.clips_per_shard = table.clips_per_shard

    def begin(self, clips: NDArray[np.int64]) -> None:
        """Everything is in memory already."""

    def read(self, clips: NDArray[np.int64]) -> CodesBatch:
        """Gather a batch."""
        return CodesBatch(self.table.codes[clips], clips)

    def stats(self) -> dict[str, float]:
        """Nothing is read any more."""
        return {"n_bytes": 0, "n_requests": 0, "cache_hits": 0, "retries": 0}

    def close(self) -> None:
        """There is nothing to let go of."""


def codes_stream(
    root: str | Path,
    *,
    batch_size: int = 64,
    seed: int = 0,
    split: Literal["train", "val"] | None = None,
    world: World | None = None,
    shuffle: bool = True,
    tail: Tail = "drop",
) -> Loader[CodesBatch]:
    """Stream batches of codes, by the same order, state and resume as `vidbrain.stream`."""
    source = CodesSource(load_codes(root, split=split))
    return Loader(source, batch_size=batch_size, seed=seed, world=world, shuffle=shuffle, tail=tail)
