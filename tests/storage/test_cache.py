"""The cache that processes share: named by content, whole or absent, within its limit, whoever dies."""

import hashlib
import math
import os
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest

from vidbrain.errors import ConfigError, StorageError
from vidbrain.storage.atomic import PART
from vidbrain.storage.cache import Cache, Content, is_sha256, parse_bytes


def content_of(data):
    return Content(hashlib.sha256(data).hexdigest(), len(data))


def blob(number, n_bytes=1000):
    return np.random.default_rng(number).bytes(n_bytes)


def unknown(_):
    return None


def put(cache, data, next_use=unknown, arriving=None):
    """Fill; what arrives may be something else. Returns the lease and how often it was fetched."""
    content, fetched = content_of(data), []

    def fetch(path):
        path.write_bytes(arriving[len(fetched)] if arriving else data)
        fetched.append(path)

    def check(path):
        return is_sha256(path, content.n_bytes, content.digest)

    return cache.fill(content, fetch, check, next_use=next_use, wait_s=0.2), len(fetched)


def names(cache):
    return {path.name for path in cache.folder.iterdir() if not path.name.endswith((".lock", ".lease"))}


def test_an_entry_is_fetched_once_and_read_by_any_cache_on_the_folder(tmp_path):
    data = blob(0)
    assert Cache(tmp_path, 5000).open(content_of(data)) is None
    lease, n_fetched = put(Cache(tmp_path, 5000), data)
    assert n_fetched == 1
    assert lease.read(10, 30) == data[10:30]
    assert put(Cache(tmp_path, 5000), data)[1] == 0
    assert Cache(tmp_path, 5000).open(content_of(data)).read(0, 1000) == data
    assert names(Cache(tmp_path, 5000)) == {content_of(data).name}


def test_what_arrives_damaged_is_fetched_again_and_is_an_error_in_the_end(tmp_path):
    cache, data = Cache(tmp_path, 5000), blob(0)
    bad = data[:-1] + bytes([data[-1] ^ 1])
    with pytest.raises(StorageError, match="damaged, 3 times"):
        put(cache, data, arriving=[bad] * 3)
    assert names(cache) == set()
    lease, n_fetched = put(cache, data, arriving=[data[:-1], data])
    assert (lease.read(0, 1000), n_fetched) == (data, 2)


def test_an_error_while_fetching_leaves_nothing(tmp_path):
    cache = Cache(tmp_path, 5000)

    def fetch(path):
        path.write_bytes(b"half")
        raise StorageError("the connection breaks")

    with pytest.raises(StorageError, match="connection breaks"):
        cache.fill(content_of(blob(0)), fetch, lambda _: True, next_use=unknown, wait_s=0)
    assert names(cache) == set()
    assert cache.held() == {}


def test_the_longest_unused_goes_first_where_nothing_is_known_of_the_future(tmp_path):
    cache = Cache(tmp_path, 3000)
    for number in range(3):
        put(cache, blob(number))
        os.utime(cache.folder / content_of(blob(number)).name, (number, number))
    cache.open(content_of(blob(0)))
    put(cache, blob(3))
    assert names(cache) == {content_of(blob(number)).name for number in (0, 2, 3)}


def belady(order, n_held):
    """The fewest misses that any cache of `n_held` entries can have, by the definition, if it may pass one over."""
    held, misses = set(), 0
    for at, wanted in enumerate(order):
        if wanted in held:
            continue
        misses += 1
        held.add(wanted)
        due = {name: next((i for i in range(at + 1, len(order)) if order[i] == name), math.inf) for name in held}
        if len(held) > n_held:
            held.remove(max(sorted(held), key=lambda name: due[name]))
    return misses


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_where_the_future_is_known_no_cache_misses_less(tmp_path, seed):
    cache = Cache(tmp_path, 3000)
    order = np.random.default_rng(seed).integers(0, 7, 60).tolist()
    number_of = {content_of(blob(n)).name: n for n in range(7)}
    misses = 0
    for at, wanted in enumerate(order):

        def next_use(name, at=at, wanted=wanted):
            number = number_of[name]
            return next((float(i) for i in range(at + 1, len(order)) if order[i] == number), math.inf)

        if cache.open(content_of(blob(wanted))) is None:
            misses += 1
            put(cache, blob(wanted), next_use)
        assert sum(cache.held().values()) <= 3000
    assert misses == belady(order, 3)


def test_what_is_held_stays_and_what_finds_no_room_is_refused(tmp_path):
    cache = Cache(tmp_path, 2000)
    first, second = put(cache, blob(0))[0], put(cache, blob(1))[0]
    assert put(cache, blob(2)) == (None, 0)
    assert put(cache, blob(3, 3000)) == (None, 0)
    assert (first.read(0, 1000), second.read(0, 1000)) == (blob(0), blob(1))
    del first
    assert put(cache, blob(2))[1] == 1
    assert names(cache) == {content_of(blob(number)).name for number in (1, 2)}


