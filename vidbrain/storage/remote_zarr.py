"""Zarr stores at a URL, read only: through `Root`, so with its patience and its errors, and in few requests.

zarr 3.1 reads the inner chunks of a Zarr shard one after the other, a request each, and waits for each. `read_columns`
reads the shard's index, asks for the chunks' bytes in one coalesced range, and lets zarr decode them from memory.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, cast

import google_crc32c
import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest, Store, SuffixByteRequest
from zarr.codecs import BytesCodec, Crc32cCodec, ShardingCodec, ShardingCodecIndexLocation
from zarr.core.buffer import Buffer, BufferPrototype

from vidbrain.errors import StorageError
from vidbrain.storage.files import ObjectMissingError
from vidbrain.storage.objects import N_THREADS, Root

EMPTY = 2**64 - 1
"""Offset and length of a chunk that holds only the fill value (Zarr v3 sharding codec, binary shard format)."""


@dataclass(frozen=True)
class Held:
    """Bytes of an object in memory: blocks by their first position, and its last bytes.

    A whole object is one block that is also its tail.
    """

    blocks: tuple[tuple[int, bytes], ...]
    tail: bytes
    is_whole: bool = False

    def get(self, span: ByteRequest | None) -> bytes | None:
        """Give what zarr asks for, if it is held."""
        if span is None:
            return self.tail if self.is_whole else None
        if isinstance(span, SuffixByteRequest) and span.suffix <= len(self.tail):
            return self.tail[len(self.tail) - span.suffix :]
        if isinstance(span, RangeByteRequest):
            for first, data in self.blocks:
                if first <= span.start and span.end <= first + len(data):
                    return data[span.start - first : span.end - first]
        return None


class RootStore(Store):
    """A `Root` as zarr sees it.

    Parameters
    ----------
    root
        Where the Zarr is.
    """

    supports_writes = False
    supports_deletes = False
    supports_listing = True

    def __init__(self, root: Root) -> None:
        super().__init__(read_only=True)
        self.root = root
        self.held: dict[str, Held] = {}
        """What was fetched ahead, by key."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RootStore) and other.root == self.root

    def __hash__(self) -> int:
        return hash(self.root)

    def __str__(self) -> str:
        return str(self.root)

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """Read an object or a part of one; None where there is none."""
        try:
            data = self._ahead(key, byte_range)
            if data is None:
                data = await asyncio.to_thread(self._read, key, byte_range)
        except ObjectMissingError:
            return None
        return prototype.buffer.from_bytes(data)

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        """Read several."""
        return list(await asyncio.gather(*(self.get(key, prototype, span) for key, span in key_ranges)))

    async def exists(self, key: str) -> bool:
        """Whether there is such an object."""
        return await asyncio.to_thread(self.root.exists, key)

    async def set(self, key: str, value: Buffer) -> None:
        """Refuse."""
        raise StorageError("a Zarr at a URL is read only", where=f"{self.root}/{key}")

    async def delete(self, key: str) -> None:
        """Refuse."""
        raise StorageError("a Zarr at a URL is read only", where=f"{self.root}/{key}")

    async def list(self) -> AsyncIterator[str]:
        """Every key."""
        for found in await asyncio.to_thread(self.root.list):
            yield found.key

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        """Every key below a prefix."""
        for found in await asyncio.to_thread(self.root.list, prefix.rstrip("/")):
            yield found.key

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        """Names directly below a prefix."""
        base = f"{prefix.rstrip('/')}/" if prefix else ""
        found = await asyncio.to_thread(self.root.list, prefix.rstrip("/"))
        for name in sorted({item.key[len(base) :].split("/")[0] for item in found}):
            yield name

    def _ahead(self, key: str, span: ByteRequest | None) -> bytes | None:
        held = self.held.get(key)
        return held.get(span) if held else None

    def _read(self, key: str, span: ByteRequest | None) -> bytes:
        if span is None:
            return self.root.get(key)
        if isinstance(span, RangeByteRequest):
            return self.root.get_range(key, span.start, span.end)
        if isinstance(span, SuffixByteRequest):
            return self.root.get_suffix(key, span.suffix)
        assert isinstance(span, OffsetByteRequest)
        return self.root.get_range(key, span.offset, self.root.head(key).n_bytes)


