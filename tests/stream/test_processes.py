"""Where people run a loader: under a DataLoader that forks or spawns, and in a notebook's running event loop."""

import asyncio
import subprocess
import sys

import numpy as np
import pytest
from torch.utils.data import DataLoader

from vidbrain.errors import StorageError
from vidbrain.records import ClipSpec
from vidbrain.sharding.writer import write_shards
from vidbrain.storage.trees import upload_tree
from vidbrain.stream.loader import stream

CLIP = ClipSpec(8, 2, 3)


@pytest.fixture
def data(videos, config, tmp_path):
    write_shards(videos, tmp_path / "data", config)
    return tmp_path / "data"


def pixels(batches):
    return [(batch.epoch, batch.number, batch.index.tolist(), np.array(batch.video)) for batch in batches]


def same(found, expected):
    assert [each[:3] for each in found] == [each[:3] for each in expected]
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one[3], other[3])


@pytest.mark.parametrize(("how", "n_workers"), [("fork", 2), ("spawn", 1)])  # a process that is spawned imports torch
def test_worker_processes_read_the_frames_of_a_disk(data, how, n_workers):
    """Also where the main process has begun already: its files, locks, threads and frames are not theirs."""
    settings = {"clip": CLIP, "batch_size": 16, "seed": 1}
    loader = stream(data, **settings)
    begun = next(iter(loader))
    workers = DataLoader(loader, batch_size=None, num_workers=n_workers, multiprocessing_context=how)
    same(pixels([begun, *workers]), pixels(stream(data, **settings)))


def test_a_worker_process_that_is_spawned_reads_a_store(honest, data, tmp_path):
    upload_tree(data, honest.root)
    settings = {"clip": CLIP, "batch_size": 16, "seed": 1}
    loader = stream(honest.url, cache=tmp_path / "cache", **settings)
    begun = next(iter(loader))
    workers = DataLoader(loader, batch_size=None, num_workers=1, multiprocessing_context="spawn")
    same(pixels([begun, *workers]), pixels(stream(data, **settings)))


def test_a_store_under_worker_processes_that_were_forked_is_an_error_that_names_the_cure(honest, data, tmp_path):
    upload_tree(data, honest.root)
    loader = stream(honest.url, cache=tmp_path / "cache", clip=CLIP, batch_size=16)
    workers = DataLoader(loader, batch_size=None, num_workers=1, multiprocessing_context="fork")
    with pytest.raises(StorageError, match="before this process was forked") as caught:
        next(iter(workers))
    assert "spawn" in str(caught.value)


def test_a_running_event_loop_does_not_disturb(honest, data, tmp_path):
    """As in a notebook, whose cells run inside one."""
    upload_tree(data, honest.root)
    settings = {"clip": CLIP, "batch_size": 16, "seed": 1}

    async def cell():
        return pixels(stream(honest.url, cache=tmp_path / "cache", **settings))

    same(asyncio.run(cell()), pixels(stream(data, **settings)))


FORKED = """
import os, sys
from vidbrain.errors import ResumeError
from vidbrain.records import ClipSpec
from vidbrain.stream.loader import stream
loader = stream(sys.argv[1], clip=ClipSpec(8, 2, 3), batch_size=16, deadline_s=300.0)
batches = iter(loader)
next(batches)
child = os.fork()
if not child:
    try:
        next(batches)
    except ResumeError as error:
        print(error.message)
    print(next(iter(loader)).number, flush=True)
    os._exit(0)
os.waitpid(child, 0)
print(next(batches).number)
"""


def test_a_forked_child_cannot_go_on_with_its_parents_iterator(data):
    """It has none of the threads; one of its own goes on."""
    words = [sys.executable, "-W", "ignore", "-c", FORKED, str(data)]
    done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=120)
    said, child, parent = done.stdout.splitlines()
    assert "begun before its process was forked" in said
    assert (child, parent) == ("1", "1")
