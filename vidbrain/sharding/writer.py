"""Writes shards: each recording is decoded once, its encoded segments are spooled, tars are assembled by copying.

Everything a crash can leave behind is either final and whole, or named as unfinished. The order of events is: the plan;
a spool file for each recording; for each shard its tar, then its marker; the index; the root record; then the spool
goes. The same command goes on wherever it was stopped, and the bytes do not depend on where that was, nor on whether
the data set lies in a folder or at a URL.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa

from vidbrain.cluster import Client
from vidbrain.progress import SILENT, Progress
from vidbrain.sharding.claims import check_claim, read_claim, write_claim, write_skipped
from vidbrain.sharding.filters import Filter
from vidbrain.sharding.index import index_rows, write_index
from vidbrain.sharding.job import Job, job_of
from vidbrain.sharding.manifest import SPOOL, Marker, read_marker
from vidbrain.sharding.plan import Listed, Plan, ShardConfig
from vidbrain.sharding.record import DATASET, ShardFacts, find_record, record_facts
from vidbrain.sharding.segments import Segments
from vidbrain.sharding.spool import spool_recordings, spooled_samples
from vidbrain.sharding.spooled import is_spool
from vidbrain.sharding.target import Target, target_of
from vidbrain.sharding.tars import write_shard
from vidbrain.storage.atomic import check_writable
from vidbrain.storage.info import write_info
from vidbrain.storage.objects import N_THREADS, Root


@dataclass(frozen=True)
class _Tarred:
    """Work for one shard: copy its segments from the spool into a tar, and send it where it belongs.

    If it is made `again`, it takes the place of what is there, and must have the checksum `sha256` where that is known.
    """

    shard: int
    segments: Segments
    target: Target
    config: ShardConfig
    again: bool
    sha256: str | None


def write_shards(
    source: str | Path,
    root: str | Path | Root,
    config: ShardConfig,
    *,
    only: Filter = Filter(),  # noqa: B008 -- frozen
    integration: str | Path | None = None,
    work: str | Path | None = None,
    keep_spool: bool = False,
    client: Client | None = None,
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Write a source's frames as shards, finish what a killed call began, or let a data set grow.

    Parameters
    ----------
    source
        BIDS tree of game play (replayed, or `.bk2` only), a folder of videos, one video, or a list of files.
    root
        Folder or URL to write. If it holds a smaller prefix of the same plan, shards are added and none is rewritten.
    config
        Settings; `size` chooses a prefix of the plan.
    only
        Which recordings to take.
    integration
        Folder with the user's own ROM, for recordings that have no video; see `vidbrain.video.emulator.Emulator`.
    work
        For a URL: where the folder is made that holds what is not sent yet; see `target_of`. Workers must see it.
    keep_spool
        Spool all segments of every recording that is decoded, and leave the spool there, so that a larger size decodes
        only recordings that no smaller one has met. It takes the disk that ``size="all"`` takes while it is written.
        A call without it, or a size that takes all, removes it.
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
        If another plan is there; says what differs.
    StorageError
        If the place cannot be written, another process of this machine writes there, or the disk is too small.
    """
    client, target = client or Client(), target_of(root, work)
    job = job_of(source, target.root, config, only=only, integration=integration, client=client)
    for note in job.source.notes:
        progress.note(note)
    plan = job.plan_of(config.size)
    record = find_record(target.root)
    if record is not None and record["fingerprint"] == job.outcome(plan).fingerprint:
        if target.is_worked_on():  # killed just after the root record
            with target.alone():
                target.tidy(keep_spool=keep_spool)
        if keep_spool and not is_spool(target.work / SPOOL):
            progress.note("nothing is spooled: the data set is finished with this size; a larger one spools")
        return record
    if target.is_remote:
        progress.note(f"work folder: {target.work}")
    with target.alone() as alone:
        if not alone:
            progress.note("this disk has no locks: make sure that no other process writes to the same folder")
        claim = job.claim()
        check_claim(target.root, claim, plan, job.plan_of)
        check_writable(target.work, _work_bytes(job, plan, target, client, keep_spool))
        if target.is_remote and read_claim(target.root) is None:
            target.forget()  # what is spooled here is of a data set that was there before, and is gone
        write_claim(target.root, claim)
        return execute(job, plan, target, client, progress, keep_spool=keep_spool)


