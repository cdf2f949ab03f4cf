"""Finite scalar quantization: a few channels, each rounded to a few steps; the codes are all combinations.

Source: Mentzer et al. 2023 (arXiv 2309.15505), section 3 and appendix A. The interface is that of
`vidbrain.models.codebook.Codebook`; there is nothing to learn but the maps into those channels and back.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from vidbrain.models.codebook import Quantized
from vidbrain.models.norms import full_precision
from vidbrain.models.processes import reduce_in_place


class FSQ(nn.Module):
    """Quantizer of (…, D) to math.prod(levels) codes.

    Parameters
    ----------
    levels
        Steps of each channel.
    code_dim
        D.
    """

    steps: Tensor
    basis: Tensor
    usage: Tensor

    def __init__(self, levels: tuple[int, ...], code_dim: int) -> None:
        super().__init__()
        self.n_codes, self.code_dim = math.prod(levels), code_dim
        self.project_in, self.project_out = nn.Linear(code_dim, len(levels)), nn.Linear(len(levels), code_dim)
        self.register_buffer("steps", torch.tensor(levels, dtype=torch.float32), persistent=False)
        basis = [math.prod(levels[:k]) for k in range(len(levels))]
        self.register_buffer("basis", torch.tensor(basis), persistent=False)
        self.register_buffer("usage", torch.zeros(self.n_codes, dtype=torch.int64))

    def forward(self, z: Tensor) -> Quantized:
        """Quantize (..., D)."""
        # As for the codebook, never under autocast: in 16 bits neighbours at the edge of a step change places.
        with full_precision(z):
            places = self._round(self._bound(self.project_in(z.float())))
            vectors = self.project_out(places)
            codes = self._number(places.detach())
            if self.training:
                self._count(codes)
            return Quantized(vectors, codes, z.new_zeros((), dtype=torch.float32))

    def lookup(self, codes: Tensor) -> Tensor:
        """Code vectors (..., D) of codes (...)."""
        halves = self.steps.long() // 2
        digits = codes[..., None] // self.basis % self.steps.long()
        return self.project_out((digits - halves) / halves)

    def vectors(self) -> Tensor:
        """All code vectors (K, D)."""
        with torch.no_grad():
            return self.lookup(torch.arange(self.n_codes, device=self.usage.device))

    def take_usage(self) -> tuple[Tensor, int]:
        """Return use of each code (K,) in training since the last call, and 0 restarts; count anew."""
        usage = self.usage.cpu().clone()
        self.usage.zero_()
        return usage, 0

    def _bound(self, z: Tensor) -> Tensor:
        # Squashed to an interval that rounds to exactly `steps` integers; an even number of them lies off centre.
        half = (self.steps - 1) * (1 + 1e-3) / 2
        offset = torch.where(self.steps % 2 == 0, 0.5, 0.0)
        return torch.tanh(z + torch.atanh(offset / half)) * half - offset

    def _round(self, z: Tensor) -> Tensor:
        rounded = z + (z.round() - z).detach()
        return rounded / (self.steps // 2)

    def _number(self, places: Tensor) -> Tensor:
        halves = self.steps // 2
        digits = (places * halves + halves).round().long()
        return (digits * self.basis).sum(-1)

    @torch.no_grad()
    def _count(self, codes: Tensor) -> None:
        counts = torch.bincount(codes.flatten(), minlength=self.n_codes)
        reduce_in_place(counts)
        self.usage += counts
