"""Recordings of a data set of shards become features, one row for each volume of the scanner."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from vidbrain.cluster import Client
from vidbrain.config import fingerprint, to_mapping
from vidbrain.errors import AlignmentError, ConfigError, ModelError
from vidbrain.features.pooled import Pooled
from vidbrain.features.projection import projection_error
from vidbrain.features.resample import mean_of_sums, volume_weights
from vidbrain.features.runs import RecordingPlan, RunPlan, frame_rate, plan_runs, video_fingerprint
from vidbrain.features.sources import PlacedSource, receptive_field_s
from vidbrain.features.store import KIND, is_written, standing_record, write_run
from vidbrain.features.windows import Places, Window, cut
from vidbrain.progress import SILENT, Progress
from vidbrain.sharding.manifest import Manifest, open_manifest
from vidbrain.storage.atomic import check_writable, sweep
from vidbrain.storage.info import write_info
from vidbrain.storage.locks import locked, sweep_lock
from vidbrain.stream.sequential import frames_of
from vidbrain.video.clock import MIDDLE, frame_times

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
class _Work:
    run: RunPlan
    source: Pooled
    data_root: str
    out: str
    tr_s: float
    slice_time_ref: float
    fps: float
    fingerprints: dict[str, str]
    """By layer, of the layers that this run still lacks."""


def extract(
    source: Pooled,
    data_root: str | Path,
    out: str | Path,
    config: ExtractConfig,
    *,
    client: Client = Client(),  # noqa: B008 -- frozen
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Write features of every run, one Zarr for each layer and run, then the root record.

    A volume is valid if at least one frame of video that a row stands for begins in it; other volumes hold zeros and
    are marked, among them those before the first clip of a source that is told the clip before. All layers are made in
    one pass of the video. Layers of runs that are on disk, from the same weights, settings and video, are left alone; a
    finished set grows by the layers that it lacks.

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
        If the shards hold no run, or only a part of one, or recordings too short for any row.
    ModelError
        If a source gives activations that are not finite.
    ResumeError
        If a finished set lies there that was made otherwise.
    StorageError
        If the place cannot be written or is too small, or another process writes there.
    """
    out = Path(out)
    manifest = open_manifest(data_root)
    fps = frame_rate(manifest)
    runs = plan_runs(manifest, config.tr_s, config.slice_time_ref)
    settings = {
        "source": source.name,
        **to_mapping(config),
        "window": source.window.record(),
        "settings": source.source.settings,
        "layers": [source.record(layer) for layer in source.layers],
    }
    made_from = {"data": manifest.fingerprint, **source.source.made_from}
    found = standing_record(out, settings, made_from)
    if found is not None and found.whole:
        sweep_lock(out)
        return found.record
    lacking = frames_without_rows(source.window, runs)
    check_writable(out, estimate_bytes(source, runs))
    with locked(out):
        found = standing_record(out, settings, made_from)  # it may have grown meanwhile
        for layer in source.layers:
            sweep(out / layer.name)
        pending = _pending(source, manifest, runs, out, config, fps)
        total = sum(run.n_frames for run in runs)
        if source.window.lead:
            progress.note(
                f"{lacking:,} of {total:,} frames have no clip before theirs, which {source.name} is told:"
                " they have no row"
            )
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
        n_trs = [run.n_trs for run in runs]
        facts: dict[str, Any] = {
            "runs": [run.label for run in runs],
            "n_trs": n_trs,
            "n_features": dict(source.n_features),
            "projection_error": {
                name: projection_error(sum(n_trs), pooling.n_out)
                for name, pooling in source.poolings.items()
                if pooling.kind == "projection"
            },
            "n_frames": total,
            "n_frames_without_row": lacking,
            "fps": fps,
        }
        if found is not None:
            settings, made_from = found.settings, found.made_from
            for name in ("n_features", "projection_error"):
                facts[name] = {**found.record[name], **facts[name]}
        return write_info(out, KIND, config=settings, made_from=made_from, facts=facts)


def _pending(
    source: Pooled, manifest: Manifest, runs: Sequence[RunPlan], out: Path, config: ExtractConfig, fps: float
) -> list[_Work]:
    """Runs that lack a layer, with the fingerprints of what they lack."""
    of_layer = {layer.name: source.fingerprint(layer) for layer in source.layers}
    pending = []
    for run in runs:
        seen = video_fingerprint(manifest, run)
        if isinstance(source.source, PlacedSource) and (told := source.source.told([r.key for r in run.recordings])):
            seen = fingerprint(seen, told)
        wanted = {name: fingerprint(digits, to_mapping(config), seen) for name, digits in of_layer.items()}
        lacking = {name: digits for name, digits in wanted.items() if not is_written(out, name, run.label, digits)}
        if lacking:
            clock = config.tr_s, config.slice_time_ref
            pending.append(_Work(run, source, str(manifest.root), str(out), *clock, fps, lacking))
    return pending


def estimate_bytes(source: Pooled, runs: Sequence[RunPlan]) -> int:
    """Bytes on disk at most: float32 rows, and a little for each store."""
    per_tr = sum(4 * n_features + 16 for n_features in source.n_features.values())
    return sum(run.n_trs * per_tr + 8192 * len(source.layers) for run in runs)


