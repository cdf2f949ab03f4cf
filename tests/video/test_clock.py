"""The clock against exact fractions, on clocks as awkward as they come."""

import math
from fractions import Fraction

import numpy as np
import pytest

from vidbrain.video.clock import (
    average_into_trs,
    covered_s,
    frame_times,
    n_trs_covered,
    trimmed,
    volume_of,
    volume_times,
)

TR_S = "1.49"
# Onset and duration in seconds as a table writes them, and frames.
RUNS = {
    "onsets between volumes": [("0.0091", "29.87", 1792), ("36.1", "20.03", 1201)],
    "onsets on edges": [("2.98", "14.9", 894), ("20.86", "7.45", 447)],
    "rates that drift": [("1.3", "24.7", 1482), ("30.2", "20.02", 1190), ("52", "9.9", 610)],
    "overlapping repetitions": [("0.5", "30", 1800), ("12.25", "30", 1790)],
    "a gap of nothing": [("0", "13.41", 804), ("13.41", "13.41", 803)],
    "longer than the run": [("-3.3", "120", 7200)],
    "after the run": [("95", "10", 600)],
    "slower than the scanner": [("0.4", "60", 17)],
}
N_TRS = 40


def exact(recordings, n_trs, reference):
    """Sum and count of frame values by volume, in exact arithmetic; the value of a frame is its number."""
    tr, sums, counts = Fraction(TR_S), [0] * n_trs, [0] * n_trs
    for number, (onset, duration, n) in enumerate(recordings):
        for frame in range(n):
            time = Fraction(onset) + Fraction(frame, n) * Fraction(duration)
            volume = math.floor(time / tr - (Fraction(reference) - Fraction(1, 2)))
            if 0 <= volume < n_trs:
                sums[volume] += frame + 10_000 * number
                counts[volume] += 1
    return np.array([float(s) for s in sums]), np.array(counts)


@pytest.mark.parametrize("reference", ["0", "0.5", "1"])
@pytest.mark.parametrize("name", RUNS)
def test_frames_fall_into_the_volumes_that_exact_fractions_say(name, reference):
    sums, counts = exact(RUNS[name], N_TRS, reference)
    got_sums, got_counts = np.zeros(N_TRS), np.zeros(N_TRS, int)
    for number, (onset, duration, n) in enumerate(RUNS[name]):
        volumes = volume_of(frame_times(float(onset), float(duration), n), float(TR_S), float(reference))
        inside = (volumes >= 0) & (volumes < N_TRS)
        got_counts += np.bincount(volumes[inside], minlength=N_TRS)
        got_sums += np.bincount(volumes[inside], (np.arange(n) + 10_000.0 * number)[inside], minlength=N_TRS)
    np.testing.assert_array_equal(got_counts, counts)
    np.testing.assert_array_equal(got_sums, sums)


@pytest.mark.parametrize("reference", ["0", "0.5", "0.25"])
@pytest.mark.parametrize("name", RUNS)
def test_volumes_reach_just_as_far_as_the_last_frame(name, reference):
    tr, onset_duration = Fraction(TR_S), RUNS[name]
    end = max(Fraction(onset) + Fraction(duration) for onset, duration, _ in onset_duration)
    # The interval of volume k begins at (k + reference - 1/2) TR.
    expected = max(0, math.ceil(end / tr - (Fraction(reference) - Fraction(1, 2))))
    assert n_trs_covered(float(end), float(TR_S), float(reference)) == expected


@pytest.mark.parametrize("reference", ["0.5", "0.75", "1", "2.5"])
def test_a_series_covers_what_falls_into_its_volumes(reference):
    tr, n_trs = Fraction(TR_S), 37
    end = covered_s(n_trs, float(TR_S), float(reference))
    assert end == pytest.approx(float((n_trs + Fraction(reference) - Fraction(1, 2)) * tr))
    inside, outside = volume_of([end - 1e-3, end + 1e-3], float(TR_S), float(reference))
    assert (inside, outside) == (n_trs - 1, n_trs)
    assert covered_s(n_trs, float(TR_S), 0.0) == pytest.approx(float(n_trs * tr))  # the scan itself was as long


def test_a_volume_stands_for_the_middle_of_what_is_averaged_into_it():
    for reference in (0.0, 0.31, 0.5, 1.0):
        times = volume_times(9, 1.49, reference)
        edges = np.concatenate([times - 0.745, times[-1:] + 0.745])
        for k in range(9):
            inside = edges[k] + np.array([1e-6, 0.7, 1.489999])
            assert volume_of(inside, 1.49, reference).tolist() == [k, k, k]
    np.testing.assert_allclose(volume_times(4, 2.0), [1, 3, 5, 7])
    np.testing.assert_allclose(volume_times(4, 2.0, 0.0), [0, 2, 4, 6])


def test_what_has_no_video_has_no_value():
    values = np.ones((600, 2))
    means, counts = average_into_trs(values, frame_times(2.0, 10.0, 600), 1.0, 20)
    assert np.isnan(means[:2]).all()
    assert np.isnan(means[12:]).all()
    assert (means[2:12] == 1).all()
    assert counts.tolist() == [0, 0, *[60] * 10, *[0] * 8]


def test_trims_leave_the_middle():
    assert trimmed(6, (2, 1)).tolist() == [False, False, True, True, True, False]
    assert trimmed(3, (0, 0)).all()
    assert not trimmed(3, (2, 2)).any()
