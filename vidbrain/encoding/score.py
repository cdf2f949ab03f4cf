"""One block of voxels: choose each voxel's alpha, predict the held-out runs, and test r against shifts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from vidbrain.encoding.choose import Chosen, best_of, inner_scores
from vidbrain.encoding.inference import null, surrogate
from vidbrain.encoding.inference.bootstrap import BlockMoments, block_moments
from vidbrain.encoding.plan import Plan, Test, TrainingSet
from vidbrain.encoding.products import Products
from vidbrain.encoding.targets import Targets

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
        Greatest null value over these voxels in each draw; empty where there are none.
    standard : (t,) float64
        Scores that are compared with those of surrogates (`surrogate.standard_scores`); NaN unless asked for.
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
    standard: F64
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
        Circular shifts of each part, permutations of blocks of TRs within it, or surrogate voxels that are fitted anew.
    n_permutations, seed
        Draws, the same for every voxel; none without permutations.
    block_trs
        TRs of a block, for permutations and for moments.
    spread
        Factor by which the null is widened, see `null.p_values`.
    keep_moments
        Keep the sums from which r can be resampled.
    """

    kind: Literal["shift", "block", "refit"] = "shift"
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


class Tally:
    """Sums over the held-out parts of a block of voxels.

    Parameters
    ----------
    plan, inference
        As in `score_block`.
    n_voxels
        t.
    """

    def __init__(self, plan: Plan, inference: Inference, n_voxels: int) -> None:
        self.n_parts, self.inference = len(plan.parts), inference
        self.r = np.zeros((self.n_parts, n_voxels), np.float32)
        self.errors = np.zeros((plan.n_models, n_voxels))
        self.split = np.zeros((len(plan.bands), n_voxels))
        self.product, self.length, self.squares = (np.zeros(n_voxels) for _ in range(3))
        self.series: dict[int, tuple[F32, F32]] = {}
        self.moments: dict[int, BlockMoments] = {}

    def add_error(self, model: int, measured: F32, predicted: F32, mean: F32) -> None:
        """Add a part's squared errors; the mean is added to the residual, where it costs no digits."""
        self.errors[model] += np.sum((measured - predicted - mean) ** 2, axis=0, dtype=np.float64)

    def add_part(self, part: int, measured: F32, predicted: F32, by_band: F32) -> None:
        """Add a part of the joint model; measured and predicted are centred in place."""
        measured -= measured.mean(axis=0)
        predicted -= predicted.mean(axis=0)
        squares = np.sum(measured**2, axis=0, dtype=np.float64)
        length = np.sum(predicted**2, axis=0, dtype=np.float64)
        product = np.sum(predicted * measured, axis=0, dtype=np.float64)
        self.squares += squares
        self.length += length
        self.product += product
        for band, contribution in enumerate(by_band):
            self.split[band] += np.sum(contribution * (2 * measured - predicted), axis=0, dtype=np.float64)
        norm = np.sqrt(length * squares)
        scale = np.divide(1.0, norm, out=np.zeros_like(norm), where=norm > 0)
        self.r[part] = product * scale
        if self.inference.keep_moments:
            self.moments[part] = block_moments(predicted, measured, self.inference.block_trs)
        if self.inference.n_permutations:
            # So that products add up to the mean of r over parts.
            predicted *= (scale / self.n_parts).astype(np.float32)
            self.series[part] = predicted, measured

    def tested(self) -> tuple[F64, F32, F32, F64]:
        """P, the statistic that it is about, greatest null values, and standard scores; NaN unless asked for."""
        nothing, observed = np.full(self.r.shape[1], np.nan), self.r.mean(axis=0)
        if not self.inference.n_permutations:
            return nothing, observed, np.empty(0, np.float32), nothing
        predicted, measured = ([self.series[part][side] for part in range(self.n_parts)] for side in (0, 1))
        if self.inference.kind == "refit":
            tables = [null.circular_products(*pair) for pair in zip(predicted, measured, strict=True)]
            return nothing, observed, np.empty(0, np.float32), surrogate.standard_scores(tables)
        draws = self.inference.draw([len(series) for series in predicted])
        found = null.p_values(draws, null.products(draws, predicted, measured), spread=self.inference.spread)
        return found.p, found.observed, found.maxima, nothing


def score_block(
    plan: Plan,
    Y: F32,
    inference: Inference,
    *,
    chosen: Chosen | None = None,
    widths: Sequence[int] | None = None,
    products: Products | None = None,
) -> BlockScores:
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
    widths, products
        Of tiles, and where matrices are multiplied, see `Targets`.
    """
    targets = Targets(plan, Y, widths, products)
    chosen = chosen or choose(plan, targets)
    tally = Tally(plan, inference, targets.n_voxels)
    for model in range(plan.n_models):
        for test, by_band, mean in predictions(plan, targets, chosen, model):
            measured = targets.Y[test.rows]
            predicted = by_band.sum(axis=0) if len(by_band) > 1 else by_band[0].copy()
            tally.add_error(model, measured, predicted, mean)
            if model == 0:
                tally.add_part(test.part, measured, predicted, by_band)
    dead = targets.dead

    def share(values: F64) -> F32:
        out = np.divide(values, tally.squares, out=np.zeros_like(values), where=tally.squares > 0)
        return np.where(dead, 0, out).astype(np.float32)

    norm = np.sqrt(tally.length * tally.squares)
    r_pooled = np.divide(tally.product, norm, out=np.zeros_like(norm), where=(norm > 0) & ~dead)
    r2 = share(tally.squares - tally.errors)
    p, observed, maxima, standard = tally.tested()
    tally.r[:, dead] = 0
    if inference.n_permutations:
        p[dead] = 1
    moments = sorted(tally.moments.items())
    return BlockScores(
        r=tally.r,
        r_pooled=r_pooled.astype(np.float32),
        r2=r2[0],
        r2_split=share(tally.split),
        r2_without=r2[1:],
        alpha_index=chosen.alpha[0].astype(np.int16),
        gamma=np.moveaxis(plan.gammas[chosen.candidate[0]].mean(axis=0), 1, 0).astype(np.float32),
        p=p,
        observed=observed,
        maxima=maxima,
        standard=standard,
        moments=np.concatenate([np.empty((0, 5, targets.n_voxels), np.float32), *(m.sums for _, m in moments)]),
        block_n_trs=np.concatenate([np.empty(0, np.float32), *(m.n_trs for _, m in moments)]),
        block_part=np.repeat([part for part, _ in moments], [len(m.n_trs) for _, m in moments]).astype(np.int64),
        dead=dead,
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
    for tile in targets.tiles:
        mine = np.flatnonzero(users[tile])
        if not len(mine):
            continue
        Z = targets.project(training, tile)
        Z *= by_direction[:, alpha[tile]]
        if len(mine) < Z.shape[1]:
            Z = np.ascontiguousarray(Z[:, mine])
        for band, scores in enumerate(test.scores):
            out[band][:, tile.start + mine] = targets.products.multiply(scores, Z)
