"""Which recordings belong to which run, on the run's clock: the units of extraction."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vidbrain.config import fingerprint
from vidbrain.errors import AlignmentError
from vidbrain.sharding.manifest import Manifest
from vidbrain.video.clock import MIDDLE, n_trs_covered


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


def video_fingerprint(manifest: Manifest, run: RunPlan) -> str:
    """Name what was seen in a run, and when: the stored frames by their checksums, onsets and durations.

    It does not depend on the other runs of the data set, so that a run is not looked at again when others are added.
    """
    columns = ["recording", "start_frame", "n_frames", "n_bytes", "crc32"]
    keys = [recording.key for recording in run.recordings]
    table = manifest.segments[manifest.segments["recording"].isin(keys)][columns]
    segments = table.sort_values(["recording", "start_frame"]).to_numpy().tolist()
    return fingerprint(run.recordings, run.n_trs, manifest.height, manifest.width, segments)


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
