"""Record six million real frames of two games and shard them: the figures of sharding at scale.

Usage: python tools/shard_6m.py WORK [--frames 6M] [--stages play source shard verify direct project]
                                [--codec auto] [--workers 2] [--json docs/benchmarks/shard-6m.json]

WORK/source is one BIDS tree of four subjects: Airstriker (flat graphics, `.bk2`, three quarters of the frames) and
Freedoom (textured, video, one quarter). WORK/data grows through 10k, 100k, 1M to all that is asked for, with the spool
kept, so that each recording is decoded once: at 1M nearly every one has been met, and the rest of the growth copies.
WORK/direct is one of the sizes sharded at once, to compare its bytes. Every stage is a `vidbrain` command that can be
killed and goes on; this tool can be killed too, and given again. Stages can be run one by one: the figures of the
others stay in the file.

A stage's figures: wall seconds, CPU seconds of all its processes (which other work on the machine hardly changes), and
the largest resident set that any single process reached (VmHWM of Linux, read every quarter of a second). Where a stage
was interrupted, `attempts` has each part, and times are their sums.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil

from vidbrain.records import Recording, RunKey
from vidbrain.sharding.describe import describe
from vidbrain.sharding.manifest import INDEX, marker_path
from vidbrain.sharding.plan import LANDMARKS, Listed, ShardConfig, make_plan, parse_size
from vidbrain.storage.atomic import read_json, write_json
from vidbrain.video.play import PlayConfig

STAGES = ("play", "source", "shard", "verify", "direct", "project")
FLAT_SHARE = 0.75
PLAYED_SHARE = 0.9
"""Of a run's time, about: the rest are gaps between repetitions."""
LEVELS = ("map01", "map02", "map03")
SHARDING = ("--frame-size", "64", "--segment-frames", "128")
BILLION = 10**9
_SAMPLE_S, _SAVE_S = 0.25, 15.0


def games(n_frames: int) -> list[PlayConfig]:
    """What is played, a little more than is needed: no run knows beforehand how often its player dies."""
    n_sessions, n_runs = (4, 4) if n_frames >= 1_000_000 else (2, 1)
    shape = {"n_subjects": 4, "n_sessions": n_sessions, "n_runs": n_runs}
    n_total = 4 * n_sessions * n_runs
    flat = PlayConfig(**shape)
    textured = PlayConfig(game="freedoom2", task="doom", levels=LEVELS, **shape)
    shares = ((flat, FLAT_SHARE), (textured, 1 - FLAT_SHARE))
    return [
        replace(config, run_s=float(math.ceil(n_frames * share / n_total / config.fps / PLAYED_SHARE)))
        for config, share in shares
    ]


def flags(config: PlayConfig) -> list[str]:
    """A configuration as the options of `vidbrain play`."""
    return [
        *("--game", config.game, "--task", config.task, "--n-subjects", str(config.n_subjects)),
        *("--n-sessions", str(config.n_sessions), "--n-runs", str(config.n_runs), "--run-s", f"{config.run_s:g}"),
        *(part for level in config.levels for part in ("--levels", level)),
    ]


