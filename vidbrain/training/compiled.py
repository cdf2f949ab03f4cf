"""torch.compile of the training step, where it is asked for: the only place that names it."""

from __future__ import annotations

import warnings
from typing import Literal

import torch
from torch import Tensor, nn

from vidbrain.errors import ConfigError, ModelError
from vidbrain.models.codebook import Codebook
from vidbrain.models.vqvae import VQVAE

CompileMode = Literal["off", "default", "reduce-overhead"]


def check(mode: CompileMode, device: torch.device) -> None:
    """Compile a tiny function, so that a machine that cannot is found out before work starts.

    Raises
    ------
    ConfigError
        For CUDA graphs without a GPU, or where the compiler fails.
    """
    if mode == "off":
        return
    if mode == "reduce-overhead" and device.type != "cuda":
        raise ConfigError("CUDA graphs need a GPU", where="compile", hint="use --compile default, or leave it out")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch about its own modules, which are imported now
            torch.compile(_probe)(torch.ones(8, device=device))
    except Exception as error:  # whatever the compiler behind it meets
        raise ConfigError(
            f"torch.compile does not work here: {_first_line(error)}",
            where="compile",
            likely="there is no C++ compiler" if device.type == "cpu" else "there is no C++ compiler, or no Triton",
            hint="install g++, or leave --compile out: the result is the same but for rounding",
        ) from error


def compiled(model: nn.Module, mode: CompileMode) -> nn.Module:
    """Return what computes a training step of the model; names and weights stay the model's own.

    The codebook and the start are left as they are: they decide by values and speak with other processes.
    """
    if mode == "off":
        return model
    for module in model.modules():
        if isinstance(module, Codebook):
            module.forward = torch.compiler.disable(module.forward)  # type: ignore[method-assign]
        if isinstance(module, VQVAE):
            module.start_if_fresh = torch.compiler.disable(module.start_if_fresh)  # type: ignore[method-assign]
    # Shapes are few: whole parts of a batch, and its last one.
    return torch.compile(model, mode=mode, dynamic=False)  # type: ignore[return-value]  # a module for a module


def compile_error(error: RuntimeError) -> ModelError | None:
    """Make the error of a model that cannot be compiled; None for any other error."""
    from torch._dynamo.exc import TorchDynamoException

    if not isinstance(error, TorchDynamoException):
        return None
    return ModelError(
        f"the model cannot be compiled: {_first_line(error)}", where="compile", hint="leave --compile out"
    )


def _probe(x: Tensor) -> Tensor:
    return (x * 2 + 1).sin()


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:200] if lines else type(error).__name__
