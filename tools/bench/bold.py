"""How fast does a whole-brain data set become a BOLD store, and how fast are voxels read? Beside nilearn and nibabel.

Usage: python tools/bench/bold.py ROOT [--parts simulate floor ingest nilearn-hdf5 nibabel-zarr read s3] [--json FILE]

Runs are simulated under ROOT once (NIfTI, float32), and then each part is one process tree of its own, watched from
outside. A part that is done is kept in ROOT/bold-bench.json and not done again (`--again` forgets the named parts), so
that the same command goes on where it was stopped. Before every timed reading the kernel is told to forget the files.

ingest         vidbrain bold ingest: brain mask, detrend, z-score; checksums and read-back included
floor          every byte of the NIfTI files read and unpacked, and as many bytes as the store has written and flushed,
               each spread over as many processes as ingest has; the start of the processes is not counted. Unpacked
               twice: by Python's gzip, as nibabel and nilearn do, and by what ingest uses
nilearn-hdf5   NiftiMasker with the same mask and cleaning, a run at a time in as many processes, into one HDF5 a run
nibabel-zarr   nibabel loads a run, the mask picks voxels, zarr.save_array writes them as it likes; no cleaning
read           all time of 4,096 neighbouring voxels of every run: from the store, from run-major HDF5 (4,096 columns
               side by side, not packed, its best case), from the plain Zarr, and, of --nifti-runs runs, from HDF5
               packed by gzip 4, as CNeuroMod ships its series, and from the NIfTI files
s3             the same from an S3 server on loopback, through a proxy that counts requests
"""

import argparse
import gzip
import json
import math
import multiprocessing
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import nibabel
import nilearn
import numpy as np
import scipy.signal
import zarr
from processes import watch

from vidbrain.bold.ahead import read_runs
from vidbrain.bold.bids import RunFiles, find_runs
from vidbrain.bold.forms.nifti import series_facts
from vidbrain.bold.forms.packed import Unpacked
from vidbrain.bold.store import open_bold
from vidbrain.bold.voxels import flat_index
from vidbrain.features.store import write_run
from vidbrain.storage.info import is_done, write_info
from vidbrain.storage.objects import open_root
from vidbrain.testing.servers import ChaosProxy, moto_server

PARTS = ("simulate", "floor", "ingest", "nilearn-hdf5", "nibabel-zarr", "read", "s3")
TR_S = 1.49
N_BLOCK = 4096
"""Voxels that are read at once."""
MEGABYTE = 1 << 20


def make_features(root: Path, n_runs: int, n_trs: int) -> Path:
    """Write a small feature set of white noise: the drivers of the simulation."""
    config = {"layers": [{"name": "noise"}], "tr_s": TR_S, "n_trs": n_trs, "runs": n_runs}
    labels = [f"sub-01_ses-{1 + n // 2:03d}_task-game_run-{1 + n % 2}" for n in range(n_runs)]
    # The scan goes on for 6 s after the last of what was shown.
    shown = n_trs - math.ceil(6.0 / TR_S)
    if not is_done(root, "features", config=config, made_from={}):
        for number, label in enumerate(labels):
            x = np.random.default_rng([2, number]).standard_normal((shown, 8), np.float32)
            attributes = {"tr_s": TR_S, "fingerprint": "benchmark"}
            write_run(root, "noise", label, features=x, valid=np.ones(shown, bool), attributes=attributes)
        write_info(root, "features", config=config, made_from={}, facts={"runs": labels})
    return root


def run_watched(command: list[str]) -> dict[str, Any]:
    """Run a command in a session of its own, one thread a process; seconds and peak memory."""
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    began = time.perf_counter()
    process = subprocess.Popen(
        command, start_new_session=True, stdout=subprocess.DEVNULL, env={**os.environ, **threads}
    )
    memory = watch(process)
    if process.returncode:
        raise SystemExit(process.returncode)
    return {"seconds": round(time.perf_counter() - began, 2), **memory}


def forget(paths: list[Path]) -> None:
    """Flush files and tell the kernel to drop them from its cache."""
    for path in paths:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(handle)


