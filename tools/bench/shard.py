"""How fast is sharding? Beside webdataset, litdata, MosaicML streaming and the floor, in turns, in one call.

The same videos, decoded and scaled by the same call, become the same samples: 256 frames and the margin of 60 that
makes every clip reachable. Two workers each. Writers take turns in every repetition, so that a busy machine slows all
of them. The floor decodes, scales and compresses in two processes and writes nothing. Bytes are those on disk; fidelity
is measured by reading back with each writer's own reader. `tools/bench/shard_peers.py` has the writers.

Run: make bench-env
     python tools/bench/shard.py VIDEOS WORK --json docs/benchmarks/shard.json
VIDEOS is a folder of mp4 files, for instance those of `vidbrain replay`; WORK is removed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from vidbrain.sharding.plan import ShardConfig
from vidbrain.video.probe import probe

ROOT = Path(__file__).parents[2]
PEERS = ("webdataset", "litdata", "mosaicml-streaming")
FORMS = ("raw", "zstd")
OWN = ("floor", "vidbrain")


def run(python: Path, writer: str, form: str, source: Path, out: Path, cut: list[int], compare: int) -> dict:
    """Run one writer in its environment; return its seconds, bytes, and fidelity where that is asked for."""
    shutil.rmtree(out, ignore_errors=True)
    arguments = [writer, form, str(source), str(out), *map(str, cut), "--compare", str(compare)]
    done = subprocess.run(
        [str(python), str(Path(__file__).with_name("shard_peers.py")), *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{writer} ({form}) failed:\n{done.stderr[-4000:]}")
    found = json.loads(done.stdout)
    shutil.rmtree(out, ignore_errors=True)
    return found


def versions_of(python: Path) -> dict[str, str]:
    code = f"import json, importlib.metadata as m; print(json.dumps({{n: m.version(n) for n in {PEERS!r}}}))"
    return json.loads(subprocess.run([str(python), "-c", code], check=True, capture_output=True, text=True).stdout)


def compare(source: Path, work: Path, peers: Path, codecs: list[str], cut: list[int], repetitions: int) -> list[dict]:
    """Run everything in turns; return a row for each writer and form."""
    here = Path(sys.executable)
    jobs = [(here, writer, codec) for codec in codecs for writer in OWN]
    jobs += [(peers, writer, form) for writer in PEERS for form in FORMS]
    rows = {(writer, form): {"writer": writer, "form": form, "seconds": []} for _, writer, form in jobs}
    for repetition in range(repetitions):
        for python, writer, form in jobs:
            n_compared = 4 if repetition == 0 and writer != "floor" else 0
            found = run(python, writer, form, source, work / "out", cut, n_compared)
            row = rows[writer, form]
            row["seconds"].append(round(found.pop("seconds"), 3))
            row.update(found)
            print(f"{repetition + 1}  {writer} {form}: {row['seconds'][-1]:.1f} s", file=sys.stderr, flush=True)
    return list(rows.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("videos", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--size", type=int, default=64, help="height and width of the frames, in pixels")
    parser.add_argument("--codecs", nargs="+", default=["zstd"], help="vidbrain's, each with its floor")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument(
        "--peers", type=Path, default=ROOT / ".venv-bench/bin/python", help="python of `make bench-env`"
    )
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if not options.peers.is_file():
        parser.error(f"there is no {options.peers}: make bench-env")
    videos = sorted(options.videos.glob("*.mp4"))
    if not videos:
        parser.error(f"there is no .mp4 in {options.videos}")
    shutil.rmtree(options.work, ignore_errors=True)
    source = options.work / "source"
    source.mkdir(parents=True)
    for video in videos:
        (source / video.name).symlink_to(video.resolve())
    n_frames = sum(probe(video).n_frames for video in videos)
    config = ShardConfig(frame_size=options.size)
    cut = [config.segment_frames, config.margin, options.size]
    rows = compare(source, options.work, options.peers, options.codecs, cut, options.repetitions)
    for row in rows:
        row["median_s"] = statistics.median(row["seconds"])
        row["frames_per_s"] = round(n_frames / row["median_s"], 1)
    floors = {row["form"]: row["median_s"] for row in rows if row["writer"] == "floor"}
    fastest = max(row["frames_per_s"] for row in rows if row["writer"] in PEERS)
    smallest = min(row["n_bytes"] for row in rows if row["writer"] in PEERS)
    for row in rows:
        if row["writer"] == "vidbrain":
            row["share_of_floor"] = round(floors[row["form"]] / row["median_s"], 3)
            row["frames_per_s_to_fastest_peer"] = round(row["frames_per_s"] / fastest, 3)
            row["bytes_to_smallest_peer"] = round(row["n_bytes"] / smallest, 3)
    print(f"{n_frames:,} frames of {len(videos)} videos, to {options.size} by {options.size} pixels, two workers")
    print(f"{'writer':<20}{'form':<6}{'s':>9}{'frames/s':>10}{'MB':>10}{'PSNR dB':>10}{'of floor':>10}")
    for row in rows:
        psnr = "-" if "psnr_db" not in row else "lossless" if row["psnr_db"] is None else f"{row['psnr_db']:.1f}"
        share = f"{row['share_of_floor']:.0%}" if "share_of_floor" in row else "-"
        size = f"{row['n_bytes'] / 1e6:.1f}" if row["writer"] != "floor" else "-"
        print(
            f"{row['writer']:<20}{row['form']:<6}{row['median_s']:9.1f}{row['frames_per_s']:10.0f}{size:>10}"
            f"{psnr:>10}{share:>10}"
        )
    if options.json:
        chosen = f"--size {options.size} --codecs {' '.join(options.codecs)} --repetitions {options.repetitions}"
        command = f"python tools/bench/shard.py VIDEOS WORK {chosen} --json docs/benchmarks/{options.json.name}"
        record = {
            "question": "frames per second, bytes and fidelity of writing the same samples from the same videos",
            "command": command,
            "machine": {"cores": os.cpu_count(), "platform": platform.platform(), "python": platform.python_version()},
            "versions": {name: version(name) for name in ("av", "numpy", "zstandard")} | versions_of(options.peers),
            "sizes": {"videos": len(videos), "frames": n_frames, "sample": cut[:2], "pixels": options.size},
            "workers": 2,
            "repetitions": options.repetitions,
            "rows": rows,
        }
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(record, indent=2) + "\n")
    shutil.rmtree(options.work)


if __name__ == "__main__":
    main()
