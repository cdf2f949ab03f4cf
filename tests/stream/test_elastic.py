"""Loaders in pieces: worlds, threads, worker processes and stops leave no trace in the sequence of batches."""

import itertools
import json
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from vidbrain.errors import ConfigError, ResumeError
from vidbrain.records import ClipSpec, World
from vidbrain.stream.batch import clip_rng
from vidbrain.stream.codes import CodesSource, CodesTable
from vidbrain.stream.loader import Loader
from vidbrain.stream.order import WINDOW, n_streams_of


def source_of(counts):
    """Codes that say which clip they are."""
    counts = np.asarray(counts, np.int64)
    n = int(counts.sum())
    codes = np.arange(n, dtype=np.uint16)[:, None, None, None]
    return CodesSource(
        CodesTable(codes, np.repeat("r", n), np.arange(n), counts, ClipSpec(8, 2, 3), f"of {n}", {"n_codes": n})
    )


def expected_epochs(oracle, counts, batch_size, seed, tail, n):
    streams = n_streams_of(batch_size)
    return [oracle(list(counts), batch_size, seed, epoch, WINDOW, streams, tail) for epoch in range(n)]


def rows_of(batch):
    np.testing.assert_array_equal(batch.codes[batch.index >= 0].ravel(), batch.index[batch.index >= 0])
    assert (batch.weight == (batch.index >= 0)).all()
    return batch.index.tolist()


@st.composite
def runs(draw):
    batch_size = draw(st.integers(1, 12))
    counts = draw(st.lists(st.integers(0, 30), min_size=1, max_size=6).filter(lambda c: sum(c) >= batch_size))
    worlds = [n for n in range(1, batch_size + 1) if batch_size % n == 0]
    pieces = draw(st.lists(st.tuples(st.sampled_from(worlds), st.integers(1, 3), st.integers(0, 9)), max_size=4))
    return batch_size, counts, draw(st.integers(0, 9)), draw(st.sampled_from(["drop", "mask"])), pieces


@settings(max_examples=60, deadline=None)
@given(runs())
def test_any_sequence_of_worlds_threads_and_stops_gives_the_undisturbed_order(oracle, run):
    batch_size, counts, seed, tail, pieces = run
    source = source_of(counts)
    epochs = expected_epochs(oracle, counts, batch_size, seed, tail, 2)
    state, found = None, []
    for size, workers, steps in [*pieces, (1, 1, 10_000)]:
        parts, states = [], []
        for rank in range(size):
            loader = Loader(
                source, batch_size=batch_size, seed=seed, world=World(rank, size), tail=tail, workers=workers
            )
            if state is not None:
                loader.load_state_dict(state)
            batches = itertools.islice(itertools.chain(loader, loader), steps)
            # Never beyond the second epoch.
            parts.append([(b.epoch, b.number, rows_of(b)) for b in itertools.takewhile(lambda b: b.epoch < 2, batches)])
            states.append(loader.state_dict())
        assert all(each == states[0] for each in states)
        state = json.loads(json.dumps(states[0]))
        for ranks in zip(*parts, strict=True):
            assert len({(epoch, number) for epoch, number, _ in ranks}) == 1
            found.append([clip for *_, rows in ranks for clip in rows])
        if state["epoch"] == 1 and state["batches"] == len(epochs[1]):
            break
    assert found == [batch for epoch in epochs for batch in epoch][: len(found)]
    assert len(found) >= len(epochs[0])


def test_a_world_that_does_not_divide_is_refused_with_those_that_do(monkeypatch):
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "5")
    with pytest.raises(ConfigError, match=r"12 cannot be shared by 5 processes[\s\S]*1, 2, 3, 4, 6, 12"):
        Loader(source_of([50]), batch_size=12)
    monkeypatch.setenv("WORLD_SIZE", "3")
    own = [batch.index.tolist() for batch in Loader(source_of([50]), batch_size=12)]
    given = [batch.index.tolist() for batch in Loader(source_of([50]), batch_size=12, world=World(2, 3))]
    assert own == given


def test_states_of_other_orders_are_refused():
    source = source_of([50])
    state = Loader(source, batch_size=4).state_dict()
    old = {k: v for k, v in state.items() if k != "order_version"} | {"version": 1}
    with pytest.raises(ResumeError, match="version 1 of the order, this is version 2"):
        Loader(source, batch_size=4).load_state_dict(old)
    others = {"seed": 3}, {"batch_size": 8}, {"shuffle": False}, {"tail": "mask"}
    for other in others:
        with pytest.raises(ResumeError, match=f"another stream .*{next(iter(other))}"):
            Loader(source, **{"batch_size": 4, **other}).load_state_dict(state)
    with pytest.raises(ResumeError, match=r"another stream .*dataset"):
        Loader(source_of([51]), batch_size=4).load_state_dict(state)
    with pytest.raises(ResumeError, match="batch 99 of 12"):
        Loader(source, batch_size=4).load_state_dict(state | {"batches": 99})


def test_chance_belongs_to_the_clip():
    """The same for every world, number of threads and resume; another in another epoch."""
    source, drawn = source_of([20, 20]), {}
    for size, workers in ((1, 1), (2, 3)):
        for rank in range(size):
            loader = Loader(source, batch_size=8, seed=5, world=World(rank, size), workers=workers)
            for batch in itertools.chain(loader, loader):
                for i, clip in enumerate(batch.index.tolist()):
                    value = batch.rng(i).random()
                    assert drawn.setdefault((batch.epoch, clip), value) == value
    assert len(drawn) == len(set(drawn.values())) == 80
    assert drawn[1, 7] == clip_rng(5, 1, 7).random() == np.random.default_rng((5, 1, 7)).random()