def read_columns(root: Root, name: str, columns: slice) -> NDArray[Any]:
    """Read ``array[:, columns]`` of a Zarr at a URL or in a folder.

    Of each Zarr shard that is touched in part, its index and one coalesced range are asked for; of a whole one, the
    object. Arrays in another layout are read as zarr reads them.

    Parameters
    ----------
    root
        Where the Zarr is.
    name
        A two-dimensional array in it.
    columns
        With step 1.

    Raises
    ------
    StorageError
        If it cannot be read.
    """
    store = RootStore(root)
    try:
        array = open_group(store)[name]
        if not isinstance(array, zarr.Array) or array.ndim != 2 or columns.step not in (None, 1):
            raise StorageError(f"{name} is no two-dimensional array, or its columns are no neighbours", where=root)
        start, stop, _ = columns.indices(int(array.shape[-1]))
        if start < stop and _is_plainly_sharded(array):
            _fetch_ahead(store, array, start, stop)
        return np.asarray(array[:, start:stop])
    except (KeyError, ValueError, RuntimeError, OSError) as error:
        raise StorageError(f"the Zarr store cannot be read: {error}", where=root) from error


def open_group(store: RootStore) -> zarr.Group:
    """Open the root group by its consolidated metadata: one request."""
    try:
        return zarr.open_group(store, mode="r", zarr_format=3, use_consolidated=True)
    except FileNotFoundError:
        raise StorageError("there is no Zarr store", where=store.root, hint="check the URL") from None


def _is_plainly_sharded(array: zarr.Array[Any]) -> bool:
    """Whether the array's shards are laid out as vidbrain writes them: index at the end, checked by crc32c."""
    codecs: tuple[Any, ...] = getattr(array.metadata, "codecs", ())
    if len(codecs) != 1 or not isinstance(codecs[0], ShardingCodec):
        return False
    codec = codecs[0]
    kinds = [type(item) for item in codec.index_codecs]
    return codec.index_location is ShardingCodecIndexLocation.end and kinds == [BytesCodec, Crc32cCodec]


def _fetch_ahead(store: RootStore, array: zarr.Array[Any], start: int, stop: int) -> None:
    shards, chunks = cast(tuple[int, int], array.shards), cast(tuple[int, int], array.chunks)
    n_trs, n_columns = cast(tuple[int, int], array.shape)
    n_rows = -(-n_trs // shards[0])

    def fetch(at: tuple[int, int]) -> tuple[str, Held | None]:
        key = f"{array.path}/{array.metadata.encode_chunk_key(at)}"
        edge = at[1] * shards[1]
        first, last = max(0, start - edge), min(shards[1], stop - edge)
        try:
            # A shard at the edge of the array is whole when what lies in the array is.
            if (first, last) == (0, min(shards[1], n_columns - edge)):
                data = store.root.get(key)
                return key, Held(((0, data),), data, is_whole=True)
            return key, _fetch_parts(store.root, key, shards, chunks, first, last)
        except ObjectMissingError:
            # A shard of nothing but the fill value is not written. Where that is NaN, what vidbrain writes has none.
            if np.isnan(array.fill_value):
                raise StorageError(
                    "a part of the array is missing", where=f"{store.root}/{key}", hint="push the data set again"
                ) from None
            return key, None

    places = itertools.product(range(n_rows), range(start // shards[1], -(-stop // shards[1])))
    with ThreadPoolExecutor(N_THREADS) as pool:
        store.held = {key: held for key, held in pool.map(fetch, places) if held is not None}


def _fetch_parts(root: Root, key: str, shards: tuple[int, int], chunks: tuple[int, int], first: int, last: int) -> Held:
    grid = shards[0] // chunks[0], shards[1] // chunks[1]
    n_index = 16 * grid[0] * grid[1] + 4
    tail = root.get_suffix(key, n_index)
    if len(tail) != n_index:
        raise StorageError("the Zarr shard is shorter than its index", where=f"{root}/{key}")
    # Little-endian pairs of offset and length by chunk, in C order, then their crc32c.
    if google_crc32c.value(tail[:-4]) != int.from_bytes(tail[-4:], "little"):
        raise StorageError("the index of a Zarr shard is damaged: its checksum differs", where=f"{root}/{key}")
    index = np.frombuffer(tail[:-4], "<u8").reshape(*grid, 2)
    wanted = index[:, first // chunks[1] : -(-last // chunks[1])].reshape(-1, 2)
    spans = [(int(offset), int(offset) + int(n)) for offset, n in wanted if int(offset) != EMPTY]
    return Held(tuple(zip((begin for begin, _ in spans), root.get_ranges(key, spans), strict=True)), tail)
