"""Does a whole brain fit? Encodes simulated BOLD from disk, out of core, and records time, memory and bytes read.

Usage: python tools/bench/brain.py ROOT [--json docs/benchmarks/brain.json] [--voxels 235000] [--workers 2]
The stores are made under ROOT once and kept: noise with AR(1) autocorrelation, and in every tenth voxel a planted
response to the features. `--s3` encodes the whole brain a second time, with the BOLD behind an S3 server on loopback
that counts the bytes it gives.
"""

import argparse
import json
import math
import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import scipy.signal
import xarray as xr
from processes import watch

from vidbrain.bold.parts import CHUNK_VOXELS, array_sha256
from vidbrain.bold.parts import PART_VOXELS as SHARD_VOXELS
from vidbrain.encoding import preflight
from vidbrain.encoding.folds import TEST, deal, lay_out
from vidbrain.encoding.preflight import sgemm_rate
from vidbrain.encoding.result import open_result
from vidbrain.features.store import write_run
from vidbrain.storage.info import is_done, write_info
from vidbrain.storage.zarrs import write_dataset
from vidbrain.testing.servers import ChaosProxy, moto_server

TR_S, PHI = 1.49, 0.4
PLANTED = 10
"""One voxel in so many follows the features."""


def ar1(rng: np.random.Generator, n: int, columns: int) -> np.ndarray:
    noise = rng.standard_normal((n, columns), np.float32)
    noise[1:] *= np.float32(math.sqrt(1 - PHI**2))
    return scipy.signal.lfilter([1.0], [1.0, -PHI], noise, axis=0).astype(np.float32)


