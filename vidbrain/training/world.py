"""Which training process this is, and on which device: read from what torchrun sets."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from typing import Literal

import torch
from torch import Tensor
from torch import distributed as dist

from vidbrain.errors import ConfigError
from vidbrain.models.processes import from_all_ranks, reduce_in_place
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
        For a GPU that is not there, or a device of another kind.
    """
    if name == "auto":
        name = f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"
    unknown = ConfigError(f"unknown device {name!r}", where="device", hint="use auto, cpu or cuda")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise unknown from error
    if device.type not in ("cpu", "cuda"):
        raise unknown
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
    return bool(reduced(torch.tensor(float(flag), device=meeting_device()), world, how="max"))


def smallest(value: int, world: World) -> int:
    """Smallest value of any process; all must ask."""
    return -int(reduced(torch.tensor(-value, device=meeting_device()), world, how="max"))


def united(values: Iterable[int], world: World) -> list[int]:
    """All values of all processes, each once, ascending; all must ask."""
    own = torch.tensor(sorted(set(values)), dtype=torch.int64, device=meeting_device())
    length = -smallest(-len(own), world)
    if length == 0:
        return []
    # Equal lengths are needed to meet: -1 fills up, values are not negative.
    filled = torch.nn.functional.pad(own, (0, length - len(own)), value=-1)
    return sorted({value for value in from_all_ranks(filled).tolist() if value >= 0})


def meeting_device() -> str:
    """Where tensors have to lie that processes exchange."""
    return "cuda" if dist.is_initialized() and dist.get_backend() == "nccl" else "cpu"


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
