"""Kill an encoding at random points, its workers or all of it, give the same command again, and compare.

Usage: python tools/kill_encode.py FEATURES BOLD WORK [--kills 20] [--json FILE] [-- MORE OPTIONS OF vidbrain encode]

WORK is removed first. An undisturbed run into WORK/whole is the reference. Then the same command writes into
WORK/killed: half of the kills hit one worker process (the command must go on by itself), half the whole process group
(the command is given again). Blocks that were committed before a kill must not be computed again.
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


def command(features: str, bold: str, out: Path, more: list[str]) -> list[str]:
    return [sys.executable, "-m", "vidbrain", "encode", features, bold, "--out", str(out), "--workers", "2", *more]


def digest(root: Path) -> dict[str, str]:
    files = (path for path in sorted(root.rglob("*")) if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def committed(root: Path) -> dict[str, tuple[int, int]]:
    """Inode and time of every committed piece of work: the same after a kill means that it was not made again."""
    found = {}
    for path in root.glob("work/*/*.npz"):
        with contextlib.suppress(FileNotFoundError):
            stat = path.stat()
            found[str(path.relative_to(root))] = (stat.st_ino, stat.st_mtime_ns)
    return found


def workers_of(leader: int) -> list[int]:
    """Dask workers of a session: the processes that hold it up, but for its leader and helpers without threads."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != leader:
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
                if int(fields[3]) == leader and b"spawn_main" in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("features")
    parser.add_argument("bold")
    parser.add_argument("work", type=Path)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options, more = parser.parse_known_args()
    more = [word for word in more if word != "--"]
    shutil.rmtree(options.work, ignore_errors=True)
    began = time.perf_counter()
    whole = options.work / "whole"
    subprocess.run(command(options.features, options.bold, whole, more), check=True, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - began
    print(f"undisturbed: {seconds:.1f} s", flush=True)

    rng, out, kills, again = random.Random(options.seed), options.work / "killed", [], set()
    process, before = None, {}
    while len(kills) < options.kills:
        if process is None or process.poll() is not None:
            process = subprocess.Popen(
                command(options.features, options.bold, out, more),
                start_new_session=True,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        what = "worker" if len(kills) % 2 else "everything"
        delay = rng.uniform(0.1, 0.9) * seconds * (0.35 if what == "worker" else 0.75)
        time.sleep(delay)
        now = committed(out)
        again |= {name for name in before.keys() & now.keys() if before[name] != now[name]}
        before = now
        ended = process.poll() is not None
        if ended:  # all done before the kill: start over, so that every kill hits work
            shutil.rmtree(out)
            before = {}
            continue
        victims = workers_of(process.pid) if what == "worker" else [process.pid]
        if not victims:
            continue
        with contextlib.suppress(ProcessLookupError):
            if what == "worker":
                os.kill(rng.choice(victims), signal.SIGKILL)
            else:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                for victim in workers_of(process.pid):  # Dask's workers have groups of their own
                    os.kill(victim, signal.SIGKILL)
        kills.append({"what": what, "after_s": round(delay, 2), "committed": len(now)})
        print(f"kill {len(kills):>2} of {what}, {len(now)} pieces of work committed", flush=True)
    status = process.wait() if process is not None and process.poll() is None else 0
    if not (out / "info.json").is_file():
        status = subprocess.run(
            command(options.features, options.bold, out, more), stdout=subprocess.DEVNULL
        ).returncode
    expected, found = digest(whole), digest(out)
    differing = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    record = {
        "command": "python tools/kill_encode.py " + " ".join(["FEATURES", "BOLD", "WORK", *more]),
        "machine": {"cores": os.cpu_count(), "platform": platform.platform(), "python": platform.python_version()},
        "status": status,
        "kills": kills,
        "files_compared": len(expected),
        "files_differing": differing,
        "computed_again_after_commit": sorted(again),
    }
    print(f"{len(expected)} files compared, {len(differing)} differ; {len(again)} pieces of work made twice")
    if options.json:
        options.json.write_text(json.dumps(record, indent=2) + "\n")
    return int(bool(status or differing or again))


if __name__ == "__main__":
    sys.exit(main())
