"""What a training costs: operations, rates, share of the device's peak, memory, energy; and whether it fits."""

from __future__ import annotations

import math
import os
import resource
import sys
import time
from dataclasses import dataclass, replace
from typing import Any

import torch

from vidbrain.errors import ModelError
from vidbrain.training.energy import EnergyMeter

PEAKS: dict[str, dict[str, float]] = {
    "H200": {"bf16": 989e12, "fp16": 989e12, "tf32": 494e12, "fp32": 67e12},
    "H100": {"bf16": 989e12, "fp16": 989e12, "tf32": 494e12, "fp32": 67e12},
    "A100": {"bf16": 312e12, "fp16": 312e12, "tf32": 156e12, "fp32": 19.5e12},
    "V100": {"fp16": 125e12, "fp32": 15.7e12},
}
"""Dense operations a second that makers state for the large form of each GPU, by precision."""

STATE_BYTES = 16
"""Of each parameter: weight, gradient and two moments, in float32."""

ROOMY = 0.8
"""Share of the free memory that a chosen part of a batch may take by the estimate, which is one from below."""


@dataclass(frozen=True)
class ClipCost:
    """What one clip costs in training.

    Attributes
    ----------
    forward, forward_causal
        Analytic operations of a forward pass (`vidbrain.models.flops`).
    train
        Operations of forward and backward pass, counted.
    saved_bytes
        What the forward pass keeps for the backward pass, in float32.
    tokens
        Codes of a clip.
    """

    forward: int
    forward_causal: int
    train: int
    saved_bytes: int
    tokens: int

    @property
    def train_causal(self) -> int:
        """Operations of forward and backward pass, less the scores that a causal mask hides (thrice, as they are)."""
        return self.train - 3 * (self.forward - self.forward_causal)


def peak_of(device: torch.device, precision: str) -> tuple[float | None, str | None]:
    """Return the device's stated operations a second, or None and the reason."""
    if device.type != "cuda":
        return None, "the peak of a CPU is not stated"
    name = torch.cuda.get_device_name(device)
    for known, peaks in PEAKS.items():
        if known in name and precision in peaks:
            return peaks[precision], None
    return None, f"the peak of {name} in {precision} is not known here"


class CostMeter:
    """Measures one call of a training, from where it is made.

    Parameters
    ----------
    device
        Of this process.
    precision
        Name of the arm.
    clip
        What one clip costs.
    """

    def __init__(self, device: torch.device, precision: str, clip: ClipCost) -> None:
        self._device, self._precision, self._clip = device, precision, clip
        self._energy = EnergyMeter(device)
        self._began = time.perf_counter()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)

    def report(self, *, clips: int, clips_per_s: float, stall_share: float, processes: int) -> dict[str, Any]:
        """Return the cost of the call so far.

        Parameters
        ----------
        clips
            Trained on in this call, over all processes.
        clips_per_s
            Over all processes.
        stall_share
            Share of the time spent waiting for data.
        processes
            Devices that trained.
        """
        clip = self._clip
        peak, reason = peak_of(self._device, self._precision)
        on_gpu = self._device.type == "cuda"
        return {
            "convention": "2 operations a multiply-add; causal: masked scores left out; never 6ND; this call alone",
            "flops_per_clip": {
                "forward": clip.forward,
                "forward_causal": clip.forward_causal,
                "train_counted": clip.train,
                "train_causal": clip.train_causal,
            },
            "flops_causal": clips * clip.train_causal,
            "clips": clips,
            "wall_s": round(time.perf_counter() - self._began, 3),
            "clips_per_s": round(clips_per_s, 3),
            "tokens_per_s": round(clips_per_s * clip.tokens, 1),
            "stall_share": round(stall_share, 4),
            "mfu_causal": None if peak is None else clips_per_s * clip.train_causal / (peak * processes),
            "mfu_peak": peak,
            "mfu_reason": reason,
            "peak_memory_bytes": torch.cuda.max_memory_allocated(self._device) if on_gpu else _peak_rss(),
            "peak_memory_of": "tensors on the GPU" if on_gpu else "this process since it began",
            **self._energy.report(),
        }


def _peak_rss() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


@dataclass(frozen=True)
class Room:
    """Whether a batch fits in memory, estimated before the start.

    Attributes
    ----------
    free_bytes
        What the device can still give.
    state_bytes
        Weights, gradients and moments.
    clip_bytes
        What the backward pass needs of each clip; in 16 bits up to half less, which is not counted on.
    """

    free_bytes: int
    state_bytes: int
    clip_bytes: int

    @property
    def largest(self) -> int:
        """Clips a process that fit, 0 where not even the model does."""
        return max(0, (self.free_bytes - self.state_bytes) // max(1, self.clip_bytes))

    def micro_batch(self, share: int, *, asked: int | None = None, before: int | None = None) -> int:
        """Choose how many clips a process takes at a time.

        All of its share of a step where that may fit; else equal parts that leave a fifth of the memory free for what
        the estimate does not see.

        Parameters
        ----------
        share
            Clips of a step that a process has.
        asked
            By the user.
        before
            In the part of this training that is done: the same again, where it may fit, for the same sums.

        Raises
        ------
        ModelError
            If not even one clip fits, or not as many as the user asks for.
        """
        if not self.largest:
            raise self.error("not even one clip fits in memory")
        if asked is not None and asked > self.largest:
            raise self.error(f"{asked} clips at a time do not fit in memory")
        wanted = asked or (before if before and before <= self.largest else None)
        if wanted or share <= self.largest:
            return min(wanted or share, share)
        roomy = replace(self, free_bytes=int(ROOMY * self.free_bytes)).largest or 1
        return math.ceil(share / math.ceil(share / roomy))

    def error(self, message: str, *, fewer_than: int | None = None) -> ModelError:
        """Make the error of clips that do not fit; they are to be `fewer_than` what was tried."""
        needed = f"{self.state_bytes / 1e9:.2f} GB for the model and {self.clip_bytes / 1e9:.3f} GB a clip"
        largest = self.largest if fewer_than is None else min(self.largest, fewer_than // 2)
        return ModelError(
            message,
            where="micro_batch_size",
            likely=f"{self.free_bytes / 1e9:.2f} GB are free; estimated need {needed}",
            hint=f"use --micro-batch-size {largest} or less: steps stay the same"
            if largest
            else "use a smaller model or another device",
        )


def room_of(device: torch.device, n_parameters: int, clip: ClipCost) -> Room:
    """Ask the device how much memory it has for a training."""
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else free_host_bytes()
    return Room(free, STATE_BYTES * n_parameters, clip.saved_bytes)


def ran_out(error: RuntimeError) -> bool:
    """Whether an error of torch says that there is no memory left: of a GPU by its type, of the host by its words."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def free_host_bytes() -> int:
    """Memory that this machine can still give, in bytes."""
    try:
        with open("/proc/meminfo", encoding="ascii") as table:  # noqa: PTH123 -- a kernel table, not a document
            rows = dict(line.split(":", 1) for line in table)
        return int(rows["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
