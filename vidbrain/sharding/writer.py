"""Writes shards: each recording is decoded once, its encoded segments are spooled, tars are assembled by copying.

Everything a crash can leave behind is either final and whole, or named as unfinished. The order of events is: the plan;
a spool file for each recording; for each shard its tar, then its marker; the index; the root record; then the spool
goes. The same command goes on wherever it was stopped, and the bytes do not depend on where that was.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from vidbrain.cluster import Client
from vidbrain.config import to_mapping
from vidbrain.errors import ShardError, StorageError, VideoError
from vidbrain.progress import SILENT, Progress
from vidbrain.sharding.claims import Claim, check_claim, read_skipped, recordings_of, write_claim, write_skipped
from vidbrain.sharding.codecs import get_codec
from vidbrain.sharding.filters import Filter
from vidbrain.sharding.listing import Source, list_source
from vidbrain.sharding.manifest import DATASET, SHARDS, marker_path, shard_path, write_index
from vidbrain.sharding.plan import Listed, Plan, ShardConfig, make_plan, parse_size, source_digest
from vidbrain.sharding.segments import Segments
from vidbrain.sharding.tars import Sample, write_shard
from vidbrain.storage.atomic import check_writable, read_json, remove, replacing, sweep, write_json
from vidbrain.storage.info import read_info, write_info
from vidbrain.storage.locks import LOCK, locked
from vidbrain.video.screens import recording_frames

SPOOL = "spool"
CODEC = "zstd"


@dataclass(frozen=True)
class _Spooled:
    """Work for one recording: decode it once, encode its segments into one spool file."""

    listed: Listed
    segments: Segments
    config: ShardConfig
    spool: str
    integration: str | None


@dataclass(frozen=True)
class _Tarred:
    """Work for one shard: copy its segments from the spool into a tar."""

    shard: int
    segments: Segments
    root: str
    size: int


@dataclass(frozen=True)
class Job:
    """What one call of `write_shards` is to make: the source as it is now, and what follows from the settings.

    Attributes
    ----------
    source
        The source.
    config
        Settings.
    content
        Settings, filter and codec as plain values: what decides the content.
    skipped
        Recordings that turned out to be unreadable only when they were decoded.
    integration
        Folder with the user's own ROM.
    """

    source: Source
    config: ShardConfig
    content: dict[str, Any]
    skipped: Mapping[str, str]
    integration: str | None

    def plan_of(self, size: str) -> Plan:
        """Plan another size of the same source."""
        return make_plan(self.source.listing, replace(self.config, size=size), without=self.skipped.keys())

    def claim(self) -> Claim:
        """What stands in the folder while it is written; it does not depend on what decoding will find."""
        plan = make_plan(self.source.listing, self.config)
        return Claim(self.content, self._made_from(plan), recordings_of(self.source.listing))

    def outcome(self, plan: Plan) -> Claim:
        """What the finished data set is made from."""
        return Claim(self.content, self._made_from(plan), {})

    def _made_from(self, plan: Plan) -> dict[str, str]:
        return {"plan": plan.fingerprint, "source": source_digest(self.source.listing)}


def job_of(
    source: str | Path,
    root: str | Path,
    config: ShardConfig,
    *,
    only: Filter = Filter(),  # noqa: B008 -- frozen
    integration: str | Path | None = None,
    client: Client | None = None,
) -> Job:
    """Look at a source, and at what an earlier call left in the folder; write nothing."""
    found = list_source(source, client, config, only=only, integration=integration)
    frames = parse_size(config.size)
    content = {**to_mapping(config), "size": "all" if frames is None else str(frames)}
    content |= {"only": {name: values for name, values in to_mapping(only).items() if values}, "codec": CODEC}
    skipped = {}
    if config.on_error == "skip":
        skipped = {key: what for key, what in read_skipped(Path(root)).items() if key not in found.skipped}
    return Job(found, config, content, skipped, None if integration is None else str(integration))


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
        check_writable(root, estimate_bytes(plan, config))
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
    while failed := _spool_recordings(job, plan, root, client, progress):
        job = replace(job, skipped={**job.skipped, **failed})
        write_skipped(root, job.skipped)
        progress.note(f"{len(failed)} recording(s) cannot be read; the next segments take their place")
        plan = job.plan_of(job.config.size)
    _assemble(plan, job.config, root, client)
    write_index(root, _index_rows(job, plan, root))
    config = job.config
    record = write_info(
        root,
        "shards",
        config=job.content,
        made_from=job.outcome(plan).made_from,
        facts={
            "codec": CODEC,
            "height": config.frame_size,
            "width": config.frame_size,
            "margin": config.margin,
            "n_frames": plan.n_frames,
            "n_segments": len(plan.segments),
            "n_shards": len(plan.shards),
            "n_recordings": len(np.unique(plan.segments.recording)),
            "n_bytes": sum(shard_path(root, shard).stat().st_size for shard in range(len(plan.shards))),
            "skipped": dict(sorted({**job.source.skipped, **job.skipped}.items())),
        },
        name=DATASET,
    )
    _tidy(root)
    return record


def _tidy(root: Path) -> None:
    write_skipped(root, {})
    remove(root / SPOOL)


def estimate_bytes(plan: Plan, config: ShardConfig) -> int:
    """Bytes that writing needs at most, about: a tenth of the raw pixels, twice (spool and tar)."""
    return math.ceil(2 * int(plan.segments.n_stored.sum()) * config.frame_size**2 * 3 / 10)


def _entities(item: Listed, plan: Plan) -> dict[str, Any]:
    r, run = item.recording, item.recording.run
    return {
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


# -- first half: recordings into the spool ---------------------------------------------------------------------------


def _spool_recordings(job: Job, plan: Plan, root: Path, client: Client, progress: Progress) -> dict[str, str]:
    """Spool what missing shards need, and return what is wrong with recordings that could not be read."""
    work = _work(job, plan, root)
    todo = [item for item in work if not _is_spooled(item)]
    total = sum(item.listed.n_frames for item in work)
    progress.start("shard", total, "frames", done=total - sum(item.listed.n_frames for item in todo))
    n_bytes, failed = 0, {}
    spool = _spool_or_say if job.config.on_error == "skip" else _spool_one
    for position, written in client.run(spool, todo, weight=lambda item: item.listed.n_frames):
        item = todo[position].listed
        if isinstance(written, str):
            failed[item.recording.key] = written
        else:
            n_bytes += written
        progress.advance(item.n_frames, MB=n_bytes / 1e6, failed=len(failed))
    progress.finish()
    return failed


def _work(job: Job, plan: Plan, root: Path) -> list[_Spooled]:
    """For each recording the segments that missing shards need, in the order in which decoding meets them."""
    missing = [np.arange(*plan.shards[shard]) for shard in _missing(root, plan)]
    if not missing:
        return []
    needed = plan.segments.take(np.concatenate(missing))
    listed = {item.recording.key: item for item in job.source.listing}
    order = np.lexsort((needed.start_frame, needed.recording))
    bounds = np.searchsorted(needed.recording[order], np.arange(len(needed.names) + 1))
    return [
        _Spooled(
            listed[name],
            needed.take(order[bounds[i] : bounds[i + 1]]),
            job.config,
            str(root / SPOOL),
            job.integration,
        )
        for i, name in enumerate(needed.names)
    ]


def _is_spooled(work: _Spooled) -> bool:
    path = _spool_path(work.spool, work.listed.recording.key, "json")
    return path.is_file() and {segment.key for segment in work.segments} <= read_json(path).keys()


def _spool_path(spool: str | Path, recording: str, suffix: str) -> Path:
    # A key may be longer than a file name may be.
    return Path(spool) / f"{hashlib.sha256(recording.encode()).hexdigest()[:24]}.{suffix}"


def _spool_or_say(work: _Spooled) -> int | str:
    try:
        return _spool_one(work)
    except (VideoError, ShardError) as error:
        return error.message


def _spool_one(work: _Spooled) -> int:
    """Decode one recording in order and append its encoded segments to its spool file; return its bytes.

    It is decoded to its end even where the last segments are not asked for: what is wrong with it is then found at
    every size, so that a data set which passes over it still grows without a rewrite.
    """
    codec, size = get_codec(CODEC), work.config.frame_size
    recording = work.listed.recording
    index: dict[str, Any] = {}
    spool, where = (_spool_path(work.spool, recording.key, suffix) for suffix in ("bin", "json"))
    remove(where)  # an index never stands beside bytes that it does not describe
    blocks = recording_frames(recording, size=(size, size), fit=work.config.fit, integration=work.integration)
    with replacing(spool) as part, part.open("wb") as out, contextlib.closing(blocks):
        waiting, held, first = list(work.segments), np.empty((0, size, size, 3), np.uint8), 0
        n_seen = 0
        for block in blocks:
            held, n_seen = np.concatenate([held, block]), n_seen + len(block)
            while waiting and first + len(held) >= waiting[0].start_frame + waiting[0].n_stored:
                segment = waiting.pop(0)
                at = segment.start_frame - first
                parts = codec.encode(held[at : at + segment.n_stored])
                index[segment.key] = {"offset": out.tell(), "parts": [len(p) for p in parts]}
                out.writelines(parts)
            keep_from = waiting[0].start_frame if waiting else n_seen
            if keep_from > first:
                held, first = held[keep_from - first :], max(first, min(keep_from, first + len(held)))
        if n_seen != work.listed.n_frames or waiting:
            raise ShardError(
                f"the recording gave {n_seen} frames, {work.listed.n_frames} were counted before",
                where=recording.video or recording.movie,
                likely="the file is damaged or changed while it was read",
                hint="replay or fetch it again",
            )
    write_json(where, index)
    return spool.stat().st_size


# -- second half: the spool into tars --------------------------------------------------------------------------------


def _missing(root: Path, plan: Plan) -> list[int]:
    return [shard for shard in range(len(plan.shards)) if not is_whole(root, shard, plan)]


def is_whole(root: Path, shard: int, plan: Plan) -> bool:
    """Whether a shard is there with the segments that the plan gives it, as far as its marker and length say."""
    marker, tar = marker_path(root, shard), shard_path(root, shard)
    if not (marker.is_file() and tar.is_file()):
        return False
    first, past = plan.shards[shard]
    try:
        record = read_json(marker)
        return bool(
            record["keys"] == [s.key for s in plan.segments[first:past]]
            and len(record["segments"]) == past - first
            and record["n_bytes"] == tar.stat().st_size
        )
    except (StorageError, KeyError, TypeError):
        return False


def _assemble(plan: Plan, config: ShardConfig, root: Path, client: Client) -> None:
    """Write the missing tars."""
    everything = np.arange(len(plan.segments))
    todo = [
        _Tarred(shard, plan.segments.take(everything[slice(*plan.shards[shard])]), str(root), config.frame_size)
        for shard in _missing(root, plan)
    ]
    for _ in client.run(_tar_one, todo):
        pass


def _index_rows(job: Job, plan: Plan, root: Path) -> Iterator[dict[str, Any]]:
    """Yield the index rows of all segments, in plan order."""
    used = {plan.segments.names[i] for i in np.unique(plan.segments.recording).tolist()}
    entities = {i.recording.key: _entities(i, plan) for i in job.source.listing if i.recording.key in used}
    for shard, (first, past) in enumerate(plan.shards):
        located = read_json(marker_path(root, shard))["segments"]
        for segment, place in zip(plan.segments[first:past], located, strict=True):
            yield {
                "key": segment.key,
                "recording": segment.recording,
                "start_frame": segment.start_frame,
                "n_frames": segment.n_frames,
                "n_stored": segment.n_stored,
                "shard": shard,
                **place,
                **entities[segment.recording],
            }


def _tar_one(work: _Tarred) -> None:
    spool = Path(work.root) / SPOOL
    write_shard(work.root, work.shard, _samples(work, spool))


def _samples(work: _Tarred, spool: Path) -> Iterator[Sample]:
    extension = get_codec(CODEC).extension

    @cache
    def index_of(recording: str) -> dict[str, Any]:
        return dict(read_json(_spool_path(spool, recording, "json")))

    for segment in work.segments:
        place = index_of(segment.recording)[segment.key]
        with _spool_path(spool, segment.recording, "bin").open("rb") as handle:
            handle.seek(place["offset"])
            data = handle.read(sum(place["parts"]))
        facts = {
            "shape": [segment.n_stored, work.size, work.size, 3],
            "recording": segment.recording,
            "start_frame": segment.start_frame,
            "n_frames": segment.n_frames,
        }
        yield segment.key, extension, data, place["parts"], facts
