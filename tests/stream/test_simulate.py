"""The simulator against a walk in plain Python, and its cache against the best there can be."""

import functools
import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vidbrain.cli.app import run
from vidbrain.records import ClipSpec, World
from vidbrain.sharding.manifest import open_manifest
from vidbrain.sharding.parts import PART_FRAMES
from vidbrain.sharding.writer import write_shards
from vidbrain.stream.loader import stream
from vidbrain.stream.simulate import GAP_BYTES, Walk, downloads, n_ranges, open_shards, simulate

CLIP = ClipSpec(8, 2, 3)
walks = st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=3, unique=True).map(sorted), min_size=1, max_size=9)


def walk_of(batches):
    clips = np.array([shard for batch in batches for shard in batch], np.int64)
    return Walk.of(clips, np.array([len(batch) for batch in batches]))


def fewest_downloads(uses, room):
    """The best of all ways to keep at most `room` shards, tried one by one."""

    @functools.cache
    def best(at, held):
        if at == len(uses):
            return 0
        shard = uses[at]
        if shard in held:
            return best(at + 1, held)
        ways = [held | {shard}] if len(held) < room else [held, *(held - {other} | {shard} for other in held)]
        return 1 + min(best(at + 1, frozenset(way)) for way in ways)

    return best(0, frozenset())


@settings(max_examples=80, deadline=None)
@given(walks, st.integers(0, 4))
def test_the_cache_is_the_best_there_can_be(batches, room):
    walk = walk_of(batches)
    n, n_bytes = downloads(walk, np.full(5, 10), 10 * room)
    uses = [shard for batch in batches for shard in batch]
    assert n_bytes == 10 * n
    assert n == fewest_downloads(uses, room)


@settings(max_examples=80, deadline=None)
@given(walks, st.lists(st.integers(1, 50), min_size=5, max_size=5))
def test_open_shards_are_those_between_their_first_and_last_use(batches, sizes):
    walk, sizes = walk_of(batches), np.array(sizes)
    open_at = [
        [s for s in range(5) if any(s in b for b in batches[: i + 1]) and any(s in b for b in batches[i:])]
        for i in range(len(batches))
    ]
    n, n_bytes = open_shards(walk, sizes)
    assert n == max(map(len, open_at))
    assert n_bytes == max(sum(sizes[s] for s in each) for each in open_at)
    used = {s for batch in batches for s in batch}
    assert downloads(walk, sizes, n_bytes) == (len(used), sum(sizes[s] for s in used))


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 1), st.integers(0, 9), st.integers(1, 4)), max_size=12))
def test_ranges_are_joined_within_a_batch_and_shard(rows):
    step = GAP_BYTES // 2
    batch, shard, at, length = (np.array([row[i] for row in rows], np.int64) for i in range(4))
    wanted = set()
    for b, s, first, n in rows:
        wanted |= {(b, s, unit) for unit in range(first, first + n)}
    requests = n_units = 0
    for b, s in {each[:2] for each in wanted}:
        units = sorted(unit for *key, unit in wanted if tuple(key) == (b, s))
        requests, n_units = requests + 1, n_units + 1
        for before, unit in itertools.pairwise(units):
            apart = unit - before - 1 > 2
            requests, n_units = requests + apart, n_units + (1 if apart else unit - before)
    assert n_ranges(batch, shard, at * step, length * step) == (requests, n_units * step)


@pytest.fixture
def data(videos, config, tmp_path):
    write_shards(videos, tmp_path / "data", config)
    return tmp_path / "data"


@pytest.mark.parametrize("world", [World(), World(1, 2)])
def test_it_says_what_the_loader_does(data, world):
    loader = stream(data, clip=CLIP, batch_size=8, seed=3, world=world)
    table = open_manifest(data).segments
    found = simulate(table, loader._source.table, loader.order(0), world=world)
    shards, recordings, n_bytes = [], [], 0
    for batch in loader:
        rows = table.iloc[batch.segment]
        shards.append(set(rows["shard"]))
        recordings.append(set(rows["recording"]))
        parts = set()
        for segment, start in zip(batch.segment, batch.start_frame, strict=True):
            inside = start - table["start_frame"].iloc[segment]
            parts |= {
                (table["shard"].iloc[segment], int(segment), part)
                for part in range(inside // PART_FRAMES, (inside + CLIP.span - 1) // PART_FRAMES + 1)
            }
        n_bytes += sum(table["parts"].iloc[segment][part] for _, segment, part in parts)
    assert found["batches"] == len(shards)
    assert found["shards_per_batch"] == pytest.approx(np.mean([len(each) for each in shards]))
    assert found["recordings_per_batch"] == pytest.approx(np.mean([len(each) for each in recordings]))
    used = set().union(*shards)
    assert found["shards"] == len(used)
    assert found["shard_bytes"] == table[table["shard"].isin(used)]["n_bytes"].sum()
    # Joined ranges hold what is wanted, and gaps.
    assert n_bytes <= found["ranged"]["n_bytes"] <= found["shard_bytes"] * len(shards)
    assert [row["downloads"] for row in found["cache"]] == sorted(
        (r["downloads"] for r in found["cache"]), reverse=True
    )
    assert found["cache"][-1]["downloads"] == len(used)


def test_the_command(data, capsys):
    base = ["stream", str(data), "--clip.n-frames", "8", "--clip.step", "2", "--batch-size", "8", "--json"]
    assert run([*base, "--simulate", "--batches", "3"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["batches"] == found["clips"] // 8
    assert found["expected_clips_per_s"] > 0
    assert run([*base, "--simulate", "--batches", "0", "--processes", "2"]) == 0
    half = json.loads(capsys.readouterr().out)
    assert half["clips"] == found["clips"] // 2
    assert half["expected_clips_per_s"] is None
    assert run([*base, "--batches", "40", "--subset", "200"]) == 0
    measured = json.loads(capsys.readouterr().out)
    assert measured["batches"] == 40
    assert measured["n_bytes"] > 0
    assert measured["rss_growth_bytes"] >= 0
    assert run([*base, "--batches", "0"]) == 1
    assert run([*base, "--processes", "3"]) == 1
    assert "1, 2, 4, 8 processes" in capsys.readouterr().err
