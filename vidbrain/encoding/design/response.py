"""Haemodynamic responses: kernels on the TR grid, features convolved with them, and the rows that they leave usable.

Video that is missing, or came before the run, counts as the feature's mean (0 after standardisation). A row may be
used if little of its response falls on such TRs: at least `MIN_SHARE` of the kernel's absolute weight must fall on TRs
with video.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from vidbrain.encoding.ridge.gram import F32, F64

Response = Literal["fir", "glover", "glover + derivative", "spm", "spm + derivative"]
"""``fir`` gives each delay a weight of its own; the others, named as in nilearn, convolve with a canonical response."""

MIN_SHARE = 0.9
"""Share of a kernel's absolute weight that must fall on TRs with video."""

OVERSAMPLING = 50
"""Samples of the response per TR."""

LENGTH_S = 32.0
"""Seconds after which the response is over."""


def kernels(response: Response, tr_s: float) -> F64:
    """Response of each TR of BOLD to one TR of video.

    Video that lasts a TR is a box; BOLD is taken at the middle of its TR. The kernel is hence the response (Glover
    1999, or SPM's) summed over windows of a TR.

    Parameters
    ----------
    response
        Not ``fir``.
    tr_s
        Repetition time in seconds.

    Returns
    -------
    (n_kernels, n_trs) float64
        Weight of the video 0, 1, 2, ... TRs before. The canonical kernel sums to 1; with ``derivative`` a second kernel
        is its derivative in time, per second.
    """
    # nilearn takes seconds to import: workers that only read a design shall not wait for it.
    from nilearn.glm.first_level import hemodynamic_models as models

    name, _, derivative = response.partition(" + ")
    functions = {
        "glover": (models.glover_hrf, models.glover_time_derivative),
        "spm": (models.spm_hrf, models.spm_time_derivative),
    }[name]
    samples = np.stack([f(tr_s, OVERSAMPLING, LENGTH_S) for f in functions[: 2 if derivative else 1]])
    times_s = np.linspace(0, LENGTH_S, samples.shape[1])
    window = np.floor(times_s / tr_s + 0.5).astype(np.int64)
    return np.stack([np.bincount(window, weights=row) for row in samples])


def convolve(features: F32, kernels: F64) -> F32:
    """Convolve the features of one run.

    Parameters
    ----------
    features : (n_trs, p) float32
    kernels : (n_kernels, n_lags) float64

    Returns
    -------
    (n_trs, n_kernels * p) float32
        Kernel by kernel.
    """
    n_trs, p = features.shape
    out = np.zeros((n_trs, len(kernels), p))
    for position, kernel in enumerate(kernels):
        for lag, weight in enumerate(kernel[:n_trs]):
            out[lag:, position] += weight * features[: n_trs - lag]
    return out.reshape(n_trs, -1).astype(np.float32)


def covered(valid: NDArray[np.bool_], kernel: F64, n_trs: int) -> NDArray[np.bool_]:
    """Mark the TRs of BOLD whose response falls on video by at least `MIN_SHARE` of the kernel's absolute weight.

    Parameters
    ----------
    valid : (n_feature_trs,) bool
        Whether there was video during the TR.
    kernel : (n_lags,) float64
    n_trs
        TRs of BOLD.

    Returns
    -------
    (n_trs,) bool
    """
    padded = np.zeros(n_trs)
    padded[: len(valid)] = valid[:n_trs]
    weight = np.abs(kernel)
    share = np.convolve(padded, weight)[:n_trs] / weight.sum()
    return np.asarray(share >= MIN_SHARE - 1e-9, bool)
