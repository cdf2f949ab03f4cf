"""AdamW, and a learning rate that is a pure function of the step."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import nn


def adamw(
    model: nn.Module,
    *,
    lr: float,
    weight_decay: float,
    betas: tuple[float, float],
    lr_scales: Mapping[str, float] | None = None,
) -> torch.optim.AdamW:
    """AdamW that decays matrices and kernels only, not norms, biases and single vectors.

    Parameters
    ----------
    model
        Its parameters are trained.
    lr, weight_decay, betas
        Of AdamW.
    lr_scales
        Factor of the rate by name of parameter, 1 for those not named. The decay of a scaled group is divided by its
        factor, so that rate times decay, which is what shrinks weights in a step, does not depend on the width.

    Returns
    -------
    AdamW
        Each group says its factor as ``lr_scale``; see `set_lr`.
    """
    scales = lr_scales or {}
    groups: dict[tuple[bool, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((parameter.ndim >= 2, scales.get(name, 1.0)), []).append(parameter)
    rows = [
        {"params": members, "weight_decay": weight_decay / scale if decays else 0.0, "lr_scale": scale}
        for (decays, scale), members in sorted(groups.items(), key=lambda row: row[0], reverse=True)
    ]
    return torch.optim.AdamW(rows, lr=lr, betas=betas, fused=True)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every group the rate, times the group's own factor."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]


def lr_factor(step: int, *, steps: int, warmup: int, floor: float = 0.02) -> float:
    """Share of the peak learning rate at a step: linear warm-up, then a cosine that ends at `floor` with the steps.

    Parameters
    ----------
    step
        Counted from 0.
    steps, warmup
        Whole length, and the part of it that warms up.
    floor
        Share at the end.
    """
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
