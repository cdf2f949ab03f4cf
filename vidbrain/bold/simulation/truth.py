"""The planted truth beside simulated BOLD: which voxel carries what, and how well it could be predicted at best."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from vidbrain.bold.simulation.drivers import BINS_PER_TR, KINDS
from vidbrain.bold.store import BoldStore
from vidbrain.bold.voxels import flat_index
from vidbrain.errors import AlignmentError
from vidbrain.records import RunKey
from vidbrain.storage.info import read_info, write_info
from vidbrain.storage.zarrs import open_dataset, write_dataset
from vidbrain.video.clock import volume_times

KIND = "truth"


@dataclass(frozen=True)
class Truth:
    """The planted brain of a simulated data set.

    Attributes
    ----------
    root
        Folder of the truth.
    info
        Its root record: drivers, runs, volumes, what the numbers mean.
    kind : (n_voxels,) int8
        0 noise, 1 visual, 2 motor (buttons), 3 event (`vidbrain.bold.simulation.drivers.KINDS`).
    weights : (n_voxels, n_drivers) float32
        Signal = drivers @ weights.T, in units of the noise's standard deviation; what subjects share, where they also
        have private parts (`weights_of`).
    ceiling : (n_voxels,) float32
        Correlation of signal and data that was asked for; see `measured_ceiling` for what came out.
    ijk : (n_voxels, 3) int32
        Voxel indices, along the Morton curve as in a BOLD store.
    rows : (n_voxels,) intp, or None
        Places of these voxels in the truth on disk, where they are not all of it.
    """

    root: Path
    info: dict[str, Any]
    kind: NDArray[np.int8]
    weights: NDArray[np.float32]
    ceiling: NDArray[np.float32]
    ijk: NDArray[np.int32]
    rows: NDArray[np.intp] | None = None

    @property
    def n_voxels(self) -> int:
        """Voxels of the planted brain."""
        return len(self.kind)

    @property
    def driver_names(self) -> tuple[str, ...]:
        """Names of the drivers, in the order of the weights."""
        return tuple(self.info["driver_names"])

    @property
    def driver_kinds(self) -> NDArray[np.int8]:
        """Kind of voxel that each driver drives, (n_drivers,)."""
        return np.array(self.info["driver_kinds"], np.int8)

    @property
    def runs(self) -> tuple[str, ...]:
        """Labels of the runs."""
        return tuple(self.info["runs"])

    @property
    def tr_s(self) -> float:
        """Repetition time in seconds."""
        return float(self.info["tr_s"])

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of a volume."""
        ni, nj, nk = self.info["shape"]
        return ni, nj, nk

    @cached_property
    def affine(self) -> NDArray[np.float64]:
        """Voxel indices to millimetres of MNI space, (4, 4)."""
        return np.array(self.info["affine"], np.float64)

    def n_trs(self, run: str) -> int:
        """Volumes of a run."""
        return int(self.info["runs"][_label(run, self.runs)])

    def drivers(self, run: str, *, convolved: bool = True) -> NDArray[np.float64]:
        """Drivers of a run, one row a volume.

        Parameters
        ----------
        run
            Label.
        convolved
            True: through the haemodynamic response, at the middle of each volume; what voxels carry. False: the mean
            over each volume before the response; for models with delays of their own.

        Returns
        -------
        (n_trs, n_drivers) float64
            Standardised over the whole data set.
        """
        data = open_dataset(self.root / "drivers" / f"{_label(run, self.runs)}.zarr")
        return np.asarray(data["convolved" if convolved else "drivers"].values, np.float64)

    def signal(self, run: str, voxels: slice | NDArray[np.intp] = slice(None)) -> NDArray[np.float64]:
        """Noise-free signal of a run in the given voxels, (n_trs, n), in units of the noise's standard deviation."""
        return self.drivers(run) @ self.weights_of(run)[voxels].T.astype(np.float64)

    def weights_of(self, run: str) -> NDArray[np.float32]:
        """Weights of the subject who was scanned, (n_voxels, n_drivers): shared and private part."""
        if not self.info["config"].get("private_share"):
            return self.weights
        subject = RunKey.parse(_label(run, self.runs)).subject
        data = open_dataset(self.root / "subjects" / f"sub-{subject}.zarr")
        weights = np.asarray(data["weights"].values, np.float32)
        return weights if self.rows is None else weights[self.rows]

    def aligned(self, store: BoldStore) -> Truth:
        """The truth of exactly the voxels of a store, in its order.

        Raises
        ------
        AlignmentError
            If the store lies on another grid or holds voxels that were never simulated.
        """
        if store.shape != self.shape or not np.allclose(store.affine, self.affine, atol=1e-4):
            raise AlignmentError(
                f"the BOLD store ({store.shape}) does not lie on the grid of the planted truth ({self.shape})",
                where=store.root,
                hint="ingest the simulated derivatives that the truth belongs to",
            )
        if np.array_equal(store.ijk, self.ijk):
            return self
        mine, theirs = flat_index(self.ijk, self.shape), flat_index(store.ijk, self.shape)
        order = np.argsort(mine)
        found = np.minimum(np.searchsorted(mine[order], theirs), len(mine) - 1)
        if not np.array_equal(mine[order][found], theirs):
            raise AlignmentError("the BOLD store holds voxels that were never simulated", where=store.root)
        rows = order[found]
        return replace(
            self,
            kind=self.kind[rows],
            weights=self.weights[rows],
            ceiling=self.ceiling[rows],
            ijk=self.ijk[rows],
            rows=rows if self.rows is None else self.rows[rows],
        )


