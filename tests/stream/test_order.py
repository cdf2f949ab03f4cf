"""The order against an oracle of plain Python, over sizes, layouts, batch sizes, streams, worlds and stops."""

import itertools
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vidbrain.errors import ConfigError
from vidbrain.records import World
from vidbrain.stream.order import ALONE, EpochOrder, n_streams_of

counts_of = st.lists(st.integers(0, 40), min_size=1, max_size=8).filter(any).map(lambda c: np.array(c, np.int64))
windows = st.sampled_from([0, 1, 7, 30, 200, 65_536])


@st.composite
def cases(draw):
    n_streams = draw(st.sampled_from([1, 2, 3, 4, 6]))
    batch_size = n_streams * draw(st.integers(1, 6))
    return {
        "batch_size": batch_size,
        "seed": draw(st.integers(0, 3)),
        "epoch": draw(st.integers(0, 3)),
        "window": draw(windows),
        "n_streams": n_streams,
        "tail": draw(st.sampled_from(["drop", "mask"])),
    }


def worlds_of(batch_size):
    return [n for n in range(1, batch_size + 1) if batch_size % n == 0]


def batches_of(order, numbers, size=1):
    return [
        np.concatenate([order.batch(number, World(rank, size)) for rank in range(size)]).tolist() for number in numbers
    ]


@settings(max_examples=150, deadline=None)
@given(counts_of, cases())
def test_batches_are_the_oracles(oracle, counts, case):
    order = EpochOrder(counts, **case)
    expected = oracle(counts.tolist(), **case)
    assert batches_of(order, range(order.n_batches)) == expected
    clips = [clip for batch in expected for clip in batch if clip >= 0]
    assert len(set(clips)) == len(clips)
    if case["tail"] == "mask":
        assert sorted(clips) == list(range(counts.sum()))
    else:
        assert len(clips) == counts.sum() // case["batch_size"] * case["batch_size"]


@settings(max_examples=80, deadline=None)
@given(counts_of, cases(), st.data())
def test_stops_and_worlds_leave_no_trace(oracle, counts, case, data):
    """Pieces of an epoch, each of another world and made anew, are the undisturbed order."""
    n = EpochOrder(counts, **case).n_batches
    stops = sorted({0, n, *data.draw(st.lists(st.integers(0, n), max_size=3))})
    pieces = []
    for first, past in itertools.pairwise(stops):
        size = data.draw(st.sampled_from(worlds_of(case["batch_size"])))
        pieces += batches_of(EpochOrder(counts, **case), range(first, past), size)
    assert pieces == oracle(counts.tolist(), **case)


def ahead(order, first=0, world=ALONE, step=1):
    return np.concatenate([np.empty(0, np.int64), *order.ahead(first, world, step=step)])


@settings(max_examples=80, deadline=None)
@given(counts_of, cases(), st.data())
def test_what_is_ahead_is_what_comes(counts, case, data):
    order = EpochOrder(counts, **case)
    size = data.draw(st.sampled_from(worlds_of(case["batch_size"])))
    world = World(data.draw(st.integers(0, size - 1)), size)
    first, step = data.draw(st.integers(0, order.n_batches)), data.draw(st.integers(1, 3))
    come = [order.batch(number, world) for number in range(first, order.n_batches, step)]
    expected = np.concatenate(come) if come else np.empty(0, int)
    np.testing.assert_array_equal(ahead(order, first, world, step=step), expected[expected >= 0])


def test_chunks_do_not_show(oracle):
    """Streams of many chunks, taken backwards and from anywhere, against all places sorted at once."""
    counts = np.array([700, 1, 0, 3000, 40_000, 5, 900, *[250] * 400], np.int64)
    case = {"batch_size": 64, "seed": 5, "epoch": 2, "window": 4096, "n_streams": 2, "tail": "mask"}
    expected = oracle(counts.tolist(), **case)
    order = EpochOrder(counts, **case)
    assert order._streams[0]._n_chunks > 1
    assert batches_of(order, range(order.n_batches)) == expected
    numbers = np.random.default_rng(0).permutation(order.n_batches)[:60]
    assert batches_of(order, numbers) == [expected[number] for number in numbers]


@pytest.mark.parametrize("n", range(1, 13))
def test_masked_rows_stand_anywhere_in_the_last_batch(oracle, n):
    case = {"batch_size": 4, "seed": 0, "epoch": 0, "window": 50, "n_streams": 2, "tail": "mask"}
    order, expected = EpochOrder(np.array([n]), **case), oracle([n], **case)
    assert batches_of(order, range(order.n_batches)) == expected
    assert ahead(order).tolist() == [clip for batch in expected for clip in batch if clip >= 0]


