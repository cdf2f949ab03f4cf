"""Attention over a grid of tokens: one axis at a time for the tokenizer, causal over all tokens for the GPT.

Shapes: B batch, t h w the latent grid, S = t·h·w tokens, C channels, heads × d = C.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 -- as torch's own documents name it

from vidbrain.errors import ModelError

Cache = tuple[Tensor, Tensor]
"""Keys and values of the tokens seen so far, each (B, heads, S, d)."""


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


class RMSNorm(nn.Module):
    """RMS norm over the last axis, computed in float32 and returned in the type of its input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (..., width)."""
        return F.rms_norm(x.float(), self.weight.shape, self.weight, 1e-6).to(x.dtype)


class AxialAttention(nn.Module):
    """Self-attention along w, along h and along t, summed: (B, t, h, w, C) -> (B, t, h, w, C).

    The other axes are folded into the batch, so the cost is S·(t+h+w) instead of S².
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


class CausalSelfAttention(nn.Module):
    """Causal attention over S tokens, with the query and key normalised (QK-norm): (B, S, C) -> (B, S, C)."""

    def __init__(self, channels: int, n_heads: int, dropout: float) -> None:
        super().__init__()
        self.n_heads, self.d_head, self.dropout = n_heads, head_width(channels, n_heads), dropout
        self.qkv = nn.Linear(channels, 3 * channels, bias=False)
        self.q_norm = RMSNorm(self.d_head)
        self.k_norm = RMSNorm(self.d_head)
        self.out = nn.Linear(channels, channels, bias=False)
        nn.init.zeros_(self.out.weight)

    def forward(self, x: Tensor, past: Cache | None = None) -> tuple[Tensor, Cache]:
        """Attend; with `past`, `x` holds only the tokens that follow it.

        Returns
        -------
        tuple
            The result (B, S, C), and keys and values of past and new tokens for the next call.
        """
        q, k, v = (p.unflatten(-1, (self.n_heads, self.d_head)).transpose(1, 2) for p in self.qkv(x).chunk(3, dim=-1))
        q, k = self.q_norm(q), self.k_norm(k)
        if past is not None:
            if x.shape[1] != 1:
                raise ValueError("with a past, tokens come one at a time")
            k, v = torch.cat([past[0], k], dim=2), torch.cat([past[1], v], dim=2)
        dropout = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, is_causal=past is None, dropout_p=dropout)
        return self.out(y.transpose(1, 2).flatten(2)), (k, v)
