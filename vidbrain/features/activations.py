"""Activations of the VQ-VAE and of the GPT over its codes, trained or with fresh weights.

Layers: ``vqvae.encoder`` (the encoder before quantisation) and ``gpt.block_1`` ... (the residual stream after each
block). A clip gives t token slices; slice j stands for its t-th part of the clip's frames. The encoder attends over the
whole clip, so its rows see up to a clip before and after themselves; the GPT is causal over codes, but its codes come
from that encoder: the receptive field of every layer is the clip.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vidbrain.errors import ModelError
from vidbrain.features.pooling import Pooling, pool
from vidbrain.features.sources import Layer, choose_layers
from vidbrain.features.windows import Window

ENCODER_LAYER = "vqvae.encoder"

MAX_FEATURES = 512
"""Unless a grid is asked for, the finest one up to 4x4 is taken that gives at most this many features a layer: sets of
equal size can be compared, larger ones would fit more by their size alone."""

CLIPS_AT_ONCE = 16
"""Clips in one pass: bounds the memory of activations."""


class ModelSource:
    """A VQ-VAE, and a GPT where there is one, as a source of features.

    Parameters
    ----------
    name
        ``"model"`` or ``"untrained"``.
    vqvae, gpt
        The networks; without a GPT there are no ``gpt`` layers.
    clip_frames, clip_step
        Frames of the clips that the networks were trained on, and the distance between them in source frames.
    frame_size
        Height and width of the shards' frames.
    layer_names
        Layers that are wanted; none for all.
    pooling
        None for the finest grid up to 4x4 with at most `MAX_FEATURES` features.
    made_from
        Fingerprints of the weights.
    settings
        What else decides the values, such as the seed of fresh weights.
    stride
        Source frames between clips; None for clips that do not overlap.

    Raises
    ------
    ModelError
        For an unknown layer, frames that do not fit the network, or a grid finer than a layer's tokens.
    """

    in_process = True

    def __init__(
        self,
        name: str,
        *,
        vqvae: VQVAE,
        gpt: GPT | None,
        clip_frames: int,
        clip_step: int,
        frame_size: tuple[int, int],
        layer_names: Sequence[str] = (),
        pooling: Pooling | None = None,
        made_from: dict[str, str],
        settings: dict[str, Any] | None = None,
        stride: int | None = None,
    ):
        n_slices, height, width = vqvae.config.latent_grid(clip_frames, *frame_size)
        channels = {ENCODER_LAYER: vqvae.config.code_dim}
        if gpt is not None:
            channels |= {block: gpt.config.n_hidden for block in gpt.layer_names}
        chosen = choose_layers(layer_names, list(channels), name)
        self.name = name
        self.made_from = made_from
        self.window = Window(n_frames=clip_frames, step=clip_step, n_slices=n_slices, stride=stride)
        self._poolings = {layer: pooling or finest_grid(channels[layer], height, width) for layer in chosen}
        for layer, pooled in self._poolings.items():
            pooled.check(layer, height, width)
        beyond = self.window.covered - self.window.slice_frames
        self.layers = tuple(
            Layer(name=layer, grid=(height, width), n_channels=channels[layer],
                  n_features=pooled.n_features(channels[layer]), sees_before=beyond, sees_after=beyond)
            for layer, pooled in self._poolings.items()
        )  # fmt: skip
        self.settings = {"pooling": {k: to_mapping(v) for k, v in self._poolings.items()}, **(settings or {})}
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._vqvae = vqvae.eval().to(self._device)
        self._gpt = None if gpt is None else gpt.eval().to(self._device)

    def tokens(self, video: torch.Tensor) -> dict[str, torch.Tensor]:
        """Activations of the layers: uint8 (B, T, H, W, 3) -> float (B, t, h, w, C), on the device of the networks."""
        encoded = self._vqvae.encode_features(video)
        found = {ENCODER_LAYER: encoded}
        blocks = [layer for layer in self._poolings if layer != ENCODER_LAYER]
        if self._gpt is not None and blocks:
            codes = self._vqvae.codebook(encoded).codes
            found |= self._gpt.hidden_states(codes, blocks)
        return {layer: found[layer] for layer in self._poolings}

    def rows(self, video: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        """Pooled activations: (B, T, H, W, 3) -> (B, t, n_features) for each layer."""
        parts: dict[str, list[NDArray[np.float32]]] = {layer: [] for layer in self._poolings}
        with torch.inference_mode():
            for clips in torch.from_numpy(video).split(CLIPS_AT_ONCE):
                for layer, tokens in self.tokens(clips.to(self._device)).items():
                    parts[layer].append(pool(tokens.float(), self._poolings[layer]).cpu().numpy())
        return {layer: np.concatenate(arrays) for layer, arrays in parts.items()}


def finest_grid(n_channels: int, height: int, width: int) -> Pooling:
    """Return the finest grid up to 4x4 that gives at most `MAX_FEATURES` features, or else the mean."""
    for cells in range(min(4, height, width), 1, -1):
        if cells**2 * n_channels <= MAX_FEATURES:
            return Pooling(kind="grid", grid=cells)
    return Pooling(kind="mean", grid=1)
