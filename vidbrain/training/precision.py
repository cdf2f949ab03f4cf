"""Number formats of training: the only place that names them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch

from vidbrain.errors import ConfigError

PrecisionName = Literal["auto", "fp32", "tf32", "fp16", "bf16"]

_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Precision:
    """A resolved arm: ``fp32``, ``tf32``, ``fp16`` (with a gradient scaler) or ``bf16``, on a kind of device.

    Weights, the optimiser's state, losses and the quantizer are float32 in all of them.
    """

    name: str
    device: str

    @contextlib.contextmanager
    def autocast(self) -> Iterator[None]:
        """Run the forward pass in this precision, and matrix products of float32 as the arm says."""
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high" if self.name == "tf32" else "highest")
        dtype = _DTYPES.get(self.name)
        try:
            # Always entered, so that every arm runs the same code; disabled for fp32 and tf32.
            with torch.autocast(self.device, dtype or torch.bfloat16, enabled=dtype is not None):
                yield
        finally:
            torch.set_float32_matmul_precision(before)

    def scaler(self) -> torch.amp.GradScaler:
        """Gradient scaler of the arm; a no-op but for fp16."""
        return torch.amp.GradScaler(self.device, enabled=self.name == "fp16")


def resolve(name: PrecisionName, device: torch.device) -> Precision:
    """Decide what ``auto`` means here, and refuse what the device cannot do.

    ``auto`` is bf16 on a GPU that has it (fp16 on an older one) and fp32 on a CPU.

    Raises
    ------
    ConfigError
        For tf32 without a GPU.
    """
    on_gpu = device.type == "cuda"
    if name == "auto":
        if not on_gpu:
            return Precision("fp32", device.type)
        return Precision("bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16", device.type)
    if name == "tf32" and not on_gpu:
        raise ConfigError("tf32 is a number format of GPUs", where="precision", hint="use fp32 or bf16 on a CPU")
    return Precision(name, device.type)
