"""The block of a GPT: attention, cross-attention to what it is told, and an MLP.

Shapes: B clips; S tokens; C channels; E channels of the condition.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 -- as torch's own documents name it

from vidbrain.models.causal import Cache, CausalSelfAttention, CrossAttention, Reach
from vidbrain.models.norms import NORMS
from vidbrain.models.options import GPTConfig
from vidbrain.models.positions import Triple

AXES = (2, 1, 0)
"""Lines of axial attention, block after block: along the columns of a row, along rows, along time."""


class Block(nn.Module):
    """Pre-norm attention, cross-attention where something is read beside the clip, and an MLP of four widths."""

    def __init__(self, config: GPTConfig, number: int, grid: Triple) -> None:
        super().__init__()
        width, study = config.hidden, config.block == "study"
        norm = NORMS[config.norm]
        self.attention_norm, self.mlp_norm = norm(width), norm(width)
        share = config.dropout if config.attention_dropout is None else config.attention_dropout
        self.attention = CausalSelfAttention(
            width,
            config.n_heads,
            config.d_head,
            reach=Reach(grid, config.attention, AXES[number % 3], config.window),
            dropout=share,
            scale=config.score_scale,
            qk_norm=not study,
            bias=study,
            rotary=config.positions == "rotary",
        )
        self.cross_norm: nn.Module | None = None
        self.cross: CrossAttention | None = None
        if config.reads:
            self.cross_norm = norm(width)
            self.cross = CrossAttention(
                width,
                config.n_heads,
                config.d_head,
                config.condition_width,
                value_dim=config.condition_width // config.n_heads,
            )
        self.up = nn.Linear(width, 4 * width, bias=study)
        self.down = nn.Linear(4 * width, width, bias=study)
        self.activation = gelu if study else relu2
        self.dropout = nn.Dropout(config.dropout)
        if study:
            self._start_as_the_study(config)
        else:
            nn.init.zeros_(self.attention.out.weight)
            nn.init.zeros_(self.down.weight)
            if self.cross is not None:
                nn.init.zeros_(self.cross.out.weight)
                nn.init.zeros_(self.cross.out.bias)

    def forward(
        self, x: Tensor, context: Tensor | None = None, cache: Cache | None = None, at: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the residual stream (B, S, C), and what the MLP added.

        Parameters
        ----------
        x
            Of a whole clip; or of its token `at`, (B, 1, C), with the cache of those before.
        context : (B, M, E)
            What cross-attention attends to.
        cache, at
            See `CausalSelfAttention`.
        """
        x = x + self.dropout(self.attention(self.attention_norm(x), cache, at))
        if self.cross is not None and self.cross_norm is not None:
            x = x + self.dropout(self.cross(self.cross_norm(x), context))
        mlp = self.dropout(self.down(self.activation(self.up(self.mlp_norm(x)))))
        return x + mlp, mlp

    def _start_as_the_study(self, config: GPTConfig) -> None:
        attention, cross = self.attention, self.cross
        reads = [attention.qkv.weight, *([] if cross is None else [cross.q.weight, cross.k.weight, cross.v.weight])]
        for weight in reads:
            nn.init.normal_(weight, std=weight.shape[1] ** -0.5)
        for out in [attention.out, *([] if cross is None else [cross.out])]:
            nn.init.normal_(out.weight, std=(config.hidden * config.n_layers) ** -0.5)


def relu2(x: Tensor) -> Tensor:
    """Squared ReLU (arXiv 2109.08668)."""
    return F.relu(x).square()


def gelu(x: Tensor) -> Tensor:
    """X · sigmoid(1.702 x), the approximation of GELU that VideoGPT uses."""
    return x * torch.sigmoid(1.702 * x)
