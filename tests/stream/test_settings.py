"""What a loader is told: taken as people write it, or refused by name before anything is read."""

import json

import numpy as np
import pytest
import torch

from vidbrain.errors import ConfigError, ResumeError, StorageError
from vidbrain.records import ClipSpec, World
from vidbrain.sharding.writer import write_shards
from vidbrain.stream.loader import stream
from vidbrain.stream.settings import check_device, check_world_given

CLIP = ClipSpec(8, 2, 3)


@pytest.fixture(scope="module")
def data(videos, tmp_path_factory):
    from vidbrain.sharding.plan import ShardConfig

    root = tmp_path_factory.mktemp("settings") / "data"
    config = ShardConfig(frame_size=32, segment_frames=32, shard_frames=128, clip_frames=8, clip_step=2, codec="zstd")
    write_shards(videos, root, config)
    return root


def loader_of(data, **settings):
    return stream(data, **{"clip": CLIP, "batch_size": 8, "world": World(), **settings})


@pytest.mark.parametrize(
    "given",
    [
        {"seed": None},
        {"seed": "a"},
        {"seed": 1.5},
        {"seed": True},
        {"batch_size": True},
        {"batch_size": 1.5},
        {"batch_size": "4"},
        {"batch_size": 0},
        {"batch_size": np.bool_(True)},
        {"shuffle": 1},
        {"shuffle": "no"},
        {"workers": True},
        {"workers": 1.5},
        {"clip": (4, 2, 4)},
        {"world": (0, 2)},
        {"deadline_s": None},
        {"deadline_s": float("nan")},
        {"deadline_s": 0},
        {"deadline_s": True},
        {"bad_share": -1},
        {"bad_share": float("nan")},
        {"bad_share": "x"},
        {"device": "nope"},
        {"device": 1.5},
        {"cache_bytes": "much"},
        {"cache_bytes": 0},
    ],
    ids=str,
)
def test_what_is_no_setting_is_refused_by_name(data, given):
    with pytest.raises(ConfigError) as caught:
        loader_of(data, **given)
    (name,) = given
    assert caught.value.where == name or name in caught.value.message or "number of bytes" in caught.value.message


@pytest.mark.parametrize("bad", [(8.0, 2, 3), (8, "2", 3), (8, 2, None), (True, 2, 3), (8, 2, 0)])
def test_a_clip_of_something_else_is_refused(bad):
    with pytest.raises(ConfigError):
        ClipSpec(*bad)


def test_a_gpu_that_is_not_there_is_refused_before_anything_is_read(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ConfigError, match="no cuda here"):
        check_device("cuda")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ConfigError, match="no cuda:2 here"):
        check_device("cuda:2")
    assert check_device("cuda:1") == torch.device("cuda", 1)
    assert check_device(None) is None


def test_numpys_numbers_are_taken_and_become_plain_ones(data):
    numpys = {"seed": np.int64(3), "batch_size": np.int32(8), "shuffle": np.bool_(True), "workers": np.int64(1)}
    clip = ClipSpec(np.int64(8), np.uint8(2), np.int16(3))
    loader = loader_of(data, clip=clip, deadline_s=np.float32(30), bad_share=np.float64(0.5), **numpys)
    state = json.loads(json.dumps(loader.state_dict()))
    plain = loader_of(data, seed=3)
    plain.load_state_dict(state)
    assert [b.index.tolist() for b in plain] == [b.index.tolist() for b in loader]


def test_a_number_of_frames_may_be_a_number(data):
    one, other = (loader_of(data, subset=subset).state_dict() for subset in (100, "100"))
    assert one == other
    assert loader_of(data, subset=np.int64(100)).state_dict() == one


def test_a_name_that_is_too_long_for_a_file_is_an_error_of_ours(data):
    with pytest.raises(StorageError, match="too long"):
        loader_of(data, subset="x" * 5000)


@pytest.mark.parametrize("environment", [{"RANK": "5"}, {"RANK": "5", "WORLD_SIZE": "2"}, {"RANK": "-1"}])
def test_a_rank_outside_the_world_says_so(monkeypatch, environment):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=f"rank {environment['RANK']} is not in a world of"):
        check_world_given(None)


def test_a_world_without_a_rank_is_refused(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="WORLD_SIZE=2, and no RANK"):
        check_world_given(None)
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert check_world_given(None) == World()
    monkeypatch.setenv("WORLD_SIZE", "two")
    with pytest.raises(ConfigError, match="are not numbers"):
        check_world_given(None)
    assert check_world_given(World(1, 2)) == World(1, 2)


@pytest.mark.parametrize("values", [None, [], "x", {}, 3])
def test_what_is_no_state_is_refused(data, values):
    with pytest.raises(ResumeError):
        loader_of(data).load_state_dict(values)


def test_a_state_that_was_changed_is_refused(data):
    state = loader_of(data).state_dict()
    loader = loader_of(data)
    for name in state:
        with pytest.raises(ResumeError):
            loader.load_state_dict({key: value for key, value in state.items() if key != name})
    n = loader.n_clips
    changed = {"seed": "0"}, {"batches": -1}, {"epoch": -1}, {"clip": None}, {"clip": {**state["clip"], "step": 0}}
    for other in (*changed, {"quarantine": [n]}, {"quarantine": [-1]}, {"quarantine": ["x"]}, {7: 8}):
        with pytest.raises(ResumeError):
            loader.load_state_dict(state | other)
    loader.load_state_dict(state | {"quarantine": [0, n - 1]})
    assert next(iter(loader)).number == 0
