"""The voxels of a simulation: nilearn's MNI152 brain at any resolution, or any mask."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vidbrain.bold.forms.nifti import read_volume
from vidbrain.bold.parcels.atlases import space_of
from vidbrain.bold.voxels import ordered_voxels
from vidbrain.errors import BoldError

SPACE = "MNI152NLin2009cAsym"


@dataclass(frozen=True, kw_only=True, eq=False)
class Grid:
    """Voxels of a brain in a volume.

    Attributes
    ----------
    ijk : (n_voxels, 3) int32
        Along the Morton curve.
    shape
        Of the volume.
    affine : (4, 4)
        Indices to millimetres; its axes are those of the world.
    space
        Name of the space, for file names.
    """

    ijk: NDArray[np.int32]
    shape: tuple[int, int, int]
    affine: NDArray[np.float64]
    space: str


def brain_grid(resolution_mm: int, mask: Path | None = None) -> Grid:
    """Take the voxels of a mask, or of the MNI152 brain that nilearn ships.

    Parameters
    ----------
    resolution_mm
        Edge of a voxel of the MNI152 brain; a mask has its own.
    mask
        3-D image, non-zero inside. Its space is taken from its name (``space-…``), else it is `SPACE`.

    Raises
    ------
    BoldError
        If nothing is inside the mask, or its axes are not those of the world.
    """
    if mask is None:
        inside, affine = mni_brain(resolution_mm)
        return Grid(ijk=ordered_voxels(inside), shape=_shape(inside), affine=affine, space=SPACE)
    values, affine = read_volume(mask)
    turned = affine[:3, :3] - np.diag(np.diag(affine[:3, :3]))
    if np.abs(turned).max() > 1e-3 * np.abs(affine[:3, :3]).max():
        raise BoldError(
            "the axes of the mask are turned against those of the world",
            where=mask,
            hint="resample it to a straight grid",
        )
    ijk = ordered_voxels(values > 0.5)
    if not len(ijk):
        raise BoldError("no voxel lies inside the mask", where=mask, likely="an empty image")
    return Grid(ijk=ijk, shape=_shape(values), affine=affine, space=space_of(mask) or SPACE)


def _shape(volume: NDArray[np.generic]) -> tuple[int, int, int]:
    ni, nj, nk = volume.shape
    return ni, nj, nk


def mni_brain(resolution_mm: int) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Crop the MNI152 brain mask of nilearn to its bounding box and a margin of a voxel; the mask and its affine."""
    from nilearn.datasets import load_mni152_brain_mask  # seconds to import, which help does not have

    image = load_mni152_brain_mask(resolution=resolution_mm)
    mask = np.asarray(image.dataobj) > 0
    inside = np.argwhere(mask)
    first = np.maximum(inside.min(axis=0) - 1, 0)
    last = np.minimum(inside.max(axis=0) + 2, mask.shape)
    affine = np.array(image.affine, np.float64)
    affine[:3, 3] += affine[:3, :3] @ first
    return mask[tuple(slice(a, b) for a, b in zip(first, last, strict=True))], affine
