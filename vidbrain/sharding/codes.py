"""Writes codes in the layout of the shards that they were made from: same segments and tars, other members."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from vidbrain.errors import ResumeError, StorageError
from vidbrain.progress import SILENT, Progress
from vidbrain.sharding.claims import PLAN
from vidbrain.sharding.index import COLUMNS, PLACES, index_rows, write_index
from vidbrain.sharding.manifest import SHARDS, Manifest, marker_path, read_marker
from vidbrain.sharding.record import DATASET, ShardFacts, record_facts
from vidbrain.sharding.tars import Sample, write_shard
from vidbrain.storage.atomic import check_writable, read_json, sweep, write_json
from vidbrain.storage.info import difference, is_done, read_info, write_info
from vidbrain.storage.locks import locked, sweep_lock
from vidbrain.storage.urls import is_url

EXTENSION = "codes.npy"

Encode = Callable[[Sequence[int]], Iterable[tuple[int, NDArray[np.uint16]]]]


def write_codes(
    root: str | Path,
    manifest: Manifest,
    encode: Encode,
    *,
    config: dict[str, Any],
    made_from: dict[str, str],
    facts: dict[str, Any],
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Write the codes of every segment, or finish what a killed call began.

    Parameters
    ----------
    root
        Folder to write.
    manifest
        The frames.
    encode
        Given positions of segments, yields ``(position, codes (n_clips, t, h, w) uint16)`` in the order given. Called
        once for each shard that is not there yet.
    config, made_from, facts
        For the root record; `config` names the clip specification, `made_from` the frames and the VQ-VAE.

    Returns
    -------
    dict
        The root record.

    Raises
    ------
    StorageError
        If the root is a URL, cannot be written, or another process writes there.
    ResumeError
        If other codes are there.
    """
    if is_url(root):
        raise StorageError("codes are written to a folder", where=root, hint="give a folder, then `vidbrain push` it")
    root = Path(root)
    if is_done(root, "codes", config=config, made_from=made_from, name=DATASET):
        sweep_lock(root)
        return read_info(root, "codes", name=DATASET)
    check_writable(root)
    with locked(root):
        _claim(root, config, made_from)
        table = manifest.segments
        shards = table["shard"].to_numpy()
        n_shards = int(shards.max()) + 1
        members = [np.flatnonzero(shards == shard).tolist() for shard in range(n_shards)]
        done = [shard for shard in range(n_shards) if marker_path(root, shard).is_file()]
        progress.start("tokenize", len(table), "segments", done=sum(len(members[shard]) for shard in done))
        for shard in sorted(set(range(n_shards)) - set(done)):
            write_shard(root, shard, _samples(table, encode(members[shard]), progress))
        progress.finish()

        found: list[tuple[ShardFacts, int]] = []
        index_sha256 = write_index(root, _index_tables(root, table, members, found))
        counts = {
            "n_frames": int(manifest.info["n_frames"]),
            "n_segments": len(table),
            "n_clips": sum(n_clips for _, n_clips in found),
            **record_facts(index_sha256, [facts for facts, _ in found]),
        }
        return write_info(root, "codes", config=config, made_from=made_from, facts={**facts, **counts}, name=DATASET)


def _claim(root: Path, config: dict[str, Any], made_from: dict[str, str]) -> None:
    """Remove what a killed call left half-written, and say what the folder is becoming, unless it is something else."""
    (root / SHARDS).mkdir(exist_ok=True)
    for folder in (root, root / SHARDS):
        sweep(folder)
    claim = {"config": config, "made_from": made_from}
    if (root / PLAN).is_file():
        held = read_json(root / PLAN)
        if held != claim:
            raise ResumeError(
                f"unfinished codes of another kind are there: {difference(held, config, made_from)}",
                where=root,
                hint="give another output, or remove this one first",
            )
    else:
        write_json(root / PLAN, claim)


def _index_tables(
    root: Path, table: pd.DataFrame, members: list[list[int]], found: list[tuple[ShardFacts, int]]
) -> Iterator[pa.Table]:
    """Yield the index rows of each shard, and note what its tar is known by and how many clips it holds."""
    for shard, positions in enumerate(members):
        marker = read_marker(root, shard, kind="codes")
        # The place of a member of codes holds its number of clips as its only part.
        n_clips = [place["parts"][0] for place in marker.segments]
        found.append((marker.facts, sum(n_clips)))
        rows = table.iloc[positions]
        columns = {name: rows[name].to_numpy() for name in COLUMNS if name not in PLACES}
        parts = [[place["n_bytes"]] for place in marker.segments]
        yield index_rows({**columns, "n_clips": n_clips, "parts": parts}, marker.segments)


def _samples(
    table: Any,  # noqa: ANN401 -- a pandas frame
    coded: Iterable[tuple[int, NDArray[np.uint16]]],
    progress: Progress,
) -> Iterator[Sample]:
    for position, codes in coded:
        row = table.iloc[position]
        buffer = io.BytesIO()
        np.save(buffer, np.ascontiguousarray(codes, np.uint16), allow_pickle=False)
        facts = {"shape": list(codes.shape), "recording": row["recording"], "start_frame": int(row["start_frame"])}
        # The marker keeps the number of clips; the index row is made from it.
        yield row["key"], EXTENSION, buffer.getvalue(), [len(codes)], facts
        progress.advance(1)
