"""One run's recordings, decoded once and measured: the worker's part of a simulation that touches video."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from vidbrain.bold.simulation.drivers import BINS_PER_TR, driver_names, fine_series, frame_drivers
from vidbrain.records import Recording
from vidbrain.storage.zarrs import open_dataset, write_dataset


@dataclass(frozen=True, kw_only=True)
class MeasureRow:
    """What a worker needs to measure the recordings of one run."""

    root: Path
    run: str
    fingerprint: str
    recordings: tuple[Recording, ...]
    n_trs: int
    tr_s: float
    grid: int
    samples: int


def is_measured(row: MeasureRow) -> bool:
    """Whether a run's fine series are on disk, made from these recordings and settings."""
    path = row.root / "fine" / f"{row.run}.zarr"
    return (path / "zarr.json").is_file() and open_dataset(path).attrs.get("fingerprint") == row.fingerprint


def measure_run(row: MeasureRow) -> str:
    """Decode the recordings of a run and write their drivers on the fine time grid."""
    parts = (
        (
            frame_drivers(recording, grid=row.grid, samples=row.samples),
            float(recording.onset_s or 0.0),
            float(recording.duration_s or 0.0),
        )
        for recording in row.recordings
    )
    names = driver_names(row.grid)
    with threadpool_limits(1):
        fine = fine_series(parts, tr_s=row.tr_s, n_trs=row.n_trs, n_drivers=len(names))
    dataset = xr.Dataset(
        {"fine": (("bin", "driver"), fine)},
        attrs={"fingerprint": row.fingerprint, "driver_names": list(names), "bin_s": row.tr_s / BINS_PER_TR},
    )
    write_dataset(row.root / "fine" / f"{row.run}.zarr", dataset)
    return row.run


def read_fine(root: Path, run: str) -> NDArray[np.float64]:
    """Read what `measure_run` wrote, (n_trs * BINS_PER_TR, n_drivers); NaN where nothing was on the screen."""
    return np.asarray(open_dataset(root / "fine" / f"{run}.zarr")["fine"].values, np.float64)
