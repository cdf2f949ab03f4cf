"""What drives the simulated brain, from what was really on the screen, pressed and scored.

Frame-rate series are averaged into a fine time grid (a few bins a volume), convolved with the canonical haemodynamic
response and sampled at the middle of each volume, ``(k + 1/2) TR``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.signal import fftconvolve

from vidbrain.records import Recording
from vidbrain.video.clock import average_into_trs, frame_times
from vidbrain.video.decode import read_frames, read_table

BINS_PER_TR = 16
"""Bins of the fine time grid in a volume; even, so that two of them meet at the volume's middle."""
CHANNELS = ("luminance", "contrast", "motion")
"""What is measured in each cell of the screen's grid."""
BUTTONS = ("B", "A", "MODE", "START", "UP", "DOWN", "LEFT", "RIGHT", "C", "Y", "X", "Z")
"""Buttons of the console's controller, in the emulator's order."""
EVENTS = ("score", "lives_lost")
"""Game events: steps up of the RAM variable `score`, steps down of `lives`."""
KINDS = ("noise", "visual", "motor", "event")
"""Kinds of voxels, by code; a driver has the code of the voxels that it drives."""

_LUMA = np.array([0.299, 0.587, 0.114], np.float32) / 255.0
_SD_FLOOR = 0.25


def driver_names(grid: int) -> tuple[str, ...]:
    """All drivers in order: channel by channel, row by row of the screen's grid, then buttons, then events."""
    cells = [f"{channel}_row-{row}_col-{col}" for channel in CHANNELS for row in range(grid) for col in range(grid)]
    return (*cells, *(f"button_{name}" for name in BUTTONS), *(f"event_{name}" for name in EVENTS))


def driver_kinds(names: Sequence[str]) -> NDArray[np.int8]:
    """Code of the voxels that each driver drives (`KINDS`)."""
    codes = {"button": 2, "event": 3}
    return np.array([codes.get(name.split("_", 1)[0], 1) for name in names], np.int8)


def screen_measures(
    frames: NDArray[np.uint8], grid: int, before: NDArray[np.float32] | None = None
) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    """Measure luminance, contrast and motion energy in the cells of a grid.

    Parameters
    ----------
    frames : (n, H, W, 3) uint8
        Neighbouring frames; H and W are multiples of `grid`.
    grid
        Cells along each side of the screen.
    before : (H, W) float32
        Luminance of the frame before the first; without it the first frame has no motion.

    Returns
    -------
    measures : (n, 3, grid, grid) float64
        Mean luminance (0 to 1), standard deviation of the luminance, mean squared change since the frame before.
    last : (H, W) float32
        Luminance of the last frame: `before` of the next call.
    """
    luma = np.tensordot(frames.astype(np.float32), _LUMA, axes=1)
    n, height, width = luma.shape
    first = luma[0] if before is None else before
    change = np.diff(luma, axis=0, prepend=first[None]) ** 2

    def cells(values: NDArray[np.float32]) -> NDArray[np.float64]:
        blocks = values.reshape(n, grid, height // grid, grid, width // grid)
        return blocks.mean(axis=(2, 4), dtype=np.float64)

    mean = cells(luma)
    variance = cells(luma**2) - mean**2
    return np.stack([mean, np.sqrt(np.maximum(variance, 0.0)), cells(change)], axis=1), luma[-1]


def frame_drivers(recording: Recording, *, grid: int, size: int) -> NDArray[np.float64]:
    """Drivers of every frame of a replayed recording.

    Parameters
    ----------
    recording
        With its video and, beside it, the table of buttons and RAM variables.
    grid
        Cells along each side of the screen.
    size
        Height and width to which frames are decoded, a multiple of `grid`.

    Returns
    -------
    (n_frames, n_drivers) float64
        In the order of `driver_names`; what the table does not hold is 0.
    """
    if recording.video is None:
        raise ValueError(f"{recording.key} has no video")
    blocks, last = [], None
    for frames in read_frames(recording.video, size=(size, size)):
        measures, last = screen_measures(frames, grid, last)
        blocks.append(measures.reshape(len(frames), -1))
    screen = np.concatenate(blocks)
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


@dataclass(frozen=True)
class Moments:
    """Count, sum and sum of squares of each driver over bins with video; they add over runs."""

    n: float
    total: NDArray[np.float64]
    squares: NDArray[np.float64]

    @classmethod
    def of(cls, fine: NDArray[np.float64]) -> Moments:
        """Moments of one run's fine series."""
        seen = fine[np.isfinite(fine).all(axis=1)]
        return cls(float(len(seen)), seen.sum(axis=0), (seen**2).sum(axis=0))

    def __add__(self, other: Moments) -> Moments:
        return Moments(self.n + other.n, self.total + other.total, self.squares + other.squares)


def scaling(moments: Moments, kinds: NDArray[np.int8]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Centre and scale of each driver over the whole data set.

    A cell of the screen where little happens keeps little variance (the floor is a quarter of the largest standard
    deviation of its channel): else the codec's noise in a black corner would drive voxels as strongly as the game.
    Buttons and events are not centred: no press is 0.

    Parameters
    ----------
    moments
        Over all runs.
    kinds : (n_drivers,)
        Codes of `driver_kinds`.

    Returns
    -------
    centre, scale : (n_drivers,) float64
        A driver that never varies has scale infinity, which makes it 0.
    """
    mean = moments.total / max(moments.n, 1.0)
    sd = np.sqrt(np.maximum(moments.squares / max(moments.n, 1.0) - mean**2, 0.0))
    scale = np.where(sd > 1e-9, sd, np.inf)
    for cells in np.array_split(np.flatnonzero(kinds == 1), len(CHANNELS)):
        largest = sd[cells].max(initial=0.0)
        scale[cells] = np.maximum(sd[cells], _SD_FLOOR * largest) if largest > 1e-9 else np.inf
    return np.where(kinds == 1, mean, 0.0), scale


def standardised(
    fine: NDArray[np.float64], centre: NDArray[np.float64], scale: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Scale a fine series; where nothing is on the screen (fixation at its mean grey) every driver is 0."""
    return np.nan_to_num((fine - centre) / scale, nan=0.0)


def per_tr(fine: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean of each volume's bins, (n_trs, n_drivers): the drivers before the haemodynamic response."""
    return fine.reshape(-1, BINS_PER_TR, fine.shape[1]).mean(axis=1)


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
    response = fftconvolve(fine, hrf[:, None], axes=0)[: len(fine)]
    bins = response.reshape(-1, BINS_PER_TR, fine.shape[1])
    half = BINS_PER_TR // 2
    # The middle lies on the edge between two bins, each of which stands for its own middle.
    return 0.5 * (bins[:, half - 1] + bins[:, half])
