"""The clock: when a frame was on the screen, and which volume of the scanner it belongs to. Pure arithmetic.

Volume k covers ``[k TR, (k + 1) TR)`` of the run's clock. A recording's frames are spread evenly over its wall-clock
duration, because the console's rate (nominally 59.92 Hz), the file's 60 Hz and the scanner computer's clock differ.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray


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


def volume_of(times_s: ArrayLike, tr_s: float) -> NDArray[np.int64]:
    """Volume whose half-open interval holds each time; negative times fall before the first volume."""
    return np.floor(np.asarray(times_s, np.float64) / tr_s).astype(np.int64)


def n_trs_covered(end_s: float, tr_s: float) -> int:
    """Volumes that begin before `end_s`."""
    # A clip that ends on a volume's edge, but for rounding, does not reach into the next volume.
    return max(0, math.ceil(end_s / tr_s - 1e-9))


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
