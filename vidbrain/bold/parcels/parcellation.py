"""Parcels on a BOLD store: which parcel and network each voxel belongs to, beside the series, which stay as they are.

A store may hold several sets of parcels, each a Zarr of its own (``parcels/<name>.zarr``); the one added last is in
use unless another is asked for: `BoldStore.open` shows it as the coordinates ``parcel`` and ``network`` of the voxels.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy.sparse import csr_array

from vidbrain.config import did_you_mean
from vidbrain.errors import ConfigError, StorageError
from vidbrain.storage.atomic import write_json
from vidbrain.storage.locks import locked
from vidbrain.storage.objects import Root, open_root
from vidbrain.storage.roots import find_json
from vidbrain.storage.zarrs import open_dataset, readable, write_dataset

if TYPE_CHECKING:
    from vidbrain.bold.store import BoldStore

FOLDER = "parcels"
SETS = "sets.json"
"""Names the sets of a store, and the one in use."""
Kind = Literal["labels", "maps", "surface", "bisection"]


@dataclass(frozen=True, kw_only=True)
class Parcellation:
    """A set of parcels on the voxels of one store.

    Attributes
    ----------
    name
        Of the set.
    kind
        Label image, probabilistic maps, surface labels, or our own bisection.
    label : (n_parcels,) int64
        Number of each parcel in the atlas, ascending; only parcels that hold a voxel of the store.
    names, networks
        Of the parcels, in that order; empty where none is known.
    parcel : (n_voxels,) int32
        Number of each voxel's parcel, 0 for none. Of probabilistic maps the strongest.
    maps : (n_voxels, n_parcels) sparse float64, or None
        Weights of a probabilistic atlas.
    facts
        Where it came from: file, fingerprint of its content, space, grid policy, what was left out.
    """

    name: str
    kind: Kind
    label: NDArray[np.int64]
    names: tuple[str, ...]
    networks: tuple[str, ...]
    parcel: NDArray[np.int32]
    maps: csr_array | None
    facts: dict[str, Any]

    @property
    def n_parcels(self) -> int:
        """Parcels that hold a voxel."""
        return len(self.label)

    @property
    def position(self) -> NDArray[np.int64]:
        """Position of each voxel's parcel among the parcels, (n_voxels,); -1 for none."""
        place = np.searchsorted(self.label, self.parcel)
        return np.where(self.parcel > 0, place, -1)

    @property
    def network_names(self) -> tuple[str, ...]:
        """Networks by their codes; code 0 is none."""
        return ("", *dict.fromkeys(name for name in self.networks if name))

    @property
    def network_codes(self) -> NDArray[np.int32]:
        """Code of each parcel's network, (n_parcels,)."""
        codes = {name: code for code, name in enumerate(self.network_names)}
        return np.array([codes[name] for name in self.networks], np.int32)

    def expand(self, values: NDArray[Any], fill: float = np.nan) -> NDArray[Any]:
        """Give every voxel the value of its parcel, (..., n_parcels) to (..., n_voxels); `fill` where it has none."""
        place = self.position
        return np.where(place >= 0, np.asarray(values)[..., np.maximum(place, 0)], fill)


def read_sets(root: Path | Root) -> dict[str, Any]:
    """Read which sets of parcels a store has (``sets``), and which one is ``in_use``: None where there is none.

    Raises
    ------
    StorageError
        If the record cannot be read, or is damaged.
    """
    found = find_json(open_root(root), f"{FOLDER}/{SETS}")
    if found is None:
        return {"in_use": None, "sets": {}}
    sets = found.get("sets") if isinstance(found, dict) else None
    shaped = isinstance(sets, dict) and all(isinstance(said, dict) for said in sets.values())
    if not shaped or found.get("in_use") not in list(found["sets"]):
        raise StorageError(
            "the record of the sets of parcels is damaged: it lacks the sets, or the one in use",
            where=root / FOLDER / SETS,
            hint=f"remove the folder {FOLDER} and give `vidbrain bold parcels` again for each set",
        )
    return found


def known_set(root: Path | Root, name: str | None) -> str:
    """Check the name of a set of parcels; None stands for the one in use.

    Raises
    ------
    ConfigError
        If the store has no such set, or none.
    """
    known = read_sets(root)
    sets = list(known["sets"])
    if not sets:
        raise ConfigError("the BOLD store has no parcels", where=root, hint="vidbrain bold parcels STORE …")
    name = name or str(known["in_use"])
    if name not in sets:
        raise ConfigError(
            f"the BOLD store has no parcels {name!r}{did_you_mean(name, sets)}",
            where=root,
            hint=f"it has {', '.join(sets)}",
        )
    return name


