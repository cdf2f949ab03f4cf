"""The spool, the first half of sharding: each recording is decoded once, its encoded segments wait in one file."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from vidbrain.cluster import Client
from vidbrain.errors import ShardError, VideoError
from vidbrain.progress import SILENT, Progress
from vidbrain.sharding.codecs import get_codec
from vidbrain.sharding.job import Job
from vidbrain.sharding.listing import miscounted
from vidbrain.sharding.plan import Listed, ShardConfig
from vidbrain.sharding.segments import Segments, by_recording
from vidbrain.sharding.tars import Sample
from vidbrain.storage.atomic import read_json, remove, replacing, write_json
from vidbrain.video.screens import recording_frames


@dataclass(frozen=True)
class _Spooled:
    """Work for one recording: decode it once, encode its segments into one spool file.

    `needed` are the keys that it is done for, at least those of the tars to come.
    """

    listed: Listed
    segments: Segments
    needed: frozenset[str]
    config: ShardConfig
    spool: str
    integration: str | None


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


def _work(job: Job, needed: Segments, spool: Path, whole: bool) -> list[_Spooled]:
    """For each recording that holds something needed its segments, in the order in which decoding meets them."""
    listed = {item.recording.key: item for item in job.source.listing}
    wanted = by_recording(needed)
    taken = by_recording(job.plan_of("all").segments) if whole else wanted
    return [
        _Spooled(
            listed[name],
            taken[name],
            frozenset(segment.key for segment in wanted[name]),
            job.config,
            str(spool),
            job.integration,
        )
        for name in wanted
    ]


def _is_spooled(work: _Spooled) -> bool:
    path = _spool_path(work.spool, work.listed.recording.key, "json")
    return path.is_file() and work.needed <= read_json(path).keys()


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
    codec, size = get_codec(work.config.codec), work.config.frame_size
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
            raise miscounted(work.listed, n_seen)
    write_json(where, index)
    return spool.stat().st_size


def spooled_samples(segments: Segments, spool: Path, config: ShardConfig) -> Iterator[Sample]:
    """Yield segments from the spool as the samples of a tar."""
    extension = get_codec(config.codec).extension

    @cache
    def index_of(recording: str) -> dict[str, Any]:
        return dict(read_json(_spool_path(spool, recording, "json")))

    for segment in segments:
        place = index_of(segment.recording)[segment.key]
        with _spool_path(spool, segment.recording, "bin").open("rb") as handle:
            handle.seek(place["offset"])
            data = handle.read(sum(place["parts"]))
        facts = {
            "shape": [segment.n_stored, config.frame_size, config.frame_size, 3],
            "recording": segment.recording,
            "start_frame": segment.start_frame,
            "n_frames": segment.n_frames,
        }
        yield segment.key, extension, data, place["parts"], facts
