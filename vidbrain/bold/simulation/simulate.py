"""Simulated fMRI: files as a scanner and fMRIPrep would leave them, and the planted truth beside.

From game play, every recording is decoded once and measured; from a feature set, its features (or mixtures of them)
drive the brain. Then, knowing the whole data set, the drivers are standardised and the brain is planted; then every
scan is written, a block of volumes at a time. Each step goes on where it was killed.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vidbrain.bold.datasets import identity
from vidbrain.bold.simulation.drivers import BUTTONS, EVENTS, KINDS, driver_kinds, driver_names, scaling
from vidbrain.bold.simulation.experiment import (
    TAIL_S,
    Shown,
    SimulateConfig,
    begin,
    facts_of,
    is_simulated_already,
    repeated,
    write_simulation,
)
from vidbrain.bold.simulation.grids import brain_grid
from vidbrain.bold.simulation.measure import MeasureRow, is_measured, measure_run, read_fine
from vidbrain.bold.simulation.mixtures import FeatureStoreLike, Mixer
from vidbrain.bold.simulation.planted import PlantedBrain, plant, plant_mixtures
from vidbrain.bold.simulation.screen import CHANNELS
from vidbrain.cluster import Client
from vidbrain.config import fingerprint, to_mapping
from vidbrain.errors import AlignmentError, BoldError, ConfigError
from vidbrain.progress import SILENT, Progress
from vidbrain.records import Recording, RunKey
from vidbrain.storage.locks import locked, sweep_lock
from vidbrain.video.clock import n_trs_covered
from vidbrain.video.gamelogs import GameEvent, read_events
from vidbrain.video.sources import find_recordings

DERIVATIVE = Path("derivatives") / "simulated-fmriprep"
"""Where the simulation lies, below the BIDS tree."""
DRIVEN = ("noise", "driven")
"""Kinds of voxels that a feature set drives."""


def simulate(
    bids_root: str | Path,
    out: str | Path | None = None,
    config: SimulateConfig | None = None,
    *,
    mask: str | Path | None = None,
    store: str | Path | None = None,
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
    mask
        3-D image of the voxels to simulate, in millimetres of MNI space; default nilearn's brain.
    store
        Folder of a BOLD store to write in place of NIfTI series, cleaned by default as `vidbrain.bold.ingest` does;
        its values are those that ingesting the NIfTI series would give.
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
    StorageError
        If another process writes there, or the place cannot be written or is too small.
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
    inputs = _with_mask(made_from, mask)
    settings = to_mapping(config)
    target = _apart(store, out)
    if is_simulated_already(out, settings, inputs, target):
        sweep_lock(out)
        progress.note(f"simulated fMRI is there already: {out}")
        return facts_of(truth)
    names = driver_names(config.grid)
    kinds = driver_kinds(names)

    def plant_play(ijk: NDArray[np.int32], affine: NDArray[np.float64], live: NDArray[np.bool_]) -> PlantedBrain:
        return plant(
            ijk, affine, kinds=kinds, live=live, grid=config.grid, noise_share=config.noise_share,
            ceiling=config.ceiling, ceiling_sd=config.ceiling_sd, seed=config.seed,
        )  # fmt: skip

    shown = Shown(
        n_trs=n_trs,
        scans=repeated(list(n_trs), config.n_repeats),
        tr_s=config.tr_s,
        names=names,
        kinds=kinds,
        kind_names=KINDS,
        fine=lambda run: read_fine(truth, run),
        centre=lambda: _centre(truth, list(n_trs), kinds),
        scale=lambda second: scaling(second, kinds),
        plant=plant_play,
        facts={
            "gaps": "between recordings the screen shows fixation at its mean grey: every driver is 0",
            "n_events": {run: len(rows) for run, rows in events.items()},
            "measures": {"channels": list(CHANNELS), "buttons": list(BUTTONS), "events": list(EVENTS)},
        },
    )
    grid = brain_grid(config.resolution_mm, None if mask is None else Path(mask))
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
    with locked(out):
        begin(out, shown, grid, config, target)
        todo = [row for row in measure_rows if not is_measured(row)]
        progress.start("measure", len(measure_rows), "runs", done=len(measure_rows) - len(todo))
        for _ in client.run(measure_run, todo, weight=lambda row: float(row.n_trs)):
            progress.advance()
        progress.finish()
        return write_simulation(
            out, shown, grid, config, settings, inputs, store=target, client=client, progress=progress
        )


def simulate_features(
    features: FeatureStoreLike,
    out: str | Path,
    config: SimulateConfig | None = None,
    *,
    layer: str | None = None,
    n_subjects: int | None = None,
    mask: str | Path | None = None,
    store: str | Path | None = None,
    client: Client | None = None,
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Write simulated fMRIPrep derivatives of a brain that a feature set drives: what a perfect model would find.

    Parameters
    ----------
    features
        Any feature store: each feature drives, or random mixtures of them where there are many. Volumes without video
        are rest.
    out
        Folder of the derivatives.
    config
        Scanner and planted brain; the repetition time is the features'.
    layer
        Which layer drives; default the only one.
    n_subjects
        So many subjects (``sub-01``, ...) all see every run. Default: each run has the subject that its label names.
    mask, store
        As in `simulate`.
    client, progress
        Who does the work, and who listens.

    Returns
    -------
    dict
        Facts for a summary.

    Raises
    ------
    BoldError
        If features are not finite, or two scans would have one name.
    AlignmentError
        If there is no such layer.
    ResumeError
        If the output was made with other settings.
    StorageError
        If another process writes there, or the place cannot be written or is too small.
    """
    config = replace(config or SimulateConfig(), tr_s=features.tr_s)
    out, client = Path(out), client or Client()
    layer = _layer(features, layer)
    inputs = _with_mask({"features": str(features.info["fingerprint"])}, mask)
    settings = to_mapping(config) | {"layer": layer, "n_subjects": n_subjects}
    target = _apart(store, out)
    if is_simulated_already(out, settings, inputs, target):
        sweep_lock(out)
        progress.note(f"simulated fMRI is there already: {out}")
        return facts_of(out / "truth")
    mixer = Mixer(features, layer, config)
    tail = math.ceil(TAIL_S / config.tr_s)
    n_trs = {run: mixer.n_rows[run] + tail for run in features.runs}
    scans = repeated(list(n_trs), config.n_repeats)
    if n_subjects is not None:
        scans = {
            replace(RunKey.parse(scan), subject=f"{number:02d}").label: run
            for scan, run in scans.items()
            for number in range(1, n_subjects + 1)
        }
        if len(scans) != n_subjects * config.n_repeats * len(n_trs):
            raise BoldError(
                "runs of several subjects have one name once each subject sees them all",
                hint="leave out n_subjects, or take features of one subject's runs",
            )

    def plant_features(ijk: NDArray[np.int32], affine: NDArray[np.float64], live: NDArray[np.bool_]) -> PlantedBrain:
        return plant_mixtures(
            ijk, affine, live=live, noise_share=config.noise_share, ceiling=config.ceiling,
            ceiling_sd=config.ceiling_sd, seed=config.seed,
        )  # fmt: skip

    def scale(second: NDArray[np.float64]) -> NDArray[np.float64]:
        sd = np.sqrt(second)
        return np.where(sd > 1e-6, sd, np.inf)

    shown = Shown(
        n_trs=n_trs,
        scans=scans,
        tr_s=config.tr_s,
        names=mixer.names,
        kinds=np.ones(len(mixer.names), np.int8),
        kind_names=DRIVEN,
        fine=lambda run: mixer.fine(run, n_trs[run]),
        centre=lambda: np.zeros(len(mixer.names)),
        scale=scale,
        plant=plant_features,
        facts={
            "gaps": "a volume without features is rest: every driver is 0, its mean",
            "layer": layer,
            "n_features": mixer.n_features,
            "mixtures": mixer.weights is not None,
        },
    )
    grid = brain_grid(config.resolution_mm, None if mask is None else Path(mask))
    with locked(out):
        begin(out, shown, grid, config, target)
        return write_simulation(
            out, shown, grid, config, settings, inputs, store=target, client=client, progress=progress
        )


