"""Where a token stands in the grid (t, h, w): learned tables of each axis, or rotations of queries and keys."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from vidbrain.errors import ConfigError

Triple = tuple[int, int, int]

ROTARY_BASE = 100.0
"""Pairs turn by 1 down to about 1/100 of a radian a step: slow enough for grids of a few dozen tokens an axis."""


def summed(tables: Iterable[Tensor]) -> Tensor:
    """Add a vector of each axis: three tables (n, C) -> (S, C), in the order t, h, w."""
    t, h, w = tables
    return (t[:, None, None] + h[:, None] + w).flatten(0, 2)


def thirds(tables: Iterable[Tensor]) -> Tensor:
    """Set vectors of the axes side by side, as VideoGPT does: three tables (n, C/3) -> (S, C)."""
    t, h, w = tables
    grid = (len(t), len(h), len(w), -1)
    parts = [t[:, None, None].expand(grid), h[:, None].expand(grid), w.expand(grid)]
    return torch.cat(parts, dim=-1).flatten(0, 2)


class Rotary(nn.Module):
    """Turns pairs of channels of queries and keys by angles that grow with t, h and w (RoPE, arXiv 2104.09864).

    A third of the pairs belongs to each axis; scores then depend on the distance of two tokens along each axis, not
    on where they stand. Channels that are left over keep no position.

    Parameters
    ----------
    head_dim
        Channels of a head; at least 6, a pair for each axis.
    grid
        (t, h, w).

    Raises
    ------
    ConfigError
        For narrower heads.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, head_dim: int, grid: Triple) -> None:
        super().__init__()
        if head_dim < 6:
            raise ConfigError(
                f"rotary positions need heads of at least 6 channels, not {head_dim}",
                where="positions",
                hint="use fewer heads, or --model.positions axial",
            )
        pairs = head_dim // 6
        speeds = ROTARY_BASE ** (-torch.arange(pairs) / pairs)
        places = torch.cartesian_prod(*(torch.arange(n) for n in grid)).float().reshape(math.prod(grid), 3)
        angles = (places[:, :, None] * speeds).flatten(1)  # (S, 3 * pairs)
        # Functions of the shape alone: not saved with the weights.
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, x: Tensor, at: int | None = None) -> Tensor:
        """Turn (B, heads, S, d) of a whole clip, or (B, heads, 1, d) of the token `at`."""
        rows = slice(None) if at is None else slice(at, at + 1)
        cos, sin = self.cos[rows].to(x.dtype), self.sin[rows].to(x.dtype)
        n = cos.shape[-1]
        a, b, rest = x[..., :n], x[..., n : 2 * n], x[..., 2 * n :]
        return torch.cat([a * cos - b * sin, a * sin + b * cos, rest], dim=-1)
