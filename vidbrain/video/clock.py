"""The clock: when a frame was on the screen, and which volume of the scanner it belongs to. Pure arithmetic.

This module owns all of it. Time 0 is the begin of the run as its events count it, which is that of the first volume
that was scanned. Volume k stands for the time ``(k + slice_time_ref) TR``: fMRIPrep corrects slices to a reference, the
middle of a volume (1/2) unless it is told otherwise, and the middle is also taken where slices were not corrected. A
reference beyond 1 says that volumes were taken away: the series begins later than the clock. What was on the screen
during a volume is what was on it within half a TR of that time, ``[k TR, (k + 1) TR)`` for the middle; a frame belongs
to the volume in which it begins. A recording's frames are spread evenly over its wall-clock duration, because the
console's rate (nominally 59.92 Hz), the file's 60 Hz and the scanner computer's clock differ. Frames of recordings that
overlap count alike. What lies before the first volume or after the last belongs to none, and a volume without any frame
(a gap between repetitions, a recording that was lost, the tail of a run) has no value: it is masked, and never a silent
zero.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

MIDDLE = 0.5
"""Slice-time reference of the middle of a volume."""

# Of a TR: a frame that begins on the edge of two volumes, but for rounding, belongs to the later.
_ROUNDING = 1e-9


def frame_times(onset_s: float, duration_s: float, n_frames: int) -> NDArray[np.float64]:
    """Begin of each frame on the run's clock.

    Parameters
    ----------
    onset_s, duration_s
        Of the recording, in seconds.
    n_frames
        Frames in the recording.

    Returns
    -------
    (n_frames,) float64
        ``onset_s + i / n_frames * duration_s``.
    """
    return onset_s + np.arange(n_frames, dtype=np.float64) / n_frames * duration_s


def volume_times(n_trs: int, tr_s: float, slice_time_ref: float = MIDDLE) -> NDArray[np.float64]:
    """Time that each volume stands for, (n_trs,) float64: ``(k + slice_time_ref) TR`` in seconds."""
    return (np.arange(n_trs, dtype=np.float64) + slice_time_ref) * tr_s


def volume_of(times_s: ArrayLike, tr_s: float, slice_time_ref: float = MIDDLE) -> NDArray[np.int64]:
    """Volume whose half-open interval of a TR holds each time; negative numbers lie before the first volume."""
    place = np.asarray(times_s, np.float64) / tr_s - (slice_time_ref - MIDDLE)
    return np.floor(place + _ROUNDING).astype(np.int64)


def n_trs_covered(end_s: float, tr_s: float, slice_time_ref: float = MIDDLE) -> int:
    """Volumes whose interval begins before `end_s`."""
    # A clip that ends on a volume's edge, but for rounding, does not reach into the next volume.
    return max(0, math.ceil(end_s / tr_s - (slice_time_ref - MIDDLE) - _ROUNDING))


def covered_s(n_trs: int, tr_s: float, slice_time_ref: float = MIDDLE) -> float:
    """Second until which a series of so many volumes reaches: the end of the last one's interval.

    A scan lasts `n_trs` TRs at least, also where its slices were corrected to a time before the middle of a volume.
    """
    return (n_trs + max(slice_time_ref - MIDDLE, 0.0)) * tr_s


def trimmed(n_trs: int, trim_trs: tuple[int, int]) -> NDArray[np.bool_]:
    """Mark the volumes of a run that are left when so many at its begin and its end are not used, (n_trs,) bool."""
    first, last = trim_trs
    volumes = np.arange(n_trs)
    return (volumes >= first) & (volumes < n_trs - last)


def average_into_trs(
    values: ArrayLike, times_s: ArrayLike, tr_s: float, n_trs: int
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Average samples inside each volume.

    Parameters
    ----------
    values : (n, ...)
        Samples.
    times_s : (n,)
        Their times on the run's clock; samples outside ``[0, n_trs * tr_s)`` are left out.
    tr_s
        Repetition time in seconds.
    n_trs
        Volumes.

    Returns
    -------
    means : (n_trs, ...) float64
        NaN where a volume holds no sample: what has no video is never silently zero.
    counts : (n_trs,) int64
        Samples in each volume.
    """
    values = np.asarray(values, np.float64)
    volumes = volume_of(times_s, tr_s)
    inside = (volumes >= 0) & (volumes < n_trs)
    volumes, values = volumes[inside], values[inside]
    counts = np.bincount(volumes, minlength=n_trs).astype(np.int64)
    sums = np.zeros((n_trs, *values.shape[1:]))
    np.add.at(sums, volumes, values)
    means = np.full_like(sums, np.nan)
    seen = counts > 0
    means[seen] = sums[seen] / counts[seen].reshape(-1, *[1] * (values.ndim - 1))
    return means, counts
