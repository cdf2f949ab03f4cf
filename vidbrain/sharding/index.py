"""``index.parquet``: a row for each segment, written in groups, and judged before anything is read by it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.pandas_compat
import pyarrow.parquet as pq
import pyarrow.vendored.version  # the first frame of a process would import both, when a data set is opened
from numpy.typing import NDArray

from vidbrain.errors import ShardError, StorageError
from vidbrain.storage.atomic import replacing

INDEX = "index.parquet"
ROW_GROUP = 1 << 13
SMALL_BYTES = 1 << 20
"""An index up to this size is read by one thread."""
# A dot would end a WebDataset key, a separator would leave the folder. By byte: none of them is part of a longer
# character in UTF-8.
_NOT_IN_NAMES = bytes([*range(0x20), *b"./\\"])

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
PLACES = ("offset", "n_bytes", "parts", "crc32", "part_crc32")
"""Columns that are known when a tar is written; its marker holds them."""
_PLACES_SCHEMA = pa.schema([(name, COLUMNS[name]) for name in PLACES])
_SCHEMA = pa.schema(list(COLUMNS.items()))
_MAY_LACK = ("fps", "onset_s", "duration_s", "part_crc32")
_HINT = "vidbrain verify --repair, where the source is still there; else make the data set again"
# A sum below this does not wrap around.
_MOST = 2.0**62


def index_rows(columns: Mapping[str, Any], places: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Join what a plan knows of some segments to the places that their marker gives.

    Parameters
    ----------
    columns
        Values by name, of all columns that a marker does not hold; they may replace some that it holds.
    places
        For each segment ``offset``, ``n_bytes``, ``parts``, ``crc32`` and ``part_crc32`` (older markers have none).
    """
    held = pa.Table.from_pylist(list(places), schema=_PLACES_SCHEMA)
    return pa.table({**{name: held[name] for name in PLACES}, **columns}).select(_SCHEMA.names).cast(_SCHEMA)


