"""What drives the simulated brain, from what was really on the screen, pressed and scored.

Frame-rate series are averaged into a fine time grid (a few bins a volume), convolved with the canonical haemodynamic
response and sampled at the middle of each volume, ``(k + 1/2) TR``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vidbrain.bold.simulation.screen import CHANNELS, measure_video
from vidbrain.records import Recording
from vidbrain.video.clock import average_into_trs, frame_times
from vidbrain.video.decode import read_table

BINS_PER_TR = 16
"""Bins of the fine time grid in a volume; even, so that two of them meet at the volume's middle."""
BUTTONS = ("B", "A", "MODE", "START", "UP", "DOWN", "LEFT", "RIGHT", "C", "Y", "X", "Z")
"""Buttons of the console's controller, in the emulator's order."""
EVENTS = ("score", "lives_lost")
"""Game events: steps up of the RAM variable `score`, steps down of `lives`."""
KINDS = ("noise", "visual", "motor", "event")
"""Kinds of voxels, by code; a driver has the code of the voxels that it drives."""

CANONICAL_PEAK_S = 5.0
"""When SPM's response to an impulse peaks."""

_DENSE = 16
_SD_FLOOR = 0.25
_STILL = 1e-9


def driver_names(grid: int) -> tuple[str, ...]:
    """All drivers in order: channel by channel, row by row of the screen's grid, then buttons, then events."""
    cells = [f"{channel}_row-{row}_col-{col}" for channel in CHANNELS for row in range(grid) for col in range(grid)]
    return (*cells, *(f"button_{name}" for name in BUTTONS), *(f"event_{name}" for name in EVENTS))


def driver_kinds(names: Sequence[str]) -> NDArray[np.int8]:
    """Code of the voxels that each driver drives (`KINDS`)."""
    codes = {"button": 2, "event": 3}
    return np.array([codes.get(name.split("_", 1)[0], 1) for name in names], np.int8)


def frame_drivers(recording: Recording, *, grid: int, samples: int) -> NDArray[np.float64]:
    """Drivers of every frame of a replayed recording.

    Parameters
    ----------
    recording
        With its video and, beside it, the table of buttons and RAM variables.
    grid
        Cells along each side of the screen.
    samples
        Boxes along each side in which luminance is averaged before anything is measured.

    Returns
    -------
    (n_frames, n_drivers) float64
        In the order of `driver_names`; what the table does not hold is 0.
    """
    if recording.video is None:
        raise ValueError(f"{recording.key} has no video")
    screen = measure_video(recording.video, grid=grid, samples=samples)
    table = read_table(recording)
    # A replay table and its video can differ by a frame at the end: the clock spreads the video's frames.
    n = len(screen)
    behaviour = np.zeros((n, len(BUTTONS) + len(EVENTS)))
    for column, name in enumerate(BUTTONS):
        if name in table:
            behaviour[: len(table), column] = table[name].to_numpy(np.float64)[:n]
    for column, (variable, sign) in enumerate((("score", 1.0), ("lives", -1.0)), start=len(BUTTONS)):
        if variable in table:
            behaviour[: len(table), column] = event_steps(table[variable].to_numpy(np.float64), sign)[:n]
    return np.concatenate([screen, behaviour], axis=1)


def event_steps(values: ArrayLike, sign: float) -> NDArray[np.float64]:
    """1 at each frame where a counter steps in the direction of `sign`, else 0; (n,) to (n,)."""
    steps = np.diff(np.asarray(values, np.float64), prepend=np.asarray(values, np.float64)[:1])
    return (steps * sign > 0).astype(np.float64)


def fine_series(
    parts: Iterable[tuple[NDArray[np.float64], float, float]], *, tr_s: float, n_trs: int, n_drivers: int
) -> NDArray[np.float64]:
    """Average the recordings of one run into the fine time grid.

    Parameters
    ----------
    parts
        For each recording its frame drivers (n_frames, n_drivers), onset and duration in seconds.
    tr_s, n_trs
        Of the run.
    n_drivers
        Columns.

    Returns
    -------
    (n_trs * BINS_PER_TR, n_drivers) float64
        NaN where nothing was on the screen.
    """
    n_bins = n_trs * BINS_PER_TR
    sums, counts = np.zeros((n_bins, n_drivers)), np.zeros(n_bins)
    for values, onset_s, duration_s in parts:
        times = frame_times(onset_s, duration_s, len(values))
        means, n = average_into_trs(values, times, tr_s / BINS_PER_TR, n_bins)
        seen = n > 0
        sums[seen] += means[seen] * n[seen, None]
        counts += n
    fine = np.full((n_bins, n_drivers), np.nan)
    seen = counts > 0
    fine[seen] = sums[seen] / counts[seen, None]
    return fine


