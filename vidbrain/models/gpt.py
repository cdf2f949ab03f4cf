"""The GPT: predicts every code of a clip from the codes before it, in the order time, row, column.

Shapes: B clips; t h w the latent grid; S = t·h·w tokens; C channels. Position i holds the code before it (a learned
vector at i = 0), so its output predicts code i and has seen codes 0 … i-1.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 -- as torch's own documents name it

from vidbrain.config import did_you_mean
from vidbrain.errors import ConfigError, ModelError
from vidbrain.models.attention import Cache, CausalSelfAttention, RMSNorm, head_width

Triple = tuple[int, int, int]


MOST_HIDDEN, MOST_LAYERS = 16_384, 1_024
"""Far beyond what one GPU trains: a file that asks for more is damaged, and would fill the memory before it failed."""


@dataclass(frozen=True, kw_only=True)
class GPTConfig:
    """Shape of the GPT. The study's baseline: 576 hidden, 8 layers, 4 heads.

    What the codes decide (their number and grid) is not a setting: see `GPT`.
    """

    hidden: int = 576
    """Channels of the residual stream."""
    n_layers: int = 8
    """Blocks."""
    n_heads: int = 4
    """Attention heads; must divide `hidden`."""
    dropout: float = 0.0
    """Of attention weights and of what blocks add, in training."""

    def __post_init__(self) -> None:
        if self.hidden < 1 or self.n_layers < 1:
            raise ConfigError(f"a GPT needs positive hidden and n_layers, not {self.hidden} and {self.n_layers}")
        if self.hidden > MOST_HIDDEN or self.n_layers > MOST_LAYERS:
            raise ConfigError(
                f"{self.n_layers} layers of {self.hidden} are beyond {MOST_LAYERS} layers of {MOST_HIDDEN}",
                where="model",
                likely="a damaged config.json",
            )
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout is a share below 1, not {self.dropout}", where="dropout")
        head_width(self.hidden, self.n_heads)


class GPT(nn.Module):
    """Decoder-only transformer over codes: RMS norm, QK-norm, ReLU², zero-initialised projections, untied head.

    Codes are embedded by a table that is learned (VideoGPT embeds codebook vectors): the GPT then stands alone, and
    a narrow one is not held to the geometry of the codebook. Positions add a learned vector for each of time, row and
    column, so any width works (VideoGPT concatenates thirds).

    Parameters
    ----------
    config
        Its shape.
    n_codes
        Size of the codebook that it predicts.
    grid
        (t, h, w) of a clip's codes.
    """

    def __init__(self, config: GPTConfig, *, n_codes: int, grid: Triple) -> None:
        super().__init__()
        self.config, self.n_codes, self.grid = config, n_codes, grid
        width = config.hidden
        self.embedding = nn.Embedding(n_codes, width)
        self.start = nn.Parameter(torch.empty(width))
        self.positions = nn.ParameterList(torch.empty(n, width) for n in grid)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.norm = RMSNorm(width)
        self.head = nn.Linear(width, n_codes, bias=False)
        for weight in (self.embedding.weight, self.start, *self.positions):
            nn.init.normal_(weight, std=0.02)
        nn.init.zeros_(self.head.weight)

    @property
    def n_tokens(self) -> int:
        """Tokens of a clip."""
        return math.prod(self.grid)

    @property
    def layers(self) -> list[str]:
        """Names that `hidden_states` knows, shallowest first."""
        return [f"gpt.block_{k}{part}" for k in range(self.config.n_layers) for part in (".mlp", "")]

    def forward(self, codes: Tensor) -> Tensor:
        """Training loss: mean cross-entropy in nats per token of codes (B, t, h, w)."""
        return F.cross_entropy(self.logits(codes).flatten(0, -2), codes.flatten().long())

    def logits(self, codes: Tensor) -> Tensor:
        """Scores of every code at every position, from the codes before it: (B, t, h, w) -> float32 (B, t, h, w, K)."""
        x = self._inputs(codes)
        for block in self.blocks:
            x, _, _ = block(x)
        return self.head(self.norm(x)).float().unflatten(1, self.grid)

    def hidden_states(self, codes: Tensor, layers: Iterable[str]) -> dict[str, Tensor]:
        """Activations of named layers, computed no deeper than needed.

        Parameters
        ----------
        codes : (B, t, h, w) integers
        layers
            ``"gpt.block_3"``: the residual stream after block 3, counted from 0. ``"gpt.block_3.mlp"``: what its MLP
            adds, after dropout (the study's hook is block 4's).

        Returns
        -------
        dict
            Of (B, t, h, w, C), in the order asked.

        Raises
        ------
        ModelError
            For an unknown layer.
        """
        wanted = list(layers)
        for name in wanted:
            if name not in self.layers:
                raise ModelError(f"there is no layer {name!r}{did_you_mean(name, self.layers)}", where="layers")
        deepest = max((int(re.findall(r"\d+", name)[0]) for name in wanted), default=-1)
        x, found = self._inputs(codes), {}
        for k, block in enumerate(self.blocks[: deepest + 1]):
            x, mlp, _ = block(x)
            found[f"gpt.block_{k}.mlp"], found[f"gpt.block_{k}"] = mlp, x
            found = {name: value for name, value in found.items() if name in wanted}
        return {name: found[name].unflatten(1, self.grid) for name in wanted}

    @torch.no_grad()
    def sample(
        self,
        prompt: Tensor,
        *,
        generator: torch.Generator | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
    ) -> Tensor:
        """Continue clips from their first codes, token by token, keeping keys and values.

        Parameters
        ----------
        prompt : (B, t0, h, w) integers, 0 <= t0 <= t
            The first time slices.
        generator
            Source of chance, on the device of the prompt.
        temperature
            Below 1 prefers likely codes.
        top_k
            Draw only from this many most likely codes.

        Returns
        -------
        Tensor
            Codes (B, t, h, w) int64 that begin with the prompt.
        """
        batch, given = len(prompt), prompt[0].numel()
        tokens = torch.zeros(batch, self.n_tokens, dtype=torch.int64, device=prompt.device)
        tokens[:, :given] = prompt.flatten(1)
        position = self._position()
        caches: list[Cache | None] = [None] * len(self.blocks)
        x = self._embed(tokens)[:, : given + 1] + position[: given + 1]
        for i in range(given, self.n_tokens):
            for k, block in enumerate(self.blocks):
                x, _, caches[k] = block(x, caches[k])
            scores = self.head(self.norm(x[:, -1])).float() / temperature
            if top_k is not None:
                least = scores.topk(min(top_k, self.n_codes)).values[:, -1:]
                scores = scores.masked_fill(scores < least, -math.inf)
            tokens[:, i] = torch.multinomial(scores.softmax(-1), 1, generator=generator)[:, 0]
            if i + 1 < self.n_tokens:
                x = (self.embedding(tokens[:, i]) + position[i + 1])[:, None]
        return tokens.unflatten(1, self.grid)

    def _inputs(self, codes: Tensor) -> Tensor:
        if codes.ndim != 4 or tuple(codes.shape[1:]) != self.grid:
            raise ModelError(
                f"the GPT reads clips of {self.grid} codes, not {tuple(codes.shape[1:])}",
                likely="the codes were made from other clips than those it was trained on",
            )
        return self._embed(codes.flatten(1).long()) + self._position()

    def _embed(self, tokens: Tensor) -> Tensor:
        start = self.start.expand(len(tokens), 1, -1)
        return torch.cat([start, self.embedding(tokens[:, :-1])], dim=1)

    def _position(self) -> Tensor:
        t, h, w = self.positions
        return (t[:, None, None] + h[:, None] + w).flatten(0, 2)


class Block(nn.Module):
    """Pre-norm attention, then pre-norm MLP of four times the width with ReLU²."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        width = config.hidden
        self.attention_norm, self.mlp_norm = RMSNorm(width), RMSNorm(width)
        self.attention = CausalSelfAttention(width, config.n_heads, config.dropout)
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(4 * width, width, bias=False)
        self.dropout = nn.Dropout(config.dropout)
        nn.init.zeros_(self.down.weight)

    def forward(self, x: Tensor, past: Cache | None = None) -> tuple[Tensor, Tensor, Cache]:
        """Return the residual stream (B, S, C), what the MLP added, and keys and values."""
        y, cache = self.attention(self.attention_norm(x), past)
        x = x + self.dropout(y)
        mlp = self.dropout(self.down(F.relu(self.up(self.mlp_norm(x))).square()))
        return x + mlp, mlp, cache
