"""Kill sharding again and again, give the same command each time, and compare with an undisturbed run.

Usage: python tools/kill_shard.py SOURCE WORK [--kills 50] [--workers 2] [--json FILE] [-- OPTIONS OF vidbrain shard]

WORK is removed. WORK/whole is sharded undisturbed, which also says how long the work takes. Then WORK/killed is begun
again and again, and the whole process group is killed with SIGKILL after a random part of that time, until it has been
killed so many times; a data set that gets finished in between is set aside, compared, and begun anew. At the end the
bytes must be equal, `vidbrain shards gc` must have nothing left, and `vidbrain verify` must find no damage.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
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

from vidbrain.sharding.orphans import collect, find_orphans
from vidbrain.sharding.verify import verify


def digest(root: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder."""
    files = (path for path in sorted(root.rglob("*")) if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def command(source: Path, root: Path, workers: int, rest: list[str]) -> list[str]:
    return [
        *(sys.executable, "-m", "vidbrain", "shard", str(source)),
        *("--out", str(root), "--workers", str(workers), *rest),
    ]


def run_whole(arguments: list[str]) -> float:
    began = time.monotonic()
    subprocess.run(arguments, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.monotonic() - began


def run_killed(arguments: list[str], delay_s: float) -> bool:
    """Start the command and kill its process group after a while; say whether it was still running."""
    process = subprocess.Popen(arguments, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        if process.wait(delay_s):
            raise SystemExit(f"the command failed by itself: {' '.join(arguments)}")
        return False
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return True


def check(root: Path, expected: dict[str, str]) -> list[str]:
    """Collect orphans, and return the names of files that differ from the undisturbed run."""
    collect(root)
    assert not find_orphans(root), find_orphans(root)
    found = digest(root)
    damaged = [f"{d.shard} {d.key}: {d.what}" for d in verify(root)]
    return damaged + sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    before, rest = sys.argv[1:], []
    if "--" in before:
        at = before.index("--")
        before, rest = before[:at], before[at + 1 :]
    options = parser.parse_args(before)
    shutil.rmtree(options.work, ignore_errors=True)
    options.work.mkdir(parents=True)
    whole, root = options.work / "whole", options.work / "killed"
    whole_s = run_whole(command(options.source, whole, options.workers, rest))
    expected = digest(whole)
    arguments = command(options.source, root, options.workers, rest)
    rng, kills, finished, differing = random.Random(options.seed), 0, 0, []
    unfinished_before = 0
    while kills < options.kills:
        begun = root.exists()
        delay_s = rng.uniform(0, whole_s)
        if run_killed(arguments, delay_s):
            kills += 1
            unfinished_before += begun
            print(f"kill {kills} of {options.kills}, after {delay_s:.2f} s", flush=True)
        else:
            finished += 1
            differing += check(root, expected)
            shutil.rmtree(root)
    run_whole(arguments)
    differing += check(root, expected)
    print(f"{len(expected)} files compared {finished + 1} times, {len(differing)} differ", *differing[:20], sep="\n  ")
    if options.json:
        record = {
            "command": "python tools/kill_shard.py SOURCE WORK",
            "options": rest,
            "machine": {"cores": os.cpu_count(), "platform": platform.platform(), "python": platform.python_version()},
            "kills": kills,
            "kills_of_work_that_went_on": unfinished_before,
            "data_sets_finished": finished + 1,
            "files_compared": len(expected),
            "files_differing": differing,
        }
        options.json.write_text(json.dumps(record, indent=2) + "\n")
    return int(bool(differing))


if __name__ == "__main__":
    sys.exit(main())
