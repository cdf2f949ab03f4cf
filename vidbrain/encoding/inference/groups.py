"""Four to six subjects: what each shows, how often it replicates, and what few subjects cannot show.

With so few subjects the evidence lies within them: p and q of each, and the count of subjects in which an effect
replicates. A test over subjects has a floor that no effect can pass: 2^-4 = 0.06 with four, 2^-6 = 0.016 with six.
Arrays over voxels need a common space; else take means over parcels first.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.stats
from numpy.typing import NDArray

F64 = NDArray[np.float64]

MOST_SUBJECTS = 16
"""All 2^N sign-flips are tried."""


def replication_count(q: NDArray[Any], level: float) -> NDArray[np.int64]:
    """Count the subjects in which each voxel is significant, ``q <= level``: (n_subjects, t) to (t,)."""
    return np.count_nonzero(q <= level, axis=0)


def mean_map(values: NDArray[Any]) -> tuple[F64, NDArray[np.int64]]:
    """Average maps of subjects.

    Parameters
    ----------
    values : (n_subjects, t)
        NaN where a subject has no voxel.

    Returns
    -------
    mean : (t,) float64
        NaN where no subject has one.
    n_subjects : (t,) int64
        How many have.
    """
    known = np.isfinite(values)
    count = np.count_nonzero(known, axis=0)
    total = np.sum(values, axis=0, dtype=np.float64, where=known)
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0), count


def parcel_means(values: NDArray[Any], parcel: NDArray[np.int64]) -> tuple[NDArray[np.int64], F64]:
    """Average voxels in parcels.

    Parameters
    ----------
    values : (..., t)
        NaN is left out.
    parcel : (t,) int64
        Label of each voxel; 0 lies in none.

    Returns
    -------
    labels : (n_parcels,) int64
        Ascending.
    means : (..., n_parcels) float64
        NaN where a parcel has no value.
    """
    labels, place = np.unique(parcel[parcel != 0], return_inverse=True)
    inside = np.asarray(values, np.float64)[..., parcel != 0]
    flat = inside.reshape(-1, inside.shape[-1])
    known = np.isfinite(flat)
    means = np.full((len(flat), len(labels)), np.nan)
    for row, mask, out in zip(flat, known, means, strict=True):
        count = np.bincount(place[mask], minlength=len(labels))
        total = np.bincount(place[mask], weights=row[mask], minlength=len(labels))
        np.divide(total, count, out=out, where=count > 0)
    return labels, means.reshape(*inside.shape[:-1], len(labels))


def smallest_sign_flip_p(n_subjects: int) -> float:
    """Floor of the sign-flip test: ``2^-n_subjects``, one-sided."""
    return float(2.0**-n_subjects)


def sign_flip(values: NDArray[Any]) -> tuple[F64, F64]:
    """Test the mean over subjects against 0 by flipping the sign of whole subjects, all 2^N ways.

    Under the null each subject's map is as likely as its negative; one-sided. The identity is counted, so p is never
    below `smallest_sign_flip_p`.

    Parameters
    ----------
    values : (n_subjects, t)
        Maps of r, say; finite.

    Returns
    -------
    p : (t,) float64
        Of each voxel.
    family_wise : (t,) float64
        Adjusted by the greatest voxel of each flip.

    Raises
    ------
    ValueError
        With more than 16 subjects, where random flips would do; or with values that are not finite.
    """
    n, t = values.shape
    if not np.isfinite(values).all():
        raise ValueError("sign-flips need finite values: leave out voxels that a subject lacks")
    if n > MOST_SUBJECTS:
        raise ValueError(f"all sign-flips of {n} subjects are too many; {MOST_SUBJECTS} are the most")
    observed = np.sum(values, axis=0, dtype=np.float64)
    tolerance = 1e-12 * np.sum(np.abs(values), axis=0, dtype=np.float64)  # equal sums differ by rounding
    p, family_wise = np.zeros(t), np.zeros(t)
    for flip in range(2**n):
        signs = 1.0 - 2.0 * (flip >> np.arange(n) & 1)
        flipped = signs @ values
        p += flipped >= observed - tolerance
        family_wise += flipped.max() >= observed - tolerance
    return p / 2**n, family_wise / 2**n


def partial_conjunction(p: F64, n_true: int) -> F64:
    """P that an effect is present in fewer than `n_true` subjects.

    Fisher's combination of the ``n - n_true + 1`` largest p (Benjamini & Heller 2008; Heller et al. 2007 for fMRI).
    Subjects must be independent given the stimulus. With ``n_true = 1`` it is Fisher's test of the global null, with
    ``n_true = n`` the largest p, the conjunction of Nichols et al. (2005).

    Parameters
    ----------
    p : (n_subjects, t) float64
        Above 0.
    n_true
        From 1 to n_subjects.

    Returns
    -------
    (t,) float64
    """
    n = len(p)
    if not 1 <= n_true <= n:
        raise ValueError(f"n_true must be from 1 to {n}, not {n_true}")
    largest = np.sort(p, axis=0)[n_true - 1 :]
    return np.asarray(scipy.stats.chi2.sf(-2 * np.log(largest).sum(axis=0), 2 * len(largest)), np.float64)
