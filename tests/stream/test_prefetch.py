import itertools
import threading
import time
import weakref

import numpy as np
import pytest

from vidbrain.errors import StorageError
from vidbrain.stream.prefetch import SPARE, Prefetch, ThreadCount


def prefetch(jobs, make, n=3, deadline_s=60.0, moved=lambda: 0.0):
    return Prefetch(iter(jobs), make, count=ThreadCount(n, settled=True), deadline_s=deadline_s, moved=moved)


def threads():
    return sum(thread.name == "vidbrain-prefetch" for thread in threading.enumerate())


@pytest.mark.parametrize("n", [1, 2, 7])
def test_results_come_in_the_order_of_the_jobs_and_few_are_ahead(n):
    made, taken, ahead = itertools.count(1), 0, []

    def make(job):
        time.sleep(0.003 * ((job * 7) % 5))
        ahead.append(next(made) - taken)
        return job * job

    found = []
    for result, waited_s in prefetch(range(60), make, n).results():
        taken += 1
        found.append(result)
        assert waited_s >= 0
    assert found == [job * job for job in range(60)]
    assert max(ahead) <= n + SPARE + 1  # the one that was just given is not counted yet
    assert threads() == 0


class Made:
    """A result that can be counted."""


def test_no_thread_holds_what_it_gave_away():
    """Threads that wait, because the consumer is slow, must not keep its results alive."""
    alive = weakref.WeakSet()

    def make(job):
        result = Made()
        alive.add(result)
        return result

    n, most = 6, 0
    for result, _ in prefetch(range(60), make, n).results():
        time.sleep(0.002)
        most = max(most, len(alive))
        del result
    # Those in the making or ready, and the one that is in the consumer's hands.
    assert most <= n + SPARE + 1


def test_an_error_comes_in_its_place():
    def make(job):
        if job == 5:
            raise KeyError(job)
        return job

    found = []
    with pytest.raises(KeyError):
        found.extend(result for result, _ in prefetch(range(50), make).results())
    assert threads() == 0
    results = prefetch(range(50), make).results()
    assert [next(results)[0] for _ in range(5)] == [0, 1, 2, 3, 4]
    with pytest.raises(KeyError):
        next(results)


def test_an_error_of_the_jobs_comes_in_its_place():
    def jobs():
        yield from range(4)
        raise OSError("no more")

    results = prefetch(jobs(), lambda job: job).results()
    assert [next(results)[0] for _ in range(4)] == [0, 1, 2, 3]
    with pytest.raises(OSError, match="no more"):
        next(results)


def test_leaving_early_ends_the_threads():
    results = prefetch(itertools.count(), lambda job: job).results()
    assert next(results)[0] == 0
    results.close()
    assert threads() == 0


def test_nothing_to_do():
    assert list(prefetch([], lambda job: job).results()) == []


def test_a_stalled_source_is_an_error_and_not_a_hang():
    let_go = threading.Event()

    def make(job):
        if job == 2:
            let_go.wait()
        return job

    results = prefetch(range(9), make, n=2, deadline_s=0.2).results()
    threading.Timer(1.0, let_go.set).start()
    with pytest.raises(StorageError, match=r"stalled: nothing came for 0\.2 s"):
        list(results)


def test_a_slow_source_that_moves_is_not_stalled():
    let_go = threading.Event()
    threading.Timer(0.5, let_go.set).start()

    def make(job):
        let_go.wait()
        return job

    moving = itertools.count()
    found = prefetch(range(3), make, deadline_s=0.1, moved=lambda: next(moving)).results()
    assert [result for result, _ in found] == [0, 1, 2]


def settled(rate_of, consumer_rate, most=16):
    """Threads that are kept where n of them make `rate_of(n)` results a second."""
    count = ThreadCount(most)
    for _ in range(4000):
        rate = min(rate_of(count.n), consumer_rate)
        count.report(1 / rate, max(0.0, 1 / rate - 1 / consumer_rate))
    return count.n


def test_threads_are_added_as_long_as_they_help():
    assert settled(lambda n: 100 * min(n, 4), 1e6) == 4
    assert settled(lambda n: 100 * n, 1e6) == 16
    assert settled(lambda n: 100 * n, 1e6, most=1) == 1
    assert settled(lambda n: 100 / n, 1e6) == 1


def test_threads_are_not_added_where_the_consumer_is_slower():
    assert settled(lambda n: 100 * n, 50) == 1
    assert settled(lambda n: 100 * n, 250) == 4


def test_more_threads_start_while_results_are_taken():
    seen = set()

    def make(job):
        seen.add(threading.current_thread())
        time.sleep(0.01)
        return job

    run = Prefetch(iter(range(200)), make, count=ThreadCount(4), deadline_s=60, moved=lambda: 0.0)
    assert np.array_equal([result for result, _ in run.results()], range(200))
    assert len(seen) > 1
