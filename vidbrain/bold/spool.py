"""Time in, voxels out: what was read volume by volume is handed on with all time of a part of the voxels.

Values lie part by part, and within a part volume by volume. So a block of time is written, and a part is read, as one
piece. Up to `HELD_BYTES` they are held in memory; a longer run goes through a temporary file.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vidbrain.bold.forms.series import Rectangle
from vidbrain.errors import BoldError
from vidbrain.storage.atomic import PART, as_storage_error

HELD_BYTES = 400_000_000
"""Most of a run that is in memory at once."""


class Spool:
    """Chosen columns of one run, filled by rectangles and read by parts.

    Parameters
    ----------
    n_trs
        Volumes.
    places : (n_columns,)
        Position of each column in the source.
    dtype
        Of the values.
    width
        Columns in a part.
    folder
        Where the temporary file lies while a run is longer than `held_bytes`; it is removed at the end.
    held_bytes
        Most bytes that are held in memory.
    """

    def __init__(
        self,
        n_trs: int,
        places: NDArray[np.int64],
        dtype: str,
        *,
        width: int,
        folder: Path,
        held_bytes: int = HELD_BYTES,
    ) -> None:
        self.n_trs, self.places, self.width = n_trs, places, width
        self.dtype = np.dtype(dtype).newbyteorder("=")
        self._filled = 0
        self._ranges: dict[tuple[int, int], list[tuple[int, NDArray[np.int64], NDArray[np.int64]]]] = {}
        n_bytes = n_trs * len(places) * self.dtype.itemsize
        self._held: NDArray[Any] | None = None
        self._file: Any = None
        if n_bytes <= held_bytes:
            self._held = np.empty(n_trs * len(places), self.dtype)
        else:
            try:
                self._file = tempfile.TemporaryFile(prefix=f"spool{PART}", dir=folder)  # noqa: SIM115 -- closed in __exit__
                os.posix_fallocate(self._file.fileno(), 0, n_bytes)
            except OSError as error:
                raise as_storage_error(error, folder) from error

    @property
    def is_held(self) -> bool:
        """Whether the run is in memory."""
        return self._held is not None

    def put(self, rectangle: Rectangle) -> None:
        """Keep the chosen columns of a rectangle."""
        n_rows, n_columns = rectangle.stored.shape
        for part, inside, source in self._parts_of(rectangle.first_column, n_columns):
            first, n = part * self.width, self._n_columns(part)
            chosen = np.take(rectangle.stored, source, axis=1)
            if len(inside) == n:
                self._write((self.n_trs * first) + rectangle.first_tr * n, chosen)
            else:
                block = self._read(self.n_trs * first + rectangle.first_tr * n, n_rows, n)
                block[:, inside] = chosen
                self._write(self.n_trs * first + rectangle.first_tr * n, block)
            self._filled += chosen.size

    def parts(self) -> Iterator[NDArray[Any]]:
        """All time of the columns, `width` columns at a time.

        Raises
        ------
        BoldError
            If the rectangles did not cover the series.
        """
        if self._filled != self.n_trs * len(self.places):
            raise BoldError(f"the source gave {self._filled} of {self.n_trs * len(self.places)} values")
        for part in range(-(-len(self.places) // self.width)):
            yield self._read(self.n_trs * part * self.width, self.n_trs, self._n_columns(part))

    def _n_columns(self, part: int) -> int:
        return min(self.width, len(self.places) - part * self.width)

    def _parts_of(self, first_column: int, n_columns: int) -> list[tuple[int, NDArray[np.int64], NDArray[np.int64]]]:
        """For each part: which of its columns a range of the source holds, and where in the range they lie."""
        key = first_column, n_columns
        if key not in self._ranges:
            here = np.flatnonzero((self.places >= first_column) & (self.places < first_column + n_columns))
            found = []
            for part in np.unique(here // self.width):
                mine = here[here // self.width == part]
                found.append((int(part), mine - part * self.width, self.places[mine] - first_column))
            self._ranges = {key: found}  # neighbouring rectangles share their columns
        return self._ranges[key]

    def _write(self, first: int, values: NDArray[Any]) -> None:
        flat = np.ascontiguousarray(values, self.dtype).reshape(-1)
        if self._held is not None:
            self._held[first : first + len(flat)] = flat
            return
        data, at = flat.view(np.uint8).data, first * self.dtype.itemsize
        while data:
            n = os.pwrite(self._file.fileno(), data, at)
            data, at = data[n:], at + n

    def _read(self, first: int, n_rows: int, n_columns: int) -> NDArray[Any]:
        n = n_rows * n_columns
        if self._held is not None:
            return self._held[first : first + n].reshape(n_rows, n_columns)
        out = np.empty(n, self.dtype)
        data, at = out.view(np.uint8).data, first * self.dtype.itemsize
        while data:
            got = os.preadv(self._file.fileno(), [data], at)
            if not got:
                raise BoldError("the temporary file of a run ends early", likely="the disk was full")
            data, at = data[got:], at + got
        return out.reshape(n_rows, n_columns)

    def __enter__(self) -> Spool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._held = None
        if self._file is not None:
            self._file.close()
