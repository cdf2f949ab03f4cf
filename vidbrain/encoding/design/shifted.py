"""Features on the clock of BOLD that begins some whole volumes after them, or before: row k belongs to volume k."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import xarray as xr

from vidbrain.encoding.design.align import FeatureStoreLike
from vidbrain.video.clock import volume_times

_NOTHING = {"features": 0, "valid": False, "n_frames": 0, "recording": -1}
"""What a row that features do not have says."""


@dataclass(frozen=True)
class ShiftedFeatures:
    """A feature store whose runs begin with the BOLD's first volume.

    BOLD begins later than the run's clock where volumes were taken away (``StartTime`` of its sidecar says so), and
    features begin with the clock. Rows before the first volume are left out; where features begin later, rows that are
    not valid stand before them. What is less than a volume stays: `align` refuses it.

    Attributes
    ----------
    features
        The store.
    begins_s
        By run label, the time that its first volume of BOLD stands for; runs that are not named stay as they are.
    """

    features: FeatureStoreLike
    begins_s: Mapping[str, float]

    @property
    def info(self) -> Mapping[str, Any]:
        """Root record of the store."""
        return self.features.info

    @property
    def layers(self) -> Sequence[str]:
        """Names of the layers."""
        return self.features.layers

    @property
    def runs(self) -> Sequence[str]:
        """Run labels."""
        return self.features.runs

    def read(self, layer: str, run: str) -> xr.Dataset:
        """One layer of one run, a row for each volume of the BOLD as far as there are features."""
        data = self.features.read(layer, run)
        if run not in self.begins_s or "time_s" not in data or not data.sizes["tr"]:
            return data
        tr_s, first_s = float(data.attrs["tr_s"]), float(data["time_s"][0])
        n_later = round((self.begins_s[run] - first_s) / tr_s)
        if n_later >= 0:
            return data.isel(tr=slice(n_later, None)) if n_later else data
        padded = data.pad(tr=(-n_later, 0), constant_values=_NOTHING)
        times_s = volume_times(padded.sizes["tr"], tr_s, first_s / tr_s + n_later)
        return padded.assign_coords(time_s=("tr", times_s))
