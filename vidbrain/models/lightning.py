"""State dicts of VideoGPT's Lightning checkpoints -> our models, by name; formulas are in `videogpt` and `blocks`.

What a checkpoint does not say (strides, heads) comes from its hyper-parameters, or from the caller.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from vidbrain.errors import ModelError
from vidbrain.models.codec import VQVAEConfig
from vidbrain.models.gpt import GPT, GPTConfig
from vidbrain.models.positions import Triple
from vidbrain.models.readers import FRAMES_PER_CELL
from vidbrain.models.vqvae import VQVAE

State = Mapping[str, Tensor]

AXES = ("attn_t", "attn_h", "attn_w")
"""Of axial attention, in our order."""


def vqvae_part(state: State) -> dict[str, Tensor] | None:
    """Entries of the VQ-VAE, which a GPT's checkpoint holds under ``vqvae.``; None where there are none."""
    inside = {name.removeprefix("vqvae."): value for name, value in state.items() if name.startswith("vqvae.")}
    found = inside or dict(state)
    return found if "codebook.embeddings" in found else None


def vqvae_of(state: State, downsample: Triple) -> VQVAE:
    """Make the VQ-VAE of a state dict.

    Raises
    ------
    ModelError
        If it is not VideoGPT's.
    """
    held = _Held(state)
    code_dim, width = held.shaped("pre_vq_conv.conv.weight", 5).shape[:2]
    n_layers = sum(f"encoder.res_stack.{k}.block.0.weight" in state for k in range(64))
    config = VQVAEConfig(
        downsample=downsample,
        network="study",
        linear_start=False,
        n_hidden=width,
        n_res_layers=n_layers,
        n_codes=len(held.shaped("codebook.embeddings", 2)),
        code_dim=code_dim,
        restart_sums=False,
    )
    model = VQVAE(config)
    n_halvings = sum(f"encoder.convs.{k}.conv.weight" in state for k in range(64))
    if n_halvings != len(model.encoder.down):
        raise ModelError(
            f"the checkpoint halves {n_halvings} times, a downsampling of {downsample} {len(model.encoder.down)} times",
            where="downsample",
            hint="give the one that it was trained with",
        )
    made: dict[str, Tensor] = {name: value for name, value in model.state_dict().items() if name.startswith("pixel_")}
    made["started"] = torch.ones((), dtype=torch.bool)
    for k in range(n_halvings):
        made |= held.layer(f"encoder.convs.{k}.conv", f"encoder.down.{k}.conv")
        made |= held.layer(f"decoder.convts.{k}.convt", f"decoder.up.{k}.conv")
    made |= held.layer("encoder.conv_last.conv", "encoder.last")
    made |= held.layer("pre_vq_conv.conv", "encoder.out") | held.layer("post_vq_conv.conv", "decoder.stem")
    for side in ("encoder", "decoder"):
        made |= held.batch_norm(f"{side}.res_stack.{n_layers}", f"{side}.norm")
        for k in range(n_layers):
            made |= dict(_residual_block(held, f"{side}.res_stack.{k}.block", f"{side}.blocks.{k}"))
    embeddings = held["codebook.embeddings"]
    made |= {
        "codebook.embeddings": embeddings,
        "codebook.z_avg": held["codebook.z_avg"],
        "codebook.counts": held["codebook.N"],
        "codebook.ready": torch.ones((), dtype=torch.bool),
        "codebook.usage": torch.zeros(len(embeddings), dtype=torch.int64),
        "codebook.restarts": torch.zeros((), dtype=torch.int64),
    }
    held.refuse_rest()
    _load(model, made)
    return model.eval()