def scaling(second: ArrayLike, kinds: NDArray[np.int8]) -> NDArray[np.float64]:
    """Scale of each driver over the whole data set: the standard deviation of the response that it causes.

    A cell of the screen where little happens keeps little variance (the floor is a quarter of the largest standard
    deviation of its channel): else the codec's noise in a black corner would drive voxels as strongly as the game.

    Parameters
    ----------
    second : (n_drivers,)
        Mean square over all runs of the convolved drivers without drift.
    kinds : (n_drivers,)
        Codes of `driver_kinds`.

    Returns
    -------
    (n_drivers,) float64
        Infinity for a driver that never varies, which makes it 0.
    """
    sd = np.sqrt(np.asarray(second, np.float64))
    scale = np.where(sd > _STILL, sd, np.inf)
    for cells in np.array_split(np.flatnonzero(kinds == 1), len(CHANNELS)):
        largest = sd[cells].max(initial=0.0)
        scale[cells] = np.maximum(sd[cells], _SD_FLOOR * largest) if largest > _STILL else np.inf
    return scale


def centred(fine: NDArray[np.float64], centre: NDArray[np.float64]) -> NDArray[np.float64]:
    """Subtract each driver's mean; where nothing is on the screen (fixation at its mean grey) every driver is 0."""
    return np.nan_to_num(fine - centre, nan=0.0)


def per_tr(fine: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean of each volume's bins, (n_trs, n_drivers): the drivers before the haemodynamic response."""
    return fine.reshape(-1, BINS_PER_TR, fine.shape[1]).mean(axis=1)


def canonical_hrf(tr_s: float, peak_s: float = CANONICAL_PEAK_S) -> NDArray[np.float64]:
    """SPM's canonical response on the fine time grid; it sums to 1.

    Parameters
    ----------
    tr_s
        Repetition time in seconds.
    peak_s
        Seconds from an impulse to the peak; another one than SPM's stretches the whole response in time.
    """
    from nilearn.glm.first_level import spm_hrf  # a second to import, which help does not have

    if peak_s == CANONICAL_PEAK_S:
        return np.asarray(spm_hrf(tr_s, oversampling=BINS_PER_TR), np.float64)
    stretch = peak_s / CANONICAL_PEAK_S
    dense = np.asarray(spm_hrf(tr_s, oversampling=_DENSE * BINS_PER_TR), np.float64)
    step_s = tr_s / BINS_PER_TR
    times_s = np.arange(math.ceil(len(dense) / _DENSE * stretch)) * step_s
    response = np.interp(times_s / stretch, np.arange(len(dense)) * step_s / _DENSE, dense, right=0.0)
    return np.asarray(response / response.sum(), np.float64)


def haemodynamic(fine: NDArray[np.float64], hrf: NDArray[np.float64]) -> NDArray[np.float64]:
    """Convolve with a response and sample at the middle of each volume.

    Parameters
    ----------
    fine : (n_trs * BINS_PER_TR, n)
        Standardised series; the run begins at rest.
    hrf : (m,)
        Response on the same grid.

    Returns
    -------
    (n_trs, n) float64
    """
    n = len(fine) + len(hrf) - 1
    spectrum = np.fft.rfft(fine, n, axis=0) * np.fft.rfft(hrf, n)[:, None]
    response = np.fft.irfft(spectrum, n, axis=0)[: len(fine)]
    bins = response.reshape(-1, BINS_PER_TR, fine.shape[1])
    half = BINS_PER_TR // 2
    # The middle lies on the edge between two bins, each of which stands for its own middle.
    return 0.5 * (bins[:, half - 1] + bins[:, half])
