import itertools
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vidbrain.errors import ConfigError, ShardError
from vidbrain.records import Recording, RunKey
from vidbrain.sharding.plan import LANDMARKS, Listed, ShardConfig, make_plan, parse_size


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
    st.sampled_from(["balanced", "recording", "paper"]),
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


def study(n_frames, seed=0):
    """Four people, three levels and a dozen sessions in unequal shares, in recordings of unequal length."""
    rng = np.random.default_rng(seed)
    items, total = [], 0
    while total < n_frames:
        subject, level = rng.choice(4, p=[0.26, 0.27, 0.24, 0.23]), rng.choice(3, p=[0.42, 0.32, 0.26])
        run = RunKey(f"{subject:02d}", f"{rng.integers(1, 13):03d}", "x", len(items))
        n = int(rng.uniform(1500, 22000))
        items.append(Listed(Recording(key=f"{run.label}_{len(items)}", run=run, level=f"{level}-0"), n))
        total += n
    return items


def shares(rows):
    """Share of frames of each subject and each level; rows are (recording, frames)."""
    frames = Counter()
    for recording, n in rows:
        frames.update({recording.run.subject: n, recording.level: n, "all": n})
    return {name: n / frames["all"] for name, n in frames.items() if name != "all"}


@pytest.mark.parametrize("seed", range(3))
def test_each_named_prefix_holds_every_subject_and_level_within_a_tenth_of_its_share(seed):
    source = study(2_000_000, seed)
    recording = {item.recording.key: item.recording for item in source}
    expected = shares((item.recording, item.n_frames) for item in source)
    for size in ("10k", "100k", "1M"):
        plan = make_plan(source, ShardConfig(size=size, seed=seed))
        found = shares((recording[s.recording], s.n_frames) for s in plan.segments)
        assert found.keys() == expected.keys()
        assert all(abs(found[name] / share - 1) < 0.1 for name, share in expected.items()), (size, found)


def six_million(seed=0):
    """The source of `tools/shard_6m.py`: 4 subjects, 4 sessions, 4 runs of each of two games, 6M frames.

    Three quarters are Airstriker, which has one level, one quarter is Doom, whose three maps take turns. Repetitions
    are as long as played ones: they end when the player dies.
    """
    rng, items = np.random.default_rng(seed), []
    games = (("airstriker", ("1-0",), 0.75, (3300, 5400)), ("doom", ("map01", "map02", "map03"), 0.25, (1000, 2950)))
    for subject, session, number in itertools.product(range(1, 5), range(1, 5), range(1, 5)):
        for task, levels, share, (shortest, longest) in games:
            run, left, turn = RunKey(f"{subject:02d}", f"{session:03d}", task, number), 6_100_000 * share / 64, 0
            while left > 0:
                n, level = int(rng.integers(shortest, longest)), levels[turn % len(levels)]
                left, turn = left - n, turn + 1
                name = f"{run.label}_level-{level}_rep-{turn:02d}"
                items.append(Listed(Recording(key=name, run=run, level=level), n))
    return items


@pytest.mark.parametrize("seed", range(3))
def test_ten_thousand_of_six_million_frames_hold_every_subject_and_level_within_a_tenth_of_its_share(seed):
    source = six_million(seed)
    recording = {item.recording.key: item.recording for item in source}
    assert len({r.run.label for r in recording.values()}) == 128
    expected = shares((item.recording, item.n_frames) for item in source)
    assert 0.07 < min(expected.values()) < 0.09  # a map of Doom
    plan = make_plan(source, ShardConfig(size="10k", segment_frames=128, seed=seed))
    cut = int(plan.segments.n_frames.sum()) - plan.n_frames
    assert plan.n_frames == 10_000
    assert 0 <= cut < 128
    rows = [(recording[s.recording], s.n_frames) for s in plan.segments]
    rows[-1] = rows[-1][0], rows[-1][1] - cut
    found = shares(rows)
    assert found.keys() == expected.keys()
    assert all(abs(found[name] / share - 1) < 0.1 for name, share in expected.items()), (found, expected)
    whole = make_plan(source, ShardConfig(size="6M", segment_frames=128, seed=seed))
    assert whole.n_frames == 6_000_000
    assert plan.segments == whole.segments[: len(plan.segments)]
    assert plan.shards == whole.shards[: len(plan.shards)]


def skewed(seed):
    """Some people never played some levels, some hardly played at all; recordings of any length."""
    rng = np.random.default_rng(seed)
    n_subjects, n_levels = rng.integers(1, 13), rng.integers(1, 9)
    shares = rng.dirichlet(np.full(n_subjects * n_levels, rng.choice([0.2, 1.0, 5.0])))
    items = []
    for i in range(rng.integers(20, 200)):
        subject, level = divmod(int(rng.choice(len(shares), p=shares)), int(n_levels))
        run = RunKey(f"{subject:02d}", str(rng.integers(9)), "x", i)
        items.append(Listed(Recording(key=f"rec-{i}", run=run, level=f"level {level}"), int(rng.uniform(100, 9000))))
    return items


