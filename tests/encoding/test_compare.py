"""Two feature sets side by side, by the same resampled blocks."""

import numpy as np
import pytest

from vidbrain.cli.app import run
from vidbrain.encoding.blocks import fit_encoding
from vidbrain.encoding.compare import CompareConfig, compare, moments_of, open_comparison
from vidbrain.encoding.inference.bootstrap import correlations
from vidbrain.encoding.settings import EncodeConfig
from vidbrain.errors import AlignmentError, EncodingError, ResumeError
from vidbrain.testing.brains import ToyFeatures, toy_world

KEEP = EncodeConfig(delays=(2, 3), n_permutations=0, keep_moments=True, block_trs=10)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    root = tmp_path_factory.mktemp("compare")
    features, bold = toy_world((150, 140, 160, 145), n_features=12, n_signal=60, n_noise=140)
    half = ToyFeatures({"half": {label: v[:, :3] for label, v in features.values["toy"].items()}})
    return (
        fit_encoding(features, bold, KEEP, root / "all"),
        fit_encoding(half, bold, KEEP, root / "half"),
        features,
        bold,
    )


def test_a_better_set_is_found_where_it_is_better_and_nowhere_else(results, tmp_path):
    full, half, *_ = results
    info = compare(full, half, CompareConfig(), tmp_path / "out")
    data = open_comparison(tmp_path / "out").load()
    np.testing.assert_allclose(
        data["difference"], full.dataset["r_mean"].values - half.dataset["r_mean"].values, atol=2e-5
    )
    found = data["q"].values < 0.05
    assert found[:60].mean() > 0.9
    assert found[60:].sum() <= 0.1 * found.sum()
    assert (data["low"] <= data["high"]).all()
    assert info["summary"]["a_better_share"] == pytest.approx(np.mean(found & (data["difference"].values > 0)))
    back = compare(half, full, CompareConfig(), tmp_path / "back")
    assert back["summary"]["median_difference"] == pytest.approx(-info["summary"]["median_difference"], abs=1e-6)


def test_moments_are_those_of_the_parts_that_were_judged(results):
    full, _, _, bold = results
    moments = moments_of(full, slice(0, 5))
    assert [len(part.n_trs) for part in moments] == [(len(bold.values[r]) - 3) // 10 for r in bold.runs]
    once = [np.ones((1, len(part.n_trs)), np.float32) for part in moments]
    np.testing.assert_allclose(
        correlations(moments, once, slice(0, 5), "mean")[0], full.dataset["r_mean"].values[:5], atol=1e-5
    )


def test_what_cannot_be_compared_is_refused(results, tmp_path):
    full, half, features, bold = results
    bare = fit_encoding(features, bold, EncodeConfig(delays=(2, 3), n_permutations=0), tmp_path / "bare")
    with pytest.raises(EncodingError, match="no moments"):
        compare(full, bare, CompareConfig(), tmp_path / "out")
    later = EncodeConfig(delays=(2, 9), n_permutations=0, keep_moments=True, block_trs=10)
    other = fit_encoding(features, bold, later, tmp_path / "later")
    with pytest.raises(AlignmentError, match="not tested on the same TRs"):
        compare(full, other, CompareConfig(), tmp_path / "out")
    strange, brain = toy_world((150, 140, 160, 145), seed=3)
    elsewhere = fit_encoding(strange, brain, KEEP, tmp_path / "elsewhere")
    with pytest.raises(AlignmentError, match="different BOLD"):
        compare(full, elsewhere, CompareConfig(), tmp_path / "out")
    compare(full, half, CompareConfig(n_resamples=50), tmp_path / "out")
    with pytest.raises(ResumeError, match="n_resamples"):
        compare(full, half, CompareConfig(n_resamples=60), tmp_path / "out")


def test_the_command(results, tmp_path, capsys):
    full, half, *_ = results
    assert run(["compare", str(full.root), str(half.root), "--out", str(tmp_path / "c"), "--n-resamples", "50"]) == 0
    assert "median difference" in capsys.readouterr().out.lower().replace("_", " ")
    assert run(["compare", str(full.root), str(tmp_path / "nothing"), "--out", str(tmp_path / "d")]) == 1
