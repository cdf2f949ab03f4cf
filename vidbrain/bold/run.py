"""One run from its file to its store: read once, masked, cleaned and written a Zarr shard at a time.

Whatever the length of the run, memory holds a block of its source, the masked run or (when that is longer than
`vidbrain.bold.spool.HELD_BYTES`) a part of it, and one Zarr shard.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from vidbrain.bold.bids import RunFiles
from vidbrain.bold.clean import CleanConfig, Cleaner, Confounds, read_confounds, refuse_unsolvable
from vidbrain.bold.forms.nifti import SeriesFacts, smoothed
from vidbrain.bold.forms.series import Rectangle, Series, scaled
from vidbrain.bold.layout import Layout
from vidbrain.bold.parts import CHUNK_VOXELS, part_sha256, part_voxels, run_sha256
from vidbrain.bold.spool import HELD_BYTES, Spool
from vidbrain.bold.store import GRID
from vidbrain.config import to_mapping
from vidbrain.errors import BoldError, StorageError
from vidbrain.storage.info import FORMAT_VERSION
from vidbrain.storage.zarrs import Columns, open_dataset, write_by_columns
from vidbrain.video.clock import volume_times

_CLEAN_VALUES = 700_000
"""Values that are cleaned at once, in float64; they and nilearn's copies fit a core's cache."""
_SMOOTH_BLOCK = 8
_UNITS = {"zscore_sample": "standard deviations", "psc": "percent", "none": "as in the source"}


@dataclass(frozen=True, kw_only=True)
class IngestRow:
    """What a worker needs to ingest one run.

    Attributes
    ----------
    root
        Folder of the store.
    files, series
        The run, and where its values come from.
    tr_s, slice_time_ref
        Repetition time in seconds, and the share of it that the first volume stands for (`vidbrain.video.clock`).
    clean
        How it is cleaned.
    fingerprint
        Names everything that decides the store.
    """

    root: Path
    files: RunFiles
    series: Series
    tr_s: float
    slice_time_ref: float
    clean: CleanConfig
    fingerprint: str

    @property
    def path(self) -> Path:
        """Where the run's store lies."""
        return self.root / f"{self.files.run.label}.zarr"


def is_ingested(row: IngestRow) -> bool:
    """Whether a run's store is whole on disk and was made with exactly these settings and inputs."""
    try:
        return bool(open_dataset(row.path).attrs.get("fingerprint") == row.fingerprint)
    except StorageError:  # it is not there, or damaged: it is made again
        return False


def ingest_run(row: IngestRow) -> str:
    """Read, clean and write one run; the worker's part of `vidbrain.bold.ingest.ingest`.

    Returns
    -------
    str
        Label of the run.

    Raises
    ------
    BoldError
        If the source is damaged, or holds no signal at all.
    StorageError
        If the store cannot be written, or does not read back as it was written.
    """
    with threadpool_limits(1):  # sums must not depend on how many cores this process may use
        layout = Layout.from_dataset(open_dataset(row.root / GRID))
        smooths = row.clean.fwhm_mm > 0
        dtype = "<f8" if smooths else row.series.dtype
        n_trs = row.series.n_trs
        with Spool(
            n_trs, layout.column, dtype, width=part_voxels(n_trs), folder=row.root, held_bytes=HELD_BYTES
        ) as spool:
            for rectangle in _smoothed(row) if smooths else row.series.rectangles():
                spool.put(rectangle)
            # Of a simulated run the confounds are known once its volumes are.
            confounds = read_confounds(row.files, n_trs, row.tr_s, row.clean)
            if not row.clean.changes_nothing:
                refuse_unsolvable(confounds, row.files.bold)
            _write(row, layout, confounds, spool, is_scaled=smooths)
    return row.files.run.label


def _smoothed(row: IngestRow) -> Iterator[Rectangle]:
    series = row.series
    assert isinstance(series, SeriesFacts)
    for rectangle in series.rectangles():
        for first in range(0, len(rectangle.stored), _SMOOTH_BLOCK):
            values = scaled(series, rectangle.stored[first : first + _SMOOTH_BLOCK])
            volumes = np.stack([volume.reshape(series.shape, order="F") for volume in values])
            flat = [volume.ravel(order="F") for volume in smoothed(volumes, series.affine, row.clean.fwhm_mm)]
            yield Rectangle(rectangle.first_tr + first, 0, np.stack(flat))


