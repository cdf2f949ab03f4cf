"""Is the Gram engine faster than himalaya.RidgeCV at the same answer? One shape, one thread, both in one call.

Both choose an alpha for each target by the mean r of the same held-out folds, and fit with it. Data lie in memory;
reading and statistics are not part of either. Run: python tools/bench/encode.py --json docs/benchmarks/encode.json
"""

import argparse
import json
import platform
import resource
import sys
import time
from pathlib import Path

import himalaya
import numpy as np
from himalaya.ridge import RidgeCV
from himalaya.scoring import correlation_score
from sklearn.model_selection import PredefinedSplit
from threadpoolctl import threadpool_limits

from vidbrain.encoding import gram


def make_data(n: int, p: int, t: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal((n, p))
    X = np.empty((n, p))
    X[0] = noise[0]
    for row in range(1, n):
        X[row] = 0.7 * X[row - 1] + np.sqrt(0.51) * noise[row]
    Y = 0.5 * X @ rng.standard_normal((p, t)) / np.sqrt(p) + rng.standard_normal((n, t))
    X, Y = X - X.mean(axis=0), Y - Y.mean(axis=0)
    return X.astype(np.float32), Y.astype(np.float32)


def fit_grams(
    X: np.ndarray, Y: np.ndarray, fold: np.ndarray, alphas: np.ndarray, tile: int = 512
) -> tuple[np.ndarray, np.ndarray]:
    """The engine's own functions: cell sums, downdating, eigenbases, r from products, then one fit."""
    numbers = np.unique(fold)
    cells = [gram.moments(X[fold == f]) for f in numbers]
    cross = np.stack([X[fold == f].T @ Y[fold == f] for f in numbers])
    sums = np.stack([Y[fold == f].sum(axis=0, dtype=np.float64) for f in numbers])
    all_cells = sum(cells[1:], cells[0])
    scores = np.zeros((len(alphas), Y.shape[1]), np.float32)
    for f in numbers:
        basis = gram.primal_basis(all_cells - cells[f], None)
        held = basis.scores_of(X[fold == f])
        held -= held.mean(axis=0)
        factor, held = gram.triangle(held), np.ascontiguousarray(held.T, np.float32)
        projection = np.ascontiguousarray(basis.loadings.T, np.float32)
        shrinkage = (1 / (basis.eigenvalues + alphas[:, None])).astype(np.float32)
        Y_held = Y[fold == f] - Y[fold == f].mean(axis=0)
        squares = np.sum(Y_held**2, axis=0)
        for start in range(0, Y.shape[1], tile):
            at = slice(start, start + tile)
            C = cross[:, :, at].sum(axis=0) - cross[f, :, at]
            C -= np.outer(basis.mean, sums[:, at].sum(axis=0) - sums[f, at]).astype(np.float32)
            part = (factor, held @ Y_held[:, at], squares[at])
            scores[:, at] += gram.inner_correlations(projection @ C, [part], shrinkage)[0]
    best = gram.best_alpha(scores)
    basis = gram.primal_basis(all_cells, None)
    loadings = basis.loadings.astype(np.float32)
    Z = loadings.T @ cross.sum(axis=0)
    Z /= (basis.eigenvalues[:, None] + alphas[best]).astype(np.float32)
    return best, loadings @ Z


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=2000)
    parser.add_argument("--p", type=int, default=500)
    parser.add_argument("--t", type=int, default=5000)
    parser.add_argument("--n-alphas", type=int, default=10)
    parser.add_argument("--n-folds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="file for the figures; default standard output")
    options = parser.parse_args()
    X, Y = make_data(options.n, options.p, options.t)
    fold = np.repeat(np.arange(options.n_folds), -(-options.n // options.n_folds))[: options.n]
    alphas = np.logspace(-1, 5, options.n_alphas)

    with threadpool_limits(options.threads):
        began, cpu = time.perf_counter(), time.process_time()
        best, coef = fit_grams(X, Y, fold, alphas)
        ours_s, ours_cpu_s = time.perf_counter() - began, time.process_time() - cpu
        began, cpu = time.perf_counter(), time.process_time()
        model = RidgeCV(
            alphas=alphas.astype(np.float32),
            fit_intercept=True,
            cv=PredefinedSplit(fold),
            solver_params={"score_func": correlation_score, "local_alpha": True, "warn": False},
        ).fit(X, Y)
        theirs_s, theirs_cpu_s = time.perf_counter() - began, time.process_time() - cpu
    same = np.isclose(alphas[best], model.best_alphas_, rtol=1e-4)
    scale = np.abs(model.coef_).max()
    figures = {
        "question": "seconds to choose an alpha per target over folds and fit, data in memory, float32 targets",
        "shape": {key: getattr(options, key) for key in ("n", "p", "t", "n_alphas", "n_folds", "threads")},
        "vidbrain_s": ours_s,
        "himalaya_s": theirs_s,
        "ratio": theirs_s / ours_s,
        "vidbrain_cpu_s": ours_cpu_s,
        "himalaya_cpu_s": theirs_cpu_s,
        "cpu_ratio": theirs_cpu_s / ours_cpu_s,
        "same_alpha_share": float(same.mean()),
        "largest_coef_difference": float(np.abs(coef - model.coef_)[:, same].max() / scale),
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "versions": {"himalaya": himalaya.__version__, "numpy": np.__version__, "python": platform.python_version()},
        "machine": platform.machine(),
    }
    text = json.dumps(figures, indent=2) + "\n"
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(text)
    else:
        sys.stdout.write(text)


if __name__ == "__main__":
    main()
