"""Operations and memory of a clip: analytic from the shape, and counted by torch on tensors without data.

A multiplication with its addition counts 2. Norms, activations and softmax are left out, as in torch's counter. The
rule of six operations a parameter and token is nowhere used: at 6 hidden channels it is wrong by a factor of six.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from vidbrain.models.blocks import Block
from vidbrain.models.causal import Reach
from vidbrain.models.codec import VQVAEConfig, halvings
from vidbrain.models.gpt import GPT, Condition, GPTConfig
from vidbrain.models.positions import Triple
from vidbrain.models.readers import context_grid, frames_flops
from vidbrain.models.vqvae import VQVAE

Model = TypeVar("Model", GPT, VQVAE)


@dataclass(frozen=True)
class Flops:
    """Operations of a forward pass on one clip.

    Attributes
    ----------
    dense
        With all scores of attention: what kernels compute that do not skip what a mask hides.
    causal
        With the scores that the causal mask leaves; equal to `dense` for a VQ-VAE.
    """

    dense: int
    causal: int


def gpt_flops(model: GPT) -> Flops:
    """Operations of a GPT's forward pass on the codes of one clip."""
    config, n, width = model.config, model.n_tokens, model.config.hidden
    inner = config.n_heads * config.d_head
    rest = config.n_layers * n * 2 * width * (4 * inner + 8 * width) + 2 * n * width * model.n_codes
    if config.embedding == "codebook":
        rest += 2 * (n - 1) * (model.code_dim or 0) * width
    if config.condition == "previous":
        e = config.condition_width
        channels = e if model.code_dim is None else model.code_dim
        rest += 2 * n * e * (27 * channels + 27 * e + channels)
        rest += _cross(config, n, n)
    if config.condition == "frames" and model.frames is not None:
        read = math.prod(context_grid(model.frames))
        rest += 2 * frames_flops(config.condition_width, model.frames) + _cross(config, n, read)
    if config.condition == "actions":
        rest += 2 * model.grid[0] * len(model.actions) * width
    reaches = [block.attention.reach for block in model.blocks if isinstance(block, Block)]
    dense = sum(_scores(reach) for reach in reaches)
    causal = sum(_seen(reach, n) for reach in reaches)
    return Flops(rest + 4 * inner * dense, rest + 4 * inner * causal)


def _cross(config: GPTConfig, n: int, n_read: int) -> int:
    """Cross-attention of n tokens to `n_read` positions, in every block."""
    width, inner, e = config.hidden, config.n_heads * config.d_head, config.condition_width
    each = n * (width * inner + e * width) + n_read * (e * inner + e * e) + n * n_read * (inner + e)
    return config.n_layers * 2 * each


def _seen(reach: Reach, n: int) -> int:
    return sum(len(range(n)[reach.visible(i)]) for i in range(n))


def _scores(reach: Reach) -> int:
    """Pairs of tokens that meet before any mask."""
    t, h, w = reach.grid
    if reach.kind == "axial":
        return t * h * w * reach.grid[reach.axis]
    if reach.kind == "window":
        return t * h * w * min(reach.window + 1, t) * h * w
    return (t * h * w) ** 2


def vqvae_flops(config: VQVAEConfig, clip: Triple) -> Flops:
    """Operations of a VQ-VAE's forward pass, pixels to codes to pixels, on one clip of (T, H, W)."""
    study, width, strides = config.network == "study", config.n_hidden, halvings(config.downsample, config.patch)
    grid = config.latent_grid(*clip)
    n, pixels, folded = math.prod(grid), math.prod(clip), 3 * math.prod(config.patch)
    coarse = pixels // math.prod(config.patch)
    half = max(width // 2, 1)
    block = n * (28 * width * half + 12 * width * width + 2 * width * sum(grid))
    total = 2 * config.n_res_layers * block  # encoder and decoder
    total += n * width * config.code_dim * (2 if study else 28)  # to code vectors and back
    total += n * width * width * 27 if study else 2 * coarse * folded * width * (1 if folded > 3 else 27)
    positions = coarse
    for k, stride in enumerate(strides):
        positions //= math.prod(stride)
        kernel = 64 if study else math.prod(4 if s == 2 else 3 for s in stride)
        # Down to `positions`, and up from as many: the decoder undoes the strides of the encoder.
        total += positions * kernel * width * (3 if study and k == 0 else width)
        if not study:
            total += positions * kernel * width * width
    if study:
        total += _study_up(config, n)
    if config.linear_start:
        total += 2 * n * 3 * math.prod(config.downsample) * config.code_dim
    searched = config.n_codes if config.quantizer == "ema" else 2 * len(config.fsq_levels)
    total += n * searched * config.code_dim
    return Flops(2 * total, 2 * total)


def _study_up(config: VQVAEConfig, n: int) -> int:
    strides, total = halvings(config.downsample, config.patch), 0
    for k, stride in enumerate(strides):
        total += n * 64 * config.n_hidden * (3 if k == len(strides) - 1 else config.n_hidden)
        n *= math.prod(stride)
    return total


@dataclass(frozen=True)
class Counted:
    """What one clip costs in training, counted.

    Attributes
    ----------
    forward, train
        Operations of the forward pass, and of forward and backward pass, by torch's counter.
    saved_bytes
        What the forward pass keeps for the backward pass, in float32.
    """

    forward: int
    train: int
    saved_bytes: int


def count_gpt(model: GPT) -> Counted:
    """Count a GPT's training on the codes of one clip."""
    codes = torch.zeros(1, *model.grid, dtype=torch.int32, device="meta")
    condition = None
    if model.config.condition == "previous":
        condition = Condition(previous=codes)
    if model.config.condition == "actions":
        condition = Condition(actions=torch.zeros(1, model.grid[0], len(model.actions), device="meta"))
    if model.frames is not None:
        condition = Condition(frames=torch.zeros(1, *model.frames, 3, dtype=torch.uint8, device="meta"))
    bare = _without_data(model)
    return _count(bare, lambda: bare(codes, condition))


def count_vqvae(model: VQVAE, clip: Triple) -> Counted:
    """Count a VQ-VAE's training on one clip of (T, H, W)."""
    video = torch.zeros(1, *clip, 3, dtype=torch.uint8, device="meta")
    bare = _without_data(model)
    return _count(bare, lambda: bare(video).loss)


def _without_data(model: Model) -> Model:
    # Not in training mode: running means and codebooks learn by looking at values, and there are none.
    return copy.deepcopy(model).to("meta").eval()


def _count(model: nn.Module, loss_of: Callable[[], Tensor]) -> Counted:
    kept: dict[int, int] = {}
    weights = {parameter.untyped_storage()._cdata for parameter in model.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage.nbytes()
        return tensor

    with FlopCounterMode(display=False) as forward, torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        loss = loss_of()
    with FlopCounterMode(display=False) as backward:
        loss.backward()
    done = forward.get_total_flops()
    return Counted(done, done + backward.get_total_flops(), sum(kept.values()))
