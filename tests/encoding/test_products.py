"""The same products by torch, on the CPU here: what a GPU is asked for."""

import numpy as np
import pytest
import torch

from vidbrain.encoding import blocks
from vidbrain.encoding.blocks import fit_encoding
from vidbrain.encoding.products import NumpyProducts, TorchProducts, products_on
from vidbrain.encoding.settings import EncodeConfig
from vidbrain.errors import ConfigError
from vidbrain.testing.brains import toy_world


def test_norms_equal_float64():
    rng = np.random.default_rng(0)
    factor = np.triu(rng.standard_normal((30, 50))).astype(np.float32)
    Z, shrinkage = (rng.standard_normal(shape).astype(np.float32) for shape in ((50, 70), (4, 50)))
    expected = [np.sum((factor.astype(float) @ (row[:, None] * Z.astype(float))) ** 2, axis=0) for row in shrinkage]
    for products in (NumpyProducts(), TorchProducts("cpu")):
        np.testing.assert_allclose(products.norms(factor, Z, shrinkage), expected, rtol=1e-4)


@pytest.mark.parametrize("form", ["primal", "dual", "hat"])
def test_the_whole_fit_is_the_same(tmp_path, monkeypatch, form):
    features, bold = toy_world((62, 55, 70), n_signal=300, n_noise=300)
    config = EncodeConfig(delays=(1, 2), form=form, n_permutations=50)
    here = fit_encoding(features, bold, config, tmp_path / "numpy").dataset
    monkeypatch.setattr(blocks, "products_on", lambda _: TorchProducts("cpu"))
    there = fit_encoding(features, bold, config, tmp_path / "torch").dataset
    same = (here["fold_alpha"].values == there["fold_alpha"].values).all(axis=0)
    assert same.mean() > 0.99
    np.testing.assert_allclose(there["r"].values[:, same], here["r"].values[:, same], atol=1e-5)


def test_a_missing_gpu_is_a_clear_error(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="no GPU"):
        products_on("cuda")
