"""Kill an ingest at random points, give the same command again, and compare with an undisturbed one.

Usage: python tools/kill_bold.py DERIVATIVES WORK [--kills 20] [--json FILE] [-- MORE OPTIONS OF vidbrain bold ingest]

WORK is removed first. An undisturbed ingest into WORK/whole is the reference. Then the same command writes into
WORK/killed: each time the whole process group is killed with SIGKILL after a random while, and the command is given
again. Runs that were whole before a kill must not be made again. When an ingest ends before its kill, the store is
compared and removed, and the next kill hits a fresh one.
"""

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


def command(source: str, out: Path, more: list[str]) -> list[str]:
    return [sys.executable, "-m", "vidbrain", "bold", "ingest", source, "--out", str(out), "--workers", "2", *more]


def digest(root: Path) -> dict[str, str]:
    files = (path for path in sorted(root.rglob("*")) if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def whole_runs(root: Path) -> dict[str, tuple[int, int]]:
    """Inode and time of every run that has its final name: the same later means that it was not made again."""
    found = {}
    for path in root.glob("sub-*.zarr/zarr.json"):
        with contextlib.suppress(FileNotFoundError):
            stat = path.stat()
            found[path.parent.name] = (stat.st_ino, stat.st_mtime_ns)
    return {name: value for name, value in found.items() if ".part-" not in name}


def kill_session(leader: int) -> None:
    """Kill a process and every process of its session: Dask's workers have groups of their own."""
    members = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                if int((entry / "stat").read_text().rsplit(")", 1)[1].split()[3]) == leader:
                    members.append(int(entry.name))
    for member in members:
        with contextlib.suppress(ProcessLookupError):
            os.kill(member, signal.SIGKILL)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source")
    parser.add_argument("work", type=Path)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options, more = parser.parse_known_args()
    more = [word for word in more if word != "--"]
    shutil.rmtree(options.work, ignore_errors=True)
    whole, out = options.work / "whole", options.work / "killed"
    began = time.perf_counter()
    subprocess.run(command(options.source, whole, more), check=True, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - began
    expected = digest(whole)
    print(f"undisturbed: {seconds:.1f} s, {len(expected)} files", flush=True)

    rng = random.Random(options.seed)
    kills, stores, again, differing, bad_status = [], 0, set(), set(), []
    known: dict[str, tuple[int, int]] = {}

    def compare(status: int) -> None:
        nonlocal stores, known
        found = digest(out)
        differing.update(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
        if status:
            bad_status.append(status)
            print(f"the command failed: see {options.work / 'killed.log'}", flush=True)
        stores += 1
        shutil.rmtree(out)
        known = {}

    while len(kills) < options.kills:
        process = subprocess.Popen(
            command(options.source, out, more),
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=(options.work / "killed.log").open("w"),
        )
        delay = rng.uniform(0.02, 0.98) * seconds
        with contextlib.suppress(subprocess.TimeoutExpired):
            status = process.wait(timeout=delay)
            compare(status)
            continue
        kill_session(process.pid)
        process.wait()
        now = whole_runs(out)
        again |= {name for name in known if now.get(name) != known[name]}
        known = now
        leftovers = len(list(out.glob("*.part-*")))
        kills.append({"after_s": round(delay, 2), "whole_runs": len(now), "unfinished": leftovers})
        print(f"kill {len(kills):>2} after {delay:.1f} s: {len(now)} runs whole, {leftovers} unfinished", flush=True)
    if out.is_dir():
        compare(subprocess.run(command(options.source, out, more), stdout=subprocess.DEVNULL).returncode)
    record = {
        "command": " ".join(["python tools/kill_bold.py DERIVATIVES WORK", *more]),
        "machine": {"cores": os.cpu_count(), "platform": platform.platform(), "python": platform.python_version()},
        "status": bad_status,
        "kills": kills,
        "stores_compared": stores,
        "files_compared": len(expected),
        "files_differing": sorted(differing),
        "runs_made_again": sorted(again),
    }
    print(f"{stores} stores of {len(expected)} files compared, {len(differing)} differ; {len(again)} runs made twice")
    if options.json:
        options.json.write_text(json.dumps(record, indent=2) + "\n")
    return int(bool(bad_status or differing or again))


if __name__ == "__main__":
    sys.exit(main())
