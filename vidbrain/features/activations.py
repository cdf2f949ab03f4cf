"""Activations of the VQ-VAE and of the GPT over its codes, trained or with fresh weights.

Layers: ``vqvae.encoder`` (the encoder before quantisation), and those that the GPT lists, ``gpt.block_0`` ... (the
residual stream after each block) and ``gpt.block_0.mlp`` ... (what its MLP adds) among them; and every module inside
the GPT's blocks that gives a vector for each token, by its path: ``gpt.blocks.0.attention``. ``study`` stands for the
read-out of the study, `STUDY_LAYER`. A clip gives t token slices; slice j stands for its
j-th part of the clip's frames. The encoder attends over the whole clip. The GPT is causal over codes (the state at a
token has seen the codes before it), but the codes come from that encoder: every layer may see the whole clip.

A GPT with a condition is told what it was told in training (`features.told`): the codes of the clip before, in the same
recording, or the buttons held in each slice. Frames that have no whole clip before theirs have no row.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vidbrain.config import fingerprint
from vidbrain.errors import ModelError
from vidbrain.features.modules import caught
from vidbrain.features.networks import NetworkSource, clips_at_once
from vidbrain.features.sources import Layer, choose_layers
from vidbrain.features.told import PressedButtons, any_condition, condition_of
from vidbrain.features.windows import Places, Window
from vidbrain.models.digest import weights_fingerprint
from vidbrain.models.gpt import GPT, Condition
from vidbrain.models.pretrained import load_gpt, load_vqvae, untrained_like
from vidbrain.models.vqvae import VQVAE
from vidbrain.sharding.manifest import open_manifest
from vidbrain.storage.info import read_info
from vidbrain.training.settings import check_seed
from vidbrain.training.tokenizer import check_tokenizer, clip_of

ENCODER_LAYER = "vqvae.encoder"

STUDY_LAYER = "gpt.block_4.mlp"
"""Where the study reads out: what the fifth block's MLP adds to the residual stream, after dropout (which does
nothing at read-out)."""


class ModelSource(NetworkSource):
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
        Layers that are wanted; none for the encoder and the residual stream after every block.
    stride
        Source frames between clips; None for clips that do not overlap.
    buttons
        What was pressed, for a GPT that is told actions.

    Raises
    ------
    ModelError
        For an unknown layer, or networks that do not fit the frames or each other.
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
        stride: int | None = None,
        buttons: PressedButtons | None = None,
    ) -> None:
        super().__init__()
        grid = vqvae.config.latent_grid(clip_frames, *frame_size)
        channels = {ENCODER_LAYER: vqvae.config.code_dim}
        if gpt is not None:
            _check_fit(vqvae, gpt, grid, (clip_frames, *frame_size))
            channels |= dict.fromkeys(gpt.layers, gpt.config.hidden)
        inside = _inside(gpt)
        asked = [_study_layer(channels) if layer == "study" else layer for layer in layer_names]
        streams = [layer for layer in channels if layer == ENCODER_LAYER or layer.count(".") == 1]
        chosen = choose_layers(asked or streams, [*channels, *inside], name)
        self._blocks = [layer for layer in chosen if layer in channels and layer != ENCODER_LAYER]
        self._inside = {layer: inside[layer] for layer in chosen if layer not in channels}
        self._vqvae = vqvae.eval().to(self._device)
        self._gpt = gpt.eval().to(self._device) if gpt is not None and chosen != (ENCODER_LAYER,) else None
        if self._gpt is not None and self._inside:
            codes = torch.zeros(1, *grid, dtype=torch.int64, device=self._device)
            found = self._states(codes, any_condition(self._gpt))
            channels |= {layer: found[layer].shape[-1] for layer in self._inside}

        self.name, self._buttons = name, buttons
        told_before = self._gpt is not None and self._gpt.config.condition == "previous"
        self.window = Window(
            n_frames=clip_frames, step=clip_step, n_slices=grid[0], stride=stride, before=clip_frames * told_before
        )
        beyond, lead = self.window.covered - self.window.slice_frames, self.window.lead
        self.layers = tuple(
            Layer(name=layer, grid=grid[1:], n_channels=channels[layer],
                  sees_before=beyond + (0 if layer == ENCODER_LAYER else lead), sees_after=beyond,
                  weights=("vqvae",) if layer == ENCODER_LAYER else ("vqvae", "gpt"))
            for layer in chosen
        )  # fmt: skip
        self.settings: dict[str, Any] = {}
        networks = {"vqvae": self._vqvae, "gpt": self._gpt}
        self.made_from = {k: weights_fingerprint(network) for k, network in networks.items() if network is not None}
        if self._gpt is not None and buttons is not None:
            self.made_from["actions"] = fingerprint(buttons.names, buttons.fingerprints)
        self.clips_at_once = clips_at_once(self.window, self.layers)

    def extract(self, video: NDArray[np.uint8]) -> dict[str, Tensor]:
        """Activations of the layers: uint8 (B, n_input, H, W, 3) -> float (B, t, h, w, C), where the networks are."""
        return self._extract(video, None)

    def extract_at(self, video: NDArray[np.uint8], places: Places) -> dict[str, Tensor]:
        """As `extract`, of clips whose places are known."""
        return self._extract(video, places)

    def told(self, recordings: Sequence[str]) -> str:
        """Name the buttons of recordings; empty for a GPT that is told none."""
        if self._gpt is None or self._buttons is None:
            return ""
        return fingerprint(self._buttons.names, [self._buttons.fingerprints[key] for key in recordings])

    def _extract(self, video: NDArray[np.uint8], places: Places | None) -> dict[str, Tensor]:
        with self._running():
            frames = torch.from_numpy(video).to(self._device)
            encoded = self._vqvae.encode_features(frames[:, self.window.before :])
            found = {ENCODER_LAYER: encoded}
            if self._gpt is not None:
                codes = self._vqvae.codebook(encoded).codes
                told = condition_of(
                    self._gpt, frames, codes, self.window, places, encode=self._vqvae.encode, buttons=self._buttons
                )
                found |= self._states(codes, told)
        return {layer.name: found[layer.name] for layer in self.layers}

    def _states(self, codes: Tensor, told: Condition | None) -> dict[str, Tensor]:
        """States of the GPT over codes (B, t, h, w): by layer, (B, t, h, w, C)."""
        assert self._gpt is not None
        # Blocks are run as deep as the deepest module that is wanted.
        deepest = max((int(path.split(".")[1]) for path in self._inside.values()), default=-1)
        wanted = [*self._blocks, *([f"gpt.block_{deepest}"] if deepest >= 0 else [])]
        with self._running(), caught(self._gpt, self._inside, None) as outputs:
            found = self._gpt.hidden_states(codes, wanted, told)
        for layer, given in outputs.items():
            value = given[0][0] if given and isinstance(given[0], tuple) else given[0] if given else None
            shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            if len(given) != 1 or not isinstance(value, Tensor) or shape[:-1] != (len(codes), codes[0].numel()):
                raise ModelError(
                    f"{layer} is called {len(given)} times in a pass and gives {shape}, not one vector for each token",
                    where=layer,
                    hint="name another module",
                )
            found[layer] = value.unflatten(1, self._gpt.grid)
        return found


def open_model(
    name: Literal["model", "untrained"],
    *,
    vqvae: str | Path,
    gpt: str | Path | None,
    frame_size: tuple[int, int],
    layers: Sequence[str] = (),
    stride: int | None = None,
    seed: int = 0,
    game: str | Path | None = None,
    shards: str | Path | None = None,
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
    layers, stride
        See `ModelSource`.
    seed
        Of fresh weights.
    game, shards
        For a GPT that is told actions: what was sharded, with its tables of buttons, and the shards.

    Raises
    ------
    StorageError, ModelError
        If a network is missing, unfinished or damaged, the GPT belongs to another VQ-VAE, or lacks its buttons.
    ConfigError
        If the seed is out of range.
    """
    check_seed(seed)
    trained = read_info(vqvae, "vqvae")
    if gpt is not None:
        inputs = read_info(gpt, "gpt")["made_from"]
        learned_from = inputs.get("vqvae")
        if learned_from != trained["fingerprint"]:
            raise ModelError(
                f"the GPT was trained on codes of the VQ-VAE {learned_from}, not of {trained['fingerprint']}",
                where=gpt,
                hint="give the VQ-VAE that belongs to it, or tokenize and train the GPT again",
            )
        check_tokenizer(inputs, load_vqvae(vqvae), where=gpt)
    codec: VQVAE | GPT
    prior: VQVAE | GPT | None
    if name == "model":
        codec, prior = load_vqvae(vqvae), None if gpt is None else load_gpt(gpt)
    else:
        codec, prior = untrained_like(vqvae, seed), None if gpt is None else untrained_like(gpt, seed)
    assert isinstance(codec, VQVAE)
    assert prior is None or isinstance(prior, GPT)
    if name == "untrained" and prior is not None and prior.config.embedding == "codebook":
        # As in the trained pair, the GPT embeds the vectors of its own tokenizer.
        prior.set_codebook(codec.codebook.vectors())
    clip = clip_of(trained, where=vqvae)
    source = ModelSource(
        name, codec, prior, clip_frames=clip.n_frames, clip_step=clip.step, frame_size=frame_size, layer_names=layers,
        stride=stride, buttons=None if tuple(layers) == (ENCODER_LAYER,) else _buttons(prior, game, shards),
    )  # fmt: skip
    arguments = {"name": name, "vqvae": vqvae, "gpt": gpt, "frame_size": frame_size, "layers": layers}
    source.opened_by(open_model, {**arguments, "stride": stride, "seed": seed, "game": game, "shards": shards})
    return source