def make_stores(root: Path, n_runs: int, n_trs: int, n_voxels: int, n_features: int) -> tuple[Path, Path]:
    """Write features and BOLD in the project's own formats, run by run."""
    features, bold = root / "features", root / f"bold-{n_voxels}"
    labels = [f"sub-01_ses-{1 + n // 2:03d}_task-game_run-{1 + n % 2}" for n in range(n_runs)]
    shape = tuple(math.ceil(n_voxels ** (1 / 3)) for _ in range(3))
    ijk = np.stack(np.unravel_index(np.arange(n_voxels), shape), axis=1).astype(np.int32)
    weights = np.random.default_rng(1).standard_normal((n_features, n_voxels // PLANTED + 1), np.float32)
    weights /= np.float32(math.sqrt(n_features))
    config = {"layers": [{"name": "noise"}], "tr_s": TR_S, "n_features": n_features, "n_trs": n_trs, "runs": n_runs}
    made_from = {"simulation": "tools/bench/brain.py"}
    if not is_done(features, "features", config=config, made_from=made_from):
        for number, label in enumerate(labels):
            x = ar1(np.random.default_rng([2, number]), n_trs, n_features)
            attributes = {"tr_s": TR_S, "fingerprint": "benchmark"}
            write_run(features, "noise", label, features=x, valid=np.ones(n_trs, bool), attributes=attributes)
        write_info(features, "features", config=config, made_from=made_from, facts={"runs": labels})
    config = {"n_voxels": n_voxels, "n_trs": n_trs, "runs": n_runs, "planted": PLANTED}
    if not is_done(bold, "bold", config=config, made_from=made_from):
        runs = []
        for number, label in enumerate(labels):
            x = ar1(np.random.default_rng([2, number]), n_trs, n_features)
            y = ar1(np.random.default_rng([3, number]), n_trs, n_voxels)
            driven = np.zeros_like(x)
            driven[2:] += x[:-2]
            driven[3:] += x[:-3]
            y[:, ::PLANTED] += (driven @ weights)[:, : y[:, ::PLANTED].shape[1]]
            variables = {"bold": (("tr", "voxel"), y)}
            variables |= {axis: ("voxel", column) for axis, column in zip("ijk", ijk.T, strict=True)}
            data = xr.Dataset(variables, attrs={"tr_s": TR_S, "simulated": True})
            write_dataset(
                bold / f"{label}.zarr",
                data,
                chunks={"bold": (n_trs, min(CHUNK_VOXELS, n_voxels))},
                shards={"bold": (n_trs, SHARD_VOXELS if n_voxels > SHARD_VOXELS else min(CHUNK_VOXELS, n_voxels))},
            )
            runs.append({"label": label, "n_trs": n_trs, "sha256": array_sha256(y)})
            print(f"made {label}", file=sys.stderr)
        facts = {
            "simulated": True,
            "space": "none: a box of voxels",
            "shape": list(shape),
            "affine": np.diag([2.0, 2.0, 2.0, 1.0]).tolist(),
            "tr_s": TR_S,
            "n_voxels": n_voxels,
            "runs": runs,
        }
        write_info(bold, "bold", config=config, made_from=made_from, facts=facts)
    return features, bold


def command_of(features: str, bold: str, options: argparse.Namespace, workers: int) -> list[str]:
    """The command of a user: every run but the last session's is left out once to choose alphas, that one is tested."""
    command = [sys.executable, "-m", "vidbrain", "encode", features, bold, "--json"]
    command += ["--delays", *map(str, range(1, options.delays + 1)), "--test", f"*ses-{options.runs // 2:03d}*"]
    return [*command, "--max-folds", str(options.runs), "--workers", str(workers), "--n-alphas", str(options.alphas)]


def encode(
    features: str,
    bold: str,
    out: Path,
    options: argparse.Namespace,
    workers: int,
    environment: dict[str, str] | None = None,
) -> dict[str, object]:
    """Run the command as a user would; its figures."""
    shutil.rmtree(out, ignore_errors=True)
    command = [*command_of(features, bold, options, workers), "--out", str(out)]
    began = time.perf_counter()
    environment = {**os.environ, **(environment or {})}
    process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, env=environment)
    memory = watch(process)
    if process.returncode:
        raise SystemExit(process.returncode)
    seconds = time.perf_counter() - began
    result = open_result(out)
    r = result.dataset["r_mean"].values
    planted = np.zeros(len(r), bool)
    planted[::PLANTED] = True
    found = result.dataset["q"].values < 0.05
    return {
        "seconds": round(seconds, 1),
        **memory,
        "form": result.info["form"],
        "median_r_planted": float(np.median(r[planted])),
        "median_r_noise": float(np.median(r[~planted])),
        "planted_found_share": float(found[planted].mean()),
        "false_discovery_share": float(found[~planted].sum() / max(found.sum(), 1)),
    }


def encode_from_s3(features: str, bold: Path, options: argparse.Namespace) -> dict[str, object]:
    """Push the BOLD to a server, encode from it through a proxy that counts, and compare with the result from disk."""
    with moto_server("lab") as server, ChaosProxy(server.endpoint) as proxy:
        push = [sys.executable, "-m", "vidbrain", "push", str(bold), "s3://lab/bold"]
        began = time.perf_counter()
        subprocess.run(push, check=True, env={**os.environ, **server.environment()}, stdout=subprocess.DEVNULL)
        push_s = time.perf_counter() - began
        out = options.root / "result-s3"
        counted = server.environment(proxy.endpoint)
        found = encode(features, "s3://lab/bold", out, options, options.workers, counted)
        data = [seen for seen in proxy.seen if seen.method == "GET" and "/bold/c/" in seen.path]
    here, there = (open_result(root).dataset for root in (options.root / "result", out))
    return {
        "push_seconds": round(push_s, 1),
        **found,
        "bold_requests": len(data),
        "bold_bytes_given": sum(seen.n_bytes for seen in data),
        "equal_to_disk": all(np.array_equal(here[name].values, there[name].values) for name in ("r", "alpha", "p")),
    }


def project(rate: float, n_runs: int = 40, n_trs: int = 500, n_columns: int = 4096) -> list[dict[str, object]]:
    """Project to more TRs and columns at the operations a second that the whole command reached here, all included."""
    run, tr = np.repeat(np.arange(n_runs), n_trs), np.tile(np.arange(n_trs), n_runs)
    names = [str(number) for number in range(n_runs)]
    shape = preflight.Shape(n_rows=len(run), n_columns=n_columns, n_voxels=235_000, n_alphas=20)
    found = []
    for folds in (10, n_runs):
        fold = deal(np.where(run < n_runs - 2, run, TEST), folds)
        layout = lay_out(fold, run, names, run, tr, n_blocks=5, purge_trs=0)
        costs = {form: preflight.cost_of(layout, form, shape) for form in preflight.FORMS}
        form = preflight.choose_form(costs)
        n_cells = min(folds, n_runs - 2) + 2
        found.append(
            {
                "n_rows": len(run),
                "n_columns": n_columns,
                "n_voxels": shape.n_voxels,
                "folds": min(folds, n_runs - 2),
                "form": form,
                "flops": costs[form].voxel_flops,
                "plan_flops": costs[form].plan_flops,
                "hours": round((costs[form].voxel_flops + 2 * costs[form].plan_flops) / rate / 3600, 2),
                "worker_bytes_at_512_voxels": preflight.worker_bytes(costs[form], form, shape, 512, layout, n_cells),
                "plan_bytes": int(costs[form].plan_bytes),
            }
        )
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("root", type=Path)
    parser.add_argument("--voxels", type=int, default=235_000)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--trs", type=int, default=300)
    parser.add_argument("--features", type=int, default=256)
    parser.add_argument("--delays", type=int, default=4)
    parser.add_argument("--alphas", type=int, default=20)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--s3", action="store_true", help="also from an S3 server on loopback")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    features, bold = make_stores(options.root, options.runs, options.trs, options.voxels, options.features)
    stored = sum(p.stat().st_size for p in bold.rglob("*") if p.is_file())
    rate = sgemm_rate(0.5)
    dry = [*command_of(str(features), str(bold), options, options.workers), "--dry-run"]
    plan = subprocess.run(dry, check=True, capture_output=True, text=True)
    estimate = {k: v for k, v in json.loads(plan.stdout).items() if k not in ("root", "runs")}
    whole = encode(str(features), str(bold), options.root / "result", options, options.workers)
    record = {
        "command": "python tools/bench/brain.py ROOT " + " ".join(sys.argv[2:]),
        "machine": {"cores": os.cpu_count(), "platform": platform.platform(), "python": platform.python_version()},
        "repetitions": 1,
        "shape": {k: getattr(options, k) for k in ("voxels", "runs", "trs", "features", "delays", "alphas", "workers")},
        "bold_bytes_raw": 4 * options.voxels * options.runs * options.trs,
        "bold_bytes_stored": stored,
        "sgemm_flops_per_core_second": rate,
        "estimate": estimate,
        "gemm_floor_share": estimate["flops"] / (rate * options.workers) / whole["seconds"],
        **whole,
    }
    record["projection"] = project(estimate["flops"] / float(whole["seconds"]))
    if options.s3:
        record["s3"] = encode_from_s3(str(features), bold, options)
    print(json.dumps(record, indent=2))
    if options.json:
        options.json.write_text(json.dumps(record, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
