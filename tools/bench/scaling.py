"""Do two Dask workers take half the time of one? Encodes simulated BOLD on clusters of 1 and of 2 workers.

Usage: python tools/bench/scaling.py ROOT [--json docs/benchmarks/scaling.json] [--voxels 98304]
A real scheduler and real workers of one thread each are started for each cluster and are ready before the command is
given. The command's own process is the third; beside the seconds stand those of the processor: where two workers need
more of these than one for the same blocks, they wait for each other's memory, and no schedule helps.
"""

import argparse
import contextlib
import json
import os
import platform
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from brain import command_of, make_stores
from distributed import Client

from vidbrain.cluster import WORKER_ENVIRONMENT
from vidbrain.encoding.result import open_result


@contextlib.contextmanager
def cluster(n_workers: int) -> Iterator[str]:
    """Start a scheduler and workers on loopback; wait until all are there."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    environment = {**os.environ, **{name: str(value) for name, value in WORKER_ENVIRONMENT.items()}}
    dask = [sys.executable, "-m", "dask"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": environment}
    where = ["--host", "127.0.0.1", "--no-dashboard"]
    with contextlib.ExitStack() as stack:

        def start(*command: str) -> None:
            process = subprocess.Popen([*dask, *command], **quiet)
            stack.callback(process.wait)
            stack.callback(process.terminate)

        start("scheduler", *where, "--port", address.rpartition(":")[2])
        for _ in range(n_workers):
            start("worker", address, "--nthreads", "1", "--memory-limit", "0", *where)
        with Client(address, timeout=60) as client:
            client.wait_for_workers(n_workers, timeout=60)
        yield address


def worker_cpu_s(address: str) -> list[float]:
    """Processor seconds that each worker has used."""
    with Client(address) as client:
        return sorted(client.run(time.process_time).values())


def encode(features: Path, bold: Path, options: argparse.Namespace, n_workers: int) -> dict[str, object]:
    """Run the command against a cluster; seconds of the clock and of the processors."""
    out = options.root / f"scaling-{n_workers}"
    with cluster(n_workers) as address:
        command = command_of(str(features), str(bold), options, n_workers)
        at = command.index("--workers")
        command[at : at + 2] = ["--scheduler", address]
        subprocess.run(["rm", "-rf", str(out)], check=True)
        before = worker_cpu_s(address)
        began = time.perf_counter()
        subprocess.run([*command, "--out", str(out)], check=True, stdout=subprocess.DEVNULL)
        seconds = time.perf_counter() - began
        used = [after - first for first, after in zip(before, worker_cpu_s(address), strict=True)]
    return {"workers": n_workers, "seconds": round(seconds, 1), "worker_cpu_seconds": [round(s, 1) for s in used]}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("root", type=Path)
    parser.add_argument("--voxels", type=int, default=98_304)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    vars(options).update(runs=20, trs=300, features=256, delays=4, alphas=20)
    features, bold = make_stores(options.root, options.runs, options.trs, options.voxels, options.features)
    timed = [encode(features, bold, options, n_workers) for n_workers in (1, 2)]
    results = [open_result(options.root / f"scaling-{n_workers}").dataset for n_workers in (1, 2)]
    one, two = (float(row["seconds"]) for row in timed)
    record = {
        "command": "python tools/bench/scaling.py ROOT " + " ".join(sys.argv[2:]),
        "machine": {"cores": os.cpu_count(), "platform": platform.platform(), "python": platform.python_version()},
        "repetitions": 1,
        "shape": {k: getattr(options, k) for k in ("voxels", "runs", "trs", "features", "delays", "alphas")},
        "timed": timed,
        "efficiency": one / two / 2,
        "processor_ratio": sum(timed[0]["worker_cpu_seconds"]) / sum(timed[1]["worker_cpu_seconds"]),
        "equal": all(np.array_equal(*(data[name].values for data in results)) for name in ("r", "alpha", "p")),
    }
    print(json.dumps(record, indent=2))
    if options.json:
        options.json.write_text(json.dumps(record, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
