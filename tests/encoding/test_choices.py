"""Forms, folds and shared alphas of the whole engine, against naive solvers that form every prediction."""

import dataclasses

import numpy as np
import pytest
import scipy.stats
from sklearn.linear_model import Ridge

from vidbrain import cluster
from vidbrain.encoding import preflight
from vidbrain.encoding.blocks import fit_encoding
from vidbrain.encoding.prepare import prepare
from vidbrain.encoding.ridge.compression import compress
from vidbrain.encoding.ridge.hat import corrections
from vidbrain.encoding.settings import EncodeConfig
from vidbrain.errors import ConfigError, EncodingError
from vidbrain.testing.brains import ar1, toy_world


def corr(a, b):
    return scipy.stats.pearsonr(a, b, axis=0).statistic


def rows_of(features, bold, delays):
    """Design and BOLD of all runs in float64, and the run of each row."""
    first, X, Y, run = max(delays), [], [], []
    for number, label in enumerate(bold.runs):
        x = np.asarray(features.values["toy"][label], np.float64)
        X.append(np.concatenate([x[first - lag : len(x) - lag] for lag in delays], axis=1))
        Y.append(np.asarray(bold.values[label], np.float64)[first:])
        run.append(np.full(len(Y[-1]), number))
    return np.concatenate(X), np.concatenate(Y), np.concatenate(run)


def ridge(X, Y, train, test, alphas, scale_rows=None):
    """Predictions of test rows for every alpha; columns are scaled by `scale_rows`, by default the training rows."""
    scaled = train if scale_rows is None else scale_rows
    mean, scale, y_mean = X[train].mean(0), X[scaled].std(0), Y[train].mean(0)
    A, B = (X[train] - mean) / scale, (X[test] - mean) / scale
    G, C = A.T @ A, A.T @ (Y[train] - y_mean)
    return np.stack([B @ np.linalg.solve(G + alpha * np.eye(len(G)), C) + y_mean for alpha in alphas])


def inner_scores(X, Y, run, train_runs, alphas, scale_rows=None):
    total = np.zeros((len(alphas), Y.shape[1]))
    for held in train_runs:
        train = np.isin(run, [n for n in train_runs if n != held])
        predicted = ridge(X, Y, train, run == held, alphas, scale_rows)
        total += [corr(p, Y[run == held]) for p in predicted]
    return total


def best(scores):
    return len(scores) - 1 - np.argmax(scores[::-1], axis=0)


@pytest.mark.parametrize("form", ["primal", "dual", "hat"])
def test_held_out_test_runs_equal_the_naive_solver(tmp_path, form):
    features, bold = toy_world((62, 55, 70, 58, 49), n_features=12, n_signal=150, n_noise=50)
    config = EncodeConfig(delays=(0, 2, 3), n_permutations=9, test=("*ses-003*", "*ses-001*run-1"), form=form)
    result = fit_encoding(features, bold, config, tmp_path)
    assert result.info["parts"] == [bold.runs[0], bold.runs[4]]
    X, Y, run = rows_of(features, bold, config.delays)
    trains = np.isin(run, [1, 2, 3])
    alphas = np.array(result.info["alphas"])
    chosen = best(inner_scores(X, Y, run, [1, 2, 3], alphas, trains if form == "hat" else None))
    same = np.isclose(result.dataset["fold_alpha"].values[0], alphas[chosen], rtol=1e-5)
    assert same.mean() >= 0.99
    errors = 0
    for part, number in enumerate((0, 4)):
        predicted = np.take_along_axis(ridge(X, Y, trains, run == number, alphas), chosen[None, None], axis=0)[0]
        measured = Y[run == number]
        found = result.dataset["r"].values[part]
        assert np.abs(found - corr(predicted, measured))[same].max() < 1e-5
        errors = errors + np.stack([((measured - predicted) ** 2).sum(0), ((measured - measured.mean(0)) ** 2).sum(0)])
    assert np.abs(result.dataset["r2"].values - (1 - errors[0] / errors[1]))[same].max() < 1e-4


def test_pooled_r_is_that_of_all_parts_at_once(tmp_path):
    features, bold = toy_world((62, 55, 70))
    config = EncodeConfig(delays=(2, 3), n_alphas=1, n_permutations=0)
    result = fit_encoding(features, bold, config, tmp_path)
    X, Y, run = rows_of(features, bold, config.delays)
    pieces = []
    for number in range(3):
        held = run == number
        predicted = ridge(X, Y, ~held, held, result.info["alphas"])[0]
        pieces.append((predicted - predicted.mean(0), Y[held] - Y[held].mean(0)))
    expected = corr(*(np.concatenate(part) for part in zip(*pieces, strict=True)))
    np.testing.assert_allclose(result.dataset["r_pooled"], expected, atol=1e-5)


