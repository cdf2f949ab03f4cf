"""The spool, the first half of sharding: each recording is decoded once, its encoded segments wait in one file."""

from __future__ import annotations

import contextlib
import functools
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vidbrain.cluster import Client
from vidbrain.errors import ShardError, VideoError
from vidbrain.progress import SILENT, Progress
from vidbrain.records import SegmentRef
from vidbrain.sharding.codecs import get_codec
from vidbrain.sharding.job import Job
from vidbrain.sharding.listing import miscounted
from vidbrain.sharding.plan import Listed, ShardConfig
from vidbrain.sharding.segments import Segments, by_recording
from vidbrain.sharding.spooled import Place, Spooled, origin_of, read_spooled, spool_path
from vidbrain.sharding.tars import Sample
from vidbrain.storage.atomic import as_storage_error, remove, replacing
from vidbrain.video.emulator import rom_digest
from vidbrain.video.screens import recording_frames


@dataclass(frozen=True)
class _Work:
    """Work for one recording: decode it once, encode its segments into one spool file."""

    listed: Listed
    segments: Segments
    config: ShardConfig
    spool: str
    integration: str | None
    rom: str | None


def spool_recordings(
    job: Job, needed: Segments, spool: Path, client: Client, progress: Progress = SILENT, *, whole: bool = False
) -> dict[str, str]:
    """Spool segments, but for those that an earlier call has spooled.

    Parameters
    ----------
    job
        Where they come from.
    needed
        The segments.
    spool
        Folder.
    whole
        Spool all segments of the recordings that are decoded, not only what is needed now: a larger size then finds
        them there.

    Returns
    -------
    dict
        What is wrong with recordings that cannot be read; empty unless errors are skipped.

    Raises
    ------
    VideoError, ShardError
        If a recording cannot be read to its end, and errors are not skipped.
    """
    work = _work(job, needed, spool, whole)
    todo = [item for item in work if not _is_spooled(item)]
    total = sum(item.listed.n_frames for item in work)
    progress.start("shard", total, "frames", done=total - sum(item.listed.n_frames for item in todo))
    n_bytes, failed = 0, {}
    run = _spool_or_say if job.config.on_error == "skip" else _spool_one
    for position, written in client.run(run, todo, weight=lambda item: item.listed.n_frames):
        item = todo[position].listed
        if isinstance(written, str):
            failed[item.recording.key] = written
        else:
            n_bytes += written
        progress.advance(item.n_frames, MB=n_bytes / 1e6, failed=len(failed))
    progress.finish()
    return failed


def _work(job: Job, needed: Segments, spool: Path, whole: bool) -> list[_Work]:
    """For each recording that holds something needed its segments, in the order in which decoding meets them."""
    listed = {item.recording.key: item for item in job.source.listing}
    wanted = by_recording(needed)
    taken = by_recording(job.plan_of("all").segments) if whole else wanted
    games = {listed[name].game for name in wanted}
    roms = {game: None if game is None else rom_digest(game, job.integration) for game in games}
    return [
        _Work(listed[name], taken[name], job.config, str(spool), job.integration, roms[listed[name].game])
        for name in wanted
    ]


def _is_spooled(work: _Work) -> bool:
    recording = work.listed.recording
    record, data = (spool_path(work.spool, recording.key, suffix) for suffix in ("json", "bin"))
    found = read_spooled(record)
    if found is None or not found.holds(work.segments):
        return False
    if not data.is_file() or data.stat().st_size != found.n_bytes:
        return False
    return found.origin == origin_of(recording, work.config, work.rom)


def _spool_or_say(work: _Work) -> int | str:
    try:
        return _spool_one(work)
    except (VideoError, ShardError) as error:
        return error.message


def _spool_one(work: _Work) -> int:
    """Decode one recording in order and append its encoded segments to its spool file; return its bytes.

    It is decoded to its end even where the last segments are not asked for: what is wrong with it is then found at
    every size, so that a data set which passes over it still grows without a rewrite.
    """
    codec, size = get_codec(work.config.codec), work.config.frame_size
    recording = work.listed.recording
    places: dict[str, Place] = {}
    spool, where = (spool_path(work.spool, recording.key, suffix) for suffix in ("bin", "json"))
    remove(where)  # a record never stands beside bytes that it does not describe
    origin = origin_of(recording, work.config, work.rom)
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
                crc32 = functools.reduce(lambda crc, part: zlib.crc32(part, crc), parts, 0)
                places[segment.key] = Place(segment.n_stored, out.tell(), [len(part) for part in parts], crc32)
                out.writelines(parts)
            keep_from = waiting[0].start_frame if waiting else n_seen
            if keep_from > first:
                held, first = held[keep_from - first :], max(first, min(keep_from, first + len(held)))
        if n_seen != work.listed.n_frames or waiting:
            raise miscounted(work.listed, n_seen)
    n_bytes = spool.stat().st_size
    Spooled(origin, n_bytes, places).write(where)
    return n_bytes


def spooled_samples(segments: Segments, spool: Path, config: ShardConfig) -> Iterator[Sample]:
    """Yield segments from the spool as the samples of a tar.

    Raises
    ------
    ShardError
        If the spool does not hold the bytes that were written; what it says of the recording is then removed.
    """
    extension = get_codec(config.codec).extension
    record_of = functools.cache(lambda recording: read_spooled(spool_path(spool, recording, "json")))
    for segment in segments:
        place, data = _bytes_of(segment, record_of(segment.recording), spool)
        facts = {
            "shape": [segment.n_stored, config.frame_size, config.frame_size, 3],
            "recording": segment.recording,
            "start_frame": segment.start_frame,
            "n_frames": segment.n_frames,
        }
        yield segment.key, extension, data, place.parts, facts


def _bytes_of(segment: SegmentRef, record: Spooled | None, spool: Path) -> tuple[Place, bytes]:
    place = record.segments.get(segment.key) if record else None
    path = spool_path(spool, segment.recording, "bin")
    if place is not None and path.is_file():
        try:
            with path.open("rb") as handle:
                handle.seek(place.offset)
                data = handle.read(place.n_bytes)
        except OSError as error:
            raise as_storage_error(error, path) from error
        if len(data) == place.n_bytes and zlib.crc32(data) == place.crc32:
            return place, data
    remove(spool_path(spool, segment.recording, "json"))
    raise ShardError(
        f"what was spooled of {segment.recording} is damaged",
        where=path,
        likely="the disk is faulty, or the file was changed since",
        hint="give the command again: the recording is decoded anew",
    )