def files_below(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if path.is_file()]


def n_bytes_below(root: Path) -> int:
    return sum(path.stat().st_size for path in files_below(root))


# What the watched processes do.


def in_parallel(work: Callable[[Any], object], rows: list[Any], workers: int) -> float:
    """Seconds that the work took, without the start of the processes."""
    with multiprocessing.get_context("fork").Pool(workers) as pool:
        began = time.perf_counter()
        pool.map(work, rows, chunksize=1)
        return time.perf_counter() - began


def read_through(path: Path) -> None:
    """Read and unpack a file to its end, a megabyte at a time."""
    opener: Any = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rb") as stream:
        while stream.read(MEGABYTE):
            pass


def unpack_through(path: Path) -> None:
    """The same by what ingest unpacks with."""
    buffer = memoryview(bytearray(MEGABYTE))
    with path.open("rb") as raw:
        stream: Any = Unpacked(raw) if path.suffix == ".gz" else raw
        while stream.readinto(buffer):
            pass


def write_through(row: tuple[Path, int]) -> None:
    """Write so many bytes and flush them."""
    path, n_bytes = row
    block = np.random.default_rng(0).bytes(MEGABYTE)
    with path.open("wb") as stream:
        for first in range(0, n_bytes, MEGABYTE):
            stream.write(block[: min(MEGABYTE, n_bytes - first)])
        stream.flush()
        os.fsync(stream.fileno())


def mask_to_hdf5(row: tuple[RunFiles, Path]) -> None:
    """NiftiMasker with the cleaning that `ingest` is asked for here, into a run-major HDF5 file."""
    from nilearn.maskers import NiftiMasker

    files, out = row
    masker = NiftiMasker(mask_img=str(files.mask), detrend=True, standardize="zscore_sample", t_r=TR_S)
    series = masker.fit_transform(str(files.bold)).astype(np.float32)
    with h5py.File(out, "w") as file:
        file.create_dataset("bold", data=series)
        file.flush()


def save_zarr(row: tuple[RunFiles, Path]) -> None:
    """Nibabel loads a whole run, and zarr writes what is inside the mask as it likes."""
    files, out = row
    inside = np.asarray(nibabel.load(files.mask).dataobj) > 0
    series = np.asarray(nibabel.load(files.bold).dataobj, np.float32)[inside].T
    zarr.save_array(str(out), np.ascontiguousarray(series))


def do_task(task: str, root: Path, workers: int) -> float:
    """Do what `run_watched` watches; seconds of the work alone."""
    runs = find_runs(root / "simulated")
    if task == "read-all":
        return in_parallel(read_through, [files.bold for files in runs], workers)
    if task == "unpack-all":
        return in_parallel(unpack_through, [files.bold for files in runs], workers)
    if task == "write-all":
        size = n_bytes_below(root / "bold") // len(runs)
        folder = root / "floor"
        folder.mkdir(exist_ok=True)
        return in_parallel(write_through, [(folder / f"{n}.bin", size) for n in range(len(runs))], workers)
    if task == "nilearn-hdf5":
        folder = root / "hdf5"
        folder.mkdir(exist_ok=True)
        return in_parallel(mask_to_hdf5, [(files, folder / f"{files.run.label}.h5") for files in runs], workers)
    folder = root / "zarr"
    folder.mkdir(exist_ok=True)
    return in_parallel(save_zarr, [(files, folder / f"{files.run.label}.zarr") for files in runs], workers)


def watched_task(task: str, options: argparse.Namespace) -> dict[str, Any]:
    command = [sys.executable, str(Path(__file__).resolve()), str(options.root), "--task", task]
    found = run_watched([*command, "--workers", str(options.workers)])
    told = options.root / "task.json"
    found["work_seconds"] = json.loads(told.read_text())
    told.unlink()
    return found


# Parts.


