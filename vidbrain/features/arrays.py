"""Features that other tools have made: a file of rows with times for each run enters, timed rows leave.

A folder holds a file for each run, named by its BIDS entities (``sub-01_ses-001_task-shinobi_run-1…``):

- ``NAME.npy`` (n, n_features) with ``NAME.times.npy`` beside it;
- ``NAME.npz`` with ``features`` and ``times_s``;
- ``NAME.parquet`` with a column ``time_s`` (and ``end_s``, where rows have ends of their own); the others are features;
- ``NAME.zarr``, a group with the arrays ``features`` and ``times_s``.

Times are seconds on the run's clock, (n,) or (n, 2). Of (n,) each is the begin of a row, which holds until the next
one begins, and no longer than the median distance between rows: a gap stays a gap. Of (n, 2) they are begins and ends.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import zarr
from numpy.typing import ArrayLike, NDArray

from vidbrain.errors import AlignmentError, ConfigError, ModelError, StorageError
from vidbrain.features.timed import TimedRows
from vidbrain.records import RunKey

LAYER = "arrays.values"
SUFFIXES = (".npy", ".npz", ".parquet", ".zarr")
TIMES = ".times.npy"


@dataclass(frozen=True)
class ArraySource:
    """A folder of arrays with times.

    Attributes
    ----------
    folder
        See the module.
    """

    folder: Path
    name: str = "arrays"

    @property
    def settings(self) -> dict[str, Any]:
        """None: the files decide all."""
        return {}

    @cached_property
    def files(self) -> dict[str, Path]:
        """File of each run by its label.

        Raises
        ------
        AlignmentError
            If there is no file, a name is no run's, or two files are of one run.
        """
        found: dict[str, Path] = {}
        entries = sorted(self.folder.iterdir()) if self.folder.is_dir() else []
        for path in entries:
            if path.suffix not in SUFFIXES or path.name.endswith(TIMES):
                continue
            try:
                label = RunKey.parse(path.name.removesuffix(path.suffix)).label
            except ConfigError as error:
                raise AlignmentError(error.message, where=path, hint="name each file by its run") from error
            if label in found:
                both = f"{found[label].name} and {path.name}"
                raise AlignmentError(f"two files are of {label}: {both}", where=self.folder)
            found[label] = path
        if not found:
            raise AlignmentError(
                f"there is no file of rows ({', '.join(SUFFIXES)})",
                where=self.folder,
                hint="write one for each run, for instance sub-01_ses-001_task-shinobi_run-1.npz",
            )
        return found

    @cached_property
    def feature_names(self) -> dict[str, list[str]]:
        """Columns of the first run's file.

        Raises
        ------
        AlignmentError, ModelError, StorageError
            As `read` does.
        """
        first = min(self.files)
        names, _, _ = _open(self.files[first])
        return {LAYER: names}

    @cached_property
    def runs(self) -> dict[str, float]:
        """Seconds at which the last row of each run ends."""
        return {run: float(intervals(_open(path)[2], path)[:, 1].max()) for run, path in self.files.items()}

    def read(self, run: str) -> TimedRows:
        """Rows of a run.

        Raises
        ------
        AlignmentError
            If it has no times, or they do not fit the rows.
        ModelError
            If its columns are not those of the other runs, or no numbers.
        StorageError
            If the file cannot be read.
        """
        path = self.files[run]
        names, values, times = _open(path)
        times_s = intervals(times, path)
        if names != self.feature_names[LAYER]:
            raise ModelError(
                f"{run} has {len(names)} features, {min(self.files)} has {len(self.feature_names[LAYER])}, or others",
                where=path,
            )
        if len(values) != len(times_s):
            raise AlignmentError(f"{len(values)} rows have {len(times_s)} times", where=path)
        if values.dtype.kind not in "fiub":
            raise ModelError(f"the rows are of type {values.dtype}, not numbers", where=path)
        return TimedRows({LAYER: values}, times_s)

    def fingerprint(self, run: str) -> str:
        """Of the bytes on disk."""
        digest = hashlib.sha256()
        for path in _bytes_of(self.files[run]):
            with path.open("rb") as file:
                digest.update(f"{path.name} {path.stat().st_size}".encode())
                for block in iter(lambda: file.read(1 << 22), b""):
                    digest.update(block)
        return digest.hexdigest()[:16]


def intervals(times: ArrayLike, where: Path) -> NDArray[np.float64]:
    """Turn begins, (n,), or begins and ends, (n, 2), into ``[begin, end)`` of each row, (n, 2).

    Raises
    ------
    AlignmentError
        If there is none, they are not finite, do not ascend, or end before they begin.
    """
    given = np.asarray(times, np.float64)
    if not (given.ndim == 1 and len(given) > 1) and not (given.ndim == 2 and given.shape[1] == 2 and len(given)):
        raise AlignmentError(
            f"times have the shape {given.shape}",
            where=where,
            hint="give a begin for each of two rows or more, (n,), or begins and ends, (n, 2)",
        )
    finite = np.isfinite(given.reshape(len(given), -1)).all(1)
    if not finite.all():
        raise AlignmentError(f"time {finite.argmin()} is not a number", where=where)
    begins = given if given.ndim == 1 else given[:, 0]
    steps = np.diff(begins)
    fault = ""
    if (steps <= 0).any():
        row = int((steps <= 0).argmax()) + 1
        fault = f"row {row} begins at {begins[row]:g} s, the one before it at {begins[row - 1]:g} s"
    usual = np.median(steps) if len(steps) else 0.0
    ends = begins + np.append(np.minimum(steps, usual), usual) if given.ndim == 1 else given[:, 1]
    if not fault and (ends <= begins).any():
        row = int((ends <= begins).argmax())
        fault = f"row {row} ends at {ends[row]:g} s, before it begins at {begins[row]:g} s"
    if fault:
        raise AlignmentError(
            f"times do not ascend: {fault}",
            where=where,
            likely="they are not in time order, or in frames of several recordings that each begin at 0",
            hint="give seconds on the clock of the run, which begins with its first volume",
        )
    return np.stack([begins, ends], axis=1)


def _open(path: Path) -> tuple[list[str], NDArray[Any], NDArray[Any]]:
    """Names of the features, rows (n, n_features) and times, as they are in the file."""
    try:
        if path.suffix == ".parquet":
            table = pd.read_parquet(path)
            clock = [name for name in ("time_s", "end_s") if name in table]
            if "time_s" not in clock:
                raise _timeless(path, "a column time_s")
            values = table.drop(columns=clock)
            times = table["time_s"] if clock == ["time_s"] else table[clock]
            return [str(name) for name in values], values.to_numpy(), times.to_numpy()
        rows, pair = _pair(path)
    except (OSError, ValueError, KeyError) as error:
        raise StorageError(f"the rows cannot be read: {error}", where=path) from error
    if rows.ndim != 2:
        raise ModelError(f"rows have the shape {rows.shape}, not (n, n_features)", where=path)
    return [f"feature_{k}" for k in range(rows.shape[1])], rows, pair


def _pair(path: Path) -> tuple[NDArray[Any], NDArray[Any]]:
    if path.suffix == ".npy":
        beside = path.with_name(path.name.removesuffix(".npy") + TIMES)
        if not beside.is_file():
            raise _timeless(path, f"{beside.name} beside it")
        # Mapped: planning asks for times and shapes alone.
        return np.load(path, mmap_mode="r", allow_pickle=False), np.load(beside, allow_pickle=False)
    found: Any = np.load(path, allow_pickle=False) if path.suffix == ".npz" else zarr.open_group(path, mode="r")
    if "times_s" not in found:
        raise _timeless(path, "an array times_s in it")
    return np.asarray(found["features"]), np.asarray(found["times_s"])


def _timeless(path: Path, what: str) -> AlignmentError:
    return AlignmentError(
        "these rows have no times: nobody can say which volume they belong to",
        where=path,
        hint=f"give {what}: seconds on the clock of the run, one for each row",
    )


def _bytes_of(path: Path) -> Iterator[Path]:
    if path.is_dir():
        yield from sorted(inner for inner in path.rglob("*") if inner.is_file())
        return
    yield path
    if path.suffix == ".npy":
        yield path.with_name(path.name.removesuffix(".npy") + TIMES)
