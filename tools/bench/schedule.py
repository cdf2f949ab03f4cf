"""How would an encoding spread over 8 nodes of 32 threads? A schedule simulated from task times measured here.

Usage: python tools/bench/schedule.py FEATURES BOLD WORK [--json docs/benchmarks/schedule.json]

Tasks of a real plan are timed on one thread: decompositions of training sets, and blocks of 512 voxels, with reading.
Workers then take tasks from one list, as Dask's do: decompositions first, blocks after the last of them. Assumed, and
stated in the record: a dispatch of a task costs the scheduler 1 ms, one after the other, and the file system gives
1 GB/s to all workers together. Beside it stands what B-MOR published (arXiv 2403.19421, figures of its repository):
the same question, another problem, so efficiencies may be compared and seconds may not.
"""

import argparse
import heapq
import json
import os
import platform
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from vidbrain.bold.store import open_bold
from vidbrain.encoding.blocks import block_rows, run_block
from vidbrain.encoding.decompose import write_plan
from vidbrain.encoding.prepare import prepare
from vidbrain.encoding.settings import EncodeConfig
from vidbrain.features.store import open_features

DISPATCH_S, BYTES_PER_S = 1e-3, 1e9
BMOR_1_THREAD_S = 7578.0
BMOR_S = {  # threads of a node: seconds on 1, 2, 4, 6, 8 nodes
    2: (3820, 2299, 1414, 1090, 908),
    4: (2372, 1364, 861, 666, 622),
    8: (1582, 939, 553, 450, 382),
    16: (1131, 666, 440, 357, 310),
    32: (977, 556, 391, 317, 270),
}
NODES = (1, 2, 4, 6, 8)


class Timed:
    """A client that runs rows here, one after the other, and keeps their seconds."""

    n_workers = 0

    def __init__(self) -> None:
        self.seconds = []

    def run(self, function: Callable, rows: Sequence, *, weight: Callable | None = None) -> Iterator:
        """Yield position and result."""
        for position, row in enumerate(rows):
            began = time.perf_counter()
            result = function(row)
            self.seconds.append(time.perf_counter() - began)
            yield position, result


def makespan(workers: int, phases: list[list[float]], n_bytes: float) -> float:
    """Seconds until the last task of the last phase ends; each phase waits for the one before."""
    now = 0.0
    for tasks in phases:
        free = [now] * workers
        heapq.heapify(free)
        dispatched = now
        for seconds in sorted(tasks, reverse=True):
            dispatched += DISPATCH_S
            heapq.heappush(free, max(heapq.heappop(free), dispatched) + seconds)
        now = max(free)
    # Reading cannot be faster than the file system.
    return max(now, n_bytes / BYTES_PER_S)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("features")
    parser.add_argument("bold")
    parser.add_argument("work", type=Path)
    parser.add_argument("--delays", type=int, nargs="+", default=[1, 2, 3, 4])
    parser.add_argument("--test", nargs="*", default=[])
    parser.add_argument("--max-folds", type=int, default=20)
    parser.add_argument("--blocks", type=int, default=8, help="blocks that are timed")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    shutil.rmtree(options.work, ignore_errors=True)
    features, bold = open_features(options.features), open_bold(options.bold)
    config = EncodeConfig(
        delays=tuple(options.delays), test=tuple(options.test), max_folds=options.max_folds, voxels_per_block=512
    )
    prepared = prepare(features, bold, config)
    sets = Timed()
    began = time.perf_counter()
    root = options.work / "plan"
    write_plan(root, prepared.design, prepared.layout, prepared.form, prepared.choices, client=sets)
    serial_s = time.perf_counter() - began - sum(sets.seconds)
    rows = block_rows(bold, config, root, options.work / "blocks")
    timed = rows[:: max(1, len(rows) // options.blocks)][: options.blocks]
    blocks = Timed()
    for _ in blocks.run(run_block, timed):
        pass
    block_s = statistics.median(blocks.seconds)
    phases = [[serial_s], sets.seconds, [block_s] * len(rows)]
    n_bytes = 4.0 * prepared.shape.n_rows * bold.n_voxels
    one = makespan(1, phases, n_bytes)
    table = []
    for threads, theirs in BMOR_S.items():
        for nodes, published in zip(NODES, theirs, strict=True):
            ours = makespan(nodes * threads, phases, n_bytes)
            table.append(
                {
                    "nodes": nodes,
                    "threads": threads,
                    "seconds": round(ours, 1),
                    "speed_up": round(one / ours, 1),
                    "efficiency": round(one / ours / (nodes * threads), 3),
                    "bmor_speed_up": round(BMOR_1_THREAD_S / published, 1),
                    "bmor_efficiency": round(BMOR_1_THREAD_S / published / (nodes * threads), 3),
                }
            )
    record = {
        "command": "python tools/bench/schedule.py FEATURES BOLD WORK " + " ".join(sys.argv[4:]),
        "machine": {"cores": os.cpu_count(), "platform": platform.platform(), "python": platform.python_version()},
        "shape": {
            "n_rows": prepared.shape.n_rows,
            "n_columns": prepared.shape.n_columns,
            "n_voxels": bold.n_voxels,
            "n_alphas": config.n_alphas,
            "training_sets": prepared.cost.n_sets,
            "form": prepared.form,
        },
        "measured": {
            "serial_s": serial_s,
            "sets_s": sets.seconds,
            "block_of_512_s": block_s,
            "blocks_timed": len(blocks.seconds),
            "block_spread_s": [min(blocks.seconds), max(blocks.seconds)],
        },
        "assumed": {"dispatch_s": DISPATCH_S, "file_system_bytes_per_s": BYTES_PER_S},
        "one_thread_s": round(one, 1),
        "schedule": table,
    }
    print(f"{'nodes':>5} {'threads':>7} {'s':>8} {'speed-up':>9} {'efficiency':>10} {'B-MOR':>7} {'efficiency':>10}")
    for row in table:
        ours = (
            f"{row['nodes']:>5} {row['threads']:>7} {row['seconds']:>8} {row['speed_up']:>9} {row['efficiency']:>10.0%}"
        )
        print(f"{ours} {row['bmor_speed_up']:>7} {row['bmor_efficiency']:>10.0%}")
    if options.json:
        options.json.write_text(json.dumps(record, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
