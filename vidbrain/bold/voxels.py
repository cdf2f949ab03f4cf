"""Which voxels a store holds, in which order, and where they lie in the volume. Pure NumPy.

Voxels follow the Morton curve, so that a block of neighbouring columns is a block of neighbouring places: a region of
the brain touches few chunks of a store.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def morton_code(ijk: ArrayLike) -> NDArray[np.uint64]:
    """Position on the Morton (Z-order) curve.

    Parameters
    ----------
    ijk : (n, 3)
        Indices, each below 2**21.

    Returns
    -------
    (n,) uint64
        Bits of i, j and k interleaved, i in the lowest place.
    """
    ijk = np.asarray(ijk, np.uint64)
    if ijk.size and int(ijk.max()) >= 1 << 21:
        raise ValueError("Morton codes of 64 bits hold indices below 2**21")
    code = np.zeros(len(ijk), np.uint64)
    # Each step opens gaps of two bits: the usual bit trick for three dimensions.
    steps = (
        (32, 0x1F00000000FFFF),
        (16, 0x1F0000FF0000FF),
        (8, 0x100F00F00F00F00F),
        (4, 0x10C30C30C30C30C3),
        (2, 0x1249249249249249),
    )
    for axis in range(3):
        bits = ijk[:, axis].copy()
        for shift, pattern in steps:
            bits = (bits | bits << np.uint64(shift)) & np.uint64(pattern)
        code |= bits << np.uint64(axis)
    return code


def ordered_voxels(mask: ArrayLike) -> NDArray[np.int32]:
    """Voxels of a mask along the Morton curve.

    Parameters
    ----------
    mask : (ni, nj, nk)
        True or non-zero inside.

    Returns
    -------
    (n_voxels, 3) int32
    """
    ijk = np.argwhere(np.asarray(mask) != 0)
    return ijk[np.argsort(morton_code(ijk), kind="stable")].astype(np.int32)


def flat_index(ijk: ArrayLike, shape: tuple[int, ...]) -> NDArray[np.int64]:
    """Place of each voxel in a volume that is flattened as NIfTI files store it (first index fastest)."""
    index: NDArray[np.int64] = np.ravel_multi_index(tuple(np.asarray(ijk, np.int64).T), shape, order="F")
    return index


def to_volume(values: ArrayLike, ijk: ArrayLike, shape: tuple[int, ...], fill: float = 0.0) -> NDArray[np.generic]:
    """Put one value a voxel into its volume.

    Parameters
    ----------
    values : (n_voxels,)
        Booleans become uint8, which NIfTI can hold.
    ijk : (n_voxels, 3)
        Where each lies.
    shape
        Of the volume.
    fill
        Value outside.

    Returns
    -------
    (ni, nj, nk)
        Of the values' type.
    """
    values = np.asarray(values)
    if values.dtype == bool:
        values = values.astype(np.uint8)
    volume = np.full(shape, fill, values.dtype)
    volume[tuple(np.asarray(ijk).T)] = values
    return volume


def centres_mm(ijk: ArrayLike, affine: ArrayLike) -> NDArray[np.float64]:
    """Millimetre coordinates of voxel centres, (n_voxels, 3)."""
    affine = np.asarray(affine, np.float64)
    return np.asarray(ijk, np.float64) @ affine[:3, :3].T + affine[:3, 3]