def gpt_of(
    state: State,
    n_heads: int,
    *,
    class_label: int | None = None,
    dropout: float = 0.0,
    attention_dropout: float = 0.0,
) -> GPT:
    """Make the GPT of a state dict; entries of its VQ-VAE give the code vectors.

    It may read the clip before (the study's) or the first frames of its clip (VideoGPT's). A class decides nothing but
    the gains and offsets of norms: of a GPT that is told classes, the one that it is for a single class is made.

    Parameters
    ----------
    state
        Of the whole checkpoint.
    n_heads
        Of its attention.
    class_label
        For which class, where it is told classes.
    dropout, attention_dropout
        As it was trained.

    Raises
    ------
    ModelError
        If it is not VideoGPT's, its attention is sparse, or it is told classes and none of them is chosen.
    """
    held = _Held({name: value for name, value in state.items() if not name.startswith("vqvae.")}, class_label)
    n_layers = sum(f"attn_stack.attn_nets.{k}.attn.w_qs.weight" in state for k in range(1024))
    hidden, code_dim = held.shaped("fc_in.weight", 2).shape
    places = [held.shaped(f"attn_stack.pos_embd.emb.d_{k}", 2) for k in range(3)]
    grid = (len(places[0]), len(places[1]), len(places[2]))
    attended = len(held.shaped("attn_stack.attn_nets.0.attn.w_qs.weight", 2))
    if n_heads < 1 or attended % n_heads:
        raise ModelError(f"{n_heads} heads do not divide {attended} channels of attention", where="n_heads")
    codebook = state.get("vqvae.codebook.embeddings")
    if codebook is None or codebook.ndim != 2 or codebook.shape[1] != code_dim:
        raise ModelError("the checkpoint of the GPT lacks the code vectors that it embeds", where="vqvae.codebook")
    if class_label is not None and "norm.w.weight" not in state:
        raise ModelError(
            "the GPT is told no classes",
            where="class_label",
            hint="leave --class-label away",
            likely="another checkpoint",
        )
    read = _reader(held)
    config = GPTConfig(
        hidden=hidden,
        n_layers=n_layers,
        n_heads=n_heads,
        head_dim=attended // n_heads,  # truncated where heads do not divide the width
        dropout=dropout,
        attention_dropout=attention_dropout,
        block="study",
        norm="study",
        positions="thirds",
        embedding="codebook",
        **read.settings,
    )
    made = {
        "codebook": codebook,
        "start": held.start(hidden),
        "embed.weight": held["fc_in.weight"],
        "head.weight": held["fc_out.weight"],
        **{f"positions.{k}": place for k, place in enumerate(places)},
        **held.norm("norm", "norm"),
        **read.weights,
    }
    for k in range(n_layers):
        theirs, ours = f"attn_stack.attn_nets.{k}", f"blocks.{k}"
        held.causal(f"{theirs}.attn")
        made |= {
            **held.norm(f"{theirs}.pre_attn_norm", f"{ours}.attention_norm"),
            f"{ours}.attention.qkv.weight": held.qkv(f"{theirs}.attn"),
            **held.layer(f"{theirs}.attn.fc", f"{ours}.attention.out"),
            **held.norm(f"{theirs}.pre_fc_norm", f"{ours}.mlp_norm"),
            **held.layer(f"{theirs}.fc_block.0", f"{ours}.up"),
            **held.layer(f"{theirs}.fc_block.2", f"{ours}.down"),
        }
        if config.reads:
            made |= held.norm(f"{theirs}.pre_enc_norm", f"{ours}.cross_norm")
            for their, our in (("w_qs", "q"), ("w_ks", "k"), ("w_vs", "v"), ("fc", "out")):
                made |= held.layer(f"{theirs}.enc_attn.{their}", f"{ours}.cross.{our}")
    held.refuse_rest()
    model = GPT(config, n_codes=len(codebook), grid=grid, code_dim=code_dim, frames=read.frames)
    _load(model, made)
    return model.eval()


@dataclass(frozen=True)
class _Reader:
    """What reads a condition: settings of the GPT, weights by our names, and (n, H, W) of frames."""

    settings: dict[str, Any] = field(default_factory=dict)
    weights: dict[str, Tensor] = field(default_factory=dict)
    frames: Triple | None = None


def _reader(held: _Held) -> _Reader:
    """Take what reads a condition: of the clip before, a residual block; of frames, a ResNet."""
    previous, frames = "resnet.proj_conv.weight" in held.left, "resnet.stem.0.weight" in held.left
    if not previous and not frames:
        return _Reader()
    ours = "previous" if previous else "read_frames"
    places = [held.shaped(f"cond_pos_embd.emb.d_{k}", 2) for k in range(3)]
    weights = {f"{ours}.positions.{k}": place for k, place in enumerate(places)}
    settings = {
        "condition": "previous" if previous else "frames",
        "reader": "videogpt" if any(name.endswith(".norm.running_mean") for name in held.left) else "study",
        "condition_width": 3 * places[0].shape[1],
    }
    if previous:
        weights |= held.residual("resnet", f"{ours}.block")
        return _Reader(settings, weights)
    weights |= held.layer("resnet.stem.0", f"{ours}.stem") | held.reader_norm("resnet.stem.1", f"{ours}.stem_norm")
    number = 0
    for group in range(1, 5):
        following = sum(f"resnet.group{group}.blocks.{k}.conv1.weight" in held.left for k in range(64))
        for name in ("start_block", *(f"blocks.{k}" for k in range(following))):
            weights |= held.residual(f"resnet.group{group}.{name}", f"{ours}.blocks.{number}")
            number += 1
    t, h, w = (len(place) * cell for place, cell in zip(places, FRAMES_PER_CELL, strict=True))
    return _Reader(settings, weights, (t, h, w))


