"""What runs must share before they become one store: grid, repetition time, length, voxels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vidbrain.bold.bids import RunFiles
from vidbrain.bold.forms.nifti import SeriesFacts, read_volume, resampled_volume
from vidbrain.bold.forms.series import Series
from vidbrain.bold.layout import Layout, masked_volume
from vidbrain.bold.voxels import flat_index
from vidbrain.errors import BoldError, ConfigError
from vidbrain.records import RunKey
from vidbrain.video.clock import MIDDLE, covered_s

SHORTEST_TR_S, LONGEST_TR_S = 0.05, 60.0
"""Repetition times outside of these are taken for a mistake."""
LATEST_START_S = 60.0
"""Of the volumes that were taken away before the first of a series."""


def refuse_other_grids(series: Sequence[Series]) -> None:
    """Refuse volumes whose shape or affine differs, and other series whose columns are not the same.

    Raises
    ------
    BoldError
        For the first that does not lie where the first run does.
    """
    first = series[0]
    for other in series[1:]:
        if type(other) is not type(first):
            what: str | None = f"{other.form}, where {first.path.name} is {first.form}"
        elif isinstance(first, SeriesFacts) and isinstance(other, SeriesFacts):
            what = _other_volume(first, other)
        else:
            what = _other_columns(first, other)
        if what:
            raise BoldError(
                f"the runs do not lie on one grid: {what}",
                where=other.path,
                likely="series in each subject's own space, or of two preprocessings",
                hint="ingest one subject at a time (--subject), or choose a common --space",
            )


def _other_volume(first: SeriesFacts, other: SeriesFacts) -> str | None:
    if other.shape != first.shape:
        return f"volumes of {other.shape}, where {first.path.name} has {first.shape}"
    if not np.allclose(other.affine, first.affine, atol=1e-3):
        return f"the affine {affine_words(other.affine)}, where {first.path.name} has {affine_words(first.affine)}"
    return None


def affine_words(affine: Any) -> str:  # noqa: ANN401 -- rows of floats or an array
    """The three rows of an affine that differ from image to image."""
    return "; ".join(" ".join(f"{value:g}" for value in row) for row in np.asarray(affine, np.float64)[:3])


def _other_columns(first: Series, other: Series) -> str | None:
    if other.n_columns != first.n_columns:
        return f"{other.n_columns} columns, where {first.path.name} has {first.n_columns}"
    one, two = first.layout(), other.layout()
    return None if one is None or two is None else one.difference(two)


def agreed_tr_s(runs: Sequence[RunFiles], facts: Sequence[Series], given: float | None) -> float:
    """Find the one repetition time on which argument, headers and sidecars agree.

    Raises
    ------
    BoldError
        If two of them differ by more than a millisecond, one is impossible, or none says one.
    ConfigError
        If the argument is impossible.
    """
    if given is not None and not SHORTEST_TR_S <= given <= LONGEST_TR_S:
        raise ConfigError(
            f"tr_s must lie between {SHORTEST_TR_S:g} and {LONGEST_TR_S:g} s, but is {given:g}",
            hint="the repetition time in seconds",
        )
    voices = [] if given is None else [(given, "the setting tr_s")]
    for files, series in zip(runs, facts, strict=True):
        voices += [] if series.tr_s is None else [(series.tr_s, f"the header of {series.path.name}")]
        sidecar = files.sidecar_tr_s
        voices += [] if sidecar is None else [(sidecar, f"the sidecar of {series.path.name}")]
    if not voices:
        raise BoldError("no header and no sidecar holds a repetition time", where=facts[0].path, hint="give --tr-s")
    for said, speaker in voices:
        if not SHORTEST_TR_S <= said <= LONGEST_TR_S:
            raise BoldError(
                f"a repetition time cannot be {said:g} s, as {speaker} says",
                where=facts[0].path.parent,
                likely=f"a wrong unit: it must lie between {SHORTEST_TR_S:g} and {LONGEST_TR_S:g} s",
                hint="mend the file",
            )
    value, who = voices[0]
    for other, speaker in voices[1:]:
        if abs(other - value) > 1e-3:
            raise BoldError(
                f"repetition times disagree: {who} says {value:g} s, {speaker} says {other:g} s",
                where=facts[0].path.parent,
                hint="mend the file that is wrong; a series with a wrong clock cannot be aligned to video",
            )
    return value


def reference_of(files: RunFiles, n_trs: int, tr_s: float) -> float:
    """Find the time that the first volume of a run stands for, as a share of the TR (`vidbrain.video.clock`).

    Parameters
    ----------
    files
        Of the run; where the sidecar has no ``StartTime``, the volume stands for its middle.
    n_trs, tr_s
        Volumes, and repetition time in seconds.

    Raises
    ------
    BoldError
        If the sidecar says a time further away from the run's begin than 60 s or, where that is less, a tenth of
        the run (but never less than five volumes).
    """
    start_s = files.sidecar_start_s
    if start_s is None:
        return MIDDLE
    latest_s = min(LATEST_START_S, max(n_trs / 10, 5) * tr_s)
    if abs(start_s) > latest_s + 1e-6:
        raise BoldError(
            f"StartTime of the sidecar is {start_s:g} s, the run has {n_trs * tr_s:g} s: "
            f"more than {latest_s:g} s cannot lie before the first volume",
            where=files.sidecar,
            likely="milliseconds, or the time of day",
            hint="seconds from the begin of the run to the time that the first volume stands for",
        )
    return start_s / tr_s


def refuse_short(runs: Sequence[RunFiles], facts: Sequence[Series], tr_s: float, ends: dict[RunKey, float]) -> None:
    """Refuse series that end before their last event does.

    Raises
    ------
    BoldError
        If there are any; runs without events are not looked at.
    """
    short = []
    for files, series in zip(runs, facts, strict=True):
        reach_s = covered_s(series.n_trs, tr_s, reference_of(files, series.n_trs, tr_s))
        if files.run in ends and reach_s < ends[files.run] - 1e-6:
            short.append(
                f"{files.run} has {series.n_trs} volumes ({reach_s:.1f} s), events end at {ends[files.run]:.1f} s"
            )
    if short:
        raise BoldError(
            f"{len(short)} series are shorter than their events: {'; '.join(short[:4])}",
            where=runs[0].bold.parent,
            likely="a cut file, a scan that was stopped, or events of another run",
            hint="fetch the file again, or leave the run out of the folder",
        )


def chosen_voxels(masks: Sequence[Path], series: SeriesFacts, grey: Sequence[Path] = (), above: float = 0.5) -> Layout:
    """Voxels inside every mask, along the Morton curve.

    Parameters
    ----------
    masks
        3-D images; voxels above 0.5 are inside.
    series
        Whose grid they must share.
    grey
        Probabilities of grey matter, on any grid of the same space; they are resampled linearly.
    above
        Voxels are kept where each probability is greater.

    Raises
    ------
    BoldError
        If a mask lies on another grid, or nothing is inside all of them.
    """
    inside = np.ones(series.shape, bool)
    for path in masks:
        values, affine = read_volume(path)
        if values.shape != series.shape:
            raise BoldError(
                f"the mask's grid {values.shape} is not that of the series {series.shape}",
                where=path,
                hint="resample the mask to the series",
            )
        if not np.allclose(affine, series.affine, atol=1e-3):
            raise BoldError(
                f"the mask lies on another grid: its affine {affine_words(affine)} "
                f"is not that of the series {affine_words(series.affine)}",
                where=path,
                hint="resample the mask to the series",
            )
        inside &= values > 0.5
    if not inside.any():
        raise BoldError(f"no voxel lies inside all {len(masks)} masks", where=masks[0], likely="an empty mask")
    for path in grey:
        inside &= resampled_volume(path, series.shape, series.affine) > above
    if not inside.any():
        raise BoldError(
            f"no voxel of the mask has a grey matter probability above {above:g}",
            where=grey[0],
            likely="an image of another space",
            hint="a lower --grey-above, or --voxels brain",
        )
    ijk = np.argwhere(inside).astype(np.int32)
    return masked_volume(ijk, flat_index(ijk, series.shape), series.shape, series.affine)
