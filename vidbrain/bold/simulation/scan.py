"""One simulated run as a scanner and fMRIPrep would leave it: series, mask, confounds, sidecars."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt, gaussian_filter
from threadpoolctl import threadpool_limits

from vidbrain.bold.forms.nifti_writer import SeriesWriter, as_stored, write_volume
from vidbrain.bold.simulation.noise import (
    MOTION,
    ar1,
    cosine_drifts,
    draw_nuisance,
    edge_maps,
    framewise_displacement,
    smooth_noise,
)
from vidbrain.bold.simulation.truth import Truth, open_truth
from vidbrain.bold.voxels import centres_mm, flat_index, to_volume
from vidbrain.config import fingerprint
from vidbrain.records import RunKey
from vidbrain.storage.atomic import read_json, replacing, write_bytes, write_json

_BLOCK = 32
_BLOCK_VALUES = 1 << 22
"""Fewer volumes at once where they are large: memory does not grow with the resolution."""
_SLOPE = 0.2
_VENTRICLES_MM = ((-10.0, -12.0, 18.0), (10.0, -12.0, 18.0))


@dataclass(frozen=True, kw_only=True)
class ScanRow:
    """What a worker needs to write one run.

    Attributes
    ----------
    root
        Root of the simulated derivatives; the truth lies below it.
    run
        Label of the run.
    fingerprint
        Names everything that decides the content.
    space
        For file names.
    seed, ar1, fwhm_mm, noise_percent, drift, physiology, motion, dtype
        As in `vidbrain.bold.simulation.experiment.SimulateConfig`.
    """

    root: Path
    run: str
    fingerprint: str
    space: str
    seed: int
    ar1: float
    fwhm_mm: float
    noise_percent: float
    drift: float
    physiology: float
    motion: float
    dtype: str

    @property
    def slope(self) -> float | None:
        """Value of one stored step; None where values are stored as float32."""
        return _SLOPE if self.dtype == "int16" else None


def scan_fingerprint(settings: Mapping[str, Any], made_from: Mapping[str, str]) -> str:
    """Name of everything that decides a scan."""
    return fingerprint("scan", 1, dict(settings), dict(made_from))


def scan_stem(root: Path, run: str) -> Path:
    """Folder and begin of the names of a run's files, up to its label."""
    key = RunKey.parse(run)
    folder = root / f"sub-{key.subject}"
    if key.session is not None:
        folder /= f"ses-{key.session}"
    return folder / "func" / run


def scan_files(root: Path, run: str, space: str) -> dict[str, Path]:
    """Every file of a run; the sidecar of the series is written last and marks the run as whole."""
    stem = scan_stem(root, run)
    names = {
        "bold": f"_space-{space}_desc-preproc_bold.nii.gz",
        "mask": f"_space-{space}_desc-brain_mask.nii.gz",
        "confounds": "_desc-confounds_timeseries.tsv",
        "confounds_json": "_desc-confounds_timeseries.json",
        "sidecar": f"_space-{space}_desc-preproc_bold.json",
    }
    return {key: stem.with_name(stem.name + name) for key, name in names.items()}


def is_scanned(root: Path, run: str, fingerprint: str, space: str) -> bool:
    """Whether a run is whole on disk and was made with exactly these settings."""
    files = scan_files(root, run, space)
    if not all(path.is_file() for path in files.values()):
        return False
    return bool(read_json(files["sidecar"]).get("Fingerprint") == fingerprint)