def simulate(options: argparse.Namespace) -> dict[str, Any]:
    features = make_features(options.root / "features", options.runs, options.trs)
    out = options.root / "simulated"
    command = [sys.executable, "-m", "vidbrain", "bold", "simulate", "--features", str(features), "--out", str(out)]
    command += ["--resolution-mm", str(options.resolution_mm), "--dtype", options.dtype]
    found = run_watched([*command, "--workers", str(options.workers)])
    runs = find_runs(out)
    if options.unpacked:
        for files in runs:
            with gzip.open(files.bold, "rb") as packed, files.bold.with_suffix("").open("wb") as plain:
                shutil.copyfileobj(packed, plain, MEGABYTE)
            files.bold.unlink()
    n_voxels = int(np.count_nonzero(np.asarray(nibabel.load(runs[0].mask).dataobj)))
    return {
        **found,
        "n_voxels": n_voxels,
        "brain_bytes_as_float32": 4 * n_voxels * options.trs * options.runs,
        "nifti_bytes": sum(files.bold.stat().st_size for files in find_runs(out)),
        "nifti": "plain" if options.unpacked else "packed",
    }


def floor(options: argparse.Namespace) -> dict[str, Any]:
    forget([files.bold for files in find_runs(options.root / "simulated")])
    reading = watched_task("read-all", options)
    forget([files.bold for files in find_runs(options.root / "simulated")])
    unpacking = watched_task("unpack-all", options)
    writing = watched_task("write-all", options)
    shutil.rmtree(options.root / "floor")
    return {
        "read_seconds": reading["work_seconds"],
        "read_seconds_as_ingest_unpacks": unpacking["work_seconds"],
        "write_seconds": writing["work_seconds"],
        "seconds": round(reading["work_seconds"] + writing["work_seconds"], 2),
        "seconds_as_ingest_unpacks": round(unpacking["work_seconds"] + writing["work_seconds"], 2),
        "store_bytes": n_bytes_below(options.root / "bold"),
    }


def ingest(options: argparse.Namespace) -> dict[str, Any]:
    source, out = options.root / "simulated", options.root / "bold"
    shutil.rmtree(out, ignore_errors=True)
    forget([files.bold for files in find_runs(source)])
    command = [sys.executable, "-m", "vidbrain", "bold", "ingest", str(source), "--out", str(out)]
    command += ["--clean.confounds", "none", "--clean.high-pass", "none", "--workers", str(options.workers)]
    return {**run_watched(command), "store_bytes": n_bytes_below(out)}


def rival(name: str, folder: str) -> Callable[[argparse.Namespace], dict[str, Any]]:
    def measure(options: argparse.Namespace) -> dict[str, Any]:
        shutil.rmtree(options.root / folder, ignore_errors=True)
        forget([files.bold for files in find_runs(options.root / "simulated")])
        return {**watched_task(name, options), "bytes": n_bytes_below(options.root / folder)}

    return measure


def places_of(options: argparse.Namespace) -> list[int]:
    """First voxels of the blocks that are read: an even one, and others anywhere."""
    n_voxels = open_bold(options.root / "bold").n_voxels
    width = min(N_BLOCK, n_voxels)
    rng = np.random.default_rng(7)
    even = (n_voxels - width) // 2 // width * width
    return [even, *rng.integers(0, n_voxels - width + 1, options.repetitions - 1).tolist()]


def read_store(root: Any, first: int, runs: list[str], width: int) -> list[np.ndarray]:  # noqa: ANN401 -- path or URL
    return list(read_runs(open_bold(root), runs, slice(first, first + width)))


def read_nifti(files: RunFiles, ijk: np.ndarray, places: slice) -> np.ndarray:
    """All time of some voxels from a NIfTI file: nibabel's array proxy, a volume at a time."""
    image = nibabel.load(files.bold)
    index = tuple(ijk[places].T)
    if files.bold.suffix != ".gz":
        return np.stack([np.asarray(image.dataobj[..., t])[index] for t in range(image.shape[3])])
    return np.asarray(image.dataobj)[index].T  # a packed file is read from its begin for every slice


