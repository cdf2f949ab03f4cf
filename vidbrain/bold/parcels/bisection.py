"""A parcellation of our own: halves of halves of the brain, balanced, the same on every machine, without any file."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vidbrain.errors import ConfigError


def bisect_voxels(mm: ArrayLike, n_parcels: int) -> tuple[NDArray[np.int32], list[str]]:
    """Cut voxels into compact parcels of nearly equal size by recursive bisection.

    The brain is cut at the middle plane (x = 0) first, so that no parcel lies in both hemispheres. Then each part is
    cut across the axis along which it is widest, in the ratio of the parcels that its two sides will hold, until every
    part is one parcel (the median split of Friedman, Bentley & Finkel 1977). It is a ruler, not anatomy: borders know
    nothing of function, and a parcel may hold two pieces where the brain folds.

    Parameters
    ----------
    mm : (n_voxels, 3)
        Places of the voxels in millimetres.
    n_parcels
        How many.

    Returns
    -------
    parcel : (n_voxels,) int32
        From 1; left hemisphere first.
    names
        Of parcels 1, 2, ...: ``left-001``, ..., ``right-200``.

    Raises
    ------
    ConfigError
        If there are more parcels than voxels, or fewer than one.
    """
    places = np.asarray(mm, np.float64)
    if not 1 <= n_parcels <= len(places):
        raise ConfigError(
            f"{len(places)} voxels cannot be cut into {n_parcels} parcels", hint="--n from 1 to that many"
        )
    left = np.flatnonzero(places[:, 0] < 0)
    right = np.flatnonzero(places[:, 0] >= 0)
    if not len(left) or not len(right) or n_parcels == 1:
        parts = _halved(places, np.arange(len(places)), n_parcels)
        names = [f"part-{number:03d}" for number in range(1, n_parcels + 1)]
    else:
        n_left = int(np.clip(round(n_parcels * len(left) / len(places)), 1, n_parcels - 1))
        n_left = min(max(n_left, n_parcels - len(right)), len(left))
        parts = [*_halved(places, left, n_left), *_halved(places, right, n_parcels - n_left)]
        names = [f"left-{number:03d}" for number in range(1, n_left + 1)]
        names += [f"right-{number:03d}" for number in range(1, n_parcels - n_left + 1)]
    parcel = np.zeros(len(places), np.int32)
    for number, members in enumerate(parts, start=1):
        parcel[members] = number
    return parcel, names


def _halved(places: NDArray[np.float64], members: NDArray[np.intp], n: int) -> list[NDArray[np.intp]]:
    """Cut `members` into n parts, in the order of the cuts."""
    if n == 1:
        return [members]
    mine = places[members]
    axis = int(np.argmax(np.ptp(mine, axis=0)))
    # Voxels at one place along the axis are told apart by the other axes: no tie is left to the order of the input.
    order = members[np.lexsort((mine[:, (axis + 2) % 3], mine[:, (axis + 1) % 3], mine[:, axis]))]
    first = n // 2
    cut = int(np.clip(round(len(members) * first / n), first, len(members) - (n - first)))
    return [*_halved(places, order[:cut], first), *_halved(places, order[cut:], n - first)]
