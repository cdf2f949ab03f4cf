"""Features of every run become one design: aligned, scaled, reduced or convolved, and measured once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from vidbrain.encoding.design.align import Aligned, FeatureStoreLike, align
from vidbrain.encoding.design.columns import measure_columns, standardise_features
from vidbrain.encoding.design.delays import Indices, check_delays
from vidbrain.encoding.design.matrix import Design
from vidbrain.encoding.design.reduce import Reduce, check_reduction, random_basis
from vidbrain.encoding.design.response import Response, convolve, kernels
from vidbrain.encoding.ridge.gram import F32, F64
from vidbrain.errors import EncodingError


def build_design(
    features: FeatureStoreLike,
    layers: Sequence[str],
    kept: Mapping[str, NDArray[np.bool_]],
    *,
    tr_s: float,
    delays: Sequence[int],
    nuisance: Mapping[str, F64],
    begins_s: Mapping[str, float] | None = None,
    response: Response = "fir",
    reduce: Reduce = "none",
    components: int | None = None,
    seed: int = 0,
) -> Design:
    """Align features with BOLD by run and TR, and keep the rows that have video at every delay.

    Parameters
    ----------
    features
        Store of features.
    layers
        Their names; several are put side by side, each is a band.
    kept
        By run label, which volumes of the BOLD may be used, (n_trs,) bool; its order is the order of the rows.
    tr_s
        Repetition time of the BOLD.
    delays
        In TRs; 0 is allowed. Not used but with the response ``fir``.
    nuisance
        By run label, what was regressed out of the BOLD, (n_trs, c), a constant among it: it is taken out of the
        delayed features too, over the rows that are used. Runs that are not named keep
        theirs, less the mean of each feature over all runs.
    begins_s
        By run label, the time that its first volume of BOLD stands for; runs that are not named are not compared.
    response
        ``fir``, or a canonical response that features are convolved with in place of delays; the module of that name
        says what counts as video then.
    reduce, components
        ``random`` projects the features of each layer, standardised over all runs, on this many directions; features
        with a value that is not finite take no part. ``pca`` only checks that each layer has so many features, because
        `Design.pca` fits components to one training set.
    seed
        Of the random projection.

    Raises
    ------
    AlignmentError
        If the TRs or slice-time references differ, or the features of a run are longer than its BOLD.
    ConfigError
        If delays or components cannot be.
    EncodingError
        If a run keeps too few rows, no column is left, or a layer has fewer features than components.
    """
    check_delays(delays)
    check_reduction(reduce, components)
    weights = None if response == "fir" else kernels(response, tr_s)
    n_nuisance = {run: columns.shape[1] for run, columns in nuisance.items()}
    kernel = None if weights is None else weights[0]
    aligned = align(
        features, layers, kept, tr_s=tr_s, delays=delays, kernel=kernel, n_nuisance=n_nuisance, begins_s=begins_s or {}
    )
    # A delay looks at one TR. Under a response there is no delay, and a row looks at every TR of the kernel.
    looks = [(lag,) for lag in delays] if weights is None else [tuple(range(weights.shape[1]))]
    seen = seen_trs(aligned, [lag for look in looks for lag in look]) & aligned.valid
    values, band = aligned.features, aligned.band
    offset, bad = standardise_features(values, seen)
    invalid = invalid_columns(aligned, bad, looks)
    n_constant, n_invalid = 0, 0
    if components is not None:
        check_sizes(layers, band, components)
    if reduce == "random" and components is not None:
        broken = invalid.any(axis=0)
        values[:, broken] = 0
        n_invalid = len(looks) * int(broken.sum())
        n_constant = len(looks) * int(np.sum(~values.any(axis=0) & ~broken))
        values, band = project(values, band, components, seed)
        invalid = np.zeros((len(looks), len(band)), bool)
    if weights is not None:
        runs = [convolve(values[a:b], weights) for a, b in zip(aligned.start[:-1], aligned.start[1:], strict=True)]
        values, band = np.concatenate(runs), np.tile(band, len(weights))
        invalid = np.tile(invalid, (1, len(weights)))
    delays = tuple(delays) if weights is None else (0,)
    if values is not aligned.features:
        offset, _ = standardise_features(values, seen_trs(aligned, delays))
    taken_out = [
        nuisance[run][aligned.tr[aligned.run == number]] if run in nuisance else None for number, run in enumerate(kept)
    ]
    columns = measure_columns(values, offset, invalid, aligned.place, aligned.run, delays, taken_out)
    n_constant, n_invalid = n_constant + columns.n_constant, n_invalid + columns.n_invalid
    if not len(columns.column):
        raise EncodingError(
            f"no feature is left: {n_constant} columns are constant, {n_invalid} hold NaN or infinity",
            likely="the model gives the same answer to every video, or diverged in training",
        )
    return Design(
        features=values,
        start=aligned.start,
        delays=delays,
        column=columns.column,
        band=band[columns.column % len(band)],
        bands=tuple(layers),
        run=aligned.run,
        tr=aligned.tr,
        runs=tuple(kept),
        n_trs=tuple(len(kept_trs) for kept_trs in kept.values()),
        n_constant=n_constant,
        n_invalid=n_invalid,
        nuisance=columns.nuisance,
        shift=columns.shift,
        scale=columns.scale,
    )


def seen_trs(aligned: Aligned, lags: Sequence[int]) -> NDArray[np.bool_]:
    """Mark the TRs that some row looks at, (m,) bool, at lags within its run."""
    seen = np.zeros(len(aligned.valid), bool)
    for lag in lags:
        seen[aligned.place[aligned.tr >= lag] - lag] = True
    return seen


def invalid_columns(
    aligned: Aligned, bad: tuple[Indices, Indices], looks: Sequence[Sequence[int]]
) -> NDArray[np.bool_]:
    """Mark the columns, (len(looks), p), in which a row looks at a bad value; `bad` holds their TRs and features."""
    tr, feature = bad
    used = np.zeros(len(aligned.valid), bool)
    used[aligned.place] = True
    stop = aligned.start[np.searchsorted(aligned.start, tr, side="right")]
    invalid = np.zeros((len(looks), aligned.features.shape[1]), bool)
    for position, lags in enumerate(looks):
        for lag in lags:
            inside = tr + lag < stop
            invalid[position, feature[inside][used[tr[inside] + lag]]] = True
    return invalid


def check_sizes(layers: Sequence[str], band: Indices, components: int) -> None:
    """Refuse more components than a layer has features.

    Raises
    ------
    EncodingError
        If one has fewer.
    """
    for name, size in zip(layers, np.bincount(band, minlength=len(layers)), strict=True):
        if size < components:
            raise EncodingError(
                f"layer {name!r} has {size} features, fewer than {components} components",
                hint="ask for fewer components, or leave the layer as it is",
            )


def project(features: F32, band: Indices, components: int, seed: int) -> tuple[F32, Indices]:
    """Project the features of each band at random, (m, p) to (m, n_bands * components), and label the directions."""
    n_bands = int(band.max()) + 1
    seeds = np.random.SeedSequence(seed).generate_state(n_bands)
    parts = []
    for number in range(n_bands):
        mine = features[:, band == number]
        basis = random_basis(mine.shape[1], components, int(seeds[number]))
        parts.append(mine @ basis.astype(np.float32))
    return np.concatenate(parts, axis=1), np.repeat(np.arange(n_bands), components)
