"""Attention over a grid of tokens, one axis at a time, for the tokenizer; the GPT's is in `models.causal`.

Shapes: B batch, t h w the latent grid, C channels, heads × d = C.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 -- as torch's own documents name it

from vidbrain.errors import ModelError


def head_width(channels: int, n_heads: int) -> int:
    """Return channels per head; refuse a width that heads would truncate (VideoGPT attends in 124 of 126 channels).

    Raises
    ------
    ModelError
        If `n_heads` does not divide `channels`.
    """
    if n_heads < 1 or channels % n_heads:
        fits = [n for n in range(1, channels + 1) if channels % n == 0 and n <= 16]
        raise ModelError(
            f"{n_heads} heads do not divide a width of {channels}",
            where="n_heads",
            hint=f"{channels} takes {', '.join(map(str, fits))} heads",
        )
    return channels // n_heads


class AxialAttention(nn.Module):
    """Self-attention along w, along h and along t, summed: (B, t, h, w, C) -> (B, t, h, w, C).

    The other axes are folded into the batch, so the cost of S tokens is S·(t+h+w) instead of S².
    """

    def __init__(self, channels: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads, self.d_head = n_heads, head_width(channels, n_heads)
        self.qkv = nn.ModuleList(nn.Linear(channels, 3 * channels, bias=False) for _ in range(3))
        self.out = nn.ModuleList(nn.Linear(channels, channels) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        """Attend along each axis of the grid and sum."""
        total = torch.zeros_like(x)
        for axis, (qkv, out) in enumerate(zip(self.qkv, self.out, strict=True), start=1):
            lines = x.movedim(axis, 3)
            shape = lines.shape
            q, k, v = (
                part.unflatten(-1, (self.n_heads, self.d_head)).transpose(-3, -2).flatten(0, 2)
                for part in qkv(lines).chunk(3, dim=-1)
            )
            y = F.scaled_dot_product_attention(q, k, v)
            y = y.transpose(-3, -2).reshape(shape)
            total = total + out(y).movedim(3, axis)
        return total
