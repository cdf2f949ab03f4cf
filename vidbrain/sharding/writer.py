"""Writes shards: each recording is decoded once, its encoded segments are spooled, tars are assembled by copying.

Everything a crash can leave behind is either final and whole, or named as unfinished. The order of events is: the plan;
a spool file for each recording; for each shard its tar, then its marker; the index; the root record; then the spool
goes. The same command goes on wherever it was stopped, and the bytes do not depend on where that was.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from vidbrain.cluster import Client
from vidbrain.errors import StorageError
from vidbrain.progress import SILENT, Progress
from vidbrain.sharding.claims import check_claim, write_claim, write_skipped
from vidbrain.sharding.filters import Filter
from vidbrain.sharding.index import index_rows, write_index
from vidbrain.sharding.job import Job, job_of
from vidbrain.sharding.manifest import (
    DATASET,
    SHARDS,
    SPOOL,
    ShardFacts,
    marker_path,
    read_marker,
    record_facts,
    shard_path,
)
from vidbrain.sharding.plan import Listed, Plan, ShardConfig
from vidbrain.sharding.segments import Segments
from vidbrain.sharding.spool import spool_recordings, spooled_samples
from vidbrain.sharding.tars import write_shard
from vidbrain.storage.atomic import check_writable, remove, sweep
from vidbrain.storage.info import read_info, write_info
from vidbrain.storage.locks import LOCK, locked


@dataclass(frozen=True)
class _Tarred:
    """Work for one shard: copy its segments from the spool into a tar."""

    shard: int
    segments: Segments
    root: str
    config: ShardConfig


def write_shards(
    source: str | Path,
    root: str | Path,
    config: ShardConfig,
    *,
    only: Filter = Filter(),  # noqa: B008 -- frozen
    integration: str | Path | None = None,
    client: Client | None = None,
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Write a source's frames as shards, finish what a killed call began, or let a data set grow.

    Parameters
    ----------
    source
        BIDS tree of game play (replayed, or `.bk2` only), a folder of videos, one video, or a list of files.
    root
        Folder to write. If it holds a smaller prefix of the same plan, shards are added and none is rewritten.
    config
        Settings; `size` chooses a prefix of the plan.
    only
        Which recordings to take.
    integration
        Folder with the user's own ROM, for recordings that have no video; see `vidbrain.video.emulator.Emulator`.
    client
        Runs the recordings and shards in parallel. The bytes do not depend on it.

    Returns
    -------
    dict
        The root record.

    Raises
    ------
    ShardError, VideoError
        If the source cannot give what was asked for.
    ResumeError
        If the folder holds another plan; says what differs.
    StorageError
        If the folder cannot be written, another process writes there, or the disk is too small.
    """
    client = client or Client()
    root = Path(root)
    job = job_of(source, root, config, only=only, integration=integration, client=client)
    for note in job.source.notes:
        progress.note(note)
    plan = job.plan_of(config.size)
    if (root / DATASET).is_file():
        record = read_info(root, "shards", name=DATASET)
        if record["fingerprint"] == job.outcome(plan).fingerprint:
            if (root / SPOOL).is_dir() or (root / LOCK).exists():  # killed just after the root record
                with locked(root):
                    _tidy(root)
            return record
    with locked(root) as alone:
        if not alone:
            progress.note("this disk has no locks: make sure that no other process writes to the same folder")
        claim = job.claim()
        check_claim(root, claim, plan, job.plan_of)
        check_writable(root, job.estimate_bytes(plan))
        write_claim(root, claim)
        return execute(job, plan, root, client, progress)


