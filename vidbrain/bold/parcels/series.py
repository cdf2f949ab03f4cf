"""Series of parcels from series of voxels, as a BOLD store of their own that stays linked to the voxels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy.sparse import csr_array
from threadpoolctl import threadpool_limits

from vidbrain.bold.parcels.parcellation import Parcellation, read_parcels
from vidbrain.bold.parts import array_sha256
from vidbrain.bold.store import KIND, MEMBERS, BoldStore, lost_folders, open_bold
from vidbrain.bold.voxels import centres_mm
from vidbrain.cluster import Client
from vidbrain.errors import BoldError, ConfigError, StorageError
from vidbrain.progress import SILENT, Progress
from vidbrain.storage.atomic import check_writable, sweep
from vidbrain.storage.info import expected_fingerprint, is_done, write_info
from vidbrain.storage.locks import locked, sweep_lock
from vidbrain.storage.objects import Root
from vidbrain.storage.zarrs import open_dataset, write_dataset

VOXEL_BLOCK = 16384
"""Voxels read at once: a Zarr shard of the store."""


def mean_series(store: BoldStore, run: str, parcels: Parcellation) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Average the voxels of each parcel.

    Parameters
    ----------
    store
        Of voxels; read a block at a time.
    run
        Label.
    parcels
        Of labels. Voxels that are dead in the run do not count.

    Returns
    -------
    series : (n_trs, n_parcels) float64
        0 where a parcel is dead.
    dead : (n_parcels,) bool
        No voxel of it is alive in this run.
    """
    place, alive = parcels.position, ~np.asarray(store.open(run)["dead"].values, bool)
    total = np.zeros((store.n_trs(run), parcels.n_parcels))
    for voxels in _blocks(store.n_voxels):
        inside = np.flatnonzero((place[voxels] >= 0) & alive[voxels])
        if len(inside):
            ones = (np.ones(len(inside)), (inside, place[voxels][inside]))
            members = csr_array(ones, shape=(voxels.stop - voxels.start, parcels.n_parcels))
            total += np.asarray(store.read(run, voxels).astype(np.float64) @ members)
    count = np.bincount(place[(place >= 0) & alive], minlength=parcels.n_parcels)
    return total / np.maximum(count, 1), count == 0


