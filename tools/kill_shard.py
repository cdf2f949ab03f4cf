"""Kill sharding again and again, give the same command each time, and compare with an undisturbed run.

Usage: python tools/kill_shard.py SOURCE WORK [--s3 [--latency-s 1]] [--kills 50] [--at-most-s 3600]
           [--workers 2] [--seed 0] [--json FILE [--add]] [-- OPTIONS]

OPTIONS are those of vidbrain shard. WORK is removed. First the source is sharded undisturbed into WORK/whole, and with
--s3 once more into a bucket of a moto server on this machine, which also says how long the work takes. Then a data set
is begun again and again, and the whole process group is killed with SIGKILL after a random part of that time, until it
has been killed so many times, or --at-most-s have passed; one that gets finished in between is compared, removed and
begun anew. The server is no member of the group and lives on; with --latency-s each request of an upload in parts takes
so much longer, as on a real network, so that kills meet uploads that are under way. At the end the bytes must be equal,
`vidbrain shards gc` must have nothing left, the work folder of this machine must be gone, and `vidbrain verify` must
find no damage. Uploads in parts that nobody ended are counted, not judged: see docs/object-storage.md. With --add the
counts of FILE are added to, so that many kills can be had in several calls with different seeds.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import platform
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from vidbrain.sharding.orphans import collect, find_orphans
from vidbrain.sharding.target import target_of
from vidbrain.sharding.verify import verify
from vidbrain.storage.objects import Root, open_root
from vidbrain.testing.servers import ChaosProxy, Fault, moto_server

BUCKET = "kills"
COUNTS = ("kills", "kills_of_work_that_went_on", "data_sets_finished", "uploads_in_parts", "uploads_in_parts_left")


def digest(root: Root) -> dict[str, str]:
    """SHA-256 of every file or object, unfinished ones too."""
    if root.is_local:
        files = (path for path in sorted(Path(root.url).rglob("*")) if path.is_file())
        return {str(path.relative_to(root.url)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    return {found.key: hashlib.sha256(root.get(found.key)).hexdigest() for found in root.list()}


def clear(root: Root) -> None:
    """Remove a data set."""
    if root.is_local:
        shutil.rmtree(root.url, ignore_errors=True)
    else:
        for found in root.list():
            root.delete(found.key)


def count_uploads(proxy: ChaosProxy) -> dict[str, int]:
    """Uploads in parts that were begun, and those that nobody ended: those who list objects do not see them."""
    with urllib.request.urlopen(f"{proxy.upstream}/{BUCKET}?uploads", timeout=60) as answer:
        left = len(re.findall(rb"<Upload>", answer.read()))
    begun = [seen for seen in proxy.seen if seen.method == "POST" and "?uploads" in seen.path]
    return {"uploads_in_parts": sum(seen.status == 200 for seen in begun), "uploads_in_parts_left": left}


def command(source: Path, root: Root, workers: int, rest: list[str]) -> list[str]:
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


def check(root: Root, expected: dict[str, str]) -> list[str]:
    """Collect orphans, and return what differs from the undisturbed run, or is left behind."""
    collect(root)
    left = [f"left behind: {place}" for place in find_orphans(root)]
    work = target_of(root).work
    if not root.is_local and work.exists():
        left.append(f"left behind: {work}")
    found = digest(root)
    damaged = [f"{d.shard} {d.key}: {d.what}" for d in verify(root)]
    differing = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    return left + damaged + differing


@contextlib.contextmanager
def bucket(work: Path, latency_s: float) -> Iterator[ChaosProxy]:
    """Run a server that every child finds by its environment, and keep work folders below `work`."""
    with moto_server(BUCKET) as server, ChaosProxy(server.endpoint) as proxy:
        if latency_s:
            slow = {"kind": "latency", "path": "upload", "delay_s": latency_s, "times": None}
            proxy.inject(Fault(method="PUT", **slow), Fault(method="POST", **slow))
        os.environ.update(server.environment(proxy.endpoint), XDG_CACHE_HOME=str(work / "cache"))
        yield proxy


def write_record(path: Path, record: dict, *, add: bool) -> None:
    """Write the figures, or add to those of earlier calls that did the same with other seeds."""
    if add and path.exists():
        earlier = json.loads(path.read_text())
        fixed = record.keys() - {*COUNTS, "seeds", "files_differing"}
        if any(earlier.get(name) != record[name] for name in fixed) or set(record["seeds"]) & set(earlier["seeds"]):
            raise SystemExit(f"{path} holds figures of something else, or of this seed; this call found {record}")
        record |= {name: earlier[name] + record[name] for name in COUNTS if name in record}
        record |= {name: earlier[name] + record[name] for name in ("seeds", "files_differing")}
    path.write_text(json.dumps(record, indent=2) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--s3", action="store_true")
    parser.add_argument("--latency-s", type=float, default=0.0)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--at-most-s", type=float, default=3600.0, help="begin no further kill after so long")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--add", action="store_true")
    before, rest = sys.argv[1:], []
    if "--" in before:
        at = before.index("--")
        before, rest = before[:at], before[at + 1 :]
    options = parser.parse_args(before)
    shutil.rmtree(options.work, ignore_errors=True)
    options.work.mkdir(parents=True)
    with bucket(options.work, options.latency_s) if options.s3 else contextlib.nullcontext() as proxy:
        return run(options, rest, proxy)


def run(options: argparse.Namespace, rest: list[str], proxy: ChaosProxy | None) -> int:
    began_s = time.monotonic()
    whole = open_root(options.work / "whole")
    whole_s = run_whole(command(options.source, whole, options.workers, rest))
    expected = digest(whole)
    root, differing = open_root(options.work / "killed"), []
    if proxy is not None:
        root, undisturbed = open_root(f"s3://{BUCKET}/killed"), open_root(f"s3://{BUCKET}/whole")
        whole_s = run_whole(command(options.source, undisturbed, options.workers, rest))
        differing += check(undisturbed, expected)
    arguments = command(options.source, root, options.workers, rest)
    rng, kills, finished, went_on = random.Random(options.seed), 0, 0, 0
    while kills < options.kills and time.monotonic() - began_s < options.at_most_s:
        begun = bool(digest(root))
        delay_s = rng.uniform(0, whole_s)
        if run_killed(arguments, delay_s):
            kills += 1
            went_on += begun
            print(f"kill {kills} of {options.kills}, after {delay_s:.2f} s", flush=True)
        else:
            finished += 1
            differing += check(root, expected)
            clear(root)
    run_whole(arguments)
    differing += check(root, expected)
    print(f"{len(expected)} files compared {finished + 1} times, {len(differing)} differ", *differing[:20], sep="\n  ")
    if options.json:
        n_bytes = {found.key: found.n_bytes for found in whole.list()}
        record = {
            "command": f"python tools/kill_shard.py SOURCE WORK{' --s3' if proxy else ''}",
            "options": rest,
            "workers": options.workers,
            "output": "a bucket of a moto server on this machine" if proxy else "a folder",
            **({"latency_s": options.latency_s} if proxy else {}),
            "machine": {"cores": os.cpu_count(), "platform": platform.platform(), "python": platform.python_version()},
            "seeds": [options.seed],
            "kills": kills,
            "kills_of_work_that_went_on": went_on,
            "data_sets_finished": finished + 1,
            "files_compared": len(expected),
            "files_compared_bytes": sum(n_bytes.values()),
            "largest_file_bytes": max(n_bytes.values()),
            "files_differing": differing,
            **(count_uploads(proxy) if proxy else {}),
        }
        write_record(options.json, record, add=options.add)
    return int(bool(differing))


if __name__ == "__main__":
    sys.exit(main())
