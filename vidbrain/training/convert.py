"""VideoGPT's Lightning checkpoints -> model folders that every other command reads; nothing in a checkpoint is run."""

from __future__ import annotations

import argparse
import hashlib
import pickle
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from vidbrain.config import to_mapping
from vidbrain.errors import ConfigError, ModelError
from vidbrain.models.lightning import gpt_of, vqvae_of, vqvae_part
from vidbrain.models.positions import Triple
from vidbrain.models.pretrained import save_pretrained
from vidbrain.records import ClipSpec
from vidbrain.storage.atomic import as_storage_error, check_writable
from vidbrain.storage.info import is_done, read_info, write_info

VQVAE_FOLDER, GPT_FOLDER = "vqvae", "gpt"


class _Stub(dict[Any, Any]):
    """Stands for a class of Lightning's: a mapping that takes whatever a checkpoint puts into it, and does nothing."""


STUBS = (
    "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
    "pytorch_lightning.callbacks.lr_monitor.LearningRateMonitor",
    "pytorch_lightning.utilities.parsing.AttributeDict",
)
"""Classes that Lightning of that time leaves in a checkpoint."""


@dataclass(frozen=True, kw_only=True)
class ConvertConfig:
    """What a checkpoint does not always say."""

    downsample: Triple | None = None
    """Frames, rows and columns per code; by default what the checkpoint's own settings say."""
    n_heads: int | None = None
    """Heads of the GPT; by default what the checkpoint's own settings say."""
    class_label: int | None = None
    """Class for which a GPT is made that is told classes, counted from 0 as in its training."""
    n_frames: int | None = None
    """Frames of a clip; by default what the checkpoint's own settings say."""
    step: int = 4
    """Source frames between the frames of a clip; 4 is the study's 15 Hz of 60."""

    def __post_init__(self) -> None:
        for name, least in (("n_heads", 1), ("class_label", 0), ("n_frames", 1), ("step", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigError(f"{name} must be at least {least}, not {value}", where=name)


def convert(checkpoint: str | Path, out: str | Path, config: ConvertConfig = ConvertConfig()) -> dict[str, Any]:
    """Convert a checkpoint of a VQ-VAE, or of a GPT with the VQ-VAE in it, whatever the GPT is told.

    Parameters
    ----------
    checkpoint
        As Lightning wrote it.
    out
        Folder; ``vqvae`` and, for a GPT, ``gpt`` are written into it.
    config
        What the checkpoint does not say.

    Returns
    -------
    dict
        Folders and numbers of parameters.

    Raises
    ------
    ModelError
        If it cannot be read without running code, or is not VideoGPT's.
    ConfigError
        If something is needed that neither the checkpoint nor the caller says.
    ResumeError
        If another conversion lies there.
    """
    path, out = Path(checkpoint), Path(out)
    state, said = read_lightning(path)
    part = vqvae_part(state)
    if part is None:
        raise ModelError("the checkpoint holds no VQ-VAE", where=path, likely="it is not one of VideoGPT's")
    own = {"checkpoint": _digest(path)}
    downsample = _settled(said, "downsample", config.downsample, _triple)
    n_frames = config.n_frames or _whole(_needed(said, "sequence_length", "n-frames"), "sequence_length")
    clip = ClipSpec(n_frames, config.step, n_frames * config.step)
    vqvae, gpt = vqvae_of(part, downsample), None
    if any(name.startswith("attn_stack.") for name in state):
        gpt = gpt_of(
            state,
            _settled(said, "heads", config.n_heads, _whole, "n-heads"),
            class_label=config.class_label,
            dropout=_share(said, "dropout"),
            attention_dropout=_share(said, "attn_dropout"),
        )
    elif config.class_label is not None or config.n_heads is not None:
        raise ConfigError("the checkpoint holds no GPT, which --n-heads and --class-label are for", where=path)
    n_slices = n_frames / downsample[0]
    if not n_slices.is_integer() or (gpt is not None and gpt.grid[0] != n_slices):
        raise ConfigError(
            f"clips of {n_frames} frames at {downsample[0]} frames a code are not "
            + ("whole codes" if gpt is None else f"the {gpt.grid[0]} time slices of the GPT"),
            where="n_frames",
            hint=f"give --n-frames {downsample[0] * (gpt.grid[0] if gpt is not None else round(n_slices) or 1)}",
        )
    check_writable(out)
    folder = out / VQVAE_FOLDER
    settings: dict[str, Any] = {"clip": to_mapping(clip), "model": to_mapping(vqvae.config)}
    if not is_done(folder, "vqvae", config=settings, made_from=own):
        save_pretrained(vqvae, folder)
        write_info(folder, "vqvae", config=settings, made_from=own)
    written = {"vqvae": str(folder), "vqvae_parameters": sum(p.numel() for p in vqvae.parameters())}
    if gpt is not None:
        made_from = {**own, "vqvae": str(read_info(folder, "vqvae")["fingerprint"])}
        folder = out / GPT_FOLDER
        settings = {"model": to_mapping(gpt.config)}
        if config.class_label is not None:
            settings["class_label"] = config.class_label
        if not is_done(folder, "gpt", config=settings, made_from=made_from):
            save_pretrained(gpt, folder)
            write_info(folder, "gpt", config=settings, made_from=made_from)
        written |= {"gpt": str(folder), "gpt_parameters": sum(p.numel() for p in gpt.parameters())}
    return written


def read_lightning(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Return the state dict of a checkpoint, and its settings, without running any of its code.

    Raises
    ------
    ModelError
        If it holds more than tensors, plain values and Lightning's own bookkeeping, or no state dict.
    """
    allowed: list[Any] = [argparse.Namespace, *((_Stub, name) for name in STUBS)]
    try:
        with torch.serialization.safe_globals(allowed), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # about pickles of other writers, which are refused anyway
            found = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise as_storage_error(error, path) from error
    except Exception as error:
        # A hostile pickle can raise anything.
        raise ModelError(
            "the checkpoint is refused: it holds more than tensors and plain values"
            if isinstance(error, pickle.UnpicklingError)
            else f"the checkpoint cannot be read: {type(error).__name__}",
            where=path,
            likely="the file is damaged, or was not written by VideoGPT",
        ) from error
    if not isinstance(found, Mapping) or not isinstance(found.get("state_dict"), Mapping):
        raise ModelError("the checkpoint has no state_dict", where=path, likely="it was not written by Lightning")
    for name, value in found["state_dict"].items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            kind = type(value).__name__
            raise ModelError(
                f"entry {name!r} of the state_dict is a {kind}, where names are texts and entries tensors", where=path
            )
        if value.layout != torch.strided or value.is_complex() or value.is_quantized:
            raise ModelError(f"entry {name!r} of the state_dict is no plain tensor of real numbers", where=path)
    said = found.get("hyper_parameters") or {}
    said = said.get("args", said) if isinstance(said, Mapping) else said
    said = vars(said) if isinstance(said, argparse.Namespace) else said
    if not isinstance(said, Mapping):
        raise ModelError(
            f"the checkpoint's hyper_parameters are a {type(said).__name__}, not settings by name", where=path
        )
    return dict(found["state_dict"]), dict(said)


def _needed(said: Mapping[str, Any], name: str, flag: str | None = None) -> Any:  # noqa: ANN401 -- of any type
    if name not in said:
        raise ConfigError(
            f"the checkpoint's settings do not say {name}", where=name, hint=f"give --{flag or name} as it was trained"
        )
    return said[name]


Value = TypeVar("Value", int, Triple)


def _settled(
    said: Mapping[str, Any], name: str, given: Value | None, read: Callable[[Any, str], Value], flag: str | None = None
) -> Value:
    """What the checkpoint says, or the caller where it says nothing that can be read; refused where they differ."""
    if given is None:
        return read(_needed(said, name, flag), name)
    try:
        own = read(said[name], name)
    except (KeyError, ModelError):
        return given
    if own != given:
        raise ConfigError(
            f"the checkpoint was trained with {name} {own}, not {given}",
            where=name,
            hint=f"leave --{flag or name} away: the checkpoint says it",
        )
    return given


def _whole(value: Any, name: str) -> int:  # noqa: ANN401 -- from a checkpoint
    if type(value) is not int or value < 1:
        raise ModelError(f"the checkpoint says {name} {value!r}, not a whole number of at least 1", where=name)
    return value


def _triple(values: Any, name: str) -> Triple:  # noqa: ANN401 -- from a checkpoint
    if not isinstance(values, list | tuple) or len(values) != 3:
        raise ModelError(f"the checkpoint says {name} {values!r}, not three numbers", where=name)
    t, h, w = (_whole(value, name) for value in values)
    return t, h, w


def _share(said: Mapping[str, Any], name: str) -> float:
    value = said.get(name, 0.0)
    if type(value) not in (int, float) or not 0 <= value < 1:
        raise ModelError(f"the checkpoint says {name} {value!r}, not a share below 1", where=name)
    return float(value)


def _digest(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()[:16]
