"""Zarr v3 stores: one xarray data set each, chunked for reading, whole or absent."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from zarr.codecs import ZstdCodec

from vidbrain.errors import StorageError
from vidbrain.storage.atomic import replacing
from vidbrain.storage.objects import Root
from vidbrain.storage.remote_zarr import RootStore, open_group
from vidbrain.storage.remote_zarr import read_columns as read_remote_columns
from vidbrain.storage.roots import locate


def write_dataset(
    path: str | Path,
    dataset: xr.Dataset,
    *,
    chunks: Mapping[str, tuple[int, ...]] | None = None,
    shards: Mapping[str, tuple[int, ...]] | None = None,
) -> None:
    """Write an xarray data set as a Zarr v3 folder that appears whole or not at all.

    Parameters
    ----------
    path
        Folder to create; an existing one is replaced.
    dataset
        In memory, of numbers only. Bytes on disk are a pure function of it and of the chunk policy.
    chunks, shards
        Shapes by variable name; shards must be multiples of chunks. Both default to the whole array.
    """
    encoding: dict[str, dict[str, Any]] = {}
    for name in dataset.variables:
        array = dataset[name]
        if array.dtype.kind not in "fiub":
            # Zarr v3 has no settled form for text: other readers could not open it.
            raise ValueError(f"{name}: store labels as integer codes, and their names in the attributes")
        options: dict[str, Any] = {}
        if array.ndim and array.size:
            options["chunks"] = tuple((chunks or {}).get(str(name), array.shape))
            options["compressors"] = (ZstdCodec(level=1),)
        if shards and str(name) in shards:
            options["shards"] = tuple(shards[str(name)])
        encoding[str(name)] = options
    with replacing(path) as part, warnings.catch_warnings():
        # Consolidated metadata are an extension of Zarr v3: one request opens a store; readers may ignore them.
        warnings.filterwarnings("ignore", message="Consolidated metadata is currently not part")
        dataset.to_zarr(part, mode="w", zarr_format=3, consolidated=True, encoding=encoding)


def open_dataset(path: str | Path | Root) -> xr.Dataset:
    """Open a Zarr v3 folder, or one at a URL, lazily, without Dask: indexing reads only the chunks that it touches.

    At a URL the store is read only and must have consolidated metadata: opening is one request.

    Raises
    ------
    StorageError
        If there is no such store or it cannot be read.
    """
    place = locate(path)
    if isinstance(place, Root):
        store = RootStore(place)
        open_group(store)  # says what is wrong better than xarray does
        return xr.open_zarr(store, chunks=None, zarr_format=3, consolidated=True)
    if not (place / "zarr.json").is_file():
        raise StorageError("there is no Zarr store", where=place)
    try:
        return xr.open_zarr(place, chunks=None)
    except (ValueError, KeyError, OSError) as error:
        raise StorageError(f"the Zarr store cannot be read: {error}", where=place) from error


def read_columns(path: str | Path | Root, name: str, columns: slice) -> NDArray[Any]:
    """Read ``array[:, columns]`` of a Zarr, with the fewest requests where it is at a URL.

    Raises
    ------
    StorageError
        If there is no such store or it cannot be read.
    """
    place = locate(path)
    if isinstance(place, Root):
        return read_remote_columns(place, name, columns)
    return np.asarray(open_dataset(place)[name][:, columns].values)
