"""Mean and scale of features and of their delayed, cleaned columns, and which of them must be left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vidbrain.encoding.design.delays import Indices
from vidbrain.encoding.design.nuisance import GONE, Nuisance, orthonormal
from vidbrain.encoding.ridge.gram import F32, F64

CONSTANT = 1e-6
"""A column whose standard deviation is below this share of its typical size is float32 rounding, hence constant."""

FEATURES_AT_ONCE = 256
"""Features held in float64 at a time."""


@dataclass(frozen=True)
class Columns:
    """The columns that are kept, among ``len(delays) * n_features``.

    Attributes
    ----------
    column : (p,) int64
        Ascending: delay by delay.
    shift, scale : (p,) float64
        Mean and standard deviation of the cleaned columns over all rows.
    nuisance
        What is taken out of them by run; None if nothing is.
    n_constant, n_invalid
        Columns left out.
    """

    column: Indices
    shift: F64
    scale: F64
    nuisance: Nuisance | None
    n_constant: int
    n_invalid: int


def standardise_features(features: F32, seen: NDArray[np.bool_]) -> tuple[F64, tuple[Indices, Indices]]:
    """Shift and scale features in place, to mean 0 and standard deviation 1 over the TRs that are seen.

    Parameters
    ----------
    features : (m, p) float32
        TRs that are not seen become 0, the mean; so do values that are not finite, and features that are constant.
    seen : (m,) bool
        TRs that enter the design.

    Returns
    -------
    offset : (p,) float64
        What was the mean, in standard deviations; 0 for constant features.
    bad : (k,) int64, (k,) int64
        TR and feature of each value that was seen and not finite.
    """
    offset = np.zeros(features.shape[1])
    bad: list[tuple[Indices, Indices]] = []
    for start in range(0, features.shape[1], FEATURES_AT_ONCE):
        here = slice(start, start + FEATURES_AT_ONCE)
        part = features[:, here].astype(np.float64)
        part[~seen] = 0
        finite = np.isfinite(part)
        tr, feature = np.nonzero(~finite)
        bad.append((tr, feature + start))
        part[tr, feature] = 0
        counted = finite & seen[:, None]
        n = np.maximum(counted.sum(axis=0), 1)
        size = np.sqrt(np.sum(part**2, axis=0) / n)
        mean = part.sum(axis=0) / n
        part -= mean
        part *= counted
        scale = np.sqrt(np.sum(part**2, axis=0) / n)
        varies = scale > CONSTANT * size
        inverse = np.divide(1.0, scale, out=np.zeros_like(scale), where=varies)
        part *= inverse
        features[:, here] = part
        offset[here] = mean * inverse
    return offset, (np.concatenate([tr for tr, _ in bad]), np.concatenate([feature for _, feature in bad]))


def measure_columns(
    features: F32,
    offset: F64,
    invalid: NDArray[np.bool_],
    place: Indices,
    run: Indices,
    delays: Sequence[int],
    nuisance: Sequence[F64 | None],
) -> Columns:
    """Clean every delayed column run by run, and find its mean and scale; one delay of one run is held at a time.

    Parameters
    ----------
    features : (m, p_f) float32
        Standardised.
    offset : (p_f,) float64
        Their mean before that: what is constant, or nothing but confounds, is judged against the size with it.
    invalid : (len(delays), p_f) bool
        Columns that hold values that are not finite.
    place, run : (n,) int64
        Of each used row, in `features` and among runs.
    delays
        In TRs.
    nuisance
        For each run (n_r, c) over its used rows, or None.
    """
    d, p_f = len(delays), features.shape[1]
    bases = [None if columns is None else orthonormal(columns) for columns in nuisance]
    width = max((basis.shape[1] for basis in bases if basis is not None), default=0)
    Q, B = np.zeros((len(place), width)), np.zeros((len(bases), width, d, p_f))
    gone = np.zeros((len(bases), d, p_f), bool)
    counts = np.bincount(run, minlength=len(bases)).astype(np.float64)
    means, squares, sizes = np.zeros((len(bases), d, p_f)), np.zeros((d, p_f)), np.zeros((d, p_f))
    for number, basis in enumerate(bases):
        mine = np.flatnonzero(run == number)
        for position, lag in enumerate(delays):
            values = features[place[mine] - lag].astype(np.float64)
            raw = np.sum((values + offset) ** 2, axis=0)
            if basis is not None:
                c = basis.shape[1]
                Q[mine, :c], B[number, :c, position] = basis, basis.T @ values
                values -= basis @ B[number, :c, position]
                before, raw = raw, np.sum(values**2, axis=0)
                gone[number, position] = raw <= GONE**2 * before
                values[:, gone[number, position]] = 0.0
            sizes[position] += raw
            means[number, position] = values.mean(axis=0)
            squares[position] += np.sum((values - means[number, position]) ** 2, axis=0)
    shift = np.tensordot(counts, means, 1) / len(place)
    squares += np.tensordot(counts, (means - shift) ** 2, 1)
    scale = np.sqrt(squares / len(place))
    varies = scale > CONSTANT * np.sqrt(sizes / len(place))
    column = np.flatnonzero(varies & ~invalid)
    # In C order, as they will be read from disk: products of another layout may differ in their last bits.
    loadings = np.ascontiguousarray(B.reshape(len(bases), width, d * p_f)[:, :, column])
    nothing = np.ascontiguousarray(gone.reshape(len(bases), d * p_f)[:, column])
    return Columns(
        column=column,
        shift=shift.reshape(-1)[column],
        scale=scale.reshape(-1)[column],
        nuisance=Nuisance(Q, loadings, nothing) if width else None,
        n_constant=int((~varies & ~invalid).sum()),
        n_invalid=int(invalid.sum()),
    )