def map_series(store: BoldStore, run: str, parcels: Parcellation) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Least-squares series of probabilistic maps, which may overlap: as nilearn's ``NiftiMapsMasker`` takes them.

    Parameters
    ----------
    store, run
        As in `mean_series`.
    parcels
        With maps.

    Returns
    -------
    series : (n_trs, n_parcels) float64
        The mixture of maps that is nearest to each volume.
    dead : (n_parcels,) bool
        Voxels that are dead in the run do not count; a map without any other is dead, and 0.
    """
    assert parcels.maps is not None
    alive = (~np.asarray(store.open(run)["dead"].values, bool)).astype(np.float64)
    maps = (parcels.maps * alive[:, None]).tocsr()
    total = np.zeros((store.n_trs(run), parcels.n_parcels))
    for voxels in _blocks(store.n_voxels):
        total += np.asarray(store.read(run, voxels).astype(np.float64) @ maps[voxels])
    gram = (maps.T @ maps).toarray()
    dead = np.diag(gram) == 0
    series = np.zeros_like(total)
    series[:, ~dead] = np.linalg.lstsq(gram[np.ix_(~dead, ~dead)], total[:, ~dead].T, rcond=None)[0].T
    return series, dead


def _blocks(n_voxels: int) -> list[slice]:
    return [slice(first, min(first + VOXEL_BLOCK, n_voxels)) for first in range(0, n_voxels, VOXEL_BLOCK)]


@dataclass(frozen=True, kw_only=True)
class ParcelRow:
    """What a worker needs to write the parcels of one run."""

    source: str
    parcels: str
    out: Path
    run: str
    fingerprint: str


def write_parcel_store(
    store: BoldStore,
    out: str | Path,
    *,
    parcels: str | None = None,
    client: Client | None = None,
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Write the series of parcels as a BOLD store, which everything reads as it reads one of voxels.

    Its columns are parcels; ``i j k`` of each is the voxel of the parcel that is nearest to its centre, ``parcel`` and
    ``network`` name it, and ``members.zarr`` holds the parcel of every voxel of the source. Series are not standardised
    again: the mean of z-scored voxels says by its variance how much they share.

    Parameters
    ----------
    store
        Of voxels, with parcels.
    out
        Folder of the new store.
    parcels
        Name of the set; default the one in use.
    client, progress
        Who does the work, and who listens.

    Returns
    -------
    dict
        Facts for a summary.

    Raises
    ------
    ConfigError
        If the store has no such parcels.
    BoldError
        If all parcels of a run are dead.
    ResumeError
        If another store lies there.
    StorageError
        If another process writes there, or the place cannot be written.
    """
    out, client = Path(out), client or Client()
    found = read_parcels(store, parcels)
    source = store.root.url if isinstance(store.root, Root) else str(store.root)
    if not isinstance(store.root, Root) and out.resolve() == store.root.resolve():
        raise ConfigError("a store of parcels needs a folder of its own", where=out)
    settings = {**store.info["config"], "parcels": found.name}
    made_from = {"bold": str(store.info["fingerprint"]), "parcels": str(found.facts["fingerprint"])}
    facts = {"parcels": found.name, "kind": found.kind, "n_parcels": found.n_parcels, "runs": len(store.runs)}
    if is_done(out, KIND, config=settings, made_from=made_from) and not lost_folders(out, store.runs, MEMBERS):
        sweep_lock(out)
        progress.note(f"the store of parcels is there already: {out}")
        return facts
    check_writable(out, 8 * found.n_parcels * sum(store.n_trs(run) for run in store.runs))
    with locked(out):
        sweep(out)
        name = expected_fingerprint(KIND, settings, made_from)
        rows = [ParcelRow(source=source, parcels=found.name, out=out, run=run, fingerprint=name) for run in store.runs]
        todo = [row for row in rows if not _is_written(row)]
        progress.start("parcels", len(rows), "runs", done=len(rows) - len(todo))
        for _ in client.run(write_parcel_run, todo):
            progress.advance()
        progress.finish()
        ijk = {axis: ("voxel", column) for axis, column in zip("ijk", store.ijk.T, strict=True)}
        write_dataset(out / MEMBERS, xr.Dataset({"parcel": ("voxel", found.parcel), **ijk}))
        kept = {key: store.info[key] for key in ("simulated", "source", "space", "shape", "affine", "tr_s")}
        records = [_record(store, row) for row in rows]
        write_info(
            out,
            KIND,
            config=settings,
            made_from=made_from,
            facts={**kept, "layout": "parcels", "parcels_of": found.name, "n_voxels": found.n_parcels, "runs": records},
        )
        return facts


def _is_written(row: ParcelRow) -> bool:
    try:
        return bool(open_dataset(row.out / f"{row.run}.zarr").attrs.get("fingerprint") == row.fingerprint)
    except StorageError:  # it is not there, or damaged: it is made again
        return False


