"""Stream the same clips by vidbrain and by its peers, from a disk and from an S3 server on this machine.

Two cases of clips of 16 frames: overlapping (one begins every fourth frame) and disjoint. vidbrain stores frames once;
webdataset, litdata and MosaicML streaming store each clip, raw and packed by zstd, and are run with each number of
worker processes; of each the fastest is compared. All read every clip twice, shuffled, in batches of 64: epoch 1 fills
their caches, epoch 2 finds them. A sum over one pixel of every clip shows that all of them gave the same frames.

Memory that nobody used lately costs a virtual machine whose host takes free pages back some ten times what it costs
another machine, as much as all that a loader does. So each process writes to enough memory first, and gives it back.

The decode floor is what unpacking takes, alone, of the parts that each clip touches: from memory, by as many threads,
into one buffer that is used again ("unpacked"), and into memory that is as large as the batches in flight ("written").
Frames that vidbrain keeps between clips are not unpacked again, so its share of the floor may be above one; it is
measured with ``kept_bytes`` as they are and without.

Run: python tools/bench/stream.py DATA --peers .venv-bench/bin/python --json docs/benchmarks/stream.json
DATA is a data set of frames of 64 by 64 pixels (`--frames` lowers how many it must hold).
"""

import argparse
import importlib.util
import itertools
import json
import mmap
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import types
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from vidbrain.stream.source import ClipSource
    from vidbrain.testing.servers import Server

BATCH = 64
T = 16
SEED = 0
PEERS = ("webdataset", "litdata", "mosaicml")
CASES = {"overlapping": 4, "disjoint": 16}
FRAMES = {"overlapping": "32000", "disjoint": "240000"}
"""Of the data set's prefix; peers store up to 49 kB of a frame in overlapping clips, 12 kB in disjoint ones."""
TOUCHED_BYTES = 2 << 30
"""More than any loader here asks for between its start and its end, page cache apart."""
BUCKET = "bench"
IMPORTS = {
    "vidbrain": ["vidbrain.stream.loader"], "webdataset": ["webdataset", "torch", "zstandard"],
    "litdata": ["litdata", "torch", "zstandard"], "mosaicml": ["streaming.base", "torch"],
}  # fmt: skip
ROW = "{:12} {:5} {:11} {:9} {:>7} {:>10} {:>10} {:>10} {:>9}"


# -- what runs in a process of its own, by the interpreter of its peer: no import of vidbrain here ---------------------


def partial(name: str) -> None:
    """Make a package importable by its modules without running its ``__init__``, which wants more than is needed."""
    spec = importlib.util.find_spec(name)
    package = types.ModuleType(name)
    package.__path__, package.__spec__ = list(spec.submodule_search_locations), spec
    sys.modules[name] = package


def packed(clip: np.ndarray, storage: str) -> bytes:
    import zstandard

    return zstandard.ZstdCompressor(level=3).compress(clip.tobytes()) if storage == "zstd" else clip.tobytes()


def write_peer(task: dict) -> dict:
    clips, out = np.load(task["clips"], mmap_mode="r"), Path(task["out"])
    if task["peer"] == "webdataset":
        import webdataset

        out.mkdir(parents=True)
        with webdataset.ShardWriter(f"{out}/%06d.tar", maxsize=64e6, maxcount=10**9, verbose=0) as sink:
            for i, clip in enumerate(clips):
                sink.write({"__key__": f"{i:08d}", task["storage"]: packed(clip, task["storage"])})
    elif task["peer"] == "litdata":
        import functools

        import litdata

        # Each sample is packed by itself: whole chunks that are packed are unpacked whole for every reader.
        litdata.optimize(
            fn=functools.partial(litdata_sample, task["clips"], task["storage"]), inputs=list(range(len(clips))),
            output_dir=str(out), chunk_bytes="64MB", num_workers=1, verbose=False,
        )  # fmt: skip
    else:
        partial("streaming")
        from streaming.base import MDSWriter

        columns = {"clip": f"ndarray:uint8:{','.join(map(str, clips.shape[1:]))}"}
        compression = "zstd:3" if task["storage"] == "zstd" else None
        with MDSWriter(out=str(out), columns=columns, compression=compression, size_limit=1 << 26) as sink:
            for clip in clips:
                sink.write({"clip": np.ascontiguousarray(clip)})
    return {"n_bytes": size_of(out)}