def difference_from_nilearn(root: Path, run: str) -> float | None:
    """Largest difference of the store's first volumes from those that NiftiMasker made; None without its file."""
    path = root / "hdf5" / f"{run}.h5"
    if not path.is_file():
        return None
    store = open_bold(root / "bold")
    # Both hold the voxels of the mask: nilearn's last index runs fastest.
    order = np.lexsort(store.ijk.T[::-1])
    with h5py.File(path) as file:
        theirs = file["bold"][:8]
    return float(np.abs(store.read(run)[:8][:, order] - theirs).max())


def packed_hdf5(root: Path, run: str) -> Path:
    """The file that nilearn's series are in, packed by gzip 4 in chunks that h5py chooses."""
    path = root / "hdf5-packed" / f"{run}.h5"
    if not path.is_file():
        path.parent.mkdir(exist_ok=True)
        with h5py.File(root / "hdf5" / f"{run}.h5") as file, h5py.File(path, "w") as out:
            out.create_dataset("bold", data=file["bold"][:], compression="gzip", compression_opts=4)
    return path


def timed(work: Callable[[], object], paths: list[Path]) -> float:
    forget(paths)
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def read(options: argparse.Namespace) -> dict[str, Any]:
    root = options.root
    store = open_bold(root / "bold")
    runs, width = list(store.runs), min(N_BLOCK, store.n_voxels)
    seconds: dict[str, list[float]] = {"store": [], "hdf5": [], "zarr": [], "hdf5_packed_a_run": [], "nifti_a_run": []}
    largest = 0.0
    for first in places_of(options):
        voxels = slice(first, first + width)
        seconds["store"].append(
            timed(lambda first=first: read_store(root / "bold", first, runs, width), files_below(root / "bold"))
        )

        def from_hdf5(voxels: slice = voxels) -> None:
            for run in runs:
                with h5py.File(root / "hdf5" / f"{run}.h5") as file:
                    file["bold"][:, voxels]

        def from_zarr(voxels: slice = voxels) -> None:
            for run in runs:
                np.asarray(zarr.open_array(str(root / "zarr" / f"{run}.zarr"), mode="r")[:, voxels])

        if (root / "hdf5").is_dir():
            seconds["hdf5"].append(timed(from_hdf5, files_below(root / "hdf5")))
        if (root / "zarr").is_dir():
            seconds["zarr"].append(timed(from_zarr, files_below(root / "zarr")))
    found = find_runs(root / "simulated")[: options.nifti_runs]
    for files in found if (root / "hdf5").is_dir() else ():
        packed, first = packed_hdf5(root, files.run.label), places_of(options)[0]

        def from_packed(packed: Path = packed, voxels: slice = slice(first, first + width)) -> None:
            with h5py.File(packed) as file:
                file["bold"][:, voxels]

        seconds["hdf5_packed_a_run"].append(timed(from_packed, [packed]))
    for files in found:
        label, first = files.run.label, places_of(options)[0]
        values: list[np.ndarray] = []
        work = lambda files=files, first=first, values=values: values.append(  # noqa: E731
            read_nifti(files, store.ijk, slice(first, first + width))
        )
        seconds["nifti_a_run"].append(timed(work, [files.bold]))
        z = scipy.signal.detrend(values[0].astype(np.float64), axis=0)
        z /= z.std(axis=0, ddof=1)
        largest = max(largest, float(np.abs(z - store.read(label, slice(first, first + width))).max()))
    medians = {name: statistics.median(values) for name, values in seconds.items() if values}
    for name in ("hdf5_packed", "nifti"):
        if f"{name}_a_run" in medians:
            medians[name] = medians[f"{name}_a_run"] * len(runs)
    others = [name for name in medians if name != "store" and not name.endswith("_a_run")]
    ratios = {name: medians[name] / medians["store"] for name in others}
    return {
        "n_voxels": width,
        "runs": len(runs),
        "seconds": {name: [round(value, 4) for value in values] for name, values in seconds.items()},
        "median_seconds": {name: round(value, 4) for name, value in medians.items()},
        "nifti_and_packed_hdf5_are": f"{len(found)} runs read, times {len(runs)} over {len(found)}",
        "times_faster_than": {name: round(value, 2) for name, value in ratios.items()},
        "largest_difference_from_nifti_cleaned_by_scipy": largest,
        "largest_difference_from_nilearn": difference_from_nilearn(root, runs[0]),
    }


