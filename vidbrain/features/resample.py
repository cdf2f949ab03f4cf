"""Rows of features become one row for each volume of the scanner. Pure arithmetic, weighed by frames.

A row stands for the source frames ``[begin, end)``; a frame belongs to the volume that its begin falls into
(`video.clock`). The value of a volume is the mean over the frames inside it of the rows that stand for them, so a row
which straddles the edge of a volume counts on either side by its frames there, on any clock.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_array

from vidbrain.video.clock import MIDDLE, volume_of


def volume_weights(
    spans: ArrayLike, times_s: ArrayLike, tr_s: float, n_trs: int, slice_time_ref: float = MIDDLE
) -> tuple[csr_array, NDArray[np.int64]]:
    """Weigh the rows of one recording by the frames of theirs in each volume.

    Parameters
    ----------
    spans : (n_rows, 2)
        Frames ``[begin, end)`` of the recording that each row stands for. A frame in k spans counts 1/k for each.
    times_s : (n_frames,)
        Begin of each frame on the run's clock.
    tr_s
        Repetition time in seconds.
    n_trs
        Volumes; frames outside of all of them are left out.
    slice_time_ref
        Where in a volume its time lies (`video.clock`).

    Returns
    -------
    weights : (n_trs, n_rows) sparse float64
        ``weights @ rows`` are sums over frames: add those of other recordings of the run, and divide by the frames.
    n_frames : (n_trs,) int64
        Frames in each volume that a row stands for: what the weights of a volume sum to.
    """
    spans = np.asarray(spans, np.int64)
    volumes = volume_of(times_s, tr_s, slice_time_ref)
    lengths = spans[:, 1] - spans[:, 0]
    row = np.repeat(np.arange(len(spans)), lengths)
    # The frames of all spans one after the other: a running count, restarted at each span's begin.
    frame = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths - spans[:, 0], lengths)
    cover = np.bincount(frame, minlength=len(volumes))
    counted = (cover > 0) & (volumes >= 0) & (volumes < n_trs)
    row, frame = row[counted[frame]], frame[counted[frame]]
    weights = csr_array((1.0 / cover[frame], (volumes[frame], row)), shape=(n_trs, len(spans)))
    return weights, np.bincount(volumes[counted], minlength=n_trs).astype(np.int64)


def mean_of_sums(
    sums: NDArray[np.float64], n_frames: NDArray[np.int64]
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Turn sums over frames into means.

    Parameters
    ----------
    sums : (n_trs, n_features)
        Of all recordings of a run.
    n_frames : (n_trs,)
        Frames that they sum over.

    Returns
    -------
    features : (n_trs, n_features) float32
        0 where a volume holds no frame.
    valid : (n_trs,) bool
        Whether the volume holds a frame. What is not valid must be masked: its zeros are no measurement.
    """
    valid = n_frames > 0
    features = sums / np.maximum(n_frames, 1)[:, None]
    return features.astype(np.float32), valid
