"""Zarr v3 stores: one xarray data set each, chunked for reading, whole or absent."""

from __future__ import annotations

import contextlib
import itertools
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr
from numpy.typing import NDArray
from zarr.codecs import Crc32cCodec, ZstdCodec

from vidbrain.errors import StorageError
from vidbrain.storage.atomic import replacing
from vidbrain.storage.objects import Root, open_root
from vidbrain.storage.plain import IN_ORDER, PlainColumns
from vidbrain.storage.remote_zarr import RootStore, open_group
from vidbrain.storage.remote_zarr import read_columns as read_coalesced
from vidbrain.storage.roots import find_json, locate

EVERY_CHUNK = "every_chunk_is_written"
"""Attribute of a group: chunks of nothing but the fill value are on disk too, so one that is not there was lost."""
# What zarr, numcodecs and xarray raise on damaged metadata and chunks.
_UNREADABLE = (ArithmeticError, AttributeError, LookupError, OSError, RuntimeError, TypeError, ValueError)
_MEND = "copy the store again, or remove it and make it again"


def write_dataset(
    path: str | Path,
    dataset: xr.Dataset,
    *,
    chunks: Mapping[str, tuple[int, ...]] | None = None,
    shards: Mapping[str, tuple[int, ...]] | None = None,
) -> None:
    """Write an xarray data set as a Zarr v3 folder that appears whole or not at all.

    Every chunk is written, has a checksum (crc32c), and must be there when the store is opened.

    Parameters
    ----------
    path
        Folder to create; an existing one is replaced.
    dataset
        In memory, of numbers only. Bytes on disk are a pure function of it and of the chunk policy.
    chunks, shards
        Shapes by variable name; shards must be multiples of chunks. Both default to the whole array.
    """
    encoding = _encoding(dataset, chunks or {}, shards or {})
    with replacing(path) as part:
        _write(part, dataset, encoding, mode="w")
        _consolidate(part)


@dataclass(frozen=True, kw_only=True)
class Columns:
    """A float32 array that is written from its first column to its last.

    Attributes
    ----------
    name
        Of the variable.
    dims
        Names of its two dimensions.
    shape
        Rows and columns.
    chunk, part
        Columns in a chunk and in a Zarr shard; both hold every row. `part` is a multiple of `chunk`.
    attributes
        What a reader shall know of it: units, long name.
    """

    name: str
    dims: tuple[str, str]
    shape: tuple[int, int]
    chunk: int
    part: int
    attributes: Mapping[str, Any] = field(default_factory=dict)


