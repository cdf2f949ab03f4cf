"""Which segments of each shard may be wanted: where they lie, and whether a file holds them."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import pandas as pd

from vidbrain.storage.objects import coalesce


class Wanted:
    """Segments by shard.

    Parameters
    ----------
    rows
        Of the index, those that may be wanted.
    """

    def __init__(self, rows: pd.DataFrame) -> None:
        shard = rows["shard"].to_numpy(np.int64)
        order = np.argsort(shard, kind="stable")
        self._columns = [rows[name].to_numpy(np.int64)[order] for name in ("offset", "n_bytes", "crc32")]
        self._bounds = np.searchsorted(shard[order], np.arange(shard.max() + 2))

    def spans(self, shard: int) -> list[tuple[int, int]]:
        """First and past the last byte of what is wanted of a shard; neighbours joined."""
        offset, n_bytes, _ = (column[self._slice(shard)] for column in self._columns)
        return coalesce(list(zip(offset.tolist(), (offset + n_bytes).tolist(), strict=True)))

    def are_in(self, path: Path, shard: int) -> bool:
        """Whether a file holds them at their places, by their checksums."""
        offset, n_bytes, crc32 = (column[self._slice(shard)].tolist() for column in self._columns)
        with path.open("rb") as handle:
            for at, length, expected in zip(offset, n_bytes, crc32, strict=True):
                handle.seek(at)
                if zlib.crc32(handle.read(length)) != expected:
                    return False
        return True

    def _slice(self, shard: int) -> slice:
        return slice(self._bounds[shard], self._bounds[shard + 1])
