"""Settings that every training has."""

# Without postponed annotations: the command line reads those of an inherited field, and knows them by value alone.

import math
from dataclasses import dataclass
from typing import Any

from vidbrain.config import to_mapping
from vidbrain.errors import ConfigError
from vidbrain.training.compiled import CompileMode
from vidbrain.training.precision import PrecisionName
from vidbrain.training.trackers import TrackerName


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """What every training has."""

    steps: int = 20_000
    """Optimiser steps."""
    batch_size: int = 32
    """Clips in a step, over all processes."""
    lr: float = 1e-3
    """Peak learning rate of AdamW; warm-up, then a cosine that ends with the steps."""
    warmup: int = 100
    """Steps of warm-up."""
    weight_decay: float = 0.01
    """Of AdamW, on matrices and kernels."""
    betas: tuple[float, float] = (0.9, 0.99)
    """Of AdamW."""
    clip_norm: float = 1.0
    """Longest gradient; 0 for no limit."""
    seed: int = 0
    """Of weights, order and chance."""
    precision: PrecisionName = "auto"
    """auto: bf16 on a GPU, fp32 on a CPU."""
    log_every: int = 20
    """Steps between rows of training numbers."""
    eval_every: int = 1000
    """Steps between evaluations on held-out recordings; there is always one at the first and at the last step."""
    eval_clips: int = 512
    """Held-out clips of an evaluation, at most."""
    checkpoint_every: int = 500
    """Steps between checkpoints."""
    micro_batch_size: int | None = None
    """Clips that a process takes at a time; gradients of the parts of a step are added up. By default all of its share
    of a step, or as many as fit in memory by the estimate."""
    compile: CompileMode = "off"
    """default: torch.compile, which needs a C++ compiler and minutes at the start. reduce-overhead: CUDA graphs, too,
    for tiny models on a GPU."""
    track: tuple[TrackerName, ...] = ()
    """Trackers that are told the rows of metrics.jsonl, offline, each where it is installed."""

    def __post_init__(self) -> None:
        check_seed(self.seed)
        for name in ("steps", "batch_size", "log_every", "eval_every", "eval_clips", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, not {getattr(self, name)}", where=name)
        if self.micro_batch_size is not None and self.micro_batch_size < 1:
            raise ConfigError(
                f"micro_batch_size must be at least 1, not {self.micro_batch_size}", where="micro_batch_size"
            )
        if not 0 < self.lr < math.inf:
            raise ConfigError(f"lr must be positive and finite, not {self.lr}", where="lr")
        for name in ("warmup", "weight_decay", "clip_norm"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"{name} must be finite and not negative, not {getattr(self, name)}", where=name)
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError(f"betas are two shares below 1, not {self.betas}", where="betas")

    def deciding(self) -> dict[str, Any]:
        """Return the settings that decide what comes out, but for rounding: a run is known by them."""
        how = ("checkpoint_every", "micro_batch_size", "compile", "track")
        return {name: value for name, value in to_mapping(self).items() if name not in how}


def check_seed(seed: int) -> None:
    """Refuse a seed that generators of torch do not take, or would take for another.

    Raises
    ------
    ConfigError
        Below 0 or beyond 2^63 - 1.
    """
    if not 0 <= seed < 2**63:
        raise ConfigError(f"a seed is between 0 and 2^63 - 1, not {seed}", where="seed")
