"""Results of a few subjects side by side: what each shows, where it replicates, and the mean map.

Voxels meet by their place in one grid, parcels by their number in one atlas, vertices and grayordinates by their place
in one mesh.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from vidbrain.bold.layout import FACTS, NOWHERE, Kind, Layout
from vidbrain.bold.parcels.series import fill_parcels
from vidbrain.bold.store import MEMBERS
from vidbrain.encoding.inference.groups import (
    mean_map,
    partial_conjunction,
    replication_count,
    sign_flip,
    smallest_sign_flip_p,
)
from vidbrain.encoding.maps import map_files, nifti_bytes
from vidbrain.encoding.result import LEVEL, EncodingResult
from vidbrain.errors import AlignmentError, EncodingError
from vidbrain.records import RunKey
from vidbrain.storage.atomic import write_bytes, write_json
from vidbrain.storage.info import is_done, read_info, write_info
from vidbrain.storage.zarrs import open_dataset, write_dataset

KIND = "group"
STORE = "group.zarr"
BY_VOXEL = ("mean_r", "n_subjects", "replication", "conjunction_p", "sign_flip_p")
MAPS = {
    "meanr": ("mean_r", "Mean over subjects of held-out Pearson r"),
    "replication": ("replication", "Subjects in which q is at most 0.05"),
    "conjunction": ("conjunction_p", "p that fewer than half of the subjects show the effect (partial conjunction)"),
}


def group_results(results: Mapping[str, EncodingResult], out: str | Path) -> dict[str, Any]:
    """Put results of several subjects together, voxel by voxel of one space, or parcel by parcel of one atlas.

    Parameters
    ----------
    results
        By subject; all of one layout in a common space.
    out
        Folder to write: ``group.zarr`` with ``r`` and ``q`` (subject, voxel), NaN where a subject lacks the voxel,
        ``mean_r``, ``n_subjects``, ``replication``, ``conjunction_p`` and ``sign_flip_p``; and maps (`group_maps`).

    Returns
    -------
    dict
        The root record, with a summary.

    Raises
    ------
    EncodingError
        With fewer than two subjects, or results without q.
    AlignmentError
        If grids, meshes or atlases differ.
    """
    out = Path(out)
    check_group(results)
    made_from = {name: str(result.info["fingerprint"]) for name, result in results.items()}
    if is_done(out, KIND, config={"level": LEVEL}, made_from=made_from):
        return read_info(out, KIND)
    first = next(iter(results.values()))
    places = [places_of(result) for result in results.values()]
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
    dataset = xr.Dataset(
        {
            "r": (("subject", "voxel"), r.astype(np.float32)),
            "q": (("subject", "voxel"), q.astype(np.float32)),
            **{name: ("voxel", values.astype(np.float32)) for name, values in by_voxel.items()},
        },
        coords=coordinates_of(voxels, places, list(results.values())),
        attrs={
            "subjects": list(results),
            **{key: first.dataset.attrs[key] for key in FACTS if key in first.dataset.attrs},
        },
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
    group_maps(dataset, list(results.values()), out / "maps", simulated=simulated)
    return write_info(out, KIND, config={"level": LEVEL}, made_from=made_from, facts=facts)


def kind_of(result: EncodingResult) -> Kind:
    """What the columns of a result are."""
    kind: Kind = result.info.get("layout", "volume")
    return kind


def places_of(result: EncodingResult) -> NDArray[np.int64]:
    """Say which columns of two results are the same: by equal numbers, (n_voxels,) int64."""
    data, kind = result.dataset, kind_of(result)
    if kind == "volume":
        shape = tuple(int(size) for size in result.info["shape"])
        return np.ravel_multi_index([data[axis].values for axis in "ijk"], shape).astype(np.int64)
    return data["parcel"].values.astype(np.int64) if kind == "parcels" else np.arange(data.sizes["voxel"])


def coordinates_of(
    voxels: NDArray[np.int64], places: Sequence[NDArray[np.int64]], results: Sequence[EncodingResult]
) -> dict[str, xr.Variable]:
    """Coordinates of the columns that any result has: of each from the first result that has it.

    Parameters
    ----------
    voxels : (n,)
        As `places_of` numbers them, ascending.
    places
        Of each result.
    results
        Of one layout.
    """
    found: dict[str, xr.Variable] = {}
    names: dict[int, str] = {}
    for place, result in reversed(list(zip(places, results, strict=True))):
        at = np.searchsorted(voxels, place)
        for name in ("i", "j", "k", "structure", "vertex", "parcel"):
            if name in result.dataset:
                variable = result.dataset[name].variable
                found.setdefault(
                    name, xr.Variable("voxel", np.full(len(voxels), NOWHERE, variable.dtype), variable.attrs)
                )
                found[name].values[at] = variable.values
        names |= parcel_names(result)
    if kind_of(results[0]) == "parcels":
        found["parcel"].attrs = {**found["parcel"].attrs, "names": [names[int(number)] for number in voxels]}
    else:
        found.pop("parcel", None)  # which parcels were in use may differ from subject to subject
    return found


def parcel_names(result: EncodingResult) -> dict[int, str]:
    """Names of the parcels of a result by their numbers; empty where its columns are none."""
    if kind_of(result) != "parcels":
        return {}
    parcel = result.dataset["parcel"]
    return dict(zip(parcel.values.tolist(), parcel.attrs["names"], strict=True))


def check_group(results: Mapping[str, EncodingResult]) -> None:
    """Refuse subjects that cannot be put together.

    Raises
    ------
    EncodingError
        With fewer than two, or results without p.
    AlignmentError
        If grids, meshes or atlases differ, or nobody knows what the columns are.
    """
    if len(results) < 2:
        raise EncodingError("a group needs results of at least 2 subjects")
    (name, first), *others = results.items()
    if kind_of(first) == "columns":
        raise AlignmentError(
            f"nobody knows what the columns of {name} are, so they cannot meet those of others",
            where=first.root,
            hint="encode volumes, surfaces, grayordinates or parcels",
        )
    for other, result in others:
        what = _difference(first, result)
        if what is not None:
            raise AlignmentError(
                f"{other} lies on another grid than {name}: {what}",
                where=result.root,
                hint="encode all subjects in one standard space, or in parcels of one atlas",
            )
    for subject, result in results.items():
        if np.isnan(result.dataset["q"].values).any():
            raise EncodingError(
                f"the result of {subject} has no q", where=result.root, hint="encode with --n-permutations"
            )


def _difference(first: EncodingResult, other: EncodingResult) -> str | None:
    """What keeps the columns of two results apart, in words."""
    kind = kind_of(first)
    if kind_of(other) != kind:
        return f"a {kind_of(other)} layout, not a {kind} one"
    if kind == "parcels":
        known, mine = parcel_names(first), parcel_names(other)
        clash = next((number for number in sorted(known) if mine.get(number, known[number]) != known[number]), None)
        return None if clash is None else f"parcel {clash} is {mine[clash]}, not {known[clash]}"
    if other.info["space"] != first.info["space"]:
        return f"space {other.info['space']}, not {first.info['space']}"
    if kind == "volume":
        return None if _same_grid(first, other) else "another shape or affine"
    return Layout.from_dataset(first.dataset).difference(Layout.from_dataset(other.dataset))


def _same_grid(first: EncodingResult, other: EncodingResult) -> bool:
    return other.info["shape"] == first.info["shape"] and np.allclose(other.affine, first.affine, atol=1e-4)


def group_maps(dataset: xr.Dataset, results: Sequence[EncodingResult], out: Path, *, simulated: bool) -> list[Path]:
    """Write each of `MAPS` with a sidecar; NaN where there is nothing.

    Volumes become ``.nii.gz``, surfaces a ``.shape.gii`` a hemisphere, grayordinates ``.dscalar.nii``. Parcels become
    rows of a ``.tsv``, and, where every result knows which voxels of one grid its parcels hold, also ``.nii.gz``.

    Parameters
    ----------
    dataset
        The group.
    results
        That it was made from.
    out
        Folder.
    simulated
        Whether a brain of it is.

    Returns
    -------
    list of Path
        Without the sidecars.
    """
    like = results[0]
    kind, space = kind_of(like), f"space-{like.info['space']}_" if like.info["space"] else ""
    members = _members(results) if kind == "parcels" else None
    written = []

    def write(path: Path, content: bytes, description: str) -> None:
        write_bytes(path, content)
        title = f"SIMULATED BOLD. {description}" if simulated else description
        record: dict[str, Any] = {"Description": title, "Simulated": simulated, "Subjects": list(dataset.subjects)}
        write_json(path.with_name(path.name.split(".")[0] + ".json"), record)
        written.append(path)

    for name, (variable, description) in MAPS.items():
        values = dataset[variable].values
        if kind == "volume":
            volume = np.full(tuple(like.info["shape"]), np.nan, np.float32)
            volume[tuple(dataset[axis].values for axis in "ijk")] = values
            images = {"": (".nii.gz", nifti_bytes(volume, like.affine))}
        elif kind != "parcels":
            images = map_files(values, Layout.from_dataset(dataset), name)
        elif members is not None:
            painted = fill_parcels(members, dataset["parcel"].values, values, tuple(like.info["shape"]))
            images = {"": (".nii.gz", nifti_bytes(painted.astype(np.float32), like.affine))}
        else:
            images = {}
        for hemisphere, (end, content) in images.items():
            side = f"hemi-{hemisphere}_" if hemisphere else ""
            write(out / f"{side}{space}desc-group_stat-{name}_statmap{end}", content, description)
    if kind == "parcels":
        write(out / f"{space}desc-group_statmap.tsv", _table(dataset), "Each parcel, over subjects and in each of them")
    return written


def _members(results: Sequence[EncodingResult]) -> xr.Dataset | None:
    """Which parcel each voxel belongs to, in the first subject that says so; None where one says nothing."""
    if not all((result.root / MEMBERS).is_dir() and _same_grid(results[0], result) for result in results):
        return None
    parcel = np.zeros(tuple(results[0].info["shape"]), np.int32)
    for result in reversed(results):
        found = open_dataset(result.root / MEMBERS).load()
        mine = found["parcel"].values > 0
        parcel[tuple(found[axis].values[mine] for axis in "ijk")] = found["parcel"].values[mine]
    ijk = np.nonzero(parcel)
    places = {axis: ("voxel", column) for axis, column in zip("ijk", ijk, strict=True)}
    return xr.Dataset({"parcel": ("voxel", parcel[ijk]), **places})


def _table(dataset: xr.Dataset) -> bytes:
    """A row a parcel: number, name, what the group shows, and r of each subject."""
    columns: dict[str, Any] = {"index": dataset["parcel"].values, "name": dataset["parcel"].attrs["names"]}
    columns |= {name: dataset[name].values for name in BY_VOXEL}
    columns |= {f"r_{name}": row for name, row in zip(dataset.subjects, dataset["r"].values, strict=True)}
    return pd.DataFrame(columns).to_csv(sep="\t", index=False, na_rep="n/a").encode()


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
