"""The BOLD store: a folder of Zarr stores, one a run, read voxel block by voxel block."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from vidbrain.bold.clean import CleanConfig, Confounds, clean_series
from vidbrain.bold.layout import Layout
from vidbrain.bold.parcels.parcellation import FOLDER, SETS, known_set, read_sets, with_parcels
from vidbrain.bold.parts import part_sha256, part_voxels, run_sha256
from vidbrain.bold.voxels import to_volume
from vidbrain.errors import AlignmentError, BoldError, StorageError
from vidbrain.records import RunKey
from vidbrain.storage.info import INFO, read_info
from vidbrain.storage.objects import Root, open_root
from vidbrain.storage.roots import find_json, locate
from vidbrain.storage.zarrs import check_dataset, open_dataset, read_columns, readable

KIND = "bold"
GRID = "grid.zarr"
"""What the columns are, for the workers that ingest runs."""
MEMBERS = "members.zarr"
"""In a store of parcels: which parcel each voxel of the source belongs to."""
TEMPLATE = "template.pscalar.nii"
"""A CIFTI file of one map that keeps which vertices and voxels each parcel holds, for export."""


_EDITED = "copy the store again; or remove its info.json and give the command that made it again"
_FACTS: Mapping[str, type | tuple[type, ...]] = {
    "runs": list,
    "tr_s": (int, float),
    "n_voxels": int,
    "shape": list,
    "affine": list,
}
_RUN_FACTS: Mapping[str, type] = {"label": str, "n_trs": int}


@dataclass(frozen=True)
class BoldStore:
    """Cleaned BOLD of a data set.

    Attributes
    ----------
    root
        Folder of the store, or its URL.
    info
        Its root record: settings, runs, grid, sources.
    parcels
        Name of the set of parcels that was asked for; None for the one in use.
    """

    root: Path | Root
    info: dict[str, Any]
    parcels: str | None = None

    @property
    def runs(self) -> tuple[str, ...]:
        """Labels of the runs, in order."""
        return tuple(run["label"] for run in self.info["runs"])

    @property
    def tr_s(self) -> float:
        """Repetition time in seconds."""
        return float(self.info["tr_s"])

    @property
    def n_voxels(self) -> int:
        """Voxels of every run."""
        return int(self.info["n_voxels"])

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of a volume; (0, 0, 0) where the columns are no voxels of one."""
        ni, nj, nk = self.info["shape"]
        return ni, nj, nk

    @property
    def simulated(self) -> bool:
        """Whether the data are simulated; say so wherever they are shown."""
        if "simulated" not in self.info:
            raise StorageError(
                "the root record does not say whether the data are simulated", where=self.root / INFO, hint=_EDITED
            )
        return bool(self.info["simulated"])

    @cached_property
    def affine(self) -> NDArray[np.float64]:
        """Voxel indices to millimetres, (4, 4)."""
        return np.array(self.info["affine"], np.float64)

    @cached_property
    def ijk(self) -> NDArray[np.int32]:
        """Indices of every voxel, (n_voxels, 3), along the Morton curve; -1 where a column is no voxel."""
        return self.layout.ijk

    @cached_property
    def layout(self) -> Layout:
        """What the columns are: voxels, vertices, grayordinates, parcels."""
        path = self.root / f"{self.runs[0]}.zarr"
        with readable(path):
            return Layout.from_dataset(open_dataset(path))

    @cached_property
    def dead(self) -> NDArray[np.bool_]:
        """Voxels that are constant or not finite in at least one run (there they are 0), (n_voxels,)."""
        found = []
        for run in self.runs:
            path = self.root / f"{run}.zarr"
            with readable(path):
                found.append(open_dataset(path)["dead"].values)
        return np.logical_or.reduce(found)

    @cached_property
    def parcels_in_use(self) -> str | None:
        """Name of the set that `open` shows as the coordinates ``parcel`` and ``network`` (voxel), or None."""
        name: str | None = self.parcels or read_sets(self.root)["in_use"]
        return name

    def label(self, run: str | RunKey) -> str:
        """Find a run by its key or by any spelling of its label (``run-01`` is ``run-1``).

        Raises
        ------
        AlignmentError
            If the store does not hold it.
        """
        label = (run if isinstance(run, RunKey) else RunKey.parse(run)).label
        if label not in self.runs:
            raise AlignmentError(f"the BOLD store has no run {label}; it has {', '.join(self.runs)}", where=self.root)
        return label

    def n_trs(self, run: str | RunKey) -> int:
        """Volumes of a run."""
        label = self.label(run)
        return next(int(record["n_trs"]) for record in self.info["runs"] if record["label"] == label)

    def open(self, run: str | RunKey) -> xr.Dataset:
        """Open one run lazily.

        Returns
        -------
        Dataset
            ``bold`` (tr, voxel) float32; ``i j k`` (voxel) int32; ``time_s`` (tr), time that each volume stands for;
            ``kept`` (tr), False before the steady state and in scrubbed volumes, where bold is 0; ``dead`` (voxel),
            constant or not finite, bold is 0; ``confounds`` (tr, confound), what was regressed out. ``structure`` and
            ``vertex`` (voxel) where there are surfaces. Where columns are parcels, ``parcel`` (voxel); where the store
            has a parcellation, ``parcel`` and ``network`` (voxel), with names in their attributes.
        """
        return with_parcels(open_dataset(self.root / f"{self.label(run)}.zarr"), self.root, self.parcels_in_use)

    def read(self, run: str | RunKey, voxels: slice = slice(None)) -> NDArray[np.float32]:
        """Read a block of neighbouring voxels of one run, (n_trs, n_voxels) float32; only its chunks are read."""
        return np.asarray(read_columns(self.root / f"{self.label(run)}.zarr", "bold", voxels), np.float32)

    def clean_like(self, run: str | RunKey, series: ArrayLike, *, standardize: bool = True) -> NDArray[np.float64]:
        """Clean other series of a run exactly as its BOLD was: a noise-free signal, a feature.

        Parameters
        ----------
        run
            Which run.
        series : (n_trs, n)
            One row a volume.
        standardize
            False leaves the scale of the cleaned series as it is.

        Returns
        -------
        (n_trs, n) float64

        Raises
        ------
        AlignmentError
            If the series have another number of volumes.
        """
        series = np.asarray(series, np.float64)
        if series.ndim != 2 or len(series) != self.n_trs(run):
            raise AlignmentError(
                f"{series.shape} does not fit the {self.n_trs(run)} volumes of {self.label(run)}", where=self.root
            )
        data = self.open(run)
        confounds = Confounds(
            values=data["confounds"].values, names=tuple(data.attrs["confound_names"]), kept=data["kept"].values
        )
        config = CleanConfig(**self.info["config"]["clean"])
        if not standardize:
            config = replace(config, standardize="none")
        return clean_series(series, confounds, config, self.tr_s)

    def to_volume(self, values: ArrayLike, fill: float = 0.0) -> NDArray[np.generic]:
        """Put one value a voxel into a volume of the store's shape; `fill` outside.

        Raises
        ------
        BoldError
            If the store's columns are no voxels of a volume.
        """
        values = np.asarray(values)
        if self.layout.kind != "volume":
            raise BoldError(
                f"the store holds a {self.layout.kind} layout, no volume",
                where=self.root,
                hint="write its maps as GIFTI or CIFTI",
            )
        if values.shape != (self.n_voxels,):
            raise ValueError(f"expected {self.n_voxels} values, got {values.shape}")
        return to_volume(values, self.ijk, self.shape, fill)

    def verify(self, run: str | RunKey) -> None:
        """Read a whole run, part by part, and compare its checksums, and what the root record says of it.

        Raises
        ------
        StorageError
            If the data are not those that were written; the file is named.
        """
        label = self.label(run)
        expected = next(record.get("sha256") for record in self.info["runs"] if record["label"] == label)
        hint = "remove this folder, and give the ingest command again"
        where = self.root / f"{label}.zarr"
        check_dataset(where)
        data = open_dataset(where)
        self._refuse_other_facts(label, data.attrs)
        n_trs, n_voxels = data["bold"].shape
        if (n_trs, n_voxels) != (self.n_trs(label), self.n_voxels):
            raise StorageError(
                f"{label} has {n_trs} volumes of {n_voxels} voxels, the root record says {self.n_trs(label)} of"
                f" {self.n_voxels}",
                where=self.root / INFO,
                hint=_EDITED,
            )
        digests = []
        with readable(where):
            known = data.attrs.get("part_sha256")
            width = part_voxels(self.n_trs(label))
            for first in range(0, self.n_voxels, width):
                digests.append(part_sha256(self.read(label, slice(first, first + width))))
                if known is not None and digests[-1] != known[len(digests) - 1]:
                    last = min(first + width, self.n_voxels)
                    raise StorageError(
                        f"the BOLD of {label} is not what was written: voxels {first} to {last} have another checksum",
                        where=where,
                        hint=hint,
                    )
        if run_sha256(digests) != expected:
            raise StorageError(
                f"the BOLD of {label} is not what was written: its checksum differs", where=where, hint=hint
            )

    def _refuse_other_facts(self, label: str, attributes: Mapping[str, Any]) -> None:
        """No checksum covers the root record; every run says again what it says of it."""
        record = next(record for record in self.info["runs"] if record["label"] == label)
        said = {name: self.info.get(name) for name in ("tr_s", "shape", "affine", "space")}
        said |= {name: record.get(name) for name in ("subject", "task", "n_dead", "n_kept", "sha256", "source")}
        said |= {"session": record.get("session") or "", "run": label}
        for name, value in said.items():
            if name in attributes and attributes[name] != value:
                raise StorageError(
                    f"the root record says {name} {value!r}, {label} says {attributes[name]!r}",
                    where=self.root / INFO,
                    hint=_EDITED,
                )

    def damages(self) -> Iterator[tuple[str, StorageError | None]]:
        """Verify every run, what the columns are, and every set of parcels, one after the other.

        Yields
        ------
        str, StorageError or None
            Label of a run or name of another part, and what is wrong with it.
        """
        for run in self.runs:
            yield run, _damage(partial(self.verify, run))
        columns = MEMBERS if "parcels_of" in self.info else GRID
        yield columns, _damage(partial(check_dataset, self.root / columns))
        sets: dict[str, Any] = {}
        damage = _damage(lambda: sets.update(read_sets(self.root)["sets"]))
        if damage is not None:
            yield f"{FOLDER}/{SETS}", damage
        for name, said in sets.items():
            yield f"{FOLDER}/{name}.zarr", _damage(partial(self._verify_set, name, said))

    def _verify_set(self, name: str, said: Mapping[str, Any]) -> None:
        path = self.root / FOLDER / f"{name}.zarr"
        check_dataset(path)
        data = open_dataset(path)
        if data.attrs.get("fingerprint") != said.get("fingerprint") or data.sizes["voxel"] != self.n_voxels:
            raise StorageError(
                f"the parcels are not those that {SETS} names", where=path, hint="give `vidbrain bold parcels` again"
            )


