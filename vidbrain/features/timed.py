"""Rows that carry their own times become features, one row for each volume: arrays of other tools, and buttons.

Volume k covers ``[k TR, (k + 1) TR)`` of the run's clock, as for video. Its value is the mean of the rows that hold
during it, weighed by the seconds of each in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_array

from vidbrain.cluster import Client
from vidbrain.config import fingerprint, to_mapping
from vidbrain.errors import AlignmentError, ModelError
from vidbrain.features.extract import ExtractConfig
from vidbrain.features.runs import RunPlan
from vidbrain.features.store import KIND, is_written, standing_record, write_run
from vidbrain.progress import SILENT, Progress
from vidbrain.storage.atomic import check_writable, sweep
from vidbrain.storage.info import write_info
from vidbrain.storage.locks import locked, sweep_lock
from vidbrain.video.clock import MIDDLE, n_trs_covered

_INSTANT_S = 1e-9
"""Shorter overlaps of a row and a volume are rounding."""


@dataclass(frozen=True)
class TimedRows:
    """Rows of one run.

    Attributes
    ----------
    values
        By layer, (n, n_features).
    times_s : (n, 2) float64
        Seconds ``[begin, end)`` on the run's clock during which each row holds.
    """

    values: dict[str, NDArray[Any]]
    times_s: NDArray[np.float64]


class TimedSource(Protocol):
    """Something that has rows with times for every run. It is pickled to workers, so it holds names, not arrays."""

    @property
    def name(self) -> str:
        """Of the source."""

    @property
    def settings(self) -> dict[str, Any]:
        """What decides the values, as plain values."""

    @property
    def feature_names(self) -> dict[str, list[str]]:
        """Names of the features, by layer."""

    @property
    def runs(self) -> Mapping[str, float]:
        """By label, seconds on the run's clock at which its last row ends."""

    def read(self, run: str, /) -> TimedRows:
        """Rows of a run, in time order."""

    def fingerprint(self, run: str, /) -> str:
        """Name the rows of a run."""


@dataclass(frozen=True)
class _Work:
    run: str
    n_trs: int
    source: TimedSource
    out: str
    tr_s: float
    slice_time_ref: float
    fingerprints: dict[str, str]


def overlap_weights(times_s: ArrayLike, tr_s: float, n_trs: int, slice_time_ref: float = MIDDLE) -> csr_array:
    """Seconds of each row in each volume.

    Parameters
    ----------
    times_s : (n, 2)
        ``[begin, end)`` of each row on the run's clock.
    tr_s, n_trs
        Repetition time in seconds, and volumes; what lies outside of all of them is left out.
    slice_time_ref
        Where in a volume its time lies (`video.clock`).

    Returns
    -------
    (n_trs, n) sparse float64
    """
    begun = np.asarray(times_s, np.float64) - (slice_time_ref - MIDDLE) * tr_s
    times = np.clip(begun, 0.0, n_trs * tr_s)
    first = np.floor(times[:, 0] / tr_s).astype(np.int64)
    n_touched = np.maximum(np.ceil(times[:, 1] / tr_s).astype(np.int64) - first, 0)
    row = np.repeat(np.arange(len(times)), n_touched)
    volume = np.arange(n_touched.sum()) - np.repeat(np.cumsum(n_touched) - n_touched - first, n_touched)
    seconds = np.minimum(times[row, 1], (volume + 1) * tr_s) - np.maximum(times[row, 0], volume * tr_s)
    held = seconds > _INSTANT_S
    return csr_array((seconds[held], (volume[held], row[held])), shape=(n_trs, len(times)))


def plan_timed(
    source: TimedSource, tr_s: float, expected: Sequence[RunPlan] | None = None, slice_time_ref: float = MIDDLE
) -> dict[str, int]:
    """Volumes of each run: until its last row ends, or as the runs of a data set of shards have.

    Raises
    ------
    AlignmentError
        If there is no run, or the runs are not those expected.
    """
    if not source.runs:
        raise AlignmentError(f"{source.name} hold no run")
    if expected is None:
        return {run: n_trs_covered(end_s, tr_s, slice_time_ref) for run, end_s in sorted(source.runs.items())}
    known = {plan.label: plan.n_trs for plan in expected}
    lacking, foreign = sorted(known.keys() - source.runs.keys()), sorted(source.runs.keys() - known.keys())
    if lacking or foreign:
        said = [f"{len(runs)} {what}: {', '.join(runs[:3])}" for runs, what in
                ((lacking, "of the shards have no rows"), (foreign, "are not in the shards")) if runs]  # fmt: skip
        raise AlignmentError(
            f"runs of {source.name} and of the shards do not match; {'; '.join(said)}",
            hint="leave out --shards to take the runs as they are",
        )
    return known


