"""Clip numbers -> frames: reads only the parts of a segment that a clip touches."""

from __future__ import annotations

import os
import zlib
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vidbrain.errors import ShardError
from vidbrain.records import ClipSpec
from vidbrain.sharding.codecs import get_codec
from vidbrain.sharding.manifest import Manifest, shard_path
from vidbrain.sharding.parts import PART_FRAMES, cut
from vidbrain.storage.atomic import as_storage_error

OPEN_SHARDS = 64


class SegmentReader:
    """Reads frames of segments by position in the manifest.

    Files are opened when first needed and stay open, at most `OPEN_SHARDS` of them; the object may be used by one
    thread at a time and is safe to create in the process that uses it.

    Parameters
    ----------
    manifest
        Of frames.
    """

    def __init__(self, manifest: Manifest) -> None:
        table = manifest.segments
        self._root, self._codec = manifest.folder, get_codec(str(manifest.info["codec"]))
        self._height, self._width = manifest.height, manifest.width
        self._keys = table["key"].to_numpy()
        self._start = table["start_frame"].to_numpy(np.int64)
        self._stored = table["n_stored"].to_numpy(np.int64)
        self._shard = table["shard"].to_numpy(np.int64)
        self._offset = table["offset"].to_numpy(np.int64)
        self._parts: Sequence[NDArray[np.int64]] = table["parts"].tolist()
        self._checksums: Sequence[NDArray[np.int64] | None] = table["part_crc32"].tolist()
        self._files: OrderedDict[int, int] = OrderedDict()
        self.n_bytes = 0

    def read_into(self, segment: int, keep: range, out: NDArray[np.uint8]) -> None:
        """Decode frames straight to where they are wanted, from the parts that hold them.

        Parameters
        ----------
        segment
            Position in the manifest.
        keep
            Numbers of frames in the recording, ascending, all stored in this segment.
        out : (len(keep), H, W, 3) uint8
            Frame ``keep[i]`` is written at i.

        Raises
        ------
        ShardError
            If the bytes are damaged; names shard and key.
        """
        start = int(self._start[segment])
        inside = range(keep.start - start, keep.stop - start, keep.step)
        if not inside or inside[0] < 0 or inside[-1] >= self._stored[segment]:
            raise ValueError(f"frames {keep} are not stored in {self._keys[segment]}")
        low, high = inside[0] // PART_FRAMES, inside[-1] // PART_FRAMES + 1
        sizes = np.asarray(self._parts[segment], np.int64)
        at = int(self._offset[segment] + sizes[:low].sum())
        data = memoryview(self._pread(int(self._shard[segment]), at, int(sizes[low:high].sum())))
        try:
            self._decode(segment, low, data, inside, out)
        except ShardError as error:
            raise ShardError(
                error.message,
                where=f"{shard_path(self._root, int(self._shard[segment]))} {self._keys[segment]}",
                hint="run `vidbrain verify` on the data set",
            ) from error

    def _decode(self, segment: int, low: int, data: memoryview, inside: range, out: NDArray[np.uint8]) -> None:
        """Decode the frames `inside` the segment from the bytes of its parts `low` and following."""
        stored, sizes, checksums = int(self._stored[segment]), self._parts[segment], self._checksums[segment]
        bounds = np.concatenate([[0], np.cumsum(sizes[low:])])
        written = 0
        for number, wanted in cut(inside):
            if number >= len(sizes):
                raise ShardError(f"it stores {stored} frames in {len(sizes)} parts of {PART_FRAMES}")
            part = data[bounds[number - low] : bounds[number - low + 1]]
            # Before any decoder sees the bytes.
            if checksums is not None and zlib.crc32(part) != checksums[number]:
                raise ShardError(f"part {number} of the segment is damaged: its checksum differs from the index's")
            n_frames = self._codec.decode_into(part, out[written : written + len(wanted)], wanted)
            written += len(wanted)
            expected = min(PART_FRAMES, stored - number * PART_FRAMES)
            if n_frames != expected:
                raise ShardError(f"part {number} of the segment holds {n_frames} frames, the index says {expected}")

    def frames(self, segment: int, first: int, past: int) -> NDArray[np.uint8]:
        """Return frames ``[first, past)`` of the recording, all stored in this segment: uint8 (n, H, W, 3).

        Raises
        ------
        ShardError
            If the bytes are damaged; names shard and key.
        """
        return self._read(segment, range(first, past))

    def clip(self, segment: int, start: int, spec: ClipSpec) -> NDArray[np.uint8]:
        """Return a clip that begins at frame `start` of the recording: uint8 (T, H, W, 3)."""
        return self._read(segment, range(start, start + spec.span, spec.step))

    def _read(self, segment: int, keep: range) -> NDArray[np.uint8]:
        out = np.empty((len(keep), self._height, self._width, 3), np.uint8)
        self.read_into(segment, keep, out)
        return out

    def _pread(self, shard: int, offset: int, n_bytes: int) -> bytes:
        if shard not in self._files:
            path = shard_path(self._root, shard)
            try:
                self._files[shard] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except OSError as error:
                raise as_storage_error(error, path) from error
            if len(self._files) > OPEN_SHARDS:
                os.close(self._files.popitem(last=False)[1])
        self._files.move_to_end(shard)
        # Asked before reading: an absurd length in an index must not be allocated.
        lacking = offset + n_bytes - os.fstat(self._files[shard]).st_size
        data = b"" if lacking > 0 else os.pread(self._files[shard], n_bytes, offset)
        if len(data) != n_bytes:
            raise ShardError(
                f"the shard ends {max(lacking, n_bytes - len(data))} bytes too early",
                where=shard_path(self._root, shard),
                hint="run `vidbrain verify` on the data set",
            )
        self.n_bytes += n_bytes
        return data

    def close(self) -> None:
        """Close the files."""
        while self._files:
            os.close(self._files.popitem()[1])

    def __enter__(self) -> SegmentReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def manifest_root(root: str | Path) -> Path:
    """Accept a data set's folder, or its ``dataset.json``."""
    path = Path(root)
    return path.parent if path.name == "dataset.json" else path
