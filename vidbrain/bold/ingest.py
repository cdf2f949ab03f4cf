"""fMRIPrep derivatives become a BOLD store: everything is checked, then every run is read once, cleaned, written whole.

A series is kept in the type of its file while it is read; only a block of voxels at a time is float64.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from vidbrain.bold.bids import (
    RunFiles,
    description,
    events_above,
    events_end,
    find_runs,
    identity,
    is_simulated,
    refuse_missing,
)
from vidbrain.bold.checks import agreed_tr_s, common_voxels, refuse_other_grids, refuse_short
from vidbrain.bold.clean import (
    CleanConfig,
    Confounds,
    clean_series,
    dead_series,
    read_confounds,
    refuse_unsolvable,
)
from vidbrain.bold.nifti import SeriesFacts, read_blocks, series_facts
from vidbrain.bold.store import KIND, array_sha256
from vidbrain.bold.voxels import flat_index
from vidbrain.cluster import Client
from vidbrain.config import fingerprint, to_mapping
from vidbrain.errors import BoldError, StorageError
from vidbrain.progress import SILENT, Progress
from vidbrain.storage.atomic import check_writable, replacing, sweep
from vidbrain.storage.info import is_done, read_info, write_info
from vidbrain.storage.zarrs import open_dataset, write_dataset

CHUNK_VOXELS = 1024
"""Voxels in a chunk; a chunk holds the whole run."""
SHARD_VOXELS = 16384
"""Voxels in a shard (a file); one task writes whole shards."""
_GRID = "grid.zarr"
_CLEAN_BLOCK = 4096


@dataclass(frozen=True, kw_only=True)
class IngestConfig:
    """Which series are taken and how they are cleaned."""

    space: str | None = None
    """Space to take where there are several, for instance `MNI152NLin2009cAsym` or `T1w`."""
    subject: str | None = None
    """One subject's label; default all, who then need one common grid."""
    tr_s: float | None = None
    """Repetition time in seconds; must agree with headers and sidecars where they hold one."""
    clean: CleanConfig = field(default_factory=CleanConfig)
    """Cleaning."""


@dataclass(frozen=True, kw_only=True)
class IngestRow:
    """What a worker needs to ingest one run."""

    root: Path
    files: RunFiles
    facts: SeriesFacts
    tr_s: float
    clean: CleanConfig
    fingerprint: str


