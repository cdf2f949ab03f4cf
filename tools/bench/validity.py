"""Do p, q and intervals keep what they promise? A simulation study of the whole path under autocorrelated noise.

Features and BOLD are AR(1); a quarter of the voxels follow the features, the rest is noise. Each simulation fits ridge
with nested leave-one-run-out folds and an alpha for each voxel, and tests every voxel in every way the package has, and
by the parametric p of r beside them. Two designs:

  held-out         the last run is predicted by a model of the others; the null is not widened
  cross-validated  each run is predicted by a model of the others; statistic: fold-mean r

Run: python tools/bench/validity.py --simulations 1000 --json docs/benchmarks/validity.json
"""

import argparse
import json
import platform
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy
import scipy.signal
import scipy.stats
from threadpoolctl import threadpool_limits

from vidbrain.encoding.inference import bootstrap, null, surrogate
from vidbrain.encoding.inference.multiple import benjamini_hochberg, benjamini_yekutieli, max_statistic
from vidbrain.encoding.ridge.plain import RidgeEncoder

LEVELS = (0.05, 0.01)


@dataclass(frozen=True, kw_only=True)
class World:
    """Sizes of one simulation."""

    n_runs: int = 4
    n_trs: int = 200
    n_features: int = 16
    n_noise: int = 36
    n_signal: int = 12
    snr: float = 0.35
    phi_features: float = 0.6
    phi_noise: float = 0.6
    block_trs: int = 20
    n_permutations: int = 999
    n_surrogates: int = 480
    n_alphas: int = 6

    @property
    def run(self) -> np.ndarray:
        """Run of each row."""
        return np.repeat(np.arange(self.n_runs), self.n_trs)


WORLDS = {
    "typical": World(),
    "slow": World(phi_features=0.9, phi_noise=0.9),
    "slow-long-blocks": World(phi_features=0.9, phi_noise=0.9, n_trs=400, block_trs=50),
    "two-runs": World(n_runs=2, n_trs=300),
    "few-features": World(n_features=3),
    "wide": World(n_runs=3, n_trs=100, n_features=300, block_trs=10, snr=1.5),
}


def ar1(rng: np.random.Generator, n: int, columns: int, phi: float) -> np.ndarray:
    noise = rng.standard_normal((n, columns)) * np.sqrt(1 - phi**2)
    noise[0] /= np.sqrt(1 - phi**2)
    return scipy.signal.lfilter([1], [1, -phi], noise, axis=0).astype(np.float32)


