"""The end of an epoch where a process has nothing left to read, on a disk and in a store."""

import numpy as np
import pytest

from vidbrain.records import ClipSpec, World
from vidbrain.sharding.manifest import open_manifest, shard_path
from vidbrain.sharding.writer import write_shards
from vidbrain.storage.trees import upload_tree
from vidbrain.stream.loader import Loader
from vidbrain.stream.source import ClipSource

CLIP = ClipSpec(8, 2, 3)


@pytest.fixture
def data(videos, config, tmp_path):
    write_shards(videos, tmp_path / "data", config)
    return tmp_path / "data"


@pytest.fixture(params=["disk", "store"])
def place(request, data, tmp_path):
    """Settings of a source of the data set."""
    if request.param == "disk":
        return {"root": data}
    remote = request.getfixturevalue("honest")
    upload_tree(data, remote.root)
    return {"root": remote.url, "cache": tmp_path / "cache"}


def source_of(root, kept_bytes=0, **settings):
    return ClipSource(open_manifest(root), CLIP, None, kept_bytes=kept_bytes, **settings)


@pytest.mark.parametrize("kept_bytes", [0, 1 << 30])
def test_a_process_whose_last_share_is_empty_gives_masked_rows(place, kept_bytes):
    seen, masked, size = [], 0, 7
    for rank in range(size):
        source = source_of(kept_bytes=kept_bytes, **place)
        assert int(source.clips_per_shard.sum()) % size
        loader = Loader(source, batch_size=size, tail="mask", world=World(rank, size), workers=1)
        batches = list(loader)
        index = np.concatenate([batch.index for batch in batches])
        assert len(batches) == len(loader) == len(index)
        assert not any(batch.video.any() for batch in batches if batch.index[0] < 0)
        if source.fetches_ahead:
            # All that was announced is over: what is fetched ahead follows from it.
            assert source._shards._now == (index >= 0).sum()
        source.close()
        seen += index[index >= 0].tolist()
        masked += int((index < 0).sum())
    assert sorted(seen) == list(range(loader.n_clips))
    assert masked == len(loader) * size - loader.n_clips > 0


def test_a_batch_whose_only_clip_is_bad_is_masked(data):
    row = open_manifest(data).segments.iloc[1]
    path = shard_path(data, row["shard"])
    damaged = bytearray(path.read_bytes())
    damaged[row["offset"] + int(row["parts"][0]) // 2] ^= 8
    path.write_bytes(damaged)
    loader = Loader(source_of(data), batch_size=1, tail="mask", on_bad_clip="substitute", bad_share=1.0)
    seen = [int(batch.index[0]) for batch in loader]
    assert loader.bad_clips
    assert seen.count(-1) == len(loader.bad_clips)
    assert {*seen, *loader.bad_clips} - {-1} == set(range(loader.n_clips))
