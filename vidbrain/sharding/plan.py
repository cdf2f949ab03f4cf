"""The plan: a pure function from a listing of recordings and settings to an ordered list of segments and shards.

10k, 100k, 1M and 6M frames are prefixes of one order (see `vidbrain.sharding.order`), and shards end where such a
prefix ends, so that growing a data set adds shards and rewrites none.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from vidbrain.config import fingerprint
from vidbrain.errors import ConfigError, ShardError
from vidbrain.records import ClipSpec, Recording
from vidbrain.sharding.order import Stratum, balanced, keyed, segment_noise
from vidbrain.sharding.segments import Segments

LANDMARKS = (10_000, 100_000, 1_000_000, 6_000_000, 10_000_000, 100_000_000, 1_000_000_000)
"""Prefixes, in frames, at which a shard always ends."""

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9}


@dataclass(frozen=True, kw_only=True)
class ShardConfig:
    """What decides the content of a data set of shards."""

    size: str = "all"
    """Frames to take: 10k, 100k, 1M, 6M, any count, or all. A smaller size is a prefix of a larger one."""
    frame_size: int = 128
    """Height and width of the stored frames, in pixels."""
    fit: Literal["squash", "crop", "pad"] = "squash"
    """How a frame becomes square: squash (as the study did), crop the centre, or pad with black."""
    codec: Literal["auto", "zstd", "h264", "jpeg"] = "auto"
    """How frames are stored: lossless zstd, H.264 4:4:4, JPEG sheets, or auto: by measuring a sample of the source."""
    segment_frames: int = 256
    """Frames that a segment owns; shorter segments give more diverse small prefixes."""
    clip_frames: int = 16
    """Frames of the longest clip that must be reachable everywhere; with --clip-step it sets the margin."""
    clip_step: int = 4
    """Source frames between the frames of that clip."""
    shard_frames: int = 65_536
    """Frames in a shard, about."""
    order: Literal["balanced", "paper", "recording"] = "balanced"
    """Plan order: balanced over subject, level and session; paper, the study's own (whole recordings by subject, level
    and session); or recording after recording."""
    from_s: float = 0.0
    """Leave out what each recording shows before this second of it."""
    to_s: float | None = None
    """Leave out what each recording shows from this second of it on."""
    first_skip: Literal["row", "file", "never"] = "row"
    """For recordings without a replayed video: whose first input line a replay discards (see `vidbrain replay`)."""
    on_error: Literal["error", "skip"] = "error"
    """What a recording that cannot be read does: end the work, or be listed and replaced by the next segments."""
    val_share: float = 0.1
    """Share of recordings that are held out for validation, at least one where there are two; a split that the source
    brings along comes first."""
    seed: int = 0
    """Of the keyed order and the split."""

    def __post_init__(self) -> None:
        parse_size(self.size)
        if not 8 <= self.frame_size <= 4096:
            raise ConfigError(f"frame_size {self.frame_size} is not between 8 and 4096 pixels")
        if self.segment_frames < 1 or self.shard_frames < self.segment_frames:
            raise ConfigError(
                f"a shard of {self.shard_frames} frames cannot hold a segment of {self.segment_frames} frames"
            )
        if not 0 <= self.val_share < 1:
            raise ConfigError(f"val_share {self.val_share} is not a share below 1")
        to_s = math.inf if self.to_s is None else self.to_s
        if not 0 <= self.from_s < to_s or math.isinf(self.from_s):
            raise ConfigError(f"from_s {self.from_s} to_s {self.to_s} is no range of time")
        ClipSpec(self.clip_frames, self.clip_step)

    @property
    def margin(self) -> int:
        """Frames that a segment stores beyond those it owns, so that no clip is lost at its edge."""
        return ClipSpec(self.clip_frames, self.clip_step).span - 1


@dataclass(frozen=True)
class Listed:
    """A recording as found by probing.

    Attributes
    ----------
    recording
        What is known of it.
    n_frames
        Frames that it gives.
    fps
        Frames per second of the file's own clock; NaN where it is not known.
    split
        The source's own split, or None.
    n_bytes
        Length of the file that the frames come from.
    game
        Of recorded input: the game that is replayed; else None.
    """

    recording: Recording
    n_frames: int
    fps: float = math.nan
    split: str | None = None
    n_bytes: int = 0
    game: str | None = None

    @property
    def duration_s(self) -> float:
        """Wall-clock length: the run's where there is a run, else the file's."""
        return self.recording.duration_s or self.n_frames / self.fps


@dataclass(frozen=True)
class Plan:
    """Segments in plan order, cut into shards.

    Attributes
    ----------
    segments
        In plan order.
    shards
        For each shard, the positions ``(first, past the last)`` of its segments.
    n_frames
        Frames of the prefix; the last segment may own more than the prefix takes.
    split
        ``"train"``, ``"val"`` or what the source says, by recording key.
    fingerprint
        Of everything above.
    """

    segments: Segments
    shards: tuple[tuple[int, int], ...]
    n_frames: int
    split: dict[str, str]

    @property
    def fingerprint(self) -> str:
        """Name this plan by its content."""
        return fingerprint("plan", self.segments.digest(), [list(s) for s in self.shards], self.n_frames, self.split)


def parse_size(size: str) -> int | None:
    """Read a number of frames: ``"10k"``, ``"6M"``, ``"1_500"``; None for ``"all"``.

    Raises
    ------
    ConfigError
        If it is not a positive count.
    """
    text = str(size).strip().lower().replace("_", "").replace(",", "")
    if text == "all":
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kmg]?)", text)
    frames = round(float(match[1]) * _UNITS[match[2]]) if match else 0
    if frames < 1:
        raise ConfigError(f"size {size!r} is not a number of frames", hint="use 10k, 100k, 1M, 6M, a count, or all")
    return frames


def make_plan(listing: Sequence[Listed], config: ShardConfig, *, without: Collection[str] = ()) -> Plan:
    """Plan segments and shards.

    Parameters
    ----------
    listing
        Every recording of the source; its order does not matter.
    config
        Settings.
    without
        Keys of recordings that cannot be read. Their segments are passed over, the others keep their order.

    Raises
    ------
    ShardError
        If there are no frames, two recordings share a key, or the size asks for more than there is.
    """
    listing = sorted(listing, key=lambda item: item.recording.key)
    keys = [item.recording.key for item in listing]
    double = sorted(key for key, count in Counter(keys).items() if count > 1)
    if double:
        raise ShardError(f"{len(double)} recordings share a name with another: {', '.join(double[:3])}")
    segments = _segments(listing, config)
    readable = np.array([key not in without for key in keys], np.bool_)
    total = int(segments.n_frames[readable[segments.recording]].sum())
    if total == 0:
        raise ShardError("the source holds no frames", hint="check the path, and the filters if there are any")
    wanted = parse_size(config.size)
    if wanted is not None and wanted > total:
        raise ShardError(
            f"size {config.size} asks for {wanted:,} frames, the source holds {total:,}", hint="--size all"
        )
    n_frames = total if wanted is None else wanted
    order = _ordered(listing, segments, config, readable, n_frames)
    ends = np.cumsum(segments.n_frames[order])
    # The study cuts at the last recording that does not exceed the size.
    whole = ends[np.diff(segments.recording[order], append=-1) != 0] if config.order == "paper" else None
    n_frames = _cut_down(n_frames, whole)
    if n_frames == 0:
        raise ShardError(
            f"size {config.size} is less than the first recording, and --order paper takes whole ones",
            hint=f"ask for at least {ends[-1] if whole is None else whole[0]:,} frames, or use --order balanced",
        )
    n_segments = int(np.searchsorted(ends, n_frames)) + 1
    marks = [_cut_down(landmark, whole) for landmark in LANDMARKS]
    shards = _cut(ends[:n_segments], config.shard_frames, marks)
    planned = Segments(segments.names, *(getattr(segments[:], name)[order[:n_segments]] for name in _COLUMNS))
    return Plan(planned, tuple(shards), n_frames, split_recordings(listing, config))


_COLUMNS = ("recording", "start_frame", "n_frames", "n_stored")


def _cut_down(n_frames: int, whole: NDArray[np.int64] | None) -> int:
    if whole is None:
        return n_frames
    fitting = int(np.searchsorted(whole, n_frames, side="right"))
    return int(whole[fitting - 1]) if fitting else 0


def _segments(listing: Sequence[Listed], config: ShardConfig) -> Segments:
    """Cut every recording into segments, recording after recording."""
    ranges = np.array([_frame_range(item, config) for item in listing], np.int64).reshape(-1, 2)
    first, past = ranges.T
    counts = -(-(past - first) // config.segment_frames)
    recording = np.repeat(np.arange(len(listing)), counts)
    number = np.arange(len(recording)) - np.repeat(np.cumsum(counts) - counts, counts)
    start = first[recording] + number * config.segment_frames
    left = past[recording] - start
    return Segments(
        tuple(item.recording.key for item in listing),
        recording.astype(np.int32),
        start,
        np.minimum(config.segment_frames, left),
        np.minimum(config.segment_frames + config.margin, left),
    )


def _frame_range(item: Listed, config: ShardConfig) -> tuple[int, int]:
    """Frames whose time lies in the range; frame i of n is shown at i / n of the duration."""
    if config.from_s == 0 and config.to_s is None:
        return 0, item.n_frames
    rate = item.n_frames / item.duration_s
    if not math.isfinite(rate):
        raise ShardError("a range of time needs the recording's rate", where=item.recording.key)
    # A boundary that is a frame's own time must not move by rounding.
    first = math.ceil(round(config.from_s * rate, 6))
    past = item.n_frames if config.to_s is None else min(item.n_frames, math.ceil(round(config.to_s * rate, 6)))
    return min(first, past), past


def _ordered(
    listing: Sequence[Listed], segments: Segments, config: ShardConfig, readable: NDArray[np.bool_], n_frames: int
) -> NDArray[np.intp]:
    """Positions of readable segments in plan order, at least as many as give `n_frames`."""
    strata = [_stratum(item) for item in listing]
    taken = readable[segments.recording]
    if config.order == "balanced":
        noise = segment_noise(segments.names, segments.recording, segments.start_frame, config.seed)
        return balanced(
            strata, segments.recording, segments.n_frames, noise, taken=taken, enough=n_frames, seed=config.seed
        )
    rank = np.arange(len(listing))
    if config.order == "paper":
        by_name = sorted(rank.tolist(), key=lambda i: (*_by_level(strata[i]), segments.names[i]))
        rank[by_name] = np.arange(len(listing))
    order = np.argsort(rank[segments.recording], kind="stable")
    return order[taken[order]]


def _stratum(item: Listed) -> Stratum:
    run = item.recording.run
    return Stratum(run.subject if run else "", item.recording.level or "", (run.session or "") if run else "")


def _by_level(stratum: Stratum) -> tuple[str, str, str]:
    return stratum.subject, stratum.level.split("-")[0], stratum.session


def _cut(ends: NDArray[np.int64], shard_frames: int, marks: Sequence[int]) -> list[tuple[int, int]]:
    """End a shard when it is full, and wherever a landmark prefix ends; `ends` are cumulative frames."""
    landmarks = {int(np.searchsorted(ends, mark)) + 1 for mark in marks if 0 < mark <= ends[-1]}
    stops = sorted({*landmarks, len(ends)})
    shards, first, before = [], 0, 0
    for stop in stops:
        while first < stop:
            past = min(stop, int(np.searchsorted(ends, before + shard_frames)) + 1)
            shards.append((first, past))
            first, before = past, int(ends[past - 1])
    return shards


def split_recordings(listing: Sequence[Listed], config: ShardConfig) -> dict[str, str]:
    """Hold out whole recordings, chosen by a keyed hash, never frames of a recording that is trained on.

    Where the source brings a split of its own, that is kept, and recordings that it does not mention are trained on.
    """
    own = {item.recording.key: item.split for item in listing}
    if any(own.values()):
        return {key: split or "train" for key, split in sorted(own.items())}
    n_val = min(len(own) - 1, max(1, round(config.val_share * len(own)))) if config.val_share > 0 else 0
    by_hash = sorted(own, key=lambda key: keyed(config.seed, "split", key))
    held_out = set(by_hash[:n_val])
    return {key: "val" if key in held_out else "train" for key in sorted(own)}


def source_digest(listing: Sequence[Listed]) -> str:
    """Name the source's content by the names and lengths of its recordings, in frames and bytes."""
    rows = sorted(f"{item.recording.key}\x1f{item.n_frames}\x1f{item.n_bytes}" for item in listing)
    return fingerprint("source", hashlib.sha256("\x1e".join(rows).encode()).hexdigest())