def s3(options: argparse.Namespace) -> dict[str, Any]:
    root = options.root
    local = open_bold(root / "bold")
    runs, width = list(local.runs), min(N_BLOCK, local.n_voxels)
    nifti = find_runs(root / "simulated")[: options.nifti_runs]
    with moto_server("lab") as server, ChaosProxy(server.endpoint) as proxy:
        os.environ |= server.environment()
        began = time.perf_counter()
        push = [sys.executable, "-m", "vidbrain", "push", str(root / "bold"), "s3://lab/bold"]
        subprocess.run(push, check=True, stdout=subprocess.DEVNULL)
        push_s = time.perf_counter() - began
        place = open_root("s3://lab/peers")
        for files in nifti:
            place.put(f"{files.run.label}.nii", files.bold.read_bytes())
            place.put(f"{files.run.label}.h5", (root / "hdf5" / f"{files.run.label}.h5").read_bytes())
        os.environ |= server.environment(proxy.endpoint)
        rows = []
        for first in places_of(options):
            proxy.seen.clear()
            began = time.perf_counter()
            got = read_store("s3://lab/bold", first, runs, width)
            seconds = time.perf_counter() - began
            asked = [seen for seen in proxy.seen if seen.method == "GET" and "/bold/c/" in seen.path]
            by_run = [sum(f"/{run}.zarr/" in seen.path for seen in asked) for run in runs]
            here = read_store(root / "bold", first, runs, width)
            same = all(np.array_equal(a, b) for a, b in zip(here, got, strict=True))
            rows.append(
                {
                    "first_voxel": first,
                    "seconds": round(seconds, 3),
                    "most_ranges_a_run": max(by_run),
                    "bytes_given": sum(seen.n_bytes for seen in asked),
                    "equal_to_disk": same,
                }
            )
        peers: dict[str, list[float]] = {"hdf5_ranges": [], "hdf5": [], "nifti": []}
        there, first = open_root("s3://lab/peers"), places_of(options)[0]
        for files in nifti:
            with h5py.File(root / "hdf5" / f"{files.run.label}.h5") as file:
                data, begin = file["bold"], file["bold"].id.get_offset()
                n_trs, n_columns = data.shape
            begins = [begin + 4 * (t * n_columns + first) for t in range(n_trs)]
            spans = [(position, position + 4 * width) for position in begins]
            began = time.perf_counter()
            by_ranges = [np.frombuffer(part, "<f4") for part in there.get_ranges(f"{files.run.label}.h5", spans)]
            np.stack(by_ranges)
            peers["hdf5_ranges"].append(time.perf_counter() - began)
            began = time.perf_counter()
            whole = np.frombuffer(there.get(f"{files.run.label}.h5"), "<f4", offset=begin, count=n_trs * n_columns)
            whole.reshape(n_trs, n_columns)[:, first : first + width].copy()
            peers["hdf5"].append(time.perf_counter() - began)
            began = time.perf_counter()
            raw = there.get(f"{files.run.label}.nii")
            raw = gzip.decompress(raw) if files.bold.suffix == ".gz" else raw
            facts = series_facts(files.bold)
            volumes = np.frombuffer(raw, facts.dtype, offset=facts.offset, count=facts.n_trs * facts.n_voxels)
            places = flat_index(local.ijk[first : first + width], facts.shape)
            volumes.reshape(facts.n_trs, facts.n_voxels)[:, places].copy()
            peers["nifti"].append(time.perf_counter() - began)
    median = statistics.median(row["seconds"] for row in rows)
    peer_s = {name: statistics.median(values) * len(runs) for name, values in peers.items()}
    return {
        "push_seconds": round(push_s, 1),
        "reads": rows,
        "median_seconds": median,
        "peers_seconds": {name: round(value, 3) for name, value in peer_s.items()},
        "peers_are": f"{len(nifti)} runs read, times {len(runs)} over {len(nifti)}",
        "times_faster_than": {name: round(value / median, 2) for name, value in peer_s.items()},
    }