def write_parcels(root: Path, parcels: Parcellation) -> None:
    """Write a set of parcels beside the runs of a store and put it in use; nothing else is touched.

    Raises
    ------
    StorageError
        If another process adds parcels, or the place cannot be written.
    """
    with locked(root / FOLDER):  # the record of the sets is read and written again
        write_dataset(root / FOLDER / f"{parcels.name}.zarr", _dataset(parcels))
        # A record of its own: that of the store stays as it was committed. A set is in use once it is named, being
        # whole.
        named = {"fingerprint": parcels.facts["fingerprint"], "kind": parcels.kind}
        sets = {**read_sets(root)["sets"], parcels.name: named}
        write_json(root / FOLDER / SETS, {"in_use": parcels.name, "sets": sets})


def _dataset(parcels: Parcellation) -> xr.Dataset:
    network = np.zeros(len(parcels.parcel), np.int32)
    inside = parcels.position >= 0
    network[inside] = parcels.network_codes[parcels.position[inside]]
    titled = f"{parcels.name} ({parcels.facts['source']})"
    variables: dict[str, Any] = {
        "parcel": (
            "voxel",
            parcels.parcel,
            {
                "long_name": f"parcel of {titled}; 0 is none",
                "parcel_labels": parcels.label.tolist(),
                "parcel_names": list(parcels.names),
            },
        ),
        "network": (
            "voxel",
            network,
            {
                "long_name": f"network of {titled}, by its place in network_names",
                "network_names": [*parcels.network_names],
            },
        ),
        "network_of_parcel": ("parcels", parcels.network_codes, {"long_name": "network of each parcel, likewise"}),
    }
    if parcels.maps is not None:
        entries = parcels.maps.tocoo()
        variables["map_voxel"] = ("entry", entries.coords[0].astype(np.int32), {"long_name": "voxel"})
        variables["map_parcel"] = ("entry", entries.coords[1].astype(np.int32), {"long_name": "place of the parcel"})
        said = {"long_name": "weight of the voxel in the parcel", "units": "1"}
        variables["map_weight"] = ("entry", np.asarray(entries.data, np.float64), said)
    return xr.Dataset(variables, attrs={"name": parcels.name, "kind": parcels.kind, **parcels.facts})


def read_parcels(store: BoldStore, name: str | None = None) -> Parcellation:
    """Read a set of parcels of a store.

    Parameters
    ----------
    store
        With parcels.
    name
        Of the set; default the one that the store was opened with, else the one in use.

    Raises
    ------
    ConfigError
        If the store has no such set, or none.
    StorageError
        If it is damaged.
    """
    name = known_set(store.root, name or store.parcels)
    path = store.root / FOLDER / f"{name}.zarr"
    with readable(path):
        return _from_dataset(name, open_dataset(path).load(), store.n_voxels)


def _from_dataset(name: str, data: xr.Dataset, n_voxels: int) -> Parcellation:
    label = np.asarray(data["parcel"].attrs["parcel_labels"], np.int64)
    titles = data["network"].attrs["network_names"]
    maps = None
    if "map_weight" in data:
        at = (data["map_voxel"].values, data["map_parcel"].values)
        maps = csr_array((data["map_weight"].values, at), shape=(n_voxels, len(label)))
    facts = {key: value for key, value in data.attrs.items() if key not in ("name", "kind")}
    return Parcellation(
        name=name,
        kind=data.attrs["kind"],
        label=label,
        names=tuple(data["parcel"].attrs["parcel_names"]),
        networks=tuple(titles[code] for code in data["network_of_parcel"].values),
        parcel=data["parcel"].values,
        maps=maps,
        facts=facts,
    )


def parcel_rows(parcels: Parcellation) -> list[dict[str, Any]]:
    """Say of each parcel its number, name, network and how many voxels it holds."""
    sizes = np.bincount(parcels.position[parcels.position >= 0], minlength=parcels.n_parcels)
    return [
        {"parcel": int(label), "name": name, "network": network, "voxels": int(n)}
        for label, name, network, n in zip(parcels.label, parcels.names, parcels.networks, sizes, strict=True)
    ]


def with_parcels(data: xr.Dataset, root: Path | Root, name: str | None) -> xr.Dataset:
    """Show a set of parcels as coordinates of a run: ``parcel`` and ``network`` (voxel), lazily; None shows none.

    The attribute ``parcels`` names the set.
    """
    if name is None:
        return data
    found = open_dataset(root / FOLDER / f"{name}.zarr")
    return data.assign_coords(parcel=found["parcel"], network=found["network"]).assign_attrs(parcels=name)
