"""Features of a layer as drivers of a brain: standardised, or seeded random mixtures of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from vidbrain.bold.simulation.drivers import BINS_PER_TR
from vidbrain.bold.simulation.experiment import SimulateConfig
from vidbrain.errors import BoldError


class FeatureStoreLike(Protocol):
    """What `vidbrain.bold.simulation.simulate.simulate_features` needs of a feature store."""

    @property
    def info(self) -> Mapping[str, Any]:
        """Root record with ``fingerprint``."""

    @property
    def layers(self) -> Sequence[str]:
        """Names of the layers."""

    @property
    def runs(self) -> Sequence[str]:
        """Run labels."""

    @property
    def tr_s(self) -> float:
        """Repetition time in seconds."""

    def read(self, layer: str, run: str, /) -> xr.Dataset:
        """Return ``features`` (tr, feature) float32 and ``valid`` (tr) bool."""


class Mixer:
    """Standardised features of a layer, or seeded random mixtures of them where there are many."""

    def __init__(self, features: FeatureStoreLike, layer: str, config: SimulateConfig) -> None:
        self._features, self._layer = features, layer
        n, total, square = 0, np.zeros(0), np.zeros(0)
        self.n_rows: dict[str, int] = {}
        for run in features.runs:
            values, valid = self._read(run)
            self.n_rows[run] = len(values)
            n += int(valid.sum())
            total = values[valid].sum(axis=0) + (total if len(total) else 0.0)
            square = (values[valid] ** 2).sum(axis=0) + (square if len(square) else 0.0)
        self.n_features = len(total)
        self._mean = total / max(n, 1)
        sd = np.sqrt(np.maximum(square / max(n, 1) - self._mean**2, 0.0))
        self._scale = np.where(sd > 1e-6 * np.maximum(np.abs(self._mean), 1e-6), sd, np.inf)
        self.weights: NDArray[np.float64] | None = None
        self.names = tuple(f"feature_{number:04d}" for number in range(self.n_features))
        if self.n_features > config.max_drivers:
            rng = np.random.default_rng([config.seed, 4])
            self.weights = rng.standard_normal((self.n_features, config.max_drivers)) / np.sqrt(self.n_features)
            self.names = tuple(f"mixture_{number:02d}" for number in range(config.max_drivers))

    def _read(self, run: str) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        data = self._features.read(self._layer, run)
        values, valid = np.asarray(data["features"].values, np.float64), np.asarray(data["valid"].values, bool)
        if not np.isfinite(values[valid]).all():
            raise BoldError(f"features of {run} are not finite, so nothing can be simulated from them")
        return values, valid

    def fine(self, run: str, n_trs: int) -> NDArray[np.float64]:
        """Drivers on the fine grid, constant within a volume; NaN where the features are not valid."""
        values, valid = self._read(run)
        values = (values - self._mean) / self._scale
        if self.weights is not None:
            values = values @ self.weights
        series = np.full((n_trs, values.shape[1]), np.nan)
        series[: len(values)][valid] = values[valid]
        return np.repeat(series, BINS_PER_TR, axis=0)
