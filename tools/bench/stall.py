"""What share of a training on this CPU is spent waiting for data that lie in object storage? Issue 4, show 8.

Usage: python tools/bench/stall.py [DATA] [--steps 150] [--json docs/benchmarks/stall.json]

DATA is a data set of frames; without it one is made of moving shapes, 64 pixels wide. It is put on an S3 server on this
machine's loopback. Then `vidbrain train vqvae` streams from there with an empty cache, and `vidbrain train gpt` trains
from a data set of codes at the server. The stall share is what `summary.json` says of each: seconds in which the loop
waited for a batch, the first of all among them, by seconds from asking for the first batch to the end of the last
step. Start-up (imports, opening the data set, a GPT's loading of all codes) is not in it, and is said apart.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from vidbrain.sharding.plan import ShardConfig
from vidbrain.sharding.writer import write_shards
from vidbrain.storage.trees import upload_tree
from vidbrain.testing.servers import moto_server
from vidbrain.testing.videos import toy_frames, write_video

BUCKET = "bench"
LIMIT = 0.02
VQVAE = ["--batch-size", "8", "--model.patch", "2", "4", "4", "--model.n-hidden", "64", "--model.n-codes", "256"]
GPT = ["--batch-size", "16", "--model.hidden", "96", "--model.n-layers", "4"]


def toy_data(root: Path) -> Path:
    """Shards of moving shapes: 12 recordings of 40 seconds."""
    for seed in range(12):
        write_video(root / "videos" / f"toy-{seed}.mp4", toy_frames(2400, height=64, seed=seed))
    write_shards(root / "videos", root / "data", ShardConfig(frame_size=64, shard_frames=4096))
    return root / "data"


def trained(what: str, source: str, out: Path, words: list[str], environment: dict[str, str]) -> dict[str, Any]:
    """Train by the command, in a process of its own, and return what its summary says of waiting."""
    began = time.perf_counter()
    command = [sys.executable, "-m", "vidbrain", "train", what, source, "--out", str(out), "--device", "cpu", *words]
    subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=True)
    wall_s = time.perf_counter() - began
    summary = json.loads((out / "summary.json").read_text())
    return {
        "command": f"vidbrain train {what} {source} --device cpu {' '.join(words)}",
        "stall_share": summary["stall_share"],
        "steps": summary["steps"],
        "batch_size": summary["clips_seen"] // summary["steps"],
        "n_parameters": summary["n_parameters"],
        "loop_s": summary["seconds"],
        "start_up_s": round(wall_s - summary["seconds"], 2),
        "threads": summary["threads"],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, moto_server(BUCKET) as server:
        work = Path(folder)
        os.environ.update(server.environment())
        data = options.data or toy_data(work)
        upload_tree(data, f"s3://{BUCKET}/data")
        # The cache lies in the home folder: an empty one, so that every shard comes from the server.
        environment = os.environ | {"HOME": str(work / "home")}
        often = ["--steps", str(options.steps), "--eval-every", str(options.steps), "--eval-clips", "16"]
        rows = {"vqvae": trained("vqvae", f"s3://{BUCKET}/data", work / "vqvae", [*VQVAE, *often], environment)}
        tokenize = ["tokenize", str(data), "--vqvae", str(work / "vqvae"), "--out", str(work / "codes")]
        subprocess.run([sys.executable, "-m", "vidbrain", *tokenize], stdout=subprocess.DEVNULL, check=True)
        upload_tree(work / "codes", f"s3://{BUCKET}/codes")
        rows["gpt"] = trained("gpt", f"s3://{BUCKET}/codes", work / "gpt", [*GPT, *often], environment)
    record = {
        "command": "python tools/bench/stall.py " + " ".join(sys.argv[1:]),
        "machine": {"cores": os.cpu_count(), "platform": platform.platform(), "python": platform.python_version()},
        "torch": torch.__version__,
        "limit": LIMIT,
        "data": "given" if options.data else "12 toy recordings of 40 s at 60 Hz, 64 x 64",
        "trainings": rows,
    }
    print(json.dumps(record, indent=2))
    if options.json:
        options.json.write_text(json.dumps(record, indent=2) + "\n")
    return int(any(row["stall_share"] >= LIMIT for row in rows.values()))


if __name__ == "__main__":
    sys.exit(main())
