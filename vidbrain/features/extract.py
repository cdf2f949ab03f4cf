"""Recordings of a data set of shards become features, one row for each volume of the scanner."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from vidbrain.cluster import Client
from vidbrain.config import to_mapping
from vidbrain.errors import AlignmentError, ConfigError
from vidbrain.features.resample import mean_of_sums, volume_weights
from vidbrain.features.sources import FeatureSource
from vidbrain.features.store import KIND, is_written, write_run
from vidbrain.features.windows import cut
from vidbrain.progress import SILENT, Progress
from vidbrain.sharding.manifest import Manifest, open_manifest
from vidbrain.storage.atomic import check_writable, sweep
from vidbrain.storage.info import expected_fingerprint, is_done, read_info, write_info
from vidbrain.stream.sequential import frames_of
from vidbrain.video.clock import MIDDLE, frame_times, n_trs_covered

BATCH_BYTES = 32 * 2**20
"""Video in a batch of clips: enough for full matrix products, little enough for any machine."""


@dataclass(frozen=True, kw_only=True)
class ExtractConfig:
    """How rows become volumes."""

    tr_s: float = 1.49
    """Repetition time of the BOLD series in seconds."""
    slice_time_ref: float = MIDDLE
    """Time that a volume stands for, as a share of the TR: what slices were corrected to, the middle by default."""

    def __post_init__(self) -> None:
        if not 0 <= self.slice_time_ref <= 1:
            raise ConfigError(f"slice_time_ref lies between 0 and 1, not {self.slice_time_ref:g}")
        if not 0.05 <= self.tr_s <= 60:
            raise ConfigError(f"a TR of {self.tr_s:g} s cannot be right", hint="give it in seconds, for instance 1.49")


@dataclass(frozen=True)
class RecordingPlan:
    """A recording on its run's clock."""

    key: str
    n_frames: int
    onset_s: float
    duration_s: float
    level: str = ""


@dataclass(frozen=True)
class RunPlan:
    """A run: the unit of work.

    Attributes
    ----------
    label
        Of the run.
    recordings
        In order of onset.
    n_trs
        Volumes until the end of the last recording.
    """

    label: str
    recordings: tuple[RecordingPlan, ...]
    n_trs: int

    @property
    def n_frames(self) -> int:
        """Frames of all recordings."""
        return sum(recording.n_frames for recording in self.recordings)


@dataclass(frozen=True)
class _Work:
    run: RunPlan
    source: FeatureSource
    data_root: str
    out: str
    tr_s: float
    slice_time_ref: float
    fps: float
    fingerprint: str


def plan_runs(manifest: Manifest, tr_s: float, slice_time_ref: float = MIDDLE) -> list[RunPlan]:
    """List the runs that a data set has video of.

    Raises
    ------
    AlignmentError
        If no recording belongs to a run, or the shards lack frames of some.
    """
    table = manifest.recordings
    table = table[(table["run"] != "") & np.isfinite(table["onset_s"]) & np.isfinite(table["duration_s"])]
    if not len(table):
        raise _no_runs(manifest)
    missing = table["recording_frames"] - table["frames_held"]
    if (missing > 0).any():
        by_run = missing.groupby(table["run"]).sum()
        by_run = by_run[by_run > 0]
        listed = [f"{n} of {label}" for label, n in by_run.items()]
        more = f" and {len(listed) - 4} more runs" if len(listed) > 4 else ""
        raise AlignmentError(
            f"the shards lack {int(missing.sum())} of {int(table['recording_frames'].sum())} frames: "
            f"{', '.join(listed[:4])}{more}",
            where=manifest.root,
            likely="the data set is a prefix of the recordings (--size)",
            hint="make shards of all frames for features: vidbrain shard --size all",
        )
    runs = []
    for label, rows in table.sort_values("onset_s").groupby("run"):
        recordings = tuple(
            RecordingPlan(
                str(row.Index),
                int(row.recording_frames),
                float(row.onset_s),
                float(row.duration_s),
                str(row.level or ""),
            )
            for row in rows.itertuples()
        )
        end_s = max(recording.onset_s + recording.duration_s for recording in recordings)
        runs.append(RunPlan(str(label), recordings, n_trs_covered(end_s, tr_s, slice_time_ref)))
    return runs


