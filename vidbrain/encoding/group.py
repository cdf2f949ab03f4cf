"""Results of a few subjects side by side: what each shows, where it replicates, and the mean map."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from vidbrain.encoding.inference.groups import (
    mean_map,
    partial_conjunction,
    replication_count,
    sign_flip,
    smallest_sign_flip_p,
)
from vidbrain.encoding.maps import nifti_bytes
from vidbrain.encoding.result import LEVEL, EncodingResult
from vidbrain.errors import AlignmentError, EncodingError
from vidbrain.records import RunKey
from vidbrain.storage.atomic import write_bytes, write_json
from vidbrain.storage.info import is_done, read_info, write_info
from vidbrain.storage.zarrs import write_dataset

KIND = "group"
STORE = "group.zarr"
MAPS = {
    "meanr": ("mean_r", "Mean over subjects of held-out Pearson r"),
    "replication": ("replication", "Subjects in which q is at most 0.05"),
    "conjunction": ("conjunction_p", "p that fewer than half of the subjects show the effect (partial conjunction)"),
}


def group_results(results: Mapping[str, EncodingResult], out: str | Path) -> dict[str, Any]:
    """Put results of several subjects together, voxel by voxel of one space.

    Parameters
    ----------
    results
        By subject; all on one grid in a common space.
    out
        Folder to write: ``group.zarr`` with ``r`` and ``q`` (subject, voxel), NaN where a subject lacks the voxel,
        ``mean_r``, ``n_subjects``, ``replication``, ``conjunction_p`` and ``sign_flip_p``; and maps.

    Returns
    -------
    dict
        The root record, with a summary.

    Raises
    ------
    EncodingError
        With fewer than two subjects, or results without q.
    AlignmentError
        If grids differ.
    """
    out = Path(out)
    check_group(results)
    made_from = {name: str(result.info["fingerprint"]) for name, result in results.items()}
    if is_done(out, KIND, config={"level": LEVEL}, made_from=made_from):
        return read_info(out, KIND)
    first = next(iter(results.values()))
    shape = tuple(int(size) for size in first.info["shape"])
    places = [np.ravel_multi_index([r.dataset[axis].values for axis in "ijk"], shape) for r in results.values()]
    voxels = np.unique(np.concatenate(places))

    def gather(name: str) -> NDArray[np.float64]:
        values = np.full((len(results), len(voxels)), np.nan)
        for row, result, place in zip(values, results.values(), places, strict=True):
            alive = ~result.dataset["dead"].values
            row[np.searchsorted(voxels, place[alive])] = result.dataset[name].values[alive]
        return values

    r, q, p = gather("r_mean"), gather("q"), gather("p")
    mean_r, n_subjects = mean_map(r)
    shared = n_subjects == len(results)
    conjunction, flips = np.full(len(voxels), np.nan), np.full(len(voxels), np.nan)
    half = -(-len(results) // 2)
    if shared.any():
        conjunction[shared] = partial_conjunction(p[:, shared], half)
        flips[shared] = sign_flip(r[:, shared])[0]
    by_voxel = {
        "mean_r": mean_r,
        "n_subjects": n_subjects,
        "replication": replication_count(q, LEVEL),
        "conjunction_p": conjunction,
        "sign_flip_p": flips,
    }
    ijk = np.stack(np.unravel_index(voxels, shape))
    dataset = xr.Dataset(
        {
            "r": (("subject", "voxel"), r.astype(np.float32)),
            "q": (("subject", "voxel"), q.astype(np.float32)),
            **{name: ("voxel", values.astype(np.float32)) for name, values in by_voxel.items()},
        },
        coords={axis: ("voxel", column.astype(np.int32)) for axis, column in zip("ijk", ijk, strict=True)},
        attrs={"subjects": list(results)},
    )
    write_dataset(out / STORE, dataset)
    replication = by_voxel["replication"]
    simulated = any(result.simulated for result in results.values())
    facts = {
        "subjects": list(results),
        "simulated": simulated,
        "summary": {
            "n_subjects": len(results),
            "n_voxels": len(voxels),
            "n_voxels_of_all": int(shared.sum()),
            "median_mean_r": float(np.nanmedian(mean_r)),
            "replicated_in_half_share": float(np.mean(replication >= half)),
            "replicated_in_all_share": float(np.mean(replication == len(results))),
            "smallest_sign_flip_p": smallest_sign_flip_p(len(results)),
        },
    }
    write_group_maps(dataset, first, out / "maps", simulated=simulated)
    return write_info(out, KIND, config={"level": LEVEL}, made_from=made_from, facts=facts)


def check_group(results: Mapping[str, EncodingResult]) -> None:
    """Refuse subjects that cannot be put together.

    Raises
    ------
    EncodingError
        With fewer than two, or results without p.
    AlignmentError
        If grids differ.
    """
    if len(results) < 2:
        raise EncodingError("a group needs results of at least 2 subjects")
    (name, first), *others = results.items()
    for other, result in others:
        same = result.info["shape"] == first.info["shape"] and np.allclose(result.affine, first.affine, atol=1e-4)
        if not same or result.info["space"] != first.info["space"]:
            raise AlignmentError(
                f"{other} lies on another grid than {name}",
                where=result.root,
                hint="encode all subjects in one standard space",
            )
    for subject, result in results.items():
        if np.isnan(result.dataset["q"].values).any():
            raise EncodingError(
                f"the result of {subject} has no q", where=result.root, hint="encode with --n-permutations"
            )


def write_group_maps(dataset: xr.Dataset, like: EncodingResult, out: Path, *, simulated: bool) -> list[Path]:
    """Write a NIfTI map and its sidecar for each of `MAPS`; NaN outside."""
    place = tuple(dataset[axis].values for axis in "ijk")
    space = f"space-{like.info['space']}_" if like.info["space"] else ""
    written = []
    for name, (variable, description) in MAPS.items():
        volume = np.full(tuple(like.info["shape"]), np.nan, np.float32)
        volume[place] = dataset[variable].values
        path = out / f"{space}desc-group_stat-{name}_statmap.nii.gz"
        write_bytes(path, nifti_bytes(volume, like.affine))
        title = f"SIMULATED BOLD. {description}" if simulated else description
        record: dict[str, Any] = {"Description": title, "Simulated": simulated, "Subjects": list(dataset.subjects)}
        write_json(path.with_name(path.name.removesuffix(".nii.gz") + ".json"), record)
        written.append(path)
    return written


def subjects_of(results: Sequence[EncodingResult]) -> dict[str, EncodingResult]:
    """Name results by their subject, or by their folder where a result holds several or two share one."""
    named: dict[str, EncodingResult] = {}
    for result in results:
        subjects = {RunKey.parse(run).subject for run in result.runs}
        name = f"sub-{subjects.pop()}" if len(subjects) == 1 else result.root.resolve().name
        if name in named:
            name = f"{name}_{result.root.resolve().name}"
        named[name] = result
    return named
