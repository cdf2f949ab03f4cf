"""Measure training on a GPU by width, depth, heads and precision: clips a second, share of the peak, memory, energy.

Usage: python tools/bench/gpu.py [--json docs/benchmarks/gpu.json] [--seconds 10] [--only widths layers heads vqvae]

Steps run on codes and clips that lie on the device, on the study's grid of 4 x 8 x 8 codes, with and without CUDA
graphs; windows last at least `--seconds`, for the energy counter refreshes slowly. Stall shares are measured by
`vidbrain train` itself, in its summary. Without a GPU it says so and measures nothing, unless `--device cpu` asks for
a rehearsal at sizes given by `--hidden`, whose figures say that they are of a CPU.
"""

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vidbrain.errors import ConfigError, ModelError
from vidbrain.models.flops import count_gpt, count_vqvae, gpt_flops, vqvae_flops
from vidbrain.models.gpt import GPT, GPTConfig
from vidbrain.models.presets import PAPER_VQVAE
from vidbrain.models.vqvae import VQVAE, VQVAEConfig
from vidbrain.training import precision
from vidbrain.training.cost import ClipCost, peak_of, room_of
from vidbrain.training.energy import EnergyMeter
from vidbrain.training.optim import adamw

N_CODES, GRID, CLIP = 1024, (4, 8, 8), (16, 128, 128)
HIDDEN, LAYERS, HEADS = (6, 30, 126, 576, 1024), (1, 2, 4, 8, 16), (1, 2, 4, 8)
ARMS: tuple[precision.PrecisionName, ...] = ("fp32", "tf32", "fp16", "bf16")
GRAPHED_WIDTH = 192
"""Up to this width steps are bound by launches: they are measured in a CUDA graph, too."""


def cells(hidden: tuple[int, ...], only: list[str]) -> Iterator[tuple[str, GPTConfig]]:
    """Shapes of the sweep: each axis by itself, the others at the study's baseline."""
    base = GPTConfig()
    if "widths" in only:
        for width in hidden:
            heads = max(n for n in (1, 2, 4) if width % n == 0)
            yield f"hidden {width}", replace(base, hidden=width, n_heads=heads)
    if "layers" in only:
        for n in LAYERS:
            yield f"layers {n}", replace(base, n_layers=n)
    if "heads" in only:
        for n in HEADS:
            yield f"heads {n}", replace(base, n_heads=n)


Batches = Callable[[int], tuple[torch.Tensor, ...]]
"""Makes the inputs of a step of so many clips."""


def gpt_case(config: GPTConfig, device: torch.device) -> tuple[GPT, Batches, ClipCost]:
    """A GPT, its batches, and the cost of a clip."""
    torch.manual_seed(0)
    model = GPT(config, n_codes=N_CODES, grid=GRID)
    flops, counted = gpt_flops(model), count_gpt(model)
    cost = ClipCost(flops.dense, flops.causal, counted.train, counted.saved_bytes, model.n_tokens)
    return model.to(device), lambda n: (torch.randint(N_CODES, (n, *GRID), device=device, dtype=torch.int32),), cost


def vqvae_case(
    config: VQVAEConfig, clip: tuple[int, int, int], device: torch.device
) -> tuple[VQVAE, Batches, ClipCost]:
    """A VQ-VAE, its batches, and the cost of a clip."""
    torch.manual_seed(0)
    model = VQVAE(config)
    flops, counted = vqvae_flops(config, clip), count_vqvae(model, clip)
    tokens = int(torch.tensor(config.latent_grid(*clip)).prod())
    cost = ClipCost(flops.dense, flops.causal, counted.train, counted.saved_bytes, tokens)
    video = torch.randint(256, (1, *clip, 3), dtype=torch.uint8, device=device)
    return model.to(device), lambda n: (video.expand(n, -1, -1, -1, -1).contiguous(),), cost


def training_step(model: GPT | VQVAE, arm: precision.Precision, inputs: tuple[torch.Tensor, ...]) -> Callable[[], None]:
    """One step on inputs that stay where they are."""
    optimizer = adamw(model, lr=1e-4, weight_decay=0.01, betas=(0.9, 0.99), lr_scales=model.lr_scales())
    scaler = arm.scaler()

    def step() -> None:
        with arm.products():
            whole()

    def whole() -> None:
        with arm.autocast():
            output = model(*inputs)
        loss = output if isinstance(output, torch.Tensor) else output.loss
        optimizer.zero_grad(set_to_none=True)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()

    return step