def draw(world: World, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features (n, p), BOLD (n, t) and the weights (p, n_signal) that the first voxels follow."""
    rng = np.random.default_rng([seed, 0])
    X = np.concatenate([ar1(rng, world.n_trs, world.n_features, world.phi_features) for _ in range(world.n_runs)])
    t = world.n_noise + world.n_signal
    Y = np.concatenate([ar1(rng, world.n_trs, t, world.phi_noise) for _ in range(world.n_runs)])
    weights = rng.standard_normal((world.n_features, world.n_signal))
    weights *= world.snr / np.linalg.norm(weights, axis=0)
    Y[:, : world.n_signal] += X @ weights
    return X, Y.astype(np.float32), weights


def fit_folds(world: World, X: np.ndarray, Y: np.ndarray) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Predict each run by a model of the others, alphas chosen within them; also each fold's coefficients (p, t)."""
    predicted, coefficients = [], []
    for held in range(world.n_runs):
        train = world.run != held
        model = RidgeEncoder(n_alphas=world.n_alphas).fit(X[train], Y[train], groups=world.run[train])
        predicted.append(model.predict(X[~train]).astype(np.float32))
        coefficients.append(model.coef_.T)
    return predicted, coefficients


def simulate(world: World, seed: int) -> dict[str, dict[str, np.ndarray]]:
    """Run one simulation: for each test, p of every voxel, and what else it gives."""
    X, Y, weights = draw(world, seed)
    t = Y.shape[1]
    copies = Y[:, surrogate.source_voxels(t, world.n_surrogates)]
    shifts = surrogate.draw_shifts([world.n_trs] * world.n_runs, np.arange(world.n_surrogates), seed)
    both = np.concatenate([Y, surrogate.shift_runs(copies, world.run, shifts)], axis=1)
    all_predicted, coefficients = fit_folds(world, X, both)
    predicted, measured = [p[:, :t] for p in all_predicted], [Y[world.run == held] for held in range(world.n_runs)]
    tests: dict[str, dict[str, np.ndarray]] = {}
    for design, chosen in {"held-out": slice(-1, None), "cross-validated": slice(None)}.items():
        p, y = null.unit_series(predicted[chosen], measured[chosen])
        lengths = [len(part) for part in p]
        nulls = {
            "shift": null.draw_shifts(lengths, world.n_permutations, seed),
            "block": null.draw_block_permutations(lengths, world.block_trs, world.n_permutations, seed),
        }
        spreads = {"": 1.0} if design == "held-out" else {"": null.SPREAD, ", not widened": 1.0}
        for kind, drawn in nulls.items():
            for note, spread in spreads.items():
                found = null.evaluate(drawn, p, y, spread=spread)
                tests[f"{design} {kind}{note}"] = {
                    "p": found.p,
                    "family": max_statistic(found.observed, found.maxima),
                    "observed": found.observed,
                }
        n = sum(lengths)
        r = tests[f"{design} shift"]["observed"].astype(np.float64)
        tests[f"{design} parametric"] = {"p": scipy.stats.t.sf(r * np.sqrt((n - 2) / (1 - r**2)), n - 2), "observed": r}
    units = null.unit_series(all_predicted, [both[world.run == held] for held in range(world.n_runs)])
    scores = surrogate.standard_scores([null.circular_products(p, y) for p, y in zip(*units, strict=True)])
    tests["cross-validated surrogates"] = {
        "p": surrogate.pooled_p_values(scores[:t], scores[t:]),
        "observed": tests["cross-validated shift"]["observed"],
    }
    tests |= cover(world, predicted, measured, [c[:, : world.n_signal] for c in coefficients], weights, seed)
    return tests


def cover(
    world: World,
    predicted: list[np.ndarray],
    measured: list[np.ndarray],
    coefficients: list[np.ndarray],
    weights: np.ndarray,
    seed: int,
) -> dict[str, dict[str, np.ndarray]]:
    """Say whether bootstrap intervals of planted voxels hold the true r of the fitted models.

    Features have unit variance and are independent, so r of ``X b`` with ``X w + noise`` is known.
    """
    signal = slice(0, world.n_signal)
    true = [
        np.sum(c * weights, axis=0) / np.linalg.norm(c, axis=0) / np.sqrt(1 + np.sum(weights**2, axis=0))
        for c in coefficients
    ]
    out = {}
    for design, chosen in {"held-out": slice(-1, None), "cross-validated": slice(None)}.items():
        pairs = zip(predicted[chosen], measured[chosen], strict=True)
        moments = [bootstrap.block_moments(p[:, signal], y[:, signal], world.block_trs) for p, y in pairs]
        drawn = bootstrap.draw_weights([len(m.n_trs) for m in moments], world.n_permutations, seed)
        found, target = bootstrap.intervals(moments, drawn), np.mean(true[chosen], axis=0)
        out[f"{design} interval"] = {
            "percentile": (found.percentile_low <= target) & (target <= found.percentile_high),
            "basic": (found.basic_low <= target) & (target <= found.basic_high),
            "true_r": target,
        }
    return out


def gather(world: World, n_simulations: int, first_seed: int) -> dict[str, dict[str, np.ndarray]]:
    """Stack simulations, (n_simulations, t) for each test and quantity."""
    every = [simulate(world, first_seed + number) for number in range(n_simulations)]
    return {name: {key: np.stack([one[name][key] for one in every]) for key in every[0][name]} for name in every[0]}


def mean_and_error(by_simulation: np.ndarray) -> dict[str, float]:
    """Mean over simulations with its standard error."""
    values = np.asarray(by_simulation, np.float64)
    return {"mean": float(values.mean()), "se": float(values.std(ddof=1) / np.sqrt(len(values)))}


def discoveries(significant: np.ndarray, n_signal: int) -> dict[str, dict[str, float]]:
    """Realised false discovery rate and share of planted voxels found, of (n_simulations, t) decisions."""
    false = significant[:, n_signal:].sum(axis=1)
    total = significant.sum(axis=1)
    return {
        "false_discovery_rate": mean_and_error(false / np.maximum(total, 1)),
        "power": mean_and_error(significant[:, :n_signal].mean(axis=1)),
    }


def stated_power(world: World, true_r: np.ndarray, level: float) -> float:
    """Power of a one-sided test of r in one run, from Bartlett's variance and Fisher's z, averaged over voxels."""
    product = world.phi_features * world.phi_noise
    deviation = np.sqrt((1 + product) / (1 - product) / world.n_trs)
    return float(np.mean(scipy.stats.norm.sf(scipy.stats.norm.isf(level) - np.arctanh(true_r) / deviation)))


def judge(world: World, found: dict[str, dict[str, np.ndarray]]) -> dict[str, dict]:
    """Turn p-values into what they promise and what they keep."""
    k = world.n_signal
    figures = {}
    for name, values in found.items():
        if "p" not in values:
            figures[name] = {
                "coverage_of_95": {kind: mean_and_error(values[kind].mean(axis=1)) for kind in ("percentile", "basic")}
            }
            continue
        p = values["p"]
        noise = p[:, k:]
        q = {f.__name__: np.stack([f(row) for row in p]) for f in (benjamini_hochberg, benjamini_yekutieli)}
        observed = values["observed"].astype(np.float64)
        # The oracle knows the distribution of the statistic in noise voxels: all simulations' together.
        ranked = np.sort(observed[:, k:].ravel())
        oracle = 1 - np.searchsorted(ranked, observed, side="left") / len(ranked)
        oracle_q = np.stack([benjamini_hochberg(row) for row in oracle])
        figures[name] = {
            "noise_p_at_or_below": {str(level): mean_and_error((noise <= level).mean(axis=1)) for level in LEVELS},
            # One voxel of each simulation: independent draws, as the Kolmogorov-Smirnov test asks.
            "ks_p": float(scipy.stats.kstest(noise[:, 0], "uniform").pvalue),
            "ks_p_of_too_small": float(scipy.stats.kstest(noise[:, 0], "uniform", alternative="greater").pvalue),
            "ks_distance_all_voxels": float(scipy.stats.kstest(noise.ravel(), "uniform").statistic),
            "planted_p_at_or_below": {str(level): mean_and_error((p[:, :k] <= level).mean(axis=1)) for level in LEVELS},
            "oracle_planted_p_at_or_below": {str(level): float((oracle[:, :k] <= level).mean()) for level in LEVELS},
            "bh_0.05": discoveries(q["benjamini_hochberg"] <= 0.05, k),
            "by_0.05": discoveries(q["benjamini_yekutieli"] <= 0.05, k),
            "oracle_bh_0.05": discoveries(oracle_q <= 0.05, k),
        }
        if "family" in values:
            figures[name]["family_wise_error_0.05"] = mean_and_error((values["family"][:, k:] <= 0.05).any(axis=1))
    truth = found["held-out interval"]["true_r"]
    figures["held-out shift"]["stated_planted_p_at_or_below"] = {
        str(level): stated_power(world, truth, level) for level in LEVELS
    }
    return figures


def leak(n_simulations: int, first_seed: int) -> dict[str, dict[str, float]]:
    """R of pure noise when folds are shuffled TRs, as the literature splits, and when they are whole runs.

    Slow features and slow noise: a left-out TR lies between two training TRs that share its noise and its features.
    """
    n_runs, n_trs, p, t, phi = 4, 150, 60, 40, 0.9
    run = np.repeat(np.arange(n_runs), n_trs)
    mean_r: dict[str, list[float]] = {"shuffled TRs": [], "whole runs": []}
    for seed in range(first_seed, first_seed + n_simulations):
        rng = np.random.default_rng([seed, 1])
        X, Y = (np.concatenate([ar1(rng, n_trs, columns, phi) for _ in range(n_runs)]) for columns in (p, t))
        for name, fold in (("shuffled TRs", rng.permutation(run)), ("whole runs", run)):
            predicted, measured = [], []
            for held in range(n_runs):
                train = fold != held
                model = RidgeEncoder(n_alphas=6).fit(X[train], Y[train], groups=fold[train])
                predicted.append(model.predict(X[~train]).astype(np.float32))
                measured.append(Y[~train])
            units = null.unit_series(predicted, measured)
            mean_r[name].append(float(np.mean(np.sum([(a * b).sum(axis=0) for a, b in zip(*units, strict=True)], 0))))
    return {name: mean_and_error(np.array(values)) for name, values in mean_r.items()}


def table(figures: dict[str, dict]) -> str:
    """Lay the main figures out as text."""
    lines = [f"{'':38}{'p<=.05':>8}{'p<=.01':>8}{'KS p':>8}{'FDR':>8}{'power':>8}{'oracle':>8}{'FWE':>8}"]
    for name, row in figures.items():
        if "ks_p" in row:
            cells = [row["noise_p_at_or_below"][str(level)]["mean"] for level in LEVELS]
            cells += [row["ks_p"], row["bh_0.05"]["false_discovery_rate"]["mean"], row["bh_0.05"]["power"]["mean"]]
            cells += [row["oracle_bh_0.05"]["power"]["mean"]]
            family = row.get("family_wise_error_0.05")
            cells += [family["mean"]] if family else []
            lines.append(f"{name:38}" + "".join(f"{cell:8.3f}" for cell in cells))
        elif "coverage_of_95" in row:
            kinds = row["coverage_of_95"].items()
            lines.append(f"{name:38}  coverage " + "  ".join(f"{kind} {cell['mean']:.3f}" for kind, cell in kinds))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--world", choices=WORLDS, default="typical")
    parser.add_argument("--simulations", type=int, default=1000)
    parser.add_argument("--leak-simulations", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    world = WORLDS[options.world]
    with threadpool_limits(1):
        figures = judge(world, gather(world, options.simulations, options.seed))
        leaking = leak(options.leak_simulations, options.seed)
    text = table(figures)
    for name, value in leaking.items():
        text += f"\nr of noise, folds of {name:17}{value['mean']:8.3f} (se {value['se']:.3f})"
    sys.stdout.write(text + "\n")
    if options.json:
        record = {
            "question": "do p-values, false discovery rates, family-wise errors and intervals keep what they promise?",
            "command": "python " + " ".join(sys.argv),
            "world": vars(world),
            "simulations": options.simulations,
            "tests": figures,
            "mean_r_of_noise": {"simulations": options.leak_simulations} | leaking,
            "machine": platform.machine(),
            "versions": {"numpy": np.__version__, "scipy": scipy.__version__, "python": platform.python_version()},
        }
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