class Attempt:
    """Watches one command: CPU of its process tree, and the peak memory of every process in it."""

    def __init__(self, arguments: list[str], save: Callable[[dict[str, Any]], None]) -> None:
        self._cpu: dict[int, float] = {}
        self._peak = 0
        before, began, saved = _children_cpu(), time.monotonic(), 0.0
        out = tempfile.TemporaryFile("w+")  # noqa: SIM115 -- closed with this object; a pipe could fill and block
        process = subprocess.Popen(arguments, stdout=out)
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_SAMPLE_S)
            self._sample(process.pid)
            wall_s = time.monotonic() - began
            if process.returncode is not None:
                break
            if wall_s - saved > _SAVE_S:
                saved = wall_s
                save(self._record(wall_s, sum(self._cpu.values()), finished=False))
        out.seek(0)
        self.output = out.read()
        if process.returncode:
            save(self._record(wall_s, _children_cpu() - before, finished=False))
            raise SystemExit(f"the command failed: {' '.join(arguments)}")
        self.record = self._record(wall_s, _children_cpu() - before, finished=True)

    def _record(self, wall_s: float, cpu_s: float, *, finished: bool) -> dict[str, Any]:
        return {
            "finished": finished,
            "wall_s": round(wall_s, 2),
            "cpu_s": round(cpu_s, 2),
            "peak_rss_bytes": self._peak,
            "load_average_1_min": round(os.getloadavg()[0], 2),
        }

    def _sample(self, pid: int) -> None:
        try:
            root = psutil.Process(pid)
            tree = [root, *root.children(recursive=True)]
        except psutil.Error:
            return
        for process in tree:
            with contextlib.suppress(psutil.Error, OSError):
                times = process.cpu_times()
                self._cpu[process.pid] = times.user + times.system
                status = Path(f"/proc/{process.pid}/status").read_text()
                high = [line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")]
                self._peak = max([self._peak, *(1024 * int(kib) for kib in high)])


def _children_cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


class Figures:
    """The stages measured so far, in a file beside the work, so that a kill loses seconds."""

    def __init__(self, work: Path) -> None:
        self._path = work / "figures.json"
        self.stages: dict[str, Any] = read_json(self._path) if self._path.is_file() else {}

    def is_done(self, name: str) -> bool:
        """Whether a stage has been measured to its end."""
        attempts = self.stages.get(name, {}).get("attempts", [{"finished": name in self.stages}])
        return bool(attempts[-1]["finished"])

    def keep(self, name: str, facts: dict[str, Any]) -> None:
        """Keep the figures of a stage."""
        self.stages[name] = facts
        write_json(self._path, self.stages)

    def measure(self, name: str, arguments: list[str], facts: Callable[[str], dict[str, Any]]) -> None:
        """Run a command as a stage, unless that is done; `facts` makes figures of what it prints.

        Rates are of the figure ``n_frames``.
        """
        if self.is_done(name):
            return
        earlier = self.stages.get(name, {}).get("attempts", [])
        print(f"== {name}: {' '.join(arguments[2:])}", file=sys.stderr, flush=True)
        attempt = Attempt(arguments, lambda record: self.keep(name, _summed([*earlier, record])))
        found = facts(attempt.output)
        summed = _summed([*earlier, attempt.record])
        if n_frames := found.get("n_frames"):
            summed["frames_per_s"] = round(n_frames / summed["wall_s"], 1)
            summed["frames_per_core_s"] = round(n_frames / summed["cpu_s"], 1)
        self.keep(name, {**found, **summed})


def _summed(attempts: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "wall_s": round(sum(a["wall_s"] for a in attempts), 2),
        "cpu_s": round(sum(a["cpu_s"] for a in attempts), 2),
        "peak_rss_bytes": max(a["peak_rss_bytes"] for a in attempts),
        "attempts": attempts,
    }


def files_below(root: Path) -> dict[str, int]:
    """Count files and bytes."""
    sizes = [path.stat().st_size for path in root.rglob("*") if path.is_file()]
    return {"n_files": len(sizes), "n_bytes": sum(sizes)}


def play(figures: Figures, source: Path, n_frames: int, workers: int) -> None:
    """Record both games, one after the other: they share a tree."""
    for config in games(n_frames):
        command = vidbrain("play", source, *flags(config), "--workers", workers, "--json")
        figures.measure(f"play {config.task}", command, json.loads)


def list_source(figures: Figures, source: Path, codec: str, workers: int) -> None:
    """Find, count and plan everything, and write nothing."""

    def facts(text: str) -> dict[str, Any]:
        said = json.loads(text)
        counts = {f"n_{name}": said[name] for name in ("frames", "recordings", "segments", "shards")}
        return {**counts, "codec": said["codec"], "source": files_below(source)}

    command = vidbrain("shard", source, "--out", source.parent / "none", *SHARDING, "--codec", codec)
    figures.measure("source", [*command, "--workers", str(workers), "--dry-run", "--json"], facts)


def sizes_to(n_frames: int) -> list[int]:
    """Through which sizes the data set grows."""
    return [*(size for size in LANDMARKS[:3] if size < n_frames), n_frames]


def shard(figures: Figures, source: Path, root: Path, n_frames: int, codec: str, workers: int) -> None:
    """Let one data set grow through the sizes."""
    before = 0
    for size in sizes_to(n_frames):

        def facts(_: str, size: int = size, before: int = before) -> dict[str, Any]:
            rows = pd.read_parquet(root / INDEX)
            n_old = int((rows["n_frames"].cumsum() <= before).sum())
            old, added = rows.iloc[:n_old], rows.iloc[n_old:]
            new = added[~added["recording"].isin(old["recording"])]
            decoded = new.drop_duplicates("recording")["recording_frames"].sum()
            said = describe(root)
            by_task = rows.groupby("task")[["n_bytes", "n_frames", "n_stored"]].sum()
            return {
                "n_frames": size - before,
                "n_frames_decoded": int(decoded),
                "n_frames_stored": int(added["n_stored"].sum()),
                "holds": {name: said[name] for name in ("n_frames", "n_segments", "n_shards", "codec", "hours")},
                "recordings": int(said["n_recordings"]),
                "bytes_by_game": {str(task): {k: int(v) for k, v in row.items()} for task, row in by_task.iterrows()},
                "disk": files_below(root),
                "codec_choice": read_json(root / "dataset.json").get("codec_choice", {}).get("measured"),
            }

        command = shard_command(source, root, size, codec, workers)
        figures.measure(f"shard {size}", command if size == n_frames else [*command, "--keep-spool"], facts)
        before = size
    figures.keep("shares", shares(root))


def shard_command(source: Path, root: Path, size: int, codec: str, workers: int) -> list[str]:
    command = vidbrain("shard", source, "--out", root, "--size", size, *SHARDING, "--codec", codec)
    return [*command, "--workers", str(workers), "--json"]


def shares(root: Path, prefix: int = LANDMARKS[0]) -> dict[str, Any]:
    """Compare the shares of frames by subject, level and session in a prefix with those of the whole."""
    rows = pd.read_parquet(root / INDEX, columns=["subject", "level", "session", "n_frames"])
    before = rows["n_frames"].cumsum() - rows["n_frames"]
    taken = (prefix - before).clip(0, rows["n_frames"])
    found: dict[str, Any] = {"prefix": prefix, "whole": int(rows["n_frames"].sum())}
    for name in ("subject", "level", "session"):
        whole = rows.groupby(name)["n_frames"].sum() / rows["n_frames"].sum()
        mine = taken.groupby(rows[name]).sum() / taken.sum()
        found[name] = {
            str(label): {"whole": round(whole[label], 5), "prefix": round(mine[label], 5)} for label in whole.index
        }
        found[f"{name}_furthest"] = round(float((mine / whole - 1).abs().max()), 4)
    return found


def verify(figures: Figures, root: Path, workers: int) -> None:
    """Check every byte."""
    n_frames = int(describe(root)["n_frames"])
    command = vidbrain("verify", root, "--workers", workers, "--json")
    figures.measure("verify", command, lambda text: {"n_frames": n_frames, "damaged": json.loads(text)["damaged"]})


def direct(figures: Figures, source: Path, grown: Path, root: Path, size: int, codec: str, workers: int) -> None:
    """Shard one size at once, and compare its tars with those of the data set that grew."""

    def facts(_: str) -> dict[str, Any]:
        n_shards = describe(root)["n_shards"]
        pairs = [[read_json(marker_path(r, number))["sha256"] for r in (root, grown)] for number in range(n_shards)]
        return {"n_frames": size, "shards_compared": n_shards, "shards_equal": sum(a == b for a, b in pairs)}

    figures.measure("direct", shard_command(source, root, size, codec, workers), facts)


def project(figures: Figures) -> None:
    """Say what a billion frames would take, and what would bind first.

    Decoding, encoding and copying go by core-seconds, and spread over workers. Counting recordings spreads too.
    Planning is one process's work: it is measured on a listing of a billion frames, made of the recordings of a study.
    """
    grown = [name for name in figures.stages if name.startswith("shard ")]
    largest = figures.stages[max(grown, key=lambda name: int(name.split()[1]))]
    core_s = sum(figures.stages[name]["cpu_s"] for name in grown)
    grown_frames = sum(figures.stages[name]["n_frames"] for name in grown)
    rng, listing = np.random.default_rng(0), []
    n_frames = 0
    while n_frames < BILLION:
        number = len(listing)
        run = RunKey(f"{number % 100:02d}", f"{number // 100 % 20:03d}", "game", number // 2000)
        own = int(rng.integers(2_000, 5_400))
        listing.append(Listed(Recording(key=f"{run}_rep-{number}", run=run, level=f"{number % 7}"), own, 60.0))
        n_frames += own
    began = time.perf_counter()
    plan = make_plan(listing, ShardConfig(size=str(BILLION), frame_size=64, segment_frames=128))
    plan_s = time.perf_counter() - began
    spread_s = BILLION * core_s / grown_frames  # all sizes together decoded, encoded and copied each frame once
    bytes_per_frame = largest["disk"]["n_bytes"] / largest["holds"]["n_frames"]
    figures.keep(
        "project",
        {
            "n_frames": BILLION,
            "n_recordings": len(listing),
            "n_segments": len(plan.segments),
            "n_shards": len(plan.shards),
            "plan_s": round(plan_s, 1),
            "plan_peak_rss_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
            "core_s_that_spread": round(spread_s),
            "n_bytes": round(bytes_per_frame * BILLION),
            "spool_bytes_at_most": round(bytes_per_frame * BILLION),
            "hours_by_workers": {
                str(n): round((spread_s / n + plan_s) / 3600, 2) for n in (2, 16, 64, 256, 1024, 4096)
            },
            "workers_at_which_planning_takes_as_long": round(spread_s / plan_s),
        },
    )


def vidbrain(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "vidbrain", *map(str, arguments)]


def report(figures: Figures, work: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Everything that was measured; it holds no path of this machine."""
    stages = json.loads(json.dumps(figures.stages).replace(str(work), "WORK"))
    return {
        "question": "what do recording and sharding take, from 10k to six million frames?",
        "command": "python tools/shard_6m.py WORK",
        "frames": parse_size(options.frames),
        "codec": options.codec,
        "workers": options.workers,
        "machine": {"cores": os.cpu_count(), "platform": platform.platform(), "python": platform.python_version()},
        "largest_process_bytes": max(s.get("peak_rss_bytes", 0) for s in figures.stages.values()),
        "stages": stages,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--frames", default="6M", help="all frames, at least 50k; a smaller number tries the tool")
    parser.add_argument("--direct", default="10k", help="the size that is also sharded at once, to compare its bytes")
    parser.add_argument("--codec", default="auto", help="of the data set, as `vidbrain shard` takes it")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    n_frames = parse_size(options.frames) or 0
    if n_frames < 50_000:
        parser.error("--frames must be at least 50k")
    options.work.mkdir(parents=True, exist_ok=True)
    work = options.work.absolute()
    source, root, figures = work / "source", work / "data", Figures(work)
    size = min(parse_size(options.direct) or n_frames, n_frames)
    steps: dict[str, Callable[[], None]] = {
        "play": lambda: play(figures, source, n_frames, options.workers),
        "source": lambda: list_source(figures, source, options.codec, options.workers),
        "shard": lambda: shard(figures, source, root, n_frames, options.codec, options.workers),
        "verify": lambda: verify(figures, root, options.workers),
        "direct": lambda: direct(figures, source, root, work / "direct", size, options.codec, options.workers),
        "project": lambda: project(figures),
    }
    for name in STAGES:
        if name in options.stages:
            steps[name]()
            record = report(figures, work, options)
            if options.json:
                write_json(options.json, record)
    print(f"{'stage':<18}{'wall s':>10}{'core s':>10}{'f/core s':>10}{'peak MB':>9}")
    for name, stage in figures.stages.items():
        if "wall_s" in stage:
            rate, peak = stage.get("frames_per_core_s", math.nan), stage["peak_rss_bytes"] / 1e6
            print(f"{name:<18}{stage['wall_s']:10.1f}{stage['cpu_s']:10.1f}{rate:10.0f}{peak:9.0f}")


if __name__ == "__main__":
    main()
