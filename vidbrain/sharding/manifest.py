"""What a data set of shards says of itself: ``dataset.json``, ``index.parquet`` and a marker for each shard."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeGuard, overload

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from vidbrain.errors import ShardError, StorageError
from vidbrain.sharding.index import INDEX, read_index
from vidbrain.sharding.record import DATASET, ShardFacts, check_record, is_count, is_sha256
from vidbrain.sharding.subset import content_of, read_subset, select_rows
from vidbrain.storage.atomic import as_storage_error
from vidbrain.storage.info import read_info
from vidbrain.storage.objects import Root
from vidbrain.storage.roots import locate, read_bytes

SHARDS = "shards"
SPOOL = "spool"


@overload
def shard_path(root: Path, shard: int) -> Path: ...
@overload
def shard_path(root: Root, shard: int) -> Root: ...
@overload
def shard_path(root: str | Path | Root, shard: int) -> Path | Root: ...
def shard_path(root: str | Path | Root, shard: int) -> Path | Root:
    """Path, or URL, of a shard's tar."""
    return locate(root) / f"{SHARDS}/{shard:06d}.tar"


@overload
def marker_path(root: Path, shard: int) -> Path: ...
@overload
def marker_path(root: Root, shard: int) -> Root: ...
@overload
def marker_path(root: str | Path | Root, shard: int) -> Path | Root: ...
def marker_path(root: str | Path | Root, shard: int) -> Path | Root:
    """Path, or URL, of a shard's commit marker, written after its tar."""
    return locate(root) / f"{SHARDS}/{shard:06d}.json"


class DamagedMarkerError(StorageError):
    """A commit marker that cannot be understood."""


@dataclass(frozen=True)
class Marker:
    """A commit marker.

    Attributes
    ----------
    shard
        Number of the shard.
    n_bytes, sha256
        Of the tar.
    keys
        Of its segments, in their order.
    segments
        For each of them ``offset``, ``n_bytes``, ``parts``, ``crc32`` and ``part_crc32``.
    """

    shard: int
    n_bytes: int
    sha256: str
    keys: list[str]
    segments: list[dict[str, Any]]

    @property
    def facts(self) -> ShardFacts:
        """What its tar is known by."""
        return ShardFacts(self.n_bytes, self.sha256)

    def to_bytes(self) -> bytes:
        """Give the marker as it is written."""
        return (json.dumps(vars(self), separators=(",", ":")) + "\n").encode()


def read_marker(root: str | Path | Root, shard: int, *, kind: str = "shards") -> Marker:
    """Read a shard's commit marker.

    Parameters
    ----------
    root
        Data set.
    shard
        Number of the shard.
    kind
        ``"shards"`` or ``"codes"``, whose markers keep the number of clips as the only part.

    Raises
    ------
    ObjectMissingError
        If there is none.
    DamagedMarkerError
        If it is damaged, or says what cannot be.
    StorageError
        If it cannot be read.
    """
    path = marker_path(root, shard)
    try:
        record = json.loads(read_bytes(path))
        marker = Marker(shard, *(record[name] for name in ("n_bytes", "sha256", "keys", "segments")))
    except (ValueError, KeyError, TypeError, RecursionError):
        raise DamagedMarkerError("its marker is damaged", where=path) from None
    if not _is_possible(marker, kind):
        raise DamagedMarkerError("its marker is damaged", where=path)
    return marker


def _is_possible(marker: Marker, kind: str) -> bool:
    """Whether a marker can be one: an index is written from its numbers, and is read by them."""
    lists = isinstance(marker.keys, list) and isinstance(marker.segments, list)
    if not (lists and is_count(marker.n_bytes) and is_sha256(marker.sha256)):
        return False
    named = len(marker.keys) == len(marker.segments) and all(isinstance(key, str) for key in marker.keys)
    return named and all(_is_place(place, marker.n_bytes, kind) for place in marker.segments)


def _is_place(place: object, n_held: int, kind: str) -> bool:
    if not isinstance(place, dict) or not all(is_count(place.get(name)) for name in ("offset", "n_bytes", "crc32")):
        return False
    parts, sums = place.get("parts"), place.get("part_crc32")
    if not _are_counts(parts) or place["offset"] + place["n_bytes"] > n_held:
        return False
    fits = len(parts) == 1 if kind == "codes" else sum(parts) == place["n_bytes"]
    # Markers of earlier versions have no checksums of parts.
    return fits and ("part_crc32" not in place or (_are_counts(sums) and len(sums) == len(parts)))


def _are_counts(values: object) -> TypeGuard[list[int]]:
    return isinstance(values, list) and len(values) > 0 and all(map(is_count, values))


