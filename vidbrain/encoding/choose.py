"""Choose each voxel's alpha, and its weighting of the bands, by the r of inner folds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vidbrain.encoding.plan import Plan, TrainingSet, Validation
from vidbrain.encoding.ridge import gram
from vidbrain.encoding.targets import Targets

F32 = NDArray[np.float32]
Index = NDArray[np.int64]


@dataclass(frozen=True)
class Chosen:
    """Positions of the chosen candidate and alpha, each (n_models, n_folds, t) int64."""

    candidate: Index
    alpha: Index


def inner_scores(plan: Plan, targets: Targets) -> Iterator[tuple[int, F32]]:
    """Yield, for each candidate, the sum over inner folds of the validation r: (n_folds, r, t) float32."""
    for candidate in range(len(plan.gammas)):
        scores = np.zeros((plan.n_folds, len(plan.alphas), targets.n_voxels), np.float32)
        for number in plan.validating:
            add = _add_hats if plan.form == "hat" else _add_products
            add(plan.training_set(number, candidate), targets, scores)
        yield candidate, scores


def best_of(plan: Plan, scored: Iterator[tuple[int, F32]]) -> Chosen:
    """Keep the best candidate and alpha of each model, fold and voxel; a tie goes to the larger alpha."""
    best: F32 | None = None
    for number, scores in scored:
        if best is None:
            shape = (plan.n_models, plan.n_folds, scores.shape[2])
            best, candidate, alpha = np.full(shape, -np.inf, np.float32), np.zeros(shape, int), np.zeros(shape, int)
        model = plan.model[number]
        for fold in range(plan.n_folds):
            here = gram.best_alpha(scores[fold])
            value = np.take_along_axis(scores[fold], here[None], axis=0)[0]
            better = value > best[model, fold]
            best[model, fold][better] = value[better]
            candidate[model, fold][better] = number
            alpha[model, fold][better] = here[better]
    return Chosen(candidate, alpha)


def _measured(targets: Targets, validation: Validation) -> tuple[F32, F32]:
    """Centred BOLD of a validation set (n_v, t), and its sum of squares (t,)."""
    measured = targets.Y[validation.rows]
    measured -= measured.mean(axis=0)
    return measured, np.asarray(np.sum(measured**2, axis=0, dtype=np.float64), np.float32)


def _add_products(training: TrainingSet, targets: Targets, scores: F32) -> None:
    held = [(np.ascontiguousarray(v.scores.T), *_measured(targets, v)) for v in training.validations]
    for tile in targets.tiles:
        Z = targets.project(training, tile)
        parts = [
            (v.factor, targets.products.multiply(scores_t, y[:, tile]), squares[tile])
            for v, (scores_t, y, squares) in zip(training.validations, held, strict=True)
        ]
        found = gram.inner_correlations(
            Z, parts, training.shrinkage, training.mixture, training.terms, targets.products.norms
        )
        for validation, r in zip(training.validations, found, strict=True):
            scores[validation.fold][:, tile] += r


def _add_hats(training: TrainingSet, targets: Targets, scores: F32) -> None:
    held = [(targets.Y[v.rows] - targets.mean(training.rows).astype(np.float32)) for v in training.validations]
    for tile in targets.tiles:
        Z = targets.project(training, tile)
        for validation, y in zip(training.validations, held, strict=True):
            measured = y[:, tile] - y[:, tile].mean(axis=0)
            squares = np.einsum("it,it->t", measured, measured)
            for position, weights in enumerate(training.shrinkage):
                predicted = targets.products.multiply(validation.scores, Z * weights[:, None])
                predicted -= targets.products.multiply(validation.hat[position], y[:, tile] - predicted)
                predicted -= predicted.mean(axis=0)
                product = np.einsum("it,it->t", predicted, measured)
                norm = np.einsum("it,it->t", predicted, predicted)
                scores[validation.fold, position, tile] += gram.ratio(product, norm, squares)
