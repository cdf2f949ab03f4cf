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
from vidbrain.errors import ModelError
from vidbrain.models.blocks import Block
from vidbrain.models.causal import Cache
from vidbrain.models.norms import NORMS, widened
from vidbrain.models.options import MOST_HIDDEN, GPTConfig
from vidbrain.models.positions import Triple, summed, thirds
from vidbrain.models.readers import NORMS as READER_NORMS
from vidbrain.models.readers import FramesReader, PreviousClip, StudyPreviousClip
from vidbrain.models.vqvae import to_float

__all__ = ["GPT", "Condition", "GPTConfig"]


MOST_CODES, MOST_TOKENS = 65_536, 65_536
"""Codes are uint16; a clip of more tokens is far beyond what a GPT reads."""


@dataclass(frozen=True)
class Condition:
    """What a conditional GPT is told beside the codes of a clip.

    Attributes
    ----------
    previous : (B, t, h, w) integers
        Codes of the clip before.
    actions : (B, t, n_actions) float32
        Share of each time slice during which each button was held.
    frames : (B, n, H, W, 3) uint8
        The first frames of the clip.
    """

    previous: Tensor | None = None
    actions: Tensor | None = None
    frames: Tensor | None = None


class GPT(nn.Module):
    """Decoder-only transformer over codes, with an untied head that starts at zero.

    By default codes are embedded by a table that is learned (VideoGPT embeds codebook vectors): the GPT then stands
    alone, and a narrow one is not held to the geometry of the codebook; positions add a learned vector for each of
    time, row and column, so any width works (VideoGPT concatenates thirds).

    Parameters
    ----------
    config
        Its shape.
    n_codes
        Size of the codebook that it predicts.
    grid
        (t, h, w) of a clip's codes.
    code_dim
        Channels of a code vector, for ``embedding = "codebook"``; `set_codebook` gives the vectors.
    actions
        Names of the buttons, for ``condition = "actions"``.
    frames
        (n, H, W) of the frames that it is told, for ``condition = "frames"``.

    Raises
    ------
    ModelError
        If the configuration needs code vectors, actions or frames and none are given, or a number is out of range.
    """

    codebook: Tensor

    def __init__(
        self,
        config: GPTConfig,
        *,
        n_codes: int,
        grid: Triple,
        code_dim: int | None = None,
        actions: tuple[str, ...] = (),
        frames: Triple | None = None,
    ) -> None:
        super().__init__()
        _check_shape(n_codes, grid, code_dim, frames)
        self.config, self.n_codes, self.grid, self.code_dim = config, n_codes, grid, code_dim
        self.actions, self.frames = actions, frames
        width = config.hidden
        if config.embedding == "learned":
            self.embedding = nn.Embedding(n_codes, width)
        else:
            if code_dim is None:
                raise ModelError("a GPT that embeds code vectors needs their width", where="code_dim")
            self.register_buffer("codebook", torch.zeros(n_codes, code_dim))
            self.embed = nn.Linear(code_dim, width, bias=False)
        self.start = nn.Parameter(torch.empty(width))
        each = {"axial": width, "thirds": width // 3}.get(config.positions)
        self.positions = nn.ParameterList(torch.empty(n, each) for n in grid if each is not None)
        self.blocks = nn.ModuleList(Block(config, k, grid) for k in range(config.n_layers))
        self.norm = NORMS[config.norm](width)
        self.head = nn.Linear(width, n_codes, bias=False)
        embedding = self.embedding.weight if config.embedding == "learned" else self.embed.weight
        for weight in (embedding, self.start, *self.positions):
            nn.init.normal_(weight, std=0.01 if weight.ndim == 2 and config.positions == "thirds" else 0.02)
        if config.positions == "thirds":
            nn.init.normal_(embedding, std=0.02)
        nn.init.zeros_(self.head.weight)
        self._read_condition(config)

    def _read_condition(self, config: GPTConfig) -> None:
        width = config.hidden
        if config.condition == "previous":
            channels = config.condition_width if self.code_dim is None else self.code_dim
            self.previous: nn.Module = (
                PreviousClip(channels, config.condition_width, self.grid)
                if config.reader == "modern"
                else StudyPreviousClip(channels, config.condition_width, self.grid, READER_NORMS[config.reader])
            )
            if config.embedding == "learned":
                self.previous_embedding = nn.Embedding(self.n_codes, channels)
        if config.condition == "frames":
            if self.frames is None:
                raise ModelError(
                    "a GPT that is told frames needs their number and size",
                    where="frames",
                    hint="convert one of VideoGPT's: training starts from codes, which hold no pixels",
                )
            self.read_frames = FramesReader(config.condition_width, self.frames, READER_NORMS[config.reader])
        if config.condition == "actions":
            if not self.actions:
                raise ModelError("a GPT that is told actions needs their names", where="actions")
            self.press = nn.Linear(len(self.actions), width, bias=False)
            nn.init.normal_(self.press.weight, std=0.02)

    @property
    def n_tokens(self) -> int:
        """Tokens of a clip."""
        return math.prod(self.grid)

    @property
    def layers(self) -> list[str]:
        """Names that `hidden_states` knows, shallowest first."""
        return [f"gpt.block_{k}{part}" for k in range(self.config.n_layers) for part in (".mlp", "")]

    def set_codebook(self, vectors: Tensor) -> None:
        """Give the code vectors (n_codes, code_dim) that ``embedding = "codebook"`` reads."""
        if self.config.embedding != "codebook" or vectors.shape != self.codebook.shape:
            raise ModelError(
                f"the GPT takes no codebook of {tuple(vectors.shape)}",
                likely="the codes are those of another tokenizer",
            )
        self.codebook.copy_(vectors)

    def lr_scales(self) -> dict[str, float]:
        """Factor of the learning rate for the parameters whose inputs grow with the width; 1 for those not named."""
        factor = self.config.width_factor
        inside = ("attention.qkv", "attention.out", "up", "down", "cross.q")
        names = [name for name, p in self.named_parameters() if p.ndim == 2 and name.startswith("blocks.")]
        return {n: factor for n in names if factor != 1 and n.split(".", 2)[2].removesuffix(".weight") in inside}

    def forward(self, codes: Tensor, condition: Condition | None = None) -> Tensor:
        """Training loss: mean cross-entropy in nats per token of codes (B, t, h, w)."""
        return F.cross_entropy(self.logits(codes, condition).flatten(0, -2), codes.flatten().long())

    def logits(self, codes: Tensor, condition: Condition | None = None) -> Tensor:
        """Scores of every code at every position, from the codes before it.

        Parameters
        ----------
        codes : (B, t, h, w) integers
        condition
            What a conditional GPT is told.

        Returns
        -------
        Tensor
            (B, t, h, w, K), float32 or wider.
        """
        told = self._told(condition)
        x = self._inputs(codes, told)
        context = self._context(told)
        for block in self.blocks:
            x, _ = block(x, context)
        return self._scores(x).unflatten(1, self.grid)

    def hidden_states(
        self, codes: Tensor, layers: Iterable[str], condition: Condition | None = None
    ) -> dict[str, Tensor]:
        """Activations of named layers, computed no deeper than needed.

        Parameters
        ----------
        codes : (B, t, h, w) integers
        layers
            ``"gpt.block_3"``: the residual stream after block 3, counted from 0. ``"gpt.block_3.mlp"``: what its MLP
            adds, after dropout (the study's hook is block 4's).
        condition
            What a conditional GPT is told.

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
        told = self._told(condition)
        x, context, found = self._inputs(codes, told), self._context(told), {}
        for k, block in enumerate(self.blocks[: deepest + 1]):
            x, mlp = block(x, context)
            found[f"gpt.block_{k}.mlp"], found[f"gpt.block_{k}"] = mlp, x
            found = {name: value for name, value in found.items() if name in wanted}
        return {name: found[name].unflatten(1, self.grid) for name in wanted}

    @torch.no_grad()
    def sample(
        self,
        prompt: Tensor,
        *,
        condition: Condition | None = None,
        generator: torch.Generator | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
    ) -> Tensor:
        """Continue clips from their first codes, token by token, keeping keys and values.

        Parameters
        ----------
        prompt : (B, t0, h, w) integers, 0 <= t0 <= t
            The first time slices.
        condition
            What a conditional GPT is told.
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
        told = self._told(condition)
        context, offsets = self._context(told), self._offsets(told).expand(batch, -1, -1)
        caches = [Cache(self.n_tokens) for _ in self.blocks]
        if given:
            # Keys of tokens that are still to come are written again when they have come.
            x = self._embed(tokens) + offsets
            for block, cache in zip(self.blocks, caches, strict=True):
                x, _ = block(x, context, cache)
        for i in range(given, self.n_tokens):
            x = (self.start.expand(batch, -1) if i == 0 else self._vectors(tokens[:, i - 1]))[:, None]
            x = x + offsets[:, i : i + 1]
            for block, cache in zip(self.blocks, caches, strict=True):
                x, _ = block(x, context, cache, i)
            scores = self._scores(x)[:, 0] / temperature
            if top_k is not None:
                least = scores.topk(min(top_k, self.n_codes)).values[:, -1:]
                scores = scores.masked_fill(scores < least, -math.inf)
            tokens[:, i] = torch.multinomial(scores.softmax(-1), 1, generator=generator)[:, 0]
        return tokens.unflatten(1, self.grid)

    def _scores(self, x: Tensor) -> Tensor:
        return widened(self.head(self.norm(x))) * self.config.width_factor

    def _told(self, condition: Condition | None) -> Condition:
        """Refuse a condition that is not the one of the configuration."""
        told, kind = condition or Condition(), self.config.condition
        for name, value in (("previous", told.previous), ("actions", told.actions), ("frames", told.frames)):
            if (value is not None) != (kind == name):
                raise ModelError(
                    f"the GPT's condition is {kind}, and {name} is {'absent' if value is None else 'given'}",
                    where="condition",
                )
        if told.actions is not None and tuple(told.actions.shape[1:]) != (self.grid[0], len(self.actions)):
            raise ModelError(
                f"actions must be (B, {self.grid[0]}, {len(self.actions)}), not {tuple(told.actions.shape)}",
                where="condition",
            )
        if told.frames is not None and tuple(told.frames.shape[1:4]) != self.frames:
            raise ModelError(f"frames must be {self.frames}, not {tuple(told.frames.shape[1:4])}", where="condition")
        return told

    def _context(self, told: Condition) -> Tensor | None:
        if told.frames is not None:
            return self.read_frames(to_float(told.frames).to(self.start.dtype))
        if told.previous is None:
            return None
        codes = self._checked(told.previous).long()
        vectors = self.previous_embedding(codes) if self.config.embedding == "learned" else self.codebook[codes]
        return self.previous(vectors)

    def _inputs(self, codes: Tensor, told: Condition) -> Tensor:
        return self._embed(self._checked(codes).flatten(1).long()) + self._offsets(told)

    def _checked(self, codes: Tensor) -> Tensor:
        if codes.ndim != 4 or tuple(codes.shape[1:]) != self.grid:
            raise ModelError(
                f"the GPT reads clips of {self.grid} codes, not {tuple(codes.shape[1:])}",
                likely="the codes were made from other clips than those it was trained on",
            )
        return codes

    def _embed(self, tokens: Tensor) -> Tensor:
        start = self.start.expand(len(tokens), 1, -1)
        return torch.cat([start, self._vectors(tokens[:, :-1])], dim=1)

    def _vectors(self, tokens: Tensor) -> Tensor:
        return self.embedding(tokens) if self.config.embedding == "learned" else self.embed(self.codebook[tokens])

    def _offsets(self, told: Condition) -> Tensor:
        """What places and buttons add to the tokens: (1 or B, S, C)."""
        if self.config.positions == "rotary":
            places = torch.zeros(1, self.n_tokens, self.config.hidden, dtype=self.start.dtype, device=self.start.device)
        else:
            places = (thirds if self.config.positions == "thirds" else summed)(self.positions)[None]
        if told.actions is None:
            return places
        # The code at position i is predicted in its own slice, with the buttons held then.
        pressed = self.press(told.actions.to(self.start.dtype))
        return places + pressed.repeat_interleave(self.grid[1] * self.grid[2], dim=1)


def _check_shape(n_codes: int, grid: Triple, code_dim: int | None, frames: Triple | None) -> None:
    """Refuse numbers that no codes have, before memory is taken."""
    if not 1 <= n_codes <= MOST_CODES:
        raise ModelError(f"a GPT predicts 1 to {MOST_CODES} codes, not {n_codes}", where="n_codes")
    if min(grid) < 1 or math.prod(grid) > MOST_TOKENS:
        raise ModelError(f"a grid of {grid} is not one of 1 to {MOST_TOKENS} codes", where="grid")
    if code_dim is not None and not 1 <= code_dim <= MOST_HIDDEN:
        raise ModelError(f"code vectors have 1 to {MOST_HIDDEN} channels, not {code_dim}", where="code_dim")
    if frames is not None and (min(frames) < 1 or max(frames) > MOST_TOKENS):
        raise ModelError(f"frames of {frames} are out of range", where="frames")
