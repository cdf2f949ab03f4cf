"""What ingest asks of a source, whatever the format: the header at once, the values in rectangles."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from vidbrain.bold.layout import Layout
from vidbrain.errors import BoldError

BLOCK_BYTES = 64 << 20
"""About as much of a source is read at once."""


@dataclass(frozen=True)
class Rectangle:
    """Neighbouring volumes of neighbouring columns, as the source stores them.

    Attributes
    ----------
    first_tr, first_column
        Where it begins in the series.
    stored : (n_trs, n_columns)
        In the type of the source, unscaled.
    """

    first_tr: int
    first_column: int
    stored: NDArray[Any]


class Series(Protocol):
    """One run in some format; small enough to travel to a worker.

    Attributes
    ----------
    path
        File that messages name.
    form
        Name of the format.
    n_trs, n_columns
        Volumes; voxels, vertices, grayordinates or parcels.
    tr_s
        Repetition time, or None where the file holds none.
    dtype
        Type in which the values are kept, as NumPy writes it (``">i2"``).
    slope, inter
        Value = slope * stored + inter.
    """

    @property
    def path(self) -> Path: ...  # noqa: D102 -- the attributes are described above
    @property
    def form(self) -> str: ...  # noqa: D102
    @property
    def n_trs(self) -> int: ...  # noqa: D102
    @property
    def n_columns(self) -> int: ...  # noqa: D102
    @property
    def tr_s(self) -> float | None: ...  # noqa: D102
    @property
    def dtype(self) -> str: ...  # noqa: D102
    @property
    def slope(self) -> float: ...  # noqa: D102
    @property
    def inter(self) -> float: ...  # noqa: D102

    def layout(self) -> Layout | None:
        """What the columns are; None for a volume, of which a mask must choose the voxels."""
        ...

    def rectangles(self) -> Iterator[Rectangle]:
        """Read all values once, in the order that the format favours."""
        ...


def scaled(series: Series, stored: NDArray[Any]) -> NDArray[np.float64]:
    """Values in float64 of what a source stores.

    Raises
    ------
    BoldError
        If a long double does not fit.
    """
    if stored.dtype.itemsize > 8 and (np.isfinite(stored) & (np.abs(stored) > np.finfo(np.float64).max)).any():
        raise BoldError(
            "long doubles of the series do not fit into float64", where=series.path, likely="a damaged file"
        )
    values = stored.astype(np.float64)
    if series.slope != 1.0:
        values *= series.slope
    if series.inter != 0.0:
        values += series.inter
    return values


def rows_at_once(n_columns: int, dtype: str) -> int:
    """Volumes that `BLOCK_BYTES` hold."""
    return max(1, BLOCK_BYTES // max(1, n_columns * np.dtype(dtype).itemsize))