def write_index(root: str | Path, tables: Iterable[pa.Table]) -> str:
    """Write ``index.parquet`` atomically, a group of rows at a time.

    The bytes do not depend on how the rows are divided into tables.

    Returns
    -------
    str
        SHA-256 of the file.
    """
    path = Path(root) / INDEX
    with replacing(path) as part, pq.ParquetWriter(part, _SCHEMA, compression="zstd") as writer:
        for group in _in_groups(tables):
            writer.write_table(group.combine_chunks())
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _in_groups(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    waiting: list[pa.Table] = []
    n_waiting = 0
    for table in tables:
        waiting.append(table)
        n_waiting += len(table)
        if n_waiting >= ROW_GROUP:
            joined, n_waiting = pa.concat_tables(waiting), n_waiting % ROW_GROUP
            past = len(joined) - n_waiting
            yield from (joined.slice(first, ROW_GROUP) for first in range(0, past, ROW_GROUP))
            waiting = [joined.slice(past)]
    if n_waiting:
        yield pa.concat_tables(waiting)


def read_index(data: bytes, n_segments: int, *, sha256: str | None, where: object) -> pd.DataFrame:
    """Read the first rows of an index.

    Parameters
    ----------
    data
        The file.
    n_segments
        Rows that the root record names. There may be more: those of a data set that is growing.
    sha256
        Of the file, where the root record says it. Only an index with more rows may have another.
    where
        For messages.

    Raises
    ------
    StorageError
        If it is no Parquet.
    ShardError
        If it is not what the root record says, or something in it is impossible.
    """
    try:
        # `pq.read_table` would import pyarrow.dataset first, and threads be started: either takes longer than reading a
        # small index.
        table = pq.ParquetFile(pa.BufferReader(data)).read(use_threads=len(data) > SMALL_BYTES)
        table.validate(full=True)  # text that is none would raise where it is looked at
    except (OSError, pa.ArrowException) as error:
        raise StorageError(f"the index cannot be read: {error}", where=where) from error
    if "part_crc32" not in table.column_names:
        table = table.append_column("part_crc32", pa.nulls(len(table), COLUMNS["part_crc32"]))
    there = set(table.column_names)
    lacking = [name for name in COLUMNS if name not in there]
    if lacking or len(table) < n_segments:
        raise ShardError(
            f"the index holds {len(table)} segments, the root record says {n_segments}"
            + (f"; it lacks the columns {', '.join(lacking)}" if lacking else ""),
            where=where,
            hint=_HINT,
        )
    is_longer = len(table) > n_segments
    table = table.slice(0, n_segments).combine_chunks()
    # Other writers of Parquet have long strings.
    held = {name: table.schema.field(name).type for name in COLUMNS}
    held = {name: pa.string() if pa.types.is_large_string(found) else found for name, found in held.items()}
    odd = [name for name, dtype in COLUMNS.items() if held[name] != dtype]
    fault = f"columns of another type: {', '.join(odd)}" if odd else _fault(table)
    if fault is None and sha256 is not None and not is_longer and hashlib.sha256(data).hexdigest() != sha256:
        fault = "its checksum differs from the root record's"
    if fault:
        raise ShardError(
            f"the index is damaged: {fault}",
            where=where,
            hint=_HINT,
        )
    return table.to_pandas(use_threads=len(data) > SMALL_BYTES)


def _fault(table: pa.Table) -> str | None:
    """Say what is impossible in the index, before any of it becomes a path, a seek, an allocation or a time.

    By numpy: the first call of any of pyarrow's own functions takes as long as all of this.
    """
    for name in ("key", "recording"):
        odd = _odd_name(table[name].chunk(0))
        if odd is not None:
            return f"{name} {odd[0]!r} cannot be a name"
    holes = [name for name in COLUMNS if name not in _MAY_LACK and table[name].null_count]
    if holes:
        return f"missing values: {', '.join(holes)}"
    if len(set(table["key"].to_pylist())) != len(table):
        return "a key that stands twice"
    seen = np.diff(_ends(table["run"].chunk(0))) > 0
    onset_s, duration_s = table["onset_s"].to_numpy(), table["duration_s"].to_numpy()
    timed = np.isfinite(onset_s) & np.isfinite(duration_s) & (onset_s >= 0) & (duration_s > 0)
    untimed = np.isnan(onset_s) & np.isnan(duration_s)
    if not np.where(seen, timed, timed | untimed).all():
        return "an onset or a duration that is no time on a scanner's clock"
    names = ("start_frame", "n_frames", "n_stored", "recording_frames", "shard", "offset", "n_bytes", "n_clips")
    counts = {name: table[name].to_numpy() for name in names}
    if any((values < 0).any() for values in counts.values()):
        return "a negative position or length"
    # In floating point: absurd numbers must not wrap around.
    if (counts["start_frame"].astype(float) + counts["n_stored"] > counts["recording_frames"]).any():
        return "a segment beyond the end of its recording"
    if (counts["n_frames"] > counts["n_stored"]).any():
        return "a segment that owns more frames than it stores"
    return _parts_fault(table, counts["n_bytes"])


def _odd_name(names: pa.StringArray) -> list[str | None] | None:
    """Give the first that cannot be a name, in a list, if there is one."""
    ends = _ends(names)
    held = names.buffers()[2]
    text = held[int(ends[0]) : int(ends[-1])].to_pybytes() if held is not None else b""
    # All of them at once: with a regular expression for each this took half the time of opening a small data set.
    if len(text.translate(None, _NOT_IN_NAMES)) == len(text) and (np.diff(ends) > 0).all():
        return None
    return next(
        [name]
        for name in names.to_pylist()
        if not name or len(name.encode().translate(None, _NOT_IN_NAMES)) < len(name.encode())
    )


def _ends(values: pa.Array) -> NDArray[np.int64]:
    """Where each text or list of a column begins in its buffer of values, and where the last one ends: (n + 1,)."""
    is_long = pa.types.is_large_string(values.type)
    offsets = np.frombuffer(values.buffers()[1], np.int64 if is_long else np.int32)
    # A slice of an array has the buffers of the whole.
    return offsets[values.offset : values.offset + len(values) + 1].astype(np.int64)


def _parts_fault(table: pa.Table, n_bytes: NDArray[np.int64]) -> str | None:
    held, first = table["parts"].chunk(0), _ends(table["parts"].chunk(0))
    flat, lengths, ends = held.values.slice(first[0], first[-1] - first[0]), np.diff(first), first[1:] - first[0]
    parts = flat.to_numpy(zero_copy_only=False)
    # Bounded first, in floating point, so that their sums cannot wrap around to what fits.
    bounded = (lengths > 0) & (lengths * n_bytes.astype(float) < _MOST)
    within = not flat.null_count and bool(((parts >= 0) & (parts <= np.repeat(n_bytes, lengths))).all())
    if not within or not bounded.all():
        return "parts that do not add up to their member"
    sums = np.concatenate([[0], np.cumsum(parts, dtype=np.int64)])
    if (sums[ends] - sums[ends - lengths] != n_bytes).any():
        return "parts that do not add up to their member"
    sums_of = table["part_crc32"].chunk(0)
    n_checksums = np.diff(_ends(sums_of))
    known = np.ones(len(table), np.bool_) if not sums_of.null_count else sums_of.is_valid().to_numpy(False)
    if (n_checksums != lengths)[known].any():
        return "another number of parts than of their checksums"
    return None
