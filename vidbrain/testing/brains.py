"""Toy features and toy brains in memory, with a known planted signal: for tests and tutorials."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from vidbrain.config import fingerprint
from vidbrain.video.clock import volume_times

TR_S = 1.49


def run_labels(n_runs: int) -> tuple[str, ...]:
    """Labels of toy runs, two a session."""
    return tuple(f"sub-01_ses-{1 + n // 2:03d}_task-toy_run-{1 + n % 2}" for n in range(n_runs))


def ar1(rng: np.random.Generator, n: int, columns: int, phi: float) -> NDArray[np.float32]:
    """Stationary AR(1) noise of unit variance, (n, columns) float32."""
    noise = rng.standard_normal((n, columns))
    out = np.empty_like(noise)
    out[0] = noise[0]
    for t in range(1, n):
        out[t] = phi * out[t - 1] + np.sqrt(1 - phi**2) * noise[t]
    return out.astype(np.float32)


@dataclass(frozen=True)
class ToyFeatures:
    """A feature store in memory: values (tr, feature) by layer and run, and what TRs have video by run."""

    values: Mapping[str, Mapping[str, NDArray[np.float32]]]
    valid: Mapping[str, NDArray[np.bool_]] = field(default_factory=dict)
    tr_s: float = TR_S

    @property
    def info(self) -> dict[str, Any]:
        """Root record, with a fingerprint of the content."""
        sums = {
            layer: {run: [list(v.shape), float(np.nansum(np.float64(v) ** 2))] for run, v in runs.items()}
            for layer, runs in self.values.items()
        }
        return {"fingerprint": fingerprint(sums, {run: v.tolist() for run, v in self.valid.items()})}

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers."""
        return tuple(self.values)

    @property
    def runs(self) -> tuple[str, ...]:
        """Run labels."""
        return tuple(next(iter(self.values.values())))

    def read(self, layer: str, run: str) -> xr.Dataset:
        """One layer of one run."""
        values = self.values[layer][run]
        valid = self.valid.get(run, np.ones(len(values), bool))
        return xr.Dataset(
            {"features": (("tr", "feature"), values), "valid": (("tr",), valid)},
            coords={"time_s": (("tr",), volume_times(len(values), self.tr_s))},
            attrs={"tr_s": self.tr_s, "layer": layer},
        )


@dataclass(frozen=True)
class ToyBold:
    """A BOLD store in memory: (tr, voxel) by run; voxels fill a box of four by four columns."""

    values: Mapping[str, NDArray[np.float32]]
    kept: Mapping[str, NDArray[np.bool_]] = field(default_factory=dict)
    confounds: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    tr_s: float = TR_S

    @property
    def info(self) -> dict[str, Any]:
        """Root record, with a fingerprint of the content."""
        sums = {run: [list(v.shape), float(np.nansum(np.float64(v) ** 2))] for run, v in self.values.items()}
        return {"fingerprint": fingerprint(sums), "simulated": True, "space": "MNI152NLin2009cAsym"}

    @property
    def runs(self) -> tuple[str, ...]:
        """Run labels."""
        return tuple(self.values)

    @property
    def parcels(self) -> None:
        """No set of parcels is asked for."""

    @property
    def n_voxels(self) -> int:
        """Voxels."""
        return next(iter(self.values.values())).shape[1]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of a volume: one more layer than the voxels need."""
        return 4, 4, -(-self.n_voxels // 16) + 1

    @property
    def affine(self) -> NDArray[np.float64]:
        """4 mm voxels."""
        return np.diag([4.0, 4.0, 4.0, 1.0])

    def open(self, run: str) -> xr.Dataset:
        """One run."""
        values = self.values[run]
        i, j, k = np.unravel_index(np.arange(values.shape[1]), self.shape, order="F")
        data = xr.Dataset(
            {"bold": (("tr", "voxel"), values)},
            coords={name: (("voxel",), axis.astype(np.int32)) for name, axis in zip("ijk", (i, j, k), strict=True)},
        )
        if run in self.confounds:
            data = data.assign(confounds=(("tr", "confound"), self.confounds[run]))
        return data.assign(kept=(("tr",), self.kept[run])) if run in self.kept else data

    def read(self, run: str, voxels: slice) -> NDArray[np.float32]:
        """A block of voxels of one run, (tr, v)."""
        return self.values[run][:, voxels]


def toy_world(
    n_trs: Sequence[int] = (90, 80, 100, 85),
    *,
    n_features: int = 12,
    n_signal: int = 30,
    n_noise: int = 30,
    snr: float = 1.0,
    phi: float = 0.4,
    seed: int = 0,
) -> tuple[ToyFeatures, ToyBold]:
    """Make features and a brain whose first `n_signal` voxels follow them, delayed by 2 and 3 TRs within runs.

    Parameters
    ----------
    n_trs
        Length of each run.
    snr
        Standard deviation of the signal over that of the noise.
    phi
        Autocorrelation of features and noise at lag 1.
    """
    rng = np.random.default_rng(seed)
    labels = run_labels(len(n_trs))
    weights = rng.standard_normal((n_features, n_signal)) / np.sqrt(n_features)
    features, bold = {}, {}
    for label, n in zip(labels, n_trs, strict=True):
        x = ar1(rng, n, n_features, phi)
        y = ar1(rng, n, n_signal + n_noise, phi)
        driven = np.zeros((n, n_features))
        driven[2:] += 0.7 * x[:-2]
        driven[3:] += 0.7 * x[:-3]
        y[:, :n_signal] += (snr * driven @ weights).astype(np.float32)
        features[label], bold[label] = x, y
    return ToyFeatures({"toy": features}), ToyBold(bold)