def _work_bytes(job: Job, plan: Plan, target: Target, client: Client, keep_spool: bool) -> int:
    """Bytes that the work folder still needs: the spool, and of the tars all, or as many as go to a URL at once."""
    there = target.begun()
    n_missing = max(1, len(plan.shards) - len(there))
    held = min(1.0, max(1, client.n_workers) / n_missing) if target.is_remote else 1.0
    spool = target.work / SPOOL
    n_spooled = sum(path.stat().st_size for path in spool.iterdir()) if spool.is_dir() else 0
    return job.estimate_bytes(plan, keep_spool=keep_spool, tars_held=held, there=there, n_spooled=n_spooled)


def execute(
    job: Job,
    plan: Plan,
    target: Target,
    client: Client,
    progress: Progress = SILENT,
    *,
    keep_spool: bool = False,
    again: Mapping[int, str | None] = MappingProxyType({}),
) -> dict[str, Any]:
    """Write what is missing of a plan, the index and the root record. The caller holds the work folder's lock.

    Parameters
    ----------
    job, plan, target, client, progress
        What is to be made, where and by whom.
    keep_spool
        As in `write_shards`.
    again
        Shards that are made again though something is there, with the SHA-256 that each must have, if that is known.

    Returns
    -------
    dict
        The root record.

    Raises
    ------
    ShardError
        If a shard that is made again has another checksum than it must have.
    """
    claim = job.claim()
    target.begin(claim)
    missing = sorted({*target.missing(plan), *again})
    spool = functools.partial(
        spool_recordings, spool=target.work / SPOOL, client=client, progress=progress, whole=keep_spool
    )
    while failed := spool(job, _segments_of(plan, missing)):
        job = replace(job, skipped={**job.skipped, **failed})
        write_skipped(target.root, job.skipped)
        progress.note(f"{len(failed)} recording(s) cannot be read; the next segments take their place")
        plan = job.plan_of(job.config.size)
        missing = sorted({*target.missing(plan), *(shard for shard in again if shard < len(plan.shards))})
    todo = [
        _Tarred(shard, _segments_of(plan, [shard]), target, job.config, shard in again, again.get(shard))
        for shard in missing
    ]
    _assemble(todo, len(plan.shards), client, progress)
    shards: list[ShardFacts] = []
    index_sha256 = write_index(target.work, _index_tables(job, plan, target.root, shards))
    if target.is_remote:
        target.send_index()
        target.check_before_the_end(claim, shards)
    config = job.config
    record = write_info(
        target.root,
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
    target.tidy(keep_spool=keep_spool and plan.n_frames < job.plan_of("all").n_frames)
    return record


def _segments_of(plan: Plan, shards: Sequence[int]) -> Segments:
    positions = [np.arange(*plan.shards[shard]) for shard in shards]
    return plan.segments.take(np.concatenate([np.arange(0), *positions]))


def _assemble(todo: Sequence[_Tarred], n_shards: int, client: Client, progress: Progress) -> None:
    """Write tars, and where the data set lies at a URL send them."""
    progress.start("write", n_shards, "shards", done=n_shards - len(todo))
    for _ in client.run(_tar_one, todo):
        progress.advance(1)
    progress.finish()


def _tar_one(item: _Tarred) -> None:
    samples = spooled_samples(item.segments, item.target.work / SPOOL, item.config)
    marker = write_shard(item.target.work, item.shard, samples, sha256=item.sha256)
    if item.target.is_remote:
        if item.again:
            item.target.discard(item.shard)
        item.target.send_shard(marker)


def _index_tables(job: Job, plan: Plan, root: Root, facts: list[ShardFacts]) -> Iterator[pa.Table]:
    """Yield the index rows of each shard, in plan order, and note what its tar is known by."""
    used = np.unique(plan.segments.recording)
    listed = {item.recording.key: item for item in job.source.listing}
    entities = pa.Table.from_pylist([_entities(listed[plan.segments.names[i]], plan) for i in used.tolist()])
    for marker, (first, past) in zip(_markers(root, len(plan.shards)), plan.shards, strict=True):
        part = plan.segments[first:past]
        facts.append(marker.facts)
        known = entities.take(pa.array(np.searchsorted(used, part.recording)))
        columns = {
            **{name: known[name] for name in known.column_names},
            "key": marker.keys,
            "start_frame": part.start_frame,
            "n_frames": part.n_frames,
            "n_stored": part.n_stored,
            "shard": np.full(len(part), marker.shard, np.int32),
        }
        yield index_rows(columns, marker.segments)


def _markers(root: Root, n_shards: int) -> Iterator[Marker]:
    """Read all markers in order, those of a URL a few at once."""
    n_ahead = 1 if root.is_local else 4 * N_THREADS
    with ThreadPoolExecutor(N_THREADS) as pool:
        for first in range(0, n_shards, n_ahead):
            yield from pool.map(functools.partial(read_marker, root), range(first, min(n_shards, first + n_ahead)))


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
