"""Which training process this is, and on which device: read from what torchrun sets."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor
from torch import distributed as dist

from vidbrain.errors import ConfigError
from vidbrain.models.processes import reduce_in_place
from vidbrain.records import World


@contextlib.contextmanager
def joined() -> Iterator[World]:
    """Join the other processes of torchrun for the duration of the block; alone without torchrun."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield World()
        return
    own = not dist.is_initialized()
    if own:
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield World(dist.get_rank(), dist.get_world_size())
    finally:
        if own:
            dist.destroy_process_group()


def pick_device(name: str) -> torch.device:
    """``auto`` is this process's GPU, or the CPU where there is none.

    Raises
    ------
    ConfigError
        For a GPU that is not there, or an unknown device.
    """
    if name == "auto":
        name = f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"unknown device {name!r}", where="device", hint="use auto, cpu or cuda") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError("there is no GPU that torch can use", where="device", hint="use --device cpu, or auto")
    return device


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Run many tiny operations on one core: threads that wait for each other at every one of them only lose time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def any_process(flag: bool, world: World) -> bool:
    """Whether the flag is set in any process; all processes must ask."""
    if world.size == 1:
        return flag
    on_gpu = dist.get_backend() == "nccl"
    return bool(reduced(torch.tensor(float(flag), device="cuda" if on_gpu else "cpu"), world, how="max"))


def reduced(value: Tensor, world: World, *, how: Literal["sum", "max"]) -> Tensor:
    """Sum or maximum of a value over the processes; all must ask."""
    if world.size > 1:
        value = value.clone()
        reduce_in_place(value, dist.ReduceOp.SUM if how == "sum" else dist.ReduceOp.MAX)
    return value


def wait_for_all(world: World) -> None:
    """Return when every process has come here."""
    if world.size > 1:
        dist.barrier()
