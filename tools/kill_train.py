"""Kill trainings at random points, give the same command again, and compare with undisturbed ones.

Usage: python tools/kill_train.py DATA CODES WORK [--kills 3] [--seed 0] [--json FILE]

DATA are shards, CODES the codes of a VQ-VAE on them. WORK is removed first. A VQ-VAE and a GPT are trained without
disturbance, then the same commands with SIGKILL to the whole process group a random while after a random step, each
followed by the same command. Weights, moments of the optimiser, the place in the stream and the rows of every step
must be equal to the bit. A row holds the loss of one step: another batch, or another order of them, would change it.
"""

import argparse
import json
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

TIMED = {"seconds"}
"""Of a training state: wall seconds, which kills change."""
COMMON = {"device": "cpu", "batch-size": 8, "lr": 2e-3, "warmup": 8, "eval-clips": 16, "log-every": 1}
SETTINGS = {
    "vqvae": {
        "steps": 48,
        "eval-every": 20,
        "checkpoint-every": 7,
        "model.downsample": (4, 8, 8),
        "model.patch": (2, 8, 8),
        "model.n-hidden": 32,
        "model.n-res-layers": 1,
        "model.n-codes": 128,
        "model.code-dim": 16,
    },
    "gpt": {
        "steps": 120,
        "eval-every": 50,
        "checkpoint-every": 11,
        "model.hidden": 48,
        "model.n-layers": 2,
        "model.n-heads": 2,
        "model.dropout": 0.1,
    },
}
"""Settings by model. Both draw chance in every step: dead codes that restart, and dropout."""


def command(kind: str, source: Path, out: Path) -> list[str]:
    words = [sys.executable, "-m", "vidbrain", "train", kind, str(source), "--out", str(out)]
    for name, value in (COMMON | SETTINGS[kind]).items():
        words += [f"--{name}", *map(str, value if isinstance(value, tuple) else (value,))]
    return words


def rows(out: Path) -> list[dict[str, Any]]:
    """Whole rows of the metrics so far."""
    path = out / "metrics.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.is_file() else []
    return [json.loads(line) for line in lines]


def last_step(out: Path) -> int:
    return max((row["step"] for row in rows(out) if row["split"] == "train"), default=0)


def checkpoints(out: Path) -> list[Path]:
    return sorted((out / "checkpoints").glob("step-????????"))


def run_killed(kind: str, source: Path, out: Path, step: int, delay_s: float) -> dict[str, Any]:
    """Start or go on, and kill the process group `delay_s` after the row of a step is written."""
    process = subprocess.Popen(
        command(kind, source, out), start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while process.poll() is None and last_step(out) < step:
        time.sleep(0.005)
    time.sleep(delay_s)
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    status = process.wait()
    found = checkpoints(out)
    return {
        "drawn_step": step,
        "status": status,
        "steps_begun": last_step(out) + 1,
        "goes_on_after_step": int(found[-1].name.removeprefix("step-")) if found else 0,
    }


def run_whole(kind: str, source: Path, out: Path) -> None:
    subprocess.run(command(kind, source, out), check=True, stdout=subprocess.DEVNULL)


def unequal(a: object, b: object, name: str) -> list[str]:
    """Names of plain values and tensors that differ by a bit or more."""
    if isinstance(a, dict) and isinstance(b, dict):
        both = [key for key in a if key in b and key not in TIMED]
        return [f"{name}/{key}" for key in a.keys() ^ b.keys()] + [
            found for key in both for found in unequal(a[key], b[key], f"{name}/{key}")
        ]
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)) and len(a) == len(b):
        return [found for i, pair in enumerate(zip(a, b, strict=True)) for found in unequal(*pair, f"{name}/{i}")]
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        same = a.dtype == b.dtype and a.shape == b.shape
        return [] if same and a.numpy().tobytes() == b.numpy().tobytes() else [name]
    return [] if type(a) is type(b) and a == b else [name]


def state_of(folder: Path) -> dict[str, Any]:
    state = torch.load(folder / "state.pt", weights_only=True)
    return {"weights": load_file(folder / "model.safetensors"), **state}


def compare(whole: Path, killed: Path) -> dict[str, Any]:
    """What differs between two finished trainings."""
    names = [path.name for path in checkpoints(whole)]
    differing = [] if names == [path.name for path in checkpoints(killed)] else ["checkpoints"]
    values = 0
    for part in ("", "best"):
        a, b = (load_file(root / part / "model.safetensors") for root in (whole, killed))
        differing += unequal(a, b, part or "model")
        values += sum(tensor.numel() for tensor in a.values())
    for name in [] if differing else names:
        differing += unequal(*(state_of(root / "checkpoints" / name) for root in (whole, killed)), name)
    a, b = rows(whole), rows(killed)
    steps = [i for i, pair in enumerate(zip(a, b, strict=False)) if pair[0] != pair[1]]
    return {
        "values_compared": values,
        "states_compared": names,
        "differing": differing,
        "rows_compared": len(a),
        "rows_differing": steps + list(range(min(len(a), len(b)), max(len(a), len(b)))),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("codes", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    shutil.rmtree(options.work, ignore_errors=True)
    rng, found, bad = random.Random(options.seed), {}, False
    for kind, source in (("vqvae", options.data), ("gpt", options.codes)):
        whole, killed = options.work / kind / "whole", options.work / kind / "killed"
        began = time.perf_counter()
        run_whole(kind, source, whole)
        n_steps = last_step(whole)
        step_s = (time.perf_counter() - began) / n_steps
        kills = []
        for step in sorted(rng.sample(range(1, n_steps), options.kills)):
            kills.append(run_killed(kind, source, killed, step, rng.uniform(0, step_s)))
            print(f"{kind}: kill {len(kills)}: {kills[-1]}", flush=True)
        run_whole(kind, source, killed)
        told = command(kind, Path("DATA" if kind == "vqvae" else "CODES"), Path("WORK", kind, killed.name))
        found[kind] = {"command": " ".join(["vidbrain", *told[3:]]), "kills": kills} | compare(whole, killed)
        result = found[kind]
        bad |= bool(result["differing"] or result["rows_differing"]) or any(k["status"] != -9 for k in kills)
        print(
            f"{kind}: {result['values_compared']} values and {result['rows_compared']} rows compared, "
            f"{len(result['differing'])} and {len(result['rows_differing'])} differ",
            *result["differing"][:20],
            sep="\n  ",
        )
    if options.json:
        record = {
            "command": f"python tools/kill_train.py DATA CODES WORK --seed {options.seed}",
            "machine": {"cores": os.cpu_count(), "platform": platform.platform(), "python": platform.python_version()},
            "torch": torch.__version__,
            "trainings": found,
        }
        options.json.write_text(json.dumps(record, indent=2) + "\n")
    return int(bad)


if __name__ == "__main__":
    sys.exit(main())
