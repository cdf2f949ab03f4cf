"""Norms over channels: (…, C) in, (…, C) out in the same type, computed in float32 or wider."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 -- as torch's own documents name it

NormName = Literal["rms", "layer", "study"]


def widened(x: Tensor) -> Tensor:
    """Return 16-bit values as float32, wider ones as they are."""
    return x.float() if x.element_size() < 4 else x


@contextlib.contextmanager
def full_precision(x: Tensor) -> Iterator[None]:
    """Run the block outside autocast, on the device of `x`."""
    with contextlib.nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False):
        yield


class RMSNorm(nn.Module):
    """x / sqrt(mean(x²) + 1e-6), times a gain."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (..., width)."""
        return F.rms_norm(widened(x), self.weight.shape, self.weight, 1e-6).to(x.dtype)


class LayerNorm(nn.Module):
    """(x - mean) / sqrt(var + 1e-5), times a gain, plus an offset."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (..., width)."""
        return F.layer_norm(widened(x), self.weight.shape, self.weight, self.bias, 1e-5).to(x.dtype)


class StudyNorm(LayerNorm):
    """Layer norm as VideoGPT has it: (x - mean) * (1e-5 + 1 / sqrt(var)), so that equal channels give NaN."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (..., width)."""
        wide = widened(x)
        centred = wide - wide.mean(-1, keepdim=True)
        scale = 1e-5 + centred.square().mean(-1, keepdim=True).rsqrt()
        return (centred * scale * self.weight + self.bias).to(x.dtype)


class ChannelNorm(RMSNorm):
    """RMS norm over the channels of every position of (B, C, t, h, w)."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise."""
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class ChannelLayerNorm(LayerNorm):
    """Layer norm over the channels of every position of (B, C, t, h, w)."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise."""
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


NORMS: dict[str, type[nn.Module]] = {"rms": RMSNorm, "layer": LayerNorm, "study": StudyNorm}
"""Open for more: a norm is a module that is made from a width."""