def litdata_sample(clips: str, storage: str, i: int) -> dict:
    return {"clip": packed(np.load(clips, mmap_mode="r")[i], storage)}


class Unpack:
    """Bytes of a sample -> array; an object, so that worker processes get it."""

    def __init__(self, storage: str, shape: list[int]) -> None:
        self.storage, self.shape = storage, shape

    def __call__(self, sample: dict) -> np.ndarray:
        import zstandard

        data = sample.get("clip", sample.get(self.storage))
        if self.storage == "zstd":
            data = zstandard.ZstdDecompressor().decompress(data)
        return np.frombuffer(data, np.uint8).reshape(self.shape)


def open_peer(task: dict) -> Callable[[], Iterable[Any]]:
    """Give a function that iterates over an epoch's batches."""
    unpack, n_workers = Unpack(task["storage"], task["shape"]), task["workers"]
    if task["peer"] == "webdataset":
        import webdataset

        cache = {"cache_dir": task["cache"]} if task["cache"] else {}
        if cache:
            Path(task["cache"]).mkdir(parents=True)
        data = webdataset.WebDataset(task["urls"], shardshuffle=100, seed=SEED, empty_check=False, **cache)
        data = data.shuffle(1000).map(unpack).batched(BATCH, partial=True, collation_fn=np.stack)
        return lambda: iter(webdataset.WebLoader(data, batch_size=None, num_workers=n_workers))
    if task["peer"] == "litdata":
        import litdata
        from litdata.streaming import downloader

        # It has no setting by which its client takes unencrypted http, which is what the server on this machine speaks.
        downloader._OBSTORE_CLIENT_OPTIONS["allow_http"] = True
        options = {"storage_options": {"endpoint_url": task["endpoint"]}} if task["endpoint"] else {}
        data = litdata.StreamingDataset(
            task["root"], cache_dir=task["cache"], shuffle=True, drop_last=False, seed=SEED, transform=unpack, **options
        )
        loader = litdata.StreamingDataLoader(data, batch_size=BATCH, num_workers=n_workers)
        return lambda: iter(loader)
    import torch
    from streaming.base import StreamingDataset

    where = {"remote": task["root"], "local": task["cache"]} if task["cache"] else {"local": task["root"]}
    data = StreamingDataset(**where, shuffle=True, shuffle_seed=SEED, batch_size=BATCH)
    loader = torch.utils.data.DataLoader(data, batch_size=BATCH, num_workers=n_workers)
    return lambda: (batch["clip"] for batch in loader)


def open_vidbrain(task: dict) -> Callable[[], Iterable[Any]]:
    from vidbrain.records import ClipSpec
    from vidbrain.stream import loader, source

    source.ClipSource.__init__.__kwdefaults__["kept_bytes"] = task["kept_bytes"]
    stream = loader.stream(
        task["root"], subset=task["subset"], clip=ClipSpec(T, task["step"], task["stride"]), batch_size=BATCH,
        seed=SEED, tail="mask", workers=task["workers"], cache=task["cache"] or source.CACHE,
    )  # fmt: skip
    return lambda: (batch.video[batch.index >= 0] if (batch.index < 0).any() else batch.video for batch in stream)


