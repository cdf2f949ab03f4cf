"""Energy that a device used, where the machine says: GPUs by NVML, CPU packages by RAPL."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import torch

POWERCAP = Path("/sys/class/powercap")
"""Where Linux shows RAPL's counters."""

Reading = dict[str, tuple[int, int]]
"""By counter: microjoules, and the value at which it begins again at 0."""


class EnergyMeter:
    """Energy since it was made.

    Parameters
    ----------
    device
        A GPU: the whole of it, whoever else computes on it. Else the CPU packages that can be read, likewise.
    powercap
        Folder of RAPL's counters.
    """

    def __init__(self, device: torch.device, *, powercap: Path = POWERCAP) -> None:
        self._device, self._powercap = device, powercap
        self._begin, self.reason = self._read()

    def report(self) -> dict[str, Any]:
        """Return ``energy_j``, ``energy_of`` and, where there is no figure, ``energy_reason``."""
        end, reason = self._read()
        of = "whole GPU (NVML)" if self._device.type == "cuda" else "CPU packages (RAPL)"
        if not self._begin or set(end) != set(self._begin):
            return {"energy_j": None, "energy_of": of, "energy_reason": self.reason or reason}
        used = sum((end[k][0] - self._begin[k][0]) % end[k][1] for k in end)
        return {"energy_j": round(used / 1e6, 3), "energy_of": of, "energy_reason": None}

    def _read(self) -> tuple[Reading, str | None]:
        return _nvml(self._device) if self._device.type == "cuda" else _rapl(self._powercap)


def _nvml(device: torch.device) -> tuple[Reading, str | None]:
    try:
        nvml: Any = importlib.import_module("pynvml")
    except ImportError:
        return {}, "nvidia-ml-py is not installed"
    try:
        nvml.nvmlInit()
        handle = nvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
        millijoules = int(nvml.nvmlDeviceGetTotalEnergyConsumption(handle))
    except nvml.NVMLError as error:
        return {}, f"NVML gives no energy: {error}"
    return {"gpu": (millijoules * 1000, 2**63)}, None


def _rapl(powercap: Path) -> tuple[Reading, str | None]:
    found, reason = {}, f"there are no RAPL counters in {powercap}"
    for folder in sorted(powercap.glob("intel-rapl:*")):
        if folder.name.count(":") != 1:  # a part of a package, counted in it
            continue
        try:
            limit = int((folder / "max_energy_range_uj").read_text())
            found[folder.name] = (int((folder / "energy_uj").read_text()), limit + 1)
        except (OSError, ValueError) as error:
            reason = f"RAPL cannot be read: {getattr(error, 'strerror', None) or error}"
    return found, None if found else reason