def _apart(store: str | Path | None, out: Path) -> Path | None:
    if store is not None and Path(store).resolve() == out.resolve():
        raise ConfigError("a BOLD store needs a folder of its own", where=store, hint="give --out or --store another")
    return None if store is None else Path(store)


def _layer(features: FeatureStoreLike, layer: str | None) -> str:
    if layer is None and len(features.layers) == 1:
        return str(features.layers[0])
    if layer is None or layer not in features.layers:
        raise AlignmentError(
            f"the features have {len(features.layers)} layers, {layer!r} is none of them"
            if layer
            else f"the features have {len(features.layers)} layers",
            hint=f"choose one with --layer: {', '.join(features.layers)}",
        )
    return layer


def _with_mask(made_from: Mapping[str, str], mask: str | Path | None) -> dict[str, str]:
    return {**made_from, **({} if mask is None else {"mask": identity(Path(mask))})}


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


def _centre(truth: Path, runs: list[str], kinds: NDArray[np.int8]) -> NDArray[np.float64]:
    """Mean of each driver of the screen over all frames; buttons and events keep their 0: nothing pressed."""
    total, n = np.zeros(len(kinds)), 0
    for run in runs:
        fine = read_fine(truth, run)
        seen = fine[np.isfinite(fine).all(axis=1)]
        total += seen.sum(axis=0)
        n += len(seen)
    return np.where(kinds == 1, total / max(n, 1), 0.0)
