"""What a loader is told: each setting is refused by its name before any work, or becomes a plain value."""

from __future__ import annotations

import os
from numbers import Real
from typing import Any, Literal

import numpy as np
import torch

from vidbrain.errors import ConfigError
from vidbrain.records import World, whole_number

OnBad = Literal["error", "substitute"]
Workers = int | Literal["auto"]


def check_workers(workers: Any) -> Workers:  # noqa: ANN401 -- what a user gave
    """Give a number of threads, or ``"auto"``.

    Raises
    ------
    ConfigError
        If it is neither.
    """
    refusal = ConfigError(f"workers is 'auto' or at least 1, not {workers!r}", where="workers")
    if isinstance(workers, str):
        if workers != "auto":
            raise refusal
        return "auto"
    try:
        n_threads = whole_number(workers, "workers")
    except ConfigError:
        raise refusal from None
    if n_threads < 1:
        raise refusal
    return n_threads


def check_flag(value: Any, name: str) -> bool:  # noqa: ANN401 -- what a user gave
    """Give a truth value: a number or a text is none.

    Raises
    ------
    ConfigError
        If it is something else.
    """
    if not isinstance(value, bool | np.bool_):
        raise ConfigError(f"{name} is True or False, not {value!r}", where=name)
    return bool(value)


def check_real(value: Any, name: str, *, least: float, most: float) -> float:  # noqa: ANN401 -- what a user gave
    """Give a number between two others, both included.

    Raises
    ------
    ConfigError
        If it is none, or outside.
    """
    if isinstance(value, bool) or not isinstance(value, Real) or not least <= float(value) <= most:
        raise ConfigError(f"{name} is a number from {least:g} to {most:g}, not {value!r}", where=name)
    return float(value)


def check_device(device: Any) -> torch.device | None:  # noqa: ANN401 -- what a user gave
    """Give the device that batches go to; None leaves arrays.

    Raises
    ------
    ConfigError
        If torch knows no such device, or it is a GPU that is not there.
    """
    if device is None:
        return None
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError, ValueError):
        raise ConfigError(f"unknown device {device!r}", where="device", hint="use cpu, cuda, or None") from None
    n_devices = torch.cuda.device_count() if found.type == "cuda" else 1
    if found.type == "cuda" and (found.index or 0) >= n_devices:
        raise ConfigError(
            f"there is no {found} here: torch can use {n_devices} GPUs",
            where="device",
            hint="use another device, or 'cpu', or None for arrays",
        )
    return found


def check_world_given(world: World | None) -> World:
    """Give this process's place among the training processes: as given, else what torchrun says, else alone.

    Raises
    ------
    ConfigError
        If it is no `World`, or ``RANK`` and ``WORLD_SIZE`` in the environment name none.
    """
    if world is not None:
        if not isinstance(world, World):
            raise ConfigError(f"world is a World(rank, size), not {world!r}", where="world")
        return world
    try:
        rank, size = (None if text is None else int(text) for text in map(os.environ.get, ("RANK", "WORLD_SIZE")))
    except ValueError:
        raise ConfigError("RANK and WORLD_SIZE in the environment are not numbers", hint="give world=World()") from None
    if rank is None and size not in (None, 1):
        raise ConfigError(
            f"the environment says WORLD_SIZE={size}, and no RANK",
            likely="the processes were not started by torchrun",
            hint="set RANK too, or give world=World(rank, size)",
        )
    return World(rank or 0, 1 if size is None else size)
