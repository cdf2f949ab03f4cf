"""Causal attention of the GPT over the codes of a clip: to all codes before, along one axis, or in a window of time.

Shapes: B clips; (t, h, w) the grid; S = t·h·w tokens in that order; C channels; d channels of a head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 -- as torch's own documents name it

from vidbrain.models.norms import RMSNorm
from vidbrain.models.positions import Rotary, Triple

AttentionName = Literal["full", "axial", "window"]


@dataclass(frozen=True)
class Reach:
    """Which tokens a token attends to; itself always, and never a later one.

    Attributes
    ----------
    grid
        (t, h, w).
    kind
        ``"full"``: all before it. ``"axial"``: those before it on one line of the grid. ``"window"``: those before it
        in its own time slice and in the `window` slices before.
    axis
        Of an axial line: 0 time, 1 row, 2 column.
    window
        Time slices.
    """

    grid: Triple
    kind: AttentionName = "full"
    axis: int = 0
    window: int = 1

    def visible(self, at: int) -> slice:
        """Tokens that token `at` attends to."""
        _, h, w = self.grid
        if self.kind == "window":
            return slice(max(0, at // (h * w) - self.window) * h * w, at + 1)
        if self.kind == "axial":
            step = (h * w, w, 1)[self.axis]
            place = at // step % self.grid[self.axis]
            return slice(at - place * step, at + 1, step)
        return slice(0, at + 1)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, *, dropout: float, scale: float | None) -> Tensor:
        """Attention of all tokens: (B, heads, S, d) -> (B, heads, S, d of v)."""
        if self.kind == "axial":
            q, k, v = self._lines(q), self._lines(k), self._lines(v)
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=dropout, scale=scale)
            return y.movedim(-2, 2 + self.axis).flatten(2, 4)
        if self.kind == "window" and self.window < self.grid[0] - 1:
            return self._in_window(q, k, v, dropout, scale)
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=dropout, scale=scale)

    def _lines(self, x: Tensor) -> Tensor:
        return x.unflatten(2, self.grid).movedim(2 + self.axis, -2)

    def _in_window(self, q: Tensor, k: Tensor, v: Tensor, dropout: float, scale: float | None) -> Tensor:
        # Each slice meets the keys of its window alone: S·(window + 1)·h·w scores instead of S².
        t, n = self.grid[0], self.grid[1] * self.grid[2]
        queries = q.unflatten(2, (t, n))
        keys, values = (self._windows(x.unflatten(2, (t, n))) for x in (k, v))
        own = torch.ones(n, n, dtype=torch.bool, device=q.device).tril()
        past = torch.ones(n, self.window * n, dtype=torch.bool, device=q.device)
        number = torch.arange(t, device=q.device)[:, None] - torch.arange(self.window, -1, -1, device=q.device)
        exists = (number >= 0).repeat_interleave(n, dim=1)[:, None]  # (t, 1, (window + 1) * n)
        mask = torch.cat([past, own], dim=1) & exists
        y = F.scaled_dot_product_attention(
            queries, keys.flatten(3, 4), values.flatten(3, 4), attn_mask=mask, dropout_p=dropout, scale=scale
        )
        return y.flatten(2, 3)

    def _windows(self, x: Tensor) -> Tensor:
        # (B, heads, t, n, d) -> (B, heads, t, window + 1, n, d), zeros before the first slice
        padded = F.pad(x, (0, 0, 0, 0, self.window, 0))
        return padded.unfold(2, self.window + 1, 1).movedim(-1, 3)


class Cache:
    """Keys and values of a clip in the making, (B, heads, S, d), written where tokens come."""

    def __init__(self, n_tokens: int) -> None:
        self._n_tokens = n_tokens
        self._kept: tuple[Tensor, Tensor] | None = None

    def write(self, k: Tensor, v: Tensor, at: int | None) -> tuple[Tensor, Tensor]:
        """Keep keys and values of the whole clip, or of token `at`; return all."""
        if at is None:
            self._kept = (k, v)
        else:
            if self._kept is None:
                self._kept = tuple(x.new_zeros(*x.shape[:2], self._n_tokens, x.shape[3]) for x in (k, v))  # type: ignore[assignment]  # two
            assert self._kept is not None
            self._kept[0][:, :, at], self._kept[1][:, :, at] = k[:, :, 0], v[:, :, 0]
        return self._kept


class CausalSelfAttention(nn.Module):
    """Multi-head attention of every token to those that its reach allows: (B, S, C) -> (B, S, C).

    Parameters
    ----------
    channels, n_heads, head_dim
        C, heads, d; heads·d need not be C.
    reach
        Which tokens are seen.
    dropout
        Of attention weights, in training.
    scale
        Of scores; None for 1 / sqrt(d).
    qk_norm
        Normalise queries and keys.
    bias
        Of the output projection.
    rotary
        Turn queries and keys by their places.
    """

    def __init__(
        self,
        channels: int,
        n_heads: int,
        head_dim: int,
        *,
        reach: Reach,
        dropout: float = 0.0,
        scale: float | None = None,
        qk_norm: bool = True,
        bias: bool = False,
        rotary: bool = False,
    ) -> None:
        super().__init__()
        self.n_heads, self.head_dim, self.reach, self.dropout, self.scale = n_heads, head_dim, reach, dropout, scale
        self.qkv = nn.Linear(channels, 3 * n_heads * head_dim, bias=False)
        self.q_norm = RMSNorm(head_dim) if qk_norm else None
        self.k_norm = RMSNorm(head_dim) if qk_norm else None
        self.out = nn.Linear(n_heads * head_dim, channels, bias=bias)
        self.rotary = Rotary(head_dim, reach.grid) if rotary else None

    def forward(self, x: Tensor, cache: Cache | None = None, at: int | None = None) -> Tensor:
        """Attend from a whole clip, or from its token `at` (x (B, 1, C)) to what the cache keeps."""
        q, k, v = (p.unflatten(-1, (self.n_heads, self.head_dim)).transpose(1, 2) for p in self.qkv(x).chunk(3, dim=-1))
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        if self.rotary is not None:
            q, k = self.rotary(q, at), self.rotary(k, at)
        if cache is not None:
            k, v = cache.write(k, v, at)
        if at is None:
            y = self.reach.attend(q, k, v, dropout=self.dropout if self.training else 0.0, scale=self.scale)
        else:
            seen = self.reach.visible(at)
            y = F.scaled_dot_product_attention(q, k[:, :, seen], v[:, :, seen], scale=self.scale)
        return self.out(y.transpose(1, 2).flatten(2))


class CrossAttention(nn.Module):
    """Multi-head attention of every token to a context (B, M, E): (B, S, C) -> (B, S, C). No dropout of weights.

    As in VideoGPT, keys are as wide as the queries and values share out the context's width.
    """

    def __init__(self, channels: int, n_heads: int, head_dim: int, context: int, *, value_dim: int) -> None:
        super().__init__()
        self.n_heads, self.head_dim, self.value_dim = n_heads, head_dim, value_dim
        self.q = nn.Linear(channels, n_heads * head_dim, bias=False)
        self.k = nn.Linear(context, n_heads * head_dim, bias=False)
        self.v = nn.Linear(context, n_heads * value_dim, bias=False)
        self.out = nn.Linear(n_heads * value_dim, channels)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """Attend to the context."""
        q = self.q(x).unflatten(-1, (self.n_heads, self.head_dim)).transpose(1, 2)
        k = self.k(context).unflatten(-1, (self.n_heads, self.head_dim)).transpose(1, 2)
        v = self.v(context).unflatten(-1, (self.n_heads, self.value_dim)).transpose(1, 2)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
