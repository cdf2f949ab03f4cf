"""Compare the ridge engine with its peers at the same work, and with what the processor can do.

All choose an alpha for each target by held-out rows of the same data, in memory, and fit with it, in one call:

* vidbrain: `RidgeEncoder.fit`, float32 targets, leave-one-fold-out r;
* himalaya: `RidgeCV` (`KernelRidgeCV` for the shape `wide`), float32, the same folds, the same r;
* scikit-learn: `RidgeCV(alpha_per_target=True)`, which is leave-one-row-out squared error in float64;
* B-MOR (Ahmadi et al., arXiv 2403.19421): batches of targets over joblib's Dask backend, scikit-learn `RidgeCV` on
  each, one alpha for a batch.

The last two answer another question than the first two; their alphas are not compared. A peer that would take too
long is timed on a share of the targets, and on half of that; the line through both points is read at all targets.

Run: python tools/bench/encode.py --shape himalaya --threads 2 --json docs/benchmarks/encode-himalaya.json
"""

import argparse
import json
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import dask
import himalaya
import joblib
import numpy as np
import sklearn
from dask.distributed import Client, LocalCluster
from himalaya.kernel_ridge import KernelRidgeCV
from himalaya.ridge import RidgeCV
from himalaya.scoring import correlation_score
from sklearn.linear_model import RidgeCV as SklearnRidgeCV
from sklearn.model_selection import PredefinedSplit
from threadpoolctl import threadpool_limits

from vidbrain.encoding.ridge.plain import RidgeEncoder
from vidbrain.encoding.ridge.search import cheaper_side
from vidbrain.encoding.ridge.sides import Dual


@dataclass(frozen=True)
class Shape:
    """Rows, columns, targets, and the search; `shares` of targets that slow peers are timed on."""

    n: int
    p: int
    t: int
    n_alphas: int
    n_folds: int
    shares: dict[str, float]


SHAPES = {
    "tiny": Shape(120, 30, 200, 5, 3, {}),
    "himalaya": Shape(3000, 1000, 30000, 20, 3, {"scikit-learn": 0.05, "B-MOR": 0.05}),
    "long": Shape(6000, 500, 2000, 10, 5, {}),
    "wide": Shape(2000, 8000, 5000, 10, 5, {"scikit-learn": 0.2, "B-MOR": 0.2}),
}
PEERS = ("himalaya", "scikit-learn", "B-MOR")


