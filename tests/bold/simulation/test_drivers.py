import numpy as np
import pytest

from vidbrain.bold.simulation.drivers import (
    BINS_PER_TR,
    canonical_hrf,
    centred,
    driver_kinds,
    driver_names,
    event_steps,
    fine_series,
    haemodynamic,
    per_tr,
    scaling,
)

TR_S = 1.49


def test_names_and_kinds_agree():
    names = driver_names(2)
    assert names[0] == "luminance_row-0_col-0"
    assert names[5] == "contrast_row-0_col-1"
    assert len(names) == 3 * 4 + 12 + 2
    assert driver_kinds(names).tolist() == [1] * 12 + [2] * 12 + [3] * 2


def test_events_are_steps_in_one_direction():
    assert event_steps([0, 0, 100, 100, 300, 0], 1.0).tolist() == [0, 0, 1, 0, 1, 0]
    assert event_steps([3, 3, 2, 2, 3, 1], -1.0).tolist() == [0, 0, 1, 0, 0, 1]


def test_fine_series_equal_a_naive_loop():
    rng = np.random.default_rng(0)
    parts = [(rng.normal(size=(400, 2)), 1.3, 7.1), (rng.normal(size=(333, 2)), 10.02, 6.0)]
    n_trs = 12
    fine = fine_series(parts, tr_s=TR_S, n_trs=n_trs, n_drivers=2)
    sums, counts = np.zeros((n_trs * BINS_PER_TR, 2)), np.zeros(n_trs * BINS_PER_TR)
    for values, onset, duration in parts:
        for i, value in enumerate(values):
            bin_ = int(np.floor((onset + i / len(values) * duration) / (TR_S / BINS_PER_TR)))
            sums[bin_] += value
            counts[bin_] += 1
    expected = np.where(counts[:, None] > 0, sums / np.maximum(counts, 1)[:, None], np.nan)
    assert np.allclose(fine, expected, equal_nan=True)
    assert np.isnan(fine[: int(1.3 / TR_S * BINS_PER_TR)]).all()


def test_the_response_to_an_impulse_peaks_after_five_seconds():
    fine = np.zeros((30 * BINS_PER_TR, 1))
    fine[0] = 1.0
    response = np.convolve(fine[:, 0], canonical_hrf(TR_S))[: len(fine)]
    assert np.argmax(response) * TR_S / BINS_PER_TR == pytest.approx(5.0, abs=0.15)
    found = haemodynamic(fine, canonical_hrf(TR_S))[:, 0]
    assert np.argmax(found) == 3  # of the middles 0.745, 2.235, 3.725, 5.215 s …


def test_convolution_equals_a_naive_loop_at_the_middle_of_volumes():
    rng = np.random.default_rng(1)
    hrf = canonical_hrf(TR_S)
    fine = rng.normal(size=(10 * BINS_PER_TR, 3))
    found = haemodynamic(fine, hrf)
    for k in range(10):
        expected = np.zeros(3)
        for edge in (k * BINS_PER_TR + 7, k * BINS_PER_TR + 8):  # bins on both sides of the middle
            for lag in range(min(edge + 1, len(hrf))):
                expected += 0.5 * hrf[lag] * fine[edge - lag]
        assert np.allclose(found[k], expected)


def test_the_mean_over_a_volume_is_the_mean_of_its_bins():
    fine = np.arange(2.0 * BINS_PER_TR * 3).reshape(-1, 3)
    assert np.allclose(per_tr(fine)[1], fine[BINS_PER_TR:].mean(axis=0))


def test_still_cells_keep_little_variance_and_dead_drivers_none():
    kinds = driver_kinds(driver_names(1))
    second = np.zeros(len(kinds))
    second[[0, 1, 3, 15]] = (4.0, 9.0, 0.25, 16.0)
    scale = scaling(second, kinds)
    assert scale[[0, 1, 3, 15]].tolist() == [2.0, 3.0, 0.5, 4.0]
    assert np.isinf(scale[[2, 4, 16]]).all()
    four = np.array([1] * 12 + [2], np.int8)
    second = np.array([4.0, 1e-4, 1.0, 0.0] * 3 + [1.0])
    assert scaling(second, four)[:4].tolist() == [2.0, 0.5, 1.0, 0.5]


def test_rest_is_zero():
    fine = np.array([[1.0, 5.0], [np.nan, np.nan]])
    assert centred(fine, np.array([3.0, 0.0])).tolist() == [[-2.0, 5.0], [0.0, 0.0]]
