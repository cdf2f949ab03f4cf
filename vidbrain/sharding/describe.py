"""Describes data sets of shards from their records alone: no tar is opened."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from vidbrain.errors import StorageError
from vidbrain.sharding.manifest import Manifest, open_manifest
from vidbrain.sharding.plan import LANDMARKS
from vidbrain.sharding.record import DATASET
from vidbrain.sharding.subset import KIND
from vidbrain.storage.atomic import as_storage_error
from vidbrain.storage.files import ObjectMissingError
from vidbrain.storage.objects import Root, open_root
from vidbrain.storage.roots import find_json, locate


def find_datasets(root: str | Path | Root) -> list[Path | Root]:
    """List data sets and subsets: the place itself, or those directly below it.

    Raises
    ------
    StorageError
        If there is none, or it cannot be said because an HTTP server lists nothing.
    """
    place = locate(root)
    if isinstance(place, Root):
        return [place] if place.name.endswith(".json") or place.exists(DATASET) else _listed_below(place)
    try:
        if place.is_file() or (place / DATASET).is_file():
            return [place]
    except OSError as error:  # its name is too long
        raise as_storage_error(error, place) from error
    below = sorted(place.iterdir()) if place.is_dir() else []
    found = [path for path in below if (path / DATASET).is_file() or (path.suffix == ".json" and _is_subset(path))]
    return _some([*found], place)


def _listed_below(root: Root) -> list[Path | Root]:
    keys = [found.key for found in root.list()]
    names = {key.partition("/")[0] for key in keys if key.endswith(f"/{DATASET}") and key.count("/") == 1}
    names |= {key for key in keys if "/" not in key and key.endswith(".json") and _is_subset(root / key)}
    return _some([root / name for name in sorted(names)], root)


def _some(found: list[Path | Root], place: Path | Root) -> list[Path | Root]:
    if not found:
        raise StorageError(
            "there is no finished data set of shards", where=place, hint="make one with `vidbrain shard`"
        )
    return found


def _is_subset(place: Path | Root) -> bool:
    try:
        record = find_json(open_root(place.parent), place.name)
    except StorageError:  # somebody else's file
        return False
    return isinstance(record, dict) and record.get("vidbrain") == KIND


def kind_of(root: str | Path | Root) -> str:
    """``"codes"`` for a data set of codes, else ``"shards"``; whether it can be opened is not said."""
    place = locate(root)
    if place.name.endswith(".json"):
        return "shards"
    try:
        record = json.loads(open_root(place).get(DATASET))
    except (ObjectMissingError, ValueError, RecursionError):
        return "shards"
    return "codes" if isinstance(record, dict) and record.get("vidbrain") == "codes" else "shards"


def describe(root: str | Path | Root) -> dict[str, Any]:
    """Say what a data set of frames or codes, or a subset, holds.

    Returns
    -------
    dict
        ``root``, ``kind``, ``n_frames``, ``hours`` (None where a recording's rate is not known), ``n_segments``,
        ``n_shards``, ``n_recordings``, ``n_bytes`` (of its segments), ``codec``, ``frame_size``, ``order``,
        ``subjects``, ``levels``, ``splits`` (frames by name), ``prefixes`` (frames of the named prefixes that it
        holds), ``skipped``, ``fingerprint``, ``made_from``.
    """
    root, kind = locate(root), kind_of(root)
    manifest = open_manifest(root, kind=kind)
    rows, info = manifest.segments, manifest.info
    return {
        "root": str(root),
        "kind": KIND if manifest.subset else kind,
        "n_frames": int(rows["n_frames"].sum()),
        "hours": _hours(manifest),
        "n_segments": len(rows),
        "n_shards": int(rows["shard"].nunique()),
        "n_recordings": int(rows["recording"].nunique()),
        "n_bytes": int(rows["n_bytes"].sum()),
        "codec": info.get("codec"),
        "frame_size": info.get("height"),
        "order": info["config"].get("order"),
        "subjects": sorted(label for label in rows["subject"].unique() if label),
        "levels": sorted(label for label in rows["level"].unique() if label),
        "splits": {name: int(n) for name, n in rows.groupby("split")["n_frames"].sum().items()},
        "prefixes": [] if manifest.subset or kind != "shards" else _prefixes(manifest),
        "skipped": info.get("skipped", {}),
        "fingerprint": manifest.fingerprint,
        "made_from": {"shards": info["fingerprint"]} if manifest.subset else info["made_from"],
    }


def _hours(manifest: Manifest) -> float | None:
    rows = manifest.segments
    seconds = float((rows["n_frames"] / rows["fps"]).sum(skipna=False))
    return seconds / 3600 if np.isfinite(seconds) else None


def _prefixes(manifest: Manifest) -> list[dict[str, int]]:
    """The named prefixes that a data set holds: frames, and how many shards and bytes carry them."""
    rows = manifest.segments
    ends = np.cumsum(rows["n_frames"].to_numpy(np.int64))
    bytes_to = np.cumsum(rows["n_bytes"].to_numpy(np.int64))
    found = []
    for frames in LANDMARKS:
        if frames <= ends[-1]:
            last = int(np.searchsorted(ends, frames))
            shards = int(rows["shard"].iloc[last]) + 1
            found.append(
                {"n_frames": frames, "n_segments": last + 1, "n_shards": shards, "n_bytes": int(bytes_to[last])}
            )
    return found
