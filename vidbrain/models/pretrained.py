"""Models on disk: ``model.safetensors`` and ``config.json`` in a folder, whole or absent; never a pickle."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from vidbrain.config import from_mapping, to_mapping
from vidbrain.errors import ConfigError, ModelError
from vidbrain.models.gpt import GPT, GPTConfig
from vidbrain.models.positions import Triple
from vidbrain.models.vqvae import VQVAE, VQVAEConfig
from vidbrain.storage.atomic import read_json, write_bytes, write_json

WEIGHTS, CONFIG = "model.safetensors", "config.json"


def save_pretrained(model: VQVAE | GPT, folder: str | Path) -> None:
    """Write a model's weights and its shape; the configuration last."""
    folder = Path(folder)
    tensors = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    # As bytes: a full disk is then an error of the system, not of the library.
    write_bytes(folder / WEIGHTS, save(tensors))
    record: dict[str, Any] = {"model": "vqvae" if isinstance(model, VQVAE) else "gpt", **to_mapping(model.config)}
    if isinstance(model, GPT):
        record |= {
            "n_codes": model.n_codes,
            "grid": list(model.grid),
            "code_dim": model.code_dim,
            "actions": list(model.actions),
            "frames": None if model.frames is None else list(model.frames),
        }
    write_json(folder / CONFIG, record)


def load_vqvae(root: str | Path, *, device: str | torch.device = "cpu") -> VQVAE:
    """Load a VQ-VAE for use (not training).

    Raises
    ------
    StorageError, ModelError
        If there is none, it is another model, or the weights do not fit.
    """
    return _load(root, "vqvae", _fresh_vqvae).to(device).eval()


def load_gpt(root: str | Path, *, device: str | torch.device = "cpu") -> GPT:
    """Load a GPT for use (not training).

    Raises
    ------
    StorageError, ModelError
        If there is none, it is another model, or the weights do not fit.
    """
    return _load(root, "gpt", _fresh_gpt).to(device).eval()


def untrained_like(root: str | Path, seed: int) -> VQVAE | GPT:
    """The same architecture with fresh weights: the untrained control.

    Nothing is taken from training but the colour mean and the deviation by which a VQ-VAE standardises pixels: they
    are a choice of units. Its linear path and codebook are random, not started from data. Matrices that training
    starts from zero are drawn at random: else every block would pass its input through, and the control would be
    weaker than an untrained network has to be.
    """
    record = read_json(Path(root) / CONFIG)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if isinstance(record, dict) and record.get("model") == "gpt":
            control = _without_zeros(_fresh(record, Path(root), _fresh_gpt))
            if control.config.embedding == "codebook":
                control.set_codebook(torch.randn_like(control.codebook))
            return control.eval()
    trained = _load(root, "vqvae", _fresh_vqvae)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _without_zeros(_fresh(record, Path(root), _fresh_vqvae))
    model.pixel_mean.copy_(trained.pixel_mean)
    model.pixel_std.copy_(trained.pixel_std)
    return model.eval()


def load_weights(model: nn.Module, path: Path) -> None:
    """Copy weights from a safetensors file into a model of the same shape.

    Raises
    ------
    ModelError
        If the file is no safetensors file, its tensors have other names or shapes, or not all numbers are finite.
    """
    try:
        tensors = load_file(path)
        model.load_state_dict(tensors)
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"the weights cannot be read: {error}", where=path, hint="train again, or copy the file again"
        ) from error
    except RuntimeError as error:
        first = str(error).strip().splitlines()
        raise ModelError(
            f"the weights do not fit the model: {first[1].strip() if len(first) > 1 else first[0]}",
            where=path,
            likely=f"{WEIGHTS} and {CONFIG} are of two trainings",
            hint="copy the whole folder again",
        ) from error
    spoilt = [name for name, value in model.state_dict().items() if not value.isfinite().all()]
    if spoilt:
        more = f" and {len(spoilt) - 1} more" if len(spoilt) > 1 else ""
        raise ModelError(
            f"the weights are not finite numbers: {spoilt[0]}{more}",
            where=path,
            likely="the training diverged, or the file is damaged",
            hint="train again, with a lower --lr, or copy the file again",
        )


Fresh = Callable[[Mapping[str, Any], Path], Any]
"""Makes a model of a record, which a file holds."""


def _fresh(record: Mapping[str, Any], folder: Path, fresh: Fresh) -> Any:  # noqa: ANN401 -- VQVAE or GPT
    """Make a model, unless its record is impossible, or says more parameters than the file of weights holds."""
    source, weights = folder / CONFIG, folder / WEIGHTS
    try:
        with torch.device("meta"):
            n_bytes = sum(value.nbytes for value in fresh(record, source).state_dict().values())
    except (ConfigError, ModelError) as error:
        setting = "" if error.where in (None, str(source)) else f": {error.where}"
        raise type(error)(
            error.message, where=f"{source}{setting}", likely=error.likely, hint=error.hint or "copy the folder again"
        ) from error
    except (RuntimeError, OverflowError, TypeError, ValueError) as error:
        # The library's own text holds its stack.
        raise ModelError(
            "no model has this shape: products of its settings lie beyond 64 bits",
            where=source,
            likely="a damaged config.json",
            hint="copy the folder again",
        ) from error
    if weights.is_file() and weights.stat().st_size < n_bytes:
        raise ModelError(
            f"the weights do not fit the model: they are {n_bytes} bytes, their file has {weights.stat().st_size}",
            where=weights,
            likely="the file is cut short, or config.json is of another model",
            hint="copy the whole folder again",
        )
    return fresh(record, source)


def _load(root: str | Path, kind: str, fresh: Fresh) -> Any:  # noqa: ANN401 -- VQVAE or GPT
    folder = Path(root)
    record = read_json(folder / CONFIG)
    if not isinstance(record, dict) or record.get("model") != kind:
        found = record.get("model") if isinstance(record, dict) else None
        raise ModelError(
            f"expected a {kind}, found {found!r}", where=folder / CONFIG, hint=f"give the folder of a {kind}"
        )
    model = _fresh(record, folder, fresh)
    load_weights(model, folder / WEIGHTS)
    return model


Network = TypeVar("Network", VQVAE, GPT)


def _without_zeros(model: Network) -> Network:
    for weight in model.parameters():
        if weight.ndim >= 2 and not weight.any():
            nn.init.normal_(weight, std=weight[0].numel() ** -0.5)
    return model


def _fresh_vqvae(record: Mapping[str, Any], source: Path) -> VQVAE:
    return VQVAE(from_mapping(VQVAEConfig, {k: v for k, v in record.items() if k != "model"}, source))


@dataclass(frozen=True, kw_only=True)
class _Told:
    """Of a GPT's record: what the codes, the buttons and the frames decide."""

    n_codes: int
    grid: Triple
    code_dim: int | None = None
    actions: tuple[str, ...] = ()
    frames: Triple | None = None


def _fresh_gpt(record: Mapping[str, Any], source: Path) -> GPT:
    names = {field.name for field in fields(_Told)}
    told = from_mapping(_Told, {name: value for name, value in record.items() if name in names}, source)
    shape = {name: value for name, value in record.items() if name not in names | {"model"}}
    config = from_mapping(GPTConfig, shape, source)
    return GPT(
        config, n_codes=told.n_codes, grid=told.grid, code_dim=told.code_dim, actions=told.actions, frames=told.frames
    )