def extract_timed(
    source: TimedSource,
    out: str | Path,
    config: ExtractConfig,
    *,
    expected: Sequence[RunPlan] | None = None,
    client: Client = Client(),  # noqa: B008 -- frozen
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Write features of every run, one Zarr for each layer and run, then the root record.

    A volume is valid if a row holds during a part of it. Runs on disk with these rows and settings are left alone. A
    process holds the rows of one run.

    Parameters
    ----------
    source
        Gives the rows.
    out
        Folder of the feature set.
    config
        The scanner's clock.
    expected
        Runs that the source must have, and their volumes; None for its own.
    client, progress
        Where runs are read, and who listens.

    Returns
    -------
    dict
        The root record.

    Raises
    ------
    AlignmentError
        If there is no run, or not those expected.
    ModelError
        If rows are not finite.
    ResumeError
        If a finished set lies there that was made otherwise.
    StorageError
        If the place cannot be written or is too small, or another process writes there.
    """
    out = Path(out)
    runs = plan_timed(source, config.tr_s, expected, config.slice_time_ref)
    names = source.feature_names
    settings = {
        "source": source.name,
        **to_mapping(config),
        "settings": source.settings,
        "layers": [{"name": layer, "n_features": len(features)} for layer, features in names.items()],
    }
    of_run = {run: source.fingerprint(run) for run in runs}
    made_from = {"rows": fingerprint(of_run, runs)}
    found = standing_record(out, settings, made_from)
    if found is not None and found.whole:
        sweep_lock(out)
        return found.record
    check_writable(out, estimate_timed_bytes(source, runs))
    with locked(out):
        pending = []
        for layer in names:
            sweep(out / layer)
        for run, n_trs in runs.items():
            wanted = {layer: fingerprint(source.settings, layer, names[layer], to_mapping(config), n_trs, of_run[run])
                      for layer in names}  # fmt: skip
            lacking = {layer: digits for layer, digits in wanted.items() if not is_written(out, layer, run, digits)}
            if lacking:
                pending.append(_Work(run, n_trs, source, str(out), config.tr_s, config.slice_time_ref, lacking))
        progress.start(source.name, len(runs), "runs", len(runs) - len(pending))
        for _ in client.run(_extract_run, pending, weight=lambda work: work.n_trs):
            progress.advance()
        progress.finish()
        facts = {
            "runs": list(runs),
            "n_trs": list(runs.values()),
            "n_features": {layer: len(features) for layer, features in names.items()},
            "feature_names": names,
        }
        return write_info(out, KIND, config=settings, made_from=made_from, facts=facts)


def estimate_timed_bytes(source: TimedSource, runs: Mapping[str, int]) -> int:
    """Bytes on disk at most."""
    per_tr = sum(4 * len(features) + 16 for features in source.feature_names.values())
    return sum(n_trs * per_tr + 8192 * len(source.feature_names) for n_trs in runs.values())


def _extract_run(work: _Work) -> None:
    rows = work.source.read(work.run)
    weights = overlap_weights(rows.times_s, work.tr_s, work.n_trs, work.slice_time_ref)
    seconds = weights.sum(axis=1)
    valid = seconds > 0
    for layer, digits in work.fingerprints.items():
        values = np.asarray(rows.values[layer], np.float64)
        bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
        if len(bad):
            raise ModelError(
                f"{layer} is not finite in {len(bad)} of {len(values)} rows of {work.run}; the first is row {bad[0]}, "
                f"at {rows.times_s[bad[0], 0]:.3f} s",
                where=layer,
                hint="leave out rows that are missing: what has no row is masked",
            )
        features = (weights @ values) / np.where(valid, seconds, 1.0)[:, None]
        attributes = {
            "tr_s": work.tr_s,
            "slice_time_ref": work.slice_time_ref,
            "row_s": float(np.median(np.diff(rows.times_s, axis=1))),
            "feature_names": work.source.feature_names[layer],
            "fingerprint": digits,
        }
        write_run(work.out, layer, work.run, features=features.astype(np.float32), valid=valid, attributes=attributes)
