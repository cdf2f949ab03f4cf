"""What a scanner adds: smooth noise with memory, drift, motion at edges, physiology. Pure functions of a generator.

Amplitudes are in units of the noise's standard deviation.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, gaussian_filter1d

Generator = np.random.Generator
MOTION = ("trans_x", "trans_y", "trans_z", "rot_x", "rot_y", "rot_z")
"""Millimetres and radians, named as fMRIPrep does."""


def ar1(
    innovations: NDArray[np.floating], rho: float, before: NDArray[np.floating] | None = None
) -> NDArray[np.floating]:
    """Give innovations of unit variance a memory: a stationary first-order process of unit variance.

    Parameters
    ----------
    innovations : (n, ...)
        Independent along the first axis.
    rho
        Correlation of neighbours in time.
    before : (...)
        Last value of the block before; without it the process starts in its stationary state.

    Returns
    -------
    (n, ...)
        Of the innovations' type.
    """
    out = np.empty_like(innovations)
    fresh = np.float32(np.sqrt(1.0 - rho**2))
    for t, innovation in enumerate(innovations):
        if before is None:
            out[t] = innovation
        else:
            out[t] = np.float32(rho) * before + fresh * innovation
        before = out[t]
    return out


def smooth_noise(rng: Generator, n: int, shape: tuple[int, ...], sigma: float) -> NDArray[np.float32]:
    """White in time, Gaussian-smooth in space, unit variance everywhere (the box wraps round).

    Parameters
    ----------
    rng
        Moved on by n volumes.
    n
        Volumes.
    shape
        Of a volume.
    sigma
        Of the Gaussian, in voxels.

    Returns
    -------
    (n, *shape) float32
    """
    white = rng.standard_normal((n, *shape), dtype=np.float32)
    if sigma <= 0:
        return white
    impulse = np.zeros(max(65, 2 * int(4 * sigma) + 3))
    impulse[len(impulse) // 2] = 1.0
    power = float((gaussian_filter1d(impulse, sigma, mode="wrap") ** 2).sum()) ** len(shape)
    smooth = gaussian_filter(white, (0.0, *[sigma] * len(shape)), mode="wrap")
    smooth *= np.float32(power**-0.5)
    return smooth


def motion_traces(rng: Generator, n_trs: int) -> NDArray[np.float64]:
    """Head motion of one run: slow wandering and a few sudden moves, (n_trs, 6) in the order of `MOTION`."""
    steps = rng.standard_normal((n_trs, 6))
    sudden = rng.random((n_trs, 1)) < 0.02
    steps += 6.0 * sudden * rng.standard_normal((n_trs, 6))
    # A leaky walk: the head is held, so it does not wander without bound.
    wander = np.zeros((n_trs, 6))
    for t in range(1, n_trs):
        wander[t] = 0.97 * wander[t - 1] + steps[t]
    return wander * np.array([0.02, 0.02, 0.03, 0.0004, 0.0003, 0.0003])


def edge_maps(baseline: NDArray[np.float64], affine: NDArray[np.float64], noise_share: float) -> NDArray[np.float64]:
    """How much a voxel changes when the head moves a little.

    A displaced image differs by its gradient: strongly at the edge of the brain, hardly inside.

    Parameters
    ----------
    baseline : (ni, nj, nk)
        Mean image.
    affine : (4, 4)
        Indices to millimetres.
    noise_share
        Standard deviation of the noise as a share of the baseline.

    Returns
    -------
    (6, ni, nj, nk) float64
        Noise standard deviations per unit of each trace of `MOTION`, at most 20 a millimetre.
    """
    voxel_mm = np.diag(affine)[:3]
    gradient = np.stack([np.gradient(baseline, axis=axis) / voxel_mm[axis] for axis in range(3)])
    edge = np.clip(gradient / np.maximum(baseline, 0.05 * baseline.max()) / noise_share, -20.0, 20.0)
    grid = np.indices(baseline.shape, np.float64)
    mm = voxel_mm[:, None, None, None] * grid + affine[:3, 3, None, None, None]
    # Rotation by a small angle moves a point by angle × its place: e · (w × r) = w · (r × e).
    turning = np.cross(mm, edge, axis=0)
    return np.concatenate([edge, turning])


def framewise_displacement(traces: NDArray[np.float64], radius_mm: float = 50.0) -> NDArray[np.float64]:
    """Sum of absolute changes, rotations as arcs of a sphere (Power et al. 2012), (n_trs,); NaN at the first volume."""
    scaled = traces * np.array([1.0, 1.0, 1.0, radius_mm, radius_mm, radius_mm])
    return np.concatenate([[np.nan], np.abs(np.diff(scaled, axis=0)).sum(axis=1)])


def cosine_drifts(n_trs: int, tr_s: float, longest_s: float = 128.0) -> NDArray[np.float64]:
    """Discrete cosine basis of periods above `longest_s`, without the constant, as fMRIPrep and SPM make it.

    Returns
    -------
    (n_trs, n) float64
        Columns of unit norm; n may be 0 in a short run.
    """
    order = int(np.floor(2 * n_trs * tr_s / longest_s))
    t = np.arange(n_trs)[:, None]
    k = np.arange(1, min(order, n_trs - 1) + 1)[None, :]
    return np.sqrt(2.0 / n_trs) * np.cos(np.pi / n_trs * (t + 0.5) * k)


def without_drift(series: NDArray[np.float64], tr_s: float) -> NDArray[np.float64]:
    """Remove mean, line and slow cosines, as any cleaning will, (n_trs, n) to the same."""
    n = len(series)
    basis = np.column_stack([np.ones(n), np.linspace(-1, 1, n), cosine_drifts(n, tr_s)])
    q, _ = np.linalg.qr(basis)
    return series - q @ (q.T @ series)


@dataclass(frozen=True, kw_only=True)
class Nuisance:
    """Sources of one run that many voxels share: maps times traces.

    Attributes
    ----------
    maps : (n_sources, n_voxels) float32
        How strongly each voxel takes part.
    traces : (n_trs, n_sources) float32
        In units of the noise's standard deviation.
    motion : (n_trs, 6) float64
        The head's path, for the confounds.
    """

    maps: NDArray[np.float32]
    traces: NDArray[np.float32]
    motion: NDArray[np.float64]


def draw_nuisance(
    rng: Generator,
    ijk: NDArray[np.int32],
    shape: tuple[int, ...],
    edges: NDArray[np.float64],
    n_trs: int,
    *,
    drift: float = 1.0,
    physiology: float = 1.0,
    motion: float = 1.0,
) -> Nuisance:
    """Draw drift, physiology and motion of one run.

    Parameters
    ----------
    rng
        Of the run.
    ijk : (n_voxels, 3)
        Voxels of the brain.
    shape
        Of the volume.
    edges : (6, n_voxels)
        From `edge_maps`, at the voxels.
    n_trs
        Volumes.
    drift, physiology, motion
        How strong each is, as a multiple of the usual.

    Returns
    -------
    Nuisance
    """
    t = np.linspace(-1.0, 1.0, n_trs)
    drifts = np.stack([t, np.cos(np.pi * (t + 1) / 2), np.cos(np.pi * (t + 1))], axis=1)
    globals_ = ar1(rng.standard_normal((n_trs, 2)), 0.6)
    path = motion * motion_traces(rng, n_trs)
    fields = smooth_noise(rng, 5, shape, 4.0)[(slice(None), *ijk.T)]
    maps = np.concatenate([fields[:3], 0.4 + 0.1 * fields[3:], edges])
    traces = np.concatenate([drift * drifts, physiology * globals_, path], axis=1)
    return Nuisance(maps=maps.astype(np.float32), traces=traces.astype(np.float32), motion=path)
