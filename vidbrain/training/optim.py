"""AdamW, and a learning rate that is a pure function of the step."""

from __future__ import annotations

import math

import torch
from torch import nn


def adamw(model: nn.Module, *, lr: float, weight_decay: float, betas: tuple[float, float]) -> torch.optim.AdamW:
    """AdamW that decays matrices and kernels only, not norms, biases and single vectors."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=lr, betas=betas, fused=True)


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
