"""The part of a simulation that does not ask where its drivers come from: scanner, planted brain, files, truth.

A simulation is told what was shown (`Shown`): drivers on a fine time grid, one run at a time. It standardises them over
the whole data set, plants the brain of each subject, and writes every scan of every run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

import vidbrain
from vidbrain.bold.simulation.direct import is_stored, write_simulated_store
from vidbrain.bold.simulation.drivers import canonical_hrf, centred, haemodynamic, per_tr
from vidbrain.bold.simulation.grids import Grid
from vidbrain.bold.simulation.noise import without_drift
from vidbrain.bold.simulation.planted import PlantedBrain, private_weights, scaled_weights
from vidbrain.bold.simulation.scan import ScanRow, is_scanned, scan_fingerprint, scan_stem, write_scan
from vidbrain.bold.simulation.truth import KIND, write_drivers, write_subject, write_truth
from vidbrain.cluster import Client
from vidbrain.errors import BoldError, ConfigError
from vidbrain.progress import Progress
from vidbrain.records import RunKey
from vidbrain.storage.atomic import check_writable, read_json, sweep, write_json
from vidbrain.storage.info import is_done, read_info

TAIL_S = 6.0
"""The scan goes on this long after the last of what was shown, as the response does."""
REPEAT = 100
"""Repeat k of run r, counted from 0, is run ``r + k * REPEAT``."""


@dataclass(frozen=True, kw_only=True)
class SimulateConfig:
    """The simulated scanner and the planted brain."""

    tr_s: float = 1.49
    """Repetition time in seconds. Drivers of a feature set have theirs."""
    resolution_mm: int = 4
    """Edge of a voxel in millimetres (nilearn's MNI152 brain mask, resampled: 29,398 voxels at 4, 235,375 at 2)."""
    grid: int = 4
    """Cells along each side of the screen in which luminance, contrast and motion are measured."""
    samples: int = 32
    """At least so many boxes along each side of the frame, in which luminance is averaged before it is measured."""
    max_drivers: int = 32
    """Features that drive the brain; random mixtures of them where a feature set has more."""
    noise_share: float = 0.5
    """Share of voxels that carry no signal at all."""
    private_share: float = 0.0
    """Share of the signal's variance that each subject has for itself; 0 gives all subjects one brain."""
    hrf_peak_s: float = 5.0
    """Seconds from an impulse to the peak of its response: SPM's canonical response, stretched in time."""
    ceiling: float = 0.67
    """Median over the voxels of each planted kind of the correlation between noise-free signal and data."""
    ceiling_sd: float = 0.1
    """Spread of that correlation over planted voxels."""
    ar1: float = 0.3
    """Correlation of the noise between neighbouring volumes."""
    fwhm_mm: float = 6.0
    """Spatial smoothness of the noise, full width at half maximum in millimetres."""
    noise_percent: float = 1.0
    """Standard deviation of the noise in percent of a voxel's mean."""
    drift: float = 1.0
    """Slow drift, as a multiple of the usual (about one standard deviation of the noise); 0 for none."""
    physiology: float = 1.0
    """Global signals, as a multiple of the usual; 0 for none."""
    motion: float = 1.0
    """Head motion, as a multiple of the usual; 0 for none."""
    n_repeats: int = 1
    """Scans of each run, with the same stimulus and other noise: from two on there is a noise ceiling without a
    model. Repeat k of run r is run r + 100 k."""
    dtype: Literal["int16", "float32"] = "int16"
    """Type of the values in the NIfTI files."""
    seed: int = 0
    """Of the planted maps and of the noise."""

    def __post_init__(self) -> None:
        faults = []
        if self.tr_s <= 0:
            faults.append(f"tr_s must be positive, not {self.tr_s}")
        if not 2 <= self.resolution_mm <= 20:
            faults.append(f"resolution_mm must lie between 2 and 20, not {self.resolution_mm}")
        if self.grid < 1 or self.samples < 2 * self.grid:
            faults.append(f"samples {self.samples} must be at least twice grid {self.grid}, which is at least 1")
        if not 0 <= self.noise_share < 1:
            faults.append(f"noise_share must lie in [0, 1), not {self.noise_share}")
        if not 0 <= self.private_share <= 1:
            faults.append(f"private_share must lie between 0 and 1, not {self.private_share}")
        if not 2 <= self.hrf_peak_s <= 10:
            faults.append(f"hrf_peak_s must lie between 2 and 10, not {self.hrf_peak_s}")
        if not 0.1 <= self.ceiling <= 0.95:
            faults.append(f"ceiling must lie between 0.1 and 0.95, not {self.ceiling}")
        if not 0 <= self.ar1 < 1:
            faults.append(f"ar1 must lie in [0, 1), not {self.ar1}")
        if min(self.fwhm_mm, self.ceiling_sd) < 0 or self.noise_percent <= 0 or self.seed < 0:
            faults.append("fwhm_mm, ceiling_sd and seed cannot be negative, and noise_percent must be positive")
        if min(self.drift, self.physiology, self.motion) < 0:
            faults.append("drift, physiology and motion cannot be negative")
        if self.n_repeats < 1 or self.max_drivers < 1:
            faults.append("n_repeats and max_drivers are at least 1")
        if faults:
            raise ConfigError("; ".join(faults))


@dataclass(frozen=True, kw_only=True)
class Shown:
    """What was shown, and what of it drives the brain.

    Attributes
    ----------
    n_trs
        Volumes of each run that was shown, by label.
    scans
        The run that was shown in each scan, by the label of the scan: repeats and further subjects are scans, too.
    tr_s
        Repetition time.
    names
        Of the drivers.
    kinds : (n_drivers,) int8
        Kind of voxel that each drives.
    kind_names
        Names of the kinds by code; 0 is noise.
    fine
        Reads the drivers of a run on the fine time grid, (n_trs * BINS_PER_TR, n_drivers); NaN where nothing was shown.
    centre
        Mean of each driver, (n_drivers,).
    scale
        Gives each driver's scale from the mean square of the responses, (n_drivers,) to the same; infinity for a driver
        that never varies.
    plant
        Draws the brain that all subjects share from voxels (n, 3), affine (4, 4) and live drivers (n_drivers,).
    facts
        More for the truth's root record.
    """

    n_trs: Mapping[str, int]
    scans: Mapping[str, str]
    tr_s: float
    names: tuple[str, ...]
    kinds: NDArray[np.int8]
    kind_names: tuple[str, ...]
    fine: Callable[[str], NDArray[np.float64]]
    centre: Callable[[], NDArray[np.float64]]
    scale: Callable[[NDArray[np.float64]], NDArray[np.float64]]
    plant: Callable[[NDArray[np.int32], NDArray[np.float64], NDArray[np.bool_]], PlantedBrain]
    facts: Mapping[str, Any]

    @property
    def n_volumes(self) -> int:
        """Of all scans."""
        return sum(self.n_trs[run] for run in self.scans.values())


def repeated(runs: list[str], n_repeats: int) -> dict[str, str]:
    """Name the scans of runs that are repeated: label of each scan to the run that it shows.

    Raises
    ------
    BoldError
        If a repeat would have the name of another run.
    """
    scans = {}
    for run in runs:
        key = RunKey.parse(run)
        for repeat in range(n_repeats):
            number = key.run if repeat == 0 else (key.run or 0) + repeat * REPEAT
            label = replace(key, run=number).label
            if label in scans:
                raise BoldError(
                    f"repeat {repeat} of {run} would be called {label}, which is another run",
                    hint=f"repeats need run numbers below {REPEAT}",
                )
            scans[label] = run
    return scans


def is_simulated_already(
    out: Path, settings: Mapping[str, Any], made_from: Mapping[str, str], store: Path | None
) -> bool:
    """Whether truth and scans (or their BOLD store) are whole, made with these settings; refuses those of others."""
    truth = out / "truth"
    name = scan_fingerprint(settings, made_from)
    stored = store is not None and is_stored(store, name)
    if not is_done(truth, KIND, config=settings, made_from=made_from):
        return False
    if store is not None:
        return stored
    info = read_info(truth, KIND)
    return all(is_scanned(out, run, name, info["space"]) for run in info["runs"])


def begin(out: Path, shown: Shown, grid: Grid, config: SimulateConfig, store: Path | None) -> None:
    """Check the place, sweep what killed work left, and say what the folder is."""
    series_bytes = np.dtype(config.dtype).itemsize * len(grid.ijk) * shown.n_volumes
    check_writable(out, series_bytes if store is None else 0)
    truth = out / "truth"
    folders = {scan_stem(out, run).parent for run in shown.scans}
    for folder in (out, truth, truth / "fine", truth / "drivers", truth / "subjects", *folders):
        sweep(folder)
    value = {
        "Name": "SIMULATED fMRI in the layout of fMRIPrep: no brain was measured",
        "BIDSVersion": "1.8.0",
        "DatasetType": "derivative",
        "GeneratedBy": [
            {
                "Name": "vidbrain bold simulate",
                "Version": vidbrain.__version__,
                "Description": "SIMULATED, with planted maps (see truth/)",
            }
        ],
    }
    path = out / "dataset_description.json"
    if not path.is_file() or read_json(path) != value:
        write_json(path, value)


def write_simulation(
    out: Path,
    shown: Shown,
    grid: Grid,
    config: SimulateConfig,
    settings: Mapping[str, Any],
    made_from: Mapping[str, str],
    *,
    store: Path | None,
    client: Client,
    progress: Progress,
) -> dict[str, Any]:
    """Plant the brain and write every scan, or a BOLD store of them; what is whole already stays.

    Parameters
    ----------
    out
        Folder of the derivatives, as `begin` left it.
    shown
        What was shown.
    grid
        Voxels.
    config
        Scanner and brain.
    settings, made_from
        What decides the content, for the root record.
    store
        Folder of a BOLD store to write in place of NIfTI series.
    client, progress
        Who does the work, and who listens.

    Returns
    -------
    dict
        Facts for a summary.
    """
    truth = out / "truth"
    if not is_done(truth, KIND, config=settings, made_from=made_from):
        with threadpool_limits(1):  # as the workers do: sums must not depend on the number of cores
            _plant(truth, shown, grid, config, settings, made_from)
    name = scan_fingerprint(settings, made_from)
    row = ScanRow(
        root=out, run="", fingerprint=name, space=grid.space, seed=config.seed, ar1=config.ar1, fwhm_mm=config.fwhm_mm,
        noise_percent=config.noise_percent, drift=config.drift, physiology=config.physiology, motion=config.motion,
        dtype=config.dtype,
    )  # fmt: skip
    rows = [replace(row, run=run) for run in shown.scans]
    if store is not None:
        write_simulated_store(store, rows, client=client, progress=progress)
        return facts_of(truth)
    todo = [one for one in rows if not is_scanned(out, one.run, name, grid.space)]
    progress.start("simulate", len(rows), "runs", done=len(rows) - len(todo))
    for _ in client.run(write_scan, todo, weight=lambda one: float(shown.n_trs[shown.scans[one.run]])):
        progress.advance()
    progress.finish()
    return facts_of(truth)


def _plant(
    truth: Path,
    shown: Shown,
    grid: Grid,
    config: SimulateConfig,
    settings: Mapping[str, Any],
    made_from: Mapping[str, str],
) -> None:
    """Standardise the drivers over all runs, plant the brain, scale its signal, and write the truth."""
    names, kinds, centre = shown.names, shown.kinds, shown.centre()
    hrf = canonical_hrf(shown.tr_s, config.hrf_peak_s)
    covariance, volumes = np.zeros((len(names), len(names))), sum(shown.n_trs.values())
    series = {}
    for run in shown.n_trs:
        fine = centred(shown.fine(run), centre)
        series[run] = per_tr(fine), haemodynamic(fine, hrf)
        kept = without_drift(series[run][1], shown.tr_s)
        covariance += kept.T @ kept / volumes
    scale = shown.scale(np.diag(covariance))
    live = np.isfinite(scale)
    covariance /= scale[:, None] * scale
    for scan, run in shown.scans.items():
        drivers, convolved = series[run]
        write_drivers(
            truth, scan, drivers=drivers / scale, convolved=convolved / scale, tr_s=shown.tr_s, names=list(names)
        )
    brain = shown.plant(grid.ijk, grid.affine, live)
    weights = scaled_weights(brain, brain.weights, covariance).astype(np.float32)
    subjects = sorted({RunKey.parse(scan).subject for scan in shown.scans})
    for subject in subjects if config.private_share else []:
        own = private_weights(
            brain, covariance, grid.ijk, grid.affine, kinds=kinds, live=live, share=config.private_share,
            seed=config.seed, subject=subject,
        )  # fmt: skip
        write_subject(truth, subject, scaled_weights(brain, own, covariance).astype(np.float32))
    said = "shared by all subjects"
    if config.private_share:
        said = f"{config.private_share:g} of its variance is each subject's own (subjects/), this is what is shared"
    facts = {
        "simulated": True,
        "driver_names": list(names),
        "driver_kinds": kinds.tolist(),
        "driver_live": live.tolist(),
        "kinds": list(shown.kind_names),
        "runs": {scan: shown.n_trs[run] for scan, run in shown.scans.items()},
        "shown": dict(shown.scans),
        "subjects": subjects,
        "tr_s": shown.tr_s,
        "shape": list(grid.shape),
        "affine": grid.affine.tolist(),
        "space": grid.space,
        "n_voxels": len(grid.ijk),
        "n_by_kind": {name: int((brain.kind == code).sum()) for code, name in enumerate(shown.kind_names)},
        "reference": "volume k is sampled at (k + 1/2) TR; drivers are means over [k TR, (k + 1) TR)",
        "scale": "the drift-free response to each driver has unit variance over the data set (cells with little: less)",
        "signal": f"drivers (convolved) @ weights.T, in standard deviations of the noise; {said}",
        "ceiling_meaning": "r of signal and data after drift (periods above 128 s) is removed",
        "hrf": f"nilearn spm_hrf, stretched to a peak at {config.hrf_peak_s:g} s",
        **shown.facts,
    }
    write_truth(
        truth, kind=brain.kind, weights=weights, ceiling=brain.ceiling.astype(np.float32), ijk=grid.ijk,
        config=dict(settings), made_from=dict(made_from), facts=facts,
    )  # fmt: skip


def facts_of(truth: Path) -> dict[str, Any]:
    """What a person wants to know of a finished simulation."""
    info = read_info(truth, KIND)
    return {
        "simulated": True,
        "subjects": len(info["subjects"]),
        "runs": len(info["runs"]),
        "volumes": sum(info["runs"].values()),
        "tr_s": info["tr_s"],
        "voxels": info["n_voxels"],
        "voxels_by_kind": info["n_by_kind"],
        "drivers": int(np.sum(info["driver_live"])),
        "fingerprint": info["fingerprint"],
    }
