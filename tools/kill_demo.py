"""Kill the demo in each of its stages, give the same command again, and compare with an undisturbed run.

Usage: python tools/kill_demo.py REFERENCE WORK [--recipe FILE] [--json FILE]

REFERENCE is the folder of an undisturbed demo with the same recipe (it is made first if it is absent). WORK is removed
and used for the disturbed one. After every kill -9 of the whole process group the next call goes on.
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

COMPARED = ("game", "data", "bold", "codes", "features", "results", "runs")
ATTEMPTS = 4
TIMINGS = {"summary.json", "state.pt"}
"""Files of a training that hold its wall seconds; everything else must be equal to the byte."""


def digest(root: Path) -> dict[str, str]:
    """SHA-256 of every file that must not depend on kills."""
    found = {}
    for part in COMPARED:
        for path in sorted((root / part).rglob("*")):
            if path.is_file() and path.name not in TIMINGS:
                found[str(path.relative_to(root))] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def stages_done(root: Path) -> dict[str, float]:
    """Stages that the demo has finished, with their seconds."""
    path = root / "stages.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def command(root: Path, recipe: str | None) -> list[str]:
    return [sys.executable, "-m", "vidbrain", "demo", str(root), *(["--recipe", recipe] if recipe else [])]


def run_whole(root: Path, recipe: str | None) -> None:
    subprocess.run(command(root, recipe), check=True, stdout=subprocess.DEVNULL)


def run_killed(root: Path, recipe: str | None, stage: str, delay_s: float) -> bool:
    """Start the demo, and kill its process group `delay_s` after it says that `stage` begins.

    Returns
    -------
    bool
        Whether the stage had begun and had not ended.
    """
    process = subprocess.Popen(
        command(root, recipe), start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line.rstrip().endswith(f"] {stage}"):
            break
    time.sleep(delay_s)
    in_time = process.poll() is None and stage not in stages_done(root)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.stderr.close()
    process.wait()
    return in_time


def kill_all(root: Path, recipe: str | None, delays: dict[str, float]) -> dict[str, dict[str, object]]:
    """Kill a fresh demo once in each stage. A kill that came after its stage begins all again, after half the delay.

    The reference may have run on a busier machine, so that its stages took longer than they take now.
    """
    kills: dict[str, dict[str, object]] = {}
    for _ in range(ATTEMPTS):
        shutil.rmtree(root, ignore_errors=True)
        for stage, delay in delays.items():
            in_time = run_killed(root, recipe, stage, delay)
            kills[stage] = {"killed_in_stage": in_time, "delay_s": round(delay, 2)}
            print(
                f"{stage:<10} killed {'in' if in_time else 'AFTER'} the stage, {delay:.1f} s after it began", flush=True
            )
            if not in_time:
                delays[stage] = delay / 2
                break
        else:
            break
    return kills


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("reference", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--recipe")
    parser.add_argument("--stages", nargs="*", help="only these; default every stage")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if not (options.reference / "summary.json").is_file():
        run_whole(options.reference, options.recipe)
    seconds = stages_done(options.reference)
    rng = random.Random(options.seed)
    chosen = options.stages or [name for name in seconds if name != "summary"]
    delays = {stage: rng.uniform(0.2, 0.7) * seconds[stage] for stage in chosen}
    kills = kill_all(options.work, options.recipe, delays)
    run_whole(options.work, options.recipe)
    expected, found = digest(options.reference), digest(options.work)
    differing = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    print(f"{len(expected)} files compared, {len(differing)} differ", *differing[:20], sep="\n  ")
    if options.json:
        record = {
            "command": "python tools/kill_demo.py REFERENCE WORK",
            "machine": {"cores": os.cpu_count(), "platform": platform.platform(), "python": platform.python_version()},
            "kills": kills,
            "files_compared": len(expected),
            "files_differing": differing,
        }
        options.json.write_text(json.dumps(record, indent=2) + "\n")
    return int(bool(differing) or not all(kill["killed_in_stage"] for kill in kills.values()))


if __name__ == "__main__":
    sys.exit(main())
