import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vidbrain.errors import ConfigError, ShardError
from vidbrain.records import ClipSpec, World
from vidbrain.stream.clips import clip_table
from vidbrain.stream.order import batch_of, epoch_order, n_batches

counts_of = st.lists(st.integers(0, 40), min_size=1, max_size=8).filter(any).map(lambda c: np.array(c, np.int64))


@settings(max_examples=80, deadline=None)
@given(counts_of, st.integers(0, 5), st.integers(0, 3), st.sampled_from([0, 1, 7, 10**6]))
def test_an_epoch_visits_every_clip_once(counts, seed, epoch, window):
    order = epoch_order(counts, seed=seed, epoch=epoch, window=window)
    np.testing.assert_array_equal(np.sort(order), np.arange(counts.sum()))
    np.testing.assert_array_equal(order, epoch_order(counts, seed=seed, epoch=epoch, window=window))


@settings(max_examples=60, deadline=None)
@given(counts_of, st.integers(1, 12), st.sampled_from([1, 2, 3, 4]), st.booleans())
def test_ranks_together_give_the_global_batches(counts, per_rank, size, drop):
    batch_size = per_rank * size
    order = epoch_order(counts, seed=1, epoch=0)
    together = []
    for b in range(n_batches(len(order), batch_size, drop_tail=drop)):
        together += [batch_of(order, b, batch_size, World(r, size)) for r in range(size)]
    seen = np.concatenate(together) if together else np.empty(0, np.int64)
    expected = order[: len(order) // batch_size * batch_size] if drop else order
    np.testing.assert_array_equal(seen, expected)


def test_epochs_and_seeds_differ_and_the_window_bounds_the_reach():
    counts = np.full(50, 200)
    a, b, c = (epoch_order(counts, seed=s, epoch=e) for s, e in ((0, 0), (0, 1), (1, 0)))
    assert (a != b).mean() > 0.9
    assert (a != c).mean() > 0.9
    near = epoch_order(counts, seed=0, epoch=0, window=400)
    shards_in_batch = [len(set(batch // 200)) for batch in near.reshape(-1, 100)]
    assert 2 <= max(shards_in_batch) <= 8


def test_a_world_that_does_not_divide_is_refused_with_those_that_do():
    with pytest.raises(ConfigError, match=r"cannot be shared by 4 processes[\s\S]*1, 2, 3, 6"):
        batch_of(np.arange(10), 0, 6, World(0, 4))


def naive_clips(rows, spec):
    """Every start of every recording, by the definition: a multiple of the stride whose clip ends in the recording."""
    found = []
    for recording, n in rows.groupby("recording")["recording_frames"].first().items():
        found += [(recording, s) for s in range(0, n, spec.stride) if s + spec.span <= n]
    return sorted(found)


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.integers(1, 200), min_size=1, max_size=5),
    st.builds(ClipSpec, st.integers(1, 5), st.integers(1, 4), st.integers(1, 9)),
    st.integers(1, 50),
)
def test_no_clip_is_lost_or_doubled_at_a_segments_edge(lengths, spec, segment_frames):
    margin = spec.span - 1
    rows = pd.DataFrame(
        [
            (f"r{i}", s, min(segment_frames, n - s), min(segment_frames + margin, n - s), n)
            for i, n in enumerate(lengths)
            for s in range(0, n, segment_frames)
        ],
        columns=["recording", "start_frame", "n_frames", "n_stored", "recording_frames"],
    ).sample(frac=1, random_state=0)
    expected = naive_clips(rows, spec)
    if not expected:
        with pytest.raises(ShardError, match="no recording is long enough"):
            clip_table(rows, np.arange(len(rows)), spec, margin)
        return
    table = clip_table(rows, np.arange(len(rows)), spec, margin)
    segments, starts = table.locate(np.arange(len(table)))
    assert sorted(zip(rows["recording"].to_numpy()[segments], starts.tolist(), strict=True)) == expected
    begin = rows["start_frame"].to_numpy()[segments]
    assert (starts + spec.span <= begin + rows["n_stored"].to_numpy()[segments]).all()


def test_a_clip_beyond_the_margin_is_refused():
    rows = pd.DataFrame({"start_frame": [0], "n_frames": [64], "n_stored": [70]})
    with pytest.raises(ShardError, match="--clip-frames 16 --clip-step 4"):
        clip_table(rows, np.arange(1), ClipSpec(16, 4), margin=6)