def test_sessions_are_left_out_whole(tmp_path):
    features, bold = toy_world((40, 45, 50, 42, 38, 44))  # two runs a session
    design = prepare(features, bold, EncodeConfig(leave_out="session"))
    sessions = [{design.design.runs[n][:14] for n in design.design.run[fold.train]} for fold in design.layout.folds]
    everything = {"sub-01_ses-001", "sub-01_ses-002", "sub-01_ses-003"}
    assert [everything - session for session in sessions] == [{name} for name in sorted(everything)]
    assert design.layout.parts == bold.runs
    assert fit_encoding(features, bold, EncodeConfig(leave_out="session"), tmp_path).dataset["r"].shape[0] == 6


def test_hat_residuals_are_those_of_a_model_without_the_fold():
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((60, 8)), rng.standard_normal((60, 3))
    mean = X.mean(0)
    eigenvalues, vectors = np.linalg.eigh((X - mean).T @ (X - mean))
    fold, alphas = np.arange(20, 31), np.array([0.1, 5.0, 300.0])
    scores = (X - mean) @ vectors
    gain = corrections(scores[fold], eigenvalues, alphas, len(X))
    others = np.setdiff1d(np.arange(60), fold)
    for position, alpha in enumerate(alphas):
        fitted = y.mean(0) + scores @ ((scores.T @ (y - y.mean(0))) / (eigenvalues + alpha)[:, None])
        predicted = fitted[fold] - gain[position] @ (y - fitted)[fold]
        model = Ridge(alpha=alpha).fit(X[others], y[others])
        np.testing.assert_allclose(predicted, model.predict(X[fold]), atol=1e-10)


@pytest.mark.parametrize("n_alphas", [20, 100])
def test_compressed_alphas_keep_their_bound_with_few_terms(n_alphas):
    eigenvalues = np.logspace(6, -2, 300)
    alphas = np.logspace(-2, 6, n_alphas)
    shrinkage = 1 / (eigenvalues + alphas[:, None])
    energy = eigenvalues * np.random.default_rng(0).uniform(0.5, 2, 300) * eigenvalues
    used = []
    for tolerance in (1e-2, 1e-3, 1e-5):
        mixture, terms = compress(shrinkage, energy, tolerance)
        wrong = (mixture @ terms - shrinkage) * np.sqrt(energy)
        assert np.max(np.linalg.norm(wrong, axis=1) / np.linalg.norm(shrinkage * np.sqrt(energy), axis=1)) <= tolerance
        used.append(len(terms))
    assert used[0] < used[1] < used[2]
    assert used[0] <= 10  # whatever the number of alphas


def test_compressed_alphas_choose_as_exact_ones(tmp_path):
    features, bold = toy_world((120, 110, 130, 115), n_features=40, n_signal=300, n_noise=200)
    exact = fit_encoding(features, bold, EncodeConfig(form="primal"), tmp_path / "exact").dataset
    close = fit_encoding(features, bold, EncodeConfig(form="primal", alpha_tolerance=1e-3), tmp_path / "close").dataset
    same = exact["fold_alpha"].values == close["fold_alpha"].values
    assert same.mean() > 0.99
    np.testing.assert_allclose(close["r"].values[:, same.all(0)], exact["r"].values[:, same.all(0)], atol=1e-6)


@pytest.mark.parametrize("form", ["primal", "dual"])
def test_one_alpha_for_all_is_that_of_the_mean_score(tmp_path, form):
    features, bold = toy_world((62, 55, 70), n_features=12, n_signal=700, n_noise=100)
    config = EncodeConfig(delays=(2, 3), alpha_per="all", form=form, voxels_per_block=512, n_permutations=0)
    result = fit_encoding(features, bold, config, tmp_path)
    X, Y, run = rows_of(features, bold, config.delays)
    alphas = np.array(result.info["alphas"])
    for number in range(3):
        scores = inner_scores_of_pair(X, Y, run, number, alphas)
        expected = alphas[best(scores.sum(1, keepdims=True))[0]]
        np.testing.assert_allclose(result.dataset["fold_alpha"].values[number], expected, rtol=1e-5)
        predicted = ridge(X, Y, run != number, run == number, [expected])[0]
        np.testing.assert_allclose(result.dataset["r"][number], corr(predicted, Y[run == number]), atol=1e-5)


def inner_scores_of_pair(X, Y, run, held_out, alphas):
    return inner_scores(X, Y, run, [n for n in range(3) if n != held_out], alphas)