def write_by_columns(
    path: str | Path,
    columns: Columns,
    parts: Iterable[NDArray[np.float32]],
    finish: Callable[[], xr.Dataset],
) -> None:
    """Write a data set of which one array is larger than memory, as a folder that appears whole or not at all.

    Each part is one Zarr shard; it is read back and compared before the next one is asked for. Its chunks are not
    compressed (standardised noise would shrink by 8 %, at twice the cost of reading), so that their places are known.

    Parameters
    ----------
    path
        Folder to create; an existing one is replaced.
    columns
        The large array.
    parts : (n_rows, columns.part) float32 each
        The last may be narrower.
    finish
        Called after the last part: every other variable, and the attributes of the data set.

    Raises
    ------
    StorageError
        If a part does not read back as it was written.
    ValueError
        If the parts are not as wide as was said.
    """
    with replacing(path) as folder:
        group = zarr.create_group(folder, zarr_format=3)
        array = group.create_array(
            columns.name,
            shape=columns.shape,
            dtype=np.float32,
            chunks=(columns.shape[0], columns.chunk),
            shards=(columns.shape[0], columns.part),
            compressors=(Crc32cCodec(),),
            fill_value=np.float32(np.nan),
            dimension_names=columns.dims,
            attributes={**columns.attributes, IN_ORDER: True},
            config={"write_empty_chunks": True},
        )
        plain = PlainColumns(shape=columns.shape, chunk=columns.chunk, part=columns.part)
        here = open_root(folder) / columns.name
        first = 0
        for part in parts:
            if part.shape != (columns.shape[0], min(columns.part, columns.shape[1] - first)):
                raise ValueError(f"a part of shape {part.shape} at column {first} of {columns.shape}")
            array[:, first : first + part.shape[1]] = part
            plain.check_index(here, first // columns.part)
            if not _same_bytes(plain.read(here, first, first + part.shape[1]), part):
                raise StorageError(
                    f"columns {first} to {first + part.shape[1]} of {columns.name} do not read back as they were",
                    where=path,
                    likely="a failing disk or file system",
                )
            first += part.shape[1]
        if first != columns.shape[1]:
            raise ValueError(f"{first} of {columns.shape[1]} columns were given")
        rest = finish()
        _write(folder, rest, _encoding(rest, {}, {}), mode="a")
        _consolidate(folder)


def _same_bytes(found: NDArray[np.float32], written: NDArray[np.float32]) -> bool:
    # As integers: NaN equals itself, and nothing is copied.
    return np.array_equal(found.view(np.uint32), np.ascontiguousarray(written, np.float32).view(np.uint32))


def _compressors() -> tuple[ZstdCodec, Crc32cCodec]:
    return ZstdCodec(level=1), Crc32cCodec()


def _encoding(
    dataset: xr.Dataset, chunks: Mapping[str, tuple[int, ...]], shards: Mapping[str, tuple[int, ...]]
) -> dict[str, dict[str, Any]]:
    encoding: dict[str, dict[str, Any]] = {}
    for name in dataset.variables:
        array = dataset[name]
        if array.dtype.kind not in "fiub":
            # Zarr v3 has no settled form for text: other readers could not open it.
            raise ValueError(f"{name}: store labels as integer codes, and their names in the attributes")
        options: dict[str, Any] = {}
        if array.ndim and array.size:
            options["chunks"] = tuple(chunks.get(str(name), array.shape))
            options["compressors"] = _compressors()
        if str(name) in shards:
            options["shards"] = tuple(shards[str(name)])
        encoding[str(name)] = options
    return encoding


def _write(folder: Path, dataset: xr.Dataset, encoding: dict[str, dict[str, Any]], *, mode: Any) -> None:  # noqa: ANN401 -- a literal of xarray
    dataset.assign_attrs({EVERY_CHUNK: 1}).to_zarr(
        folder, mode=mode, zarr_format=3, consolidated=False, encoding=encoding, write_empty_chunks=True
    )


def _consolidate(folder: Path) -> None:
    with warnings.catch_warnings():
        # Consolidated metadata are an extension of Zarr v3: one request opens a store; readers may ignore them.
        warnings.filterwarnings("ignore", message="Consolidated metadata is currently not part")
        zarr.consolidate_metadata(folder)


def open_dataset(path: str | Path | Root) -> xr.Dataset:
    """Open a Zarr v3 folder, or one at a URL, lazily, without Dask: indexing reads only the chunks that it touches.

    At a URL the store is read only and must have consolidated metadata: opening is one request.

    Raises
    ------
    StorageError
        If there is no such store, it cannot be read, or a chunk of it is missing.
    """
    place = locate(path)
    if isinstance(place, Root):
        store = RootStore(place)
        with readable(place):
            open_group(store)  # says what is wrong better than xarray does
            return _without_mark(xr.open_zarr(store, chunks=None, zarr_format=3, consolidated=True))
    if not (place / "zarr.json").is_file():
        raise StorageError("there is no Zarr store", where=place)
    with readable(place):
        data = xr.open_zarr(place, chunks=None)
        if data.attrs.get(EVERY_CHUNK):
            _refuse_holes(place)
        return _without_mark(data)


@contextlib.contextmanager
def readable(place: Path | Root | str) -> Iterator[None]:
    """Turn what damaged files of a Zarr make its readers raise into an error that names the place.

    Raises
    ------
    StorageError
        In place of the reader's error.
    """
    try:
        yield
    except _UNREADABLE as error:
        raise StorageError(f"the Zarr store cannot be read: {error}", where=place, hint=_MEND) from error


def check_dataset(path: str | Path | Root) -> None:
    """Read every file of a Zarr that `write_dataset` or `write_by_columns` wrote.

    The record of each array must be the one that the consolidated metadata hold, and every chunk must be there and
    right. Of an array that lies as `PlainColumns` says only the index of each shard is compared; `read_columns` checks
    its values.

    Raises
    ------
    StorageError
        At the first file that is missing or damaged; it is named.
    """
    root = open_root(path)
    with readable(root / "zarr.json"):
        group = open_group(RootStore(root))
        records = find_json(root, "zarr.json")["consolidated_metadata"]["metadata"]
        arrays = sorted(group.arrays())
    for name, array in arrays:
        if find_json(root / name, "zarr.json") != records[name]:
            raise StorageError(
                f"the record of {name} is missing, or not the one that was written",
                where=root / name / "zarr.json",
                hint=_MEND,
            )
        plain = PlainColumns.of(records[name])
        if plain is None:
            _check_chunks(root, name, array)
        else:
            for part in range(plain.n_parts):
                plain.check_index(root / name, part)


def _check_chunks(root: Root, name: str, array: zarr.Array[Any]) -> None:
    stored = array.shards or array.chunks
    counts = (-(-size // step) for size, step in zip(array.shape, stored, strict=True))
    for at in itertools.product(*map(range, counts)):
        key = f"{name}/{array.metadata.encode_chunk_key(at)}"
        root.head(key)  # zarr would read a missing one as the fill value
        with readable(root / key):
            np.asarray(array[tuple(slice(i * step, (i + 1) * step) for i, step in zip(at, stored, strict=True))])


def _without_mark(data: xr.Dataset) -> xr.Dataset:
    data.attrs.pop(EVERY_CHUNK, None)
    return data


def _refuse_holes(folder: Path) -> None:
    """Refuse a store that lacks a chunk: Zarr would read it as the fill value and say nothing."""
    for name, array in zarr.open_group(folder, mode="r").arrays():
        stored = array.shards or array.chunks
        counts = (-(-size // step) for size, step in zip(array.shape, stored, strict=True))
        for place in itertools.product(*map(range, counts)):
            key = f"{name}/{array.metadata.encode_chunk_key(place)}"
            if not (folder / key).is_file():
                raise StorageError(
                    f"a part of {name} is missing",
                    where=folder / key,
                    likely="it was deleted, or not copied",
                    hint=_MEND,
                )


def read_columns(path: str | Path | Root, name: str, columns: slice) -> NDArray[Any]:
    """Read ``array[:, columns]`` of a Zarr with few reads: neighbouring chunks of a Zarr shard come in one piece.

    Raises
    ------
    StorageError
        If there is no such store, it cannot be read, or a chunk of it is missing.
    """
    place = locate(path)
    array = open_root(place) / name
    plain = PlainColumns.of(find_json(array, "zarr.json"))
    if plain is not None and columns.step in (None, 1):
        start, stop, _ = columns.indices(plain.shape[1])
        return plain.read(array, start, max(start, stop))
    if not isinstance(place, Root):
        if not (place / "zarr.json").is_file():
            raise StorageError("there is no Zarr store", where=place)
        with readable(place):
            if zarr.open_group(place, mode="r").attrs.get(EVERY_CHUNK):
                _refuse_holes(place)
    return read_coalesced(open_root(place), name, columns)
