"""A data set, or a part of it that is named by its size or by a file -> a manifest."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from vidbrain.config import fingerprint
from vidbrain.errors import ConfigError, ShardError
from vidbrain.sharding.filters import Filter
from vidbrain.sharding.manifest import Manifest, open_manifest
from vidbrain.sharding.plan import parse_size
from vidbrain.sharding.subset import content_of, read_subset, select_rows
from vidbrain.storage.atomic import as_storage_error


def open_part(root: str | Path, subset: str | Path | int | None = None) -> Manifest:
    """Open a data set of frames, or a part of it.

    Parameters
    ----------
    root
        The data set: a folder, a URL, or the file of a subset.
    subset
        Frames of the prefix to take (``"100k"``, ``100``), or the file of a subset of this data set; None takes all.

    Raises
    ------
    StorageError, ShardError
        If the data set is unfinished, damaged or smaller, or the file names other segments or cannot be looked at.
    ConfigError
        If `subset` is neither a number of frames nor a file.
    """
    manifest = open_manifest(root)
    if subset is None:
        return manifest
    # A number of frames may also be given as one.
    subset = subset if isinstance(subset, str | Path) else str(subset)
    try:
        is_file = Path(subset).is_file()
    except OSError as error:
        raise as_storage_error(error, subset) from error
    if is_file:
        named = read_subset(Path(subset))
        rows = select_rows(manifest.segments, named.only, named.n_frames, subset)
        if content_of(rows) != named.content:
            raise ShardError(
                "the subset names other segments than the data set holds",
                where=subset,
                likely=f"it is a subset of {named.data}",
                hint="make the subset again with `vidbrain subset`",
            )
        name = named.fingerprint
    else:
        try:
            n_frames = parse_size(str(subset))
        except ConfigError as error:
            raise ConfigError(
                f"{str(subset)!r} is neither a number of frames nor the file of a subset", hint=error.hint
            ) from None
        if n_frames is None:
            return manifest
        rows = select_rows(manifest.segments, Filter(), n_frames, root)
        # Of the content alone: a prefix stays the same while its data set grows.
        name = fingerprint("prefix", content_of(rows))
    counts = {"n_frames": int(rows["n_frames"].sum()), "n_segments": len(rows)}
    counts["n_recordings"] = int(rows["recording"].nunique())
    return dataclasses.replace(manifest, info={**manifest.info, **counts}, segments=rows, subset=name)
