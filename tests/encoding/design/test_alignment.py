"""From frames to rows of a design, against one naive loop over frames and volumes, on awkward clocks."""

import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

from vidbrain.encoding.design.align import align, read_run, refuse_other_clock
from vidbrain.encoding.design.delays import delay
from vidbrain.encoding.design.shifted import ShiftedFeatures
from vidbrain.encoding.prepare import prepare, shown_in
from vidbrain.encoding.settings import EncodeConfig
from vidbrain.errors import AlignmentError, ConfigError
from vidbrain.features.resample import mean_of_sums, volume_weights
from vidbrain.features.windows import Window
from vidbrain.testing.brains import ToyBold, ToyFeatures, toy_world
from vidbrain.video.clock import frame_times, n_trs_covered, volume_times

TR_S = "1.49"
RUNS = {
    "gaps and a lost repetition": [("0.0091", "29.87", 1792), ("66.1", "20.03", 1201)],
    "overlap and drift": [("0.5", "30", 1770), ("18.25", "30", 1815)],
    "touching": [("2.98", "14.9", 894), ("17.88", "20", 1200)],
}
WINDOW = Window(n_frames=4, step=4, n_slices=2)


def features_of(recordings, reference):
    """Rows of 8 frames, averaged into volumes as `vidbrain features` does."""
    end = max(float(onset) + float(duration) for onset, duration, _ in recordings)
    n_trs = n_trs_covered(end, float(TR_S), reference)
    sums, counts, rows_by_frame = np.zeros((n_trs, 3)), np.zeros(n_trs, np.int64), []
    for number, (onset, duration, n) in enumerate(recordings):
        rng = np.random.default_rng(number)
        spans = WINDOW.spans(WINDOW.starts(n), n)
        rows = rng.normal(size=(len(spans), 3))
        times = frame_times(float(onset), float(duration), n)
        weights, n_frames = volume_weights(spans, times, float(TR_S), n_trs, reference)
        sums += weights @ rows
        counts += n_frames
        by_frame = [rows[[begin <= frame < stop for begin, stop in spans]].mean(axis=0) for frame in range(n)]
        rows_by_frame.append(np.array(by_frame))
    return *mean_of_sums(sums, counts), rows_by_frame


@pytest.mark.parametrize("reference", [0.0, 0.5])
@pytest.mark.parametrize("name", RUNS)
def test_rows_of_a_design_are_means_over_frames_and_nothing_else(name, reference):
    recordings, delays = RUNS[name], (1, 2, 4)
    features, valid, rows_by_frame = features_of(recordings, reference)
    n_bold = len(features) + 5  # the scan goes on after the video
    kept = np.ones(n_bold, bool)
    kept[[7, 8]] = False
    store = ToyFeatures({"toy": {"sub-01_task-toy_run-1": features}}, {"sub-01_task-toy_run-1": valid}, float(TR_S))
    found = align(
        store,
        ["toy"],
        {"sub-01_task-toy_run-1": kept},
        tr_s=float(TR_S),
        delays=delays,
        kernel=None,
        n_nuisance={},
        begins_s={},
    )
    design = delay(np.concatenate([features, np.zeros((5, 3), np.float32)]), delays)

    # Which frames does each volume hold? Exactly, frame by frame.
    inside = [[] for _ in range(n_bold)]
    for (onset, duration, n), rows in zip(recordings, rows_by_frame, strict=True):
        for frame in range(n):
            time = Fraction(onset) + Fraction(frame, n) * Fraction(duration)
            volume = math.floor(time / Fraction(TR_S) - (Fraction(reference) - Fraction(1, 2)))
            if 0 <= volume < n_bold:
                inside[volume].append(rows[frame])
    usable = [t for t in range(n_bold) if kept[t] and all(t - lag >= 0 and inside[t - lag] for lag in delays)]
    assert found.tr.tolist() == usable
    assert 10 <= len(usable) < n_bold - 2
    for t in usable:
        expected = np.concatenate([np.mean(inside[t - lag], axis=0) for lag in delays])
        np.testing.assert_allclose(design[t], expected, rtol=2e-5, atol=1e-6)
    if name == "gaps and a lost repetition":
        silent = [t for t in range(n_bold) if not inside[t]]
        assert len(silent) > 20  # what was not seen is in no row, at any delay
        assert not {t + lag for t in silent for lag in delays} & set(usable)


def test_trims_take_rows_and_not_the_video_before_them():
    features, bold = toy_world((90, 80, 100))
    config = EncodeConfig(delays=(3,), n_alphas=2, n_permutations=0)
    whole = prepare(features, bold, config).design
    cut = prepare(features, bold, replace(config, trim_trs=(5, 7))).design
    for number, n_trs in enumerate((90, 80, 100)):
        mine = whole.tr[whole.run == number]
        assert mine.tolist() == list(range(3, n_trs))
        assert cut.tr[cut.run == number].tolist() == list(range(5, n_trs - 7))
    with pytest.raises(ConfigError, match="trim_trs"):
        EncodeConfig(trim_trs=(-1, 0))


def test_clocks_of_features_and_bold_must_agree():
    refuse_other_clock("run", 0.745, 0.745, 1.49)
    with pytest.raises(AlignmentError, match=r"stand for times 0\.745 s after") as caught:
        refuse_other_clock("run", 1.49, 0.745, 1.49)
    assert "--slice-time-ref 0.5" in str(caught.value)

    class Early(ToyBold):
        def open(self, run):
            return super().open(run).assign(time_s=("tr", volume_times(len(self.values[run]), self.tr_s, 0.0)))

    features, bold = toy_world((40, 40, 40))
    with pytest.raises(AlignmentError, match="--slice-time-ref 0"):
        prepare(features, Early(bold.values), EncodeConfig(n_permutations=0))


@pytest.mark.parametrize("n_later", [0, 3, -4])
def test_what_was_shown_moves_with_the_rows(n_later):
    """Rows, what is valid, and the names of recordings, on the clock of BOLD that begins so many volumes later."""

    class Shown(ToyFeatures):
        def read(self, layer, run):
            data = super().read(layer, run)
            return data.assign(recording=("tr", shown)).assign_attrs(recordings=[{"key": "a"}, {"key": "b"}])

    label = "sub-01_task-toy_run-1"
    values = np.random.default_rng(0).normal(size=(20, 2)).astype(np.float32)
    valid = np.arange(20) % 7 != 3
    shown = np.where(valid, (np.arange(20) > 9).astype(np.int32), -1)
    store = Shown({"toy": {label: values}}, {label: valid}, float(TR_S))
    moved = ShiftedFeatures(store, {label: float(volume_times(1, float(TR_S), 0.5 + n_later)[0])})
    assert (moved.runs, moved.layers, moved.info) == (store.runs, store.layers, store.info)
    (rows,), video, tr_s, begin_s = read_run(moved, ["toy"], label)
    assert (tr_s, begin_s) == (float(TR_S), pytest.approx((0.5 + n_later) * float(TR_S)))
    assert len(rows) == len(video) == 20 - n_later
    names = shown_in(moved, "toy", label, "recording")
    before = shown_in(store, "toy", label, "recording")
    for k in range(20 - n_later):
        row = k + n_later
        assert video[k] == (row >= 0 and valid[row])
        if row >= 0:
            assert np.array_equal(rows[k], values[row])
            if video[k]:
                assert names[k] == before[row]
    # Less than a volume stays for `align` to refuse; runs without a known begin stay as they are.
    assert read_run(ShiftedFeatures(store, {}), ["toy"], label)[3] == pytest.approx(0.745)
