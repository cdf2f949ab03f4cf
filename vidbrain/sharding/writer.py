"""Writes shards: each recording is decoded once, its encoded segments are spooled, tars are assembled by copying.

Everything a crash can leave behind is either final and whole, or named as unfinished. The order of events is: the plan;
a spool file for each recording; for each shard its tar, then its marker; the index; the root record; then the spool
goes. The same command goes on wherever it was stopped, and the bytes do not depend on where that was.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vidbrain.cluster import Client
from vidbrain.config import fingerprint, to_mapping
from vidbrain.errors import ResumeError, ShardError
from vidbrain.progress import SILENT, Progress
from vidbrain.records import Recording, SegmentRef
from vidbrain.sharding.choice import PLAN as PLAN
from vidbrain.sharding.choice import settle_codec, write_choice
from vidbrain.sharding.codecs import get_codec
from vidbrain.sharding.manifest import DATASET, SHARDS, marker_path, shard_path, write_index
from vidbrain.sharding.plan import Listed, Plan, ShardConfig, make_plan
from vidbrain.sharding.tars import write_shard
from vidbrain.storage.atomic import check_writable, read_json, remove, replacing, sweep, write_json
from vidbrain.storage.info import difference, is_done, read_info, write_info
from vidbrain.storage.roots import safe_name
from vidbrain.video.decode import read_frames
from vidbrain.video.probe import probe
from vidbrain.video.sources import find_recordings

SPOOL = "spool"


@dataclass(frozen=True)
class _Spooled:
    """Work for one recording: decode it once, encode its segments into one spool file."""

    listed: Listed
    segments: tuple[SegmentRef, ...]
    config: ShardConfig
    spool: str


@dataclass(frozen=True)
class _Tarred:
    """Work for one shard: copy its segments from the spool into a tar."""

    shard: int
    segments: tuple[SegmentRef, ...]
    root: str
    plan: str
    size: int
    codec: str


def list_source(source: str | Path, client: Client | None = None) -> list[Listed]:
    """Find the recordings of a source and count their frames.

    Raises
    ------
    VideoError
        If there are none, or one has not been replayed or cannot be read; all are named at once.
    """
    recordings = find_recordings(Path(source))
    unplayed = [r.key for r in recordings if r.video is None]
    if unplayed:
        raise ShardError(
            f"{len(unplayed)} of {len(recordings)} recordings have no video yet: {', '.join(unplayed[:3])}",
            where=source,
            hint=f"vidbrain replay {source}",
        )
    counted = dict((client or Client()).run(_count, recordings))
    return [Listed(recording, counted[i]) for i, recording in enumerate(recordings)]


def source_fingerprint(listing: Sequence[Listed]) -> str:
    """Name the source's content by the names and lengths of its videos, in frames and bytes."""
    rows = []
    for item in sorted(listing, key=lambda item: item.recording.key):
        assert item.recording.video is not None
        rows.append([item.recording.key, item.n_frames, Path(item.recording.video).stat().st_size])
    return fingerprint("source", rows)


def _count(recording: Recording) -> int:
    assert recording.video is not None
    return int(probe(Path(recording.video)).n_frames)


def write_shards(
    source: str | Path,
    root: str | Path,
    config: ShardConfig,
    *,
    client: Client | None = None,
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Write a source's frames as shards, or finish what a killed call began.

    Parameters
    ----------
    source
        BIDS tree with replayed game play, a folder of videos, or one video.
    root
        Folder to write.
    config
        Settings; `size` chooses a prefix of the plan.
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
        If the folder holds another plan.
    StorageError
        If the folder cannot be written or the disk is too small.
    """
    client = client or Client()
    root = Path(root)
    listing = list_source(source, client)
    plan = make_plan(listing, config)
    config, choice = settle_codec(listing, config, root, lambda recording: _decode(recording, config))
    content = to_mapping(config)
    made_from = {"plan": plan.fingerprint, "source": source_fingerprint(listing)}
    if is_done(root, "shards", config=content, made_from=made_from, name=DATASET):
        if (root / SPOOL).is_dir():  # killed just after the root record
            remove(root / SPOOL)
        return read_info(root, "shards", name=DATASET)
    check_writable(root, estimate_bytes(plan, config))
    write_choice(root, choice)
    _claim(root, content, made_from)
    (root / SHARDS).mkdir(exist_ok=True)
    (root / SPOOL).mkdir(exist_ok=True)
    for folder in (root, root / SHARDS, root / SPOOL):
        sweep(folder)

    _spool_recordings(listing, plan, config, root, client, progress)
    rows = _assemble(plan, config, root, client)
    entities = {item.recording.key: _entities(item, plan) for item in listing}
    for row in rows:
        row.update(entities[row["recording"]])
    write_index(root, rows)
    n_bytes = sum(shard_path(root, shard).stat().st_size for shard in range(len(plan.shards)))
    record = write_info(
        root,
        "shards",
        config=content,
        made_from=made_from,
        facts={
            "codec": config.codec,
            **({"codec_choice": choice} if choice else {}),
            "height": config.frame_size,
            "width": config.frame_size,
            "margin": config.margin,
            "n_frames": plan.n_frames,
            "n_segments": len(plan.segments),
            "n_shards": len(plan.shards),
            "n_recordings": len({s.recording for s in plan.segments}),
            "n_bytes": n_bytes,
        },
        name=DATASET,
    )
    remove(root / SPOOL)
    return record


def estimate_bytes(plan: Plan, config: ShardConfig) -> int:
    """Bytes that writing needs at most, about: a tenth of the raw pixels, twice (spool and tar)."""
    stored = sum(segment.n_stored for segment in plan.segments)
    return math.ceil(2 * stored * config.frame_size**2 * 3 / 10)


def _claim(root: Path, content: dict[str, Any], made_from: dict[str, str]) -> None:
    """Write the plan's record first, so that a later call knows whether it goes on with the same plan."""
    path = root / PLAN
    record = {"config": content, "made_from": made_from}
    if path.is_file():
        found = read_json(path)
        if found != record:
            raise ResumeError(
                f"an unfinished data set of another plan is there: {difference(found, content, made_from)}",
                where=root,
                hint="give another output, or remove this one first",
            )
    else:
        write_json(path, record)


def _decode(recording: Recording, config: ShardConfig) -> Generator[NDArray[np.uint8], None, None]:
    yield from read_frames(str(recording.video), size=(config.frame_size, config.frame_size), fit=config.fit)


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
        "fps": item.n_frames / r.duration_s if r.duration_s else math.nan,
        "onset_s": math.nan if r.onset_s is None else r.onset_s,
        "duration_s": math.nan if r.duration_s is None else r.duration_s,
        "n_clips": 0,
    }


