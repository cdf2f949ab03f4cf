"""What runs must share before they become one store: grid, repetition time, length, voxels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vidbrain.bold.bids import RunFiles
from vidbrain.bold.nifti import SeriesFacts, read_volume
from vidbrain.bold.voxels import ordered_voxels
from vidbrain.errors import BoldError
from vidbrain.records import RunKey


def refuse_other_grids(facts: Sequence[SeriesFacts]) -> None:
    """Refuse series whose shape or affine differs.

    Raises
    ------
    BoldError
        For the first that does not lie on the grid of the first run.
    """
    first = facts[0]
    for other in facts[1:]:
        if other.shape != first.shape:
            what = f"volumes of {other.shape}, where {first.path.name} has {first.shape}"
        elif not np.allclose(other.affine, first.affine, atol=1e-3):
            what = f"an affine that differs from that of {first.path.name}"
        else:
            continue
        raise BoldError(
            f"the runs do not lie on one grid: {what}",
            where=other.path,
            likely="series in each subject's own space, or of two preprocessings",
            hint="ingest one subject at a time (--subject), or choose a common --space",
        )


def agreed_tr_s(runs: Sequence[RunFiles], facts: Sequence[SeriesFacts], given: float | None) -> float:
    """Find the one repetition time on which argument, headers and sidecars agree.

    Raises
    ------
    BoldError
        If two of them differ by more than a millisecond, or none says one.
    """
    voices = [] if given is None else [(given, "the setting tr_s")]
    for files, series in zip(runs, facts, strict=True):
        voices += [] if series.tr_s is None else [(series.tr_s, f"the header of {series.path.name}")]
        sidecar = files.sidecar_tr_s
        voices += [] if sidecar is None else [(sidecar, f"the sidecar of {series.path.name}")]
    if not voices:
        raise BoldError("no header and no sidecar holds a repetition time", where=facts[0].path, hint="give --tr-s")
    value, who = voices[0]
    for other, speaker in voices[1:]:
        if abs(other - value) > 1e-3:
            raise BoldError(
                f"repetition times disagree: {who} says {value:g} s, {speaker} says {other:g} s",
                where=facts[0].path.parent,
                hint="mend the file that is wrong; a series with a wrong clock cannot be aligned to video",
            )
    return value


def refuse_short(
    runs: Sequence[RunFiles], facts: Sequence[SeriesFacts], tr_s: float, ends: dict[RunKey, float]
) -> None:
    """Refuse series that end before their last event does.

    Raises
    ------
    BoldError
        If there are any; runs without events are not looked at.
    """
    short = [
        f"{files.run} has {series.n_trs} volumes ({series.n_trs * tr_s:.1f} s), events end at {ends[files.run]:.1f} s"
        for files, series in zip(runs, facts, strict=True)
        if files.run in ends and series.n_trs * tr_s < ends[files.run] - 1e-6
    ]
    if short:
        raise BoldError(
            f"{len(short)} series are shorter than their events: {'; '.join(short[:4])}",
            where=runs[0].bold.parent,
            likely="a cut file, a scan that was stopped, or events of another run",
            hint="fetch the file again, or leave the run out of the folder",
        )


def common_voxels(masks: Sequence[Path], series: SeriesFacts) -> NDArray[np.int32]:
    """Voxels inside every mask, along the Morton curve.

    Parameters
    ----------
    masks
        3-D images; voxels above 0.5 are inside.
    series
        Whose grid they must share.

    Returns
    -------
    (n_voxels, 3) int32

    Raises
    ------
    BoldError
        If a mask lies on another grid, or nothing is inside all of them.
    """
    inside = np.ones(series.shape, bool)
    for path in masks:
        values, affine = read_volume(path)
        if values.shape != series.shape or not np.allclose(affine, series.affine, atol=1e-3):
            raise BoldError(
                f"the mask's grid {values.shape} is not that of the series {series.shape}",
                where=path,
                hint="resample the mask to the series",
            )
        inside &= values > 0.5
    if not inside.any():
        raise BoldError(f"no voxel lies inside all {len(masks)} masks", where=masks[0], likely="an empty mask")
    return ordered_voxels(inside)