def ingest(
    source: str | Path,
    out: str | Path,
    config: IngestConfig | None = None,
    *,
    mask: str | Path | None = None,
    events: str | Path | None = None,
    client: Client | None = None,
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Turn fMRIPrep derivatives into a BOLD store.

    Parameters
    ----------
    source
        Folder of derivatives.
    out
        Folder of the store.
    config
        Which series, and how they are cleaned.
    mask
        3-D image on the grid of the series, non-zero inside; default the voxels that every run's brain mask holds.
    events
        BIDS tree whose events the series must cover; default the tree in which `source` lies under ``derivatives/``.
    client
        Who does the work.
    progress
        Who listens.

    Returns
    -------
    dict
        Facts for a summary.

    Raises
    ------
    BoldError
        If anything is missing, damaged or does not fit; whatever headers and tables show is known before work starts.
    ResumeError
        If the store was made with other settings.
    """
    config = config or IngestConfig()
    client = client or Client()
    source, out = Path(source), Path(out)
    mask_path = None if mask is None else Path(mask)

    runs = find_runs(source, space=config.space, subject=config.subject)
    refuse_missing(runs, need_mask=mask_path is None, need_confounds=bool(config.clean.components))
    facts = [series_facts(files.bold) for files in runs]
    refuse_other_grids(facts)
    tr_s = agreed_tr_s(runs, facts, config.tr_s)
    tree = Path(events) if events is not None else events_above(source)
    if tree is not None:
        refuse_short(runs, facts, tr_s, events_end(tree))
    for files, series in zip(runs, facts, strict=True):
        refuse_unsolvable(read_confounds(files, series.n_trs, tr_s, config.clean), files.bold)

    settings = to_mapping(config)
    made_from = {files.run.label: _inputs_of(files) for files in runs}
    if mask_path is not None:
        made_from["mask"] = identity(mask_path)
    if is_done(out, KIND, config=settings, made_from=made_from):
        progress.note(f"the BOLD store is there already: {out}")
        return summary(read_info(out, KIND))
    ijk = common_voxels([mask_path] if mask_path else [f.mask for f in runs if f.mask is not None], facts[0])
    check_writable(out, int(4.4 * len(ijk) * sum(series.n_trs for series in facts)))
    sweep(out)
    _write_grid(out, ijk)

    name = fingerprint(KIND, settings, made_from)
    rows = [
        IngestRow(root=out, files=files, facts=series, tr_s=tr_s, clean=config.clean, fingerprint=name)
        for files, series in zip(runs, facts, strict=True)
    ]
    todo = [row for row in rows if not is_ingested(row)]
    progress.start("ingest", len(rows), "runs", done=len(rows) - len(todo))
    for _ in client.run(ingest_run, todo, weight=lambda row: float(row.facts.n_trs)):
        progress.advance()
    progress.finish()

    info = write_info(
        out,
        KIND,
        config=settings,
        made_from=made_from,
        facts={
            "simulated": is_simulated(source),
            "source": str(description(source).get("Name", "unnamed derivatives")),
            "space": runs[0].space,
            "shape": list(facts[0].shape),
            "affine": [list(row) for row in facts[0].affine],
            "tr_s": tr_s,
            "n_voxels": len(ijk),
            "voxel_order": "Morton curve",
            "dead_voxels": "constant or not finite in a run: kept as zeros, flagged `dead` in that run",
            "events_checked": tree is not None,
            "runs": [_run_record(row) for row in rows],
        },
    )
    return summary(info)


def summary(info: dict[str, Any]) -> dict[str, Any]:
    """What a person wants to know of a store, from its root record."""
    return {
        "simulated": info["simulated"],
        "runs": len(info["runs"]),
        "volumes": sum(run["n_trs"] for run in info["runs"]),
        "voxels": info["n_voxels"],
        "dead_voxels": max(run["n_dead"] for run in info["runs"]),
        "tr_s": info["tr_s"],
        "space": info["space"],
        "confounds": info["config"]["clean"]["confounds"],
        "high_pass": info["config"]["clean"]["high_pass"],
        "fingerprint": info["fingerprint"],
    }


def _inputs_of(files: RunFiles) -> str:
    paths = (files.bold, files.mask, files.confounds)
    return fingerprint([None if path is None else [path.name, identity(path)] for path in paths])


def _write_grid(out: Path, ijk: NDArray[np.int32]) -> None:
    dataset = xr.Dataset({axis: ("voxel", column) for axis, column in zip("ijk", ijk.T, strict=True)})
    write_dataset(out / _GRID, dataset)


def _read_grid(out: Path) -> NDArray[np.int32]:
    data = open_dataset(out / _GRID)
    return np.stack([data[axis].values for axis in "ijk"], axis=1)


def _run_path(row: IngestRow) -> Path:
    return row.root / f"{row.files.run.label}.zarr"


def is_ingested(row: IngestRow) -> bool:
    """Whether a run's store is whole on disk and was made with exactly these settings and inputs."""
    path = _run_path(row)
    return (path / "zarr.json").is_file() and open_dataset(path).attrs.get("fingerprint") == row.fingerprint


def ingest_run(row: IngestRow) -> str:
    """Read, clean and write one run; the worker's part of `ingest`."""
    with threadpool_limits(1):  # sums must not depend on how many cores this process may use
        ijk = _read_grid(row.root)
        confounds = read_confounds(row.files, row.facts.n_trs, row.tr_s, row.clean)
        raw = read_voxels(row.facts, flat_index(ijk, row.facts.shape))
        bold, dead = clean_run(raw, row.facts, confounds, row.clean, row.tr_s)
        del raw
    if dead.all():
        raise BoldError(
            "every voxel of the series is constant or not finite",
            where=row.files.bold,
            likely="a damaged file, or a mask that does not fit",
            hint="fetch the file again, or leave the run out of the folder",
        )
    _write_run(row, _run_dataset(row, ijk, bold, dead, confounds))
    return row.files.run.label


def read_voxels(facts: SeriesFacts, places: NDArray[np.int64]) -> NDArray[Any]:
    """Read the voxels of a mask in one pass through the file.

    Parameters
    ----------
    facts
        Of the series.
    places : (n_voxels,)
        In the flattened volume (`vidbrain.bold.voxels.flat_index`).

    Returns
    -------
    (n_trs, n_voxels)
        As stored: unscaled, in the type of the file (in this machine's byte order).
    """
    out = np.empty((facts.n_trs, len(places)), np.dtype(facts.dtype).newbyteorder("="))
    for first, stored in read_blocks(facts):
        out[first : first + len(stored)] = stored[:, places]
    return out


def clean_run(
    raw: NDArray[Any], facts: SeriesFacts, confounds: Confounds, config: CleanConfig, tr_s: float
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Scale and clean stored values block by block of voxels.

    Parameters
    ----------
    raw : (n_trs, n_voxels)
        As stored.
    facts
        With slope and intercept.
    confounds, config, tr_s
        As in `vidbrain.bold.clean.clean_series`.

    Returns
    -------
    bold : (n_trs, n_voxels) float32
        Zeros where a voxel is dead or a volume is not kept.
    dead : (n_voxels,) bool
        Constant or not finite.
    """
    bold = np.empty(raw.shape, np.float32)
    dead = np.empty(raw.shape[1], bool)
    for first in range(0, raw.shape[1], _CLEAN_BLOCK):
        voxels = slice(first, first + _CLEAN_BLOCK)
        series = facts.scaled(raw[:, voxels])
        dead[voxels] = dead_series(series[confounds.kept])
        bold[:, voxels] = clean_series(series, confounds, config, tr_s)
    return bold, dead


def _run_dataset(
    row: IngestRow, ijk: NDArray[np.int32], bold: NDArray[np.float32], dead: NDArray[np.bool_], confounds: Confounds
) -> xr.Dataset:
    run = row.files.run
    return xr.Dataset(
        {
            "bold": (("tr", "voxel"), bold),
            "dead": ("voxel", dead),
            "kept": ("tr", confounds.kept),
            "confounds": (("tr", "confound"), confounds.values),
            **{axis: ("voxel", column) for axis, column in zip("ijk", ijk.T, strict=True)},
            "time_s": ("tr", (np.arange(len(bold)) + 0.5) * row.tr_s),
        },
        attrs={
            "run": run.label,
            "subject": run.subject,
            "session": run.session or "",
            "task": run.task,
            "space": row.files.space,
            "source": row.files.bold.name,
            "simulated": is_simulated_file(row.files),
            "tr_s": row.tr_s,
            "affine": [list(line) for line in row.facts.affine],
            "shape": list(row.facts.shape),
            "slope": row.facts.slope,
            "inter": row.facts.inter,
            "stored_dtype": row.facts.dtype,
            "confound_names": list(confounds.names),
            "clean": to_mapping(row.clean),
            "n_dead": int(dead.sum()),
            "n_kept": int(confounds.kept.sum()),
            "sha256": array_sha256(bold),
            "fingerprint": row.fingerprint,
        },
    )


def is_simulated_file(files: RunFiles) -> bool:
    """Whether the sidecar of a series says that it is simulated."""
    return files.sidecar is not None and "SIMULATED" in files.sidecar.read_text(encoding="utf-8", errors="replace")


def _write_run(row: IngestRow, dataset: xr.Dataset) -> None:
    """Write a run's store, read it back, compare, and only then give it its name."""
    n_trs, n_voxels = dataset["bold"].shape
    chunk = min(CHUNK_VOXELS, n_voxels)
    shard = min(SHARD_VOXELS, -(-n_voxels // chunk) * chunk)
    final = _run_path(row)
    with replacing(final) as part:
        write_dataset(part, dataset, chunks={"bold": (n_trs, chunk)}, shards={"bold": (n_trs, shard)})
        with open_dataset(part) as written:
            if array_sha256(written["bold"].values) != dataset.attrs["sha256"]:
                raise StorageError(
                    f"what was written for {row.files.run} does not read back as it was",
                    where=final,
                    likely="a failing disk or file system",
                )


def _run_record(row: IngestRow) -> dict[str, Any]:
    data = open_dataset(_run_path(row))
    names = ("n_dead", "n_kept", "sha256", "source")
    return {
        "label": row.files.run.label,
        "subject": row.files.run.subject,
        "session": row.files.run.session,
        "task": row.files.run.task,
        "run": row.files.run.run,
        "n_trs": row.facts.n_trs,
        **{name: data.attrs[name] for name in names},
    }