def read(task: dict) -> dict:
    """Two epochs: seconds to the first batch from the making of the loader on, clips per second of each epoch."""
    if task["peer"] == "mosaicml":
        partial("streaming")
    for name in IMPORTS[task["peer"]]:
        importlib.import_module(name)
    touch_memory()
    began = time.perf_counter()
    epochs, result = (open_vidbrain if task["peer"] == "vidbrain" else open_peer)(task), {"epochs": []}
    for epoch in range(2):
        begins, n_clips, total = time.perf_counter(), 0, 0
        for batch in epochs():
            if not n_clips:
                first_s = time.perf_counter() - (began if epoch == 0 else begins)
                if task["only_first"]:
                    return {"first_batch_s": first_s}
            n_clips += len(batch)
            total += int(np.asarray(batch[:, T // 2, 31, 31, 1]).astype(np.int64).sum())
        seconds = time.perf_counter() - begins
        result["epochs"].append(
            {"first_batch_s": first_s, "n_clips": n_clips, "clips_per_s": n_clips / seconds, "pixel_sum": total}
        )
    usage = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    # Some unpack whole shards beside or in the place of what they fetched.
    held = [path for path in (task["cache"], task.get("folder")) if path]
    return {**result, "peak_rss_bytes": 1024 * max(usage), "disk_bytes": sum(map(size_of, held))}


def fetch(task: dict) -> dict:
    """Seconds that a store takes, alone, for what a first batch of vidbrain's needs: by whole shards, and by ranges."""
    from concurrent.futures import ThreadPoolExecutor

    from vidbrain.storage.objects import open_root

    touch_memory()
    root, found = open_root(task["root"]), {}
    begins = time.perf_counter()
    for name in ("dataset.json", "index.parquet"):
        root.get(name)
    found["record_and_index_s"] = time.perf_counter() - begins
    with ThreadPoolExecutor(8) as pool:
        for name in ("whole", "ranges"):
            begins = time.perf_counter()
            got = list(pool.map(lambda job: len(root.view_range(*job)), task[name]))
            found |= {f"{name}_s": time.perf_counter() - begins, f"{name}_requests": len(got)}
            found[f"{name}_bytes"] = sum(got)
    return found


def touch_memory() -> None:
    """Write to memory and give it back, so that its pages are there when a loader asks for them."""
    pages = mmap.mmap(-1, TOUCHED_BYTES, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        pages.madvise(mmap.MADV_HUGEPAGE)
    np.frombuffer(pages, np.uint8)[:: mmap.PAGESIZE] = 1
    pages.close()


def size_of(folder: str | Path) -> int:
    return sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())


# -- the project's side ------------------------------------------------------------------------------------------------


def source_of(args: argparse.Namespace, frames: str, stride: int) -> "ClipSource":
    from vidbrain.records import ClipSpec
    from vidbrain.stream.opening import open_part
    from vidbrain.stream.source import ClipSource

    return ClipSource(open_part(args.data, frames), ClipSpec(T, args.step, stride), None, kept_bytes=0)


def dump_clips(source: "ClipSource", path: Path) -> list[int]:
    n_clips = int(source.clips_per_shard.sum())
    clips = np.lib.format.open_memmap(path, "w+", np.uint8, (n_clips, *source.shape))
    for at in range(0, n_clips, BATCH):
        batch = source.read(np.arange(at, min(n_clips, at + BATCH)))
        clips[at : at + BATCH] = batch.video
    return list(clips.shape[1:])


def decode_floor(source: "ClipSource", n_clips: int = 2000) -> dict:
    """Clips per second that unpacking alone allows, by two threads, and how many parts a clip touches."""
    from vidbrain.sharding.codecs import get_codec
    from vidbrain.stream.layout import plan_reads

    reader = source._reader
    codec, height, width = get_codec(reader._codec.name), *source.shape[1:3]
    clips = np.random.default_rng(SEED).permutation(int(source.clips_per_shard.sum()))[:n_clips]
    parts = []
    for clip in clips:
        segments, starts = source.table.locate(np.array([clip]))
        for reads in plan_reads(reader._layout, segments, starts, source.clip):
            blocks = source._shards.read(reads.spans)
            parts += [bytes(blocks[part.span][part.begin : part.past]) for part in reads.parts]
    frames = [codec.count_frames(part, height, width) for part in parts]

    def unpack(number: int, n_places: int) -> None:
        places = np.zeros((n_places, T, height, width, 3), np.uint8)
        for i in range(number, len(parts), 2):
            codec.decode_into(parts[i], places[i // 2 % n_places][: frames[i]], range(frames[i]))

    found = {"parts_per_clip": len(parts) / len(clips)}
    for name, n_places in (("unpacked", 1), ("written", 4 * BATCH)):
        seconds = []
        for _ in range(3):
            threads = [threading.Thread(target=unpack, args=(number, n_places)) for number in range(2)]
            begins = time.perf_counter()
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            seconds.append(time.perf_counter() - begins)
        found[name] = len(clips) / min(seconds)
    return found


def first_reads(source: "ClipSource", data: str) -> dict:
    """Ranges of the first batch, joined as vidbrain joins them, and those of the shards that it touches, whole."""
    from vidbrain.storage.clients import PART_BYTES
    from vidbrain.storage.objects import coalesce
    from vidbrain.stream.layout import plan_reads
    from vidbrain.stream.order import EpochOrder

    clips = EpochOrder(source.clips_per_shard, batch_size=BATCH, seed=SEED, epoch=0).batch(0)
    by_shard: dict[int, list[tuple[int, int]]] = {}
    for reads in plan_reads(source._reader._layout, *source.table.locate(clips), source.clip):
        for shard, begin, end in reads.spans:
            by_shard.setdefault(shard, []).append((begin, end))
    whole, ranges = [], []
    for shard, spans in by_shard.items():
        key = f"shards/{shard:06d}.tar"
        n_bytes = (Path(data) / key).stat().st_size
        whole += [(key, at, min(n_bytes, at + PART_BYTES)) for at in range(0, n_bytes, PART_BYTES)]
        ranges += [(key, begin, end) for begin, end in coalesce(spans)]
    return {"whole": whole, "ranges": ranges}


def first_batches(args: argparse.Namespace, python: str, task: dict, environment: dict[str, str], work: Path) -> list:
    """Seconds to the first batch in processes of their own, with nothing cached."""
    found = []
    for _ in range(args.starts):
        with tempfile.TemporaryDirectory(dir=work) as cache:
            held = str(Path(cache) / "cache") if task["cache"] else None
            found.append(run(python, "read", {**task, "cache": held, "only_first": True}, environment))
    return [each.get("first_batch_s") for each in found]


def run(python: str, role: str, task: dict, environment: dict[str, str]) -> dict:
    done = subprocess.run(
        [python, __file__, "--role", role, "--task", json.dumps(task)],
        capture_output=True, text=True, env={**os.environ, **environment}, timeout=1800,
    )  # fmt: skip
    if done.returncode:
        return {"error": " ".join(done.stderr.split())[-400:]}
    return json.loads(done.stdout.splitlines()[-1])


def upload(folder: Path, url: str) -> None:
    """Copy a folder; anybody may read it, as webdataset reads by curl."""
    import boto3

    from vidbrain.storage.objects import open_root
    from vidbrain.storage.transfers import upload as send

    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        key = path.relative_to(folder).as_posix()
        send(open_root(url), key, path)
        bucket, _, prefix = url.removeprefix("s3://").partition("/")
        boto3.client("s3").put_object_acl(Bucket=bucket, Key=f"{prefix}/{key}", ACL="public-read")


def measure(args: argparse.Namespace, case: str, work: Path, server: "Server") -> dict:
    stride, frames = CASES[case] * (args.step if case == "disjoint" else 1), args.frames or FRAMES[case]
    environment = {**server.environment(), "S3_ENDPOINT_URL": server.endpoint}
    os.environ.update(environment)
    source = source_of(args, frames, stride)
    shape, n_clips = dump_clips(source, work / "clips.npy"), int(source.clips_per_shard.sum())
    os.sync()  # what is still being written to the disk would be measured with what is read
    ours = {"n_bytes": stored_bytes(args.data, frames), "floor": decode_floor(source), "runs": []}
    if "s3" in args.places:
        ours["first_fetch"] = run(
            sys.executable, "fetch", {"root": f"s3://{BUCKET}/ours", **first_reads(source, args.data)}, environment
        )
    source.close()
    result = {"frames": frames, "n_clips": n_clips, "stride": stride, "step": args.step, "vidbrain": ours, "peers": {}}
    for place in args.places:
        url = str(Path(args.data).absolute()) if place == "disk" else f"s3://{BUCKET}/ours"
        for kept_bytes, threads in itertools.product((2 << 30, 0), args.threads):
            with tempfile.TemporaryDirectory(dir=work) as cache:
                task = {
                    "peer": "vidbrain", "root": url, "subset": frames, "step": args.step, "stride": stride,
                    "workers": threads, "kept_bytes": kept_bytes, "cache": cache if place == "s3" else None,
                    "only_first": False,
                }  # fmt: skip
                found = run(sys.executable, "read", task, environment)
                starts = first_batches(args, sys.executable, task, environment, work) if kept_bytes else []
                found["first_batches_s"] = starts
            line = {"place": place, "storage": "frames", "workers": threads, "kept_bytes": kept_bytes, **found}
            ours["runs"].append(line)
            show("vidbrain", case, ours["runs"][-1], ours["n_bytes"])
    for peer in args.only:
        result["peers"][peer] = []
        for storage in ("raw", "zstd"):
            folder = work / f"{peer}-{storage}"
            task = {"peer": peer, "storage": storage, "clips": str(work / "clips.npy"), "out": str(folder)}
            written = run(args.peers, "write", task, environment)
            os.sync()
            if "error" in written:
                result["peers"][peer].append({"storage": storage, **written})
                print(f"{peer} cannot write {storage}: {written['error']}")
                continue
            for place in args.places:
                if place == "s3":
                    upload(folder, f"s3://{BUCKET}/{case}/{folder.name}")
                for workers in args.workers:
                    with tempfile.TemporaryDirectory(dir=work) as cache:
                        task = read_task(peer, place, storage, workers, shape, folder, case, Path(cache), server)
                        found = run(args.peers, "read", task, environment)
                        # Worker processes take longer to begin, of any of them.
                        is_timed = workers == min(args.workers)
                        found["first_batches_s"] = (
                            first_batches(args, args.peers, task, environment, work) if is_timed else []
                        )
                    line = {"place": place, "storage": storage, "workers": workers, **written, **found}
                    result["peers"][peer].append(line)
                    show(peer, case, line, written["n_bytes"])
            shutil.rmtree(folder)
    (work / "clips.npy").unlink()
    return {**result, "ratios": ratios(result)}


def read_task(
    peer: str,
    place: str,
    storage: str,
    workers: int,
    shape: list[int],
    folder: Path,
    case: str,
    cache: Path,
    server: "Server",
) -> dict:
    remote = place == "s3"
    key = f"{BUCKET}/{case}/{folder.name}"
    urls = sorted(str(path) for path in folder.glob("*.tar"))
    if remote:
        urls = [f"{server.endpoint}/{key}/{Path(url).name}" for url in urls]
    return {
        "peer": peer, "storage": storage, "workers": workers, "shape": shape, "urls": urls,
        "root": f"s3://{key}" if remote else str(folder), "cache": str(cache / "cache") if remote else None,
        "endpoint": server.endpoint if remote else None, "folder": None if remote else str(folder),
        "only_first": False,
    }  # fmt: skip


def stored_bytes(data: str, frames: str) -> int:
    from vidbrain.stream.opening import open_part

    return int(open_part(data, frames).segments["n_bytes"].sum())


def show(who: str, case: str, line: dict, n_bytes: int) -> None:
    if "error" in line:
        print(f"{who} {case} {line['place']} {line['storage']} {line['workers']} workers: {line['error']}")
        return
    one, two = line["epochs"]
    storage = line["storage"] if line.get("kept_bytes", 1) else "nothing kept"
    cells = (f"{one['clips_per_s']:,.0f}", f"{two['clips_per_s']:,.0f}", f"{one['first_batch_s']:.2f} s")
    print(ROW.format(who, line["place"], case, storage[:9], line["workers"], *cells, f"{n_bytes / 1e6:,.1f} MB"))


def first_start(lines: list[dict]) -> float | None:
    """The soonest of them by the median of its processes; None if none was timed."""
    timed = [[each for each in line["first_batches_s"] if each is not None] for line in lines]
    return min((statistics.median(seconds) for seconds in timed if seconds), default=None)


def ratios(result: dict) -> dict:
    """Ours by the best peer's, place by place and epoch by epoch, each in its fastest setting."""
    found = {}
    ours = [line for line in result["vidbrain"]["runs"] if "epochs" in line]
    peers = [{"peer": peer, **line} for peer, lines in result["peers"].items() for line in lines if "epochs" in line]
    sums = {epoch["pixel_sum"] for line in ours + peers for epoch in line["epochs"]}
    for place in {line["place"] for line in ours}:
        here, there = ([line for line in lines if line["place"] == place] for lines in (ours, peers))
        for number in range(2):
            mine = max(here, key=lambda line: line["epochs"][number]["clips_per_s"])
            floor = result["vidbrain"]["floor"]
            row: dict[str, Any] = {"threads": mine["workers"]}
            for name, line in itertools.product(("unpacked", "written"), here):
                share = f"share_of_floor_{name}_{'kept' if line['kept_bytes'] else 'nothing_kept'}"
                row[share] = max(row.get(share, 0.0), line["epochs"][number]["clips_per_s"] / floor[name])
            if there:
                best = max(there, key=lambda line: line["epochs"][number]["clips_per_s"])
                soonest = min(line["epochs"][number]["first_batch_s"] for line in there)
                ours_first, theirs_first = first_start(here), first_start(there)
                row |= {
                    "best_peer": f"{best['peer']} {best['storage']} {best['workers']} workers",
                    "clips_per_s": mine["epochs"][number]["clips_per_s"] / best["epochs"][number]["clips_per_s"],
                    "bytes": result["vidbrain"]["n_bytes"] / best["n_bytes"],
                    "first_batch": mine["epochs"][number]["first_batch_s"] / soonest,
                }
                if number == 0:  # in several processes, and so less by chance
                    row["first_batch"] = ours_first / theirs_first if ours_first and theirs_first else None
            found[f"{place}, epoch {number + 1}"] = row
    return {"all_gave_the_same_frames": len(sums) == 1, **found}


ROLES = {"write": write_peer, "read": read, "fetch": fetch}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", help="data set of frames, in a folder")
    parser.add_argument("--frames", help=f"prefix of it to stream; default {FRAMES}")
    parser.add_argument("--step", type=int, default=1, help="source frames between the frames of a clip")
    parser.add_argument("--peers", default=".venv-bench/bin/python", help="interpreter that has the peers")
    parser.add_argument("--only", nargs="*", default=list(PEERS), help="peers to run")
    parser.add_argument("--cases", nargs="*", default=list(CASES))
    parser.add_argument("--places", nargs="*", default=["disk", "s3"])
    parser.add_argument("--workers", nargs="*", type=int, default=[0, 1, 2], help="worker processes of peers")
    parser.add_argument("--threads", nargs="*", type=int, default=[2, 3], help="threads of vidbrain")
    parser.add_argument("--starts", type=int, default=5, help="processes that are timed to their first batch")
    parser.add_argument("--work", help="folder for the peers' copies; default a temporary one")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--role", choices=list(ROLES), help=argparse.SUPPRESS)
    parser.add_argument("--task", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.role:
        out, sys.stdout = sys.stdout, sys.stderr  # peers print too
        result = ROLES[args.role](json.loads(args.task))
        print(json.dumps(result), file=out, flush=True)
        os._exit(0)  # threads and worker processes of peers may outlive their loaders
    from vidbrain.testing.servers import moto_server

    print(ROW.format("", "place", "case", "storage", "workers", "epoch 1", "epoch 2", "first", "stored"))
    with tempfile.TemporaryDirectory(dir=args.work) as work, moto_server(BUCKET) as server:
        os.environ.update(server.environment())
        if "s3" in args.places:
            upload(Path(args.data), f"s3://{BUCKET}/ours")
        cases = {case: measure(args, case, Path(work), server) for case in args.cases}
    for case, result in cases.items():
        print(json.dumps({case: result["ratios"]}, indent=1))
    if args.json:
        machine = {"cores": os.cpu_count(), "python": platform.python_version(), "system": platform.platform()}
        record = {"machine": machine, "batch": BATCH, "cases": cases}
        args.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
