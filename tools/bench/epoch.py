"""What the size of a data set costs a stream: time to the first batch, the order, memory over an epoch.

Usage: python tools/bench/epoch.py DATA [DATA ...] [--planned 6M] [--repeats 5] [--json docs/benchmarks/epoch.json]

For each data set of frames, each figure from fresh processes:

* seconds from the making of a loader to its first batch, at the start of an epoch and resumed at 90 % of it, medians;
* seconds and memory of the order of a whole epoch alone, as a loop takes it, without torch and without a shard;
* memory of the opened index, with some 22 MB that a process takes which reads Parquet for the first time;
* a whole epoch: clips per second, and the peak of resident memory, by the system's count and sampled from outside,
  beside the bound that docs/streaming.md states.

``--planned`` does what can be done without pixels for a data set that is only planned: 605 recordings of equal length,
256 frames a segment, parts of 2.6 kB. Its index is real, its shards are not there.
"""

import argparse
import hashlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

N_RECORDINGS, PART_BYTES, MARGIN_CLIP = 605, 2600, (16, 4)
AT = {"start": 0.0, "resumed": 0.9}


# -- what runs in a process of its own ---------------------------------------------------------------------------------


def memory(name: str) -> int:
    """Resident bytes of this process: VmRSS now, VmHWM at most so far."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def forget_peak() -> None:
    """Let VmHWM begin anew."""
    Path("/proc/self/clear_refs").write_text("5")


def make_loader(task: dict) -> tuple[Any, Any]:
    """Give a loader, and the source that it draws from."""
    from vidbrain.records import ClipSpec, World
    from vidbrain.stream.loader import Loader
    from vidbrain.stream.opening import open_part
    from vidbrain.stream.source import ClipSource

    clip = ClipSpec(task["clip_frames"], task["step"], task["stride"])
    manifest = open_part(task["data"], task["subset"])
    source = ClipSource(manifest, clip, None, cache=task["cache"], kept_bytes=task["kept_bytes"])
    workers = task["workers"] if task["workers"] == "auto" else int(task["workers"])
    settings = {"batch_size": task["batch_size"], "workers": workers, "tail": "mask", "world": World()}
    return Loader(source, **settings), source


def first(task: dict) -> dict:
    import vidbrain.stream.loader  # noqa: F401 -- not what is timed

    began = time.perf_counter()
    loader, _ = make_loader(task)
    opened_s = time.perf_counter() - began
    state = loader.state_dict()
    loader.load_state_dict(state | {"batches": int(task["at"] * len(loader))})
    batches = iter(loader)
    batch = next(batches)
    found = {"first_batch_s": time.perf_counter() - began, "opened_s": opened_s, "number": batch.number}
    batches.close()
    return found


def order(task: dict) -> dict:
    import numpy as np

    from vidbrain.stream.order import EpochOrder

    clips_per_shard = np.array(task["clips_per_shard"], np.int64)
    # One small order first: what is imported and kept for good is not the order's.
    small = EpochOrder(np.array([100], np.int64), batch_size=10, seed=0, epoch=0)
    assert sum(len(clips) for _, clips in small.batches(0)) == 100
    before = memory("VmRSS")
    forget_peak()
    began, cpu_began = time.perf_counter(), time.process_time()
    epoch = EpochOrder(clips_per_shard, batch_size=task["batch_size"], seed=0, epoch=0, tail="mask")
    seen = sum(int((clips >= 0).sum()) for _, clips in epoch.batches(0))
    seconds, cpu_s = time.perf_counter() - began, time.process_time() - cpu_began
    assert seen == epoch.n_clips
    assert "torch" not in sys.modules
    return {
        "n_clips": seen, "n_shards": len(clips_per_shard), "seconds": seconds, "cpu_s": cpu_s,
        "bytes": memory("VmHWM") - before, "process_bytes": memory("VmHWM"), "stated_bytes": epoch.held_bytes,
    }  # fmt: skip


def opened(task: dict) -> dict:
    import vidbrain.stream.loader  # noqa: F401

    before = memory("VmRSS")
    forget_peak()
    began = time.perf_counter()
    _, source = make_loader(task)
    return {
        "seconds": time.perf_counter() - began, "held_bytes": memory("VmRSS") - before,
        "peak_bytes": memory("VmHWM") - before, "clips_per_shard": source.clips_per_shard.tolist(),
    }  # fmt: skip


def epoch(task: dict) -> dict:
    import vidbrain.stream.loader  # noqa: F401

    imported = memory("VmRSS")
    loader, source = make_loader(task)
    held = memory("VmRSS")
    forget_peak()
    began, n_clips, n_batches = time.perf_counter(), 0, 0
    for batch in loader:
        n_batches += 1
        n_clips += int((batch.index >= 0).sum())
        if task["most_batches"] and n_batches == task["most_batches"]:
            break
    seconds, peak = time.perf_counter() - began, memory("VmHWM")
    stats = loader.stats()
    return {
        "n_clips": n_clips, "n_batches": n_batches, "of_batches": len(loader), "seconds": seconds,
        "clips_per_s": n_clips / seconds, "imported_bytes": imported, "opened_bytes": held, "peak_bytes": peak,
        "peak_above_opened_bytes": peak - held, "stated_bytes": loader.memory_bytes,
        "clip_bytes": source.clip_bytes, "threads": stats["threads"], "stored_mb_per_s": stats["mb_per_s"],
    }  # fmt: skip


ROLES = {"first": first, "order": order, "opened": opened, "epoch": epoch}


# -- the other side ----------------------------------------------------------------------------------------------------


def run(role: str, **task: object) -> dict:
    from processes import watch

    command = [sys.executable, __file__, "--role", role, "--task", json.dumps(task)]
    with tempfile.TemporaryFile("w+") as out:
        process = subprocess.Popen(command, stdout=out, start_new_session=True)
        seen = watch(process, 0.02)
        if process.returncode:
            sys.exit(f"{role} of {task.get('data')} ended with {process.returncode}")
        out.seek(0)
        return {**json.loads(out.read().splitlines()[-1]), "sampled_bytes": seen["largest_process_bytes"]}


def plan_only(folder: Path, size: str) -> None:
    """Write the index of a data set of game play that nobody has recorded."""
    import numpy as np
    import pyarrow as pa

    from vidbrain.records import Recording, RunKey
    from vidbrain.sharding.index import index_rows, write_index
    from vidbrain.sharding.parts import PART_FRAMES
    from vidbrain.sharding.plan import Listed, ShardConfig, make_plan, parse_size
    from vidbrain.sharding.record import DATASET, ShardFacts, record_facts
    from vidbrain.storage.info import write_info

    clip_frames, clip_step = MARGIN_CLIP
    config = ShardConfig(size=size, frame_size=64, codec="zstd", clip_frames=clip_frames, clip_step=clip_step)
    n_frames = -(-parse_size(size) // N_RECORDINGS)
    listing = []
    for i in range(N_RECORDINGS):
        run = RunKey(f"{i % 4 + 1:02d}", f"{i // 4 % 12 + 1:03d}", "game", i // 48 + 1)
        key = f"{run.label}_rep-{i:03d}"
        recording = Recording(
            key=key, run=run, level=f"{i % 3 + 1}-0", repetition=str(i), onset_s=0.0, duration_s=n_frames / 60
        )
        listing.append(Listed(recording, n_frames, 60.0))
    plan = make_plan(listing, config)
    by_name = {item.recording.key: item for item in listing}

    def tables() -> Iterator[pa.Table]:
        for shard, (begin, past) in enumerate(plan.shards):
            part = plan.segments[begin:past]
            items = [by_name[ref.recording] for ref in part]
            counts = [-(-ref.n_stored // PART_FRAMES) for ref in part]
            offset = 512 + np.concatenate([[0], np.cumsum([1024 + n * PART_BYTES for n in counts])])
            places = [
                {"offset": at, "n_bytes": n * PART_BYTES, "parts": [PART_BYTES] * n, "crc32": 0, "part_crc32": [0] * n}
                for at, n in zip(offset.tolist(), counts, strict=False)
            ]
            runs = [item.recording.run for item in items]
            columns = {
                "key": [ref.key for ref in part], "recording": [ref.recording for ref in part],
                "run": [run.label for run in runs], "subject": [run.subject for run in runs],
                "session": [run.session for run in runs], "task": [run.task for run in runs],
                "run_number": [run.run for run in runs], "level": [item.recording.level for item in items],
                "repetition": [item.recording.repetition for item in items],
                "split": [plan.split[ref.recording] for ref in part], "start_frame": part.start_frame,
                "n_frames": part.n_frames, "n_stored": part.n_stored,
                "recording_frames": [item.n_frames for item in items], "fps": [item.fps for item in items],
                "onset_s": [0.0] * len(part), "duration_s": [item.duration_s for item in items],
                "shard": np.full(len(part), shard, np.int32), "n_clips": [0] * len(part),
            }  # fmt: skip
            yield index_rows(columns, places)

    counts = [[-(-ref.n_stored // PART_FRAMES) for ref in plan.segments[begin:past]] for begin, past in plan.shards]
    facts = [ShardFacts(512 + sum(1024 + n * PART_BYTES for n in shard), "0" * 64) for shard in counts]
    digest = write_index(folder, tables())
    assert digest == hashlib.sha256((folder / "index.parquet").read_bytes()).hexdigest()
    write_info(
        folder, "shards", config={"size": size, "planned": True}, name=DATASET,
        made_from={"plan": plan.fingerprint, "source": "0" * 16},
        facts={
            "codec": "zstd", "height": 64, "width": 64, "margin": config.margin, "n_frames": plan.n_frames,
            "n_segments": len(plan.segments), "n_recordings": N_RECORDINGS, "skipped": {},
            **record_facts(digest, facts),
        },
    )  # fmt: skip


def facts_of(data: str, subset: str | None) -> dict:
    from vidbrain.stream.opening import open_part

    manifest = open_part(data, subset)
    names = ("codec", "height", "width", "n_frames", "n_segments", "n_recordings", "n_shards")
    return {"data": Path(data).name, **{name: manifest.info[name] for name in names}}


def measure(data: str, args: argparse.Namespace, *, planned: bool) -> dict:
    subset = None if planned else args.frames
    task = {
        "data": data, "subset": subset, "batch_size": args.batch_size, "stride": args.stride, "step": args.step,
        "clip_frames": args.clip_frames, "workers": args.workers, "cache": args.cache,
        "most_batches": args.most_batches, "kept_bytes": args.kept_bytes,
    }  # fmt: skip
    found: dict = {**facts_of(data, subset), "planned": planned}
    index = run("opened", **task)
    clips_per_shard = index.pop("clips_per_shard")
    found["opened"] = {**index, "bytes_per_segment": index["held_bytes"] / found["n_segments"]}
    found["order"] = run("order", clips_per_shard=clips_per_shard, batch_size=args.batch_size)
    if planned:
        return found
    runs = {name: [] for name in AT}
    for _ in range(args.repeats):
        for name, at in AT.items():  # by turns: what else the machine does hits both
            runs[name].append(run("first", at=at, **task))
    for name, each in runs.items():
        found[name] = {
            "number": each[0]["number"],
            **{key: statistics.median(one[key] for one in each) for key in ("first_batch_s", "opened_s")},
        }
        found[name]["all_s"] = [one["first_batch_s"] for one in each]
    found["resumed_by_start"] = found["resumed"]["first_batch_s"] / found["start"]["first_batch_s"]
    found["epoch"] = run("epoch", **task)
    found["epoch"]["within_bound"] = found["epoch"]["peak_above_opened_bytes"] <= found["epoch"]["stated_bytes"]
    return found


def show(found: dict) -> None:
    mb = 1e6
    print(f"\n{found['data']}: {found['n_frames']:,} frames, {found['n_segments']:,} segments")
    index, one = found["opened"], found["order"]
    print(
        f"  opened in {index['seconds']:.2f} s: holds {index['held_bytes'] / mb:.1f} MB, "
        f"{index['bytes_per_segment']:.0f} bytes a segment; {index['peak_bytes'] / mb:.1f} MB at most"
    )
    print(
        f"  order of {one['n_clips']:,} clips: {one['seconds']:.2f} s ({one['cpu_s']:.2f} s of a processor), "
        f"{one['bytes'] / mb:.1f} MB (stated {one['stated_bytes'] / mb:.1f}; "
        f"the whole process {one['process_bytes'] / mb:.1f})"
    )
    if found["planned"]:
        return
    start, resumed, epoch = found["start"], found["resumed"], found["epoch"]
    print(
        f"  first batch: {start['first_batch_s']:.3f} s at the start, {resumed['first_batch_s']:.3f} s at batch "
        f"{resumed['number']}, ratio {found['resumed_by_start']:.2f}"
    )
    print(
        f"  {epoch['n_batches']:,} of {epoch['of_batches']:,} batches, {epoch['clips_per_s']:,.0f} clips/s: peak "
        f"{epoch['peak_bytes'] / mb:.1f} MB (sampled {epoch['sampled_bytes'] / mb:.1f}), of which "
        f"{epoch['imported_bytes'] / mb:.1f} after imports and {epoch['opened_bytes'] / mb:.1f} after opening"
    )
    print(
        f"  above opening: {epoch['peak_above_opened_bytes'] / mb:.1f} MB, stated {epoch['stated_bytes'] / mb:.1f} MB: "
        f"{'within' if epoch['within_bound'] else 'BEYOND'} the bound"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="*", help="data sets of frames: folders or URLs")
    parser.add_argument("--planned", help="frames of a data set that is planned only, as 6M")
    parser.add_argument("--frames", help="prefix of each data set to stream")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--clip-frames", type=int, default=16)
    parser.add_argument("--step", type=int, default=4)
    parser.add_argument("--stride", type=int, default=4, help="4: overlapping clips; 64: disjoint ones, by default")
    parser.add_argument("--workers", default="auto", help="threads of the loader, or auto")
    parser.add_argument("--cache", default="~/.cache/vidbrain", help="of shards at a URL")
    parser.add_argument("--kept-bytes", type=int, default=2 << 30, help="for decoded frames that are needed again")
    parser.add_argument("--most-batches", type=int, default=0, help="end the epoch earlier")
    parser.add_argument("--repeats", type=int, default=5, help="fresh processes for each median")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--role", choices=ROLES, help=argparse.SUPPRESS)
    parser.add_argument("--task", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.role:
        print(json.dumps(ROLES[args.role](json.loads(args.task))), flush=True)
        os._exit(0)  # the end of the process is not what is measured
    results = [measure(data, args, planned=False) for data in args.data]
    if args.planned:
        with tempfile.TemporaryDirectory() as folder:
            plan_only(Path(folder), args.planned)
            results.append({**measure(folder, args, planned=True), "data": f"{args.planned} planned"})
    for found in results:
        show(found)
    if args.json:
        settings = {name: value for name, value in vars(args).items() if name not in ("data", "json", "role", "task")}
        machine = {"cores": os.cpu_count(), "python": platform.python_version(), "system": platform.platform()}
        args.json.write_text(json.dumps({"machine": machine, "settings": settings, "data": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
