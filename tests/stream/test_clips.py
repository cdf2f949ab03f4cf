import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vidbrain.errors import ShardError
from vidbrain.records import ClipSpec
from vidbrain.stream.clips import clip_table


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