# -- first half: recordings into the spool ---------------------------------------------------------------------------


def _spool_recordings(
    listing: Sequence[Listed], plan: Plan, config: ShardConfig, root: Path, client: Client, progress: Progress
) -> None:
    wanted: dict[str, list[SegmentRef]] = {}
    for segment in plan.segments:
        wanted.setdefault(segment.recording, []).append(segment)
    work = [
        _Spooled(item, tuple(sorted(wanted[item.recording.key])), config, str(root / SPOOL))
        for item in listing
        if item.recording.key in wanted
    ]
    total = sum(item.listed.n_frames for item in work)
    todo = [item for item in work if not _spool_index(item.spool, item.listed.recording.key).is_file()]
    # A shard that is final does not need its spool again.
    if all(_is_whole(root, shard, plan) for shard in range(len(plan.shards))):
        todo = []
    progress.start("shard", total, "frames", done=total - sum(item.listed.n_frames for item in todo))
    n_bytes = 0
    for position, written in client.run(_spool_one, todo, weight=lambda item: item.listed.n_frames):
        n_bytes += written
        progress.advance(todo[position].listed.n_frames, MB=n_bytes / 1e6)
    progress.finish()


def _spool_index(spool: str | Path, recording: str) -> Path:
    return Path(spool) / f"{safe_name(recording)}.json"


def _spool_one(work: _Spooled) -> int:
    """Decode one recording in order and append its encoded segments to its spool file."""
    codec, size = get_codec(work.config.codec), work.config.frame_size
    key, video = work.listed.recording.key, work.listed.recording.video
    assert video is not None
    index: dict[str, Any] = {}
    spool = Path(work.spool) / f"{safe_name(key)}.bin"
    with replacing(spool) as part, part.open("wb") as out:
        waiting, held, first = list(work.segments), np.empty((0, size, size, 3), np.uint8), 0
        n_seen = 0
        for block in _decode(work.listed.recording, work.config):
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
                f"the video gave {n_seen} frames, {work.listed.n_frames} were counted before",
                where=video,
                likely="the file is damaged or changed while it was read",
                hint="replay it again",
            )
    write_json(_spool_index(work.spool, key), index)
    return spool.stat().st_size


# -- second half: the spool into tars --------------------------------------------------------------------------------


def _is_whole(root: Path, shard: int, plan: Plan) -> bool:
    marker, tar = marker_path(root, shard), shard_path(root, shard)
    if not (marker.is_file() and tar.is_file()):
        return False
    record = read_json(marker)
    first, last = plan.shards[shard]
    return record["keys"] == [s.key for s in plan.segments[first:last]] and record["n_bytes"] == tar.stat().st_size


def _assemble(plan: Plan, config: ShardConfig, root: Path, client: Client) -> list[dict[str, Any]]:
    """Write the missing tars; return the index rows of all segments, in plan order."""
    todo = [
        _Tarred(shard, plan.segments[first:last], str(root), plan.fingerprint, config.frame_size, config.codec)
        for shard, (first, last) in enumerate(plan.shards)
        if not _is_whole(root, shard, plan)
    ]
    for _ in client.run(_tar_one, todo):
        pass
    rows = []
    for shard, (first, last) in enumerate(plan.shards):
        located = read_json(marker_path(root, shard))["segments"]
        for segment, place in zip(plan.segments[first:last], located, strict=True):
            rows.append(
                {
                    "key": segment.key,
                    "recording": segment.recording,
                    "start_frame": segment.start_frame,
                    "n_frames": segment.n_frames,
                    "n_stored": segment.n_stored,
                    "shard": shard,
                    "part_crc32": None,  # markers of earlier versions have none
                    **place,
                }
            )
    return rows


def _tar_one(work: _Tarred) -> None:
    samples = []
    for segment in work.segments:
        index = read_json(_spool_index(Path(work.root) / SPOOL, segment.recording))[segment.key]
        path = Path(work.root) / SPOOL / f"{segment.recording}.bin"
        samples.append((segment, path, index["offset"], index["parts"]))

    def read(path: Path, offset: int, n_bytes: int) -> bytes:
        with path.open("rb") as handle:
            handle.seek(offset)
            return handle.read(n_bytes)

    extension = get_codec(work.codec).extension
    write_shard(
        work.root,
        work.shard,
        (
            (
                segment.key,
                extension,
                read(path, offset, sum(parts)),
                parts,
                {
                    "shape": [segment.n_stored, work.size, work.size, 3],
                    "recording": segment.recording,
                    "start_frame": segment.start_frame,
                    "n_frames": segment.n_frames,
                },
            )
            for segment, path, offset, parts in samples
        ),
    )
