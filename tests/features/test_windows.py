"""Which frames enter a clip, and which its rows stand for."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vidbrain.errors import ConfigError, ShardError
from vidbrain.features.resample import mean_of_sums, volume_weights
from vidbrain.features.windows import Window, cut
from vidbrain.video.clock import average_into_trs, frame_times

WINDOWS = st.builds(
    lambda slices, per, step, margin, before, share: Window(
        n_frames=slices * per,
        step=step,
        n_slices=slices,
        margin=margin,
        before=before,
        stride=None if share is None else max(1, round(share * slices * per * step)),
    ),
    st.integers(1, 4),
    st.integers(1, 3),
    st.integers(1, 5),
    st.integers(0, 3),
    st.just(0) | st.integers(1, 4),
    st.none() | st.floats(0.1, 1.0),
)


def numbered_frames(n: int) -> np.ndarray:
    """Frames whose pixels tell their number."""
    return np.broadcast_to(np.arange(n, dtype=np.uint8)[:, None, None, None], (n, 2, 3, 3)).copy()


def blocks_of(frames: np.ndarray, sizes: list[int]):
    first = 0
    while first < len(frames):
        size = sizes[first % len(sizes)]
        yield first, frames[first : first + size]
        first += size


@settings(max_examples=50, deadline=None)
@given(WINDOWS, st.integers(1, 200), st.lists(st.integers(1, 40), min_size=1, max_size=4), st.integers(1, 5))
def test_cut_gives_the_frames_of_each_clip(window, n, sizes, batch_size):
    frames = numbered_frames(n)
    batches = list(cut(blocks_of(frames, sizes), n, window, batch_size))
    starts = window.starts(n)
    assert [len(b) for b in batches[:-1]] == [batch_size] * (len(batches) - 1)
    first, end = -window.before - window.margin, window.n_frames + window.margin
    expected = [[min(max(start + k * window.step, 0), n - 1) for k in range(first, end)] for start in starts]
    assert bool(batches) == (not window.before or n > window.before * window.step)
    if batches:
        np.testing.assert_array_equal(np.concatenate(batches)[:, :, 0, 0, 0], expected)
    # What is told before a clip is there, and never its first frame again and again.
    assert all(start >= window.before * window.step for start in starts)


@settings(max_examples=50, deadline=None)
@given(WINDOWS, st.integers(1, 300))
def test_every_frame_is_covered_and_none_beyond_the_end(window, n):
    spans = window.spans(window.starts(n), n)
    covered = np.zeros(n, int)
    for begin, end in spans:
        covered[begin:end] += 1
    lead = min(n, window.before * window.step)
    assert not covered[:lead].any()
    assert covered[lead:].all()
    assert window.first_row(n) == lead
    if window.stride is None and (n - lead) % window.covered == 0:
        assert covered.max() <= 1


@settings(max_examples=50, deadline=None)
@given(
    WINDOWS,
    st.integers(1, 300),
    st.floats(-2.0, 3.0),
    st.floats(0.95, 1.05),
    st.sampled_from([0.5, 1.0, 1.49, 2.0]),
)
def test_volumes_agree_with_a_loop_over_frames_on_any_clock(window, n, onset_s, rate_error, tr_s):
    spans = window.spans(window.starts(n), n)
    rows = np.random.default_rng(n).normal(size=(len(spans), 3))
    times_s = frame_times(onset_s, n / 60.0 * rate_error, n)
    n_trs = 4
    weights, n_frames = volume_weights(spans, times_s, tr_s, n_trs)
    features, valid = mean_of_sums(weights @ rows, n_frames)

    first = min(n, window.before * window.step)
    values = [rows[[begin <= frame < end for begin, end in spans]].mean(0) for frame in range(first, n)]
    means, counts = average_into_trs(np.reshape(values, (-1, 3)), times_s[first:], tr_s, n_trs)
    np.testing.assert_array_equal(n_frames, counts)
    np.testing.assert_array_equal(valid, counts > 0)
    np.testing.assert_allclose(features[valid], means[valid], rtol=1e-5, atol=1e-6)
    assert not features[~valid].any()


def test_constant_rows_stay_constant():
    window = Window(stride=24)
    spans = window.spans(window.starts(1000), 1000)
    weights, n_frames = volume_weights(spans, frame_times(0.3, 16.9, 1000), 1.49, 12)
    features, valid = mean_of_sums(weights @ np.full((len(spans), 1), 7.0), n_frames)
    np.testing.assert_allclose(features[valid], 7.0, rtol=1e-6)
    assert valid.all()
    assert n_frames.sum() == 1000


def test_windows_without_a_clip_before_keep_their_name():
    assert "before" not in Window().record()
    assert Window(before=3).record()["before"] == 3


def test_token_slices_of_the_models_clip():
    window = Window(n_frames=16, step=4, n_slices=4)
    assert (window.covered, window.slice_frames, window.n_input) == (64, 16, 16)
    # 150 frames: two clips side by side, and a last one moved back to end with the recording.
    np.testing.assert_array_equal(window.starts(150), [0, 64, 86])
    np.testing.assert_array_equal(window.spans(np.array([86]), 150), [[86, 102], [102, 118], [118, 134], [134, 150]])


@pytest.mark.parametrize(
    "wrong",
    [{"n_frames": 0}, {"n_frames": 10, "n_slices": 4}, {"stride": 65}, {"stride": 0}, {"margin": -1}, {"before": -1}],
)
def test_impossible_windows_are_refused(wrong):
    with pytest.raises(ConfigError):
        Window(**wrong)


def test_missing_frames_are_not_passed_over():
    frames = numbered_frames(100)
    with pytest.raises(ShardError, match="expected frame 40 of 100, found frame 50"):
        list(cut([(0, frames[:40]), (50, frames[50:])], 100, Window(), 4))
    with pytest.raises(ShardError, match="expected frame 40 of 100, found nothing"):
        list(cut([(0, frames[:40])], 100, Window(), 4))
