"""Codes that lie in the device's memory for a whole training: batches are gathered there, nothing crosses the bus."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

SHARE = 0.25
"""Of the device's free memory that codes may take."""


class ResidentCodes:
    """Codes (N, t, h, w) uint16 on a device."""

    def __init__(self, codes: NDArray[np.uint16], device: torch.device) -> None:
        # As int16, which every device can gather; the bits are the same.
        self._codes = torch.from_numpy(codes.view(np.int16)).to(device)

    def gather(self, rows: NDArray[np.int64]) -> Tensor:
        """Codes of some clips: (B, t, h, w) int32 on the device."""
        return self._codes[torch.from_numpy(rows).to(self._codes.device)].int() & 0xFFFF


def fits(n_bytes: int, free_bytes: int) -> bool:
    """Whether codes leave enough room for the training itself."""
    return n_bytes <= SHARE * free_bytes


def resident_codes(codes: NDArray[np.uint16], device: torch.device) -> ResidentCodes | None:
    """Put codes on a GPU if they fit; None where they do not, and on a CPU, whose memory holds them already."""
    if device.type != "cuda" or not fits(codes.nbytes, torch.cuda.mem_get_info(device)[0]):
        return None
    return ResidentCodes(codes, device)
