"""Runs in any form: fMRIPrep's volumes, surfaces and grayordinates, extracted time series, plain arrays."""

from __future__ import annotations

from pathlib import Path

from vidbrain.bold.bids import (
    PREPROCESSED,
    RunFiles,
    choose_space,
    find_runs,
    refuse_absent,
    run_files,
    run_of,
    space_of,
)
from vidbrain.bold.forms.arrays import ENDS, array_names, array_series
from vidbrain.bold.forms.cifti import cifti_series
from vidbrain.bold.forms.gifti import surface_series
from vidbrain.bold.forms.nifti import series_facts
from vidbrain.bold.forms.series import Series
from vidbrain.errors import BoldError
from vidbrain.storage.atomic import PART

_EXTRACTED = "_timeseries"


def find_series(
    source: str | Path,
    *,
    space: str | None = None,
    subject: str | None = None,
    desc: str = PREPROCESSED,
    without: Path | None = None,
) -> list[RunFiles]:
    """Find every run, whatever its form.

    Parameters
    ----------
    source
        A folder of derivatives as fMRIPrep writes it, or one file of it; or a folder or file of arrays: HDF5 files
        with a data set a run
        (CNeuroMod's ``sub-01_…_timeseries.h5`` with ``ses-001/ses-001_task-shinobi_run-1_timeseries``), or ``.npy``,
        ``.npz`` and ``.zarr`` named by run (``sub-01_task-shinobi_run-1.npy``).
    space, subject, desc
        As in `vidbrain.bold.bids.find_runs`.
    without
        A folder whose arrays are no source: that of the store that is being made, which may lie inside.

    Returns
    -------
    list of RunFiles
        In the order of subject, session, task and run.

    Raises
    ------
    BoldError
        If there is no run, no such space or more than one, a run twice, or content that DataLad has not fetched.
    """
    source = Path(source)
    if source.is_file() and source.suffix not in ENDS:
        found = [run_files(source)]
        runs = choose_space(source, found, space=space, subject=subject, what="the file is of another")
        refuse_absent(source.parent, [source])
        return runs
    if source.is_file() or source.suffix == ".zarr":
        arrays = [source]
    elif source.is_dir():
        arrays = sorted(path for path in source.rglob("sub-*") if path.suffix in ENDS and PART not in path.name)
        inside = [path for path in arrays if any(parent.suffix == ".zarr" for parent in path.parents)]
        own = None if without is None else without.absolute()
        arrays = [path for path in arrays if path not in inside and own not in path.absolute().parents]
    else:
        arrays = []
    images = (path for end in ("_bold.nii*", ".func.gii", "tseries.nii") for path in source.rglob(f"sub-*{end}"))
    if not arrays or any(images):
        return find_runs(source, space=space, subject=subject, desc=desc)
    refuse_absent(source if source.is_dir() else source.parent, arrays)
    found = [files for path in arrays for files in _array_files(path)]
    what = f"no data set of a run in {', '.join(path.name for path in arrays[:4])}"
    return choose_space(source, found, space=space, subject=subject, what=what)


def _array_files(path: Path) -> list[RunFiles]:
    space = space_of(path.name)
    if path.suffix not in (".h5", ".hdf5"):
        beside = path.with_suffix(".json")
        sidecar = beside if beside.exists() else None
        return [RunFiles(run=run_of(path), space=space, bold=path, mask=None, confounds=None, sidecar=sidecar)]
    subject = next((part for part in path.name.split("_") if part.startswith("sub-")), None)
    if subject is None:
        raise BoldError(
            "the file's name says no subject", where=path, hint="call it sub-<label>_…_timeseries.h5, as CNeuroMod does"
        )
    return [
        RunFiles(
            run=run_of(path, f"{subject}_{name.rsplit('/', 1)[-1].removeprefix(f'{subject}_')}"),
            space=space,
            bold=path,
            mask=None,
            confounds=None,
            sidecar=None,
            member=name,
        )
        for name in array_names(path)
        if name.endswith(_EXTRACTED)
    ]


def open_series(files: RunFiles) -> Series:
    """Read the header of a run, whatever its form.

    Raises
    ------
    BoldError
        If the file is damaged or not what its name says.
    StorageError
        If it cannot be opened.
    """
    if files.form == "surface":
        return surface_series([path for path in (files.bold, files.right) if path is not None])
    if files.form == "cifti":
        return cifti_series(files.bold)
    return array_series(files.bold, files.member) if files.form == "array" else series_facts(files.bold)