def _inside(gpt: GPT | None) -> dict[str, str]:
    """Paths of the modules inside the blocks, by layer."""
    modules = [] if gpt is None else [path for path, _ in gpt.named_modules()]
    inside = [path for path in modules if path.startswith("blocks.") and path.count(".") > 1]
    # Keys and values of cross-attention are of what is read, not of the tokens.
    return {f"gpt.{path}": path for path in inside if not path.endswith(("cross.k", "cross.v"))}


def _buttons(gpt: GPT | None, game: str | Path | None, shards: str | Path | None) -> PressedButtons | None:
    if gpt is None or gpt.config.condition != "actions":
        return None
    if game is None or shards is None:
        raise ModelError(
            "the GPT is told actions, and needs the recordings with their buttons",
            where="condition",
            hint="name what was sharded: --game",
        )
    table = open_manifest(shards).recordings
    return PressedButtons(game, table.index[table["run"] != ""].tolist(), gpt.actions)


def _study_layer(known: Collection[str]) -> str:
    if STUDY_LAYER not in known:
        raise ModelError(
            f"the study reads out of {STUDY_LAYER}, which this model does not have",
            where="study",
            hint="it needs a GPT of 5 blocks or more; for the last of fewer name its .mlp",
        )
    return STUDY_LAYER


def _check_fit(vqvae: VQVAE, gpt: GPT, grid: tuple[int, int, int], clip: tuple[int, int, int]) -> None:
    if gpt.frames is not None and (gpt.frames[0] > clip[0] or gpt.frames[1:] != clip[1:]):
        raise ModelError(
            f"the GPT is told the first {gpt.frames[0]} frames of {gpt.frames[1:]}, clips have {clip[0]} of {clip[1:]}",
            likely="the shards have frames of another size than those it was trained on",
        )
    if gpt.grid != grid or gpt.n_codes != vqvae.config.n_codes:
        raise ModelError(
            f"the GPT reads clips of {gpt.grid} codes out of {gpt.n_codes}, the VQ-VAE gives {grid} out of "
            f"{vqvae.config.n_codes}",
            likely="the GPT was trained on the codes of another VQ-VAE, or the shards have frames of another size",
        )