@dataclass(frozen=True)
class Manifest:
    """An opened data set of shards: frames (kind ``"shards"``) or codes (kind ``"codes"``).

    Attributes
    ----------
    root
        Its folder, or its URL.
    info
        The root record, ``dataset.json``.
    segments
        The index, one row a segment, in plan order. Where the size ends inside the last segment, that row's
        `n_frames` is cut to it.
    subset
        Fingerprint of the subset of the data set that this is, or None.
    """

    root: Path | Root
    info: dict[str, Any]
    segments: pd.DataFrame
    subset: str | None = None

    @property
    def fingerprint(self) -> str:
        """Names the content."""
        return self.subset or str(self.info["fingerprint"])

    @property
    def height(self) -> int:
        """Of the stored frames, in pixels."""
        return int(self.info["height"])

    @property
    def width(self) -> int:
        """Of the stored frames, in pixels."""
        return int(self.info["width"])

    @property
    def margin(self) -> int:
        """Frames that a segment stores beyond those it owns (fewer at the end of a recording)."""
        return int(self.info["margin"])

    def shard_facts(self, shard: int) -> ShardFacts:
        """Length and checksum of a tar, from the root record; where that is older than this, from the shard's marker.

        Raises
        ------
        StorageError
            If the marker is needed, and missing or damaged.
        """
        held = self.info.get("shards")
        if held is None:
            return read_marker(self.root, shard, kind=self.info["vidbrain"]).facts
        return ShardFacts(held["n_bytes"][shard], held["sha256"][shard])

    @cached_property
    def recordings(self) -> pd.DataFrame:
        """One row a recording, indexed by key: run, split, recording_frames, frames_held, onset_s, duration_s."""
        groups = self.segments.groupby("recording", sort=True)
        columns = ["run", "subject", "session", "task", "level", "repetition", "split"]
        columns += ["recording_frames", "onset_s", "duration_s"]
        table = groups[columns].first()
        table["frames_held"] = groups["n_frames"].sum()
        return table

    @cached_property
    def runs(self) -> list[str]:
        """Labels of the BOLD runs that the recordings belong to, sorted; empty where there was no scanner."""
        return sorted(label for label in self.segments["run"].unique() if label)

    def select(self, split: str | None) -> NDArray[np.int64]:
        """Positions of the segments of a split, or of all, in plan order.

        Raises
        ------
        ShardError
            If the split is empty.
        """
        if split is None:
            return np.arange(len(self.segments))
        positions = np.flatnonzero(self.segments["split"].to_numpy() == split)
        if not len(positions):
            raise ShardError(
                f"no segment belongs to split {split!r}", where=self.root, hint="shard with another --val-share"
            )
        return positions


def open_manifest(root: str | Path | Root, *, kind: str = "shards") -> Manifest:
    """Open a finished data set of shards.

    Parameters
    ----------
    root
        Its folder or URL, or the file or URL of a subset of it (which ends in ``.json``).
    kind
        ``"shards"`` for frames, ``"codes"`` for codes.

    Raises
    ------
    StorageError
        If it is missing, unfinished or of another kind or version, or cannot be read.
    ShardError
        If the index does not fit the root record.
    """
    place = locate(root)
    if _names_subset(place):
        return _open_subset(place, kind)
    info = read_info(place, kind, name=DATASET)
    check_record(info, kind, place / DATASET)
    index = place / INDEX
    segments = read_index(read_bytes(index), info["n_segments"], sha256=info.get("index_sha256"), where=index)
    excess = _check_fit(segments, info, index)
    segments.loc[segments.index[-1], "n_frames"] -= excess
    return Manifest(place, info, segments)


def _check_fit(segments: pd.DataFrame, info: dict[str, Any], index: Path | Root) -> int:
    """Refuse rows that the root record does not describe; return the frames of the last one that are not taken."""
    n_frames, shards = segments["n_frames"].to_numpy(), segments["shard"].to_numpy()
    held_frames = int(n_frames.sum())
    excess = held_frames - int(info["n_frames"])
    fault = None
    if not 0 <= excess < int(n_frames[-1]):
        fault = f"it holds {held_frames:,} frames, the root record says {info['n_frames']:,}"
    elif (shards >= info["n_shards"]).any():
        fault = f"it names shard {shards.max()}, the root record says {info['n_shards']}"
    elif "shards" in info:
        held = np.array(info["shards"]["n_bytes"], np.float64)[shards]
        # In floating point: absurd numbers must not wrap around.
        if (segments["offset"].to_numpy(np.float64) + segments["n_bytes"].to_numpy() > held).any():
            fault = "a segment beyond the end of its tar"
    if fault:
        raise ShardError(
            f"the index does not fit the root record: {fault}",
            where=index,
            hint="vidbrain verify --repair, where the source is still there; else make the data set again",
        )
    return excess


def _names_subset(place: Path | Root) -> bool:
    if isinstance(place, Root):
        return place.name.endswith(".json")
    try:
        return place.is_file() and place.name != DATASET
    except OSError as error:  # its name is too long
        raise as_storage_error(error, place) from error


def _open_subset(path: Path | Root, kind: str) -> Manifest:
    named = read_subset(path)
    if kind != "shards":
        raise StorageError(
            f"a subset names frames, not {kind}", where=path, hint=f"tokenize it first: vidbrain tokenize {path}"
        )
    if _names_subset(named.data):
        raise ShardError("the subset names a subset, not a data set", where=path, hint="make it of the data set itself")
    whole = open_manifest(named.data)
    rows = select_rows(whole.segments, named.only, named.n_frames, path)
    if content_of(rows) != named.content:
        raise ShardError(
            "the subset names other segments than the data set holds",
            where=path,
            likely="the data set was made again since",
            hint="make the subset again with `vidbrain subset`",
        )
    counts = {"n_frames": named.n_frames, "n_segments": len(rows), "n_recordings": int(rows["recording"].nunique())}
    return Manifest(whole.root, {**whole.info, **counts}, rows, named.fingerprint)
