"""Damaged clips: an error by default, else passed over by a rule that worlds and threads cannot change."""

import itertools
import pickle

import numpy as np
import pytest

from vidbrain.errors import ShardError
from vidbrain.records import ClipSpec, World
from vidbrain.sharding.manifest import open_manifest, shard_path
from vidbrain.sharding.writer import write_shards
from vidbrain.stream.batch import CodesBatch
from vidbrain.stream.loader import Loader, stream
from vidbrain.stream.opening import open_part
from vidbrain.stream.order import EpochOrder
from vidbrain.stream.quarantine import Quarantine
from vidbrain.stream.source import ClipSource

CLIP = ClipSpec(8, 2, 3)


@pytest.fixture
def data(videos, config, tmp_path):
    """Shards with a bit turned in two parts of two segments."""
    write_shards(videos, tmp_path / "data", config)
    table = open_manifest(tmp_path / "data").segments
    for position in (1, 5):
        row = table.iloc[position]
        path = shard_path(tmp_path / "data", row["shard"])
        damaged = bytearray(path.read_bytes())
        damaged[row["offset"] + int(row["parts"][0]) // 2] ^= 8
        path.write_bytes(damaged)
    return tmp_path / "data"


@pytest.fixture
def bad(data):
    """Clips that cannot be read, found one by one."""
    source, found = ClipSource(open_part(data), CLIP, None), set()
    for clip in range(int(source.clips_per_shard.sum())):
        try:
            source.read(np.array([clip]))
        except ShardError:
            found.add(clip)
    assert len(found) > 4
    return found


def loader_of(data, **settings):
    return stream(data, clip=CLIP, batch_size=8, seed=1, on_bad_clip="substitute", **settings)


def test_by_default_it_is_an_error_that_names_shard_key_and_cure(data):
    row = open_manifest(data).segments.iloc[1]
    with pytest.raises(ShardError) as caught:
        list(stream(data, clip=CLIP, batch_size=8))
    assert ".tar" in caught.value.where
    assert "vidbrain verify" in caught.value.hint
    assert row["key"] in caught.value.where or open_manifest(data).segments["key"][5] in caught.value.where


def test_the_next_good_clip_of_the_stream_takes_the_place(data, bad):
    source = ClipSource(open_part(data), CLIP, None)
    order = EpochOrder(source.clips_per_shard, batch_size=8, seed=1, epoch=0)
    share, streams = 8 // order.n_streams, order.n_streams
    whole = [order.batch(number) for number in range(order.n_batches)]
    expected = []
    for number, batch in enumerate(whole):
        row = []
        for slot, clip in enumerate(batch.tolist()):
            # Each stream, from here on and around; what no batch takes is its end.
            others = [clip, *order.substitutes(number, slot)]
            row.append(next(other for other in others if other not in bad))
            own = {b[s] for b in whole for s in range(8) if s // share == slot // share}
            assert own <= set(others)
        expected.append(row)
    assert streams == 8
    loader = loader_of(data)
    found = list(loader)
    assert [batch.index.tolist() for batch in found] == expected
    for batch in found:
        np.testing.assert_array_equal(batch.video, source.read(batch.index).video)
    met = bad & {clip for batch in whole for clip in batch.tolist()}
    assert met <= set(loader.bad_clips) <= bad
    assert all("damaged" in message for message in loader.bad_clips.values())
    assert loader.stats()["bad_clips"] == len(loader.bad_clips)


def test_where_no_clip_may_come_twice_a_bad_one_weighs_nothing(data, bad):
    loader = loader_of(data, tail="mask")
    seen = []
    for batch in loader:
        seen += batch.index[batch.index >= 0].tolist()
        np.testing.assert_array_equal(batch.weight, batch.index >= 0)
        assert not batch.video[batch.index < 0].any()
        assert (batch.meta["recording"][batch.index < 0] == "").all()
    assert sorted(seen) == sorted(set(range(loader.n_clips)) - bad)
    assert set(loader.bad_clips) == bad


@pytest.mark.parametrize("tail", ["drop", "mask"])
def test_worlds_threads_and_resumes_pass_over_the_same(data, tail):
    whole = [batch.index.tolist() for batch in loader_of(data, tail=tail, workers=1)]
    begun = loader_of(data, tail=tail)
    taken = [batch.index.tolist() for batch in itertools.islice(begun, 7)]
    state, parts = begun.state_dict(), []
    assert state["quarantine"] == sorted(begun.bad_clips)
    for rank in range(4):
        loader = loader_of(data, tail=tail, world=World(rank, 4), workers=3)
        loader.load_state_dict(state)
        assert set(state["quarantine"]) <= set(loader.bad_clips)
        parts.append([batch.index.tolist() for batch in loader])
    assert taken + [list(itertools.chain(*rows)) for rows in zip(*parts, strict=True)] == whole


def test_too_many_are_refused(data, bad):
    with pytest.raises(ShardError, match=r"clips of \d+ cannot be read, more than a share of 0\.003") as caught:
        list(loader_of(data, bad_share=0.003))
    assert "vidbrain verify" in caught.value.hint


def test_what_is_not_a_clips_fault_is_not_passed_over(data):
    class Moody(ClipSource):
        def read(self, clips):
            if len(clips) > 1:
                raise ShardError("not today")
            return super().read(clips)

    source = Moody(open_part(data), CLIP, None)
    with pytest.raises(ShardError):
        list(Loader(source, batch_size=8, on_bad_clip="substitute", bad_share=1.0))


def test_a_copy_for_another_process_does_the_same(data):
    loader = loader_of(data)
    first = [batch.index.tolist() for batch in itertools.islice(loader, 5)]
    copy = pickle.loads(pickle.dumps(loader))
    assert copy.bad_clips == loader.bad_clips
    rest, copied = ([batch.index.tolist() for batch in each] for each in (loader, copy))
    assert rest == copied == [batch.index.tolist() for batch in loader_of(data)][len(first) :]


class Codes:
    """A source of which the clips from 50 on cannot be read."""

    def read(self, clips):
        if (clips >= 50).any():
            raise ShardError("damaged")
        return CodesBatch(codes=clips.astype(np.uint16), index=clips)


def test_clips_that_a_state_lists_do_not_count_against_what_is_read_after_it(monkeypatch):
    monkeypatch.setattr("vidbrain.stream.quarantine.FEWEST", 10)
    quarantine = Quarantine(Codes(), tail="mask", most=0.2)
    listed = list(range(60, 90))
    quarantine.add(listed)
    batch = quarantine.read(np.array([*range(10), 50, 60]), 0, 0, lambda: None)
    assert batch.index.tolist() == [*range(10), -1, -1]
    assert set(quarantine.clips) == {50, *listed}
    # What this run finds is known by it, whatever a state says later.
    quarantine.add([50, 51])
    assert quarantine.clips[50].startswith("damaged")
    with pytest.raises(ShardError, match="4 clips of 15 cannot be read"):
        quarantine.read(np.array([52, 53, 54]), 1, 0, lambda: None)


def test_a_stream_goes_on_where_many_bad_clips_are_listed(data, bad, monkeypatch):
    monkeypatch.setattr("vidbrain.stream.quarantine.FEWEST", 1)
    whole = loader_of(data, bad_share=1.0)
    rows = [batch.index.tolist() for batch in whole]
    state = whole.state_dict() | {"batches": 1, "quarantine": sorted(bad)[1:]}
    again = loader_of(data, bad_share=0.13)
    again.load_state_dict(state)
    assert [batch.index.tolist() for batch in again] == rows[1:]
