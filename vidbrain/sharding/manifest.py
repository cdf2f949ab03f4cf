"""What a data set of shards says of itself: ``dataset.json``, ``index.parquet`` and a marker for each shard."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from vidbrain.errors import ShardError, StorageError
from vidbrain.sharding.subset import content_of, read_subset, select_rows
from vidbrain.storage.atomic import replacing
from vidbrain.storage.info import read_info

DATASET = "dataset.json"
INDEX = "index.parquet"
SHARDS = "shards"
SPOOL = "spool"
ROW_GROUP = 1 << 16
# A dot would end a WebDataset key, a separator would leave the folder.
_NAME = re.compile(r"[^./\\\x00-\x1f]+")

COLUMNS = {
    "key": pa.string(),
    "recording": pa.string(),
    "run": pa.string(),
    "subject": pa.string(),
    "session": pa.string(),
    "task": pa.string(),
    "run_number": pa.int32(),
    "level": pa.string(),
    "repetition": pa.string(),
    "split": pa.string(),
    "start_frame": pa.int64(),
    "n_frames": pa.int64(),
    "n_stored": pa.int64(),
    "recording_frames": pa.int64(),
    "fps": pa.float64(),
    "onset_s": pa.float64(),
    "duration_s": pa.float64(),
    "shard": pa.int32(),
    "offset": pa.int64(),
    "n_bytes": pa.int64(),
    "parts": pa.list_(pa.int64()),
    "crc32": pa.int64(),
    "part_crc32": pa.list_(pa.int64()),
    "n_clips": pa.int64(),
}
"""Columns of the index, one row a segment in plan order. `offset` is that of the member's bytes in its tar; `parts` are
the lengths of its independently decodable parts, `part_crc32` their checksums (null in data sets that were written
before there was this column); `n_clips` counts the clips of a data set of codes (0 for frames)."""


def shard_path(root: str | Path, shard: int) -> Path:
    """Path of a shard's tar."""
    return Path(root) / SHARDS / f"{shard:06d}.tar"


def marker_path(root: str | Path, shard: int) -> Path:
    """Path of a shard's commit marker, written after its tar."""
    return Path(root) / SHARDS / f"{shard:06d}.json"


@dataclass(frozen=True)
class Manifest:
    """An opened data set of shards: frames (kind ``"shards"``) or codes (kind ``"codes"``).

    Attributes
    ----------
    root
        Its folder.
    info
        The root record, ``dataset.json``.
    segments
        The index, one row a segment, in plan order. Where the size ends inside the last segment, that row's
        `n_frames` is cut to it.
    subset
        Fingerprint of the subset of the data set that this is, or None.
    """

    root: Path
    info: dict[str, Any]
    segments: pd.DataFrame
    subset: str | None = None

    @property
    def fingerprint(self) -> str:
        """Names the content."""
        return self.subset or str(self.info["fingerprint"])

    @property
    def height(self) -> int:
        """Of the stored frames, in pixels."""
        return int(self.info["height"])

    @property
    def width(self) -> int:
        """Of the stored frames, in pixels."""
        return int(self.info["width"])

    @property
    def margin(self) -> int:
        """Frames that a segment stores beyond those it owns (fewer at the end of a recording)."""
        return int(self.info["margin"])

    @cached_property
    def recordings(self) -> pd.DataFrame:
        """One row a recording, indexed by key: run, split, recording_frames, frames_held, onset_s, duration_s."""
        groups = self.segments.groupby("recording", sort=True)
        columns = ["run", "subject", "session", "task", "level", "repetition", "split"]
        columns += ["recording_frames", "onset_s", "duration_s"]
        table = groups[columns].first()
        table["frames_held"] = groups["n_frames"].sum()
        return table

    @cached_property
    def runs(self) -> list[str]:
        """Labels of the BOLD runs that the recordings belong to, sorted; empty where there was no scanner."""
        return sorted(label for label in self.segments["run"].unique() if label)

    def select(self, split: str | None) -> NDArray[np.int64]:
        """Positions of the segments of a split, or of all, in plan order.

        Raises
        ------
        ShardError
            If the split is empty.
        """
        if split is None:
            return np.arange(len(self.segments))
        positions = np.flatnonzero(self.segments["split"].to_numpy() == split)
        if not len(positions):
            raise ShardError(
                f"no segment belongs to split {split!r}", where=self.root, hint="shard with another --val-share"
            )
        return positions


