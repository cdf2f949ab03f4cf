"""The whole engine against a naive solver, and its promises: any blocks, any workers, any interruption."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import scipy.stats
import xarray as xr

from vidbrain import cluster
from vidbrain.encoding import blocks, decompose
from vidbrain.encoding.blocks import fit_encoding
from vidbrain.encoding.design.delays import delay
from vidbrain.encoding.design.nuisance import nuisance_columns, partial_out
from vidbrain.encoding.prepare import prepare
from vidbrain.encoding.result import open_result
from vidbrain.encoding.settings import EncodeConfig
from vidbrain.errors import ConfigError, ResumeError, StorageError, VidbrainError
from vidbrain.storage.locks import LOCK, locked
from vidbrain.testing.brains import ToyFeatures, toy_world


def corr(a, b):
    return scipy.stats.pearsonr(a, b, axis=0).statistic


def naive(features, bold, delays, alphas):
    """Nested leave-one-run-out ridge in float64: every prediction is formed, nothing is shared."""
    X, Y, run = [], [], []
    first = max(delays)
    for number, label in enumerate(bold.runs):
        x = np.concatenate([features.values[layer][label] for layer in features.layers], axis=1)
        X.append(delay(x, delays)[first:].astype(np.float64))
        Y.append(bold.values[label][first:].astype(np.float64))
        run.append(np.full(len(Y[-1]), number))
    X, Y, run = np.concatenate(X), np.concatenate(Y), np.concatenate(run)

    def predict(train, test):
        mean, scale = X[train].mean(0), X[train].std(0)
        inverse = np.where(scale > 1e-5, 1 / np.where(scale > 1e-5, scale, 1), 0)
        A, B = (X[train] - mean) * inverse, (X[test] - mean) * inverse
        y_mean = Y[train].mean(0)
        G, C = A.T @ A, A.T @ (Y[train] - y_mean)
        return [B @ np.linalg.solve(G + alpha * np.eye(len(G)), C) + y_mean for alpha in alphas]

    r, alpha, scores, sse, sst = [], [], [], 0, 0
    for f in np.unique(run):
        score = np.zeros((len(alphas), Y.shape[1]))
        for g in np.unique(run[run != f]):
            held = run == g
            score += [corr(p, Y[held]) for p in predict((run != f) & (run != g), held)]
        best = len(alphas) - 1 - np.argmax(score[::-1], axis=0)
        predicted = np.choose(best, predict(run != f, run == f))
        r.append(corr(predicted, Y[run == f]))
        alpha.append(np.asarray(alphas)[best])
        scores.append(score / (len(bold.runs) - 1))
        sse = sse + ((Y[run == f] - predicted) ** 2).sum(0)
        sst = sst + ((Y[run == f] - Y[run == f].mean(0)) ** 2).sum(0)
    return np.array(r), np.array(alpha), 1 - sse / sst, np.array(scores)


def assert_same(one, other):
    assert one.info["fingerprint"] == other.info["fingerprint"]
    xr.testing.assert_identical(one.dataset.load(), other.dataset.load())


@pytest.mark.parametrize(("n_features", "form"), [(12, "primal"), (70, "dual")])
def test_equals_the_naive_nested_solver(tmp_path, n_features, form):
    features, bold = toy_world((62, 55, 70, 58), n_features=n_features, n_signal=150, n_noise=50)
    config = EncodeConfig(delays=(0, 2, 3), n_permutations=9)
    result = fit_encoding(features, bold, config, tmp_path / "out")
    assert result.info["form"] == form
    r, alpha, r2, scores = naive(features, bold, config.delays, result.info["alphas"])
    same = np.isclose(result.dataset["fold_alpha"].values, alpha, rtol=1e-5)
    assert same.mean() >= 0.995
    # Where another alpha was chosen, the two score the same but for rounding.
    chosen = np.abs(
        np.log(result.dataset["fold_alpha"].values[:, None] / np.array(result.info["alphas"])[:, None])
    ).argmin(1)
    lost = scores.max(axis=1) - np.take_along_axis(scores, chosen[:, None], axis=1)[:, 0]
    assert lost.max() < 2e-6
    assert np.abs(result.dataset["r"].values - r)[same].max() < 1e-5
    everywhere = same.all(axis=0)
    assert np.abs(result.dataset["r2"].values - r2)[everywhere].max() < 1e-4
    np.testing.assert_allclose(result.dataset["r_mean"], r.mean(axis=0), atol=1e-3)


def test_primal_and_dual_agree(tmp_path):
    features, bold = toy_world(n_features=20, n_signal=200, n_noise=56)
    results = []
    for form in ("primal", "dual"):
        results.append(fit_encoding(features, bold, EncodeConfig(form=form), tmp_path / form))
        assert results[-1].info["form"] == form
    one, other = (result.dataset for result in results)
    assert np.mean(one["fold_alpha"].values == other["fold_alpha"].values) > 0.995
    same = (one["fold_alpha"].values == other["fold_alpha"].values).all(axis=0)
    np.testing.assert_allclose(one["r"].values[:, same], other["r"].values[:, same], atol=1e-5)


@pytest.mark.parametrize("n_features", [6, 60])
def test_every_bit_is_the_same_for_any_block_size(tmp_path, n_features):
    features, bold = toy_world((50, 45, 40), n_features=n_features, n_signal=700, n_noise=650)
    small = fit_encoding(features, bold, EncodeConfig(voxels_per_block=1), tmp_path / "small")
    large = fit_encoding(features, bold, EncodeConfig(voxels_per_block=4096), tmp_path / "large")
    assert_same(small, large)


def test_every_bit_is_the_same_for_any_number_of_workers(tmp_path):
    features, bold = toy_world((50, 45, 40), n_signal=700, n_noise=650)
    config = EncodeConfig(voxels_per_block=512)
    here = fit_encoding(features, bold, config, tmp_path / "here")
    with cluster.client("local", 2) as client:
        there = fit_encoding(features, bold, config, tmp_path / "there", client=client)
    assert_same(here, there)


def test_an_offset_of_raw_bold_changes_nothing(tmp_path):
    features, bold = toy_world()
    exact = {run: np.round(v * 512) / 512 for run, v in bold.values.items()}  # so that adding 1e4 rounds nothing off
    plain = fit_encoding(features, dataclasses.replace(bold, values=exact), EncodeConfig(), tmp_path / "plain")
    raised = {run: (v + np.float32(1e4)).astype(np.float32) for run, v in exact.items()}
    offset = fit_encoding(features, dataclasses.replace(bold, values=raised), EncodeConfig(), tmp_path / "offset")
    np.testing.assert_allclose(offset.dataset["r"], plain.dataset["r"], atol=1e-6)
    np.testing.assert_array_equal(offset.dataset["fold_alpha"], plain.dataset["fold_alpha"])


def test_planted_voxels_are_found_and_noise_is_not(tmp_path):
    features, bold = toy_world((200, 180, 210, 190), n_signal=150, n_noise=400)
    data = fit_encoding(features, bold, EncodeConfig(), tmp_path / "out").dataset
    assert np.median(data["r_mean"][:150]) > 0.5
    assert abs(np.median(data["r_mean"][150:])) < 0.02
    assert np.mean(data["q"][:150] < 0.05) > 0.95
    found = data["q"].values < 0.05
    assert found[150:].sum() / found.sum() < 0.1


def test_duplicate_and_constant_columns_are_solved_like_any_other(tmp_path):
    features, bold = toy_world((60, 70, 65), n_features=8)
    doubled = {r: np.column_stack([v, v, np.full(len(v), 5)]) for r, v in features.values["toy"].items()}
    features = ToyFeatures({"toy": {r: v.astype(np.float32) for r, v in doubled.items()}})
    config = EncodeConfig(delays=(1, 2), n_permutations=0)
    result = fit_encoding(features, bold, config, tmp_path)
    assert (result.info["design"]["n_columns"], result.info["design"]["n_constant_columns"]) == (32, 2)
    r, alpha, *_ = naive(features, bold, config.delays, result.info["alphas"])
    np.testing.assert_allclose(result.dataset["fold_alpha"], alpha, rtol=1e-5)
    np.testing.assert_allclose(result.dataset["r"], r, atol=1e-5)


def test_a_column_that_is_constant_in_a_training_fold_is_harmless(tmp_path):
    features, bold = toy_world((60, 70, 65))
    last = features.runs[-1]
    values = {
        r: np.column_stack([v, v[:, :1] * (r == last)]).astype(np.float32) for r, v in features.values["toy"].items()
    }
    features = ToyFeatures({"toy": values})
    result = fit_encoding(features, bold, EncodeConfig(n_permutations=0), tmp_path / "out")
    r, alpha, *_ = naive(features, bold, (1, 2, 3, 4, 5), result.info["alphas"])
    np.testing.assert_allclose(result.dataset["fold_alpha"], alpha, rtol=1e-5)
    np.testing.assert_allclose(result.dataset["r"], r, atol=1e-5)


def test_dead_voxels_are_flagged_and_harm_no_other(tmp_path):
    features, bold = toy_world()
    values = {run: v.copy() for run, v in bold.values.items()}
    runs = list(values)
    for run in runs:
        values[run][:, 3] = 1e4
    values[runs[1]][5, 4] = np.nan
    values[runs[2]][:, 5] = 0
    result = fit_encoding(features, dataclasses.replace(bold, values=values), EncodeConfig(), tmp_path / "out").dataset
    assert np.flatnonzero(result["dead"].values).tolist() == [3, 4, 5]
    for name, expected in (("r_mean", 0), ("r2", 0), ("p", 1), ("q", 1)):
        assert (result[name].values[3:6] == expected).all()
    clean = fit_encoding(features, bold, EncodeConfig(), tmp_path / "clean").dataset
    others = np.setdiff1d(np.arange(60), [3, 4, 5])
    np.testing.assert_array_equal(result["r"].values[:, others], clean["r"].values[:, others])
    assert np.isfinite(result.to_array()).all()


def test_one_alpha_and_two_runs(tmp_path):
    features, bold = toy_world((120, 110))
    one = fit_encoding(features, bold, EncodeConfig(n_alphas=1), tmp_path / "one")
    assert len(one.info["alphas"]) == 1
    assert (one.dataset["alpha"].values == np.float32(one.info["alphas"][0])).all()
    assert one.info["summary"]["median_r"] is not None
    many = fit_encoding(features, bold, EncodeConfig(), tmp_path / "many")
    assert np.median(many.dataset["r_mean"][:30]) > 0.5


@pytest.mark.parametrize("stop_after", [0, 1, 2])
def test_an_interrupted_fit_goes_on(tmp_path, monkeypatch, stop_after):
    features, bold = toy_world((50, 45, 40), n_signal=600, n_noise=600)
    config = EncodeConfig(voxels_per_block=512, n_permutations=20)
    whole = fit_encoding(features, bold, config, tmp_path / "whole")
    done = []

    def stops(row):
        if len(done) == stop_after:
            raise VidbrainError("lights out")
        done.append(row.start)
        return original(row)

    original = blocks.run_block
    monkeypatch.setattr(blocks, "run_block", stops)
    with pytest.raises(VidbrainError, match="lights out"):
        fit_encoding(features, bold, config, tmp_path / "again")
    with pytest.raises(StorageError, match="unfinished"):
        open_result(tmp_path / "again")
    rest = []
    monkeypatch.setattr(blocks, "run_block", lambda row: (rest.append(row.start), original(row))[1])
    monkeypatch.setattr(blocks, "write_plan", lambda *_, **__: pytest.fail("the plan was there"))
    again = fit_encoding(features, bold, config, tmp_path / "again")
    assert sorted(done + rest) == [0, 512, 1024]
    assert_same(whole, again)
    assert sorted(p.name for p in (tmp_path / "again").iterdir()) == ["info.json", "result.zarr"]


@pytest.mark.parametrize("n_features", [12, 90])
def test_an_interrupted_plan_goes_on(tmp_path, monkeypatch, n_features):
    features, bold = toy_world((50, 45, 40), n_features=n_features)
    whole = fit_encoding(features, bold, EncodeConfig(), tmp_path / "whole")
    begun = []

    def stops(row):
        begun.append(row.number)
        if len(begun) == 4:
            raise VidbrainError("lights out")
        return original(row)

    original = decompose.run_set
    monkeypatch.setattr(decompose, "run_set", stops)
    with pytest.raises(VidbrainError, match="lights out"):
        fit_encoding(features, bold, EncodeConfig(), tmp_path / "again")
    assert_same(whole, fit_encoding(features, bold, EncodeConfig(), tmp_path / "again"))
    assert begun == [0, 1, 2, 3, 3, 4, 5]


SCRIPT = """
import sys
from vidbrain.encoding.blocks import fit_encoding
from vidbrain.encoding.settings import EncodeConfig
from vidbrain.testing.brains import toy_world
features, bold = toy_world((120, 115, 130), n_features=30, n_signal=2000, n_noise=3000)
fit_encoding(features, bold, EncodeConfig(voxels_per_block=512, n_permutations=100), sys.argv[1])
"""


def test_kill_9_and_the_same_command_give_the_same_files(tmp_path):
    def start(out):
        return subprocess.Popen([sys.executable, "-c", SCRIPT, str(out)])

    with start(tmp_path / "whole") as whole:
        assert whole.wait() == 0
    with start(tmp_path / "killed") as killed:
        while killed.poll() is None and not list((tmp_path / "killed").glob("work/blocks-*/*.npz")):
            time.sleep(0.005)
        os.kill(killed.pid, signal.SIGKILL)
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "killed" / "info.json").exists()
    with start(tmp_path / "killed") as again:
        assert again.wait() == 0
    files = sorted(p.relative_to(tmp_path / "whole") for p in (tmp_path / "whole").rglob("*") if p.is_file())
    assert files == sorted(p.relative_to(tmp_path / "killed") for p in (tmp_path / "killed").rglob("*") if p.is_file())
    for file in files:
        assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "killed" / file).read_bytes(), file


def test_a_finished_result_is_returned_or_refused(tmp_path, monkeypatch):
    features, bold = toy_world((50, 45, 40))
    fit_encoding(features, bold, EncodeConfig(), tmp_path)
    monkeypatch.setattr(blocks, "write_plan", lambda *_, **__: pytest.fail("computed again"))
    fit_encoding(features, bold, EncodeConfig(voxels_per_block=512, shared_runs_only=True), tmp_path)
    with pytest.raises(ResumeError, match="n_alphas was 20, is 5"):
        fit_encoding(features, bold, EncodeConfig(n_alphas=5), tmp_path)


def test_provenance_and_summary_are_in_the_record(tmp_path):
    features, bold = toy_world((50, 45, 40))
    result = fit_encoding(features, bold, EncodeConfig(), tmp_path)
    record = json.loads((tmp_path / "info.json").read_text())
    assert record["made_from"] == {"features": features.info["fingerprint"], "bold": bold.info["fingerprint"]}
    assert record["simulated"] is True
    assert result.runs == bold.runs
    summary = record["summary"]
    assert summary["n_voxels"] == 60
    assert summary["median_r"] == pytest.approx(float(np.median(result.dataset["r_mean"])))
    edge = result.dataset["fold_alpha"].values == np.float32(record["alphas"][-1])
    assert summary["alpha_at_largest_share"] == pytest.approx(edge.mean())
    assert summary["significant_share"] == pytest.approx(np.mean(result.dataset["q"].values < 0.05))


def test_estimate_foresees_the_plan_and_the_cheaper_form():
    features, bold = toy_world(n_features=12)
    config = EncodeConfig()
    prepared = prepare(features, bold, config)
    facts = prepared.estimate(config, 1)
    assert (facts["form"], facts["n_rows"], facts["n_columns"]) == ("primal", 335, 60)
    assert facts["training_sets"] == 10
    wide = prepare(toy_world(n_features=200)[0], bold, config)
    assert wide.form == "dual"


def test_estimated_plan_size_is_right(tmp_path, monkeypatch):
    features, bold = toy_world(n_features=100)
    config = EncodeConfig()
    monkeypatch.setattr(blocks, "assemble", lambda *_: None)
    fit_encoding(features, bold, config, tmp_path)
    expected = prepare(features, bold, config).estimate(config, 1)["plan_bytes"]
    actual = sum(p.stat().st_size for p in tmp_path.rglob("work/plan-*/**/*") if p.is_file())
    assert expected == pytest.approx(actual, rel=0.1)


@pytest.mark.parametrize(
    "bad", [{"n_alphas": 0}, {"alpha_decades": 0.0}, {"n_permutations": -1}, {"voxels_per_block": 0}]
)
def test_impossible_settings_are_refused(bad):
    with pytest.raises(ConfigError, match=next(iter(bad))):
        EncodeConfig(**bad)


def test_features_are_cleaned_as_the_bold_was(tmp_path):
    """A drift that features share with what was taken out of the BOLD would hide the signal."""
    rng = np.random.default_rng(0)
    features, bold = toy_world((90, 80, 100, 85), n_features=6, snr=4.0)
    # A slow sine and cosine: delaying them gives another mixture of the same two, as it nearly does for real drift.
    angles = {run: np.arange(len(v)) * 0.08 for run, v in bold.values.items()}
    confounds = {run: np.column_stack([np.sin(a), np.cos(a)]) for run, a in angles.items()}
    drifting, cleaned = {}, {}
    for run, v in features.values["toy"].items():
        drifting[run] = (v + 3 * confounds[run] @ rng.standard_normal((2, v.shape[1]))).astype(np.float32)
        # The brain follows the drifting features, and its confounds were regressed out.
        signal = bold.values[run] + 3 * confounds[run] @ rng.standard_normal((2, bold.n_voxels))
        cleaned[run] = partial_out(signal.astype(np.float32), nuisance_columns(confounds[run]))
    noisy = ToyFeatures({"toy": drifting})
    store = dataclasses.replace(bold, values=cleaned, confounds=confounds)
    r = {}
    for clean in (True, False):
        config = EncodeConfig(clean=clean, delays=(2, 3), n_permutations=0)
        r[clean] = fit_encoding(noisy, store, config, tmp_path / str(clean)).dataset["r_mean"].values[:30]
    undisturbed = fit_encoding(features, bold, EncodeConfig(delays=(2, 3), n_permutations=0), tmp_path / "plain")
    assert np.median(r[True]) > 0.9 * np.median(undisturbed.dataset["r_mean"].values[:30])
    assert np.median(r[False]) < 0.8 * np.median(r[True])


def test_two_at_once_are_refused(tmp_path):
    features, bold = toy_world((50, 45, 40))
    with locked(tmp_path / "out"), pytest.raises(StorageError, match="another process"):
        fit_encoding(features, bold, EncodeConfig(), tmp_path / "out")
    fit_encoding(features, bold, EncodeConfig(), tmp_path / "out")
    (tmp_path / "out" / LOCK).touch()  # as a kill after the root record leaves it
    fit_encoding(features, bold, EncodeConfig(), tmp_path / "out")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["info.json", "result.zarr"]
