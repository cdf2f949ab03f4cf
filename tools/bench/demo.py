"""What does the whole path take? Runs `vidbrain demo` afresh and records time by stage, peak memory and the numbers.

Usage: python tools/bench/demo.py ROOT [--json docs/benchmarks/demo.json]
ROOT must not exist; it is kept.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

from processes import watch


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("root", type=Path)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.root.exists():
        parser.error(f"{options.root} exists: the demo would go on instead of starting")
    began = time.perf_counter()
    command = [sys.executable, "-m", "vidbrain", "demo", str(options.root)]
    process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL)
    memory = watch(process)
    record = {
        "command": "python tools/bench/demo.py ROOT --json docs/benchmarks/demo.json",
        "machine": {"cores": os.cpu_count(), "platform": platform.platform(), "python": platform.python_version()},
        "repetitions": 1,
        "status": process.returncode,
        "wall_s": round(time.perf_counter() - began, 1),
        **memory,
        "disk_bytes": sum(p.stat().st_size for p in options.root.rglob("*") if p.is_file()),
        "summary": json.loads((options.root / "summary.json").read_text()),
    }
    for name in ("wall_s", "largest_process_bytes", "disk_bytes"):
        print(f"{name:<24}{record[name]}")
    for stage, seconds in record["summary"]["wall_s"].items():
        print(f"  {stage:<22}{seconds:6.1f} s")
    if options.json:
        options.json.write_text(json.dumps(record, indent=2) + "\n")
    return process.returncode


if __name__ == "__main__":
    sys.exit(main())
