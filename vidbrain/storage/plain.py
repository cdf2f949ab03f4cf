"""Columns of an uncompressed, sharded Zarr array, read by position: one range of each shard, and no index.

Chunks that are not compressed have equal lengths, and vidbrain writes them one after the other. So the place of each is
known from its number. Every chunk has its own checksum (crc32c), which is compared; what is read goes straight to its
columns. zarr reads the same files with index and all, and judges them in the tests.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from vidbrain.errors import StorageError
from vidbrain.storage.files import ObjectMissingError
from vidbrain.storage.objects import N_THREADS, Root

IN_ORDER = "chunks_lie_in_order"
"""Attribute of an array: the chunks of each of its shards follow each other from the shard's first byte."""
_CRC = 4
_BYTES = {"name": "bytes", "configuration": {"endian": "little"}}


@dataclass(frozen=True, kw_only=True)
class PlainColumns:
    """How a float32 array lies on disk.

    Attributes
    ----------
    shape
        Rows and columns.
    chunk, part
        Columns of a chunk and of a Zarr shard; both hold every row.
    """

    shape: tuple[int, int]
    chunk: int
    part: int

    @classmethod
    def of(cls, metadata: Any) -> PlainColumns | None:  # noqa: ANN401 -- JSON of unknown form
        """Recognise an array by its ``zarr.json``; None if it lies in any other way."""
        try:
            (sharding,) = metadata["codecs"]
            n_rows, n_columns = map(int, metadata["shape"])
            rows, part = map(int, metadata["chunk_grid"]["configuration"]["chunk_shape"])
            inner = sharding["configuration"]
            inner_rows, chunk = map(int, inner["chunk_shape"])
            is_plain = (
                metadata["attributes"].get(IN_ORDER) is True
                and (metadata["zarr_format"], metadata["data_type"]) == (3, "float32")
                and metadata["chunk_key_encoding"] == {"name": "default", "configuration": {"separator": "/"}}
                and sharding["name"] == "sharding_indexed"
                and [codec["name"] for codec in inner["codecs"]] == ["bytes", "crc32c"]
                and inner["codecs"][0] == _BYTES
                and not metadata.get("storage_transformers")
            )
        except (KeyError, TypeError, ValueError, AttributeError):
            return None
        fits = rows == inner_rows == n_rows > 0 and chunk > 0 and part > 0 and part % chunk == 0 and n_columns > 0
        return cls(shape=(n_rows, n_columns), chunk=chunk, part=part) if is_plain and fits else None

    @property
    def chunk_bytes(self) -> int:
        """Of a chunk and its checksum; one at the edge of the array is as long."""
        return 4 * self.shape[0] * self.chunk + _CRC

    def key(self, part: int) -> str:
        """Name of a shard below its array."""
        return f"c/0/{part}"

    @property
    def n_parts(self) -> int:
        """Shards of the array."""
        return -(-self.shape[1] // self.part)

    def n_chunks(self, part: int) -> int:
        """How many chunks of a shard lie in the array."""
        return -(-min(self.part, self.shape[1] - part * self.part) // self.chunk)

    def index(self, part: int) -> bytes:
        """What a shard ends with, if its chunks lie in order: the index of the Zarr v3 sharding codec."""
        table = np.full((self.part // self.chunk, 2), 2**64 - 1, "<u8")
        n = self.n_chunks(part)
        table[:n, 0], table[:n, 1] = np.arange(n) * self.chunk_bytes, self.chunk_bytes
        packed = table.tobytes()
        return packed + google_crc32c.value(packed).to_bytes(_CRC, "little")

    def check_index(self, root: Root, part: int) -> None:
        """Compare the end of a shard with the index that it has where its chunks follow each other, as `read` trusts.

        Raises
        ------
        StorageError
            If the shard is missing, or its length or its index is another one.
        """
        key, wanted = self.key(part), self.index(part)
        begin = self.n_chunks(part) * self.chunk_bytes
        stop = begin + len(wanted)
        n_bytes = root.head(key).n_bytes
        if n_bytes != stop or root.get_range(key, begin, stop) != wanted:
            raise StorageError(
                f"the index of a Zarr shard is not that of chunks in order ({n_bytes} of {stop} bytes are there)",
                where=f"{root}/{key}",
                likely="a damaged file; or, while it is written, a version of zarr that lays chunks out otherwise",
                hint="copy or push the store again, or remove it and make it again",
            )

    def read(self, root: Root, start: int, stop: int) -> NDArray[np.float32]:
        """Read ``array[:, start:stop]``: one range of each shard that is touched.

        Parameters
        ----------
        root
            Of the array.
        start, stop
            Within the array.

        Returns
        -------
        (n_rows, stop - start) float32

        Raises
        ------
        StorageError
            If a shard is missing, shorter than it must be, or a chunk is not what was written.
        """
        out = np.empty((self.shape[0], stop - start), np.float32)
        if start >= stop:
            return out
        parts = range(start // self.part, -(-stop // self.part))
        if len(parts) == 1 or root.is_local:
            for part in parts:
                self._read_part(root, part, start, out)
        else:
            with ThreadPoolExecutor(N_THREADS) as pool:
                list(pool.map(lambda part: self._read_part(root, part, start, out), parts))
        return out

    def _read_part(self, root: Root, part: int, start: int, out: NDArray[np.float32]) -> None:
        edge, key, n_bytes = part * self.part, self.key(part), self.chunk_bytes
        first = max(0, start - edge) // self.chunk
        last = min(-(-(start + out.shape[1] - edge) // self.chunk), self.n_chunks(part))
        try:
            data = np.frombuffer(root.get_range(key, first * n_bytes, last * n_bytes), np.uint8)
        except ObjectMissingError:
            raise StorageError(
                f"a part of {root.name} is missing",
                where=f"{root}/{key}",
                likely="it was deleted, or not copied",
                hint="copy or push the store again, or remove it and make it again",
            ) from None
        for number in range(first, last):
            chunk = data[(number - first) * n_bytes : (number - first + 1) * n_bytes]
            if google_crc32c.value(chunk[:-_CRC]) != int.from_bytes(chunk[-_CRC:].tobytes(), "little"):
                raise StorageError(
                    f"columns from {edge + number * self.chunk} are not what was written: their checksum differs",
                    where=f"{root}/{key}",
                    hint="copy or push the store again, or remove it and make it again",
                )
            values = chunk[:-_CRC].view("<f4").reshape(self.shape[0], self.chunk)
            at = edge + number * self.chunk - start
            begin, end = max(at, 0), min(at + self.chunk, out.shape[1])
            out[:, begin:end] = values[:, begin - at : end - at]