def test_worker_processes_of_a_dataloader_give_each_whole_batch_once(oracle):
    counts = [20, 31, 9]
    epochs = expected_epochs(oracle, counts, 8, 2, "mask", 3)
    loader = Loader(source_of(counts), batch_size=8, seed=2, tail="mask", workers=1)
    data = DataLoader(loader, batch_size=None, num_workers=2, multiprocessing_context="fork")
    assert len(data) == len(loader) == 8
    # Nobody tells the loader what arrived: it knows when an epoch is over, and says when it does not know where it is.
    assert [rows_of(batch) for batch in data] == epochs[0]
    with pytest.raises(ResumeError, match=r"loader\.received"):
        loader.state_dict()
    first = next(iter(data))
    assert rows_of(first) == epochs[1][0]
    with pytest.raises(ResumeError, match=r"loader\.received"):
        loader.state_dict()
    # Told, it stands where the trainer stands, and another loader goes on from there, without worker processes.
    for batch in itertools.islice(data, 3):
        loader.received(batch)
    state = loader.state_dict()
    assert (state["epoch"], state["batches"]) == (1, 3)
    again = Loader(source_of(counts), batch_size=8, seed=2, tail="mask")
    again.load_state_dict(state)
    assert [rows_of(batch) for batch in itertools.chain(again, again)] == epochs[1][3:] + epochs[2]
    assert [rows_of(batch) for batch in data] == epochs[1][3:]


@pytest.mark.parametrize("how", ["fork", "spawn"])
def test_persistent_worker_processes_go_on_to_the_next_epoch(oracle, how):
    counts = [20, 31, 9]
    loader = Loader(source_of(counts), batch_size=8, seed=2)
    data = DataLoader(loader, batch_size=None, num_workers=2, persistent_workers=True, multiprocessing_context=how)
    found = [[rows_of(batch) for batch in data] for _ in range(3)]
    assert found == expected_epochs(oracle, counts, 8, 2, "drop", 3)


@pytest.mark.parametrize("how", ["left", "loaded"])
def test_persistent_worker_processes_that_do_not_hear_of_a_stop_are_refused(how):
    loader = Loader(source_of([20, 31, 9]), batch_size=8, seed=2)
    data = DataLoader(loader, batch_size=None, num_workers=2, persistent_workers=True, multiprocessing_context="fork")
    states = []

    def take(batches):
        for batch in batches:
            loader.received(batch)
            states.append(loader.state_dict())

    take(itertools.islice(data, 3 if how == "left" else None))
    loader.load_state_dict(states[2])  # where a loop that is left stands already
    with pytest.raises(ResumeError, match="batch 3 of epoch 0 is due") as caught:
        take(data)
    assert "persistent_workers=False" in caught.value.hint
    assert loader.state_dict() == states[2]
    # Those that begin with the pass hear of it.
    states.clear()
    take(DataLoader(loader, batch_size=None, num_workers=2, multiprocessing_context="fork"))
    assert [state["batches"] for state in states] == [4, 5, 6, 7]


def test_the_same_loop_serves_without_worker_processes():
    loader = Loader(source_of([20, 31, 9]), batch_size=8, seed=2)
    for batch in itertools.islice(DataLoader(loader, batch_size=None), 3):
        loader.received(batch)
    assert loader.state_dict()["batches"] == 3


def test_a_state_that_is_loaded_ends_the_iterators():
    loader = Loader(source_of([20, 31, 9]), batch_size=8, seed=2)
    start, batches = loader.state_dict(), iter(loader)
    taken = [next(batches).number for _ in range(3)]
    loader.load_state_dict(start)
    with pytest.raises(ResumeError, match="this iterator is over"):
        next(batches)
    assert loader.state_dict() == start
    assert [batch.number for batch in loader][:3] == taken == [0, 1, 2]
    # Also one that has given nothing yet.
    fresh = iter(loader)
    loader.load_state_dict(start)
    with pytest.raises(ResumeError, match="this iterator is over"):
        next(fresh)


def test_of_two_iterators_the_newer_one_counts():
    loader = Loader(source_of([20, 31, 9]), batch_size=8, seed=2)
    older = iter(loader)
    assert next(older).number == 0
    newer = iter(loader)
    assert next(newer).number == 1
    with pytest.raises(ResumeError, match="this iterator is over"):
        next(older)
    assert [batch.number for batch in newer] == [2, 3, 4, 5, 6]
    assert loader.state_dict()["batches"] == 7


def test_a_loader_that_came_from_another_process_hears_of_its_worker_processes():
    copy = pickle.loads(pickle.dumps(Loader(source_of([20, 31, 9]), batch_size=8, seed=2)))
    assert next(iter(copy)).number == 0
    batches = iter(DataLoader(copy, batch_size=None, num_workers=1, multiprocessing_context="fork"))
    first = next(batches)
    with pytest.raises(ResumeError, match=r"loader\.received"):
        copy.state_dict()
    copy.received(first)
    assert first.number == 1
    assert copy.state_dict()["batches"] == 2
