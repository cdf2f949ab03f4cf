"""Compare the clips a second of training with the original VideoGPT's step at the same sizes.

Usage: python tools/bench/train.py [--json docs/benchmarks/train.json] [--repeats 5] [--batch 4]

The original's step is written anew in plain torch (`original.py`, formulas and all): it encodes every clip again in
every step, materialises attention, keeps masks, runs blocks twice, makes a one-hot matrix of the codebook. Ours takes
codes that were encoded once, as `vidbrain train gpt` does. Both in float32 on the CPU, the same batch, AdamW on one
side and Adam on the other as each trains; steps alternate, medians are compared. A profile of each step by operator
says where the rest goes; a third column, ours with the study's formulas, says what is due to the presets.
"""

import argparse
import importlib.util
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from vidbrain.models.flops import count_gpt, count_vqvae
from vidbrain.models.gpt import GPT, GPTConfig
from vidbrain.models.vqvae import VQVAE, VQVAEConfig, to_float
from vidbrain.training.optim import adamw

CLIP, DOWNSAMPLE = (16, 64, 64), (4, 8, 8)
N_CODES, CODE_DIM, WIDTH, RES_LAYERS = 1024, 128, 240, 4
PATCH = (2, 4, 4)
WANTED = {48: 3.0, 192: 2.0, 576: 1.4, "vqvae": 1.2}

Step = Callable[[], None]