def _damage(check: Callable[[], None]) -> StorageError | None:
    try:
        check()
    except StorageError as error:
        return error
    return None


def open_bold(root: str | Path | Root, parcels: str | None = None) -> BoldStore:
    """Open a finished BOLD store, in a folder or at a URL such as ``s3://bucket/bold``.

    Parameters
    ----------
    root
        Where it lies.
    parcels
        Name of the set of parcels to show; default the one in use.

    Raises
    ------
    StorageError
        If there is none, it is unfinished, or a run of it is missing.
    ConfigError
        If it has no such set of parcels.
    """
    store = open_record(root, parcels)
    place = store.root
    keys = {f"{run}.zarr/zarr.json": run for run in store.runs}
    missing = [keys[key] for key in open_root(place).missing(list(keys))]
    if missing:
        raise StorageError(
            f"the BOLD store lacks {', '.join(missing)}", where=place, hint="give the ingest command again"
        )
    if isinstance(place, Path):  # a request more at a URL
        record = open_root(place) / f"{store.runs[0]}.zarr"
        with readable(record / "zarr.json"):
            store._refuse_other_facts(store.runs[0], find_json(record, "zarr.json").get("attributes", {}))
    return store


def open_record(root: str | Path | Root, parcels: str | None = None) -> BoldStore:
    """Open a BOLD store by its root record alone, as `BoldStore.damages` needs it: runs may be missing or damaged.

    Parameters and errors as of `open_bold`.
    """
    place = locate(root)
    return BoldStore(place, read_record(place), None if parcels is None else known_set(place, parcels))


def lost_folders(root: Path, labels: Iterable[str], columns: str = GRID) -> list[str]:
    """Name the Zarr folders of a store on disk that are not there any more: of runs, and of what the columns are."""
    return [
        name for name in (columns, *(f"{label}.zarr" for label in labels)) if not (root / name / "zarr.json").is_file()
    ]


def read_record(root: str | Path | Root) -> dict[str, Any]:
    """Read the root record of a BOLD store.

    Raises
    ------
    StorageError
        If there is none, or it is damaged.
    """
    place = locate(root)
    info = read_info(place, KIND)
    lacks = [name for name, kind in _FACTS.items() if not isinstance(info.get(name), kind)]
    if not lacks and not info["runs"]:
        lacks = ["runs"]
    for record in [] if lacks else info["runs"]:
        shaped = record if isinstance(record, dict) else {}
        lacks += [f"{name} of a run" for name, kind in _RUN_FACTS.items() if not isinstance(shaped.get(name), kind)]
    if lacks:
        raise StorageError(
            f"the root record is damaged: no right {', '.join(dict.fromkeys(lacks))}",
            where=place / INFO,
            hint=_EDITED,
        )
    return info
