"""Noise ceilings against the truth of simulated signals, and against formulas computed otherwise."""

import json

import numpy as np
import pytest
import scipy.stats

from vidbrain.encoding.inference import ceiling


def repeats(n_repeats, signal_sd, n=20_000, t=3, seed=0):
    rng = np.random.default_rng(seed)
    signal = signal_sd * rng.standard_normal((n, t))
    return signal, signal + rng.standard_normal((n_repeats, n, t))


def test_explainable_variance_equals_its_definition_and_the_truth():
    _, responses = repeats(4, 0.5)
    ev, corrected = ceiling.explainable_variance(responses)
    for v in range(3):
        rows = responses[:, :, v]
        # One-way analysis of variance: the variance of TR means is signal + noise / N, the rest is noise.
        within = rows.var(axis=0, ddof=1).mean()
        signal = rows.mean(axis=0).var(ddof=1) - within / 4
        assert corrected[v] == pytest.approx(signal / (signal + within), rel=1e-3)
        assert ev[v] == pytest.approx(np.cov(rows.mean(axis=0)) / np.trace(np.cov(rows)) * 4)
    np.testing.assert_allclose(corrected, 0.2, atol=0.02)  # 0.25 / 1.25


def test_noise_alone_has_no_explainable_variance():
    _, responses = repeats(5, 0.0, n=2000, t=200)
    ev, corrected = ceiling.explainable_variance(responses)
    assert ev.mean() == pytest.approx(0.2, abs=0.005)
    assert corrected.mean() == pytest.approx(0, abs=0.005)
    assert 0.3 < np.isnan(ceiling.from_repeats(responses, "single").r).mean() < 0.7


@pytest.mark.parametrize("n_repeats", [2, 5, 6])
@pytest.mark.parametrize("target", ["single", "mean"])
@pytest.mark.parametrize("method", [ceiling.from_repeats, ceiling.from_split_halves])
def test_ceiling_is_the_r_of_a_perfect_model(n_repeats, target, method):
    signal, responses = repeats(n_repeats, 0.8)
    measured = responses[0] if target == "single" else responses.mean(axis=0)
    perfect = scipy.stats.pearsonr(signal, measured, axis=0).statistic
    np.testing.assert_allclose(method(responses, target).r, perfect, atol=0.02)


def test_two_repeats_split_in_halves_by_the_textbook_formula():
    _, responses = repeats(2, 0.6, n=300)
    r = scipy.stats.pearsonr(responses[0], responses[1], axis=0).statistic
    np.testing.assert_allclose(ceiling.from_split_halves(responses, "mean").r, np.sqrt(2 * r / (1 + r)))
    np.testing.assert_allclose(ceiling.from_split_halves(responses, "single").r, np.sqrt(r))


def test_subjects_are_compared_with_the_mean_of_the_others():
    _, responses = repeats(4, 1.0, n=500)
    responses[2, :, 1] *= -1
    got = ceiling.from_subjects(responses).r
    for s in range(4):
        others = np.delete(responses, s, axis=0).mean(axis=0)
        expected = scipy.stats.pearsonr(responses[s], others, axis=0).statistic
        np.testing.assert_allclose(got[s], np.where(expected > 0, expected, np.nan))
    assert np.isnan(got[2, 1])


def test_normalised_r_of_a_perfect_model_is_1_and_low_ceilings_are_masked():
    signal, responses = repeats(3, 0.7)
    responses[:, :, 2] = np.random.default_rng(1).standard_normal(responses.shape[:2])
    top = ceiling.from_repeats(responses, "mean")
    r = scipy.stats.pearsonr(signal, responses.mean(axis=0), axis=0).statistic
    got = ceiling.normalise(r, top, least_r=0.2)
    np.testing.assert_allclose(got[:2], 1, atol=0.02)
    assert np.isnan(got[2])


def test_no_ceiling_is_null_with_its_reason_and_never_0():
    none = ceiling.no_ceiling("game play never repeats")
    assert ceiling.normalise(np.array([0.2]), none, least_r=0.1) is None
    facts = json.loads(json.dumps(none.facts(), allow_nan=False))
    assert facts == {"kind": "none", "median_r": None, "known_share": None, "reason": "game play never repeats"}
    with pytest.raises(ValueError, match="reason"):
        ceiling.no_ceiling(" ")
    with pytest.raises(ValueError, match="2 or more repeats"):
        ceiling.from_repeats(np.zeros((1, 10, 2)), "mean")


def test_constant_voxels_have_no_known_ceiling():
    _, responses = repeats(3, 1.0, n=50)
    responses[:, :, 0] = 1
    for found in (
        ceiling.from_repeats(responses, "mean"),
        ceiling.from_split_halves(responses, "single"),
        ceiling.from_subjects(responses),
    ):
        assert np.isnan(found.r[..., 0]).all()
        facts = found.facts()
        assert facts["known_share"] == pytest.approx(2 / 3)
        assert facts["median_r"] == pytest.approx(np.nanmedian(found.r))