def graphed(model: GPT, arm: precision.Precision, inputs: tuple[torch.Tensor, ...]) -> Callable[[], None]:
    """The same step of a GPT, without clipping or scaler, launched as one CUDA graph."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True, capturable=True)

    def step() -> None:
        with arm.autocast():
            loss = model(*inputs)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with arm.products(), torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    optimizer.zero_grad(set_to_none=True)
    with arm.products(), torch.cuda.graph(graph):
        step()
    return graph.replay


def measure(
    step: Callable[[], None], batch: int, cost: ClipCost, device: torch.device, arm: str, seconds: float
) -> dict[str, Any]:
    """Run a step for so many seconds, after a warm-up."""
    on_gpu = device.type == "cuda"
    for _ in range(3):
        step()
    if on_gpu:
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    energy, steps, began = EnergyMeter(device), 0, time.perf_counter()
    while time.perf_counter() - began < seconds or not steps:
        for _ in range(10 if on_gpu else 1):
            step()
            steps += 1
        if on_gpu:
            torch.cuda.synchronize(device)
    took = time.perf_counter() - began
    rate = steps * batch / took
    peak, reason = peak_of(device, arm)
    used = energy.report()
    joules = used["energy_j"]
    return {
        "batch": batch,
        "steps": steps,
        "seconds": took,
        "clips_per_s": rate,
        "step_ms": took / steps * 1e3,
        "flops_per_clip": {"train_counted": cost.train, "train_causal": cost.train_causal},
        "mfu_causal": None if peak is None else rate * cost.train_causal / peak,
        "mfu_reason": reason,
        "peak_memory_bytes": torch.cuda.max_memory_allocated(device) if on_gpu else None,
        "joules_per_clip": None if joules is None else joules / (steps * batch),
        **used,
    }


def batch_for(model: nn.Module, cost: ClipCost, device: torch.device, most: int) -> int:
    """Clips of a step: as many as fit in half of the memory, a power of two, `most` at most."""
    room = room_of(device, sum(p.numel() for p in model.parameters()), cost)
    return min(most, 1 << max(0, (room.largest // 2).bit_length() - 1))


def run(options: argparse.Namespace, device: torch.device) -> list[dict[str, Any]]:
    """All rows of the table; what cannot be measured stays in it, with the reason."""
    cases: list[tuple[str, Callable[[], Any]]] = [
        (name, lambda config=config: gpt_case(config, device)) for name, config in cells(options.hidden, options.only)
    ]
    if "vqvae" in options.only:
        shape = replace(PAPER_VQVAE, n_hidden=options.width)
        cases.append(("vqvae", lambda: vqvae_case(shape, CLIP, device)))
    rows: list[dict[str, Any]] = []
    for name, make in cases:
        for arm_name in options.precision:
            row: dict[str, Any] = {"what": name, "precision": arm_name}
            try:
                arm = precision.resolve(arm_name, device)
                row["precision_error"] = precision.self_test(arm)
                model, inputs_of, cost = make()
                batch = batch_for(model, cost, device, options.batch)
                inputs = inputs_of(batch)
                step = training_step(model.train(), arm, inputs)
                row |= measure(step, batch, cost, device, arm_name, options.seconds)
                small = isinstance(model, GPT) and model.config.hidden <= GRAPHED_WIDTH
                if small and device.type == "cuda" and arm_name != "fp16":
                    replay = graphed(model, arm, inputs)
                    row["cuda_graph"] = measure(replay, batch, cost, device, arm_name, options.seconds)
            except (ConfigError, ModelError, torch.OutOfMemoryError) as error:
                row["reason"] = str(error).splitlines()[0]
            rows.append(row)
            rate, mfu = row.get("clips_per_s"), row.get("mfu_causal")
            shown = row.get("reason") or f"{rate:>12.1f} clips/s"
            print(f"{name:<14}{arm_name:<6}{shown}" + (f"  {mfu:.1%} of the peak" if mfu else ""), flush=True)
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--only", nargs="*", default=["widths", "layers", "heads", "vqvae"])
    parser.add_argument("--hidden", type=int, nargs="*", default=HIDDEN)
    parser.add_argument("--precision", nargs="*", default=ARMS, choices=ARMS)
    parser.add_argument("--batch", type=int, default=512, help="clips of a step, at most")
    parser.add_argument("--width", type=int, default=240, help="channels of the VQ-VAE")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    options.hidden = tuple(options.hidden)
    if options.device == "cuda" and not torch.cuda.is_available():
        print("there is no GPU that torch can use: nothing is measured")
        return 1
    device = torch.device(options.device)
    on_gpu = device.type == "cuda"
    torch.backends.cudnn.benchmark = True
    record = {
        "command": "python tools/bench/gpu.py " + " ".join(sys.argv[1:]),
        "machine": {"cores": os.cpu_count(), "platform": platform.platform(), "python": platform.python_version()},
        "device": torch.cuda.get_device_name(device) if on_gpu else "cpu",
        "torch": torch.__version__,
        "cudnn": torch.backends.cudnn.version() if on_gpu else None,
        "rows": run(options, device),
    }
    if options.json:
        options.json.write_text(json.dumps(record, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