def write_index(root: str | Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write ``index.parquet`` atomically, a group of rows at a time."""
    schema, waiting = pa.schema(list(COLUMNS.items())), iter(rows)
    with replacing(Path(root) / INDEX) as part, pq.ParquetWriter(part, schema, compression="zstd") as writer:
        while group := list(itertools.islice(waiting, ROW_GROUP)):
            writer.write_table(pa.table({name: [row[name] for row in group] for name in COLUMNS}, schema=schema))


def open_manifest(root: str | Path, *, kind: str = "shards") -> Manifest:
    """Open a finished data set of shards.

    Parameters
    ----------
    root
        Its folder, or the file of a subset of it.
    kind
        ``"shards"`` for frames, ``"codes"`` for codes.

    Raises
    ------
    StorageError
        If it is missing, unfinished or of another kind or version.
    ShardError
        If the index does not fit the root record.
    """
    root = Path(root)
    if root.is_file() and root.name != DATASET:
        return _open_subset(root, kind)
    info = read_info(root, kind, name=DATASET)
    _check_record(info, kind, root / DATASET)
    try:
        table = pq.read_table(root / INDEX)
    except (OSError, pa.ArrowException) as error:
        raise StorageError(f"the index cannot be read: {error}", where=root / INDEX) from error
    if "part_crc32" not in table.column_names:
        table = table.append_column("part_crc32", pa.nulls(len(table), COLUMNS["part_crc32"]))
    lacking = [name for name in COLUMNS if name not in table.column_names]
    # A longer index is that of a data set which is growing: what it held before are the first rows.
    if lacking or len(table) < info["n_segments"]:
        raise ShardError(
            f"the index holds {len(table)} segments, the root record says {info['n_segments']}"
            + (f"; it lacks the columns {', '.join(lacking)}" if lacking else ""),
            where=root / INDEX,
            hint="run `vidbrain shard` again with the same settings",
        )
    # Other writers of Parquet have long strings.
    table = table.slice(0, info["n_segments"])
    held = {name: table.schema.field(name).type for name in COLUMNS}
    held = {name: pa.string() if pa.types.is_large_string(found) else found for name, found in held.items()}
    odd = [name for name, dtype in COLUMNS.items() if held[name] != dtype]
    segments = table.to_pandas()
    fault = f"columns of another type: {', '.join(odd)}" if odd else _fault(segments)
    if fault:
        raise ShardError(
            f"the index is damaged: {fault}", where=root / INDEX, hint="remove the data set and make it again"
        )
    excess = int(segments["n_frames"].sum()) - int(info["n_frames"])
    if excess > 0:
        segments.loc[segments.index[-1], "n_frames"] -= excess
    return Manifest(root, info, segments)


def _open_subset(path: Path, kind: str) -> Manifest:
    named = read_subset(path)
    if kind != "shards":
        raise StorageError(
            f"a subset names frames, not {kind}", where=path, hint=f"tokenize it first: vidbrain tokenize {path}"
        )
    whole = open_manifest(named.data)
    rows = select_rows(whole.segments, named.only, named.n_frames, path)
    if content_of(rows) != named.content:
        raise ShardError(
            "the subset names other segments than the data set holds",
            where=path,
            likely="the data set was made again since",
            hint="make the subset again with `vidbrain subset`",
        )
    counts = {"n_frames": named.n_frames, "n_segments": len(rows), "n_recordings": int(rows["recording"].nunique())}
    return Manifest(whole.root, {**whole.info, **counts}, rows, named.fingerprint)


def _check_record(info: dict[str, Any], kind: str, path: Path) -> None:
    """Refuse a root record whose numbers are none: they size what is allocated and read."""
    names = ["n_segments", "n_frames", *(("height", "width", "margin") if kind == "shards" else ())]
    odd = [name for name in names if type(info.get(name)) is not int or info[name] < (name != "margin")]
    if odd or not isinstance(info.get("config"), dict) or not isinstance(info.get("fingerprint"), str):
        what = ", ".join(f"{name} is {info.get(name)!r}" for name in odd) or "its settings or fingerprint are missing"
        raise ShardError(f"the root record is damaged: {what}", where=path, hint="make the data set again")


def _fault(segments: pd.DataFrame) -> str | None:
    """Say what is impossible in the index, before any of it becomes a path, a seek, an allocation or a time."""
    for column in ("key", "recording"):
        odd = [name for name in segments[column].unique() if not (isinstance(name, str) and _NAME.fullmatch(name))]
        if odd:
            return f"{column} {odd[0]!r} cannot be a name"
    if segments["key"].duplicated().any():
        return "a key that stands twice"
    seen = segments["run"].to_numpy() != ""
    onset_s, duration_s = segments["onset_s"].to_numpy(float), segments["duration_s"].to_numpy(float)
    timed = np.isfinite(onset_s) & np.isfinite(duration_s) & (onset_s >= 0) & (duration_s > 0)
    untimed = np.isnan(onset_s) & np.isnan(duration_s)
    if not np.where(seen, timed, timed | untimed).all():
        return "an onset or a duration that is no time on a scanner's clock"
    counts = segments[["start_frame", "n_frames", "n_stored", "shard", "offset", "n_bytes", "n_clips"]]
    if (counts < 0).to_numpy().any():
        return "a negative position or length"
    # In floating point: absurd numbers must not wrap around.
    begins = segments["start_frame"].astype(float)
    if ((begins + segments["n_stored"].astype(float)) > segments["recording_frames"]).any():
        return "a segment beyond the end of its recording"
    if (segments["n_frames"] > segments["n_stored"]).any():
        return "a segment that owns more frames than it stores"
    sums = [sum(parts.tolist()) if len(parts) and parts.min() >= 0 else -1 for parts in segments["parts"]]
    if any(found != n_bytes for found, n_bytes in zip(sums, segments["n_bytes"].tolist(), strict=True)):
        return "parts that do not add up to their member"
    pairs = zip(segments["part_crc32"], segments["parts"], strict=True)
    if any(sums is not None and len(sums) != len(parts) for sums, parts in pairs):
        return "another number of parts than of their checksums"
    return None