def _write(row: IngestRow, layout: Layout, confounds: Confounds, spool: Spool, *, is_scaled: bool) -> None:
    n_trs, n_columns = row.series.n_trs, len(layout)
    step = max(64, _CLEAN_VALUES // n_trs)
    chunk = min(CHUNK_VOXELS, n_columns)
    cleaner = Cleaner(confounds, row.clean, row.tr_s)
    dead = np.empty(n_columns, bool)
    digests: list[str] = []

    def parts() -> Iterator[NDArray[np.float32]]:
        first = 0
        for stored in spool.parts():
            n_here = stored.shape[1]
            bold = np.empty((n_trs, n_here), np.float32)
            for start in range(0, n_here, step):
                here = slice(start, min(start + step, n_here))
                values = stored[:, here] if is_scaled else scaled(row.series, stored[:, here])
                bold[:, here], dead[first + here.start : first + here.stop] = _cleaned(row, values, cleaner)
            digests.append(part_sha256(bold))
            first += n_here
            yield bold

    def finish() -> xr.Dataset:
        if dead.all():
            raise BoldError(
                "every voxel of the series is constant or not finite",
                where=row.files.bold,
                likely="a damaged file, or a mask that does not fit",
                hint="fetch the file again, or leave the run out of the folder",
            )
        return _rest(row, layout, confounds, dead, digests)

    columns = Columns(
        name="bold",
        dims=("tr", "voxel"),
        shape=(n_trs, n_columns),
        chunk=chunk,
        part=min(part_voxels(n_trs), -(-n_columns // chunk) * chunk),
        attributes={
            "long_name": "BOLD signal, cleaned" if not row.clean.changes_nothing else "BOLD signal",
            "units": _UNITS[row.clean.standardize],
        },
    )
    write_by_columns(row.path, columns, parts(), finish)


def _cleaned(
    row: IngestRow, values: NDArray[np.float64], cleaner: Cleaner
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    largest = np.abs(values).max(initial=0.0, where=np.isfinite(values)) if _may_exceed_float32(row.series) else 0.0
    if largest > np.finfo(np.float32).max:
        raise BoldError(
            f"values up to {largest:.3g} do not fit into float32",
            where=row.files.bold,
            likely="a wrong scale factor, or a damaged file",
            hint="mend the file, or leave the run out of the folder",
        )
    cleaned, dead = cleaner(values)
    return cleaned.astype(np.float32), dead


def _may_exceed_float32(series: Series) -> bool:
    dtype = np.dtype(series.dtype)
    return (dtype.kind == "f" and dtype.itemsize > 4) or series.slope != 1.0 or series.inter != 0.0


def _rest(
    row: IngestRow, layout: Layout, confounds: Confounds, dead: NDArray[np.bool_], digests: list[str]
) -> xr.Dataset:
    """Everything of a run but its series."""
    run = row.files.run
    time_s = volume_times(row.series.n_trs, row.tr_s, row.slice_time_ref)
    return xr.Dataset(
        {
            "dead": xr.Variable("voxel", dead, {"long_name": "constant or not finite in this run"}),
            "kept": xr.Variable(
                "tr", confounds.kept, {"long_name": "volume was used; where it was not, bold is 0 and means nothing"}
            ),
            "confounds": xr.Variable(
                ("tr", "confound"),
                confounds.values,
                {"long_name": "what was regressed out, centred", "names": list(confounds.names)},
            ),
        },
        coords={
            "time_s": xr.Variable(
                "tr", time_s, {"long_name": "time that the volume stands for, on the run's clock", "units": "s"}
            ),
            **layout.variables(),
        },
        attrs={
            "run": run.label,
            "subject": run.subject,
            "session": run.session or "",
            "task": run.task,
            "run_number": -1 if run.run is None else run.run,
            "space": row.files.space,
            **layout.attributes(),
            "tr_s": row.tr_s,
            "slice_time_ref": row.slice_time_ref,
            "simulated": is_simulated_file(row.files),
            "source": row.files.bold.name,
            "source_form": row.series.form,
            "source_dtype": row.series.dtype,
            "slope": row.series.slope,
            "inter": row.series.inter,
            "confound_names": list(confounds.names),
            "clean": to_mapping(row.clean),
            "n_dead": int(dead.sum()),
            "n_kept": int(confounds.kept.sum()),
            "part_voxels": part_voxels(row.series.n_trs),
            "part_sha256": digests,
            "sha256": run_sha256(digests),
            "fingerprint": row.fingerprint,
            "format_version": FORMAT_VERSION,
        },
    )


def is_simulated_file(files: RunFiles) -> bool:
    """Whether the sidecar of a series says that it is simulated."""
    return files.sidecar is not None and "SIMULATED" in files.sidecar.read_text(encoding="utf-8", errors="replace")


def run_record(row: IngestRow) -> dict[str, Any]:
    """What the root record says of a run."""
    data = open_dataset(row.path)
    names = ("n_dead", "n_kept", "sha256", "source")
    return {
        "label": row.files.run.label,
        "subject": row.files.run.subject,
        "session": row.files.run.session,
        "task": row.files.run.task,
        "run": row.files.run.run,
        "n_trs": row.series.n_trs,
        **{name: data.attrs[name] for name in names},
    }