def write_scan(row: ScanRow) -> str:
    """Simulate one run and write its files; the worker's part of `vidbrain.bold.simulation.simulate.simulate`.

    Returns
    -------
    str
        Label of the run.
    """
    with threadpool_limits(1):  # sums must not depend on how many cores this process may use
        truth = open_truth(row.root / "truth")
        scan = Scan(row, truth)
        shape = truth.shape
        path = scan_files(row.root, row.run, row.space)["bold"]
        with replacing(path) as part:
            with SeriesWriter(part, (*shape, scan.n_trs), truth.affine, truth.tr_s, row.slope) as writer:
                for stored in scan.blocks():
                    writer.put(stored.reshape(len(stored), *shape[::-1]).transpose(0, 3, 2, 1))
            with part.open("rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
        write_beside(row, truth, scan.confounds(), digest)
    return row.run


def write_beside(row: ScanRow, truth: Truth, confounds: pd.DataFrame, digest: str | None) -> None:
    """Write what lies beside the series of a run: mask, confounds, and last its sidecar.

    Parameters
    ----------
    row, truth
        The run.
    confounds
        Its table.
    digest
        SHA-256 of the series; None where there is none, since it went into a BOLD store.
    """
    files = scan_files(row.root, row.run, row.space)
    with replacing(files["mask"]) as part:
        write_volume(part, to_volume(np.ones(truth.n_voxels, np.uint8), truth.ijk, truth.shape), truth.affine)
    write_bytes(files["confounds"], confounds.to_csv(sep="\t", index=False, na_rep="n/a", float_format="%.9g").encode())
    write_json(files["confounds_json"], {"Description": "SIMULATED confounds, in the layout of fMRIPrep"})
    write_json(
        files["sidecar"],
        {
            "Description": "SIMULATED BOLD: no brain was measured",
            "RepetitionTime": truth.tr_s,
            "TaskName": RunKey.parse(row.run).task,
            "SliceTimingCorrected": False,
            "SkullStripped": True,
            **({} if digest is None else {"Sha256": digest}),
            "Fingerprint": row.fingerprint,
        },
    )


class Scan:
    """One simulated run, made block of volumes by block.

    Parameters
    ----------
    row
        Which run, and the scanner.
    truth
        What is planted.
    """

    def __init__(self, row: ScanRow, truth: Truth) -> None:
        self.row, self.truth, self.n_trs = row, truth, truth.n_trs(row.run)
        # The label decides the noise, not the order of the runs or the worker that takes it.
        label = int.from_bytes(hashlib.sha256(row.run.encode()).digest()[:8], "big")
        self._rng = np.random.default_rng([row.seed, 2, label])
        self._noise_share = row.noise_percent / 100.0
        self._voxel_mm = float(np.abs(truth.affine[0, 0]))
        ijk, shape = truth.ijk, truth.shape
        image = 1000.0 * gaussian_filter(to_volume(np.ones(truth.n_voxels), ijk, shape), 4.0 / self._voxel_mm)
        self._baseline = image[tuple(ijk.T)]
        edges = edge_maps(image, truth.affine, self._noise_share)[(slice(None), *ijk.T)]
        self._nuisance = draw_nuisance(
            self._rng, ijk, shape, edges, self.n_trs, drift=row.drift, physiology=row.physiology, motion=row.motion
        )
        self._means = np.zeros((self.n_trs, 3))

    def blocks(self) -> Iterator[NDArray[Any]]:
        """Make the volumes, once.

        Yields
        ------
        (n, ni * nj * nk)
            As the file stores them (int16 or float32), first index fastest (`vidbrain.bold.voxels.flat_index`).
        """
        row, truth = self.row, self.truth
        ijk, shape, n_flat = truth.ijk, truth.shape, int(np.prod(truth.shape))
        white, csf = tissue(truth)
        places = flat_index(ijk, shape)
        planted = np.flatnonzero(truth.kind != 0)
        drivers, weights = truth.drivers(row.run), truth.weights_of(row.run)[planted].T.astype(np.float64)
        sigma = row.fwhm_mm / 2.3548 / self._voxel_mm
        before = None
        block = max(1, min(_BLOCK, _BLOCK_VALUES // n_flat))
        for first in range(0, self.n_trs, block):
            rows = slice(first, min(first + block, self.n_trs))
            fresh = smooth_noise(self._rng, rows.stop - first, shape, sigma)[(slice(None), *ijk.T)]
            change = ar1(fresh, row.ar1, before)
            before = change[-1].copy()
            nuisance = self._nuisance.traces[rows].astype(np.float64) @ self._nuisance.maps
            change = change.astype(np.float64) + nuisance
            change[:, planted] += drivers[rows] @ weights
            values = np.zeros((len(change), n_flat))
            values[:, places] = self._baseline * (1.0 + self._noise_share * change)
            stored = as_stored(values, row.slope)
            voxels = stored[:, places] * (row.slope or 1.0)
            self._means[rows] = np.stack(
                [voxels.mean(axis=1), voxels[:, csf].mean(axis=1), voxels[:, white].mean(axis=1)], 1
            )
            yield stored

    def confounds(self) -> pd.DataFrame:
        """What fMRIPrep would measure in the volumes, once all of them are made."""
        return confounds_table(self._nuisance.motion, self._means, self.truth.tr_s)


def tissue(truth: Truth) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Voxels that stand for white matter (the deepest without signal) and for CSF (those nearest the ventricles)."""
    inside = np.pad(to_volume(np.ones(truth.n_voxels), truth.ijk, truth.shape), 1)
    depth = distance_transform_edt(inside)[1:-1, 1:-1, 1:-1][tuple(truth.ijk.T)]
    mm = centres_mm(truth.ijk, truth.affine)
    near = np.min([np.linalg.norm(mm - np.array(place), axis=1) for place in _VENTRICLES_MM], axis=0)
    empty = np.flatnonzero(truth.kind == 0)
    if not len(empty):
        empty = np.arange(truth.n_voxels)
    few = max(1, len(empty) // 20)
    csf = empty[np.argsort(near[empty], kind="stable")[:few]]
    rest = np.setdiff1d(empty, csf) if len(empty) > few else empty
    white = rest[np.argsort(-depth[rest], kind="stable")[: 4 * few]]
    return np.asarray(white, np.intp), np.asarray(csf, np.intp)


def confounds_table(motion: NDArray[np.float64], means: NDArray[np.float64], tr_s: float) -> pd.DataFrame:
    """Lay out confounds as fMRIPrep does: each with its derivative, square and squared derivative, then cosines.

    Parameters
    ----------
    motion : (n_trs, 6)
        Millimetres and radians.
    means : (n_trs, 3)
        Global, CSF and white matter signal.
    tr_s
        Repetition time.

    Returns
    -------
    DataFrame
        A row a volume; the first derivative of the first volume is missing.
    """
    columns: dict[str, NDArray[np.float64]] = {}

    def add(name: str, values: NDArray[np.float64]) -> None:
        slope = np.concatenate([[np.nan], np.diff(values)])
        columns[name] = values
        columns[f"{name}_derivative1"] = slope
        columns[f"{name}_power2"] = values**2
        columns[f"{name}_derivative1_power2"] = slope**2

    for name, values in zip(("global_signal", "csf", "white_matter"), means.T, strict=True):
        add(name, values)
    columns["framewise_displacement"] = framewise_displacement(motion)
    for name, values in zip(MOTION, motion.T, strict=True):
        add(name, values)
    for number, values in enumerate(cosine_drifts(len(motion), tr_s).T):
        columns[f"cosine{number:02d}"] = values
    return pd.DataFrame(columns)
