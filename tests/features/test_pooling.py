"""Pooling of token grids, on arrays and on tensors."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vidbrain.errors import ConfigError, ModelError
from vidbrain.features.pooling import Pooling, averaging_matrix, pool

TOKENS = np.random.default_rng(0).normal(size=(2, 3, 8, 12, 5))


def test_grid_agrees_with_torch_where_cells_hold_whole_tokens():
    channels_first = torch.from_numpy(TOKENS).permute(0, 1, 4, 2, 3).reshape(6, 5, 8, 12)
    expected = torch.nn.functional.adaptive_avg_pool2d(channels_first, 4).permute(0, 2, 3, 1).reshape(2, 3, -1)
    np.testing.assert_allclose(pool(TOKENS, Pooling(grid=4)), expected.numpy(), rtol=1e-12)


def test_grid_of_parts_of_tokens_weighs_by_area():
    fine = np.repeat(np.repeat(TOKENS, 5, axis=2), 5, axis=3)  # 40x60: cells of a 5x5 grid hold whole ones again
    expected = fine.reshape(2, 3, 5, 8, 5, 12, 5).mean(axis=(3, 5)).reshape(2, 3, -1)
    np.testing.assert_allclose(pool(TOKENS, Pooling(grid=5)), expected, rtol=1e-12)


def test_mean_and_last():
    np.testing.assert_allclose(pool(TOKENS, Pooling(kind="mean")), TOKENS.mean(axis=(2, 3)), rtol=1e-12)
    np.testing.assert_array_equal(pool(TOKENS, Pooling(kind="last")), TOKENS[:, :, 7, 11])
    np.testing.assert_allclose(pool(TOKENS, Pooling(grid=1)), TOKENS.mean(axis=(2, 3)), rtol=1e-12)


@pytest.mark.parametrize("kind", ["grid", "mean", "last", "all", "projection"])
def test_tensors_pool_as_arrays_do(kind):
    tensor = torch.from_numpy(TOKENS).float()
    pooled = pool(tensor, Pooling(kind=kind, grid=3))
    assert isinstance(pooled, torch.Tensor)
    assert pooled.dtype == torch.float32
    expected = pool(TOKENS, Pooling(kind=kind, grid=3))
    np.testing.assert_allclose(pooled.numpy(), expected, rtol=1e-5, atol=1e-6)
    assert pooled.shape[-1] == Pooling(kind=kind, grid=3).n_features((8, 12), 5)


@pytest.mark.parametrize(("n", "cells"), [(8, 4), (7, 3), (32, 12), (5, 5), (9, 1)])
def test_every_sample_counts_the_same(n, cells):
    matrix = averaging_matrix(n, cells)
    np.testing.assert_allclose(matrix.sum(1), 1.0)
    np.testing.assert_allclose(matrix.sum(0), cells / n)


def test_a_grid_finer_than_the_tokens_is_refused():
    with pytest.raises(ModelError, match=r"16x16 is finer than the 8x8 tokens of vqvae\.encoder"):
        Pooling(grid=16).check("vqvae.encoder", (8, 8))
    with pytest.raises(ConfigError):
        Pooling(grid=0)