def estimate_memory(source: Pooled, manifest: Manifest, runs: Sequence[RunPlan]) -> int:
    """Bytes that extraction holds in each process at most, whatever the length of a recording.

    Video of a batch of clips and of the segments that it is cut from, activations of the layers, rows of a batch, and
    sums over the volumes of the longest run. What a network needs inside comes on top.
    """
    window = source.window
    frame_bytes = 3 * manifest.height * manifest.width
    n_clips = _batch_size(source, manifest)
    # A batch as a list and as an array; what is cut, before and after a segment is added to it.
    reach = (window.n_input - 1) * window.step + 1
    segment = int(manifest.segments["n_frames"].max())
    video = 2 * n_clips * window.n_input * frame_bytes + 2 * (reach + 2 * segment) * frame_bytes
    tokens = sum(math.prod((source.source.window.n_slices, *layer.grid, layer.n_channels)) for layer in source.layers)
    width = sum(source.n_features.values())
    # Controls turn the video of a batch into floats, and those into half a dozen products of its size.
    floats = 4 * n_clips * (window.n_input * frame_bytes + 6 * tokens)
    rows = 3 * 8 * n_clips * window.n_slices * width
    return video + floats + rows + 3 * 8 * width * max(run.n_trs for run in runs)


def _batch_size(source: Pooled, manifest: Manifest) -> int:
    return max(1, BATCH_BYTES // (source.window.n_input * manifest.height * manifest.width * 3))


def _extract_row(work: _Work) -> None:
    # In a worker: its own manifest, and nobody to tell.
    _extract_run(work, open_manifest(work.data_root), lambda _: None)


def _extract_run(work: _Work, manifest: Manifest, advance: Callable[[int], None]) -> None:
    run, source = work.run, work.source
    layers = [layer for layer in source.layers if layer.name in work.fingerprints]
    sums = {layer.name: np.zeros((run.n_trs, source.n_features[layer.name])) for layer in layers}
    n_frames = np.zeros(run.n_trs, np.int64)
    shown, most = np.full(run.n_trs, -1, np.int32), np.zeros(run.n_trs, np.int64)
    for number, recording in enumerate(run.recordings):
        spans = source.window.spans(source.window.starts(recording.n_frames), recording.n_frames)
        times_s = frame_times(recording.onset_s, recording.duration_s, recording.n_frames)
        weights, counts = volume_weights(spans, times_s, work.tr_s, run.n_trs, work.slice_time_ref)
        by_row = weights.tocsc()
        n_frames += counts
        shown[counts > most] = number
        most = np.maximum(most, counts)
        first = 0
        for batch in rows_of(source, manifest, recording, advance):
            # Added batch by batch: the rows of a long recording are never all in memory.
            n_rows = len(next(iter(batch.values())))
            part = by_row[:, first : first + n_rows]
            for name, total in sums.items():
                total += part @ batch[name].astype(np.float64)
            first += n_rows
    for layer in layers:
        features, valid = mean_of_sums(sums[layer.name], n_frames)
        before_s, row_s, after_s = receptive_field_s(layer, source.window, work.fps)
        attributes = {
            "tr_s": work.tr_s,
            "slice_time_ref": work.slice_time_ref,
            "time": source.window.time,
            "row_s": row_s,
            "window_s": before_s + row_s + after_s,
            "sees_before_s": before_s,
            "sees_after_s": after_s,
            "fingerprint": work.fingerprints[layer.name],
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
    source: Pooled, manifest: Manifest, recording: RecordingPlan, advance: Callable[[int], None]
) -> Iterator[dict[str, NDArray[np.float32]]]:
    """Rows of one recording in time order, a batch of clips at a time: by layer, (n_rows, n_features) float32.

    Raises
    ------
    ModelError
        If activations are not finite: names the layer and the clip.
    """
    window = source.window
    starts = window.starts(recording.n_frames)
    done = told = 0
    frames = frames_of(manifest, recording.key)
    for video in cut(frames, recording.n_frames, window, _batch_size(source, manifest)):
        rows = source.rows(video, Places(recording.key, starts[done : done + len(video)]))
        for name, values in rows.items():
            bad = np.flatnonzero(~np.isfinite(values).all(axis=(1, 2)))
            if len(bad):
                raise ModelError(
                    f"{name} is not finite in {len(bad)} of {len(video)} clips; the first begins at frame "
                    f"{int(starts[done + bad[0]])} of {recording.key}",
                    where=name,
                    likely="the weights are damaged or untamed (nan, or an overflow), or the video's range is wrong",
                    hint="look at the training's metrics, or leave the layer out with --layers",
                )
        done += len(video)
        reached = recording.n_frames * done // len(starts)
        advance(reached - told)
        told = reached
        yield {name: values.reshape(-1, values.shape[-1]) for name, values in rows.items()}
    if not len(starts):
        advance(recording.n_frames)


def frames_without_rows(window: Window, runs: Sequence[RunPlan]) -> int:
    """Frames before the first row of each recording, all of its frames where it has no clip.

    Raises
    ------
    AlignmentError
        If no frame has a row.
    """
    lacking = sum(window.first_row(recording.n_frames) for run in runs for recording in run.recordings)
    if lacking == sum(run.n_frames for run in runs):
        raise AlignmentError(
            f"no recording has a clip of {window.covered} frames after the {window.lead} that come before its first",
            likely="the recordings are too short for a model that is told the clip before",
        )
    return lacking