def load_original() -> Any:  # noqa: ANN401 -- a module
    path = Path(__file__).with_name("original.py")
    spec = importlib.util.spec_from_file_location("original", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def step_of(model: nn.Module, optimizer: torch.optim.Optimizer, loss_of: Callable[[], torch.Tensor]) -> Step:
    model.train()

    def step() -> None:
        loss = loss_of()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return step


def ours(model: GPT | VQVAE, loss_of: Callable[[], torch.Tensor]) -> Step:
    return step_of(model, adamw(model, lr=1e-4, weight_decay=0.01, betas=(0.9, 0.99)), loss_of)


def theirs(model: nn.Module, loss_of: Callable[[], torch.Tensor]) -> Step:
    trained = [p for p in model.parameters() if p.requires_grad]
    return step_of(model, torch.optim.Adam(trained, lr=1e-4), loss_of)


def gpt_steps(hidden: int, layers: int, batch: int, width: int) -> tuple[dict[str, Step], dict[str, int]]:
    """Steps of a GPT by name, and operations of ours on one clip."""
    torch.manual_seed(0)
    original = load_original()
    grid = tuple(n // d for n, d in zip(CLIP, DOWNSAMPLE, strict=True))
    video = torch.randint(256, (batch, *CLIP, 3), dtype=torch.uint8)
    vqvae = original.OriginalVQVAE(width, RES_LAYERS, DOWNSAMPLE, N_CODES, CODE_DIM)
    gpt = original.OriginalGPT(vqvae, hidden, layers, 4, grid, dropout=0.2, attention_dropout=0.3)
    with torch.no_grad():
        codes = vqvae.eval().encode(to_float(video))[1].int()
    shape = GPTConfig(hidden=hidden, n_layers=layers, n_heads=4)
    study = GPTConfig(
        hidden=hidden, n_layers=layers, n_heads=4, block="study", norm="study", positions="thirds",
        embedding="codebook", dropout=0.2, attention_dropout=0.3,
    )  # fmt: skip
    modern = GPT(shape, n_codes=N_CODES, grid=grid)
    faithful = GPT(study, n_codes=N_CODES, grid=grid, code_dim=CODE_DIM)
    faithful.set_codebook(vqvae.codebook.embeddings)
    steps = {
        "original": theirs(gpt, lambda: gpt(to_float(video))),
        "paper": ours(faithful, lambda: faithful(codes)),
        "modern": ours(modern, lambda: modern(codes)),
    }
    counted = count_gpt(modern)
    return steps, {"forward": counted.forward, "train": counted.train}


def vqvae_steps(batch: int, width: int) -> tuple[dict[str, Step], dict[str, int]]:
    """Steps of a VQ-VAE by name, and operations of ours, with the study's formulas, on one clip."""
    torch.manual_seed(0)
    original = load_original()
    video = torch.randint(256, (batch, *CLIP, 3), dtype=torch.uint8)
    model = original.OriginalVQVAE(width, RES_LAYERS, DOWNSAMPLE, N_CODES, CODE_DIM)
    shape = {"downsample": DOWNSAMPLE, "n_hidden": width, "n_res_layers": RES_LAYERS}
    paper = VQVAE(VQVAEConfig(**shape, network="study", linear_start=False, restart_sums=False))
    modern = VQVAE(VQVAEConfig(**shape, patch=PATCH))
    steps = {
        "original": theirs(model, lambda: model(to_float(video))),
        "paper": ours(paper, lambda: paper(video).loss),
        "modern": ours(modern, lambda: modern(video).loss),
    }
    counted = count_vqvae(paper, CLIP)
    return steps, {"forward": counted.forward, "train": counted.train}


def seconds_of(steps: dict[str, Step], repeats: int) -> dict[str, list[float]]:
    """Seconds of each step, in turn, so that a disturbance meets all of them."""
    for step in steps.values():
        step()
    found: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(repeats):
        for name, step in steps.items():
            began = time.perf_counter()
            step()
            found[name].append(time.perf_counter() - began)
    return found


def shares_of(step: Step, most: int = 6) -> dict[str, float]:
    """Operators that take most of a step, and their share of its CPU time."""
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        step()
    rows = sorted(seen.key_averages(), key=lambda row: -row.self_cpu_time_total)
    total = sum(row.self_cpu_time_total for row in rows)
    return {row.key: round(row.self_cpu_time_total / total, 3) for row in rows[:most]}


def measure(what: int | str, *, layers: int, batch: int, width: int, repeats: int) -> dict[str, Any]:
    """One row of the table: a GPT of `what` hidden channels, or the VQ-VAE."""
    made = vqvae_steps(batch, width) if what == "vqvae" else gpt_steps(int(what), layers, batch, width)
    steps, flops = made
    seconds = seconds_of(steps, repeats)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "what": what,
        "batch": batch,
        "seconds": seconds,
        "median_s": median,
        "clips_per_s": {name: batch / value for name, value in median.items()},
        "ratio": {name: median["original"] / value for name, value in median.items()},
        "wanted_ratio": WANTED.get(what),
        "flops_per_clip": flops,
        "profile": {name: shares_of(step) for name, step in steps.items()},
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hidden", type=int, nargs="*", default=[48, 192, 576])
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--width", type=int, default=WIDTH, help="channels of the VQ-VAE")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = []
    print(f"{'':<10} {'original':>9} {'paper':>9} {'modern':>9}  clips/s {'ratio':>7} {'wanted':>7}")
    for what in [*options.hidden, "vqvae"]:
        row = measure(what, layers=options.layers, batch=options.batch, width=options.width, repeats=options.repeats)
        rows.append(row)
        rates = " ".join(f"{rate:>9.3f}" for rate in row["clips_per_s"].values())
        # The VQ-VAE of the same formulas is compared; the GPT that `vidbrain train gpt` trains by default.
        ratio = row["ratio"]["paper" if what == "vqvae" else "modern"]
        print(f"{what!s:<10} {rates}          {ratio:>7.2f} {row['wanted_ratio'] or '':>7}", flush=True)
    record = {
        "command": "python tools/bench/train.py " + " ".join(sys.argv[1:]),
        "machine": {"cores": os.cpu_count(), "platform": platform.platform(), "python": platform.python_version()},
        "torch": torch.__version__,
        "threads": options.threads,
        "clip": CLIP,
        "downsample": DOWNSAMPLE,
        "layers": options.layers,
        "vqvae_width": options.width,
        "precision": "fp32",
        "repetitions": options.repeats,
        "rows": rows,
    }
    if options.json:
        options.json.write_text(json.dumps(record, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
