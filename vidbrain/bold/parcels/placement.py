"""Parcels brought to the voxels of a BOLD store: atlas files, or a parcellation of our own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from vidbrain.bold.datasets import identity
from vidbrain.bold.forms.nifti import image_grid
from vidbrain.bold.parcels.atlases import (
    Label,
    Resample,
    both_hemispheres,
    is_same_grid,
    labels_at,
    maps_at,
    names_beside,
    network_of,
    read_names,
    space_of,
    surface_labels,
)
from vidbrain.bold.parcels.bisection import bisect_voxels
from vidbrain.bold.parcels.parcellation import Kind, Parcellation, write_parcels
from vidbrain.bold.store import BoldStore
from vidbrain.bold.voxels import centres_mm
from vidbrain.config import fingerprint
from vidbrain.errors import AlignmentError, BoldError, ConfigError, StorageError
from vidbrain.storage.objects import Root
from vidbrain.storage.roots import safe_name

CORTICES = ("CIFTI_STRUCTURE_CORTEX_LEFT", "CIFTI_STRUCTURE_CORTEX_RIGHT")
"""What a surface store calls the hemispheres."""
OWN = "own"
"""Stands for a parcellation of our own in place of a file: recursive bisection, named ``bisection-<n>``."""


def add_parcels(
    store: BoldStore,
    atlas: str | Path,
    *,
    name: str | None = None,
    names: str | Path | None = None,
    n: int = 400,
    space: str | None = None,
    resample: Resample = "refuse",
) -> dict[str, Any]:
    """Add a set of parcels to a store and put it in use; the series are not touched.

    Parameters
    ----------
    store
        On disk.
    atlas
        NIfTI labels (3-D), probabilistic maps (4-D), or `OWN`. Of a surface store the ``.label.gii`` of the left
        hemisphere; the right one is found by its name (``hemi-L`` and ``hemi-R``, or ``lh.`` and ``rh.``).
    name
        Of the set; default from the file's name.
    names
        Table of names; default the one beside the atlas.
    n
        Parcels of our own.
    space
        Space of the atlas, where its file name does not say the right one.
    resample
        What to do with an atlas on another grid.

    Returns
    -------
    dict
        Facts for a summary.

    Raises
    ------
    BoldError
        If a file cannot be read, or no voxel lies in any parcel.
    AlignmentError
        If the atlas lies in another space, or on another grid and `resample` is ``refuse``.
    ConfigError
        If settings do not fit.
    StorageError
        If another process adds parcels, or the place cannot be written.
    """
    if isinstance(store.root, Root):
        raise ConfigError("parcels are added to a store on disk", hint="add them before `vidbrain push`")
    if str(atlas) == OWN:
        found = own_parcels(store, n, name)
    else:
        found = read_parcels_file(store, Path(atlas), name, names, space, resample)
    if not (found.parcel > 0).any():  # maps of negative weights have parcels, but no voxel's strongest
        raise BoldError(
            f"none of the {store.n_voxels} voxels of the store lies in a parcel",
            where=str(atlas),
            likely="an atlas of another space, an empty image, or maps without a positive weight",
        )
    facts = summary(found)
    write_parcels(store.root, found)
    return facts


def summary(parcels: Parcellation) -> dict[str, Any]:
    """What a person wants to know of a set of parcels."""
    sizes = np.unique(parcels.parcel[parcels.parcel > 0], return_counts=True)[1]
    return {
        "parcels": parcels.name,
        "kind": parcels.kind,
        "n_parcels": parcels.n_parcels,
        "n_networks": len(parcels.network_names) - 1,
        "voxels_in_parcels": int((parcels.parcel > 0).sum()),
        "voxels_in_none": int((parcels.parcel == 0).sum()),
        "smallest_parcel": int(sizes.min()),
        "largest_parcel": int(sizes.max()),
        "parcels_without_voxels": parcels.facts["n_empty"],
        "grid": parcels.facts["grid"],
        "space": parcels.facts["space"],
        "fingerprint": parcels.facts["fingerprint"],
    }


def own_parcels(store: BoldStore, n: int, name: str | None = None) -> Parcellation:
    """Cut the voxels of a store into n parcels of our own (`vidbrain.bold.parcels.bisection`)."""
    if (store.ijk < 0).any():
        raise AlignmentError(
            "only voxels have places that can be cut; this store holds vertices",
            where=store.root,
            hint="give a surface atlas (*.label.gii)",
        )
    parcel, titles = bisect_voxels(centres_mm(store.ijk, store.affine), n)
    return Parcellation(
        name=safe_name(name or f"bisection-{n}"),
        kind="bisection",
        label=np.arange(1, n + 1),
        names=tuple(titles),
        networks=("",) * n,
        parcel=parcel,
        maps=None,
        facts=_facts({"source": f"vidbrain recursive bisection into {n}", "space": store.info.get("space")}, parcel),
    )


def read_parcels_file(
    store: BoldStore, path: Path, name: str | None, names: str | Path | None, space: str | None, resample: Resample
) -> Parcellation:
    """Bring an atlas file to the voxels of a store; arguments and errors as of `add_parcels`."""
    if not path.is_file():
        raise StorageError("there is no such atlas", where=path, hint=f"give a file, or `{OWN}`")
    said = space or space_of(path)
    mine = str(store.info.get("space") or "").split(":")[0]
    if said and mine and said != mine:
        raise AlignmentError(
            f"the atlas lies in {said}, the BOLD store in {mine}",
            where=path,
            hint=f"take the atlas of {mine}; if the name is wrong, say so with --space {mine}",
        )
    table_path = Path(names) if names is not None else names_beside(path)
    table = read_names(table_path) if table_path is not None else {}
    source = {
        "source": path.name,
        "space": said or "not stated",
        "content": identity(path),
        "names": table_path.name if table_path else None,
    }
    title = safe_name(name or path.name.split(".")[0])
    maps = None
    kind: Kind
    if path.name.endswith(".gii"):
        kind, grid = "surface", "vertices"
        parcel, own_table = _surface(store, path)
        table = {**own_table, **table}
    else:
        shape, affine = image_grid(path)
        equal = is_same_grid(shape[:3], affine, store.shape, store.affine)
        grid = "equal" if equal else "nearest neighbour of each voxel's centre"
        kind = "maps" if len(shape) == 4 else "labels"
        if kind == "maps":
            parcel, maps, label = _maps(store, path, resample)
        else:
            parcel = labels_at(path, store.ijk, store.shape, store.affine, resample)
    if kind != "maps":
        label = np.unique(parcel[parcel > 0]).astype(np.int64)
    known = [table.get(int(number), Label(str(int(number)))) for number in label]
    n_empty = len(set(table) - {0, *label.tolist()})
    return Parcellation(
        name=title,
        kind=kind,
        label=label,
        names=tuple(one.name for one in known),
        networks=tuple(one.network or network_of(one.name) for one in known),
        parcel=parcel,
        maps=maps,
        facts=_facts({**source, "grid": grid, "n_empty": n_empty}, parcel, maps),
    )


def _facts(source: Mapping[str, Any], parcel: NDArray[np.int32], maps: csr_array | None = None) -> dict[str, Any]:
    facts = {"grid": "equal", "n_empty": 0, **source}
    weights = [] if maps is None else [maps.indices.tolist(), maps.indptr.tolist(), maps.data.tolist()]
    return {**facts, "fingerprint": fingerprint(facts, parcel.tolist(), weights)}


def _maps(store: BoldStore, path: Path, resample: Resample) -> tuple[NDArray[np.int32], csr_array, NDArray[np.int64]]:
    """Read probabilistic maps; parcels are numbered from 1 in the order of the file, those without a voxel left out."""
    best, parcel = np.zeros(store.n_voxels), np.zeros(store.n_voxels, np.int32)
    voxels, weights, label = [], [], []
    for number, values in enumerate(maps_at(path, store.ijk, store.shape, store.affine, resample), start=1):
        inside = np.flatnonzero(values)
        if not len(inside):
            continue
        stronger = values > best
        best[stronger], parcel[stronger] = values[stronger], number
        voxels.append(inside)
        weights.append(values[inside])
        label.append(number)
    start = np.cumsum([0, *(len(part) for part in voxels)])
    flat = (np.concatenate(weights), np.concatenate(voxels), start) if label else ([], [], start)
    maps = csr_array(flat, shape=(len(label), store.n_voxels)).T.tocsr()
    return parcel, maps, np.array(label, np.int64)


def _surface(store: BoldStore, path: Path) -> tuple[NDArray[np.int32], dict[int, Label]]:
    """Read surface labels of both hemispheres at the vertices of a store."""
    data = store.open(store.runs[0])
    if not {"vertex", "structure"} <= set(data.variables):
        raise AlignmentError(
            "surface labels need a store of surface series, whose columns are vertices",
            where=store.root,
            hint="give a NIfTI atlas, or ingest the GIFTI or CIFTI series",
        )
    parcel = np.zeros(store.n_voxels, np.int32)
    table: dict[int, Label] = {}
    vertex, structure, structures = data["vertex"].values, data["structure"].values, list(data.attrs["structures"])
    for cortex, file in zip(CORTICES, both_hemispheres(path), strict=True):
        if cortex not in structures:
            continue
        mine = (structure == structures.index(cortex)) & (vertex >= 0)
        labels, names = surface_labels(file)
        if int(vertex[mine].max()) >= len(labels):
            raise AlignmentError(
                f"the atlas has {len(labels)} vertices, the store reaches vertex {int(vertex[mine].max())}",
                where=file,
                likely="surfaces of different density (fsaverage5 has 10,242 vertices a hemisphere, fsLR-32k 32,492)",
            )
        # The same number may name two parcels, one a hemisphere.
        clash = any(number in table and table[number] != one for number, one in names.items())
        shift = max(table, default=0) if clash else 0
        parcel[mine] = np.where(labels[vertex[mine]] > 0, labels[vertex[mine]] + shift, 0)
        table |= {number + shift: one for number, one in names.items()}
    return parcel, table
