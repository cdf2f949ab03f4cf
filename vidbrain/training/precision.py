"""Number formats of training: the only place that names them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 -- as torch's own documents name it

from vidbrain.errors import ConfigError, ModelError

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
    def products(self) -> Iterator[None]:
        """Run products and convolutions of float32 as the arm says, in forward and backward passes.

        Unasked, torch rounds convolutions on a GPU to tf32 and products not: an fp32 arm would be a mixture.
        """
        before, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
        torch.set_float32_matmul_precision("high" if self.name == "tf32" else "highest")
        torch.backends.cudnn.allow_tf32 = self.name == "tf32"
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(before)
            torch.backends.cudnn.allow_tf32 = convolutions

    @contextlib.contextmanager
    def autocast(self) -> Iterator[None]:
        """Run the forward pass in this precision; products of float32 as `products` says."""
        dtype = _DTYPES.get(self.name)
        # Always entered, so that every arm runs the same code; disabled for fp32 and tf32.
        with self.products(), torch.autocast(self.device, dtype or torch.bfloat16, enabled=dtype is not None):
            yield

    def scaler(self) -> torch.amp.GradScaler:
        """Gradient scaler of the arm; a no-op but for fp16."""
        return torch.amp.GradScaler(self.device, enabled=self.name == "fp16")


TOLERANCE = {"fp32": 1e-5, "tf32": 5e-3, "fp16": 5e-3, "bf16": 4e-2}
"""Largest error of the self-test, relative to the root mean square of the true values."""


def self_test(arm: Precision) -> float:
    """Compare the arm with float64 on the device at hand: a convolution, a product, attention, and their gradients.

    Returns
    -------
    float
        The largest root mean square error of a result or gradient, relative to the true one.

    Raises
    ------
    ModelError
        If it is above `TOLERANCE`: the device or its libraries compute wrongly.
    """
    chance = torch.Generator().manual_seed(0)
    video, kernel, weight = (
        torch.randn(shape, generator=chance, dtype=torch.float64).to(arm.device)
        for shape in ((1, 16, 4, 8, 8), (32, 16, 3, 3, 3), (96, 32))
    )

    def results(video: Tensor, kernel: Tensor, weight: Tensor) -> list[Tensor]:
        leaves = [leaf.clone().requires_grad_() for leaf in (video, kernel / 20, weight / 6)]
        tokens = F.conv3d(leaves[0], leaves[1], padding=1).flatten(2).mT
        q, k, v = F.linear(tokens, leaves[2]).unflatten(-1, (3, 2, 16)).permute(2, 0, 3, 1, 4)
        found = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        found.float().square().mean().backward()
        return [found.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]

    truth = results(video, kernel, weight)
    with arm.autocast():
        found = results(video.float(), kernel.float(), weight.float())
    errors = [float((f.double() - t).square().mean().sqrt() / t.square().mean().sqrt())
              for f, t in zip(found, truth, strict=True)]  # fmt: skip
    worst = max(errors)
    if not worst <= TOLERANCE[arm.name]:
        raise ModelError(
            f"{arm.name} on {arm.device} errs by {worst:.1e} of its results, where {TOLERANCE[arm.name]:.0e} is usual",
            where="precision",
            likely="a fault of the device's library for convolutions or attention",
            hint="use --precision fp32, or another version of torch",
        )
    return worst


def resolve(name: PrecisionName, device: torch.device) -> Precision:
    """Decide what ``auto`` means here, and refuse what the device cannot do.

    ``auto`` is bf16 on a GPU that has it (fp16 on an older one) and fp32 on a CPU.

    Raises
    ------
    ConfigError
        For tf32 without a GPU, and tf32 or bf16 on a GPU that lacks it.
    """
    on_gpu = device.type == "cuda"
    if name == "auto":
        if not on_gpu:
            return Precision("fp32", device.type)
        return Precision("bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16", device.type)
    if name == "tf32" and not on_gpu:
        raise ConfigError("tf32 is a number format of GPUs", where="precision", hint="use fp32 or bf16 on a CPU")
    if on_gpu and name in ("tf32", "bf16") and torch.cuda.get_device_capability(device) < (8, 0):
        raise ConfigError(
            f"{torch.cuda.get_device_name(device)} has no {name}", where="precision", hint="use fp16 or fp32"
        )
    return Precision(name, device.type)
