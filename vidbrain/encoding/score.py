"""One block of voxels: choose each voxel's alpha, predict the held-out runs, and test r against shifts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from vidbrain.encoding import null
from vidbrain.encoding.bootstrap import block_moments
from vidbrain.encoding.choose import Chosen, best_of, inner_scores
from vidbrain.encoding.plan import Plan, Test, TrainingSet
from vidbrain.encoding.targets import Targets, tiles

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]


@dataclass(frozen=True)
class BlockScores:
    """What one block of t voxels gives. Dead voxels have r = 0, R² = 0 and p = 1: a NaN would spread into maps.

    Attributes
    ----------
    r : (n_parts, t) float32
        Correlation in each held-out part; 0 where the voxel or its prediction does not vary.
    r_pooled : (t,) float32
        Correlation over all parts together, each centred by itself.
    r2 : (t,) float32
        One less the squared errors over the squares about each part's mean, both summed over parts.
    r2_split : (n_bands, t) float32
        Shares of the bands, which add up to `r2` but for what the mean explains (product measure).
    r2_without : (n_models - 1, t) float32
        R² of the models that lack a band, retuned.
    alpha_index : (n_folds, t) int16
    gamma : (n_bands, t) float32
        Weights of the bands, the mean over folds.
    p : (t,) float64
        NaN where no permutation was asked for.
    observed : (t,) float32
        Statistic that p is about: the mean of r over parts.
    maxima : (n_permutations,) float32
        Greatest null value over these voxels in each draw.
    moments : (n_blocks, 5, t) float32
        Sums over blocks of TRs (`bootstrap.BlockMoments`), part after part; no rows unless asked for.
    block_n_trs, block_part : (n_blocks,)
        TRs of each block, and its part.
    dead : (t,) bool
        Constant or not finite in at least one run.
    """

    r: F32
    r_pooled: F32
    r2: F32
    r2_split: F32
    r2_without: F32
    alpha_index: NDArray[np.int16]
    gamma: F32
    p: F64
    observed: F32
    maxima: F32
    moments: F32
    block_n_trs: F32
    block_part: NDArray[np.int64]
    dead: NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Inference:
    """How r is tested.

    Attributes
    ----------
    kind
        Circular shifts of each part, or permutations of blocks of TRs within it.
    n_permutations, seed
        Draws, the same for every voxel; none without permutations.
    block_trs
        TRs of a block, for permutations and for moments.
    spread
        Factor by which the null is widened, see `null.p_values`.
    keep_moments
        Keep the sums from which r can be resampled.
    """

    kind: Literal["shift", "block"] = "shift"
    n_permutations: int = 1000
    seed: int = 0
    block_trs: int = 15
    spread: float = null.SPREAD
    keep_moments: bool = False

    def draw(self, n_trs: list[int]) -> null.Null:
        """Draw the rearrangements of parts of these lengths."""
        if self.kind == "shift":
            return null.draw_shifts(n_trs, self.n_permutations, self.seed)
        return null.draw_block_permutations(n_trs, self.block_trs, self.n_permutations, self.seed)


def score_block(plan: Plan, Y: F32, inference: Inference, *, chosen: Chosen | None = None) -> BlockScores:
    """Fit and test a block of voxels.

    Parameters
    ----------
    plan
        The feature side.
    Y : (n, t) float32
        BOLD of the plan's rows; any offset and scale.
    inference
        How r is tested.
    chosen
        Alphas and candidates; by default each voxel chooses its own.
    """
    targets = Targets(plan, Y)
    if chosen is None:
        chosen = choose(plan, targets)
    t = targets.n_voxels
    r = np.zeros((len(plan.parts), t), np.float32)
    sums = {name: np.zeros(t) for name in ("product", "predicted", "measured")}
    errors, split = np.zeros((plan.n_models, t)), np.zeros((len(plan.bands), t))
    predicted_unit: dict[int, F32] = {}
    measured_unit: dict[int, F32] = {}
    moments = []
    for model in range(plan.n_models):
        for test, by_band, mean in predictions(plan, targets, chosen, model):
            measured = targets.Y[test.rows]
            predicted = by_band.sum(axis=0) if len(by_band) > 1 else by_band[0].copy()
            # The mean is added to the residual: a small prediction would lose its digits to it.
            errors[model] += np.sum((measured - predicted - mean) ** 2, axis=0, dtype=np.float64)
            if model > 0:
                continue
            measured -= measured.mean(axis=0)
            predicted -= predicted.mean(axis=0)
            squares = np.sum(measured**2, axis=0, dtype=np.float64)
            length = np.sum(predicted**2, axis=0, dtype=np.float64)
            product = np.sum(predicted * measured, axis=0, dtype=np.float64)
            for name, value in zip(sums, (product, length, squares), strict=True):
                sums[name] += value
            for band, contribution in enumerate(by_band):
                split[band] += np.sum(contribution * (2 * measured - predicted), axis=0, dtype=np.float64)
            norm = np.sqrt(length * squares)
            scale = np.divide(1.0, norm, out=np.zeros_like(norm), where=norm > 0)
            r[test.part] = product * scale
            if inference.keep_moments:
                moments.append((test.part, block_moments(predicted, measured, inference.block_trs)))
            if inference.n_permutations:
                predicted *= (scale / len(plan.parts)).astype(np.float32)
                predicted_unit[test.part], measured_unit[test.part] = predicted, measured
    p, observed, maxima = np.full(t, np.nan), r.mean(axis=0), np.empty(0, np.float32)
    if inference.n_permutations:
        draws = inference.draw([len(predicted_unit[part]) for part in range(len(plan.parts))])
        ordered = [[unit[part] for part in range(len(plan.parts))] for unit in (predicted_unit, measured_unit)]
        tested = null.p_values(draws, null.products(draws, *ordered), spread=inference.spread)
        p, observed, maxima = tested.p, tested.observed, tested.maxima
        p[targets.dead] = 1
    total = sums["measured"]
    norm = np.sqrt(sums["predicted"] * total)

    def share(values: F64) -> F32:
        out = np.divide(values, total, out=np.zeros_like(values), where=total > 0)
        return np.where(targets.dead, 0, out).astype(np.float32)

    r[:, targets.dead] = 0
    r_pooled = np.divide(sums["product"], norm, out=np.zeros(t), where=(norm > 0) & ~targets.dead)
    r2 = share(total - errors)
    return BlockScores(
        r=r,
        r_pooled=r_pooled.astype(np.float32),
        r2=r2[0],
        r2_split=share(split),
        r2_without=r2[1:],
        alpha_index=chosen.alpha[0].astype(np.int16),
        gamma=np.moveaxis(plan.gammas[chosen.candidate[0]].mean(axis=0), 1, 0).astype(np.float32),
        p=p,
        observed=observed,
        maxima=maxima,
        moments=np.concatenate([m.sums for _, m in moments]) if moments else np.empty((0, 5, t), np.float32),
        block_n_trs=np.concatenate([m.n_trs for _, m in moments]) if moments else np.empty(0, np.float32),
        block_part=np.concatenate([np.full(len(m.n_trs), part) for part, m in moments] or [np.empty(0, np.int64)]),
        dead=targets.dead,
    )


def choose(plan: Plan, targets: Targets) -> Chosen:
    """Choose alpha and candidate of each voxel; where there is no choice, nothing is computed."""
    if len(plan.alphas) == 1 and len(plan.gammas) == 1:
        nothing = np.zeros((1, plan.n_folds, targets.n_voxels), np.int64)
        return Chosen(nothing, nothing)
    return best_of(plan, inner_scores(plan, targets))


def predictions(plan: Plan, targets: Targets, chosen: Chosen, model: int) -> list[tuple[Test, F32, F32]]:
    """Predict every held-out part with each voxel's candidate and alpha.

    Returns
    -------
    list of (test, (n_bands, n_f, t) float32, (t,) float32)
        Shares of the bands, and the training mean to be added to their sum; by part.
    """
    found: dict[int, tuple[Test, F32, F32]] = {}
    for candidate in np.unique(chosen.candidate[model]):
        for number in plan.testing:
            training = plan.training_set(number, int(candidate))
            for test in training.tests:
                users = chosen.candidate[model, test.fold] == candidate
                if not users.any():
                    continue
                if test.part not in found:
                    empty = np.zeros((len(test.scores), len(test.rows), targets.n_voxels), np.float32)
                    found[test.part] = test, empty, targets.mean(training.rows).astype(np.float32)
                _predict(training, test, targets, users, chosen.alpha[model, test.fold], found[test.part][1])
    return [found[part] for part in sorted(found)]


def _predict(
    training: TrainingSet,
    test: Test,
    targets: Targets,
    users: NDArray[np.bool_],
    alpha: NDArray[np.int64],
    out: F32,
) -> None:
    by_direction = np.ascontiguousarray(training.shrinkage.T)
    for tile in tiles(targets.n_voxels):
        mine = np.flatnonzero(users[tile])
        if not len(mine):
            continue
        Z = targets.project(training, tile)
        Z *= by_direction[:, alpha[tile]]
        if len(mine) < Z.shape[1]:
            Z = np.ascontiguousarray(Z[:, mine])
        for band, scores in enumerate(test.scores):
            out[band][:, tile.start + mine] = scores @ Z