def _label(run: str, known: tuple[str, ...]) -> str:
    label = RunKey.parse(run).label
    if label not in known:
        raise AlignmentError(f"the planted truth has no run {label}; it has {', '.join(known)}")
    return label


def open_truth(root: str | Path) -> Truth:
    """Open the truth that `vidbrain bold simulate` saved.

    Parameters
    ----------
    root
        The ``truth`` folder, or the simulated derivatives that hold it.

    Raises
    ------
    StorageError
        If there is none or it is damaged.
    """
    root = Path(root)
    if (root / "truth").is_dir():
        root = root / "truth"
    info = read_info(root, KIND)
    data = open_dataset(root / "truth.zarr")
    return Truth(
        root=root,
        info=info,
        kind=data["kind"].values,
        weights=data["weights"].values,
        ceiling=data["ceiling"].values,
        ijk=np.stack([data[axis].values for axis in "ijk"], axis=1),
    )


def write_truth(
    root: Path,
    *,
    kind: NDArray[np.int8],
    weights: NDArray[np.float32],
    ceiling: NDArray[np.float32],
    ijk: NDArray[np.int32],
    config: dict[str, Any],
    made_from: dict[str, str],
    facts: dict[str, Any],
) -> None:
    """Write ``truth.zarr`` and then the truth's root record."""
    dataset = xr.Dataset(
        {
            "kind": ("voxel", kind),
            "weights": (("voxel", "driver"), weights),
            "ceiling": ("voxel", ceiling),
            **{axis: ("voxel", column) for axis, column in zip("ijk", ijk.T, strict=True)},
        },
        attrs={"kinds": facts.get("kinds", list(KINDS)), "driver_names": facts["driver_names"], "simulated": True},
    )
    write_dataset(root / "truth.zarr", dataset)
    write_info(root, KIND, config=config, made_from=made_from, facts=facts)


def write_subject(root: Path, subject: str, weights: NDArray[np.float32]) -> None:
    """Write the weights of one subject, (n_voxels, n_drivers), shared and private part together."""
    dataset = xr.Dataset({"weights": (("voxel", "driver"), weights)}, attrs={"subject": subject, "simulated": True})
    write_dataset(root / "subjects" / f"sub-{subject}.zarr", dataset)


def write_drivers(
    root: Path, run: str, *, drivers: NDArray[np.float64], convolved: NDArray[np.float64], tr_s: float, names: list[str]
) -> None:
    """Write the drivers of one run, before and after the haemodynamic response, (n_trs, n_drivers) each."""
    dataset = xr.Dataset(
        {
            "drivers": (("tr", "driver"), drivers),
            "convolved": (("tr", "driver"), convolved),
            "time_s": ("tr", volume_times(len(drivers), tr_s)),
        },
        attrs={"driver_names": names, "tr_s": tr_s, "bins_per_tr": BINS_PER_TR, "simulated": True},
    )
    write_dataset(root / "drivers" / f"{run}.zarr", dataset)


def measured_ceiling(truth: Truth, store: BoldStore, *, block: int = 4096) -> NDArray[np.float64]:
    """How well the data could be predicted at best: the noise-free signal, cleaned as the data were, against the data.

    Parameters
    ----------
    truth
        Of the simulation.
    store
        The ingested simulation.
    block
        Voxels at once.

    Returns
    -------
    (n_voxels,) float64
        Pearson's r, mean over runs, in the order of the store; 0 where a voxel carries no signal.
    """
    mine = truth.aligned(store)
    total = np.zeros(store.n_voxels)
    for run in store.runs:
        convolved = store.clean_like(run, mine.drivers(run), standardize=False)
        weights = mine.weights_of(run)
        for first in range(0, store.n_voxels, block):
            voxels = slice(first, min(first + block, store.n_voxels))
            # Cleaning is linear but for its scale, so the drivers can be cleaned in place of every voxel's signal.
            signal = convolved @ weights[voxels].T.astype(np.float64)
            total[voxels] += correlation(signal, store.read(run, voxels).astype(np.float64))
    return total / len(store.runs)


def correlation(first: NDArray[np.float64], second: NDArray[np.float64]) -> NDArray[np.float64]:
    """Pearson's r of columns, (n_trs, n) each to (n,); 0 where a column is constant."""
    a, b = first - first.mean(axis=0), second - second.mean(axis=0)
    norms = np.sqrt((a**2).sum(axis=0) * (b**2).sum(axis=0))
    return np.divide((a * b).sum(axis=0), norms, out=np.zeros(a.shape[1]), where=norms > 1e-12)
