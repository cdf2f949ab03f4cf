from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vidbrain.errors import ConfigError, ShardError
from vidbrain.records import Recording, RunKey
from vidbrain.sharding.plan import Listed, ShardConfig, make_plan, parse_size


def listing(lengths, n_subjects=2, n_levels=2):
    return [
        Listed(
            Recording(
                key=f"rec-{i:03d}", run=RunKey(f"{i % n_subjects:02d}", "001", "x", i), level=str(i // 2 % n_levels)
            ),
            n,
        )
        for i, n in enumerate(lengths)
    ]


small = ShardConfig(segment_frames=32, shard_frames=128, clip_frames=4, clip_step=2)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 300), min_size=1, max_size=12),
    st.integers(0, 3),
    st.sampled_from(["balanced", "recording"]),
)
def test_every_frame_is_owned_once_and_every_clip_start_is_whole(lengths, seed, order):
    config = ShardConfig(segment_frames=32, shard_frames=128, clip_frames=4, clip_step=2, seed=seed, order=order)
    plan = make_plan(listing(lengths), config)
    owned = Counter()
    for s in plan.segments:
        n = lengths[int(s.recording[-3:])]
        owned.update((s.recording, f) for f in range(s.start_frame, s.start_frame + s.n_frames))
        assert s.start_frame + s.n_stored <= n
        assert s.n_stored == min(s.n_frames + config.margin, n - s.start_frame)
    assert owned == Counter((f"rec-{i:03d}", f) for i, n in enumerate(lengths) for f in range(n))
    assert plan.n_frames == sum(lengths)
    assert [i for first, past in plan.shards for i in range(first, past)] == list(range(len(plan.segments)))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 300), min_size=2, max_size=10), st.data())
def test_smaller_sizes_are_prefixes_and_the_order_of_the_listing_does_not_matter(lengths, data):
    whole = make_plan(listing(lengths), small)
    size = data.draw(st.integers(1, sum(lengths)))
    part = make_plan(list(reversed(listing(lengths))), ShardConfig(**{**vars(small), "size": str(size)}))
    assert part.segments == whole.segments[: len(part.segments)]
    assert part.n_frames == size
    assert sum(s.n_frames for s in part.segments[:-1]) < size <= sum(s.n_frames for s in part.segments)
    assert part.split == whole.split


def test_named_sizes_share_whole_shards():
    source = listing([3000] * 80)
    big = make_plan(source, ShardConfig())
    for size in ("10k", "100k"):
        part = make_plan(source, ShardConfig(size=size))
        assert part.shards == big.shards[: len(part.shards)]


def test_every_prefix_is_balanced():
    source = listing([1024] * 16, n_subjects=4, n_levels=2)
    plan = make_plan(source, ShardConfig(segment_frames=32, shard_frames=1024))
    subject = {item.recording.key: item.recording.run.subject for item in source}
    for n in (32, 64, 128):
        shares = Counter(subject[s.recording] for s in plan.segments[:n])
        assert len(shares) == 4
        assert all(abs(count - n / 4) <= 3 for count in shares.values()), shares


def test_whole_recordings_are_held_out():
    plan = make_plan(listing([100] * 10), ShardConfig(val_share=0.2))
    assert Counter(plan.split.values()) == {"train": 8, "val": 2}
    assert Counter(make_plan(listing([100]), ShardConfig()).split.values()) == {"train": 1}


@pytest.mark.parametrize(
    ("text", "frames"), [("10k", 10_000), ("6M", 6_000_000), ("1_500", 1500), ("all", None), ("1.5k", 1500)]
)
def test_sizes(text, frames):
    assert parse_size(text) == frames


@pytest.mark.parametrize("text", ["", "0", "-5", "10x", "six"])
def test_wrong_sizes(text):
    with pytest.raises(ConfigError):
        parse_size(text)


def test_bad_sources_are_refused():
    with pytest.raises(ShardError, match="holds 200"):
        make_plan(listing([100, 100]), ShardConfig(size="1k"))
    with pytest.raises(ShardError, match="no frames"):
        make_plan([], ShardConfig())
    with pytest.raises(ShardError, match="share a name"):
        make_plan(listing([10])[:1] * 2, ShardConfig())
    with pytest.raises(ConfigError, match="cannot hold"):
        ShardConfig(segment_frames=100, shard_frames=50)