def execute(job: Job, plan: Plan, root: Path, client: Client, progress: Progress = SILENT) -> dict[str, Any]:
    """Write what is missing of a plan, the index and the root record. The caller holds the folder's lock.

    Returns
    -------
    dict
        The root record.
    """
    (root / SHARDS).mkdir(exist_ok=True)
    (root / SPOOL).mkdir(exist_ok=True)
    for folder in (root, root / SHARDS, root / SPOOL):
        sweep(folder)
    while failed := spool_recordings(job, _needed(root, plan), root / SPOOL, client, progress):
        job = replace(job, skipped={**job.skipped, **failed})
        write_skipped(root, job.skipped)
        progress.note(f"{len(failed)} recording(s) cannot be read; the next segments take their place")
        plan = job.plan_of(job.config.size)
    _assemble(plan, job.config, root, client)
    shards: list[ShardFacts] = []
    index_sha256 = write_index(root, _index_tables(job, plan, root, shards))
    config = job.config
    record = write_info(
        root,
        "shards",
        config=job.content,
        made_from=job.outcome(plan).made_from,
        facts={
            "codec": config.codec,
            **({"codec_choice": job.codec_choice} if job.codec_choice else {}),
            "height": config.frame_size,
            "width": config.frame_size,
            "margin": config.margin,
            "n_frames": plan.n_frames,
            "n_segments": len(plan.segments),
            "n_recordings": len(np.unique(plan.segments.recording)),
            **record_facts(index_sha256, shards),
            "skipped": dict(sorted({**job.source.skipped, **job.skipped}.items())),
        },
        name=DATASET,
    )
    _tidy(root)
    return record


def _tidy(root: Path) -> None:
    write_skipped(root, {})
    remove(root / SPOOL)


def is_whole(root: Path, shard: int, plan: Plan) -> bool:
    """Whether a shard is there with the segments that the plan gives it, as far as its marker and length say."""
    marker, tar = marker_path(root, shard), shard_path(root, shard)
    if not (marker.is_file() and tar.is_file()):
        return False
    first, past = plan.shards[shard]
    try:
        found = read_marker(root, shard)
    except StorageError:
        return False
    keys = [segment.key for segment in plan.segments[first:past]]
    return found.keys == keys and len(found.segments) == past - first and found.n_bytes == tar.stat().st_size


def _missing(root: Path, plan: Plan) -> list[int]:
    return [shard for shard in range(len(plan.shards)) if not is_whole(root, shard, plan)]


def _needed(root: Path, plan: Plan) -> Segments:
    """Segments of the missing shards."""
    missing = [np.arange(*plan.shards[shard]) for shard in _missing(root, plan)]
    return plan.segments.take(np.concatenate([np.arange(0), *missing]))


def _assemble(plan: Plan, config: ShardConfig, root: Path, client: Client) -> None:
    """Write the missing tars."""
    everything = np.arange(len(plan.segments))
    todo = [
        _Tarred(shard, plan.segments.take(everything[slice(*plan.shards[shard])]), str(root), config)
        for shard in _missing(root, plan)
    ]
    for _ in client.run(_tar_one, todo):
        pass


def _tar_one(work: _Tarred) -> None:
    samples = spooled_samples(work.segments, Path(work.root) / SPOOL, work.config)
    write_shard(Path(work.root), work.shard, samples)


def _index_tables(job: Job, plan: Plan, root: Path, facts: list[ShardFacts]) -> Iterator[pa.Table]:
    """Yield the index rows of each shard, in plan order, and note what its tar is known by."""
    used = np.unique(plan.segments.recording)
    listed = {item.recording.key: item for item in job.source.listing}
    entities = pa.Table.from_pylist([_entities(listed[plan.segments.names[i]], plan) for i in used.tolist()])
    for shard, (first, past) in enumerate(plan.shards):
        marker, part = read_marker(root, shard), plan.segments[first:past]
        facts.append(marker.facts)
        known = entities.take(pa.array(np.searchsorted(used, part.recording)))
        columns = {
            **{name: known[name] for name in known.column_names},
            "key": marker.keys,
            "start_frame": part.start_frame,
            "n_frames": part.n_frames,
            "n_stored": part.n_stored,
            "shard": np.full(len(part), shard, np.int32),
        }
        yield index_rows(columns, marker.segments)


def _entities(item: Listed, plan: Plan) -> dict[str, Any]:
    r, run = item.recording, item.recording.run
    return {
        "recording": r.key,
        "run": run.label if run else "",
        "subject": run.subject if run else "",
        "session": (run.session or "") if run else "",
        "task": run.task if run else "",
        "run_number": run.run if run and run.run is not None else -1,
        "level": r.level or "",
        "repetition": r.repetition or "",
        "split": plan.split[r.key],
        "recording_frames": item.n_frames,
        "fps": item.n_frames / item.duration_s,
        "onset_s": math.nan if r.onset_s is None else r.onset_s,
        "duration_s": math.nan if r.duration_s is None else r.duration_s,
        "n_clips": 0,
    }
