"""Nulls, families and surrogates through the whole engine."""

import numpy as np
import pytest
import scipy.stats

from vidbrain.encoding.blocks import fit_encoding
from vidbrain.encoding.settings import EncodeConfig
from vidbrain.errors import ConfigError
from vidbrain.testing.brains import toy_world


@pytest.mark.parametrize("null", ["shift", "block", "refit"])
@pytest.mark.parametrize("test", [(), ("*ses-002*",)])
def test_every_null_finds_what_was_planted_and_little_else(tmp_path, null, test):
    features, bold = toy_world((160, 150, 170, 155), n_signal=60, n_noise=340)
    config = EncodeConfig(delays=(2, 3), null=null, n_permutations=400, test=test)
    data = fit_encoding(features, bold, config, tmp_path).dataset
    q = data["q"].values
    assert np.mean(q[:60] < 0.05) > 0.9
    assert np.sum(q[60:] < 0.05) <= 0.1 * np.sum(q < 0.05)
    assert (data["q_any"].values >= q).all()
    noise = data["p"].values[60:]
    assert np.mean(noise < 0.05) < 0.1
    if null == "refit":
        assert np.isnan(data["p_fwe"]).all()  # surrogates are of other voxels: they have no common maximum
        assert scipy.stats.kstest(noise, "uniform").pvalue > 0.001
    else:
        assert (data["p_fwe"].values >= data["p"].values - 1e-6).all()
        assert np.mean(data["p_fwe"].values[:60] < 0.05) > 0.5
        assert np.sum(data["p_fwe"].values[60:] < 0.05) <= 2


def test_the_family_and_the_surrogates_do_not_depend_on_blocks(tmp_path):
    features, bold = toy_world((60, 55, 50), n_signal=700, n_noise=900)
    for null in ("shift", "refit"):
        results = [
            fit_encoding(
                features,
                bold,
                EncodeConfig(delays=(2,), null=null, n_permutations=300, voxels_per_block=block),
                tmp_path / f"{null}-{block}",
            ).dataset
            for block in (512, 4096)
        ]
        for name in ("p", "q", "p_fwe"):
            np.testing.assert_array_equal(results[0][name].values, results[1][name].values)


def test_refitted_voxels_cannot_share_an_alpha():
    with pytest.raises(ConfigError, match="alphas of their own"):
        EncodeConfig(null="refit", alpha_per="all")
