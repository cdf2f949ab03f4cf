"""Held-out predictions from one decomposition, against scikit-learn fitted without each fold."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import scipy.stats
from sklearn.linear_model import Ridge

from vidbrain.encoding.ridge.gram import positive_part
from vidbrain.encoding.ridge.smoothers import is_worth, make_smoothers

FOLDS = [slice(0, 17), slice(17, 30), slice(30, 60)]


@pytest.mark.parametrize("size", [1.0, 1e4])
def test_scores_are_those_of_models_without_the_fold(size):
    rng = np.random.default_rng(0)
    X = size * rng.standard_normal((60, 150))
    X -= X.mean(axis=0)
    Y = (X @ rng.standard_normal((150, 40)) / size / 8 + rng.standard_normal((60, 40))).astype(np.float32)
    Y -= Y.mean(axis=0)
    alphas = size**2 * np.logspace(-4, 8, 7)  # from interpolation to almost nothing
    eigenvalues, vectors = positive_part(X @ X.T, 60)
    assert is_worth(60, FOLDS, len(alphas), len(eigenvalues))
    with ThreadPoolExecutor(1) as pool:
        found = make_smoothers(vectors, eigenvalues, FOLDS, alphas, pool)
    squares = np.stack([np.sum((Y[fold] - Y[fold].mean(0)) ** 2, axis=0) for fold in FOLDS])
    scores = found.score(Y, squares)
    for alpha, ours in zip(alphas, scores, strict=True):
        expected = 0
        for fold in FOLDS:
            rest = np.delete(np.arange(60), np.r_[fold])
            predicted = Ridge(alpha=alpha, solver="svd").fit(X[rest], Y[rest].astype(float)).predict(X[fold])
            expected = expected + scipy.stats.pearsonr(predicted, Y[fold], axis=0).statistic / len(FOLDS)
        np.testing.assert_allclose(ours, expected, atol=1e-5)


def test_what_they_do_not_serve():
    assert not is_worth(60, FOLDS, 7, 58)  # duplicate rows: the kernel lacks a direction
    assert not is_worth(60, [slice(0, 40), slice(40, 60)], 7, 59)  # inverting that fold costs more than it saves
    assert not is_worth(40_000, [slice(n * 4000, (n + 1) * 4000) for n in range(10)], 20, 39_999)  # 128 GB