def test_parcels_share_alphas(tmp_path):
    features, bold = toy_world((62, 55, 70), n_signal=30, n_noise=30)
    labels = np.repeat([7, 3, 9], 20)

    class Parcelled(type(bold)):
        def open(self, run):
            return super().open(run).assign(parcel=(("voxel",), labels))

    store = Parcelled(**{f.name: getattr(bold, f.name) for f in dataclasses.fields(bold)})
    data = fit_encoding(features, store, EncodeConfig(alpha_per="parcel"), tmp_path / "parcels").dataset
    for label in (3, 7, 9):
        assert (np.ptp(data["fold_alpha"].values[:, labels == label], axis=1) == 0).all()
    with pytest.raises(EncodingError, match="no parcels"):
        fit_encoding(features, bold, EncodeConfig(alpha_per="parcel"), tmp_path / "none")


def test_the_leaky_split_inflates_r_of_autocorrelated_noise(tmp_path):
    rng = np.random.default_rng(0)
    features, bold = toy_world((150, 150, 150), n_features=30, n_signal=1, n_noise=1)
    values = {run: ar1(rng, 150, 200, 0.9) for run in bold.runs}
    bold = dataclasses.replace(bold, values=values)
    slow = {run: ar1(rng, 150, 30, 0.9) for run in bold.runs}
    features = dataclasses.replace(features, values={"toy": slow})
    median = {}
    for split in ("whole", "leaky-tr"):
        result = fit_encoding(features, bold, EncodeConfig(split=split, n_permutations=50), tmp_path / split)
        median[split] = np.median(result.dataset["r_mean"])
    assert abs(median["whole"]) < 0.05
    assert median["leaky-tr"] > 0.3
    # TRs at random are no series: no p is better than a wrong one.
    assert result.info["summary"]["significant_share"] is None
    assert np.isnan(result.dataset["p"]).all()


def test_what_cannot_fit_is_refused_with_what_makes_it_fit(tmp_path, monkeypatch):
    features, bold = toy_world(n_signal=1000, n_noise=1000)
    config = EncodeConfig(voxels_per_block=2048)
    need = prepare(features, bold, config).worker_bytes(config)
    monkeypatch.setattr(preflight, "available_bytes", lambda: need - 1)
    with pytest.raises(EncodingError, match="are free") as caught:
        fit_encoding(features, bold, config, tmp_path)
    assert "--voxels-per-block 1024" in str(caught.value)
    # Workers elsewhere have a memory that nobody here knows.
    fit_encoding(features, bold, config, tmp_path / "elsewhere", client=cluster.Client(is_here=False))
    smaller = EncodeConfig(voxels_per_block=1024)
    fit_encoding(features, bold, smaller, tmp_path)


def test_the_fewest_operations_decide_the_form():
    bold = toy_world()[1]
    assert prepare(toy_world(n_features=12)[0], bold, EncodeConfig()).form == "primal"
    assert prepare(toy_world(n_features=200)[0], bold, EncodeConfig()).form == "dual"
    lengths = (40,) * 24
    many, brain = toy_world(lengths, n_features=150, n_signal=3000, n_noise=0)
    config = EncodeConfig(max_folds=24, test=("*ses-001*",), delays=(1, 2, 3, 4))
    prepared = prepare(many, brain, config)
    assert prepared.form == min(
        prepared.costs, key=lambda f: prepared.costs[f].plan_flops + prepared.costs[f].voxel_flops
    )


@pytest.mark.parametrize(
    ("bad", "what"),
    [
        ({"alpha_tolerance": 0.5}, "alpha_tolerance"),
        ({"max_folds": 1}, "max_folds"),
        ({"partition": True}, "partition"),
        ({"bands": True, "alpha_per": "all"}, "every voxel chooses"),
        ({"bands": True, "form": "hat"}, "hat"),
        ({"reduce": "pca", "components": 3, "form": "hat"}, "hat"),
    ],
)
def test_settings_that_contradict_are_refused(bad, what):
    with pytest.raises(ConfigError, match=what):
        EncodeConfig(**bad)


@pytest.mark.parametrize(
    ("bad", "what"),
    [
        ({"null": "block", "block_trs": 50}, "blocks of 50"),
        ({"keep_moments": True, "block_trs": 50}, "fewer than 2 blocks"),
        ({"bands": True}, "one layer is one band"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_decomposed(tmp_path, bad, what):
    features, bold = toy_world((62, 55, 70))
    with pytest.raises((ConfigError, EncodingError), match=what):
        fit_encoding(features, bold, EncodeConfig(**bad), tmp_path / "out")
    assert not (tmp_path / "out").exists()