def make_data(shape: Shape, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """AR(1) columns and targets of mixed signal, float32, centred."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((shape.n, shape.p), np.float32)
    for row in range(1, shape.n):
        X[row] = 0.7 * X[row - 1] + np.float32(np.sqrt(0.51)) * X[row]
    X -= X.mean(axis=0)
    weights = rng.standard_normal((shape.p, shape.t), np.float32) / np.float32(np.sqrt(shape.p))
    Y = X @ (weights * rng.uniform(0, 1, shape.t).astype(np.float32))
    Y += rng.standard_normal((shape.n, shape.t), np.float32)
    Y -= Y.mean(axis=0)
    return X, Y


def count_flops(shape: Shape) -> dict[str, float]:
    """Floating-point operations that the answer takes with targets, by the engine's own algorithm.

    Each multiplication and each addition is one; of triangles only what is not zero is counted. Decompositions of the
    feature side are not counted, though they take some of the engine's time.
    """
    n, p, t, r, k = shape.n, shape.p, shape.t, shape.n_alphas, shape.n_folds
    n_held = n / k
    n_train = n - n_held
    dual = cheaper_side(n, n - n // k, p, t, k + 1) is Dual
    if dual:  # one decomposition of all rows, and a held-out prediction for each alpha
        flops = {
            "projections": 2.0 * n * (n - 1) * t,
            "scores": r * 2.0 * n * (n - 1) * t,
            "refit": (4.0 * n * (n - 1) + 2.0 * n * p) * t,
        }
        return flops | {"all": sum(flops.values())}
    q = min(p, n_train - 1)
    rows = min(n_held, q)
    flops = {
        "cross products": 2.0 * n * p * t,
        "projections": k * 2.0 * q * (p + min(n_held, p)) * t,
        "scores: squares": k * r * 2.0 * (rows * q - rows * (rows - 1) / 2) * t,
        "scores: products": k * r * 2.0 * q * t,
        "refit": 4.0 * p * p * t,
    }
    return flops | {"all": sum(flops.values())}


def measure_sgemm(size: int = 2048, repeats: int = 9) -> float:
    """Best rate of a square float32 product, in flops per second, with the threads that are allowed now."""
    a, b = np.random.default_rng(0).standard_normal((2, size, size), np.float32)
    out = np.empty_like(a)
    return 2.0 * size**3 / min(timed(lambda: np.matmul(a, b, out=out))[0] for _ in range(repeats))


def timed(work: Callable[[], object]) -> tuple[float, object]:
    began = time.perf_counter()
    result = work()
    return time.perf_counter() - began, result


def fit_himalaya(X: np.ndarray, Y: np.ndarray, fold: np.ndarray, alphas: np.ndarray, kernel: bool) -> object:
    options = {"score_func": correlation_score, "local_alpha": True}
    if not kernel:
        options["warn"] = False
    return (KernelRidgeCV if kernel else RidgeCV)(
        alphas=alphas.astype(np.float32), fit_intercept=True, cv=PredefinedSplit(fold), solver_params=options
    ).fit(X, Y)


def fit_b_mor(X: np.ndarray, Y: np.ndarray, alphas: np.ndarray, n_batches: int) -> list[object]:
    """One batch of targets a worker, each with a decomposition of its own."""
    with joblib.parallel_backend("dask"):
        return joblib.Parallel()(
            joblib.delayed(SklearnRidgeCV(alphas=alphas).fit)(X, batch)
            for batch in np.array_split(Y, n_batches, axis=1)
        )


def seconds_of_all(work: Callable[[int], object], n_targets: int, share: float, repeats: int) -> float:
    """Median seconds of ``work(n_targets)``, or its estimate from a share of targets and half of that."""

    def median(count: int) -> float:
        return statistics.median(timed(lambda: work(count))[0] for _ in range(repeats))

    if share == 1:
        return median(n_targets)
    most, half = round(n_targets * share), round(n_targets * share / 2)
    at_most, at_half = median(most), median(half)
    return at_most + (at_most - at_half) / (most - half) * (n_targets - most)


def peak_rss_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(name: str, threads: int, repeats: int, peers: list[str]) -> dict[str, object]:
    shape = SHAPES[name]
    X, Y = make_data(shape)
    fold = np.repeat(np.arange(shape.n_folds), [len(f) for f in np.array_split(np.arange(shape.n), shape.n_folds)])
    alphas = np.logspace(-1, 5, shape.n_alphas)
    flops = count_flops(shape)
    data_rss_bytes = peak_rss_bytes()
    with threadpool_limits(threads):
        rates = [measure_sgemm()]
        ours_s = []
        for _ in range(repeats):
            took, model = timed(lambda: RidgeEncoder(alphas).fit(X, Y, groups=fold))
            ours_s.append(took)
        rates.append(measure_sgemm())
        seconds = {"vidbrain": statistics.median(ours_s)}
        figures: dict[str, object] = {
            "question": "seconds to choose an alpha per target over folds and fit, data in memory",
            "shape": {"name": name} | asdict(shape),
            "threads": threads,
            "repeats": repeats,
            "seconds": seconds,
            "all_seconds_of_vidbrain": ours_s,
            "peak_rss_bytes": {"data": data_rss_bytes, "after vidbrain": peak_rss_bytes()},
            "flops": flops,
            "sgemm_flops_per_s": max(rates),
            "share_of_gemm_floor": flops["all"] / max(rates) / seconds["vidbrain"],
        }
        if "himalaya" in peers:
            kernel = shape.p > shape.n
            found = []
            for _ in range(repeats):
                took, theirs = timed(lambda: fit_himalaya(X, Y, fold, alphas, kernel))
                found.append(took)
            seconds["himalaya"] = statistics.median(found)
            figures["peak_rss_bytes"] |= {"after himalaya": peak_rss_bytes()}
            coef = theirs.coef_ if not kernel else None
            if kernel:
                # Ours end with primal coefficients; KernelRidgeCV.fit ends with dual ones.
                took, coef = timed(lambda: X.T @ theirs.dual_coef_)
                seconds["himalaya, primal"] = seconds["himalaya"] + took
            same = np.isclose(model.alpha_, theirs.best_alphas_, rtol=1e-4)
            difference = np.abs(model.coef_.T - coef)[:, same].max() / np.abs(coef).max()
            figures |= {
                "himalaya_estimator": type(theirs).__name__,
                "same_alpha_share": float(same.mean()),
                "largest_coef_difference": float(difference),
                "largest_cv_r_difference": float(np.abs(model.cv_scores_.max(axis=0) - theirs.cv_scores_).max()),
            }
        if "scikit-learn" in peers:

            def fit_sklearn(count: int) -> object:
                return SklearnRidgeCV(alphas=alphas, alpha_per_target=True).fit(X, Y[:, :count])

            share = shape.shares.get("scikit-learn", 1.0)
            seconds["scikit-learn"] = seconds_of_all(fit_sklearn, shape.t, share, repeats)
    if "B-MOR" in peers:
        share = shape.shares.get("B-MOR", 1.0)
        with (
            dask.config.set({"distributed.admin.large-graph-warning-threshold": "1TB"}),
            LocalCluster(n_workers=threads, threads_per_worker=1, dashboard_address=None) as cluster,
            Client(cluster),
        ):
            fit_b_mor(X[:, :2], Y[:, : 2 * threads], alphas, threads)  # imports, in every worker
            seconds["B-MOR"] = seconds_of_all(
                lambda count: fit_b_mor(X, Y[:, :count], alphas, threads), shape.t, share, repeats
            )
    figures["ratio"] = {peer: seconds[peer] / seconds["vidbrain"] for peer in seconds if peer != "vidbrain"}
    figures["estimated_from_share_of_targets"] = {p: s for p, s in shape.shares.items() if p in seconds}
    figures["versions"] = {
        "dask": dask.__version__,
        "himalaya": himalaya.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "scikit-learn": sklearn.__version__,
    }
    figures["machine"] = {"architecture": platform.machine(), "cpus": os.cpu_count()}
    return figures


def show(figures: dict) -> None:
    shape = figures["shape"]
    lines = [
        "{name}: n={n} p={p} t={t}, {n_alphas} alphas, {n_folds} folds".format(**shape)
        + f", {figures['threads']} threads",
        f"{'':18}{'seconds':>10}{'ratio':>8}",
    ]
    for name, seconds in figures["seconds"].items():
        ratio = figures["ratio"].get(name)
        note = figures["estimated_from_share_of_targets"].get(name)
        lines.append(
            f"{name:18}{seconds:10.3f}{'' if ratio is None else f'{ratio:.2f}':>8}"
            + (f"  estimated from {note:.0%} of the targets" if note else "")
        )
    if "same_alpha_share" in figures:
        lines.append(
            f"against {figures['himalaya_estimator']}: same alpha {figures['same_alpha_share']:.3%}, "
            f"largest difference of r {figures['largest_cv_r_difference']:.1e}, "
            f"of coefficients {figures['largest_coef_difference']:.1e} of the largest"
        )
    lines.append(
        f"{figures['flops']['all']:.2e} flops, sgemm {figures['sgemm_flops_per_s'] / 1e9:.0f} GF/s, "
        f"share of the GEMM floor {figures['share_of_gemm_floor']:.0%}, "
        f"peak {figures['peak_rss_bytes']['after vidbrain'] / 2**30:.2f} GiB "
        f"(data {figures['peak_rss_bytes']['data'] / 2**30:.2f})"
    )
    sys.stdout.write("\n".join(lines) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=sorted(SHAPES), default="tiny")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=list(PEERS))
    parser.add_argument("--json", type=Path, help="file for the figures")
    options = parser.parse_args()
    figures = measure(options.shape, options.threads, options.repeats, options.peers)
    show(figures)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