@pytest.mark.parametrize("source", [study(500_000), *map(skewed, range(12))], ids=["study", *map(str, range(12))])
def test_no_prefix_is_far_from_its_shares(source):
    """At every position, not only at landmarks, nobody leads or lacks three segments."""
    recording = {item.recording.key: item.recording for item in source}
    plan = make_plan(source, ShardConfig())
    frames = plan.segments.n_frames
    for name, share in shares((item.recording, item.n_frames) for item in source).items():
        mine = np.array([name in (recording[k].run.subject, recording[k].level) for k in plan.segments.names])
        lead = np.cumsum(frames * mine[plan.segments.recording]) - share * np.cumsum(frames)
        assert np.abs(lead).max() < 3 * 256, name


def test_sessions_take_turns():
    """Of twelve equal sessions of a subject and level, any twelve neighbours in its order come from most of them."""
    source = [
        Listed(Recording(key=f"rec-{i}", run=RunKey("01", f"{i % 12:03d}", "x", i), level="1"), 2560) for i in range(36)
    ]
    session = {item.recording.key: item.recording.run.session for item in source}
    order = [session[s.recording] for s in make_plan(source, ShardConfig()).segments]
    assert set(order[:12]) == set(session.values())
    assert max(Counter(order[:120]).values()) - min(Counter(order[:120]).values()) <= 1


def test_a_million_segments_are_planned_exactly():
    source = [Listed(item.recording, item.n_frames * 4) for item in study(16_000_000)]
    total = sum(item.n_frames for item in source)
    plan = make_plan(source, ShardConfig(segment_frames=64))
    assert len(plan.segments) > 1_000_000
    assert plan.segments.n_frames.sum() == plan.n_frames == total
    places = plan.segments.recording.astype(np.int64) << 32 | plan.segments.start_frame
    assert len(np.unique(places)) == len(places)
    ends = np.cumsum(plan.segments.n_frames)
    stops = {past for _, past in plan.shards}
    assert all(int(np.searchsorted(ends, mark)) + 1 in stops for mark in LANDMARKS if mark < total)


@pytest.mark.parametrize(
    ("source", "sizes"),
    [(study(300_000, seed=3), (50_000, 100_000, 250_000)), (six_million(), (10_000, 100_000, 1_000_000, 6_000_000))],
    ids=["study", "six million"],
)
def test_paper_order_takes_whole_recordings_by_subject_level_and_session(source, sizes):
    """By the study's rule, written here a second time: sort, then cut at the last that does not exceed the size."""
    rows = sorted(
        source, key=lambda i: (i.recording.run.subject, i.recording.level, i.recording.run.session, i.recording.key)
    )
    for size in sizes:
        expected, total = [], 0
        for item in rows:
            if total + item.n_frames > size:
                break
            expected.append(item.recording.key)
            total += item.n_frames
        plan = make_plan(source, ShardConfig(order="paper", size=str(size)))
        assert list(dict.fromkeys(s.recording for s in plan.segments)) == expected
        assert plan.n_frames == plan.segments.n_frames.sum() == total
    whole = make_plan(source, ShardConfig(order="paper"))
    part = make_plan(source, ShardConfig(order="paper", size="100k"))
    assert part.shards == whole.shards[: len(part.shards)]
    with pytest.raises(ShardError, match="less than the first recording"):
        make_plan(source, ShardConfig(order="paper", size="100"))


def test_recordings_that_cannot_be_read_are_passed_over_and_the_count_stays_exact():
    source = study(300_000)
    bad = {item.recording.key for item in source[::5]}
    whole = make_plan(source, ShardConfig(size="100k"))
    plan = make_plan(source, ShardConfig(size="100k"), without=bad)
    assert plan.n_frames == 100_000
    assert not bad & {s.recording for s in plan.segments}
    kept = [s for s in whole.segments if s.recording not in bad]
    assert list(plan.segments)[: len(kept)] == kept
    left = sum(item.n_frames for item in source if item.recording.key not in bad)
    with pytest.raises(ShardError, match=f"holds {left:,}"):
        make_plan(source, ShardConfig(size="290k"), without=bad)


def test_a_range_of_time_is_a_range_of_frames():
    """Frame i of n is shown at i / n of the duration, by the run's clock or else by the file's."""
    seen = Recording(key="seen", run=RunKey("01", None, "x", 1), onset_s=5.0, duration_s=10.0)
    source = [
        Listed(seen, 600),
        Listed(Recording(key="file"), 250, fps=25.0),
        Listed(Recording(key="short"), 25, fps=25.0),
    ]
    plan = make_plan(source, replace(small, from_s=2.0, to_s=3.5))
    frames = Counter((s.recording, f) for s in plan.segments for f in range(s.start_frame, s.start_frame + s.n_frames))
    assert set(frames.values()) == {1}
    times = {"seen": 10.0 / 600, "file": 1 / 25}
    expected = {(key, i) for key, n in (("seen", 600), ("file", 250)) for i in range(n) if 2.0 <= i * times[key] < 3.5}
    assert set(frames) == expected
    past = {"seen": 210, "file": 88}
    assert all(s.start_frame + s.n_stored <= past[s.recording] for s in plan.segments)
    for bad in ({"from_s": 3.0, "to_s": 3.0}, {"from_s": -1.0}, {"from_s": float("nan")}, {"from_s": float("inf")}):
        with pytest.raises(ConfigError, match="no range of time"):
            replace(small, **bad)


def test_the_sources_own_split_is_kept():
    items = listing([100] * 6)
    own = [
        replace(item, split=split)
        for item, split in zip(items, ["val", None, "test", "train", "val", None], strict=True)
    ]
    split = make_plan(own, small).split
    assert list(split.values()) == ["val", "train", "test", "train", "val", "train"]


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