class _Held:
    """A state dict that remembers what has not been taken from it."""

    def __init__(self, state: State, class_label: int | None = None) -> None:
        self._state, self._class_label = state, class_label
        self.left = set(state)

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._state:
            raise ModelError(f"the checkpoint lacks {name}", likely="it is not one of VideoGPT's")
        self.left.discard(name)
        return self._state[name]

    def shaped(self, name: str, n_dims: int) -> Tensor:
        """Take an entry that has so many dimensions."""
        found = self[name]
        if found.ndim != n_dims:
            raise ModelError(
                f"{name} of the checkpoint has shape {tuple(found.shape)}, not {n_dims} dimensions",
                likely="it is not one of VideoGPT's",
            )
        return found

    def layer(self, theirs: str, ours: str) -> dict[str, Tensor]:
        """Weight, and bias where there is one."""
        names = [name for name in ("weight", "bias") if name == "weight" or f"{theirs}.{name}" in self._state]
        return {f"{ours}.{name}": self[f"{theirs}.{name}"] for name in names}

    def norm(self, theirs: str, ours: str) -> dict[str, Tensor]:
        """Gain and offset of a layer norm; for one class, where classes decide them."""
        if f"{theirs}.w.weight" not in self._state:
            return {f"{ours}.weight": self[f"{theirs}.g"], f"{ours}.bias": self[f"{theirs}.b"]}
        gains, offsets = self.shaped(f"{theirs}.w.weight", 2), self.shaped(f"{theirs}.wb.weight", 2)
        label, n_classes = self._class_label, min(gains.shape[1], offsets.shape[1])
        if label is None or not 0 <= label < n_classes:
            asked = "" if label is None else f", which {label} is not"
            raise ModelError(
                f"the GPT is told one of {n_classes} classes{asked}",
                where="class_label",
                hint=f"give the class that it is made for: --class-label 0 to {n_classes - 1}",
            )
        return {f"{ours}.weight": 1 + gains[:, label], f"{ours}.bias": offsets[:, label].clone()}

    def start(self, hidden: int) -> Tensor:
        """Vector before the first token: learned in the study's version, zero in VideoGPT's last."""
        name = "attn_stack.right_shift.sos"
        return self[name] if name in self._state else torch.zeros(hidden)

    def causal(self, theirs: str) -> None:
        """Drop the mask of causal attention, which sparse attention does not have."""
        if f"{theirs}.attn.mask" not in self._state:
            raise ModelError(f"{theirs} has no causal mask", likely="it was trained with sparse attention")
        self.left.discard(f"{theirs}.attn.mask")

    def reader_norm(self, theirs: str, ours: str) -> dict[str, Tensor]:
        """Norm in what reads a condition: over the batch in VideoGPT, over channels in the study's version."""
        if f"{theirs}.norm.running_mean" in self._state:
            return self.batch_norm(f"{theirs}.norm", ours)
        return self.layer(f"{theirs}.norm.norm", ours)

    def residual(self, theirs: str, ours: str) -> dict[str, Tensor]:
        """Residual block of what reads a condition."""
        made = self.layer(f"{theirs}.conv1", f"{ours}.conv_in") | self.layer(f"{theirs}.conv2", f"{ours}.conv_out")
        for k in range(2):
            made |= self.reader_norm(f"{theirs}.bnr{k + 1}", f"{ours}.norms.{k}")
        if f"{theirs}.proj_conv.weight" in self._state:
            made |= self.layer(f"{theirs}.proj_conv", f"{ours}.shortcut")
            made |= self.reader_norm(f"{theirs}.proj_bnr", f"{ours}.shortcut_norm")
        return made

    def batch_norm(self, theirs: str, ours: str) -> dict[str, Tensor]:
        """Gain, offset and running statistics."""
        names = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
        return {f"{ours}.{name}": self[f"{theirs}.{name}"] for name in names}

    def qkv(self, theirs: str) -> Tensor:
        """Maps to queries, keys and values, in one."""
        parts = [self.shaped(f"{theirs}.{name}.weight", 2) for name in ("w_qs", "w_ks", "w_vs")]
        if len({part.shape for part in parts}) > 1:
            raise ModelError(
                f"{theirs} of the checkpoint maps to queries, keys and values of {[tuple(p.shape) for p in parts]}",
                likely="it is not one of VideoGPT's",
            )
        return torch.cat(parts)

    def refuse_rest(self) -> None:
        """Refuse what was not taken: a model with other parts would be converted to something else."""
        if self.left:
            raise ModelError(
                f"the checkpoint holds {len(self.left)} entries that are not VideoGPT's, {min(self.left)} among them"
            )


def _residual_block(held: _Held, theirs: str, ours: str) -> Iterator[tuple[str, Tensor]]:
    for k, number in enumerate((0, 3, 6)):
        yield from held.batch_norm(f"{theirs}.{number}", f"{ours}.norms.{k}").items()
    yield from held.layer(f"{theirs}.2.conv", f"{ours}.conv_in").items()
    yield from held.layer(f"{theirs}.5.conv", f"{ours}.conv_out").items()
    for k, axis in enumerate(AXES):
        yield f"{ours}.attention.qkv.{k}.weight", held.qkv(f"{theirs}.8.{axis}")
        yield from held.layer(f"{theirs}.8.{axis}.fc", f"{ours}.attention.out.{k}").items()


def _load(model: VQVAE | GPT, made: Mapping[str, Tensor]) -> None:
    try:
        model.load_state_dict(dict(made))
    except RuntimeError as error:
        first = str(error).strip().splitlines()
        raise ModelError(f"the checkpoint does not fit: {first[1].strip() if len(first) > 1 else first[0]}") from error
