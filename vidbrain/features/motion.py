"""Motion energy: quadrature pairs of spatio-temporal Gabor filters on grey video, in plain NumPy.

Method and choice of filters follow Adelson & Bergen (1985, J. Opt. Soc. Am. A 2, 284) and Nishimoto et al. (2011,
Curr. Biol. 21, 1641): a filter is a drifting grating under a Gaussian window in space and time, its energy the sum of
the squared responses at two phases a quarter cycle apart. So it tells how much contrast of one spatial frequency
drifts in one direction at one speed near one place, whatever the phase of the pattern.

A drifting Gabor is the product of a complex Gabor in space and one in time, and both phases are the real and the
imaginary part of one complex number; opposite directions differ in the sign of the temporal frequency alone. The video
is therefore projected once on the spatial filters (one matrix product) and then filtered in time.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from vidbrain.errors import ConfigError
from vidbrain.features.pooling import averaging_matrix

LUMA = np.array([0.299, 0.587, 0.114])
"""Weights of red, green and blue in grey, ITU-R BT.601."""

GREY_LEVEL = 1.0 / 255.0
"""Floor of the compressed amplitude: the video holds nothing finer than one grey level."""


@dataclass(frozen=True, kw_only=True)
class MotionConfig:
    """The filters. Spatial frequencies, grids of centres and pooled grids go together by position."""

    size: int = 32
    """pixels a side, to which the grey video is averaged first"""
    cycles: tuple[float, ...] = (2.0, 4.0, 8.0)
    """spatial frequencies in cycles per image"""
    centres: tuple[int, ...] = (2, 4, 8)
    """filters along each side, for each spatial frequency"""
    cells: tuple[int, ...] = (2, 4, 4)
    """cells along each side over which energies are averaged, for each spatial frequency"""
    n_orientations: int = 4
    """orientations of the gratings; each drifts in two directions"""
    temporal_hz: tuple[float, ...] = (0.0, 4.0)
    """temporal frequencies; 0 is a standing pattern and has no direction"""
    envelope_cycles: float = 0.6
    """standard deviation of the spatial Gaussian in cycles of the grating"""
    envelope_s: float = 0.2
    """standard deviation of the temporal Gaussian in seconds"""
    reach_s: float = 1.0 / 3.0
    """half length of the temporal filter in seconds"""

    def __post_init__(self) -> None:
        if not len(self.cycles) == len(self.centres) == len(self.cells) > 0:
            raise ConfigError("cycles, centres and cells need one entry for each spatial frequency")
        for cycles, centres, cells in zip(self.cycles, self.centres, self.cells, strict=True):
            if not 0 < cycles < self.size / 2:
                raise ConfigError(f"{cycles:g} cycles cannot be seen in {self.size} pixels")
            if cells < 1 or centres % cells:
                raise ConfigError(f"{cells} cells do not divide {centres} filter centres")
        if not self.temporal_hz or min(self.temporal_hz) < 0 or self.n_orientations < 1:
            raise ConfigError("motion energy needs an orientation and temporal frequencies of at least 0 Hz")

    @property
    def n_features(self) -> int:
        """Energies in each row."""
        directions = sum(1 if hz == 0 else 2 for hz in self.temporal_hz)
        return self.n_orientations * directions * sum(cells**2 for cells in self.cells)


def to_grey(video: NDArray[np.uint8], size: int) -> NDArray[np.float32]:
    """Average frames to small grey ones.

    Parameters
    ----------
    video : (..., H, W, 3) uint8
        sRGB as shown.
    size
        Pixels a side.

    Returns
    -------
    (..., size, size) float32
        Luma in [0, 1].
    """
    height, width = video.shape[-3:-1]
    rows = averaging_matrix(height, size).astype(np.float32)
    # Averaging along a line of pixels and mixing its colours are one matrix product.
    columns = np.kron(averaging_matrix(width, size).T, LUMA[:, None] / 255.0).astype(np.float32)
    lines = video.reshape(-1, 3 * width).astype(np.float32) @ columns
    small: NDArray[np.float32] = rows @ lines.reshape(*video.shape[:-2], size)
    return small


@cache
def spatial_filters(
    size: int, cycles: float, n_centres: int, n_orientations: int, envelope_cycles: float
) -> NDArray[np.complex64]:
    """Complex Gabors of one spatial frequency.

    Orientation o drifts towards ``180° o / n_orientations``, counted from rightwards to upwards, under a positive
    temporal frequency. Each sums to zero, so that flat frames have no energy at the borders of the image either, and is
    scaled so that a matching grating of amplitude a gives a.

    Returns
    -------
    (size * size, n_orientations * n_centres**2) complex64
        Columns in the order (orientation, row, column of the centre).
    """
    axis = (np.arange(size) + 0.5) / size
    y, x = np.meshgrid(-axis, axis, indexing="ij")  # y grows upwards
    places = (np.arange(n_centres) + 0.5) / n_centres
    sigma = envelope_cycles / cycles
    filters = []
    for angle in np.pi * np.arange(n_orientations) / n_orientations:
        wave = np.exp(2j * np.pi * cycles * (x * np.cos(angle) + y * np.sin(angle)))
        for row in places:
            for column in places:
                envelope = np.exp(-((x - column) ** 2 + (y + row) ** 2) / (2 * sigma**2))
                envelope /= envelope.sum()
                filters.append(2 * envelope * (wave - (envelope * wave).sum()))
    stacked = np.stack(filters, axis=-1).reshape(size * size, -1).astype(np.complex64)
    stacked.setflags(write=False)  # it is shared between calls
    return stacked


def temporal_filter(hz: float, rate_hz: float, envelope_s: float, n_reach: int) -> NDArray[np.complex64]:
    """Complex Gabor in time, (2 * n_reach + 1,).

    It sums to zero unless `hz` is 0, so that what stands still has no motion.
    """
    times = np.arange(-n_reach, n_reach + 1) / rate_hz
    envelope = np.exp(-(times**2) / (2 * envelope_s**2))
    envelope /= envelope.sum()
    wave = np.exp(2j * np.pi * hz * times)
    filtered = envelope * wave if hz == 0 else envelope * (wave - (envelope * wave).sum())
    return filtered.astype(np.complex64)


def motion_energy(grey: NDArray[np.float32], rate_hz: float, config: MotionConfig) -> NDArray[np.float32]:
    """Compressed motion energy of clips.

    Parameters
    ----------
    grey : (B, T, size, size)
        As `to_grey` gives it. The first and last `reach(config, rate_hz)` frames are context.
    rate_hz
        Frames per second.
    config
        The filters.

    Returns
    -------
    (B, T - 2 * reach, n_features) float32
        ``log(amplitude + 1/255)``, where amplitude is the root of the mean energy in a cell. Features in the order
        (spatial frequency, temporal frequency, sign of drift, orientation, row, column); the first sign drifts towards
        the angle of the orientation, the second away from it.
    """
    n_clips, n_frames = grey.shape[:2]
    n_reach = reach(config, rate_hz)
    n_out = n_frames - 2 * n_reach
    # Time goes first, so that projecting and filtering are one large matrix product each, and not one for each clip.
    flat = grey.transpose(1, 0, 2, 3).reshape(n_frames * n_clips, -1)
    kernels = []
    for hz in config.temporal_hz:
        kernel = temporal_filter(hz, rate_hz, config.envelope_s, n_reach)
        # A pattern that drifts along the wave turns its response by +f; the conjugate kernel follows it.
        kernels += [kernel] if hz == 0 else [kernel.conj(), kernel]
    sliding = np.concatenate([_sliding(kernel, n_out) for kernel in kernels])
    scales = []
    for cycles, centres, cells in zip(config.cycles, config.centres, config.cells, strict=True):
        gabors = spatial_filters(config.size, cycles, centres, config.n_orientations, config.envelope_cycles)
        # Real video: the product with the real and imaginary columns side by side is the complex one.
        responses = (flat @ gabors.view(np.float32)).view(np.complex64)
        drift = sliding @ responses.reshape(n_frames, -1)
        energy = drift.real**2 + drift.imag**2
        side = centres // cells
        energy = energy.reshape(len(kernels), n_out, n_clips, -1, cells, side, cells, side).mean(axis=(5, 7))
        scales.append(energy.transpose(2, 1, 0, 3, 4, 5).reshape(n_clips, n_out, -1))
    amplitude = np.sqrt(np.concatenate(scales, axis=-1))
    return np.log(amplitude + np.float32(GREY_LEVEL)).astype(np.float32)


def reach(config: MotionConfig, rate_hz: float) -> int:
    """Frames that a temporal filter sees on either side of its own."""
    return round(config.reach_s * rate_hz)


def _sliding(kernel: NDArray[np.complex64], n_out: int) -> NDArray[np.complex64]:
    """The matrix, (n_out, n_out + len(kernel) - 1), that slides a kernel along time."""
    matrix = np.zeros((n_out, n_out + len(kernel) - 1), np.complex64)
    for lag, weight in enumerate(kernel):
        np.fill_diagonal(matrix[:, lag:], weight)
    return matrix