def write_parcel_run(row: ParcelRow) -> str:
    """Write the parcels of one run; the worker's part of `write_parcel_store`."""
    store = open_bold(row.source)
    parcels = read_parcels(store, row.parcels)
    with threadpool_limits(1):
        series, dead = (mean_series if parcels.maps is None else map_series)(store, row.run, parcels)
    if dead.all():
        raise BoldError("every parcel of the run is dead", where=store.root / f"{row.run}.zarr")
    bold = series.astype(np.float32)
    how = "mean over voxels" if parcels.maps is None else "least squares of maps"
    voxels = store.open(row.run)
    centre = store.ijk[nearest_to_centre(parcels, store)]
    codes = {"long_name": "network, by its place in network_names", "network_names": list(parcels.network_names)}
    titles = {"long_name": f"parcel of {parcels.name}", "names": list(parcels.names)}
    # Checksums and layout of the voxels are not those of the parcels.
    inherited = {key: value for key, value in voxels.attrs.items() if not key.startswith("part_")}
    data = xr.Dataset(
        {
            "bold": (("tr", "voxel"), bold, {**voxels["bold"].attrs, "long_name": f"BOLD signal of parcels, {how}"}),
            "dead": ("voxel", dead, {"long_name": "no voxel of the parcel is alive in this run"}),
            **{
                axis: (
                    "voxel",
                    column,
                    {**voxels[axis].attrs, "long_name": f"{axis} of the voxel nearest to its centre"},
                )
                for axis, column in zip("ijk", centre.T, strict=True)
            },
            "parcel": ("voxel", parcels.label.astype(np.int32), titles),
            "network": ("voxel", parcels.network_codes, codes),
            **{name: voxels[name].load().variable for name in ("kept", "confounds", "time_s")},
        },
        attrs={
            **inherited,
            "layout": "parcels",
            "parcels": parcels.name,
            "n_dead": int(dead.sum()),
            "sha256": array_sha256(bold),
            "fingerprint": row.fingerprint,
        },
    )
    data = data.set_coords(["i", "j", "k", "parcel", "network", "time_s"]).drop_encoding()
    write_dataset(row.out / f"{row.run}.zarr", data, chunks={"bold": (len(bold), min(1024, bold.shape[1]))})
    return row.run


def nearest_to_centre(parcels: Parcellation, store: BoldStore) -> NDArray[np.intp]:
    """Voxel of each parcel that is nearest to the mean place of its voxels, (n_parcels,); of maps their strongest."""
    if parcels.maps is not None:
        return np.asarray(parcels.maps.tocsc().argmax(axis=0), np.intp).ravel()
    mm, place = centres_mm(store.ijk, store.affine), parcels.position
    inside = np.flatnonzero(place >= 0)
    count = np.bincount(place[inside], minlength=parcels.n_parcels)
    centre = np.stack([np.bincount(place[inside], mm[inside, axis]) / count for axis in range(3)], axis=1)
    distance = np.linalg.norm(mm[inside] - centre[place[inside]], axis=1)
    order = np.lexsort((distance, place[inside]))
    first = np.searchsorted(place[inside][order], np.arange(parcels.n_parcels))
    return np.asarray(inside[order][first], np.intp)


def _record(store: BoldStore, row: ParcelRow) -> dict[str, Any]:
    attributes = open_dataset(row.out / f"{row.run}.zarr").attrs
    record = next(record for record in store.info["runs"] if record["label"] == row.run)
    return {**record, "n_dead": attributes["n_dead"], "sha256": attributes["sha256"]}


def paint(store: BoldStore, values: NDArray[Any], fill: float = np.nan) -> NDArray[np.float64]:
    """Put one value a parcel into the volume of the voxels that it was made from.

    Parameters
    ----------
    store
        Of parcels, as `write_parcel_store` writes it.
    values : (n_parcels,)
        In the order of its columns.
    fill
        Where there is no parcel.

    Returns
    -------
    (ni, nj, nk) float64
    """
    members = open_dataset(store.root / MEMBERS).load()
    return fill_parcels(members, store.open(store.runs[0])["parcel"].values, values, store.shape, fill)


def fill_parcels(
    members: xr.Dataset,
    label: NDArray[np.integer[Any]],
    values: NDArray[Any],
    shape: tuple[int, ...],
    fill: float = np.nan,
) -> NDArray[np.float64]:
    """Put one value a parcel into the volume of its voxels.

    Parameters
    ----------
    members
        ``parcel`` and ``i j k`` of every voxel.
    label : (n_parcels,)
        Number of each parcel, ascending.
    values : (n_parcels,)
        In that order.
    shape
        Of the volume.
    fill
        Where there is no parcel, or none of these.

    Returns
    -------
    (ni, nj, nk) float64
    """
    parcel = members["parcel"].values
    place = np.minimum(np.searchsorted(label, parcel), len(label) - 1)
    found = (label[place] == parcel) & (members["i"].values >= 0)  # vertices lie in no volume
    volume = np.full(shape, fill, np.float64)
    inside = tuple(members[axis].values[found] for axis in "ijk")
    volume[inside] = np.asarray(values, np.float64)[place[found]]
    return volume