DO = {
    "simulate": simulate,
    "ingest": ingest,
    "floor": floor,
    "nilearn-hdf5": rival("nilearn-hdf5", "hdf5"),
    "nibabel-zarr": rival("nibabel-zarr", "zarr"),
    "read": read,
    "s3": s3,
}
"""In the order in which they are done: the floor needs to know how much the store takes."""


def shown(record: dict[str, Any]) -> str:
    """The table that people read."""
    parts, lines = record["parts"], []
    if {"ingest", "floor"} <= set(parts):
        share = parts["floor"]["seconds"] / parts["ingest"]["seconds"]
        lines.append(f"{'':<16}{'seconds':>10}{'ratio':>8}{'GB, largest process':>22}")
        for name in ("ingest", "nilearn-hdf5", "nibabel-zarr", "floor"):
            if name in parts:
                ratio = parts[name]["seconds"] / parts["ingest"]["seconds"]
                peak = parts[name].get("largest_process_bytes")
                text = "" if peak is None else f"{peak / 1e9:.2f}"
                lines.append(f"{name:<16}{parts[name]['seconds']:>10.1f}{ratio:>8.2f}{text:>22}")
        own = parts["floor"]["seconds_as_ingest_unpacks"] / parts["ingest"]["seconds"]
        lines.append(f"ingest runs at {share:.0%} of the read-plus-write floor, {own:.0%} with its own unpacking")
    for part in ("read", "s3"):
        if part in parts:
            times = parts[part]["times_faster_than"]
            said = ", ".join(f"{value:g} times faster than {name}" for name, value in times.items())
            lines.append(f"{part}: {said}")
    if "s3" in parts:
        lines.append(f"most ranges a run: {max(row['most_ranges_a_run'] for row in parts['s3']['reads'])}")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--again", action="store_true", help="forget what is known of these parts")
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--trs", type=int, default=300)
    parser.add_argument("--resolution-mm", type=int, default=2)
    parser.add_argument("--dtype", choices=("int16", "float32"), default="float32")
    parser.add_argument("--unpacked", action="store_true", help="plain .nii in place of .nii.gz")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--nifti-runs", type=int, default=2, help="runs whose NIfTI files are read for one block")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--task", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.task:
        seconds = do_task(options.task, options.root, options.workers)
        (options.root / "task.json").write_text(json.dumps(round(seconds, 2)))
        return 0
    options.root.mkdir(parents=True, exist_ok=True)
    shape = {name: getattr(options, name) for name in ("runs", "trs", "resolution_mm", "dtype", "unpacked", "workers")}
    kept = options.root / "bold-bench.json"
    record = json.loads(kept.read_text()) if kept.is_file() else {"shape": shape, "parts": {}}
    if record["shape"] != shape:
        parser.error(f"{options.root} holds a benchmark of another shape: {record['shape']}")
    for name, work in DO.items():
        if name not in options.parts or (name in record["parts"] and not options.again):
            continue
        print(f"{name} ...", file=sys.stderr, flush=True)
        record["parts"][name] = work(options)
        kept.write_text(json.dumps(record, indent=2) + "\n")
    final = {
        "command": "python tools/bench/bold.py ROOT " + " ".join(sys.argv[2:]),
        "machine": {"cores": os.cpu_count(), "platform": platform.platform(), "python": platform.python_version()},
        "versions": {module.__name__: module.__version__ for module in (nibabel, nilearn, h5py, zarr, np)},
        **record,
    }
    parts = record["parts"]
    if {"ingest", "floor"} <= set(parts):
        final["share_of_floor"] = round(parts["floor"]["seconds"] / parts["ingest"]["seconds"], 3)
        final["times_the_seconds_of_ingest"] = {
            name: round(parts[name]["seconds"] / parts["ingest"]["seconds"], 2)
            for name in ("nilearn-hdf5", "nibabel-zarr")
            if name in parts
        }
    print(shown(record))
    if options.json:
        options.json.write_text(json.dumps(final, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