WORKER = textwrap.dedent("""
    import hashlib, os, sys, time
    import numpy as np
    from vidbrain.storage.cache import Cache, Content, is_sha256

    folder, limit, seed, n_reads, n_blobs, hang = sys.argv[1], *map(int, sys.argv[2:])
    cache, rng, n_hits = Cache(folder, limit), np.random.default_rng(seed), 0
    print("ready", flush=True)
    for at in range(n_reads):
        number = int(rng.integers(n_blobs))
        data = np.random.default_rng(number).bytes(100_000)
        content = Content(hashlib.sha256(data).hexdigest(), len(data))

        def fetch(path):
            with path.open("wb") as handle:
                handle.write(data[:50_000])
                handle.flush()
                if hang:
                    print("downloading", flush=True)
                    time.sleep(60)
                time.sleep(0.002)
                handle.write(data[50_000:])

        def check(path):
            return is_sha256(path, len(data), content.digest)

        lease = cache.open(content)
        n_hits += lease is not None
        if lease is None:
            lease = cache.fill(content, fetch, check, next_use=lambda _: None, wait_s=5)
        if lease is not None:
            assert lease.read(0, 100_000) == data, "corrupt"
        del lease
    print("done", n_hits, flush=True)
""")


def worker(folder, limit, *numbers):
    command = [sys.executable, "-c", WORKER, str(folder), str(limit), *map(str, numbers)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_a_killed_download_lets_go_of_its_locks_and_is_swept(tmp_path):
    cache = Cache(tmp_path, 150_000)
    killed = worker(tmp_path, 150_000, 0, 1, 1, 1)
    with killed:
        assert killed.stdout.readline() == "ready\n"
        assert killed.stdout.readline() == "downloading\n"
        assert [PART in name for name in names(cache)] == [True]
        # While it lives its room is taken, and another process does not download the same.
        assert put(cache, blob(1, 100_000)) == (None, 0)
        assert put(cache, blob(0, 100_000)) == (None, 0)
        killed.send_signal(signal.SIGKILL)
    other = blob(1, 100_000)
    assert put(cache, other)[1] == 1
    assert names(cache) == {content_of(other).name}
    same = worker(tmp_path, 150_000, 0, 1, 1, 1)
    with same:
        assert same.stdout.readline() == "ready\n"
        assert same.stdout.readline() == "downloading\n"
        same.send_signal(signal.SIGKILL)
    lease, n_fetched = put(cache, blob(0, 100_000))
    assert (n_fetched, lease.read(0, 100_000)) == (1, blob(0, 100_000))
    assert names(cache) == {content_of(blob(0, 100_000)).name}


def test_four_processes_share_a_folder_that_is_smaller_than_their_data(tmp_path):
    """One of them is killed at work. The rest read what they asked for, and nobody waits for ever."""
    limit = 600_000
    cache = Cache(tmp_path, limit)
    workers = [worker(tmp_path, limit, seed, 80, 12, 0) for seed in range(4)]
    for process in workers:
        assert process.stdout.readline() == "ready\n"
    time.sleep(0.3)
    workers[0].send_signal(signal.SIGKILL)
    most = 0
    while any(process.poll() is None for process in workers[1:]):
        most = max(most, sum(cache.held().values()))
        time.sleep(0.005)
    said = [process.communicate(timeout=10)[0] for process in workers][1:]
    assert [process.returncode for process in workers[1:]] == [0, 0, 0]
    assert all(int(text.split()[1]) > 0 for text in said), "no process ever found what another had fetched"
    assert limit / 2 < most <= limit
    put(cache, blob(0, 100_000))
    assert not any(PART in name for name in names(cache))
    for name in names(cache):
        data = (cache.folder / name).read_bytes()
        assert content_of(data).name == name


def test_limits_are_read_as_people_write_them():
    assert [parse_bytes(text) for text in ("20G", "500 MB", "1.5t", 7)] == [20 * 10**9, 5 * 10**8, 15 * 10**11, 7]
    for text in ("0", "G", "-5", "20X", ""):
        with pytest.raises(ConfigError, match="no number of bytes"):
            parse_bytes(text)


def test_a_folder_in_the_place_of_an_entry_is_none_and_makes_room(tmp_path):
    data, cache = blob(0), Cache(tmp_path, 5000)
    (cache.folder / content_of(data).name / "deep").mkdir(parents=True)
    assert cache.open(content_of(data)) is None
    lease, n_fetched = put(cache, data)
    assert n_fetched == 1
    assert lease.read(0, 1000) == data
    assert names(cache) == {content_of(data).name}


@pytest.mark.parametrize("end", ["", f"{PART}0"])
def test_folders_named_like_entries_take_no_room(tmp_path, end):
    other, cache = content_of(blob(1)), Cache(tmp_path, 1500)
    (cache.folder / f"{other.name}{end}" / "deep").mkdir(parents=True)
    lease, _ = put(cache, blob(0))
    assert lease.read(0, 1000) == blob(0)
    assert names(cache) == {content_of(blob(0)).name}
    cache.drop(other)


@pytest.mark.parametrize("folder", ["~nobody-of-this-name/x", 5])
def test_a_folder_that_nobody_knows_is_refused(folder):
    with pytest.raises(ConfigError, match="the cache cannot be"):
        Cache(folder)
