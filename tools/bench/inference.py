"""How much faster are resamples from products than from time series? Same draws, same numbers, all in one call.

vidbrain tabulates cross-products (or block moments) once, and adds up their rows for each draw. Two peers make every
draw from the series, vectorised over voxels, in float32:

  correlate   predictions are kept; BOLD (bootstrap: both) is rearranged, and r of every voxel computed. For
              permutations both come centred and scaled, so that r is a single pass: the strongest plain rival
  predict     the features' rows are rearranged, every voxel predicted from its coefficients, and r computed

A peer's draws all cost the same: a few are timed, and their median is scaled up.
Run: python tools/bench/inference.py --json docs/benchmarks/inference.json
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
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy
import scipy.signal
from threadpoolctl import threadpool_limits

from vidbrain.encoding.inference import bootstrap, null

Runs = list[np.ndarray]
SOME = slice(0, 50)
"""Voxels whose every draw is compared."""


class Data(NamedTuple):
    """Features (n, p) and BOLD (n, t) of each run, coefficients (p, t), and predictions."""

    features: Runs
    measured: Runs
    coefficients: np.ndarray
    predicted: Runs

    def voxels(self, some: slice) -> "Data":
        """Keep some voxels."""
        keep = [[series[:, some].copy() for series in side] for side in (self.measured, self.predicted)]
        return Data(self.features, keep[0], self.coefficients[:, some].copy(), keep[1])


def make_data(n_trs: list[int], p: int, t: int, seed: int) -> Data:
    """AR(1) features and noise; every other voxel follows its prediction."""
    rng = np.random.default_rng(seed)

    def ar1(n: int, columns: int) -> np.ndarray:
        return scipy.signal.lfilter([1], [1, -0.5], rng.standard_normal((n, columns)), axis=0).astype(np.float32)

    features = [ar1(n, p) for n in n_trs]
    coefficients = (rng.standard_normal((p, t)) / np.sqrt(p)).astype(np.float32)
    predicted = [x @ coefficients for x in features]
    measured = [ar1(n, t) for n in n_trs]
    for x, y in zip(predicted, measured, strict=True):
        y[:, ::2] += 0.3 * x[:, ::2]
    return Data(features, measured, coefficients, predicted)


def fold_mean_r(predicted: Runs, measured: Runs) -> np.ndarray:
    """Mean over runs of r, (t,), from the series."""
    total = np.zeros(predicted[0].shape[1], np.float32)
    for p, y in zip(predicted, measured, strict=True):
        p, y = p - p.mean(axis=0), y - y.mean(axis=0)
        total += np.einsum("it,it->t", p, y) / np.sqrt(np.einsum("it,it->t", p, p) * np.einsum("it,it->t", y, y))
    return total / len(predicted)


def sum_products(predicted: Runs, measured: Runs, orders: Runs) -> np.ndarray:
    """R of one permutation of series that are centred and scaled: their variance does not change."""
    total = np.zeros(predicted[0].shape[1], np.float32)
    for p, y, rows in zip(predicted, measured, orders, strict=True):
        total += np.einsum("it,it->t", p, y[rows])
    return total


def rows_of(drawn: null.Null, number: int) -> Runs:
    """Which measured TR stands at each TR in one draw."""
    chosen = drawn.draws[[number]].indices.astype(np.int64)
    rows, first, position = [], 0, 0
    for n in drawn.n_trs:
        if drawn.kind == "shift":
            rows.append((np.arange(n) + chosen[position] - first) % n)
            first, position = first + n, position + 1
        else:
            m = n // drawn.block_trs
            order = (chosen[position : position + m] - first) % m
            moved = (order[:, None] * drawn.block_trs + np.arange(drawn.block_trs)).ravel()
            rows.append(np.concatenate([moved, np.arange(m * drawn.block_trs, n)]))
            first, position = first + m * m + 1, position + m + 1
    return rows


def resampled_rows(moments: list[bootstrap.BlockMoments], weights: Runs, number: int) -> Runs:
    """TRs of one resample."""
    out = []
    for run, w in zip(moments, weights, strict=True):
        blocks = np.split(np.arange(int(run.n_trs.sum())), np.cumsum(run.n_trs)[:-1].astype(int))
        out.append(np.concatenate([blocks[b] for b in np.repeat(np.arange(len(blocks)), w[number].astype(int))]))
    return out


def seconds(work: Callable[[], Any], repeats: int) -> tuple[list[float], Any]:
    """Wall times of `work`, and what it gave last."""
    times, result = [], None
    for _ in range(repeats):
        began = time.perf_counter()
        result = work()
        times.append(time.perf_counter() - began)
    return times, result


def time_peer(
    draw: Callable[[int], np.ndarray], options: argparse.Namespace
) -> tuple[dict[str, Any], list[np.ndarray]]:
    """Time some draws of a peer; also what they gave."""
    times, values = [], []
    for number in range(options.peer_draws):
        took, value = seconds(partial(draw, number), 1)
        times += took
        values.append(value)
    return {"s_a_draw": times, "scaled_s": statistics.median(times) * options.draws}, values


def compare(name: str, ours: list[float], peers: dict[str, dict[str, Any]], checks: dict[str, float]) -> dict[str, Any]:
    mine = statistics.median(ours)
    for peer in peers.values():
        peer["ratio"] = peer["scaled_s"] / mine
    return {"name": name, "vidbrain_s": ours, "vidbrain_median_s": mine, "peers": peers, **checks}


def inverse(rows: np.ndarray) -> np.ndarray:
    """Order of the features that stands to BOLD in place as features in place stand to BOLD in the order `rows`."""
    return np.argsort(rows)


def permutations(kind: str, options: argparse.Namespace, data: Data) -> dict[str, Any]:
    lengths, b = [len(p) for p in data.predicted], options.draws
    drawn = (
        null.draw_shifts(lengths, b, options.seed)
        if kind == "shift"
        else null.draw_block_permutations(lengths, options.block_trs, b, options.seed)
    )

    def ours() -> null.NullTest:
        return null.evaluate(drawn, *null.unit_series(data.predicted, data.measured), spread=1)

    times, found = seconds(ours, options.repeats)
    units = null.unit_series(data.predicted, data.measured)

    def correlate(number: int) -> np.ndarray:
        return sum_products(*units, rows_of(drawn, number))

    def predict(number: int) -> np.ndarray:
        orders = [inverse(rows) for rows in rows_of(drawn, number)]
        moved = [x[rows] @ data.coefficients for x, rows in zip(data.features, orders, strict=True)]
        return fold_mean_r(moved, data.measured)

    peers, difference = {}, 0.0
    for name, draw in (("correlate", correlate), ("predict", predict)):
        peers[name], values = time_peer(draw, options)
        greatest = np.array([v.max() for v in values])
        difference = max(difference, float(np.abs(greatest - found.maxima[: len(greatest)]).max()))
    # p of some voxels from every draw of the series; ties with the observed but for rounding may count or not.
    some = data.voxels(SOME)
    few = null.unit_series(some.predicted, some.measured)
    every = np.stack([sum_products(*few, rows_of(drawn, number)) for number in range(b)])
    least, most = ((1 + (every >= found.observed[SOME] + slack).sum(axis=0)) / (1 + b) for slack in (1e-6, -1e-6))
    off = float(np.maximum(least - found.p[SOME], found.p[SOME] - most).max().clip(0))
    checks = {"largest_difference_of_maxima": difference, "largest_difference_of_p": off}
    return compare(f"{b} {kind} permutations", times, peers, checks)


def bootstraps(options: argparse.Namespace, data: Data) -> dict[str, Any]:
    b = options.draws
    m = [len(p) // options.block_trs for p in data.predicted]

    def moments_of(one: Data) -> list[bootstrap.BlockMoments]:
        pairs = zip(one.predicted, one.measured, strict=True)
        return [bootstrap.block_moments(p, y, options.block_trs) for p, y in pairs]

    def ours() -> bootstrap.Interval:
        return bootstrap.intervals(moments_of(data), bootstrap.draw_weights(m, b, options.seed))

    times, found = seconds(ours, options.repeats)
    few = data.voxels(SOME)
    moments, weights = moments_of(few), bootstrap.draw_weights(m, b, options.seed)

    def correlate(number: int, one: Data) -> np.ndarray:
        rows = resampled_rows(moments, weights, number)
        predicted, measured = (
            [s[r] for s, r in zip(side, rows, strict=True)] for side in (one.predicted, one.measured)
        )
        return fold_mean_r(predicted, measured)

    def predict(number: int, one: Data) -> np.ndarray:
        rows = resampled_rows(moments, weights, number)
        moved = [x[r] @ one.coefficients for x, r in zip(one.features, rows, strict=True)]
        return fold_mean_r(moved, [y[r] for y, r in zip(one.measured, rows, strict=True)])

    peers = {
        name: time_peer(partial(f, one=data), options)[0]
        for name, f in (("correlate", correlate), ("predict", predict))
    }
    every = np.stack([correlate(number, few) for number in range(b)])
    tail = bootstrap.expansion(m, 0.95).tail
    low, high = np.quantile(every, [tail, 1 - tail], axis=0)
    drawn = bootstrap.correlations(moments, weights, SOME)
    checks = {
        "largest_difference_of_r": float(np.abs(every - drawn).max()),
        "largest_difference_of_bounds": float(
            np.abs([low - found.percentile_low[SOME], high - found.percentile_high[SOME]]).max()
        ),
    }
    return compare(f"{b} block bootstraps", times, peers, checks)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--voxels", type=int, default=20_000)
    parser.add_argument("--features", type=int, default=200, help="columns that the peer predicts from")
    parser.add_argument("--run-trs", type=int, nargs="+", default=[300, 300], help="length of each test run")
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--block-trs", type=int, default=20)
    parser.add_argument("--peer-draws", type=int, default=10, help="draws of the peer that are timed")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    data = make_data(options.run_trs, options.features, options.voxels, options.seed)
    with threadpool_limits(options.threads):
        rows = [permutations(kind, options, data) for kind in ("shift", "block")] + [bootstraps(options, data)]
    lines = [
        f"{'':26}{'vidbrain s':>12}{'correlate s*':>14}{'ratio':>8}{'predict s*':>14}{'ratio':>8}{'differs by':>12}"
    ]
    for row in rows:
        line = f"{row['name']:26}{row['vidbrain_median_s']:12.2f}"
        for peer in row["peers"].values():
            line += f"{peer['scaled_s']:14.1f}{peer['ratio']:8.1f}"
        lines.append(line + f"{max(value for key, value in row.items() if key.startswith('largest')):12.1e}")
    lines.append(f"* median of {options.peer_draws} draws, times {options.draws}")
    sys.stdout.write("\n".join(lines) + "\n")
    if options.json:
        record = {
            "question": "seconds for draws of r over all voxels: from products, and from time series draw by draw",
            "sizes": {key: value for key, value in vars(options).items() if key != "json"},
            "peers": "scaled_s is the median time of peer_draws draws times draws",
            "results": rows,
            "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            "machine": {"name": platform.machine(), "cores": os.cpu_count()},
            "versions": {"numpy": np.__version__, "scipy": scipy.__version__, "python": platform.python_version()},
        }
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
