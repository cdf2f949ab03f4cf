"""The plan: a pure function from a listing of recordings and settings to an ordered list of segments and shards.

Order `balanced` merges the strata (subject, session, level) so that every prefix holds each of them in proportion: the
segments of a stratum are permuted by a keyed hash, the j-th of n gets the quantile (j + u) / n, with u one keyed number
a stratum, and all are sorted by quantile. 10k, 100k, 1M and 6M frames are prefixes of this one list, and shards end
where such a prefix ends, so that growing a data set adds shards and rewrites none.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from vidbrain.config import fingerprint
from vidbrain.errors import ConfigError, ShardError
from vidbrain.records import ClipSpec, Recording, SegmentRef

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
    order: Literal["balanced", "recording"] = "balanced"
    """Plan order: balanced over subject, session and level, or recording after recording."""
    val_share: float = 0.1
    """Share of recordings that are held out for validation; at least one where there are two."""
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
        ClipSpec(self.clip_frames, self.clip_step)

    @property
    def margin(self) -> int:
        """Frames that a segment stores beyond those it owns, so that no clip is lost at its edge."""
        return ClipSpec(self.clip_frames, self.clip_step).span - 1


@dataclass(frozen=True)
class Listed:
    """A recording with its number of frames, as found by probing."""

    recording: Recording
    n_frames: int


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
        ``"train"`` or ``"val"`` by recording key.
    fingerprint
        Of everything above.
    """

    segments: tuple[SegmentRef, ...]
    shards: tuple[tuple[int, int], ...]
    n_frames: int
    split: dict[str, str]

    @property
    def fingerprint(self) -> str:
        """Name this plan by its content."""
        rows = [[s.recording, s.start_frame, s.n_frames, s.n_stored] for s in self.segments]
        return fingerprint("plan", rows, [list(s) for s in self.shards], self.n_frames, self.split)


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


def keyed(seed: int, *parts: object) -> float:
    """A number in [0, 1) that depends on the seed and the parts alone, equal on every machine."""
    digest = hashlib.sha256("\x1f".join([str(seed), *map(str, parts)]).encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def make_plan(listing: Sequence[Listed], config: ShardConfig) -> Plan:
    """Plan segments and shards.

    Parameters
    ----------
    listing
        Every recording of the source; its order does not matter.
    config
        Settings.

    Raises
    ------
    ShardError
        If there are no frames, two recordings share a key, or the size asks for more than there is.
    """
    listing = sorted(listing, key=lambda item: item.recording.key)
    keys = [item.recording.key for item in listing]
    double = sorted({key for key in keys if keys.count(key) > 1}) if len(set(keys)) < len(keys) else []
    if double:
        raise ShardError(f"{len(double)} recordings share a name with another: {', '.join(double[:3])}")
    total = sum(item.n_frames for item in listing)
    wanted = parse_size(config.size)
    if total == 0:
        raise ShardError("the source holds no frames", hint="run `vidbrain replay` first, or check the path")
    if wanted is not None and wanted > total:
        raise ShardError(
            f"size {config.size} asks for {wanted:,} frames, the source holds {total:,}", hint="--size all"
        )

    ordered = _ordered(listing, config)
    n_frames = total if wanted is None else wanted
    segments, cumulative = [], 0
    for segment in ordered:
        if cumulative >= n_frames:
            break
        segments.append(segment)
        cumulative += segment.n_frames
    return Plan(tuple(segments), tuple(_cut(segments, config.shard_frames)), n_frames, split_recordings(keys, config))


def _segments_of(item: Listed, config: ShardConfig) -> list[SegmentRef]:
    return [
        SegmentRef(
            item.recording.key,
            start,
            min(config.segment_frames, item.n_frames - start),
            min(config.segment_frames + config.margin, item.n_frames - start),
        )
        for start in range(0, item.n_frames, config.segment_frames)
    ]


def _ordered(listing: Sequence[Listed], config: ShardConfig) -> list[SegmentRef]:
    if config.order == "recording":
        return [segment for item in listing for segment in _segments_of(item, config)]
    strata: dict[tuple[str, ...], list[SegmentRef]] = defaultdict(list)
    for item in listing:
        run = item.recording.run
        stratum: tuple[str, ...] = (
            run.subject if run else "",
            (run.session or "") if run else "",
            item.recording.level or "",
        )
        strata[stratum] += _segments_of(item, config)
    placed = []
    for stratum, members in strata.items():
        members.sort(key=lambda segment: keyed(config.seed, "segment", segment.key))
        offset = keyed(config.seed, "stratum", *stratum)
        placed += [((j + offset) / len(members), segment.key, segment) for j, segment in enumerate(members)]
    return [segment for _, _, segment in sorted(placed)]


def _cut(segments: Sequence[SegmentRef], shard_frames: int) -> list[tuple[int, int]]:
    """End a shard when it is full, and wherever a landmark prefix ends."""
    shards, first, in_shard, cumulative = [], 0, 0, 0
    for position, segment in enumerate(segments):
        before, cumulative = cumulative, cumulative + segment.n_frames
        in_shard += segment.n_frames
        at_landmark = any(before < landmark <= cumulative for landmark in LANDMARKS)
        if in_shard >= shard_frames or at_landmark or position == len(segments) - 1:
            shards.append((first, position + 1))
            first, in_shard = position + 1, 0
    return shards


def split_recordings(keys: Sequence[str], config: ShardConfig) -> dict[str, str]:
    """Hold out whole recordings, chosen by a keyed hash: never frames of a recording that is trained on."""
    n_val = min(len(keys) - 1, max(1, round(config.val_share * len(keys)))) if config.val_share > 0 else 0
    by_hash = sorted(keys, key=lambda key: keyed(config.seed, "split", key))
    held_out = set(by_hash[:n_val])
    return {key: "val" if key in held_out else "train" for key in sorted(keys)}