def frame_rate(manifest: Manifest) -> float:
    """Frames per second of the recordings, by their own clocks: the median.

    Raises
    ------
    AlignmentError
        If none has a clock, or they differ by more than 1 %: a window counted in frames would mean different times.
    """
    table = manifest.recordings
    rates = (table["recording_frames"] / table["duration_s"]).to_numpy()
    rates = rates[np.isfinite(rates)]
    if not len(rates):
        raise _no_runs(manifest)
    low, high = float(rates.min()), float(rates.max())
    if high > 1.01 * low:
        raise AlignmentError(
            f"the recordings have different frame rates, from {low:.4g} to {high:.4g} a second",
            where=manifest.root,
            hint="make a data set of shards for each rate",
        )
    return float(np.median(rates))


def _no_runs(manifest: Manifest) -> AlignmentError:
    return AlignmentError(
        f"none of the {len(manifest.recordings)} recordings was seen during a BOLD run",
        where=manifest.root,
        likely="the shards were made from a folder of videos, without onsets on a scanner's clock",
        hint="make them from a BIDS tree whose events.tsv files name the recordings",
    )


def extract(
    source: FeatureSource,
    data_root: str | Path,
    out: str | Path,
    config: ExtractConfig,
    *,
    client: Client = Client(),  # noqa: B008 -- frozen
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Write features of every run, one Zarr for each layer and run, then the root record.

    A volume is valid if at least one frame of video begins in it; other volumes hold zeros and are marked. Runs that
    are finished on disk, with these settings, are skipped.

    Parameters
    ----------
    source
        Gives the rows.
    data_root
        Finished shards with the whole of every recording.
    out
        Folder of the feature set.
    config
        The scanner's clock.
    client
        Runs are shared among its workers, unless the source must stay in this process.
    progress
        Told of frames.

    Returns
    -------
    dict
        The root record.

    Raises
    ------
    AlignmentError
        If the shards hold no run, or only a part of one.
    ResumeError
        If a finished set lies there that was made otherwise.
    StorageError
        If the place cannot be written or is too small.
    """
    out = Path(out)
    manifest = open_manifest(data_root)
    fps = frame_rate(manifest)
    runs = plan_runs(manifest, config.tr_s, config.slice_time_ref)
    settings = {
        "source": source.name,
        **to_mapping(config),
        "window": to_mapping(source.window),
        "layers": [to_mapping(layer) for layer in source.layers],
        "settings": source.settings,
    }
    made_from = {"data": manifest.fingerprint, **source.made_from}
    if is_done(out, KIND, config=settings, made_from=made_from):
        return read_info(out, KIND)
    check_writable(out, estimate_bytes(source, runs))
    for layer in source.layers:
        sweep(out / layer.name)
    name = expected_fingerprint(KIND, settings, made_from)
    pending = [
        _Work(run, source, str(data_root), str(out), config.tr_s, config.slice_time_ref, fps, name)
        for run in runs
        if not all(is_written(out, layer.name, run.label, name) for layer in source.layers)
    ]
    total = sum(run.n_frames for run in runs)
    progress.start(source.name, total, "frames", total - sum(work.run.n_frames for work in pending))
    if source.in_process or client.n_workers == 0:
        # Small matrix products gain nothing from threads, and lose much where other processes want the cores. The
        # networks' own threads are not of this library.
        with contextlib.nullcontext() if source.in_process else threadpool_limits(1, user_api="blas"):
            for work in pending:
                _extract_run(work, manifest, progress.advance)
    else:
        for position, _ in client.run(_extract_row, pending, weight=lambda work: work.run.n_frames):
            progress.advance(pending[position].run.n_frames)
    progress.finish()
    facts = {
        "runs": [run.label for run in runs],
        "n_trs": [run.n_trs for run in runs],
        "n_features": {layer.name: layer.n_features for layer in source.layers},
        "n_frames": total,
        "fps": fps,
    }
    return write_info(out, KIND, config=settings, made_from=made_from, facts=facts)


def estimate_bytes(source: FeatureSource, runs: Sequence[RunPlan]) -> int:
    """Bytes on disk at most: float32 rows, and a little for each store."""
    per_tr = sum(4 * layer.n_features + 16 for layer in source.layers)
    return sum(run.n_trs * per_tr + 8192 * len(source.layers) for run in runs)


def _extract_row(work: _Work) -> None:
    # In a worker: its own manifest, and nobody to tell.
    _extract_run(work, open_manifest(work.data_root), lambda _: None)


def _extract_run(work: _Work, manifest: Manifest, advance: Callable[[int], None]) -> None:
    run, source = work.run, work.source
    sums = {layer.name: np.zeros((run.n_trs, layer.n_features)) for layer in source.layers}
    n_frames = np.zeros(run.n_trs, np.int64)
    shown, most = np.full(run.n_trs, -1, np.int32), np.zeros(run.n_trs, np.int64)
    for number, recording in enumerate(run.recordings):
        rows, spans = rows_of(source, manifest, recording, advance)
        times_s = frame_times(recording.onset_s, recording.duration_s, recording.n_frames)
        weights, counts = volume_weights(spans, times_s, work.tr_s, run.n_trs, work.slice_time_ref)
        n_frames += counts
        shown[counts > most] = number
        most = np.maximum(most, counts)
        for name, values in rows.items():
            sums[name] += weights @ values.astype(np.float64)
    window = source.window
    for layer in source.layers:
        features, valid = mean_of_sums(sums[layer.name], n_frames)
        seen = layer.sees_before + window.slice_frames + layer.sees_after
        attributes = {
            "tr_s": work.tr_s,
            "slice_time_ref": work.slice_time_ref,
            "row_s": window.slice_frames / work.fps,
            "window_s": seen / work.fps,
            "sees_before_s": layer.sees_before / work.fps,
            "sees_after_s": layer.sees_after / work.fps,
            "fingerprint": work.fingerprint,
            "recordings": [{"key": recording.key, "level": recording.level} for recording in run.recordings],
        }
        write_run(
            work.out,
            layer.name,
            run.label,
            features=features,
            valid=valid,
            attributes=attributes,
            n_frames=n_frames,
            recording=shown,
        )


def rows_of(
    source: FeatureSource, manifest: Manifest, recording: RecordingPlan, advance: Callable[[int], None]
) -> tuple[dict[str, NDArray[np.float32]], NDArray[np.int64]]:
    """Rows of every layer of one recording, in time order.

    Returns
    -------
    rows
        By layer, (n_rows, n_features) float32.
    spans : (n_rows, 2)
        Frames ``[begin, end)`` that each row stands for.
    """
    window = source.window
    starts = window.starts(recording.n_frames)
    clip_bytes = window.n_input * manifest.height * manifest.width * 3
    collected: dict[str, list[NDArray[np.float32]]] = {layer.name: [] for layer in source.layers}
    frames = frames_of(manifest, recording.key)
    done = told = 0
    for video in cut(frames, recording.n_frames, window, max(1, BATCH_BYTES // clip_bytes)):
        for name, values in source.rows(video).items():
            collected[name].append(values.reshape(-1, values.shape[-1]))
        done += len(video)
        reached = recording.n_frames * done // len(starts)
        advance(reached - told)
        told = reached
    rows = {name: np.concatenate(parts) for name, parts in collected.items()}
    return rows, window.spans(starts, recording.n_frames)
