"""Sums, copies and collections over training processes; alone, values are given back as they are.

A thread of gloo's holds the tensors of a collective a little longer than the call lasts. If the process ends meanwhile,
it needs an interpreter that is going away to let go of them, and aborts ("terminate called without an active
exception", pytorch/pytorch #179291). So each call here returns when nobody else holds its tensors any more.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch import distributed as dist

PATIENCE_S = 5.0


def reduce_in_place(values: Tensor, op: dist.ReduceOp.RedOpType = dist.ReduceOp.SUM) -> None:
    """Sum values (or another operation) over all processes, in place; all must ask."""
    if dist.is_initialized():
        _together([values], lambda: dist.all_reduce(values, op=op))


def from_all_ranks(values: Tensor) -> Tensor:
    """Concatenate the values of all training processes, of equal shapes, along the first axis."""
    if not dist.is_initialized():
        return values
    values = values.contiguous()
    parts = [torch.empty_like(values) for _ in range(dist.get_world_size())]
    _together([values, *parts], lambda: dist.all_gather(parts, values))
    return torch.cat(parts)


def from_first_rank(values: Tensor) -> Tensor:
    """Return the first process's values in every process (in training with several; else the values themselves)."""
    if dist.is_initialized():
        values = values.contiguous()
        _together([values], lambda: dist.broadcast(values, src=0))
    return values


def rows_of_all_ranks(values: Tensor, rows: Tensor) -> Tensor:
    """Rows of what `from_all_ranks` would give, without giving the rest: the same `rows` (N,) in every process."""
    if not dist.is_initialized():
        return values[rows]
    own = rows - dist.get_rank() * len(values)
    here = (own >= 0) & (own < len(values))
    found = torch.where(here[:, None], values[own.clamp(0, len(values) - 1)], 0.0)
    reduce_in_place(found)
    return found


def _together(tensors: Sequence[Tensor], call: Callable[[], object]) -> None:
    """Make a call, and wait until the tensors have no more holders than before."""
    holders = [tensor._use_count() for tensor in tensors]  # type: ignore[attr-defined]
    call()
    if tensors[0].device.type != "cpu":
        return
    until = time.monotonic() + PATIENCE_S
    while any(tensor._use_count() > n for tensor, n in zip(tensors, holders, strict=True)):  # type: ignore[attr-defined]
        if time.monotonic() > until:
            return
        time.sleep(0)
