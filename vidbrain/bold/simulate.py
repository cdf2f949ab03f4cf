"""Simulated fMRI of real game play: files as a scanner and fMRIPrep would leave them, and the planted truth beside.

First every recording is decoded once and measured; then, knowing the whole data set, the drivers are standardised and
the brain is planted; then every run is written. Each step goes on where it was killed.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

import vidbrain
from vidbrain.bold.bids import identity
from vidbrain.bold.drivers import (
    BINS_PER_TR,
    BUTTONS,
    EVENTS,
    KINDS,
    centred,
    driver_kinds,
    driver_names,
    haemodynamic,
    per_tr,
    scaling,
)
from vidbrain.bold.measure import MeasureRow, is_measured, measure_run, read_fine
from vidbrain.bold.noise import cosine_drifts
from vidbrain.bold.planted import PlantedBrain, plant
from vidbrain.bold.scan import SPACE, ScanRow, is_scanned, scan_stem, write_scan
from vidbrain.bold.screen import CHANNELS
from vidbrain.bold.truth import KIND, write_drivers, write_truth
from vidbrain.bold.voxels import ordered_voxels
from vidbrain.cluster import Client
from vidbrain.config import fingerprint, to_mapping
from vidbrain.errors import BoldError, ConfigError
from vidbrain.progress import SILENT, Progress
from vidbrain.records import Recording
from vidbrain.storage.atomic import check_writable, read_json, sweep, write_json
from vidbrain.storage.info import is_done, read_info
from vidbrain.video.clock import n_trs_covered
from vidbrain.video.gamelogs import GameEvent, read_events
from vidbrain.video.sources import find_recordings

DERIVATIVE = Path("derivatives") / "simulated-fmriprep"
"""Where the simulation lies, below the BIDS tree."""
TAIL_S = 6.0
"""The scan goes on this long after the last event, as the response does."""


@dataclass(frozen=True, kw_only=True)
class SimulateConfig:
    """The simulated scanner and the planted brain."""

    tr_s: float = 1.49
    """Repetition time in seconds."""
    resolution_mm: int = 4
    """Edge of a voxel in millimetres (nilearn's MNI152 brain mask, resampled)."""
    grid: int = 4
    """Cells along each side of the screen in which luminance, contrast and motion are measured."""
    samples: int = 32
    """At least so many boxes along each side of the frame, in which luminance is averaged before it is measured."""
    noise_share: float = 0.5
    """Share of voxels that carry no signal at all."""
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
        if not 0.1 <= self.ceiling <= 0.95:
            faults.append(f"ceiling must lie between 0.1 and 0.95, not {self.ceiling}")
        if not 0 <= self.ar1 < 1:
            faults.append(f"ar1 must lie in [0, 1), not {self.ar1}")
        if min(self.fwhm_mm, self.ceiling_sd) < 0 or self.noise_percent <= 0 or self.seed < 0:
            faults.append("fwhm_mm, ceiling_sd and seed cannot be negative, and noise_percent must be positive")
        if faults:
            raise ConfigError("; ".join(faults))


def simulate(
    bids_root: str | Path,
    out: str | Path | None = None,
    config: SimulateConfig | None = None,
    *,
    client: Client | None = None,
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Write simulated fMRIPrep derivatives for every run of a replayed BIDS tree.

    Parameters
    ----------
    bids_root
        Tree with events, and replays in ``derivatives/replay``.
    out
        Default ``<bids_root>/derivatives/simulated-fmriprep``.
    config
        Scanner and planted brain.
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
        If a recording of a run has no replayed video, or no run has events.
    ResumeError
        If the output was made with other settings.
    """
    config = config or SimulateConfig()
    client = client or Client()
    bids_root = Path(bids_root)
    out = bids_root / DERIVATIVE if out is None else Path(out)
    truth = out / "truth"

    played = _recordings_by_run(bids_root)
    events = _events_by_run(bids_root)
    n_trs = {
        run: n_trs_covered(max(e.onset_s + e.duration_s for e in rows) + TAIL_S, config.tr_s)
        for run, rows in events.items()
    }
    made_from = {run: _inputs_of(played[run], events[run]) for run in events}
    settings = to_mapping(config)
    if is_done(truth, KIND, config=settings, made_from=made_from):
        rows = _scan_rows(out, config, made_from, list(events))
        if all(is_scanned(out, row.run, row.fingerprint) for row in rows):
            progress.note(f"simulated fMRI is there already: {out}")
            return _facts(truth)
    check_writable(out, 2 * 60_000 * sum(n_trs.values()) * (4 // config.resolution_mm or 1) ** 3)
    for folder in (out, truth, truth / "fine", truth / "drivers", *{scan_stem(out, run).parent for run in events}):
        sweep(folder)
    _describe(out)

    measure_rows = [
        MeasureRow(
            root=truth,
            run=run,
            fingerprint=fingerprint("fine", made_from[run], n_trs[run], config.tr_s, config.grid, config.samples),
            recordings=tuple(played[run]),
            n_trs=n_trs[run],
            tr_s=config.tr_s,
            grid=config.grid,
            samples=config.samples,
        )
        for run in events
    ]
    todo = [row for row in measure_rows if not is_measured(row)]
    progress.start("measure", len(measure_rows), "runs", done=len(measure_rows) - len(todo))
    for _ in client.run(measure_run, todo, weight=lambda row: float(row.n_trs)):
        progress.advance()
    progress.finish()

    if not is_done(truth, KIND, config=settings, made_from=made_from):
        with threadpool_limits(1):  # as the workers do: sums must not depend on the number of cores
            _plant(truth, config, n_trs, events, made_from)

    scan_rows = _scan_rows(out, config, made_from, list(events))
    todo_scans = [row for row in scan_rows if not is_scanned(out, row.run, row.fingerprint)]
    progress.start("simulate", len(scan_rows), "runs", done=len(scan_rows) - len(todo_scans))
    for _ in client.run(write_scan, todo_scans, weight=lambda row: float(n_trs[row.run])):
        progress.advance()
    progress.finish()
    return _facts(truth)


def _recordings_by_run(bids_root: Path) -> dict[str, list[Recording]]:
    played: dict[str, list[Recording]] = defaultdict(list)
    silent = []
    for recording in find_recordings(bids_root):
        if recording.run is None:
            continue
        if recording.video is None:
            silent.append(recording.key)
        played[recording.run.label].append(recording)
    if silent:
        raise BoldError(
            f"{len(silent)} recordings have no video yet, for instance {silent[0]}",
            where=bids_root,
            hint=f"vidbrain replay {bids_root}",
        )
    if not played:
        raise BoldError(
            "no recording belongs to a run with events: there is nothing to simulate",
            where=bids_root,
            hint="give the root of a BIDS tree with *_events.tsv, as `vidbrain play` makes it",
        )
    return played


def _events_by_run(bids_root: Path) -> dict[str, list[GameEvent]]:
    events: dict[str, list[GameEvent]] = defaultdict(list)
    for event in read_events(bids_root).rows:
        events[event.run.label].append(event)
    return dict(events)


def _inputs_of(recordings: list[Recording], events: list[GameEvent]) -> str:
    """Fingerprint of what was played and when: the content of the files, not where they lie."""
    contents = []
    for recording in recordings:
        video = Path(recording.video or "")
        table = video.with_suffix(".parquet")
        contents.append([recording.key, identity(video), identity(table) if table.is_file() else None])
    return fingerprint(contents, [[e.onset_s, e.duration_s, e.movie] for e in events])


def _describe(out: Path) -> None:
    """Write ``dataset_description.json``; it says first of all that the data are simulated."""
    value = {
        "Name": "SIMULATED fMRI in the layout of fMRIPrep: no brain was measured",
        "BIDSVersion": "1.8.0",
        "DatasetType": "derivative",
        "GeneratedBy": [
            {
                "Name": "vidbrain bold simulate",
                "Version": vidbrain.__version__,
                "Description": "SIMULATED from game play, with planted maps (see truth/)",
            }
        ],
    }
    path = out / "dataset_description.json"
    if not path.is_file() or read_json(path) != value:
        write_json(path, value)


def _plant(
    truth: Path,
    config: SimulateConfig,
    n_trs: dict[str, int],
    events: dict[str, list[GameEvent]],
    made_from: dict[str, str],
) -> None:
    """Standardise the drivers over all runs, plant the brain, scale its signal, and write the truth."""
    names = driver_names(config.grid)
    kinds = driver_kinds(names)
    centre = _centre(truth, list(n_trs), kinds)
    hrf = canonical_hrf(config.tr_s)
    covariance, volumes = np.zeros((len(names), len(names))), sum(n_trs.values())
    series = {}
    for run in n_trs:
        fine = centred(read_fine(truth, run), centre)
        series[run] = per_tr(fine), haemodynamic(fine, hrf)
        kept = without_drift(series[run][1], config.tr_s)
        covariance += kept.T @ kept / volumes
    scale = scaling(np.diag(covariance), kinds)
    live = np.isfinite(scale)
    covariance /= scale[:, None] * scale
    for run, (drivers, convolved) in series.items():
        write_drivers(
            truth, run, drivers=drivers / scale, convolved=convolved / scale, tr_s=config.tr_s, names=list(names)
        )

    mask, affine = brain_mask(config.resolution_mm)
    ijk = ordered_voxels(mask)
    brain = plant(
        ijk, affine, kinds=kinds, live=live, grid=config.grid, noise_share=config.noise_share,
        ceiling=config.ceiling, ceiling_sd=config.ceiling_sd, seed=config.seed,
    )  # fmt: skip
    weights = scaled_weights(brain, covariance).astype(np.float32)
    facts = {
        "simulated": True,
        "driver_names": list(names),
        "driver_kinds": kinds.tolist(),
        "driver_live": live.tolist(),
        "kinds": list(KINDS),
        "runs": n_trs,
        "tr_s": config.tr_s,
        "shape": list(mask.shape),
        "affine": affine.tolist(),
        "space": SPACE,
        "n_voxels": len(ijk),
        "n_by_kind": {name: int((brain.kind == code).sum()) for code, name in enumerate(KINDS)},
        "reference": "volume k is sampled at (k + 1/2) TR; drivers are means over [k TR, (k + 1) TR)",
        "gaps": "between recordings the screen shows fixation at its mean grey: every driver is 0",
        "scale": "the drift-free response to each driver has unit variance over the data set (cells with little: less)",
        "signal": "drivers (convolved) @ weights.T, in standard deviations of the noise; the same for every subject",
        "ceiling_meaning": "r of signal and data after drift (periods above 128 s) is removed",
        "hrf": "nilearn spm_hrf",
        "n_events": {run: len(rows) for run, rows in events.items()},
        "measures": {"channels": list(CHANNELS), "buttons": list(BUTTONS), "events": list(EVENTS)},
    }
    write_truth(
        truth, kind=brain.kind, weights=weights, ceiling=brain.ceiling.astype(np.float32), ijk=ijk,
        config=to_mapping(config), made_from=made_from, facts=facts,
    )  # fmt: skip


def _centre(truth: Path, runs: list[str], kinds: NDArray[np.int8]) -> NDArray[np.float64]:
    """Mean of each driver of the screen over all frames; buttons and events keep their 0: nothing pressed."""
    total, n = np.zeros(len(kinds)), 0
    for run in runs:
        fine = read_fine(truth, run)
        seen = fine[np.isfinite(fine).all(axis=1)]
        total += seen.sum(axis=0)
        n += len(seen)
    return np.where(kinds == 1, total / max(n, 1), 0.0)


def canonical_hrf(tr_s: float) -> NDArray[np.float64]:
    """SPM's canonical response on the fine time grid; it sums to 1 and peaks about 5 s after an impulse."""
    from nilearn.glm.first_level import spm_hrf  # a second to import, which help does not have

    return np.asarray(spm_hrf(tr_s, oversampling=BINS_PER_TR), np.float64)


def brain_mask(resolution_mm: int) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Crop the MNI152 brain mask of nilearn to its bounding box and a margin of a voxel; the mask and its affine."""
    from nilearn.datasets import load_mni152_brain_mask

    image = load_mni152_brain_mask(resolution=resolution_mm)
    mask = np.asarray(image.dataobj) > 0
    inside = np.argwhere(mask)
    first = np.maximum(inside.min(axis=0) - 1, 0)
    last = np.minimum(inside.max(axis=0) + 2, mask.shape)
    affine = np.array(image.affine, np.float64)
    affine[:3, 3] += affine[:3, :3] @ first
    return mask[tuple(slice(a, b) for a, b in zip(first, last, strict=True))], affine


def without_drift(series: NDArray[np.float64], tr_s: float) -> NDArray[np.float64]:
    """Remove mean, line and slow cosines, as any cleaning will, (n_trs, n) to the same."""
    n = len(series)
    basis = np.column_stack([np.ones(n), np.linspace(-1, 1, n), cosine_drifts(n, tr_s)])
    q, _ = np.linalg.qr(basis)
    return series - q @ (q.T @ series)


def scaled_weights(brain: PlantedBrain, covariance: NDArray[np.float64]) -> NDArray[np.float64]:
    """Scale weights so that signal and unit noise have the correlation that is asked for.

    Data = a s + e with unit variances of s and e correlate with s at c = a / sqrt(1 + a²), so a = c / sqrt(1 - c²).

    Parameters
    ----------
    brain
        Planted maps.
    covariance : (n_drivers, n_drivers)
        Of the convolved drivers without drift, over the whole data set.

    Returns
    -------
    (n_voxels, n_drivers) float64
    """
    power = np.einsum("vd,vd->v", brain.weights @ covariance, brain.weights)
    amplitude = brain.ceiling / np.sqrt(1.0 - brain.ceiling**2)
    factor = np.divide(amplitude, np.sqrt(power), out=np.zeros(len(power)), where=power > 1e-20)
    return brain.weights * factor[:, None]


def _scan_rows(out: Path, config: SimulateConfig, made_from: dict[str, str], runs: list[str]) -> list[ScanRow]:
    name = fingerprint("scan", 1, to_mapping(config), made_from)
    row = ScanRow(
        root=out, run="", fingerprint=name, seed=config.seed, ar1=config.ar1, fwhm_mm=config.fwhm_mm,
        noise_percent=config.noise_percent,
    )  # fmt: skip
    return [replace(row, run=run) for run in runs]


def _facts(truth: Path) -> dict[str, Any]:
    info = read_info(truth, KIND)
    return {
        "simulated": True,
        "runs": len(info["runs"]),
        "volumes": sum(info["runs"].values()),
        "tr_s": info["tr_s"],
        "voxels": info["n_voxels"],
        "voxels_by_kind": info["n_by_kind"],
        "drivers": int(np.sum(info["driver_live"])),
        "fingerprint": info["fingerprint"],
    }