def test_epochs_and_seeds_differ():
    counts = np.full(50, 200)
    a, b, c = (ahead(EpochOrder(counts, batch_size=10, seed=s, epoch=e)) for s, e in ((0, 0), (0, 1), (1, 0)))
    assert (a != b).mean() > 0.99
    assert (a != c).mean() > 0.99


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 60), st.integers(5, 60), st.integers(0, 3), st.sampled_from([40, 200, 1000]))
def test_open_shards_are_bounded(n_shards, clips_in_shard, seed, window):
    n_streams = 4
    order = EpochOrder(
        np.full(n_shards, clips_in_shard), batch_size=4, seed=seed, epoch=0, window=window, n_streams=n_streams
    )
    reach = window // n_streams
    for stream in order._streams:
        shards = stream.take(0, stream.size).astype(int) // clips_in_shard
        if reach >= stream.size:
            continue
        first = {shard: i for i, shard in reversed(list(enumerate(shards)))}
        last = {shard: i for i, shard in enumerate(shards)}
        most = max(sum(first[s] <= i <= last[s] for s in first) for i in range(len(shards)))
        # Two more: the shards that are cut at the ends of a stream.
        assert most <= reach / clips_in_shard + 1 + 2


def test_batches_are_nearly_as_mixed_as_a_full_permutation():
    """200k clips, 1,000 in a shard, 50 neighbours of a recording: recordings in a batch of 256."""
    n, size = 200_000, 256
    order = EpochOrder(np.full(n // 1000, 1000), batch_size=size, seed=0, epoch=0)
    full = np.random.default_rng(0).permutation(n)[: n // size * size]
    found, best = (
        np.mean([len(set(batch)) for batch in clips.reshape(-1, size) // 50]) for clips in (ahead(order), full)
    )
    assert found > 0.9 * best


def test_a_process_that_owns_streams_touches_its_own_shards_in_every_epoch():
    counts, size = np.full(160, 50), 4
    touched = [
        {
            rank: set((ahead(EpochOrder(counts, batch_size=64, seed=0, epoch=e), 0, World(rank, size)) // 50).tolist())
            for rank in range(size)
        }
        for e in range(2)
    ]
    assert touched[0] == touched[1]
    assert [sorted(shards) for shards in touched[0].values()] == np.arange(160).reshape(4, 40).tolist()


def test_streams_divide_the_batch():
    assert [n_streams_of(size) for size in (1, 7, 12, 16, 17, 24, 64, 100)] == [1, 7, 12, 16, 1, 12, 16, 10]
    with pytest.raises(ConfigError, match="5 streams do not divide a batch of 12"):
        EpochOrder(np.array([50]), batch_size=12, seed=0, epoch=0, n_streams=5)


def test_substitutes_are_the_rest_of_the_stream():
    order = EpochOrder(np.array([30, 31]), batch_size=4, seed=0, epoch=0, window=16, n_streams=2)
    stream = ahead(order).reshape(-1, 2, 2)[:, 1].ravel()
    found = list(order.substitutes(3, 2))  # batch 3, first slot of the second stream: the stream's 6th clip
    assert found[: len(stream) - 7] == stream[7:].tolist()
    assert sorted([*found, int(stream[6])]) == list(range(30, 61))


def test_a_world_that_does_not_divide_is_refused_with_those_that_do():
    order = EpochOrder(np.array([60]), batch_size=6, seed=0, epoch=0)
    with pytest.raises(ConfigError, match=r"cannot be shared by 4 processes[\s\S]*1, 2, 3, 6"):
        order.batch(0, World(0, 4))
    with pytest.raises(ConfigError, match="at least one clip, not 0"):
        EpochOrder(np.array([60]), batch_size=0, seed=0, epoch=0)


def test_the_order_is_what_it_was():
    """If this fails the algorithm has changed: raise ORDER_VERSION, then write the new numbers."""
    order = EpochOrder(np.array([5, 9, 3, 20, 1, 30]), batch_size=8, seed=7, epoch=3, window=24)
    assert order.n_streams == 8
    assert batches_of(order, [0, 7]) == [[7, 15, 22, 25, 41, 42, 52, 62], [1, 11, 20, 26, 35, 48, 51, 63]]


def test_memory_is_as_stated():
    counts = np.full(600, 1000)
    tracemalloc.start()
    order = EpochOrder(counts, batch_size=256, seed=0, epoch=0)
    for number in (*range(400), 2000, 2300):
        order.batch(number)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert order.held_bytes / 3 < peak < order.held_bytes
