"""Subsets: a small file names a prefix or a filter of a data set, and is taken wherever a data set is taken.

No byte is copied. The file holds the data set's place and fingerprint, the filter, the number of frames and a digest of
the segments that they choose, so that it stays true while the data set grows and is refused when it no longer is.
"""

from __future__ import annotations

import hashlib
import os
import posixpath
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from vidbrain.config import from_mapping, to_mapping
from vidbrain.errors import ConfigError, ShardError, StorageError
from vidbrain.sharding.filters import ENTITIES, Filter, chosen
from vidbrain.sharding.plan import parse_size
from vidbrain.storage.atomic import check_writable
from vidbrain.storage.info import expected_fingerprint, read_info, write_info
from vidbrain.storage.objects import Root, open_root
from vidbrain.storage.roots import locate
from vidbrain.storage.urls import Address, is_url, parse_url

if TYPE_CHECKING:
    from vidbrain.sharding.manifest import Manifest

KIND = "subset"


@dataclass(frozen=True)
class Subset:
    """A subset as its file says.

    Attributes
    ----------
    data
        Folder or URL of the data set.
    only
        Filter.
    n_frames
        Frames, in plan order, that the filter leaves.
    content
        Digest of the segments chosen.
    fingerprint
        Names the subset.
    """

    data: Path | Root
    only: Filter
    n_frames: int
    content: str
    fingerprint: str


def select_rows(segments: pd.DataFrame, only: Filter, n_frames: int | None, where: object = None) -> pd.DataFrame:
    """Take the first frames, in plan order, of the recordings that a filter leaves.

    Parameters
    ----------
    segments
        Rows of an index, in plan order.
    only
        Filter.
    n_frames
        How many frames, exactly: the last segment's `n_frames` is cut. None takes all.

    Raises
    ------
    ShardError
        If a label does not occur, or there are fewer frames.
    """
    if only:
        columns = {name: segments["run_number" if name == "run" else name].tolist() for name in ENTITIES}
        segments = segments[chosen(only, columns, where)].reset_index(drop=True)
    ends = np.cumsum(segments["n_frames"].to_numpy(np.int64))
    held = int(ends[-1]) if len(ends) else 0
    if n_frames is None:
        return segments
    if n_frames > held:
        raise ShardError(
            f"{n_frames:,} frames are asked for, there are {held:,}{' that the filter leaves' if only else ''}",
            where=where,
            hint="ask for fewer, or shard more",
        )
    last = int(np.searchsorted(ends, n_frames))
    rows = segments.iloc[: last + 1].copy()
    rows.loc[rows.index[-1], "n_frames"] -= int(ends[last]) - n_frames
    return rows


def content_of(rows: pd.DataFrame) -> str:
    """Digest of the segments of an index: names, frames and checksums."""
    hashed = hashlib.sha256("\x1f".join(rows["key"].tolist()).encode())
    for name in ("n_frames", "n_stored", "n_bytes", "crc32"):
        hashed.update(rows[name].to_numpy("<i8").tobytes())
    return hashed.hexdigest()[:32]


def write_subset(
    path: str | Path | Root,
    manifest: Manifest,
    *,
    size: str = "all",
    only: Filter = Filter(),  # noqa: B008 -- frozen
) -> dict[str, Any]:
    """Write a subset of a data set of frames.

    Parameters
    ----------
    path
        File or object to write; see `subset_path`.
    manifest
        The data set.
    size
        Frames: 10k, 100k, any count, or all.
    only
        Which recordings.

    Returns
    -------
    dict
        The record as written.

    Raises
    ------
    ShardError
        If the filter and the size ask for what is not there.
    StorageError
        If the file cannot be written, or holds something else.
    """
    path = subset_path(path)
    if manifest.info["vidbrain"] != "shards" or manifest.subset is not None:
        raise ShardError("a subset is taken of a data set of frames", where=manifest.root)
    rows = select_rows(manifest.segments, only, parse_size(size), manifest.root)
    config = {
        "only": {name: values for name, values in to_mapping(only).items() if values},
        "n_frames": int(rows["n_frames"].sum()),
        "content": content_of(rows),
    }
    made_from = {"shards": manifest.fingerprint}
    data = _reference(manifest.root, path)
    if open_root(path.parent).exists(path.name):
        found = read_info(path.parent, KIND, name=path.name)
        if found["config"] != config:
            raise StorageError(
                "there is another subset", where=path, hint="give another --out, or remove this one first"
            )
    if isinstance(path, Path):
        check_writable(path.parent)
    facts = {"data": data, "n_segments": len(rows), "n_recordings": int(rows["recording"].nunique())}
    return write_info(path.parent, KIND, config=config, made_from=made_from, facts=facts, name=path.name)


def subset_path(path: str | Path | Root) -> Path | Root:
    """Path or URL of a subset's file: ``.json`` is added where it is not there."""
    place = locate(path)
    if isinstance(place, Path):
        return place if place.suffix == ".json" else place.with_name(f"{place.name}.json")
    return place if place.name.endswith(".json") else place.parent / f"{place.name}.json"


def _reference(data: Path | Root, file: Path | Root) -> str:
    """Name the data set in a subset's file: relative to it where both lie in one place, so that they may move."""
    if isinstance(data, Path):
        if isinstance(file, Root):
            raise StorageError(
                "a subset at a URL needs its data set at a URL", where=data, hint=f"vidbrain push {data} URL"
            )
        return Path(os.path.relpath(data.absolute(), file.parent.absolute())).as_posix()
    if isinstance(file, Path):
        return data.url
    there, here = parse_url(data.url), parse_url(file.url)
    if (there.scheme, there.bucket) != (here.scheme, here.bucket):
        return data.url
    return posixpath.relpath(f"/{there.prefix}", posixpath.dirname(f"/{here.prefix}"))


def _resolve(reference: str, file: Path | Root) -> Path | Root:
    if is_url(reference):
        return locate(reference)
    if isinstance(file, Path):
        return file.parent / reference
    here = parse_url(file.url)
    below = posixpath.normpath(posixpath.join("/", posixpath.dirname(here.prefix), reference)).strip("/")
    return locate(str(Address(here.scheme, here.bucket, below)))


def read_subset(path: Path | Root) -> Subset:
    """Read a subset's file.

    Raises
    ------
    StorageError
        If it is no subset, or damaged.
    """
    record = read_info(path.parent, KIND, name=path.name)
    config = record["config"]
    whole = record["fingerprint"] == expected_fingerprint(KIND, config, record["made_from"])
    try:
        only = from_mapping(Filter, config["only"], path)
        n_frames, content, data = config["n_frames"], config["content"], record["data"]
    except (KeyError, TypeError, AttributeError, ConfigError):
        whole = False
    if not whole or type(n_frames) is not int or not isinstance(data, str) or not isinstance(content, str):
        raise StorageError("the subset is damaged", where=path, hint="make it again with `vidbrain subset`")
    return Subset(_resolve(data, path), only, n_frames, content, record["fingerprint"])
