"""Activations of the VQ-VAE and of the GPT over its codes, trained or with fresh weights.

Layers: ``vqvae.encoder`` (the encoder before quantisation), and of the GPT ``gpt.block_0`` ... (the residual stream
after each block) and ``gpt.block_0.mlp`` ... (what its MLP adds). A clip gives t token slices; slice j stands for its
j-th part of the clip's frames. The encoder attends over the whole clip. The GPT is causal over codes (the state at a
token has seen the codes before it), but the codes come from that encoder: every layer may see the whole clip.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vidbrain.config import from_mapping, to_mapping
from vidbrain.errors import ModelError
from vidbrain.features.pooling import Pooling, pool
from vidbrain.features.sources import Layer, choose_layers
from vidbrain.features.windows import Window
from vidbrain.models.gpt import GPT
from vidbrain.models.pretrained import load_gpt, load_vqvae, untrained_like
from vidbrain.models.vqvae import VQVAE
from vidbrain.records import ClipSpec
from vidbrain.storage.info import read_info
from vidbrain.training import precision
from vidbrain.training.world import pick_device

ENCODER_LAYER = "vqvae.encoder"

MAX_FEATURES = 512
"""Unless a grid is asked for, the finest one up to 4x4 is taken that gives at most this many features a layer: sets of
equal size can be compared, larger ones would fit more by their size alone."""

CLIPS_AT_ONCE = 16
"""Clips in one pass: bounds the memory of activations."""


class ModelSource:
    """A VQ-VAE, and a GPT where there is one, as a source of features. Runs in float32, on the GPU where there is one.

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
        Layers that are wanted; none for the encoder and the residual stream after every block.
    pooling
        None for the finest grid up to 4x4 with at most `MAX_FEATURES` features.
    stride
        Source frames between clips; None for clips that do not overlap.

    Raises
    ------
    ModelError
        For an unknown layer, networks that do not fit the frames or each other, or a grid finer than the tokens.
    """

    def __init__(
        self,
        name: str,
        vqvae: VQVAE,
        gpt: GPT | None,
        *,
        clip_frames: int,
        clip_step: int,
        frame_size: tuple[int, int],
        layer_names: Sequence[str] = (),
        pooling: Pooling | None = None,
        stride: int | None = None,
    ) -> None:
        grid = vqvae.config.latent_grid(clip_frames, *frame_size)
        channels = {ENCODER_LAYER: vqvae.config.code_dim}
        if gpt is not None:
            _check_fit(vqvae, gpt, grid)
            channels |= dict.fromkeys(gpt.layers, gpt.config.hidden)
        chosen = choose_layers(layer_names or [k for k in channels if not k.endswith(".mlp")], list(channels), name)
        self._poolings = {layer: pooling or finest_grid(channels[layer], *grid[1:]) for layer in chosen}
        for layer, pooled in self._poolings.items():
            pooled.check(layer, *grid[1:])
        self._blocks = [layer for layer in chosen if layer != ENCODER_LAYER]
        device = pick_device("auto")
        self._arm = precision.resolve("fp32", device)
        self._opened: dict[str, Any] | None = None
        self._vqvae = vqvae.eval().to(device)
        self._gpt = gpt.eval().to(device) if gpt is not None and self._blocks else None

        self.name = name
        self.window = Window(n_frames=clip_frames, step=clip_step, n_slices=grid[0], stride=stride)
        beyond = self.window.covered - self.window.slice_frames
        self.layers = tuple(
            Layer(name=layer, grid=grid[1:], n_channels=channels[layer],
                  n_features=pooled.n_features(channels[layer]), sees_before=beyond, sees_after=beyond)
            for layer, pooled in self._poolings.items()
        )  # fmt: skip
        self.settings: dict[str, Any] = {"pooling": {k: to_mapping(v) for k, v in self._poolings.items()}}
        networks = {"vqvae": self._vqvae, "gpt": self._gpt}
        self.made_from = {k: weights_fingerprint(network) for k, network in networks.items() if network is not None}

    @property
    def in_process(self) -> bool:
        """On a GPU, which one process holds, and where there are no files that a worker could open."""
        return self._opened is None or self._vqvae.pixel_mean.is_cuda

    def __reduce__(self) -> tuple[Any, ...]:
        # A worker opens the files itself: names travel, weights do not.
        if self._opened is None:
            raise TypeError("networks that were not opened from files stay in their process")
        return _reopen, (self._opened,)

    def tokens(self, video: Tensor) -> dict[str, Tensor]:
        """Activations of the layers: uint8 (B, T, H, W, 3) -> float (B, t, h, w, C), on the device of the networks."""
        encoded = self._vqvae.encode_features(video)
        found = {ENCODER_LAYER: encoded}
        if self._gpt is not None:
            found |= self._gpt.hidden_states(self._vqvae.codebook(encoded).codes, self._blocks)
        return {layer: found[layer] for layer in self._poolings}

    def rows(self, video: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        """Pooled activations: (B, T, H, W, 3) -> (B, t, n_features) for each layer."""
        parts: dict[str, list[NDArray[np.float32]]] = {layer: [] for layer in self._poolings}
        device = self._vqvae.pixel_mean.device
        with torch.inference_mode(), self._arm.autocast():
            for clips in torch.from_numpy(video).split(CLIPS_AT_ONCE):
                for layer, tokens in self.tokens(clips.to(device)).items():
                    parts[layer].append(pool(tokens.float(), self._poolings[layer]).cpu().numpy())
        return {layer: np.concatenate(arrays) for layer, arrays in parts.items()}


def open_model(
    name: Literal["model", "untrained"],
    *,
    vqvae: str | Path,
    gpt: str | Path | None,
    frame_size: tuple[int, int],
    layers: Sequence[str] = (),
    pooling: Pooling | None = None,
    stride: int | None = None,
    seed: int = 0,
) -> ModelSource:
    """Load trained networks, or make fresh ones of their architecture.

    Parameters
    ----------
    name
        Which.
    vqvae, gpt
        Folders of finished trainings; without a GPT there are no ``gpt`` layers.
    frame_size
        Height and width of the shards' frames.
    layers, pooling, stride
        See `ModelSource`.
    seed
        Of fresh weights.

    Raises
    ------
    StorageError, ModelError
        If a network is missing, unfinished or damaged, or the GPT belongs to another VQ-VAE.
    """
    trained = read_info(vqvae, "vqvae")
    if gpt is not None:
        learned_from = read_info(gpt, "gpt")["made_from"].get("vqvae")
        if learned_from != trained["fingerprint"]:
            raise ModelError(
                f"the GPT was trained on codes of the VQ-VAE {learned_from}, not of {trained['fingerprint']}",
                where=gpt,
                hint="give the VQ-VAE that belongs to it, or tokenize and train the GPT again",
            )
    codec: VQVAE | GPT
    prior: VQVAE | GPT | None
    if name == "model":
        codec, prior = load_vqvae(vqvae), None if gpt is None else load_gpt(gpt)
    else:
        codec, prior = untrained_like(vqvae, seed), None if gpt is None else untrained_like(gpt, seed)
    assert isinstance(codec, VQVAE)
    assert prior is None or isinstance(prior, GPT)
    clip = from_mapping(ClipSpec, trained["config"]["clip"], vqvae)
    source = ModelSource(
        name, codec, prior, clip_frames=clip.n_frames, clip_step=clip.step, frame_size=frame_size, layer_names=layers,
        pooling=pooling, stride=stride,
    )  # fmt: skip
    source._opened = {
        "name": name, "vqvae": vqvae, "gpt": gpt, "frame_size": frame_size, "layers": layers, "pooling": pooling,
        "stride": stride, "seed": seed,
    }  # fmt: skip
    return source


def _reopen(arguments: dict[str, Any]) -> ModelSource:
    return open_model(**arguments)


def finest_grid(n_channels: int, height: int, width: int) -> Pooling:
    """Return the finest grid up to 4x4 that gives at most `MAX_FEATURES` features, or else the mean."""
    for cells in range(min(4, height, width), 1, -1):
        if cells**2 * n_channels <= MAX_FEATURES:
            return Pooling(kind="grid", grid=cells)
    return Pooling(kind="mean", grid=1)


def weights_fingerprint(network: nn.Module) -> str:
    """Return 16 hexadecimal digits that name a network's weights and buffers."""
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        array = value.detach().cpu().contiguous().numpy()
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()[:16]


def _check_fit(vqvae: VQVAE, gpt: GPT, grid: tuple[int, int, int]) -> None:
    if gpt.grid != grid or gpt.n_codes != vqvae.config.n_codes:
        raise ModelError(
            f"the GPT reads clips of {gpt.grid} codes out of {gpt.n_codes}, the VQ-VAE gives {grid} out of "
            f"{vqvae.config.n_codes}",
            likely="the GPT was trained on the codes of another VQ-VAE, or the shards have frames of another size",
        )
