"""State dicts of VideoGPT's Lightning checkpoints -> our models, by name; formulas are in `videogpt` and `blocks`.

What a checkpoint does not say (strides, heads) comes from its hyper-parameters, or from the caller.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from vidbrain.errors import ModelError
from vidbrain.models.codec import VQVAEConfig
from vidbrain.models.gpt import GPT, GPTConfig
from vidbrain.models.positions import Triple
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
    code_dim, width = held["pre_vq_conv.conv.weight"].shape[:2]
    n_layers = sum(f"encoder.res_stack.{k}.block.0.weight" in state for k in range(64))
    config = VQVAEConfig(
        downsample=downsample,
        network="study",
        linear_start=False,
        n_hidden=width,
        n_res_layers=n_layers,
        n_codes=len(held["codebook.embeddings"]),
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


def gpt_of(state: State, n_heads: int, *, dropout: float = 0.0, attention_dropout: float = 0.0) -> GPT:
    """Make the unconditional GPT of a state dict; entries of its VQ-VAE give the code vectors.

    Raises
    ------
    ModelError
        If it is not VideoGPT's, or is conditioned: names of what reads a condition differ between its versions.
    """
    held = _Held({name: value for name, value in state.items() if not name.startswith("vqvae.")})
    conditioned = [name for name in held.left if "enc" in name or "cond" in name or name.startswith("resnet")]
    if conditioned:
        raise ModelError(
            f"the GPT is conditioned on frames or classes ({conditioned[0]}), which is not converted",
            hint="train one with --model.condition previous on the same codes",
        )
    n_layers = sum(f"attn_stack.attn_nets.{k}.pre_fc_norm.g" in state for k in range(1024))
    hidden, code_dim = held["fc_in.weight"].shape
    places = [held[f"attn_stack.pos_embd.emb.d_{k}"] for k in range(3)]
    grid = (len(places[0]), len(places[1]), len(places[2]))
    attended = len(state["attn_stack.attn_nets.0.attn.w_qs.weight"])
    if attended % n_heads:
        raise ModelError(f"{n_heads} heads do not divide {attended} channels of attention", where="n_heads")
    codebook = state.get("vqvae.codebook.embeddings")
    if codebook is None or codebook.shape[1] != code_dim:
        raise ModelError("the checkpoint of the GPT lacks the code vectors that it embeds", where="vqvae.codebook")
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
    )
    made = {
        "codebook": codebook,
        "start": held["attn_stack.right_shift.sos"],
        "embed.weight": held["fc_in.weight"],
        "head.weight": held["fc_out.weight"],
        **{f"positions.{k}": place for k, place in enumerate(places)},
        **held.norm("norm", "norm"),
    }
    for k in range(n_layers):
        theirs, ours = f"attn_stack.attn_nets.{k}", f"blocks.{k}"
        held.left.discard(f"{theirs}.attn.attn.mask")
        made |= {
            **held.norm(f"{theirs}.pre_attn_norm", f"{ours}.attention_norm"),
            f"{ours}.attention.qkv.weight": held.qkv(f"{theirs}.attn"),
            **held.layer(f"{theirs}.attn.fc", f"{ours}.attention.out"),
            **held.norm(f"{theirs}.pre_fc_norm", f"{ours}.mlp_norm"),
            **held.layer(f"{theirs}.fc_block.0", f"{ours}.up"),
            **held.layer(f"{theirs}.fc_block.2", f"{ours}.down"),
        }
    held.refuse_rest()
    model = GPT(config, n_codes=len(codebook), grid=grid, code_dim=code_dim)
    _load(model, made)
    return model.eval()


class _Held:
    """A state dict that remembers what has not been taken from it."""

    def __init__(self, state: State) -> None:
        self._state = state
        self.left = set(state)

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._state:
            raise ModelError(f"the checkpoint lacks {name}", likely="it is not one of VideoGPT's")
        self.left.discard(name)
        return self._state[name]

    def layer(self, theirs: str, ours: str) -> dict[str, Tensor]:
        """Weight, and bias where there is one."""
        names = [name for name in ("weight", "bias") if name == "weight" or f"{theirs}.{name}" in self._state]
        return {f"{ours}.{name}": self[f"{theirs}.{name}"] for name in names}

    def norm(self, theirs: str, ours: str) -> dict[str, Tensor]:
        """Gain and offset of a layer norm."""
        return {f"{ours}.weight": self[f"{theirs}.g"], f"{ours}.bias": self[f"{theirs}.b"]}

    def batch_norm(self, theirs: str, ours: str) -> dict[str, Tensor]:
        """Gain, offset and running statistics."""
        names = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
        return {f"{ours}.{name}": self[f"{theirs}.{name}"] for name in names}

    def qkv(self, theirs: str) -> Tensor:
        """Maps to queries, keys and values, in one."""
        return torch.cat([self[f"{theirs}.{name}.weight"] for name in ("w_qs", "w_ks", "w_vs")])

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
